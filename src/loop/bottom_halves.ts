/**
 * Callbacks that an event loop defers to the end of its turn.
 *
 * @module
 */

import type { BottomHalf } from "./loop.ts";

class Deferred implements BottomHalf {
  readonly callback: () => void;
  readonly #enqueue: (deferred: Deferred) => void;
  scheduled = false;
  queued = false;
  /** The next one in the queue: an array would be allocated anew after each time it was emptied. */
  next: Deferred | null = null;

  constructor(enqueue: (deferred: Deferred) => void, callback: () => void) {
    this.#enqueue = enqueue;
    this.callback = callback;
  }

  schedule(): void {
    this.scheduled = true;
    if (this.queued) return;
    this.queued = true;
    this.#enqueue(this);
  }

  cancel(): void {
    // It stays in the queue: the run finds it unscheduled and skips it.
    this.scheduled = false;
  }
}

/** The bottom halves of one loop, and the queue of those that are scheduled. */
export class BottomHalves {
  readonly #onError: (error: unknown) => void;
  #first: Deferred | null = null;
  #last: Deferred | null = null;
  readonly #enqueue = (deferred: Deferred): void => {
    if (this.#last === null) this.#first = deferred;
    else this.#last.next = deferred;
    this.#last = deferred;
  };

  /** @param onError Called with what a callback threw */
  constructor(onError: (error: unknown) => void) {
    this.#onError = onError;
  }

  /** True when {@linkcode run} has something to do, be it only to forget what was cancelled. */
  get waiting(): boolean {
    return this.#first !== null;
  }

  /** See {@linkcode Loop.bottomHalf}. */
  make(callback: () => void): BottomHalf {
    return new Deferred(this.#enqueue, callback);
  }

  /** Runs those that are scheduled by now. */
  run(): void {
    // What is scheduled from here on belongs to the next turn.
    let deferred = this.#first;
    this.#first = this.#last = null;
    while (deferred !== null) {
      const next: Deferred | null = deferred.next;
      deferred.next = null;
      deferred.queued = false;
      if (deferred.scheduled) {
        deferred.scheduled = false;
        try {
          deferred.callback();
        } catch (error) {
          this.#onError(error);
        }
      }
      deferred = next;
    }
  }
}
