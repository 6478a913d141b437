/**
 * A bare machine: a process tree of its own in a root file system of {@linkcode bareRoot}, with a copy of this checkout
 * in an empty home, and an empty cache.
 *
 * @module
 */

import { dirname, join } from "node:path";
import { runProgram } from "../guest/apt.ts";
import { ORDINARY_UID, type Suite } from "./root.ts";

const checkout = join(import.meta.dirname!, "../..");

/** Users that the commands are run as. */
export const USERS = ["root", "user"] as const;

/** One of those. */
export type User = typeof USERS[number];

/** Variables that say how the network is reached, by name. */
const NETWORK_VARIABLES =
  /^(https?_proxy|all_proxy|no_proxy|npm_config_(registry|cafile|proxy|https_proxy|noproxy)|NODE_EXTRA_CA_CERTS|SSL_CERT_(FILE|DIR)|DENO_(CERT|TLS_CA_STORE))$/i;

/** Settings of npm that say the same. */
const NPM_SETTINGS = ["registry", "cafile", "proxy", "https-proxy", "noproxy"];

/** A bare machine that runs one command after the other. */
export class BareMachine implements AsyncDisposable {
  readonly suite: Suite;
  readonly user: User;
  readonly #root: string;
  readonly #stage: string;
  readonly #env: Readonly<Record<string, string>>;

  private constructor(
    suite: Suite,
    user: User,
    root: string,
    stage: string,
    env: Readonly<Record<string, string>>,
  ) {
    this.suite = suite;
    this.user = user;
    this.#root = root;
    this.#stage = stage;
    this.#env = env;
  }

  /** Lays out home, checkout and environment. */
  static async prepare(
    root: string,
    suite: Suite,
    user: User,
  ): Promise<BareMachine> {
    const stage = await Deno.makeTempDir({ prefix: "outboard-bare-" });
    // Debian 13 has a tmpfs there.
    const shared = suite === "bookworm" ? ["tmp", "var-tmp"] : ["var-tmp"];
    for (const folder of ["run", "home", ...shared]) {
      await Deno.mkdir(join(stage, folder));
    }
    for (const folder of shared) await Deno.chmod(join(stage, folder), 0o1777);
    await Deno.chmod(stage, 0o755);
    await copyCheckout(join(stage, "home/user/outboard"));
    await runProgram("chown", [
      "-R",
      user === "root" ? "0:0" : `${ORDINARY_UID}:${ORDINARY_UID}`,
      join(stage, "home/user"),
    ]);
    const env = {
      PATH: "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
      HOME: "/home/user",
      ...await networkEnvironment(join(stage, "run")),
    };
    return new BareMachine(suite, user, root, stage, env);
  }

  /**
   * Runs a command of a shell in the checkout, with what it says shown.
   *
   * @param limitSeconds When it is killed with all that it started
   * @returns Its exit status
   */
  async run(command: string, limitSeconds: number): Promise<number> {
    const uid = this.user === "root" ? 0 : ORDINARY_UID;
    const child = new Deno.Command("unshare", {
      args: [
        ...["--mount", "--pid", "--fork", "--"],
        ...["sh", join(import.meta.dirname!, "enter.sh")],
        ...[this.#root, this.#stage, String(uid), String(limitSeconds)],
        ...["sh", "-c", command],
      ],
      clearEnv: true,
      env: this.#env,
      stdin: "null",
    }).spawn();
    return (await child.status).code;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Deno.remove(this.#stage, { recursive: true });
  }
}

/** Copies what git has or would take. */
async function copyCheckout(into: string): Promise<void> {
  const listed = await runProgram("git", [
    ...["-C", checkout, "ls-files", "-z", "--cached", "--others"],
    "--exclude-standard",
  ]);
  if (!listed.success) throw new Error(listed.stderr);
  for (const path of listed.stdout.split("\0")) {
    if (path === "") continue;
    const target = join(into, path);
    await Deno.mkdir(dirname(target), { recursive: true });
    try {
      await Deno.copyFile(join(checkout, path), target);
    } catch (error) {
      // Removed and not committed yet.
      if (!(error instanceof Deno.errors.NotFound)) throw error;
    }
  }
}

/** Variables by which a machine that has nothing of this host but `run` reaches its network. */
async function networkEnvironment(
  run: string,
): Promise<Record<string, string>> {
  const env: Record<string, string> = {};
  for (const [name, value] of Object.entries(Deno.env.toObject())) {
    if (NETWORK_VARIABLES.test(name)) env[name] = value;
  }
  for (const setting of NPM_SETTINGS) {
    const { stdout } = await runProgram("npm", ["config", "get", setting]);
    const value = stdout.trim();
    if (value === "" || value === "null" || value === "undefined") continue;
    env[`npm_config_${setting.replaceAll("-", "_")}`] = value;
  }
  delete env["SSL_CERT_DIR"];
  for (const [name, value] of Object.entries(env)) {
    if (!/ca_?file|cert/i.test(name) || !value.startsWith("/")) continue;
    await Deno.copyFile(value, join(run, `${name}.crt`));
    env[name] = `/run/${name}.crt`;
  }
  return env;
}
