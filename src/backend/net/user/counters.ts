/**
 * What user-mode networking counts.
 *
 * @module
 */

import { type CounterTable, indicesOf } from "../../../core/counters.ts";
import { BACKEND_ERRORS, BACKEND_STATE } from "../../../core/families.ts";
import { RX_DROPPED } from "../counters.ts";

/** Counters of the built-in gateway. */
export const GATEWAY_COUNTERS = {
  answered: null,
  ignored: null,
  ...RX_DROPPED,
  txErrors: [BACKEND_ERRORS, { kind: "transmit" }],
} satisfies CounterTable;

/** Indices of {@linkcode GATEWAY_COUNTERS}. */
export const GatewayCounter = indicesOf(GATEWAY_COUNTERS);

/** Counters of libslirp's process; their indices are words of the page that it shares. */
export const SLIRP_COUNTERS = {
  ...RX_DROPPED,
  /** What the guest did wrong. */
  guestErrors: [BACKEND_ERRORS, { kind: "guest" }],
  /** Descriptors that could not be watched. */
  pollErrors: [BACKEND_ERRORS, { kind: "poll" }],
  /** Descriptors that are watched now. */
  sockets: [BACKEND_STATE, { name: "sockets" }],
} satisfies CounterTable;

/** Indices of {@linkcode SLIRP_COUNTERS}. */
export const SlirpCounter = indicesOf(SLIRP_COUNTERS);
