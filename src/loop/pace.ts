/**
 * How often a loop that polls looks at its descriptors.
 *
 * @module
 */

/** How many steps of polling go by from a look that found something to the next: a round is one, and one for each
 * handler. */
const STEPS_MIN = 64;
const STEPS_MAX = 4096;
/** What a round that found work counts for besides: it took longer, and whoever sends messages waits. */
const STEPS_OF_WORK = 6;
/** No longer goes by without a look, as soon as the pace has been found. A look is a system call, of up to 1 µs. */
const INTERVAL_MS = 0.032;

/**
 * The pace of looks: soon again after one that found something, and ever less often after those that do not, up to an
 * interval. That is counted in steps, for the clock costs as much as a round does.
 */
export class Pace {
  #steps = STEPS_MIN;
  #left = STEPS_MIN;
  #lookedMs = 0;

  /**
   * Counts a round.
   *
   * @param handlers How many it called
   * @param worked Whether one of them found work
   * @returns Whether it is time for a look
   */
  round(handlers: number, worked: boolean): boolean {
    this.#left -= 1 + handlers + (worked ? STEPS_OF_WORK : 0);
    return this.#left <= 0;
  }

  /** Sets the time of the next look by what the last one, now, has found. */
  looked(found: boolean, nowMs: number): void {
    const sinceMs = nowMs - this.#lookedMs;
    this.#lookedMs = nowMs;
    if (found) this.#steps = STEPS_MIN;
    else if (sinceMs > INTERVAL_MS) {
      this.#steps = Math.max(this.#steps / 2, STEPS_MIN);
    } else if (sinceMs < INTERVAL_MS / 2) {
      this.#steps = Math.min(this.#steps * 2, STEPS_MAX);
    }
    this.#left = this.#steps;
  }
}
