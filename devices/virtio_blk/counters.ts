/**
 * What a disk counts.
 *
 * @module
 */

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

  /** All of them by name. */
  toRecord(): Record<string, number> {
    const record: Record<string, number> = {};
    for (const name of NAMES) record[name] = this.values[BlkCounter[name]]!;
    return record;
  }
}
