/**
 * One blocking event loop per IOThread: descriptors, event notifiers, timers, bottom halves and polling
 * handlers over epoll.
 *
 * @module
 */

import { BottomHalves } from "./bottom_halves.ts";
import { Closing } from "./closing.ts";
import { LoopCounter, type LoopCounters, LoopCounts } from "./counters.ts";
import type {
  BottomHalf,
  EventFd,
  FdHandler,
  FdWatch,
  Loop,
  Poller,
  PollHooks,
  Timer,
} from "./loop.ts";
import { Pace, Polling } from "./polling.ts";
import { Timers } from "./timers.ts";
import { Watches } from "./watches.ts";
import {
  createEventFd,
  drainEventFd,
  Epoll,
  Fd,
  signalEventFd,
} from "../os/mod.ts";

export type { LoopCounters } from "./counters.ts";
export type * from "./loop.ts";

/** Options of a loop. */
export interface EventLoopOptions {
  /** The longest the loop polls before it sleeps, in microseconds; 0 (the default) never polls, Infinity never sleeps. */
  readonly pollMaxUs?: number;
  /** Called with what a handler threw; the loop goes on. Without it, {@linkcode EventLoop.turn} throws. */
  readonly onError?: (error: unknown) => void;
}

/**
 * A blocking event loop. All methods are to be called on the thread that made it; other threads may only
 * signal {@linkcode EventLoop.wakeFd}.
 *
 * ```text
 * turn:  poll (within the budget) → wait → handlers of ready fds, due timers → bottom halves
 * run:   turn, turn, … until wakeFd is signalled or stop() is called
 * ```
 */
export class EventLoop implements Loop, Disposable {
  readonly #onError: ((error: unknown) => void) | undefined;
  readonly #fail = (error: unknown): void => {
    if (this.#onError === undefined) throw error;
    this.#onError(error);
  };
  readonly #counts = new LoopCounts();
  readonly #watches = new Watches(this.#fail);
  readonly #wake: Fd = createEventFd();
  readonly #timers = new Timers(this.#fail);
  readonly #bottomHalves = new BottomHalves(this.#fail);
  readonly #polling = new Polling(this.#fail);
  readonly #pace = new Pace();
  readonly #closing = new Closing(this.#fail);
  #wakeUps = 0;
  #returning = false;

  constructor(options: EventLoopOptions = {}) {
    this.#onError = options.onError;
    this.setPolling(options.pollMaxUs ?? 0);
    this.watchEventFd(this.#timers.fd, () => this.#timers.run());
    this.watch(this.#wake.number, Epoll.IN, () => {
      const wakeUps = drainEventFd(this.#wake.number);
      this.#wakeUps += wakeUps;
      this.#counts.values[LoopCounter.wakeUps]! += wakeUps;
      this.#returning = true;
    });
  }

  /** An eventfd that makes {@linkcode EventLoop.run} return; any thread may signal it. */
  get wakeFd(): number {
    return this.#wake.number;
  }

  now(): number {
    return performance.now();
  }

  watch(fd: number, events: number, handler: FdHandler): FdWatch {
    return this.#watches.add(fd, events, handler);
  }

  eventFd(owned?: number): EventFd {
    return new OwnEventFd(owned ?? createEventFd().release());
  }

  watchEventFd(fd: number, handler: () => void): FdWatch {
    return this.watch(fd, Epoll.IN, () => {
      if (drainEventFd(fd) > 0) handler();
    });
  }

  bottomHalf(callback: () => void): BottomHalf {
    return this.#bottomHalves.make(callback);
  }

  timer(callback: () => void): Timer {
    return this.#timers.make(callback);
  }

  poll(handler: () => boolean, hooks?: PollHooks): Poller {
    return this.#polling.add(handler, hooks);
  }

  beforeClose(begin: () => void): Disposable {
    return this.#closing.add(begin);
  }

  /** Tells all who are to know that everything on the loop is about to be closed. */
  beginClose(): void {
    this.#closing.tell();
  }

  /**
   * Sets the longest the loop polls before it sleeps.
   *
   * @param maxUs In microseconds; 0 never polls, Infinity never sleeps
   */
  setPolling(maxUs: number): void {
    this.#polling.setMax(maxUs);
  }

  /**
   * Runs until {@linkcode EventLoop.wakeFd} is signalled or {@linkcode EventLoop.stop} is called.
   *
   * @returns How many times wakeFd was signalled since the last return
   */
  run(): number {
    this.#returning = false;
    while (!this.#returning) this.turn(-1);
    const wakeUps = this.#wakeUps;
    this.#wakeUps = 0;
    return wakeUps;
  }

  /** Makes {@linkcode EventLoop.run} return after this turn; for the loop's own thread. */
  stop(): void {
    this.#returning = true;
  }

  /**
   * One turn of the loop.
   *
   * @param timeoutMs The longest to wait for something to do; −1 for ever, 0 not at all
   * @returns Whether anything was done
   */
  turn(timeoutMs = 0): boolean {
    let worked: boolean;
    this.#counts.values[LoopCounter.turns]!++;
    if (this.#bottomHalves.waiting || timeoutMs === 0) {
      worked = this.#look(0);
    } else if (this.#polling.budgetUs > 0 && this.#poll()) {
      worked = true;
    } else {
      // What came in since the last look would otherwise wait for a notification that nobody sends.
      worked = this.#polling.end() || this.#wait(timeoutMs);
    }
    if (this.#bottomHalves.waiting) {
      this.#bottomHalves.run();
      worked = true;
    }
    return worked;
  }

  /** Counts since the loop was made. */
  counters(): LoopCounters {
    return this.#counts.read();
  }

  /** Closes the loop's own descriptors. Watched descriptors stay open: they belong to others. */
  close(): void {
    this.#watches.close();
    this.#wake.close();
    this.#timers.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  /**
   * Polls until there is work, or the loop is to return, or the budget is used up.
   *
   * @returns false when the budget is used up
   */
  #poll(): boolean {
    const counts = this.#counts.values;
    const polling = this.#polling;
    polling.begin();
    // Who polls without an end need not ask the clock, which costs as much as a round does.
    const until = polling.budgetUs === Infinity
      ? Infinity
      : performance.now() + polling.budgetUs / 1000;
    do {
      counts[LoopCounter.pollRounds]!++;
      let found = polling.round();
      if (this.#pace.round(polling.handlers, found)) {
        const ready = this.#look(0);
        this.#pace.looked(ready, performance.now());
        if (ready) found = true;
      }
      if (found || this.#returning) {
        if (found) counts[LoopCounter.pollHits]!++;
        return true;
      }
    } while (until === Infinity || performance.now() < until);
    counts[LoopCounter.pollMisses]!++;
    return false;
  }

  /** Sleeps until there is something to do, and learns from how long that took. */
  #wait(timeoutMs: number): boolean {
    if (!this.#polling.adaptive) return this.#look(timeoutMs);
    return this.#look(timeoutMs, performance.now());
  }

  /** Looks at the descriptors and calls the handlers of those that are ready. */
  #look(timeoutMs: number, since = -1): boolean {
    const watches = this.#watches;
    const n = timeoutMs === 0 ? watches.wait(0) : this.#sleep(timeoutMs);
    this.#counts.values[LoopCounter.events]! += n;
    if (since >= 0) this.#polling.adapt((performance.now() - since) * 1000);
    watches.dispatch(n);
    return n > 0;
  }

  #sleep(timeoutMs: number): number {
    this.#counts.beginSleep();
    const n = this.#watches.wait(timeoutMs);
    this.#counts.endSleep();
    return n;
  }
}

class OwnEventFd extends Fd implements EventFd {
  signal(): void {
    signalEventFd(this.number);
  }
}
