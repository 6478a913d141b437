/**
 * One blocking event loop per IOThread: descriptors, event notifiers, timers, bottom halves and polling
 * handlers over epoll.
 *
 * @module
 */

import {
  armTimerFd,
  createEventFd,
  createTimerFd,
  drainEventFd,
  Epoll,
  EpollSet,
  type Fd,
  storeMonotonicSeconds,
} from "./libc/mod.ts";

/** Called with the epoll event bits that are ready. */
export type FdHandler = (events: number) => void;

/** A descriptor the loop watches; {@linkcode FdWatch.close} stops watching and never closes the descriptor. */
export interface FdWatch extends Disposable {
  /** Changes which events are waited for (bits of {@linkcode Epoll}); 0 leaves only errors and hang-ups. */
  setEvents(events: number): void;
  /** Stops watching. */
  close(): void;
}

/** A deferred callback; scheduling it twice before it runs runs it once. */
export interface BottomHalf {
  /** Runs the callback later in this turn of the loop, after the events at hand. */
  schedule(): void;
  /** Takes back a schedule that has not run. */
  cancel(): void;
}

/** A one-shot timer that can be armed again. */
export interface Timer extends Disposable {
  /** Fires once, `delayMs` (a fraction is welcome) from now; replaces an earlier arming. */
  arm(delayMs: number): void;
  /** Disarms. */
  cancel(): void;
  /** Disarms for good. */
  close(): void;
}

/** What a polling handler does around a stretch of polling. */
export interface PollHooks {
  /** Polling begins: notifications are not needed for now. */
  begin(): void;
  /**
   * Polling ends: notifications are needed again.
   *
   * @returns Whether work came in meanwhile, so that the loop must not sleep yet
   */
  end(): boolean;
}

/** A handler that looks for work without waiting for an event. */
export interface Poller extends Disposable {
  /** Stops polling. */
  close(): void;
}

/** The part of the loop that device models and back ends are handed. */
export interface Loop {
  /** Milliseconds on a clock that never goes back. */
  now(): number;
  /** Watches a descriptor; the handler runs while it is ready (level-triggered). */
  watch(fd: number, events: number, handler: FdHandler): FdWatch;
  /** Watches an eventfd; it is drained before the handler runs. */
  watchEventFd(fd: number, handler: () => void): FdWatch;
  /** Makes a bottom half. */
  bottomHalf(callback: () => void): BottomHalf;
  /** Makes a timer. */
  timer(callback: () => void): Timer;
  /**
   * Registers a polling handler, which returns whether it found work. Pollers run while the loop has polling
   * budget left, before it sleeps.
   *
   * @param hooks Told when the loop begins to poll and when it goes to sleep, so that what is polled need not notify
   */
  poll(handler: () => boolean, hooks?: PollHooks): Poller;
}

class Watch implements FdWatch {
  readonly fd: number;
  readonly serial: number;
  readonly handler: FdHandler;
  readonly #epoll: EpollSet;
  readonly #watches: (Watch | undefined)[];
  #events: number;

  constructor(
    epoll: EpollSet,
    watches: (Watch | undefined)[],
    fd: number,
    serial: number,
    events: number,
    handler: FdHandler,
  ) {
    this.#epoll = epoll;
    this.#watches = watches;
    this.fd = fd;
    this.serial = serial;
    this.handler = handler;
    this.#events = events;
    epoll.add(fd, events, serial);
    watches[fd] = this;
  }

  setEvents(events: number): void {
    if (events === this.#events || this.#watches[this.fd] !== this) return;
    this.#events = events;
    this.#epoll.modify(this.fd, events, this.serial);
  }

  close(): void {
    if (this.#watches[this.fd] !== this) return;
    this.#watches[this.fd] = undefined;
    this.#epoll.remove(this.fd);
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

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

function remove<T>(list: T[], item: T): void {
  const at = list.indexOf(item);
  if (at >= 0) list.splice(at, 1);
}

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

/** How a loop behaves. */
export interface EventLoopOptions {
  /** The longest the loop polls before it sleeps, in microseconds; 0 (the default) never polls, Infinity never sleeps. */
  readonly pollMaxUs?: number;
  /** Called with what a handler threw; the loop goes on. Without it, {@linkcode EventLoop.turn} throws. */
  readonly onError?: (error: unknown) => void;
}

/** What a loop has counted since it was made. */
export interface LoopCounters {
  /** Turns of the loop. */
  readonly turns: number;
  /** How often another thread signalled {@linkcode EventLoop.wakeFd}. */
  readonly wakeUps: number;
  /** Calls of handlers of descriptors. */
  readonly events: number;
  /** How often it slept, or looked whether it need. */
  readonly sleeps: number;
  /** How long it slept, in seconds. */
  readonly sleptSeconds: number;
  /** The rest of the time, in seconds. */
  readonly awakeSeconds: number;
  /** Stretches of polling that ended because something was found. */
  readonly pollHits: number;
  /** Stretches of polling after which it went to sleep. */
  readonly pollMisses: number;
  /** How often the polling handlers were called, each time all of them. */
  readonly pollRounds: number;
}

/** Indexes of the doubles that a loop counts in: in place, so that counting allocates nothing. */
const Count = {
  TURNS: 0,
  WAKE_UPS: 1,
  EVENTS: 2,
  SLEEPS: 3,
  SLEPT_SECONDS: 4,
  POLL_HITS: 5,
  POLL_MISSES: 6,
  POLL_ROUNDS: 7,
  /** When the loop was made, went to sleep, and woke up. */
  BORN: 8,
  SLEPT_FROM: 9,
  SLEPT_UNTIL: 10,
  SIZE: 11,
} as const;

/** The shortest budget that adaptive polling grows from, in microseconds. */
const POLL_START_US = 4;
/** How many rounds of polling handlers go by for each look at the descriptors, which costs a system call. */
const POLLS_PER_LOOK = 8;

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
  readonly #epoll = new EpollSet();
  readonly #watches: (Watch | undefined)[] = [];
  readonly #wake: Fd = createEventFd();
  readonly #timerFd: Fd = createTimerFd();
  readonly #timers = new Set<LoopTimer>();
  readonly #onError: ((error: unknown) => void) | undefined;
  readonly #pollers: (() => boolean)[] = [];
  readonly #pollHooks: PollHooks[] = [];
  #pollMaxUs: number;
  readonly #enqueue = (deferred: Deferred): void => {
    if (this.#lastReady === null) this.#firstReady = deferred;
    else this.#lastReady.next = deferred;
    this.#lastReady = deferred;
  };
  #firstReady: Deferred | null = null;
  #lastReady: Deferred | null = null;
  #pollBudgetUs = 0;
  #polling = false;
  #untilLook = POLLS_PER_LOOK;
  #serial = 0;
  #wakeUps = 0;
  #returning = false;
  #timerDeadlineMs = Infinity;
  readonly #counts = new Float64Array(Count.SIZE);

  constructor(options: EventLoopOptions = {}) {
    storeMonotonicSeconds(this.#counts, Count.BORN);
    this.#onError = options.onError;
    this.#pollMaxUs = options.pollMaxUs ?? 0;
    this.setPolling(this.#pollMaxUs);
    this.watchEventFd(this.#timerFd.number, () => {
      this.#timerDeadlineMs = Infinity;
      this.#runTimers();
    });
    this.watch(this.#wake.number, Epoll.IN, () => {
      const wakeUps = drainEventFd(this.#wake.number);
      this.#wakeUps += wakeUps;
      this.#counts[Count.WAKE_UPS]! += wakeUps;
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
    this.#serial = (this.#serial + 1) >>> 0;
    return new Watch(
      this.#epoll,
      this.#watches,
      fd,
      this.#serial,
      events,
      handler,
    );
  }

  watchEventFd(fd: number, handler: () => void): FdWatch {
    return this.watch(fd, Epoll.IN, () => {
      if (drainEventFd(fd) > 0) handler();
    });
  }

  bottomHalf(callback: () => void): BottomHalf {
    return new Deferred(this.#enqueue, callback);
  }

  timer(callback: () => void): Timer {
    return new LoopTimer(this.#timers, () => this.#armTimers(), callback);
  }

  poll(handler: () => boolean, hooks?: PollHooks): Poller {
    this.#pollers.push(handler);
    if (hooks !== undefined) {
      this.#pollHooks.push(hooks);
      if (this.#polling) hooks.begin();
    }
    const close = () => {
      remove(this.#pollers, handler);
      if (hooks !== undefined) remove(this.#pollHooks, hooks);
    };
    return { close, [Symbol.dispose]: close };
  }

  /**
   * Sets the longest the loop polls before it sleeps.
   *
   * @param maxUs In microseconds; 0 never polls, Infinity never sleeps
   */
  setPolling(maxUs: number): void {
    this.#pollMaxUs = maxUs;
    this.#pollBudgetUs = maxUs === Infinity ? Infinity : 0;
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
    this.#counts[Count.TURNS]!++;
    if (this.#firstReady !== null || timeoutMs === 0) {
      worked = this.#look(0);
    } else if (this.#pollBudgetUs > 0 && this.#poll()) {
      worked = true;
    } else {
      // What came in since the last look would otherwise wait for a notification that nobody sends.
      worked = this.#endPolling() || this.#wait(timeoutMs);
    }
    if (this.#firstReady !== null) {
      this.#runBottomHalves();
      worked = true;
    }
    return worked;
  }

  /** What was counted since the loop was made. */
  counters(): LoopCounters {
    const counts = this.#counts;
    const now = new Float64Array(1);
    storeMonotonicSeconds(now, 0);
    const sleptSeconds = counts[Count.SLEPT_SECONDS]!;
    return {
      turns: counts[Count.TURNS]!,
      wakeUps: counts[Count.WAKE_UPS]!,
      events: counts[Count.EVENTS]!,
      sleeps: counts[Count.SLEEPS]!,
      sleptSeconds,
      awakeSeconds: now[0]! - counts[Count.BORN]! - sleptSeconds,
      pollHits: counts[Count.POLL_HITS]!,
      pollMisses: counts[Count.POLL_MISSES]!,
      pollRounds: counts[Count.POLL_ROUNDS]!,
    };
  }

  /** Closes the loop's own descriptors. Watched descriptors stay open: they belong to others. */
  close(): void {
    this.#epoll.close();
    this.#wake.close();
    this.#timerFd.close();
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
    if (!this.#polling) this.#beginPolling();
    const until = performance.now() + this.#pollBudgetUs / 1000;
    do {
      let found = false;
      this.#counts[Count.POLL_ROUNDS]!++;
      for (let i = 0; i < this.#pollers.length; i++) {
        try {
          if (this.#pollers[i]!()) found = true;
        } catch (error) {
          this.#fail(error);
        }
      }
      if (--this.#untilLook <= 0) {
        this.#untilLook = POLLS_PER_LOOK;
        if (this.#look(0)) found = true;
      }
      if (found || this.#returning) {
        if (found) this.#counts[Count.POLL_HITS]!++;
        return true;
      }
    } while (performance.now() < until);
    this.#counts[Count.POLL_MISSES]!++;
    return false;
  }

  #beginPolling(): void {
    this.#polling = true;
    for (let i = 0; i < this.#pollHooks.length; i++) {
      this.#pollHooks[i]!.begin();
    }
  }

  #endPolling(): boolean {
    if (!this.#polling) return false;
    this.#polling = false;
    let found = false;
    for (let i = 0; i < this.#pollHooks.length; i++) {
      if (this.#pollHooks[i]!.end()) found = true;
    }
    return found;
  }

  /** Sleeps until there is something to do, and learns from how long that took. */
  #wait(timeoutMs: number): boolean {
    if (this.#pollMaxUs === 0) return this.#look(timeoutMs);
    return this.#look(timeoutMs, performance.now());
  }

  /** Looks at the descriptors and calls the handlers of those that are ready. */
  #look(timeoutMs: number, since = -1): boolean {
    const n = timeoutMs === 0 ? this.#epoll.wait(0) : this.#sleep(timeoutMs);
    this.#counts[Count.EVENTS]! += n;
    if (since >= 0) this.#adapt((performance.now() - since) * 1000);
    for (let i = 0; i < n; i++) {
      const watch = this.#watches[this.#epoll.fd(i)];
      // An earlier handler of this batch may have closed the watch, and the number may be in use again.
      if (watch === undefined || watch.serial !== this.#epoll.serial(i)) {
        continue;
      }
      try {
        watch.handler(this.#epoll.events(i));
      } catch (error) {
        this.#fail(error);
      }
    }
    return n > 0;
  }

  #sleep(timeoutMs: number): number {
    const counts = this.#counts;
    counts[Count.SLEEPS]!++;
    storeMonotonicSeconds(counts, Count.SLEPT_FROM);
    const n = this.#epoll.wait(timeoutMs);
    storeMonotonicSeconds(counts, Count.SLEPT_UNTIL);
    counts[Count.SLEPT_SECONDS]! += counts[Count.SLEPT_UNTIL]! -
      counts[Count.SLEPT_FROM]!;
    return n;
  }

  /** Grows the budget when a little more polling would have caught the event, drops it when not. */
  #adapt(waitedUs: number): void {
    if (waitedUs > this.#pollMaxUs) this.#pollBudgetUs = 0;
    else {
      this.#pollBudgetUs = Math.min(
        this.#pollMaxUs,
        Math.max(POLL_START_US, this.#pollBudgetUs * 2),
      );
    }
  }

  #runBottomHalves(): void {
    // What is scheduled from here on belongs to the next turn.
    let deferred = this.#firstReady;
    this.#firstReady = this.#lastReady = null;
    while (deferred !== null) {
      const next: Deferred | null = deferred.next;
      deferred.next = null;
      deferred.queued = false;
      if (deferred.scheduled) {
        deferred.scheduled = false;
        try {
          deferred.callback();
        } catch (error) {
          this.#fail(error);
        }
      }
      deferred = next;
    }
  }

  #runTimers(): void {
    const now = performance.now();
    for (const timer of this.#timers) {
      if (timer.deadlineMs > now) continue;
      this.#timers.delete(timer);
      timer.deadlineMs = Infinity;
      try {
        timer.callback();
      } catch (error) {
        this.#fail(error);
      }
    }
    this.#armTimers();
  }

  #armTimers(): void {
    let deadline = Infinity;
    for (const timer of this.#timers) {
      deadline = Math.min(deadline, timer.deadlineMs);
    }
    if (deadline === this.#timerDeadlineMs) return;
    this.#timerDeadlineMs = deadline;
    const delayNs = deadline === Infinity
      ? 0
      : Math.max(1, Math.ceil((deadline - performance.now()) * 1e6));
    armTimerFd(this.#timerFd.number, delayNs);
  }

  #fail(error: unknown): void {
    if (this.#onError === undefined) throw error;
    this.#onError(error);
  }
}
