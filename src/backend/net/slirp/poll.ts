/**
 * The descriptors libslirp asks to poll, kept on the event loop.
 *
 * @module
 */

import { ErrnoError } from "../../../core/errno.ts";
import type { FdWatch, Loop } from "../../../loop/event_loop.ts";
import { Epoll } from "../../../os/mod.ts";
import { SLIRP_POLL } from "./symbols.ts";

/** SLIRP_POLL bits as epoll bits. */
export function slirpToEpoll(events: number): number {
  return (events & SLIRP_POLL.IN ? Epoll.IN : 0) |
    (events & SLIRP_POLL.OUT ? Epoll.OUT : 0) |
    (events & SLIRP_POLL.PRI ? Epoll.PRI : 0) |
    (events & SLIRP_POLL.ERR ? Epoll.ERR : 0) |
    (events & SLIRP_POLL.HUP ? Epoll.HUP : 0);
}

/** Epoll bits as SLIRP_POLL bits. */
export function epollToSlirp(events: number): number {
  return (events & Epoll.IN ? SLIRP_POLL.IN : 0) |
    (events & Epoll.OUT ? SLIRP_POLL.OUT : 0) |
    (events & Epoll.PRI ? SLIRP_POLL.PRI : 0) |
    (events & Epoll.ERR ? SLIRP_POLL.ERR : 0) |
    (events & Epoll.HUP ? SLIRP_POLL.HUP : 0);
}

/**
 * What a descriptor is watched for while libslirp does not ask: errors and hang-ups cannot be masked, but with this
 * they are told once and not in every turn.
 */
const PARKED = Epoll.ONESHOT;

/** One descriptor number; made on first use and kept, because numbers come again. */
class PollEntry {
  readonly fd: number;
  readonly handler: (events: number) => void;
  watch: FdWatch | null = null;
  wanted = 0;
  ready = 0;
  /** The round in which libslirp last asked for it. */
  round = 0;

  constructor(fd: number, onReady: () => void) {
    this.fd = fd;
    this.handler = (events) => {
      this.ready |= events;
      onReady();
    };
  }
}

/**
 * A table of descriptors by number. A round is `begin`, `add` for every descriptor asked for, `apply`; then
 * `revents` by the indices `add` gave, until the next round.
 */
export class SlirpPollTable {
  readonly #loop: Loop;
  readonly #onReady: () => void;
  readonly #byFd: (PollEntry | undefined)[] = [];
  readonly #watched: PollEntry[] = [];
  readonly #asked: PollEntry[] = [];
  #askedCount = 0;
  #round = 0;
  #mask = -1;
  /** How many descriptors the loop refused. */
  failures = 0;

  /** @param onReady Called in the loop's dispatch for every descriptor that has become ready */
  constructor(loop: Loop, onReady: () => void) {
    this.#loop = loop;
    this.#onReady = onReady;
  }

  /** How many descriptors are on the loop. */
  get watchedCount(): number {
    return this.#watched.length;
  }

  /** @param readable Whether input is wanted now */
  begin(readable: boolean): void {
    this.#round++;
    this.#askedCount = 0;
    this.#mask = readable ? -1 : ~(Epoll.IN | Epoll.PRI);
  }

  /**
   * Asks for a descriptor.
   *
   * @param events SLIRP_POLL bits
   * @returns Its index in this round
   */
  add(fd: number, events: number): number {
    const entry = this.#byFd[fd] ??= new PollEntry(fd, this.#onReady);
    entry.wanted = slirpToEpoll(events) & this.#mask;
    entry.ready = 0;
    entry.round = this.#round;
    this.#asked[this.#askedCount] = entry;
    return this.#askedCount++;
  }

  /** Brings the loop to what this round asked for. */
  apply(): void {
    for (let i = 0; i < this.#askedCount; i++) {
      const entry = this.#asked[i]!;
      this.#watch(entry, entry.wanted === 0 ? PARKED : entry.wanted);
    }
    for (let i = this.#watched.length - 1; i >= 0; i--) {
      const entry = this.#watched[i]!;
      if (entry.round !== this.#round) this.#watch(entry, PARKED);
    }
  }

  /** SLIRP_POLL bits that are ready at an index of this round. */
  revents(index: number): number {
    const entry = index < this.#askedCount ? this.#asked[index] : undefined;
    return entry === undefined ? 0 : epollToSlirp(entry.ready);
  }

  /** Forgets a descriptor: its number is about to be closed, or names something new. */
  drop(fd: number): void {
    const entry = this.#byFd[fd];
    if (entry === undefined || entry.watch === null) return;
    entry.watch.close();
    entry.watch = null;
    entry.ready = 0;
    const at = this.#watched.indexOf(entry);
    this.#watched[at] = this.#watched[this.#watched.length - 1]!;
    this.#watched.length--;
  }

  /** Takes everything off the loop. */
  close(): void {
    for (const entry of [...this.#watched]) this.drop(entry.fd);
  }

  #watch(entry: PollEntry, events: number): void {
    try {
      if (entry.watch !== null) {
        entry.watch.setEvents(events);
        return;
      }
    } catch (error) {
      if (!(error instanceof ErrnoError)) throw error;
      // The descriptor was closed behind our back and its number is another's by now.
      this.drop(entry.fd);
      if (events === PARKED) return;
    }
    try {
      entry.watch = this.#loop.watch(entry.fd, events, entry.handler);
      this.#watched.push(entry);
    } catch (error) {
      if (!(error instanceof ErrnoError)) throw error;
      this.failures++;
    }
  }
}
