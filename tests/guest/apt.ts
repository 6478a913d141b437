/**
 * A private apt: its own sources, status file, lists and archives, so that packages of any Debian release can be
 * fetched and unpacked without root and without touching the host's package system.
 *
 * Mirror and keyring come from the host's own apt sources; nothing here knows the name of a server.
 *
 * @module
 */

import { createHash } from "node:crypto";
import { join } from "node:path";

/** One source of packages, as apt's deb822 format describes it. */
export interface AptSource {
  readonly uris: readonly string[];
  readonly suites: readonly string[];
  readonly components: readonly string[];
  /** The value of `Signed-By`: key files, fingerprints, or an embedded key. Empty: apt's trusted keys. */
  readonly signedBy: string;
}

/** Reason, for people, why something cannot be provisioned here. */
export interface Skip {
  readonly skip: string;
}

/** True if a provisioning result is the reason why there is none. */
export function isSkip(value: object): value is Skip {
  return "skip" in value;
}

/** Thrown when apt, dpkg or another program of the provisioning fails. */
export class ProvisionError extends Error {
  override readonly name = "ProvisionError";
}

/** Writes one line of progress to stderr. */
export function progress(line: string): void {
  console.error(`guest kit: ${line}`);
}

/** Parses a one-line-style sources file (`deb [options] uri suite components…`). */
export function parseSourcesList(text: string): AptSource[] {
  const sources: AptSource[] = [];
  for (const line of text.split("\n")) {
    const match = /^\s*deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)\s*([^#]*)/.exec(
      line,
    );
    if (match === null) continue;
    const [, options = "", uri = "", suite = "", components = ""] = match;
    const signedBy = /(?:^|\s)signed-by=(\S+)/.exec(options)?.[1] ?? "";
    sources.push({
      uris: [uri],
      suites: [suite],
      components: words(components),
      signedBy: signedBy.replaceAll(",", " "),
    });
  }
  return sources;
}

/** Parses a deb822-style sources file (`Types: deb` paragraphs). */
export function parseDeb822Sources(text: string): AptSource[] {
  const sources: AptSource[] = [];
  const uncommented = text.replaceAll(/^#.*\n?/gm, "");
  for (const paragraph of uncommented.split(/\n[ \t]*\n/)) {
    const fields = new Map<string, string>();
    let last = "";
    for (const line of paragraph.split("\n")) {
      const field = /^([A-Za-z-]+):\s*(.*)$/.exec(line);
      if (field !== null) {
        last = (field[1] ?? "").toLowerCase();
        fields.set(last, field[2] ?? "");
      } else if (/^\s/.test(line)) {
        // An embedded key is a continuation; it is handed on as it stands.
        fields.set(last, `${fields.get(last) ?? ""}\n${line}`);
      }
    }
    const enabled = !/^(no|false|0)$/i.test(fields.get("enabled") ?? "yes");
    if (!enabled || !words(fields.get("types")).includes("deb")) continue;
    sources.push({
      uris: words(fields.get("uris")),
      suites: words(fields.get("suites")),
      components: words(fields.get("components")),
      signedBy: fields.get("signed-by") ?? "",
    });
  }
  return sources;
}

function words(text: string | undefined): string[] {
  return (text ?? "").split(/\s+/).filter((word) => word !== "");
}

/** Reads the sources that the host's apt is configured with. */
export async function hostAptSources(): Promise<AptSource[]> {
  const main = await readTextIfPresent("/etc/apt/sources.list");
  const sources = parseSourcesList(main);
  const partsDir = "/etc/apt/sources.list.d";
  const names: string[] = [];
  try {
    for await (const entry of Deno.readDir(partsDir)) names.push(entry.name);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
  for (const name of names.sort()) {
    const text = await readTextIfPresent(join(partsDir, name));
    if (name.endsWith(".list")) sources.push(...parseSourcesList(text));
    if (name.endsWith(".sources")) sources.push(...parseDeb822Sources(text));
  }
  return sources;
}

async function readTextIfPresent(path: string): Promise<string> {
  try {
    return await Deno.readTextFile(path);
  } catch (error) {
    if (
      error instanceof Deno.errors.NotFound ||
      error instanceof Deno.errors.PermissionDenied
    ) return "";
    throw error;
  }
}

/** The host's release, from os-release: its distribution (`debian`), and its code name. */
export async function hostRelease(): Promise<{ id: string; codename: string }> {
  const text = await readTextIfPresent("/etc/os-release");
  const field = (name: string) =>
    new RegExp(`^${name}="?([^"\n]*)"?$`, "m").exec(text)?.[1] ?? "";
  return { id: field("ID"), codename: field("VERSION_CODENAME") };
}

/** The host's sources of its own release (not third-party ones), all suites of it. */
export function ownReleaseSources(
  sources: readonly AptSource[],
  codename: string,
): AptSource[] {
  return sources.flatMap((source) => {
    const suites = source.suites.filter((suite) =>
      suite === codename || suite.startsWith(`${codename}-`)
    );
    return suites.length > 0 && source.components.includes("main")
      ? [{ ...source, suites }]
      : [];
  });
}

/**
 * Sources for another release of Debian on the host's own mirrors, the likeliest first.
 *
 * Third-party sources may carry the release's name and a `main` too: those that look like a Debian mirror are
 * tried first, and the caller goes on to the next when a mirror has no such suites.
 */
export function debianMirrorSources(
  sources: readonly AptSource[],
  codename: string,
  suites: readonly string[],
): AptSource[] {
  const aliases = [codename, "stable", "testing", "unstable", "sid"];
  const candidates = sources.filter((source) =>
    source.components.includes("main") &&
    source.suites.some((suite) => aliases.includes(suite))
  );
  const rank = (source: AptSource) =>
    source.uris.some((uri) => /\/debian\/?$/.test(uri))
      ? 0
      : /debian-archive/.test(source.signedBy)
      ? 1
      : 2;
  return candidates
    .map((source) => ({ ...source, suites, components: ["main"] }))
    .sort((a, b) => rank(a) - rank(b));
}

/** Result of a run of a program. */
export interface Ran {
  readonly success: boolean;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs a program to its end and collects what it says; a program that is not there is a failure, not an exception. */
export async function runProgram(
  command: string,
  args: readonly string[],
  env: Record<string, string> = {},
): Promise<Ran> {
  try {
    const output = await new Deno.Command(command, {
      args: [...args],
      env: { ...env, LC_ALL: "C", DEBIAN_FRONTEND: "noninteractive" },
      stdin: "null",
      stdout: "piped",
      stderr: "piped",
    }).output();
    const decoder = new TextDecoder();
    return {
      success: output.success,
      stdout: decoder.decode(output.stdout),
      stderr: decoder.decode(output.stderr),
    };
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
    return { success: false, stdout: "", stderr: `${command}: not found` };
  }
}

/**
 * The proxies and the like that the host's apt is configured with, as lines of apt.conf(5): they hold for a private
 * apt too, but not the host's hooks, pins or cache cleaners.
 *
 * @throws {ProvisionError} When the host has no apt
 */
export async function hostTransportSettings(): Promise<string[]> {
  const dump = await runProgram("apt-config", ["dump"]);
  if (!dump.success) throw failure("Cannot read apt's configuration", dump);
  return dump.stdout.split("\n").filter((line) =>
    /^Acquire::(http|https|ftp|mirror|ForceIPv|Retries|Proxy)/i.test(line)
  );
}

/** Removes a file or a folder with all that is in it. */
export async function removeIfPresent(path: string): Promise<void> {
  try {
    await Deno.remove(path, { recursive: true });
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
}

/** Settings of a private apt. */
export interface PrivateAptOptions {
  /** The folder that its own, `apt`, lies in, absolute; created when missing. */
  readonly cacheDir: string;
  readonly sources: readonly AptSource[];
  readonly architecture: string;
  /** Packages taken as installed, so that they and what only they need are not fetched. */
  readonly assumeInstalled: readonly string[];
}

/** Folders of packages for people, which no program reads. */
const FOR_PEOPLE = ["doc", "man", "locale", "lintian", "bug"];

/**
 * An apt with a folder of its own, which all in a cache share, so that the lists of a release are there once. Not safe
 * for two users at once: hold a lock around its use.
 */
export class PrivateApt {
  readonly #options: PrivateAptOptions;
  readonly #root: string;

  constructor(options: PrivateAptOptions) {
    this.#options = options;
    this.#root = join(options.cacheDir, "apt");
  }

  /** Downloads packages with their dependencies and unpacks them all into `tree`; returns the archives' names. */
  async unpack(
    packages: readonly string[],
    tree: string,
    targetRelease?: string,
  ): Promise<string[]> {
    const archives = `${tree}.archives`;
    await Deno.mkdir(join(archives, "partial"), { recursive: true });
    await Deno.mkdir(tree, { recursive: true });
    try {
      await this.#download(packages, archives, targetRelease);
      const names: string[] = [];
      for await (const entry of Deno.readDir(archives)) {
        if (entry.name.endsWith(".deb")) names.push(entry.name);
      }
      names.sort();
      progress(`unpacking ${names.length} packages`);
      for (const name of names) {
        const ran = await runProgram("dpkg-deb", [
          "-x",
          join(archives, name),
          tree,
        ]);
        if (!ran.success) throw failure(`Cannot unpack ${name}`, ran);
      }
      for (const name of FOR_PEOPLE) {
        await removeIfPresent(join(tree, "usr/share", name));
      }
      return names;
    } finally {
      await Deno.remove(archives, { recursive: true });
    }
  }

  async #download(
    packages: readonly string[],
    archives: string,
    targetRelease: string | undefined,
  ): Promise<void> {
    const args = [
      "install",
      "--download-only",
      "--no-install-recommends",
      "-qq",
      "-y",
      "-o",
      `Dir::Cache::archives=${archives}`,
      ...(targetRelease === undefined ? [] : ["-t", targetRelease]),
      ...packages,
    ];
    const marker = await this.#configure();
    const hadLists = await readTextIfPresent(marker) !== "";
    if (!hadLists) await this.#update(marker);
    progress(`downloading ${packages.join(", ")} with dependencies`);
    let ran = await this.#aptGet(args);
    if (!ran.success && hadLists) {
      // Lists kept from an earlier run may name packages that the mirror has replaced since.
      await this.#update(marker);
      ran = await this.#aptGet(args);
    }
    if (!ran.success) throw failure("Cannot download packages", ran);
  }

  /** Writes the configuration; returns the path of a file that is there when the lists of its sources are. */
  async #configure(): Promise<string> {
    const root = this.#root;
    const { sources, architecture, assumeInstalled } = this.#options;
    for (const dir of ["lists/partial", "sources.d", "empty.d"]) {
      await Deno.mkdir(join(root, dir), { recursive: true });
    }
    const stanzas = sources.map((source) =>
      [
        "Types: deb",
        `URIs: ${source.uris.join(" ")}`,
        `Suites: ${source.suites.join(" ")}`,
        `Components: ${source.components.join(" ")}`,
        ...(source.signedBy === "" ? [] : [`Signed-By: ${source.signedBy}`]),
      ].join("\n")
    );
    const status = assumeInstalled.map((name) =>
      [
        `Package: ${name}`,
        "Status: install ok installed",
        "Version: 9999",
        `Architecture: ${architecture}`,
        "Multi-Arch: foreign",
        "Maintainer: nobody",
        "Description: taken as installed",
      ].join("\n")
    );
    const text = stanzas.join("\n\n") + "\n";
    await Deno.writeTextFile(join(root, "sources.d/main.sources"), text);
    await Deno.writeTextFile(join(root, "status"), status.join("\n\n") + "\n");
    await Deno.writeTextFile(
      join(root, "apt.conf"),
      await this.#configuration(),
    );
    const hash = createHash("sha256").update(text).digest("hex");
    return join(root, `updated-${hash.slice(0, 12)}`);
  }

  async #configuration(): Promise<string> {
    const root = this.#root;
    const { architecture } = this.#options;
    const inherited = await hostTransportSettings();
    const settings: Record<string, string> = {
      "Dir::State": root,
      "Dir::State::lists": join(root, "lists"),
      "Dir::State::status": join(root, "status"),
      "Dir::Cache": root,
      "Dir::Cache::pkgcache": "",
      "Dir::Cache::srcpkgcache": "",
      "Dir::Log": root,
      "Dir::Etc::main": "/dev/null",
      "Dir::Etc::parts": join(root, "empty.d"),
      "Dir::Etc::sourcelist": "/dev/null",
      "Dir::Etc::sourceparts": join(root, "sources.d"),
      "Dir::Etc::preferences": "/dev/null",
      "Dir::Etc::preferencesparts": join(root, "empty.d"),
      "APT::Architecture": architecture,
      // As root, apt would fetch as a user who cannot write into this folder; as anyone else this is ignored.
      "APT::Sandbox::User": "root",
      "APT::Install-Recommends": "false",
      // Mirrors may be frozen snapshots.
      "Acquire::Check-Valid-Until": "false",
      "Acquire::Languages": "none",
      // As they come: a fifth of the size.
      "Acquire::GzipIndexes": "true",
      // The lists of other sources stay.
      "APT::Get::List-Cleanup": "false",
    };
    const lines = Object.entries(settings).map(([key, value]) =>
      `${key} "${value}";`
    );
    return [
      ...inherited,
      ...lines,
      `APT::Architectures { "${architecture}"; };`,
    ].join("\n") + "\n";
  }

  async #update(marker: string): Promise<void> {
    const suites = this.#options.sources.flatMap((source) => source.suites);
    progress(`reading package lists of ${suites.join(", ")}`);
    // A suite that is missing must be an error; apt-get would only warn.
    const ran = await this.#aptGet(["update", "-qq", "--error-on=any"]);
    if (!ran.success) throw failure("Cannot read package lists", ran);
    await Deno.writeTextFile(marker, `${suites.join(" ")}\n`);
  }

  async #aptGet(args: readonly string[]): Promise<Ran> {
    return await runProgram("apt-get", args, {
      APT_CONFIG: join(this.#root, "apt.conf"),
    });
  }
}

function failure(what: string, ran: Ran): ProvisionError {
  const lines = ran.stderr.split("\n").filter((line) =>
    line !== "" && !line.startsWith("W:")
  );
  const detail = lines.slice(-4).join("; ");
  return new ProvisionError(`${what}: ${detail}`);
}
