/**
 * Pauses between attempts.
 *
 * @module
 */

import type { StateReader } from "../../core/state_reader.ts";
import type { Loop, Timer } from "../../loop/event_loop.ts";

const FIRST_MS = 100;

/** Where a {@linkcode Backoff} is; times are relative, in milliseconds. */
export interface BackoffState {
  /** How long the next pause is. */
  readonly nextMs: number;
  /** When the next attempt is due; null when none is. */
  readonly dueInMs: number | null;
  /** How long ago an attempt succeeded; null when what it made has ended. */
  readonly succeededAgoMs: number | null;
}

/** @throws {import("../../core/errno.ts").ErrnoError} EINVAL when a saved state has it wrong */
export function parseBackoff(reader: StateReader): BackoffState {
  return {
    nextMs: reader.number("nextMs"),
    dueInMs: reader.numberOrNull("dueInMs"),
    succeededAgoMs: reader.numberOrNull("succeededAgoMs"),
  };
}

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
  #dueAt = Infinity;

  /**
   * @param attempt Called after each pause
   * @param state Where another one was, to go on from there
   */
  constructor(
    loop: Loop,
    maxMs: number,
    attempt: () => void,
    state: BackoffState | null = null,
  ) {
    this.#loop = loop;
    this.#maxMs = maxMs;
    this.#nextMs = state?.nextMs ?? Math.min(FIRST_MS, maxMs);
    this.#timer = loop.timer(() => {
      this.#dueAt = Infinity;
      attempt();
    });
    if (state === null) return;
    if (state.succeededAgoMs !== null) {
      this.#succeededAt = loop.now() - state.succeededAgoMs;
    }
    if (state.dueInMs !== null) this.#arm(state.dueInMs);
  }

  /** Where it is. */
  state(): BackoffState {
    const now = this.#loop.now();
    return {
      nextMs: this.#nextMs,
      dueInMs: this.#dueAt === Infinity ? null : Math.max(this.#dueAt - now, 0),
      succeededAgoMs: this.#succeededAt === Infinity
        ? null
        : now - this.#succeededAt,
    };
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
    this.#dueAt = this.#loop.now() + delayMs;
    this.#timer.arm(delayMs);
  }
}
