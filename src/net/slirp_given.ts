/**
 * What a card on libslirp gives to its successor on another thread.
 *
 * @module
 */

import type { Given } from "./given.ts";
import type { GivenCallbacks } from "./slirp_callbacks.ts";
import type { GivenTimers } from "./slirp_timers.ts";

/** What marks its state. */
export const SLIRP_KIND = "slirp";

/**
 * A libslirp instance with its connections and listeners, which outlives the thread that made it.
 *
 * SAFETY: `instance` points into the C heap, not to anything of an isolate, and the library is pinned in this process
 * (Libslirp.pin). libslirp keeps of us the address of its callbacks' table, whose opaque pointer is NULL, and timer
 * handles, which are numbers. It calls nobody between hand-over and take-over, since only calls of ours make it run; who
 * gives clears the table and who takes fills it, before any call. libslirp knows no threads: one of ours at a time is all
 * it needs.
 */
export interface GivenSlirp extends Given {
  /** The library's name, as it was opened with. */
  readonly library: string;
  /** Address of the Slirp. */
  readonly instance: number;
  readonly callbacks: GivenCallbacks;
  readonly timers: GivenTimers;
  /** Frames that wait for the card, oldest first. */
  readonly frames: readonly Uint8Array<ArrayBuffer>[];
  readonly running: boolean;
  readonly txErrors: number;
  readonly rxDropped: number;
  readonly guestErrors: number;
  readonly pollErrors: number;
}
