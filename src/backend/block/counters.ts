/**
 * Counters of every kind of storage.
 *
 * @module
 */

import {
  counter,
  type Counters,
  type CounterTable,
  indicesOf,
} from "../../core/counters.ts";
import { BACKEND_ERRORS } from "../../core/families.ts";
import { BlockOp, type BlockRequest } from "./contract.ts";

const REQUESTS = counter(
  "backend_requests",
  "Requests that the storage completed",
);
const TRANSFER = counter(
  "backend_transfer_bytes",
  "Bytes that the storage moved",
  "bytes",
);

/** Counters of storage; the indices of the first are those of BlockOp. */
export const BLOCK_COUNTERS = {
  reads: [REQUESTS, { op: "read" }],
  writes: [REQUESTS, { op: "write" }],
  flushes: [REQUESTS, { op: "flush" }],
  discards: [REQUESTS, { op: "discard" }],
  writeZeroes: [REQUESTS, { op: "write_zeroes" }],
  readBytes: [TRANSFER, { direction: "read" }],
  writtenBytes: [TRANSFER, { direction: "write" }],
  /** Requests that ended with an error. */
  failed: [BACKEND_ERRORS, { kind: "request" }],
} satisfies CounterTable;

/** Counters of storage that may not answer. */
export const REPLY_COUNTERS = {
  /** Requests that were not answered in time; they count as failed, too. */
  timeouts: [BACKEND_ERRORS, { kind: "timeout" }],
  /** Answers to what nobody waited for any more. */
  lateReplies: null,
} satisfies CounterTable;

/** Requests that had to wait until they were begun. */
export const QUEUED = { queued: null } satisfies CounterTable;

/** Indices of {@linkcode BLOCK_COUNTERS}, which tables that begin with them share. */
export const BlockCounter = indicesOf(BLOCK_COUNTERS);

/** Counts a request that ended. */
export function countRequest(
  counters: Counters,
  { op, lengthBytes }: BlockRequest,
  result: number,
): void {
  if (result < 0) return counters.add(BlockCounter.failed, 1);
  counters.add(op, 1);
  if (op === BlockOp.READ) counters.add(BlockCounter.readBytes, lengthBytes);
  if (op === BlockOp.WRITE) {
    counters.add(BlockCounter.writtenBytes, lengthBytes);
  }
}
