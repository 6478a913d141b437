/**
 * Timers of an event loop, all on one timerfd.
 *
 * @module
 */

import { armTimerFd, createTimerFd, type Fd } from "../os/mod.ts";
import type { Timer } from "./loop.ts";

class LoopTimer implements Timer {
  readonly callback: () => void;
  readonly #timers: Set<LoopTimer>;
  readonly #rearm: () => void;
  deadlineMs = Infinity;

  constructor(timers: Set<LoopTimer>, rearm: () => void, callback: () => void) {
    this.#timers = timers;
    this.#rearm = rearm;
    this.callback = callback;
  }

  arm(delayMs: number): void {
    this.deadlineMs = performance.now() + Math.max(delayMs, 0);
    this.#timers.add(this);
    this.#rearm();
  }

  cancel(): void {
    this.deadlineMs = Infinity;
    if (this.#timers.delete(this)) this.#rearm();
  }

  close(): void {
    this.cancel();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/** The timers of one loop. */
export class Timers {
  readonly #fd: Fd = createTimerFd();
  /** Those that are armed. */
  readonly #timers = new Set<LoopTimer>();
  readonly #onError: (error: unknown) => void;
  readonly #rearm = (): void => this.#arm();
  /** Time that the timerfd is set to. */
  #deadlineMs = Infinity;

  /** @param onError Called with what a callback threw */
  constructor(onError: (error: unknown) => void) {
    this.#onError = onError;
  }

  /** A descriptor that is ready when {@linkcode run} has something to do; to be drained before that. */
  get fd(): number {
    return this.#fd.number;
  }

  /** See {@linkcode Loop.timer}. */
  make(callback: () => void): Timer {
    return new LoopTimer(this.#timers, this.#rearm, callback);
  }

  /** Runs those that are due. */
  run(): void {
    this.#deadlineMs = Infinity;
    const now = performance.now();
    for (const timer of this.#timers) {
      if (timer.deadlineMs > now) continue;
      this.#timers.delete(timer);
      timer.deadlineMs = Infinity;
      try {
        timer.callback();
      } catch (error) {
        this.#onError(error);
      }
    }
    this.#arm();
  }

  /** Ends all of them. */
  close(): void {
    this.#fd.close();
  }

  #arm(): void {
    let deadline = Infinity;
    for (const timer of this.#timers) {
      deadline = Math.min(deadline, timer.deadlineMs);
    }
    if (deadline === this.#deadlineMs) return;
    this.#deadlineMs = deadline;
    const delayNs = deadline === Infinity
      ? 0
      : Math.max(1, Math.ceil((deadline - performance.now()) * 1e6));
    armTimerFd(this.#fd.number, delayNs);
  }
}
