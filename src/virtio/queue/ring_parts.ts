/**
 * Parts of a queue: where a driver has put them, and what the device accesses (virtio 1.3, sections 2.7 and 2.8).
 *
 * @module
 */

import { hex } from "../../core/bits.ts";
import type { Access } from "../../memory/guest_memory.ts";

/** Addresses of a queue, as a driver has set them. */
export interface QueueAddresses {
  /** Entries of the ring. */
  readonly size: number;
  /** Address of the descriptor area: the descriptor table, or the descriptor ring of a packed queue. */
  readonly descIova: number;
  /** Address of the driver area: the available ring, or the driver's event suppression. */
  readonly availIova: number;
  /** Address of the device area: the used ring, or the device's event suppression. */
  readonly usedIova: number;
}

/** A range of guest memory that the device accesses, and how. */
export interface RingPart {
  /** For messages. */
  readonly name: string;
  readonly iova: number;
  readonly lengthBytes: number;
  /** Number that its address is a multiple of. */
  readonly alignment: number;
  readonly access: Access;
}

/** The parts of one ring: descriptor area, driver area and device area. */
export type RingParts = readonly [RingPart, RingPart, RingPart];

/**
 * Checks where a driver has put the parts of a ring.
 *
 * @param section The section of the standard that says how they are aligned
 * @returns What is wrong with that; null for nothing
 */
export function checkParts(parts: RingParts, section: string): string | null {
  for (const { name, iova, alignment, lengthBytes } of parts) {
    if (iova + lengthBytes > Number.MAX_SAFE_INTEGER) {
      return `${name} at ${hex(iova)} ends above 2^53-1`;
    }
    if (iova % alignment !== 0) {
      return `${name} at ${
        hex(iova)
      } is not aligned to ${alignment} bytes (${section})`;
    }
  }
  return null;
}
