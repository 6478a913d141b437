/**
 * Looks for what is told by a store to memory and by nothing else, while the loop sleeps.
 *
 * @module
 */

import type { Loop, Timer } from "./loop.ts";

/** Interval of looks, in milliseconds. */
const LOOK_MS = { LEAST: 0.05, MOST: 1 } as const;

/**
 * Looks often while there is something to find, and seldom when not; while the loop polls, which finds it sooner, not
 * at all.
 *
 * ```text
 *   stopped --start--> armed --fires while the loop polls--> lapsed --endPolling--> armed
 * ```
 */
export class LookTimer {
  readonly #timer: Timer;
  readonly #look: () => boolean;
  #delayMs: number = LOOK_MS.MOST;
  #running = false;
  #polled = false;
  /** To be armed when polling ends: a timer that goes on by itself would cost it an interrupt each time. */
  #lapsed = false;

  /** @param look Returns whether it found something; may stop the timer */
  constructor(loop: Loop, look: () => boolean) {
    this.#look = look;
    this.#timer = loop.timer(() => this.#onTimer());
  }

  /** Begins to look, or goes on with it. */
  start(): void {
    if (this.#running) return;
    this.#running = true;
    this.#arm();
  }

  /** Does not look any more, until it is started. */
  stop(): void {
    this.#running = this.#lapsed = false;
    this.#timer.cancel();
  }

  /** The loop polls, and what is looked for with it. */
  beginPolling(): void {
    this.#polled = true;
  }

  /** The loop is about to sleep. */
  endPolling(): void {
    this.#polled = false;
    if (!this.#lapsed) return;
    this.#delayMs = LOOK_MS.LEAST;
    this.#arm();
  }

  /** Stops for good. */
  close(): void {
    this.#running = this.#lapsed = false;
    this.#timer.close();
  }

  #arm(): void {
    this.#lapsed = this.#polled;
    if (!this.#lapsed) this.#timer.arm(this.#delayMs);
  }

  #onTimer(): void {
    if (!this.#polled) {
      this.#delayMs = this.#look()
        ? LOOK_MS.LEAST
        : Math.min(this.#delayMs * 2, LOOK_MS.MOST);
    }
    if (this.#running) this.#arm();
  }
}
