/**
 * What an NBD client counts.
 *
 * @module
 */

import { type CounterTable, indicesOf } from "../../../core/counters.ts";
import { BACKEND_ERRORS, BACKEND_STATE } from "../../../core/families.ts";
import { BLOCK_COUNTERS, REPLY_COUNTERS } from "../counters.ts";

/** Counters of an NBD client. */
export const NBD_COUNTERS = {
  ...BLOCK_COUNTERS,
  ...REPLY_COUNTERS,
  /** How often a connection was lost, and found again. */
  disconnects: [BACKEND_ERRORS, { kind: "disconnect" }],
  reconnects: null,
  /** How often connecting failed. */
  failedConnects: [BACKEND_ERRORS, { kind: "connect" }],
  /** Commands that were sent again over another connection. */
  replays: null,
  /** Completed writes that no flush had covered when the connection was lost. */
  unflushedAtLoss: [BACKEND_ERRORS, { kind: "unflushed_write" }],
  connected: [BACKEND_STATE, { name: "connected" }],
  inFlight: null,
  unflushedWrites: null,
} satisfies CounterTable;

/** Indices of {@linkcode NBD_COUNTERS}. */
export const NbdCounter = indicesOf(NBD_COUNTERS);
