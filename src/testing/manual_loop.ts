/**
 * An event loop that a test turns by hand: time is virtual, descriptors are numbers, nothing ever waits.
 *
 * @module
 */

import type {
  BottomHalf,
  EventFd,
  FdHandler,
  FdWatch,
  Loop,
  Poller,
  PollHooks,
  Timer,
} from "../loop/event_loop.ts";
import { Closing } from "../loop/closing.ts";
import { Polling } from "../loop/polling.ts";

interface Watched {
  events: number;
  readonly handler: FdHandler;
}

interface Armed {
  deadlineMs: number;
  readonly callback: () => void;
}

/** EPOLLERR and EPOLLHUP, which are reported whether they are waited for or not. */
const ALWAYS = 0x08 | 0x10;
const EPOLLIN = 0x01;

/**
 * A {@linkcode Loop} without a system beneath it.
 *
 * ```ts ignore
 * device.writeBar(4, 0x3000, 2, 0); // a kick schedules a bottom half
 * loop.turn(); // which runs now
 * loop.advance(10); // 10 ms pass: due timers run, and what they scheduled
 * ```
 */
export class ManualLoop implements Loop {
  #nextEventFd = 1_000_000;
  readonly #watches = new Map<number, Watched>();
  readonly #signalled: { fd: number; events: number }[] = [];
  readonly #timers = new Set<Armed>();
  readonly #polling = new Polling((error) => {
    throw error;
  });
  readonly #closing = new Closing((error) => {
    throw error;
  });
  #scheduled = new Set<() => void>();
  #running = new Set<() => void>();
  #nowMs = 0;

  now(): number {
    return this.#nowMs;
  }

  watch(fd: number, events: number, handler: FdHandler): FdWatch {
    if (this.#watches.has(fd)) {
      throw new Error(`Cannot watch descriptor ${fd}: it is watched already`);
    }
    const watched: Watched = { events, handler };
    this.#watches.set(fd, watched);
    const close = () => {
      if (this.#watches.get(fd) === watched) this.#watches.delete(fd);
    };
    return {
      setEvents: (next: number) => {
        watched.events = next;
      },
      close,
      [Symbol.dispose]: close,
    };
  }

  /** One without a descriptor: a signal calls the handler in the next turn. */
  eventFd(owned: number = this.#nextEventFd++): EventFd {
    let number = owned;
    const release = () => {
      const released = number;
      number = -1;
      return released;
    };
    return {
      get number() {
        return number;
      },
      signal: () => this.#watches.get(number)?.handler(EPOLLIN),
      release,
      close: release,
      [Symbol.dispose]: release,
    };
  }

  watchEventFd(fd: number, handler: () => void): FdWatch {
    return this.watch(fd, EPOLLIN, handler);
  }

  bottomHalf(callback: () => void): BottomHalf {
    // A function of its own, so that two bottom halves of one callback are two.
    const run = () => callback();
    return {
      schedule: () => {
        this.#scheduled.add(run);
      },
      cancel: () => {
        this.#scheduled.delete(run);
        this.#running.delete(run);
      },
    };
  }

  timer(callback: () => void): Timer {
    const armed: Armed = { deadlineMs: Infinity, callback };
    const cancel = () => {
      this.#timers.delete(armed);
    };
    return {
      arm: (delayMs: number) => {
        armed.deadlineMs = this.#nowMs + Math.max(delayMs, 0);
        this.#timers.add(armed);
      },
      cancel,
      close: cancel,
      [Symbol.dispose]: cancel,
    };
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

  /** Number of descriptors that are watched. */
  get watchCount(): number {
    return this.#watches.size;
  }

  /** Number of timers that are armed. */
  get timerCount(): number {
    return this.#timers.size;
  }

  /** Number of polling handlers. */
  get pollerCount(): number {
    return this.#polling.handlers;
  }

  /** True if a bottom half waits to run. */
  get hasScheduled(): boolean {
    return this.#scheduled.size > 0;
  }

  /** Events a descriptor is watched for, or undefined when it is not. */
  watchedEvents(fd: number): number | undefined {
    return this.#watches.get(fd)?.events;
  }

  /** Makes a descriptor ready in the next turn, for events that are then watched for. */
  signal(fd: number, events: number = EPOLLIN): void {
    this.#signalled.push({ fd, events });
  }

  /**
   * One turn: handlers of signalled descriptors, due timers, then the bottom halves that are scheduled by then.
   *
   * @returns Whether anything ran
   */
  turn(): boolean {
    let worked = false;
    for (const { fd, events } of this.#signalled.splice(0)) {
      const watched = this.#watches.get(fd);
      const ready = watched === undefined
        ? 0
        : events & (watched.events | ALWAYS);
      if (watched === undefined || ready === 0) continue;
      watched.handler(ready);
      worked = true;
    }
    for (const armed of [...this.#timers]) {
      if (armed.deadlineMs > this.#nowMs || !this.#timers.delete(armed)) {
        continue;
      }
      armed.callback();
      worked = true;
    }
    return this.#runBottomHalves() || worked;
  }

  /** Turns until nothing is left to do; throws after 1000 turns, for a bottom half that always reschedules itself. */
  settle(): void {
    for (let i = 0; i < 1000; i++) if (!this.turn()) return;
    throw new Error(
      "Cannot settle the loop: it is still busy after 1000 turns",
    );
  }

  /** Lets time pass, stopping at every timer that falls due, and settles. */
  advance(ms: number): void {
    const until = this.#nowMs + ms;
    this.settle();
    for (;;) {
      let next = Infinity;
      for (const armed of this.#timers) next = Math.min(next, armed.deadlineMs);
      if (next > until) break;
      this.#nowMs = Math.max(this.#nowMs, next);
      this.settle();
    }
    this.#nowMs = until;
  }

  /**
   * Runs every polling handler once.
   *
   * @returns Whether one found work
   */
  pollOnce(): boolean {
    return this.#polling.round();
  }

  /** Tells all that have hooks that a stretch of polling begins. */
  beginPolling(): void {
    this.#polling.begin();
  }

  /**
   * Tells them that it ends.
   *
   * @returns Whether one of them found that work came in meanwhile
   */
  endPolling(): boolean {
    return this.#polling.end();
  }

  #runBottomHalves(): boolean {
    if (this.#scheduled.size === 0) return false;
    // What one of them schedules runs in the next turn; what one of them cancels does not run.
    const batch = this.#scheduled;
    this.#scheduled = this.#running;
    this.#running = batch;
    let worked = false;
    for (const run of batch) {
      batch.delete(run);
      run();
      worked = true;
    }
    return worked;
  }
}
