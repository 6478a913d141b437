/**
 * Pauses between attempts.
 *
 * @module
 */

import type { Loop, Timer } from "../event_loop.ts";

const FIRST_MS = 100;

/**
 * Tries something again after pauses that double, from a tenth of a second up to a limit. What then lasts for longer
 * than the longest pause has the next failure begin anew.
 */
export class Backoff implements Disposable {
  readonly #loop: Loop;
  readonly #timer: Timer;
  readonly #maxMs: number;
  #nextMs: number;
  #succeededAt = Infinity;

  /** @param attempt Called after each pause */
  constructor(loop: Loop, maxMs: number, attempt: () => void) {
    this.#loop = loop;
    this.#maxMs = maxMs;
    this.#nextMs = Math.min(FIRST_MS, maxMs);
    this.#timer = loop.timer(attempt);
  }

  /** The attempt has succeeded, as far as one can tell. */
  succeeded(): void {
    this.#succeededAt = this.#loop.now();
  }

  /** It has failed, or what succeeded has ended: tries again later. */
  retry(): void {
    if (this.#loop.now() - this.#succeededAt > this.#maxMs) {
      this.#nextMs = Math.min(FIRST_MS, this.#maxMs);
    }
    this.#succeededAt = Infinity;
    this.#timer.arm(this.#nextMs);
    this.#nextMs = Math.min(this.#nextMs * 2, this.#maxMs);
  }

  /** No further attempt. */
  close(): void {
    this.#timer.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}
