/**
 * libslirp for a process on the host, from the host's own release: it is loaded next to the host's C library.
 *
 * @module
 */

import { join } from "node:path";
import {
  hostAptSources,
  hostRelease,
  ownReleaseSources,
  PrivateApt,
  ProvisionError,
  runProgram,
  type Skip,
} from "./apt.ts";
import { cacheDirectory, cachedTree, skipOnFailure } from "./tree.ts";

/** Where the host finds libslirp; without a folder, in the system's own. */
export interface HostLibslirp {
  /** To be put into `LD_LIBRARY_PATH` of a process that opens the library. */
  readonly libraryDir?: string;
}

let libslirp: Promise<HostLibslirp | Skip> | undefined;

/** Provides libslirp for a process on the host, from the host's own release; or the reason why there can be none. */
export function hostLibslirp(): Promise<HostLibslirp | Skip> {
  return libslirp ??= skipOnFailure(provideLibslirp);
}

async function provideLibslirp(): Promise<HostLibslirp> {
  try {
    Deno.dlopen("libslirp.so.0", {}).close();
    return {};
  } catch {
    // Not on this system: fetch it.
  }
  const cacheDir = cacheDirectory();
  const { id, codename } = await hostRelease();
  const architecture = await runProgram("dpkg", ["--print-architecture"]);
  const sources = ownReleaseSources(await hostAptSources(), codename);
  if (!architecture.success || sources.length === 0) {
    throw new ProvisionError(
      "Cannot fetch libslirp: this host has no apt sources of its release; install libslirp 4.7 or later",
    );
  }
  const release = `${id}-${codename}-${architecture.stdout.trim()}`;
  // The process that opens the library runs on the host's C library already.
  const assumeInstalled = ["libc6", "libgcc-s1"];
  const recipe = { release, assumeInstalled };
  const tree = await cachedTree(cacheDir, "libslirp", recipe, async (root) => {
    const names = await new PrivateApt({
      root: join(cacheDir, `apt-${release}`),
      sources,
      architecture: architecture.stdout.trim(),
      assumeInstalled,
    }).unpack(["libslirp0"], root);
    await collectLibraries(root, join(root, "lib-path"));
    await checkLibslirp(join(root, "lib-path"));
    return names;
  });
  return { libraryDir: join(tree.root, "lib-path") };
}

/** Puts libslirp and what it links with, and no other library, into a folder: that folder comes before the host's. */
async function collectLibraries(root: string, into: string): Promise<void> {
  await Deno.mkdir(into);
  const wanted = /^lib(slirp|glib-2\.0|pcre|pcre2-8)\.so\.\d+$/;
  const visit = async (dir: string): Promise<void> => {
    for await (const entry of Deno.readDir(dir)) {
      const path = join(dir, entry.name);
      if (entry.isDirectory) await visit(path);
      else if (wanted.test(entry.name)) {
        await Deno.copyFile(path, join(into, entry.name));
      }
    }
  };
  for await (const entry of Deno.readDir(root)) {
    if (["lib", "usr"].includes(entry.name)) {
      await visit(join(root, entry.name));
    }
  }
}

async function checkLibslirp(libraryDir: string): Promise<void> {
  const ran = await runProgram(
    Deno.execPath(),
    ["eval", "Deno.dlopen('libslirp.so.0', {}).close()"],
    { LD_LIBRARY_PATH: libraryDir },
  );
  if (!ran.success) {
    throw new ProvisionError(`Cannot load libslirp: ${ran.stderr.trim()}`);
  }
}
