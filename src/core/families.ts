/**
 * Families of metrics that several parts count in. One that a single part counts in is declared there.
 *
 * @module
 */

import { counter, gauge } from "./counters.ts";

/** By `path`. */
export const KICKS = counter(
  "device_kicks",
  "Work found, by the way it was told of",
);
/** By `kind`. */
export const INTERRUPTS = counter(
  "device_interrupts",
  "Interrupts raised, before masks",
);
/** By `reason`. */
export const SUPPRESSED = counter(
  "device_suppressed_interrupts",
  "Interrupts spared: the driver wanted none, or several became one",
);
/** By `op`. */
export const REQUESTS = counter("device_requests", "Requests that succeeded");
/** By `direction`. */
export const TRANSFER = counter(
  "device_transfer_bytes",
  "Bytes of data moved",
  "bytes",
);
/** By `reason`. */
export const STALLS = counter("device_stalls", "How often work had to wait");
/** By `kind`. */
export const ERRORS = counter("device_errors", "What went wrong, by kind");
/** By `kind`. */
export const RESETS = counter("device_resets", "Resets by the driver");
/** By `kind`. */
export const BACKEND_ERRORS = counter(
  "backend_errors",
  "What went wrong behind the device, by kind",
);
/** By `name`. */
export const BACKEND_STATE = gauge(
  "backend_state",
  "What a back end is at, by name",
);
