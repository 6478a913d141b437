/**
 * Root file systems of bare machines: a Debian release with nodejs, npm and git, and nothing else.
 *
 * Mirror, keyring, proxies and npm's settings are the host's own; nothing here knows the name of a server.
 *
 * @module
 */

import { join } from "node:path";
import {
  debianMirrorSources,
  hostAptSources,
  hostRelease,
  hostTransportSettings,
  progress,
  ProvisionError,
  runProgram,
} from "../guest/apt.ts";
import { ownReleaseTree } from "../guest/own_release.ts";
import { cacheDirectory, cachedTree } from "../guest/tree.ts";

/** Debian releases that Outboard promises to work on. */
export const SUITES = ["bookworm", "trixie"] as const;

/** One of those. */
export type Suite = typeof SUITES[number];

/** The only things on a bare machine beside Debian's own. */
const PACKAGES = ["nodejs", "npm", "git"];

/** A user who is not root. */
export const ORDINARY_UID = 1000;

/** debootstrap and its environment: the host's, or that of the host's release. */
async function findDebootstrap(): Promise<[string, Record<string, string>]> {
  if ((await runProgram("debootstrap", ["--version"])).success) {
    return ["debootstrap", {}];
  }
  const { root } = await ownReleaseTree("debootstrap", {
    packageName: "debootstrap",
    remedy: "install debootstrap",
    // A shell script; the rest is on every Debian.
    assumeInstalled: ["wget", "mount", "mount-x"],
  });
  return [
    join(root, "usr/sbin/debootstrap"),
    { DEBOOTSTRAP_DIR: join(root, "usr/share/debootstrap") },
  ];
}

async function run(
  what: string,
  command: string,
  args: readonly string[],
  env: Record<string, string> = {},
): Promise<void> {
  const ran = await runProgram(command, args, env);
  if (ran.success) return;
  const said = `${ran.stdout}\n${ran.stderr}`.trim().split("\n").slice(-4);
  throw new ProvisionError(`Cannot ${what}: ${said.join("; ")}`);
}

/** Proxies that apt is configured with, as debootstrap's downloader takes them. */
function proxyVariables(
  settings: readonly string[],
): Record<string, string> {
  const variables: Record<string, string> = {};
  for (const line of settings) {
    const match = /^Acquire::(https?)::Proxy "(.+)";$/i.exec(line);
    if (match !== null) {
      variables[`${match[1]!.toLowerCase()}_proxy`] = match[2]!;
    }
  }
  return variables;
}

/** Refuses a host where no root can be made or entered. */
async function checkHost(): Promise<void> {
  if (Deno.uid() !== 0) {
    throw new ProvisionError("Cannot make a bare machine: it takes root");
  }
  for (
    const args of [
      [
        "unshare",
        "--mount",
        "--pid",
        "--fork",
        "mount",
        "--make-rprivate",
        "/",
      ],
      ["wget", "--version"],
    ]
  ) {
    await run(`make a bare machine with ${args[0]}`, args[0]!, args.slice(1));
  }
}

/**
 * Makes the root file system of a release, or finds it in the cache.
 *
 * @returns Its folder
 * @throws {ProvisionError} Where that is impossible
 */
export async function bareRoot(suite: Suite): Promise<string> {
  await checkHost();
  const { codename } = await hostRelease();
  const sources = await hostAptSources();
  const mirror = debianMirrorSources(sources, codename, [suite])[0];
  if (mirror === undefined) {
    throw new ProvisionError(
      "Cannot make a bare machine: this host has no apt sources of Debian",
    );
  }
  const [debootstrap, env] = await findDebootstrap();
  const recipe = { suite, PACKAGES };
  const tree = await cachedTree(
    cacheDirectory(),
    `root-${suite}`,
    recipe,
    async (root) => {
      const settings = await hostTransportSettings();
      const keyring = /^\/\S+$/.test(mirror.signedBy)
        ? [`--keyring=${mirror.signedBy}`]
        : [];
      progress(`making the smallest ${suite}`);
      await run(
        `make a ${suite}`,
        // It mounts things in the new root, which are gone with its namespace.
        "unshare",
        [
          ...["--mount", debootstrap],
          ...["--variant=minbase", "--include=ca-certificates", ...keyring],
          ...[suite, root, mirror.uris[0]!],
        ],
        { ...env, ...proxyVariables(settings) },
      );
      await addPackages(root, settings);
      return [suite, ...PACKAGES];
    },
  );
  return tree.root;
}

async function addPackages(
  root: string,
  settings: readonly string[],
): Promise<void> {
  progress(`adding ${PACKAGES.join(", ")}`);
  const write = (path: string, text: string) =>
    Deno.writeTextFile(join(root, path), text);
  await write("etc/apt/apt.conf.d/90host", settings.join("\n") + "\n");
  // It is thrown away when it fails.
  await write("etc/dpkg/dpkg.cfg.d/90unsafe", "force-unsafe-io\n");
  await Deno.copyFile("/etc/resolv.conf", join(root, "etc/resolv.conf"));
  await Deno.copyFile("/etc/hosts", join(root, "etc/hosts"));
  const script = [
    "mount -t proc proc /proc",
    "apt-get update -qq",
    `apt-get install -qq -y --no-install-recommends ${PACKAGES.join(" ")}`,
    "apt-get clean",
    "rm -rf /var/lib/apt/lists/*",
    `useradd --uid ${ORDINARY_UID} --no-create-home user`,
  ].join(" && ");
  const apart = ["--mount", "--pid", "--fork"];
  await run("add packages", "unshare", [
    ...[...apart, "chroot", root, "sh", "-c", script],
  ]);
}
