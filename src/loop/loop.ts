/**
 * Event loop as it is offered to device models and back ends; nothing here depends on a system.
 *
 * @module
 */

/** Called with the epoll event bits that are ready. */
export type FdHandler = (events: number) => void;

/** A descriptor the loop watches; {@linkcode FdWatch.close} stops watching and never closes the descriptor. */
export interface FdWatch extends Disposable {
  /** Changes which events are waited for (event bits of epoll); 0 leaves only errors and hang-ups. */
  setEvents(events: number): void;
  /** Stops watching. */
  close(): void;
}

/** A counter in the kernel by which threads and processes wake each other. */
export interface EventFd extends Disposable {
  /** The descriptor; −1 once it was released or closed. */
  readonly number: number;
  /** Wakes whoever watches it. */
  signal(): void;
  /** Gives the descriptor away. */
  release(): number;
  /** Closes it. */
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

/** Calls of a polling handler around a stretch of polling. */
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
  /**
   * Makes an eventfd.
   *
   * @param owned One that is there already, owned from here on
   */
  eventFd(owned?: number): EventFd;
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
  /**
   * Registers what begins when all that is on the loop is about to be closed, before any of it is: what takes its time to
   * close does so beside the rest.
   */
  beforeClose(begin: () => void): Disposable;
}
