/**
 * What a file back end counts.
 *
 * @module
 */

import {
  counter,
  type CounterTable,
  indicesOf,
} from "../../../core/counters.ts";
import { BACKEND_STATE } from "../../../core/families.ts";
import { BLOCK_COUNTERS, QUEUED } from "../counters.ts";

const SERVED = counter("backend_served", "How the storage served requests");

/** Counters of a file. */
export const FILE_COUNTERS = {
  ...BLOCK_COUNTERS,
  servedAtOnce: [SERVED, { path: "at_once" }],
  servedByRing: [SERVED, { path: "ring" }],
  ringSubmissions: null,
  ringEnters: null,
  ringSubmissionsPerEnter: [
    BACKEND_STATE,
    { name: "ring_submissions_per_enter" },
  ],
  /** Requests whose bytes were copied, for want of alignment. */
  bounced: null,
  ...QUEUED,
  /** Writes that took longer at once than they may. */
  stalled: null,
} satisfies CounterTable;

/** Indices of {@linkcode FILE_COUNTERS}. */
export const FileCounter = indicesOf(FILE_COUNTERS);
