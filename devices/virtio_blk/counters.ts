/**
 * What a disk counts.
 *
 * @module
 */

import { VIRTIO_BLK_S, VIRTIO_BLK_T } from "./defs.ts";
import type { Slot } from "./in_flight.ts";

/** Counters of a disk, in the order they are shown; each is an index of {@linkcode BlkCounters.values}. */
export const BlkCounter = {
  /** Reads that succeeded. */
  reads: 0,
  /** Their bytes. */
  readBytes: 1,
  /** Writes that succeeded. */
  writes: 2,
  /** Their bytes. */
  writtenBytes: 3,
  /** Flushes that succeeded. */
  flushes: 4,
  /** DISCARD requests that succeeded. */
  discards: 5,
  /** WRITE_ZEROES requests that succeeded. */
  writeZeroes: 6,
  /** GET_ID requests. */
  getIds: 7,
  /** Requests that were refused or that the storage failed: VIRTIO_BLK_S_IOERR. */
  errors: 8,
  /** Requests that were not understood: VIRTIO_BLK_S_UNSUPP. */
  unsupported: 9,
  /** Requests that were issued again because guest memory changed under them. */
  reissued: 10,
  /** Requests that a reset has thrown away. */
  dropped: 11,
} as const;

const NAMES = Object.keys(BlkCounter) as (keyof typeof BlkCounter)[];

/** The counters of one disk. */
export class BlkCounters {
  /** By {@linkcode BlkCounter}; doubles in place, so that counting allocates nothing. */
  readonly values: Float64Array<ArrayBuffer> = new Float64Array(NAMES.length);

  /** Adds to a counter. */
  add(counter: number, amount: number): void {
    this.values[counter]! += amount;
  }

  /** Counts a request by its type and status. */
  countRequest(slot: Slot, status: number): void {
    if (status === VIRTIO_BLK_S.UNSUPP) {
      return this.add(BlkCounter.unsupported, 1);
    }
    if (status !== VIRTIO_BLK_S.OK) return this.add(BlkCounter.errors, 1);
    switch (slot.type) {
      case VIRTIO_BLK_T.IN:
        this.add(BlkCounter.reads, 1);
        return this.add(BlkCounter.readBytes, slot.dataBytes);
      case VIRTIO_BLK_T.OUT:
        this.add(BlkCounter.writes, 1);
        return this.add(
          BlkCounter.writtenBytes,
          slot.request.lengthBytes,
        );
      case VIRTIO_BLK_T.FLUSH:
        return this.add(BlkCounter.flushes, 1);
      case VIRTIO_BLK_T.DISCARD:
        return this.add(BlkCounter.discards, 1);
      case VIRTIO_BLK_T.WRITE_ZEROES:
        return this.add(BlkCounter.writeZeroes, 1);
      case VIRTIO_BLK_T.GET_ID:
        return this.add(BlkCounter.getIds, 1);
    }
  }

  /** All of them by name. */
  toRecord(): Record<string, number> {
    const record: Record<string, number> = {};
    for (const name of NAMES) record[name] = this.values[BlkCounter[name]]!;
    return record;
  }

  /** Goes on from what {@linkcode BlkCounters.toRecord} gave. */
  goOnFrom(record: Readonly<Record<string, number>>): void {
    for (const name of NAMES) {
      this.values[BlkCounter[name]] = record[name] ?? 0;
    }
  }
}
