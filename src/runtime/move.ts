/**
 * Moves a device from one IOThread to another while its client and driver go on.
 *
 * ```text
 *   hold (until nothing is in flight) ──▶ hand over ──▶ serve on the other thread
 *        │ not in time                                      │ fails
 *        ▼                                                  ▼
 *     release                                     serve where it was, again
 * ```
 *
 * @module
 */

import type { IOThread } from "./iothread/iothread.ts";
import type { DeviceSpec } from "./iothread/messages.ts";

/** A device on its way. */
export interface Move {
  readonly device: DeviceSpec;
  /** True if the device logs at debug level. */
  readonly debug: boolean;
  readonly from: IOThread;
  readonly to: IOThread;
}

/** A device is on no thread any more: it could not go where it was to go, and not back to where it came from. */
export class DeviceLostError extends Error {
  override readonly name: string = "DeviceLostError";
}

/** Time requests in flight may take to end. */
const HOLD_TIMEOUT_MS = 5000;
/** Time the loop runs, at least, before it is asked again what is in flight. */
const HOLD_AGAIN_MS = 1;

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

async function untilNothingInFlight(
  { device, from }: Move,
  stopping: () => boolean,
): Promise<void> {
  const deadline = performance.now() + HOLD_TIMEOUT_MS;
  for (;;) {
    const inFlight = await from.request({ kind: "hold", device: device.id });
    if (stopping()) {
      throw new Error(`Cannot move ${device.id}: everything is being stopped`);
    }
    if (inFlight === 0) return;
    if (performance.now() >= deadline) {
      const what = inFlight === 1
        ? "1 request does"
        : `${inFlight} requests do`;
      throw new Error(
        `Cannot move ${device.id}: ${what} not finish within ${
          HOLD_TIMEOUT_MS / 1000
        } s; it goes on on IOThread ${from.index}`,
      );
    }
    await new Promise((resolve) => setTimeout(resolve, HOLD_AGAIN_MS));
  }
}

/**
 * The first half: the target gets ready, and the device comes to rest. It can take long, and the device is on its old
 * thread all the time.
 *
 * @param stopping Whether to give up, because everything ends
 * @throws {Error} With the reason; the device goes on where it was
 */
export async function holdDevice(
  move: Move,
  stopping: () => boolean,
): Promise<void> {
  const { device, from, to } = move;
  await to.request({ kind: "prepare", model: device.model });
  try {
    await untilNothingInFlight(move, stopping);
  } catch (error) {
    await from.request({ kind: "release", device: device.id }).catch(() => {});
    throw error;
  }
}

/**
 * The second half: the device changes threads. It is short, and the device is on neither thread for a moment.
 *
 * @throws {Error} What failed on the target; the device goes on where it was
 * @throws {DeviceLostError} When it could not even do that
 */
export async function transferDevice(move: Move): Promise<void> {
  const { device, debug, from, to } = move;
  const request = { kind: "handOver", device: device.id } as const;
  const saved = await from.request(request).catch(async (error) => {
    await from.request({ kind: "release", device: device.id }).catch(() => {});
    throw error;
  });
  try {
    const moved = { ...device, iothread: to.index, queues: [to.index] };
    await to.request({ kind: "serve", device: moved, debug, saved });
  } catch (failure) {
    const what = `Cannot move ${device.id} to IOThread ${to.index}: ${
      messageOf(failure)
    }`;
    try {
      await from.request({ kind: "serve", device, debug, saved });
    } catch (error) {
      // The client is to see that it is alone.
      await from.request({ kind: "discard", saved })
        .catch(() => {});
      throw new DeviceLostError(
        `${what}; IOThread ${from.index} cannot take it back: ${
          messageOf(error)
        }`,
      );
    }
    throw new Error(`${what}; it goes on on IOThread ${from.index}`);
  }
}
