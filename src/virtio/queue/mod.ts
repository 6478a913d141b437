/**
 * Virtqueues, device side (virtio 1.3, sections 2.6 to 2.8).
 *
 * A device model sees {@linkcode Virtqueue} of `queue.ts` and nothing else. Behind it is `ring.ts`: what is the same for
 * every format, and for the transport the control of it (enable, suspend, hold, save). What a format says is in
 * `split_ring.ts` and `packed_ring.ts`; event suppression of the latter has `packed_events.ts`. Descriptors become lists of
 * buffers in `chain_builder.ts`, which is where a driver's addresses and lengths are checked; `chain_ledger.ts` knows which
 * chains are with the device and in which order they go back. A new rule for chains of both formats goes into the builder, a
 * new step of the notification protocols into `ring.ts`.
 *
 * @module
 */

import type { GuestMemory } from "../../memory/guest_memory.ts";
import { PackedRing } from "./packed_ring.ts";
import { Ring } from "./ring.ts";
import { SplitRing } from "./split_ring.ts";

/**
 * Makes a queue of either format, as its driver chooses; see {@linkcode Ring}.
 *
 * @param index Number of the queue in its device
 * @param maxSize The largest size
 * @param polled Whether {@linkcode Ring.poll} is called all the time
 */
export function createQueue(
  memory: GuestMemory,
  index: number,
  maxSize: number,
  polled = false,
): Ring {
  const formats = {
    split: (ring: Ring) => new SplitRing(memory, ring),
    packed: (ring: Ring) => new PackedRing(memory, ring),
  };
  return new Ring(memory, formats, index, maxSize, polled);
}
