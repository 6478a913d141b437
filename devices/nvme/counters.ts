/**
 * Counters of a controller, as a table.
 *
 * @module
 */

import { type CounterTable, indicesOf } from "../../src/core/counters.ts";
import {
  ERRORS,
  INTERRUPTS,
  KICKS,
  REQUESTS,
  RESETS,
  STALLS,
  SUPPRESSED,
  TRANSFER,
} from "../../src/core/families.ts";

/** Counters of a controller. */
export const NVME_COUNTERS = {
  /** Admin commands that were fetched. */
  adminCommands: [REQUESTS, { op: "admin" }],
  /** Read and Compare commands that have read what they wanted. */
  reads: [REQUESTS, { op: "read" }],
  /** Their bytes. */
  readBytes: [TRANSFER, { direction: "read" }],
  /** Write commands that succeeded. */
  writes: [REQUESTS, { op: "write" }],
  /** Their bytes. */
  writtenBytes: [TRANSFER, { direction: "write" }],
  /** Flush commands that succeeded. */
  flushes: [REQUESTS, { op: "flush" }],
  /** Write Zeroes and Dataset Management commands that succeeded. */
  others: [REQUESTS, { op: "other" }],
  /** Commands that ended with an error. */
  failedCommands: [ERRORS, { kind: "request" }],
  /** Of those, what the storage could not do. */
  mediaErrors: [ERRORS, { kind: "media" }],
  /** Doorbells that were rung by message. */
  doorbells: [KICKS, { path: "message" }],
  /** Doorbell values that cannot be. */
  invalidDoorbells: [ERRORS, { kind: "doorbell" }],
  /** Interrupts, batches of completions told. */
  interrupts: [INTERRUPTS, { kind: "queue" }],
  /** Times that fetching stopped because a completion queue was full. */
  completionQueueFull: [STALLS, { reason: "completion_queue_full" }],
  /** Resets by CC.EN. */
  controllerResets: [RESETS, { kind: "controller" }],
  /** Errors that only a reset ends (CSTS.CFS). */
  fatalErrors: [ERRORS, { kind: "driver" }],
  /** Looks at mapped doorbells that found something. */
  pageKicks: [KICKS, { path: "page" }],
  /** Looks at shadow doorbells that found something. */
  polledKicks: [KICKS, { path: "poll" }],
  /** Completions that were told by the interrupt of another. */
  coalescedInterrupts: [SUPPRESSED, { reason: "coalesced" }],
} satisfies CounterTable;

/** Indices of {@linkcode NVME_COUNTERS}. */
export const NvmeCounter = indicesOf(NVME_COUNTERS);
