/**
 * libslirp for a process on the host, from the host's own release: it is loaded next to the host's C library.
 *
 * @module
 */

import { join } from "node:path";
import { ProvisionError, runProgram, type Skip } from "./apt.ts";
import { linkedLibraries } from "./elf.ts";
import { ownReleaseTree } from "./own_release.ts";
import { skipOnFailure } from "./tree.ts";
import { LIBSLIRP_SONAME } from "../../src/backend/net/slirp/symbols.ts";

/** Place of libslirp on the host; without a folder, the system's own. */
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
    Deno.dlopen(LIBSLIRP_SONAME, {}).close();
    return {};
  } catch {
    // Not on this system: fetch it.
  }
  const { root } = await ownReleaseTree("libslirp", {
    packageName: "libslirp0",
    remedy: "install libslirp 4.7 or later",
    // The process that opens the library runs on the host's C library already.
    assumeInstalled: ["libc6", "libgcc-s1"],
    prepare: async (root) => {
      await collectLibraries(root, join(root, "lib-path"));
      await checkLibslirp(join(root, "lib-path"));
    },
  });
  return { libraryDir: join(root, "lib-path") };
}

/**
 * Puts libslirp and what it links with, and no other library, into a folder: that folder comes before the host's. What
 * the packages lack is the host's.
 */
async function collectLibraries(root: string, into: string): Promise<void> {
  const { found } = await linkedLibraries(root, [LIBSLIRP_SONAME]);
  await Deno.mkdir(into);
  for (const [name, path] of found) {
    await Deno.copyFile(path, join(into, name));
  }
}

async function checkLibslirp(libraryDir: string): Promise<void> {
  const ran = await runProgram(
    Deno.execPath(),
    ["eval", `Deno.dlopen(${JSON.stringify(LIBSLIRP_SONAME)}, {}).close()`],
    { LD_LIBRARY_PATH: libraryDir },
  );
  if (!ran.success) {
    throw new ProvisionError(`Cannot load libslirp: ${ran.stderr.trim()}`);
  }
}
