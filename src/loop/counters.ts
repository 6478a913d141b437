/**
 * What an event loop counts.
 *
 * @module
 */

import { storeMonotonicSeconds } from "../os/mod.ts";

/** What a loop has counted since it was made. */
export interface LoopCounters {
  /** Turns of the loop. */
  readonly turns: number;
  /** How often another thread signalled {@linkcode EventLoop.wakeFd}. */
  readonly wakeUps: number;
  /** Calls of handlers of descriptors. */
  readonly events: number;
  /** How often it slept, or looked whether it need. */
  readonly sleeps: number;
  /** How long it slept, in seconds. */
  readonly sleptSeconds: number;
  /** The rest of the time, in seconds. */
  readonly awakeSeconds: number;
  /** Stretches of polling that ended because something was found. */
  readonly pollHits: number;
  /** Stretches of polling after which it went to sleep. */
  readonly pollMisses: number;
  /** How often the polling handlers were called, each time all of them. */
  readonly pollRounds: number;
}

/** What {@linkcode LoopCounts.add} adds to. */
export const Count = {
  TURNS: 0,
  WAKE_UPS: 1,
  EVENTS: 2,
  SLEEPS: 3,
  POLL_HITS: 4,
  POLL_MISSES: 5,
  POLL_ROUNDS: 6,
} as const;
/** One of {@linkcode Count}. */
export type Count = typeof Count[keyof typeof Count];

/** Seconds, behind what is counted: in total, and when the loop was made, went to sleep, and woke up. */
const Seconds = {
  SLEPT: 7,
  BORN: 8,
  SLEPT_FROM: 9,
  SLEPT_UNTIL: 10,
  SIZE: 11,
} as const;

/** The counters of one loop: doubles in place, so that counting allocates nothing. */
export class LoopCounts {
  readonly #doubles = new Float64Array(Seconds.SIZE);

  constructor() {
    storeMonotonicSeconds(this.#doubles, Seconds.BORN);
  }

  /** Counts something that happened `times` times. */
  add(what: Count, times: number): void {
    this.#doubles[what]! += times;
  }

  /** The loop goes to sleep. */
  beginSleep(): void {
    this.add(Count.SLEEPS, 1);
    storeMonotonicSeconds(this.#doubles, Seconds.SLEPT_FROM);
  }

  /** The loop woke up. */
  endSleep(): void {
    const doubles = this.#doubles;
    storeMonotonicSeconds(doubles, Seconds.SLEPT_UNTIL);
    doubles[Seconds.SLEPT]! += doubles[Seconds.SLEPT_UNTIL]! -
      doubles[Seconds.SLEPT_FROM]!;
  }

  /** What was counted by now. */
  read(): LoopCounters {
    const doubles = this.#doubles;
    const now = new Float64Array(1);
    storeMonotonicSeconds(now, 0);
    const sleptSeconds = doubles[Seconds.SLEPT]!;
    return {
      turns: doubles[Count.TURNS]!,
      wakeUps: doubles[Count.WAKE_UPS]!,
      events: doubles[Count.EVENTS]!,
      sleeps: doubles[Count.SLEEPS]!,
      sleptSeconds,
      awakeSeconds: now[0]! - doubles[Seconds.BORN]! - sleptSeconds,
      pollHits: doubles[Count.POLL_HITS]!,
      pollMisses: doubles[Count.POLL_MISSES]!,
      pollRounds: doubles[Count.POLL_ROUNDS]!,
    };
  }
}
