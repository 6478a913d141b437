/**
 * The requests a disk has taken from its queues and not answered.
 *
 * @module
 */

import { BlockRequest } from "../../src/backend/block/contract.ts";
import type { GuestMemory } from "../../src/memory/guest_memory.ts";
import { Chain } from "../../src/virtio/queue/queue.ts";
import { VIRTIO_BLK_RANGE } from "./defs.ts";

/** States of a {@linkcode Slot}. */
export const SlotState = {
  /** Nothing is in it. */
  FREE: 0,
  /** The device looks at it. */
  SERVING: 1,
  /** The back end has it. */
  IN_FLIGHT: 2,
  /** It was taken out of flight unfinished, and will be submitted again. */
  PARKED: 3,
} as const;

/** A state of {@linkcode SlotState}. */
export type SlotState = typeof SlotState[keyof typeof SlotState];

/** The most ranges of one DISCARD or WRITE_ZEROES request. */
export const RANGES_MAX = 32;

const NO_BYTES = new Uint8Array(0);
const NO_RANGES = new DataView(NO_BYTES.buffer);

/** Room for one request; made once. */
export class Slot {
  /** Request for the back end; its tag is the number of the slot. */
  readonly request: BlockRequest;
  /** Descriptors of the driver. */
  readonly chain: Chain;
  state: SlotState = SlotState.FREE;
  /** Number of the queue it came from. */
  queue = 0;
  /** The life of that queue it belongs to. */
  epoch = 0;
  /** VIRTIO_BLK_T_*. */
  type = 0;
  /** Bytes of the device-writable part, from its start, that success fills. */
  dataBytes = 0;
  /** Ranges of DISCARD and WRITE_ZEROES, {@linkcode VIRTIO_BLK_RANGE} each; the driver's are looked at only once. */
  ranges: DataView<ArrayBuffer> = NO_RANGES;
  /** Number of ranges, and the one that is being served. */
  rangeCount = 0;
  range = 0;
  #rangeBytes = NO_BYTES;

  /** @param segments The most segments of each part of a chain, at most 1024 */
  constructor(memory: GuestMemory, segments: number, tag: number) {
    this.request = new BlockRequest(memory, segments, tag);
    this.chain = new Chain(memory, segments, true);
  }

  /** Room for {@linkcode RANGES_MAX} ranges, which {@linkcode Slot.ranges} then shows; made on first use. */
  rangeBytes(): Uint8Array<ArrayBuffer> {
    if (this.#rangeBytes === NO_BYTES) {
      this.#rangeBytes = new Uint8Array(RANGES_MAX * VIRTIO_BLK_RANGE.SIZE);
      this.ranges = new DataView(this.#rangeBytes.buffer);
    }
    return this.#rangeBytes;
  }
}

/** A pool of slots that grows to what was in flight at once, up to a limit, and never shrinks. */
export class SlotPool {
  readonly #memory: GuestMemory;
  readonly #segments: number;
  readonly #slots: Slot[] = [];
  /** Numbers of free slots, a stack: the last one used is the one in the caches. */
  readonly #free: Uint16Array;
  #freeCount = 0;

  /** @param limit The most slots, at most 65536 */
  constructor(memory: GuestMemory, segments: number, limit: number) {
    this.#memory = memory;
    this.#segments = segments;
    this.#free = new Uint16Array(limit);
  }

  /** Every slot that was ever needed, free or not. */
  get slots(): readonly Slot[] {
    return this.#slots;
  }

  /** Number of slots that are not free. */
  get used(): number {
    return this.#slots.length - this.#freeCount;
  }

  /** Number of slots in a state. */
  count(state: SlotState): number {
    let count = 0;
    for (const slot of this.#slots) if (slot.state === state) count++;
    return count;
  }

  /**
   * A free slot, which is then {@linkcode SlotState.SERVING}.
   *
   * @throws {Error} When the limit is reached: queues hold no more than their size, so a slot was lost
   */
  take(): Slot {
    const slot = this.#freeCount > 0
      ? this.#slots[this.#free[--this.#freeCount]!]!
      : this.#add();
    slot.state = SlotState.SERVING;
    return slot;
  }

  /** True when requests in flight use a part of a range of guest memory. */
  uses(iova: number, lengthBytes: number): boolean {
    for (const { state, chain: { readable, writable } } of this.#slots) {
      if (state !== SlotState.IN_FLIGHT) continue;
      if (
        readable.overlaps(iova, lengthBytes) ||
        writable.overlaps(iova, lengthBytes)
      ) return true;
    }
    return false;
  }

  /** Gives a slot back. */
  release(slot: Slot): void {
    slot.state = SlotState.FREE;
    this.#free[this.#freeCount++] = slot.request.tag;
  }

  #add(): Slot {
    const tag = this.#slots.length;
    if (tag === this.#free.length) {
      throw new Error(
        `Cannot serve another request: all ${tag} slots are taken`,
      );
    }
    const slot = new Slot(this.#memory, this.#segments, tag);
    this.#slots.push(slot);
    return slot;
  }
}
