/**
 * Outboard in a process of its own, for a bench to drive from this one.
 *
 * @module
 */

import {
  type OutboardProcess,
  startOutboard,
} from "../src/testing/outboard_process.ts";
import { VfioUserClient } from "../src/vfio_user/client/mod.ts";

/** A served device and a negotiated client on it. */
export interface Served {
  readonly outboard: OutboardProcess;
  readonly client: VfioUserClient;
}

/** Serves a device, connects, runs the bench, and takes everything down. */
export async function withDevice<T>(
  device: string,
  run: (served: Served) => T | Promise<T>,
  args: readonly string[] = [],
): Promise<T> {
  const folder = Deno.makeTempDirSync({ prefix: "outboard-bench-" });
  try {
    const socket = `${folder}/dev.sock`;
    await using outboard = await startOutboard(
      ["--device", device, "--socket", socket, ...args],
    );
    using client = new VfioUserClient(socket);
    client.negotiate();
    return await run({ outboard, client });
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
}
