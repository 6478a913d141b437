/**
 * What an NBD client counts.
 *
 * @module
 */

import { BlockOp, type BlockRequest } from "../contract.ts";

/** Counters of an NBD client; each is an index of {@linkcode NbdCounters.values}. The first are by BlockOp. */
export const NbdCounter = {
  reads: 0,
  writes: 1,
  flushes: 2,
  discards: 3,
  writeZeroes: 4,
  readBytes: 5,
  writtenBytes: 6,
  /** Requests that ended with an error. */
  failed: 7,
  /** Of those, how many the server had not answered in time. */
  timeouts: 8,
  /** How often a connection was lost, and found again. */
  disconnects: 9,
  reconnects: 10,
  /** How often connecting failed. */
  failedConnects: 11,
  /** Commands that were sent again over another connection. */
  replays: 12,
  /** Replies to what nobody waited for any more. */
  lateReplies: 13,
  /** Completed writes that no flush had covered when the connection was lost. */
  unflushedAtLoss: 14,
} as const;

const NAMES = Object.keys(NbdCounter) as (keyof typeof NbdCounter)[];

/** The counters of one client. */
export class NbdCounters {
  /** By {@linkcode NbdCounter}; doubles in place, so that counting allocates nothing. */
  readonly values: Float64Array<ArrayBuffer> = new Float64Array(NAMES.length);

  /** Adds to a counter. */
  add(counter: number, amount: number): void {
    this.values[counter]! += amount;
  }

  /** Counts a request that ended. */
  count(request: BlockRequest, result: number): void {
    if (result !== 0) {
      this.values[NbdCounter.failed]! += 1;
      return;
    }
    const { op, lengthBytes } = request;
    this.values[op]! += 1;
    if (op === BlockOp.READ) this.values[NbdCounter.readBytes]! += lengthBytes;
    if (op === BlockOp.WRITE) {
      this.values[NbdCounter.writtenBytes]! += lengthBytes;
    }
  }

  /** All of them by name. */
  toRecord(): Record<string, number> {
    const record: Record<string, number> = {};
    for (const name of NAMES) record[name] = this.values[NbdCounter[name]]!;
    return record;
  }
}
