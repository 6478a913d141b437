/**
 * Packages of the host's own release, for what runs on the host's C library.
 *
 * @module
 */

import {
  hostAptSources,
  hostRelease,
  ownReleaseSources,
  PrivateApt,
  ProvisionError,
  runProgram,
} from "./apt.ts";
import { cacheDirectory, cachedTree, type Tree } from "./tree.ts";

/** Release to fetch. */
export interface OwnReleaseOptions {
  readonly packageName: string;
  /** For people, where the package cannot be fetched: `"install libslirp 4.7 or later"`. */
  readonly remedy: string;
  /** Packages that the host has for sure, or that nothing we run uses. */
  readonly assumeInstalled: readonly string[];
  /** Makes the tree ready, or finds that it is of no use. */
  readonly prepare?: (root: string) => Promise<void>;
}

/**
 * Provides a package of the host's own release with what it depends on, as a tree named `name`.
 *
 * @throws {ProvisionError} When it cannot be fetched here
 */
export async function ownReleaseTree(
  name: string,
  options: OwnReleaseOptions,
): Promise<Tree> {
  const { packageName, remedy, assumeInstalled } = options;
  const cacheDir = cacheDirectory();
  const { id, codename } = await hostRelease();
  const printed = await runProgram("dpkg", ["--print-architecture"]);
  const sources = ownReleaseSources(await hostAptSources(), codename);
  if (!printed.success || sources.length === 0) {
    throw new ProvisionError(
      `Cannot fetch ${packageName}: this host has no apt sources of its release; ${remedy}`,
    );
  }
  const architecture = printed.stdout.trim();
  const release = `${id}-${codename}-${architecture}`;
  const recipe = { release, assumeInstalled };
  return await cachedTree(cacheDir, name, recipe, async (root) => {
    const names = await new PrivateApt({
      cacheDir,
      sources,
      architecture,
      assumeInstalled,
    }).unpack([packageName], root);
    await options.prepare?.(root);
    return names;
  });
}
