/**
 * passt for the host, from the host's own release: it runs on the host's C library.
 *
 * @module
 */

import { join } from "node:path";
import {
  hostAptSources,
  hostRelease,
  isSkip,
  ownReleaseSources,
  PrivateApt,
  ProvisionError,
  runProgram,
  type Skip,
} from "./apt.ts";
import { cacheDirectory, cachedTree, skipOnFailure } from "./tree.ts";

/** Where passt is on this host. */
export interface HostPasst {
  /** For `passt=` and `OUTBOARD_PASST`. */
  readonly program: string;
}

let passt: Promise<HostPasst | Skip> | undefined;

/** Provides passt for the host; or the reason why there can be none. */
export function hostPasst(): Promise<HostPasst | Skip> {
  return passt ??= skipOnFailure(providePasst);
}

/**
 * As {@linkcode hostPasst}.
 *
 * @throws When there is none and CI=true: a skipped test must not look like a passed one there
 */
export async function testPasst(): Promise<HostPasst | Skip> {
  const provided = await hostPasst();
  if (isSkip(provided) && Deno.env.get("CI") === "true") {
    throw new Error(`No passt: ${provided.skip}`);
  }
  return provided;
}

async function runs(program: string): Promise<boolean> {
  return (await runProgram(program, ["--version"])).success;
}

async function providePasst(): Promise<HostPasst> {
  if (await runs("passt")) return { program: "passt" };
  const cacheDir = cacheDirectory();
  const { id, codename } = await hostRelease();
  const printed = await runProgram("dpkg", ["--print-architecture"]);
  const sources = ownReleaseSources(await hostAptSources(), codename);
  if (!printed.success || sources.length === 0) {
    throw new ProvisionError(
      "Cannot fetch passt: this host has no apt sources of its release; install passt",
    );
  }
  const architecture = printed.stdout.trim();
  const release = `${id}-${codename}-${architecture}`;
  const assumeInstalled = ["libc6"];
  const recipe = { release, assumeInstalled };
  const tree = await cachedTree(cacheDir, "passt", recipe, async (root) => {
    const names = await new PrivateApt({
      // Its status file tells what is installed, so it is not the one that other packages are fetched with.
      root: join(cacheDir, `apt-passt-${release}`),
      sources,
      architecture,
      assumeInstalled,
    }).unpack(["passt"], root);
    if (!await runs(join(root, "usr/bin/passt"))) {
      throw new ProvisionError(
        "Cannot run passt: that of the packages does not start",
      );
    }
    return names;
  });
  return { program: join(tree.root, "usr/bin/passt") };
}
