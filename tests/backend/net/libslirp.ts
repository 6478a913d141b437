/**
 * Source of libslirp for the tests: the host, or the folder the guest tests provide.
 *
 * @module
 */

import { hostLibslirp } from "../../guest/provision.ts";
import {
  LIBSLIRP_SONAME,
  openLibslirp,
} from "../../../src/backend/net/slirp/symbols.ts";

/** A name that openLibslirp() takes, or why there is none. */
export type TestLibslirp = { readonly library: string } | {
  readonly skip: string;
};

function loads(library: string): boolean {
  const opened = openLibslirp(library);
  if ("reason" in opened) return false;
  opened.close();
  return true;
}

/**
 * Opens everything in a folder, libraries that others need first. The dynamic linker then finds them by their
 * names, so that no LD_LIBRARY_PATH and no process of its own is needed.
 */
function preload(directory: string): void {
  let left = [...Deno.readDirSync(directory)].map(({ name }) => name);
  for (let before = -1; left.length > 0 && left.length !== before;) {
    before = left.length;
    left = left.filter((name) => {
      try {
        Deno.dlopen(`${directory}/${name}`, {});
        return false;
      } catch {
        return true;
      }
    });
  }
}

/**
 * Finds libslirp 4.7 or later, for this process and for those that are started from here on.
 *
 * @throws When there is none and CI=true: a skipped test must not look like a passed one there
 */
export async function testLibslirp(): Promise<TestLibslirp> {
  if (loads(LIBSLIRP_SONAME)) return { library: LIBSLIRP_SONAME };
  const provided = await hostLibslirp();
  let skip = "the libslirp that was provided does not load";
  if ("skip" in provided) skip = provided.skip;
  else if (provided.libraryDir !== undefined) {
    preload(provided.libraryDir);
    // A dynamic linker reads it when its process begins, so that ours is not concerned.
    Deno.env.set("LD_LIBRARY_PATH", provided.libraryDir);
    const library = `${provided.libraryDir}/${LIBSLIRP_SONAME}`;
    if (loads(library)) return { library };
  }
  if (Deno.env.get("CI") === "true") throw new Error(`No libslirp: ${skip}`);
  return { skip };
}
