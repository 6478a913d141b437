/**
 * Descriptors that an event loop watches, by epoll.
 *
 * @module
 */

import { EpollSet } from "../os/mod.ts";
import type { FdHandler, FdWatch } from "./loop.ts";

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

/** All descriptors that one loop watches; they belong to others. */
export class Watches {
  readonly #epoll = new EpollSet();
  readonly #watches: (Watch | undefined)[] = [];
  readonly #onError: (error: unknown) => void;
  #serial = 0;

  /** @param onError Called with what a handler threw */
  constructor(onError: (error: unknown) => void) {
    this.#onError = onError;
  }

  /** See {@linkcode Loop.watch}. */
  add(fd: number, events: number, handler: FdHandler): FdWatch {
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

  /**
   * Waits for events.
   *
   * @param timeoutMs −1 waits for ever, 0 only looks
   * @returns How many there are, for {@linkcode dispatch}
   */
  wait(timeoutMs: number): number {
    return this.#epoll.wait(timeoutMs);
  }

  /** Calls the handlers of the `count` events that {@linkcode wait} found. */
  dispatch(count: number): void {
    for (let i = 0; i < count; i++) {
      const watch = this.#watches[this.#epoll.fd(i)];
      // An earlier handler of this batch may have closed the watch, and the number may be in use again.
      if (watch === undefined || watch.serial !== this.#epoll.serial(i)) {
        continue;
      }
      try {
        watch.handler(this.#epoll.events(i));
      } catch (error) {
        this.#onError(error);
      }
    }
  }

  /** Watches nothing any more. */
  close(): void {
    this.#epoll.close();
  }
}
