/**
 * passt for the host, from the host's own release: it runs on the host's C library.
 *
 * @module
 */

import { join } from "node:path";
import { isSkip, ProvisionError, runProgram, type Skip } from "./apt.ts";
import { ownReleaseTree } from "./own_release.ts";
import { skipOnFailure } from "./tree.ts";

/** Place of passt on this host. */
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
  const tree = await ownReleaseTree("passt", {
    packageName: "passt",
    remedy: "install passt",
    assumeInstalled: ["libc6"],
    prepare: async (root) => {
      if (await runs(join(root, "usr/bin/passt"))) return;
      throw new ProvisionError(
        "Cannot run passt: that of the packages does not start",
      );
    },
  });
  return { program: join(tree.root, "usr/bin/passt") };
}
