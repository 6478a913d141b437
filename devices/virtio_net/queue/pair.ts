/**
 * Common parts of the two queues of a pair.
 *
 * @module
 */

import type { NetBackend } from "../../../src/backend/net/contract.ts";
import type { Counters } from "../../../src/core/counters.ts";
import type { Loop } from "../../../src/loop/event_loop.ts";
import type { GuestMemory } from "../../../src/memory/guest_memory.ts";
import { ETH_HLEN, GSO_FRAME_BYTES, VLAN_HLEN } from "../defs.ts";
import { canSegment } from "../features.ts";
import type { Notifier } from "./coalescing.ts";

/** Frames that are moved before the loop gets its turn. */
export const BUDGET = 64;

/** IOV_MAX: what one readv(2) or writev(2) takes. */
export const SEGMENTS_MAX = 1024;

/** Parts of either queue. */
export interface PairOptions {
  readonly memory: GuestMemory;
  readonly loop: Loop;
  readonly backend: NetBackend;
  /** Number of the queue pair. */
  readonly pair: number;
  readonly counters: Counters;
  /** Largest IP packet in bytes. */
  readonly mtu: number;
  /** The most descriptors in a chain. */
  readonly chainSegments: number;
  /** Passes interrupts on. */
  readonly notifier: Notifier;
  /** The driver broke a rule. */
  readonly fail: (reason: string) => void;
}

/** Frames and bytes that one queue has moved. */
export class Traffic {
  // Doubles in place, so that counting allocates nothing.
  readonly #moved = new Float64Array(2);

  get packets(): number {
    return this.#moved[0]!;
  }

  get bytes(): number {
    return this.#moved[1]!;
  }

  /** Counts a frame. */
  add(frameBytes: number): void {
    this.#moved[0]!++;
    this.#moved[1]! += frameBytes;
  }

  /** Goes on from what was moved where the queue was before. */
  load(packets: number, bytes: number): void {
    this.#moved[0] = packets;
    this.#moved[1] = bytes;
  }
}

/** Length of the largest frame that goes over a wire, VLAN tag included. */
export function plainFrameBytes(mtu: number): number {
  return mtu + ETH_HLEN + VLAN_HLEN;
}

/** Length of the largest frame with these offloads, a set of NetOffload. */
export function largestFrameBytes(mtu: number, offloads: number): number {
  const plain = plainFrameBytes(mtu);
  return canSegment(offloads)
    ? Math.max(GSO_FRAME_BYTES + VLAN_HLEN, plain)
    : plain;
}
