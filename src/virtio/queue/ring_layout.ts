/**
 * Where the parts of a queue may be and how long they are (virtio 1.3, sections 2.7 and 2.8.10.1).
 *
 * @module
 */

import { hex, isPowerOfTwo } from "../../core/bits.ts";
import { Access } from "../../memory/guest_memory.ts";
import {
  VIRTQUEUE_MAX_SIZE,
  VRING_ALIGN,
  VRING_AVAIL,
  VRING_DESC,
  VRING_PACKED_ALIGN,
  VRING_PACKED_DESC,
  VRING_PACKED_EVENT,
  VRING_USED,
} from "../defs.ts";
import type { QueueAddresses } from "./ring.ts";
import type { RingState } from "./ring_state.ts";

/** A range of guest memory that the device accesses, and how. */
export interface RingPart {
  /** For messages. */
  readonly name: string;
  readonly iova: number;
  readonly lengthBytes: number;
  readonly access: Access;
}

/** The parts of one ring. */
export interface RingParts {
  /** The descriptor area. */
  readonly desc: RingPart;
  /** The driver area: the available ring, or the driver's event suppression. */
  readonly driverArea: RingPart;
  /** The device area: the used ring, or the device's event suppression. */
  readonly deviceArea: RingPart;
}

/** What the format of a ring says of where it may be. */
export interface RingLayout {
  readonly format: RingState["format"];
  /** Whether a device can offer a queue of this size. */
  allowsMaxSize(maxSize: number): boolean;
  /** What is wrong with the place a driver has chosen; null when nothing is. */
  check(at: QueueAddresses, maxSize: number): string | null;
  /** What the device accesses. */
  parts(at: QueueAddresses, eventIdx: boolean): RingParts;
}

/** One part of a queue: its name for messages, address, alignment and length in bytes. */
type Part = readonly [
  name: string,
  iova: number,
  alignment: number,
  lengthBytes: number,
];

/** Where `used_event` is in the available ring (section 2.7.6). */
export function usedEventOffset(size: number): number {
  return VRING_AVAIL.RING + size * VRING_AVAIL.ENTRY_SIZE;
}

/** Where `avail_event` is in the used ring (section 2.7.8). */
export function availEventOffset(size: number): number {
  return VRING_USED.RING + size * VRING_USED.ENTRY_SIZE;
}

/** Length of the available ring. Without EVENT_IDX the event word is not accessed (2.7.7.2), and need not be mapped. */
export function availBytes(size: number, eventIdx: boolean): number {
  return usedEventOffset(size) + (eventIdx ? VRING_AVAIL.EVENT_SIZE : 0);
}

/** Length of the used ring; see {@linkcode availBytes}. */
export function usedBytes(size: number, eventIdx: boolean): number {
  return availEventOffset(size) + (eventIdx ? VRING_USED.EVENT_SIZE : 0);
}

/** What is wrong with the place a driver has chosen for a split queue; null when nothing is. */
export function checkSplitAddresses(
  at: QueueAddresses,
  maxSize: number,
): string | null {
  const { size } = at;
  if (!isPowerOfTwo(size) || size > maxSize) {
    return `queue size ${size} is not a power of two up to ${maxSize} (2.7)`;
  }
  return checkParts([
    ["descriptor table", at.descIova, VRING_ALIGN.DESC, size * VRING_DESC.SIZE],
    ["available ring", at.availIova, VRING_ALIGN.AVAIL, availBytes(size, true)],
    ["used ring", at.usedIova, VRING_ALIGN.USED, usedBytes(size, true)],
  ], "2.7.1");
}

/** What is wrong with the place a driver has chosen for a packed queue; null when nothing is. */
export function checkPackedAddresses(
  at: QueueAddresses,
  maxSize: number,
): string | null {
  const { size } = at;
  if (!Number.isInteger(size) || size < 1 || size > maxSize) {
    return `queue size ${size} is not from 1 to ${maxSize} (2.8.10.1)`;
  }
  const { DESC, EVENT } = VRING_PACKED_ALIGN;
  const eventBytes = VRING_PACKED_EVENT.SIZE;
  return checkParts([
    ["descriptor ring", at.descIova, DESC, size * VRING_PACKED_DESC.SIZE],
    ["driver event suppression", at.availIova, EVENT, eventBytes],
    ["device event suppression", at.usedIova, EVENT, eventBytes],
  ], "2.8.11");
}

/** {@linkcode RingLayout} of split queues. */
export const SPLIT_LAYOUT: RingLayout = {
  format: "split",
  allowsMaxSize: (maxSize) =>
    isPowerOfTwo(maxSize) && maxSize <= VIRTQUEUE_MAX_SIZE,
  check: checkSplitAddresses,
  parts: ({ size, descIova, availIova, usedIova }, eventIdx) => ({
    desc: part(
      "the descriptor table",
      descIova,
      size * VRING_DESC.SIZE,
      Access.READ,
    ),
    driverArea: part(
      "the available ring",
      availIova,
      availBytes(size, eventIdx),
      Access.READ,
    ),
    deviceArea: part(
      "the used ring",
      usedIova,
      usedBytes(size, eventIdx),
      Access.WRITE,
    ),
  }),
};

/** {@linkcode RingLayout} of packed queues. */
export const PACKED_LAYOUT: RingLayout = {
  format: "packed",
  allowsMaxSize: (maxSize) =>
    Number.isInteger(maxSize) && maxSize >= 1 && maxSize <= VIRTQUEUE_MAX_SIZE,
  check: checkPackedAddresses,
  parts: ({ size, descIova, availIova, usedIova }) => ({
    desc: part(
      "the descriptor ring",
      descIova,
      size * VRING_PACKED_DESC.SIZE,
      Access.READ | Access.WRITE,
    ),
    driverArea: part(
      "the driver event suppression",
      availIova,
      VRING_PACKED_EVENT.SIZE,
      Access.READ,
    ),
    deviceArea: part(
      "the device event suppression",
      usedIova,
      VRING_PACKED_EVENT.SIZE,
      Access.WRITE,
    ),
  }),
};

function part(
  name: string,
  iova: number,
  lengthBytes: number,
  access: Access,
): RingPart {
  return { name, iova, lengthBytes, access };
}

function checkParts(parts: readonly Part[], section: string): string | null {
  for (const [name, iova, alignment, lengthBytes] of parts) {
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
