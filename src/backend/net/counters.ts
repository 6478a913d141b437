/**
 * Counters of several kinds of network.
 *
 * @module
 */

import type { CounterTable } from "../../core/counters.ts";
import { BACKEND_ERRORS, BACKEND_STATE } from "../../core/families.ts";

/** Frames of the card that were lost. */
export const TX_DROPPED = {
  txDropped: [BACKEND_ERRORS, { kind: "transmit_dropped" }],
} satisfies CounterTable;

/** Frames for the card that were lost. */
export const RX_DROPPED = {
  rxDropped: [BACKEND_ERRORS, { kind: "receive_dropped" }],
} satisfies CounterTable;

/** Failures to receive. */
export const RX_ERRORS = {
  rxErrors: [BACKEND_ERRORS, { kind: "receive" }],
} satisfies CounterTable;

/** Counters of a frame stream that comes and goes. */
export const STREAM_COUNTERS = {
  connected: [BACKEND_STATE, { name: "connected" }],
  connections: null,
  ...TX_DROPPED,
  rxDroppedRunt: [BACKEND_ERRORS, { kind: "receive_runt" }],
  rxBadLengths: [BACKEND_ERRORS, { kind: "bad_length" }],
} satisfies CounterTable;

/** Counters of a program at the other end of such a stream. */
export const PEER_COUNTERS = {
  ...STREAM_COUNTERS,
  starts: null,
  pid: [BACKEND_STATE, { name: "pid" }],
} satisfies CounterTable;
