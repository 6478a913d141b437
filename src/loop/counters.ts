/**
 * Counters of an event loop.
 *
 * @module
 */

import {
  counter,
  type CounterRecord,
  Counters,
  type CounterTable,
  indicesOf,
} from "../core/counters.ts";
import { storeMonotonicSeconds } from "../os/mod.ts";

/** Counters of a loop. */
export const LOOP_COUNTERS = {
  turns: [counter("iothread_turns", "Turns of the event loop")],
  /** Times that another thread signalled {@linkcode EventLoop.wakeFd}. */
  wakeUps: [counter("iothread_wakeups", "Wake-ups by the main thread")],
  events: [
    counter("iothread_events", "Ready descriptors that were handled"),
  ],
  /** Times that it slept, or looked whether it need. */
  sleeps: [counter("iothread_sleeps", "How often it went to sleep")],
  pollHits: [counter("iothread_poll_hits", "Polling that found work")],
  pollMisses: [
    counter(
      "iothread_poll_misses",
      "Polling that found nothing until its time was over",
    ),
  ],
  pollRounds: [
    counter(
      "iothread_poll_rounds",
      "How often everything that is polled was looked at",
    ),
  ],
  sleptSeconds: [
    counter("iothread_sleep_seconds", "Time spent asleep", "seconds"),
  ],
  awakeSeconds: [
    counter(
      "iothread_awake_seconds",
      "Time spent working and polling",
      "seconds",
    ),
  ],
} satisfies CounterTable;

/** Counts of a loop since it was made. */
export type LoopCounters = CounterRecord<typeof LOOP_COUNTERS>;

/** Indices of {@linkcode LOOP_COUNTERS}. */
export const LoopCounter = indicesOf(LOOP_COUNTERS);

/** Moments, in seconds. */
const At = { BORN: 0, SLEPT_FROM: 1, SLEPT_UNTIL: 2, NOW: 3, SIZE: 4 } as const;

/** The counters of one loop. */
export class LoopCounts {
  readonly #counters = new Counters(LOOP_COUNTERS);
  /** By {@linkcode LoopCounter}, to be added to. */
  readonly values: Float64Array<ArrayBuffer> = this.#counters.values;
  readonly #at = new Float64Array(At.SIZE);

  constructor() {
    storeMonotonicSeconds(this.#at, At.BORN);
  }

  /** The loop goes to sleep. */
  beginSleep(): void {
    this.values[LoopCounter.sleeps]!++;
    storeMonotonicSeconds(this.#at, At.SLEPT_FROM);
  }

  /** The loop woke up. */
  endSleep(): void {
    storeMonotonicSeconds(this.#at, At.SLEPT_UNTIL);
    this.values[LoopCounter.sleptSeconds]! += this.#at[At.SLEPT_UNTIL]! -
      this.#at[At.SLEPT_FROM]!;
  }

  /** All counts by now. */
  read(): LoopCounters {
    storeMonotonicSeconds(this.#at, At.NOW);
    const counters = this.#counters.toRecord();
    counters.awakeSeconds = this.#at[At.NOW]! - this.#at[At.BORN]! -
      counters.sleptSeconds;
    return counters;
  }
}
