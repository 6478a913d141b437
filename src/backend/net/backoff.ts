/**
 * Pauses between attempts.
 *
 * @module
 */

import type { StateReader } from "../../core/state_reader.ts";
import type { Loop, Timer } from "../../loop/event_loop.ts";

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
  #succeededAt: number;
  /** True until the next attempt. */
  #waiting = false;

  /**
   * @param attempt Called after each pause
   * @param saved State of another one, to go on from there: without a pause where that was waiting
   */
  constructor(
    loop: Loop,
    maxMs: number,
    attempt: () => void,
    saved?: StateReader,
  ) {
    const isWaiting = saved?.flag("waiting") ?? false;
    this.#nextMs = saved?.number("nextMs") ?? Math.min(FIRST_MS, maxMs);
    this.#loop = loop;
    this.#maxMs = maxMs;
    this.#succeededAt = saved === undefined ? Infinity : loop.now();
    this.#timer = loop.timer(() => {
      this.#waiting = false;
      attempt();
    });
    if (isWaiting) this.#arm(0);
  }

  /** State for another one; plain data. */
  save(): unknown {
    return { nextMs: this.#nextMs, waiting: this.#waiting };
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
    this.#arm(this.#nextMs);
    this.#nextMs = Math.min(this.#nextMs * 2, this.#maxMs);
  }

  /** No further attempt. */
  close(): void {
    this.#timer.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #arm(delayMs: number): void {
    this.#waiting = true;
    this.#succeededAt = Infinity;
    this.#timer.arm(delayMs);
  }
}
