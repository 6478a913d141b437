/**
 * Counters of libslirp's process, which loads nothing that it does not need: a card waits for its start.
 *
 * @module
 */

import { type CounterTable, indicesOf } from "../../../core/counters.ts";
import { BACKEND_ERRORS, BACKEND_STATE } from "../../../core/families.ts";
import { RX_DROPPED } from "../counters.ts";

/** The counters; their indices are words of the page that it shares. */
export const SLIRP_COUNTERS = {
  ...RX_DROPPED,
  /** Mistakes of the guest. */
  guestErrors: [BACKEND_ERRORS, { kind: "guest" }],
  /** Descriptors that could not be watched. */
  pollErrors: [BACKEND_ERRORS, { kind: "poll" }],
  /** Descriptors that are watched now. */
  sockets: [BACKEND_STATE, { name: "sockets" }],
} satisfies CounterTable;

/** Indices of {@linkcode SLIRP_COUNTERS}. */
export const SlirpCounter = indicesOf(SLIRP_COUNTERS);
