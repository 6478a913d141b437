/**
 * Trees of unpacked packages in the cache folder: each named by a hash of its recipe and put in place by one rename, so
 * that a tree is either whole or absent. A lock file keeps concurrent processes from doing the same work twice.
 *
 * @module
 */

import { createHash } from "node:crypto";
import { join } from "node:path";
import { progress, ProvisionError, removeIfPresent, type Skip } from "./apt.ts";

/** Raised when the way a tree is made changes, so that every cache provisions anew. */
const MANIFEST_VERSION = 1;

/** A folder of unpacked packages. */
export interface Tree {
  readonly root: string;
  /** Names the exact packages in it. */
  readonly identity: string;
}

/** A program and the arguments that come before the caller's own. */
export interface CommandPrefix {
  readonly command: string;
  readonly args: readonly string[];
  readonly env: Readonly<Record<string, string>>;
}

/** The cache folder: `OUTBOARD_CACHE`, or `outboard` in the user's cache folder. */
export function cacheDirectory(): string {
  const explicit = Deno.env.get("OUTBOARD_CACHE");
  if (explicit) return explicit;
  const xdg = Deno.env.get("XDG_CACHE_HOME");
  if (xdg) return join(xdg, "outboard");
  const home = Deno.env.get("HOME");
  if (home) return join(home, ".cache", "outboard");
  throw new ProvisionError("Cannot find a cache folder: set OUTBOARD_CACHE");
}

/** Turns the failure of a provisioning into the reason for skipping. */
export async function skipOnFailure<T>(
  make: () => Promise<T>,
): Promise<T | Skip> {
  try {
    return await make();
  } catch (error) {
    if (error instanceof ProvisionError) return { skip: error.message };
    throw error;
  }
}

/** Command that runs a program of a tree on this host: with the tree's own loader and libraries, whatever the host's are. */
export function treeCommand(root: string, program: string): CommandPrefix {
  // Some packages keep private libraries in a folder that only an absolute run path would find.
  const libraries = [
    "usr/lib/x86_64-linux-gnu",
    "usr/lib/x86_64-linux-gnu/ceph",
    "usr/lib",
  ];
  return {
    command: join(root, "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"),
    args: [
      "--library-path",
      libraries.map((dir) => join(root, dir)).join(":"),
      join(root, program),
    ],
    env: {},
  };
}

/** Provides a tree by its recipe: `make` fills the folder that it is handed and returns the names of its packages. */
export async function cachedTree(
  cacheDir: string,
  name: string,
  recipe: unknown,
  make: (root: string) => Promise<string[]>,
): Promise<Tree> {
  const key = createHash("sha256")
    .update(JSON.stringify([MANIFEST_VERSION, name, recipe]))
    .digest("hex")
    .slice(0, 12);
  const root = join(cacheDir, "trees", `${name}-${key}`);
  const present = await readTree(root);
  if (present !== undefined) return present;

  await Deno.mkdir(join(cacheDir, "trees"), { recursive: true });
  using lock = await Deno.open(join(cacheDir, "lock"), {
    create: true,
    write: true,
  });
  // The kernel drops the lock of a process that dies, so there is no stale one to clean up.
  await lock.lock(true);
  const madeMeanwhile = await readTree(root);
  if (madeMeanwhile !== undefined) return madeMeanwhile;
  progress(`provisioning ${name} into ${cacheDir}`);
  // Only the holder of the lock makes trees: what is left under this name is of a run that died.
  const partial = `${root}.partial`;
  await removeIfPresent(partial);
  try {
    const packages = await make(partial);
    await Deno.writeTextFile(
      join(partial, "packages.txt"),
      packages.join("\n") + "\n",
    );
    await Deno.rename(partial, root);
  } catch (error) {
    await removeIfPresent(partial);
    throw error;
  }
  progress(`provisioned ${name}`);
  const tree = await readTree(root);
  if (tree === undefined) throw new Error(`the tree ${root} has gone`);
  return tree;
}

async function readTree(root: string): Promise<Tree | undefined> {
  try {
    const packages = await Deno.readTextFile(join(root, "packages.txt"));
    const identity = createHash("sha256").update(packages).digest("hex");
    return { root, identity };
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    throw error;
  }
}
