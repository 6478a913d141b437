/**
 * Polling handlers of an event loop, for how long it polls before it sleeps, and how often it looks at its descriptors
 * meanwhile.
 *
 * @module
 */

import type { Poller, PollHooks } from "./loop.ts";

/** The shortest budget that adaptive polling grows from, in microseconds. */
const POLL_START_US = 4;

/**
 * The polling handlers of one loop.
 *
 * ```text
 *   asleep --begin--> polling --end--> asleep
 * ```
 * The budget adapts to how long the loop slept: it grows while a little more polling would have caught the event.
 */
export class Polling {
  readonly #handlers: (() => boolean)[] = [];
  readonly #hooks: PollHooks[] = [];
  readonly #onError: (error: unknown) => void;
  #maxUs = 0;
  #budgetUs = 0;
  #active = false;

  /** @param onError Called with what a handler threw */
  constructor(onError: (error: unknown) => void) {
    this.#onError = onError;
  }

  /** Time to poll before the loop sleeps, in microseconds. */
  get budgetUs(): number {
    return this.#budgetUs;
  }

  /** Number of handlers that a round calls. */
  get handlers(): number {
    return this.#handlers.length;
  }

  /** True when {@linkcode adapt} makes a difference. */
  get adaptive(): boolean {
    return this.#maxUs !== 0;
  }

  /** See {@linkcode EventLoop.setPolling}. */
  setMax(maxUs: number): void {
    this.#maxUs = maxUs;
    this.#budgetUs = maxUs === Infinity ? Infinity : 0;
  }

  /** See {@linkcode Loop.poll}. */
  add(handler: () => boolean, hooks?: PollHooks): Poller {
    this.#handlers.push(handler);
    if (hooks !== undefined) {
      this.#hooks.push(hooks);
      if (this.#active) hooks.begin();
    }
    const close = () => {
      remove(this.#handlers, handler);
      if (hooks !== undefined) remove(this.#hooks, hooks);
    };
    return { close, [Symbol.dispose]: close };
  }

  /** Tells everyone that polling begins, unless it has. */
  begin(): void {
    if (this.#active) return;
    this.#active = true;
    for (let i = 0; i < this.#hooks.length; i++) this.#hooks[i]!.begin();
  }

  /**
   * Tells everyone that polling ends, unless it has.
   *
   * @returns Whether work came in since the last round
   */
  end(): boolean {
    if (!this.#active) return false;
    this.#active = false;
    let found = false;
    for (let i = 0; i < this.#hooks.length; i++) {
      if (this.#hooks[i]!.end()) found = true;
    }
    return found;
  }

  /** Calls every handler once; returns whether one found work. */
  round(): boolean {
    const handlers = this.#handlers;
    let found = false;
    for (let i = 0; i < handlers.length; i++) {
      try {
        if (handlers[i]!()) found = true;
      } catch (error) {
        this.#onError(error);
      }
    }
    return found;
  }

  /** Grows the budget when a little more polling would have caught the event, drops it when not. */
  adapt(waitedUs: number): void {
    if (waitedUs > this.#maxUs) this.#budgetUs = 0;
    else {
      this.#budgetUs = Math.min(
        this.#maxUs,
        Math.max(POLL_START_US, this.#budgetUs * 2),
      );
    }
  }
}

function remove<T>(list: T[], item: T): void {
  const at = list.indexOf(item);
  if (at >= 0) list.splice(at, 1);
}

/** Steps of polling that go by from a look that found something to the next: a round is one, and one for each
 * handler. */
const STEPS_MIN = 64;
const STEPS_MAX = 4096;
/** Steps that a round which found work counts for besides: it took longer, and whoever sends messages waits. */
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
