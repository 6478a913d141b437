/**
 * What a back end on an author's store counts.
 *
 * @module
 */

import { type CounterTable, indicesOf } from "../../../core/counters.ts";
import { BLOCK_COUNTERS, QUEUED, REPLY_COUNTERS } from "../counters.ts";

/** Counters of such a back end. */
export const STORE_COUNTERS = {
  ...BLOCK_COUNTERS,
  ...REPLY_COUNTERS,
  ...QUEUED,
  inFlight: null,
} satisfies CounterTable;

/** Indices of {@linkcode STORE_COUNTERS}. */
export const StoreCounter = indicesOf(STORE_COUNTERS);
