/**
 * A card that moves between two event loops, as between two IOThreads.
 *
 * @module
 */

import type { Loop } from "../../../src/loop/event_loop.ts";
import { Errno, ErrnoError } from "../../../src/core/errno.ts";
import type { NetBackend } from "../../../src/backend/net/contract.ts";
import { openNetBackend } from "../../../src/backend/net/open.ts";
import { NET_OPTIONS } from "../../../src/backend/net/options.ts";
import { ResourceBag, type Saved } from "../../../src/os/mod.ts";
import { Card, type Host } from "./card.ts";
import type { OptionTexts } from "../../../src/core/options.ts";

/** Number of times a test has its card move. */
export const MOVES = 20;

/** Takes a back end's state and descriptors, as they arrive on another thread. */
export function give(backend: NetBackend): Saved<unknown> & Disposable {
  const bag = ResourceBag.of();
  const state = structuredClone(backend.save!());
  backend.handOver?.(bag);
  return { state, bag, [Symbol.dispose]: () => bag[Symbol.dispose]() };
}

/** A card with two homes, and what it received in both. */
export class Traveller implements Disposable {
  readonly hosts: readonly [Host, Host];
  readonly values: OptionTexts;
  card: Card;
  moves = 0;

  constructor(hosts: readonly [Host, Host], values: OptionTexts) {
    this.hosts = hosts;
    this.values = values;
    this.card = new Card(hosts[0], this.#open(hosts[0]));
  }

  /** Offset of the register. */
  get host(): Host {
    return this.hosts[this.moves % 2]!;
  }

  /** Moves to the other loop; the old back end is closed before or after the new one is made, by turns. */
  move(): void {
    const old = this.card;
    using given = give(old.backend);
    this.moves++;
    const early = this.moves % 3 === 0;
    if (early) old.backend.close();
    this.card = new Card(this.host, this.#open(this.host, given));
    this.card.received.push(...old.received);
    if (!early) old.backend.close();
  }

  /** Turns its loop until that many frames have come, and takes them. */
  take(count: number): Uint8Array[] {
    this.card.turnUntil(
      `${count} frames`,
      () => this.card.received.length >= count,
    );
    return this.card.received.splice(0);
  }

  /**
   * Tries to move to a loop that cannot watch anything.
   *
   * @returns What was said to that
   */
  moveInVain(): string {
    const old = this.card;
    using given = give(old.backend);
    const { context } = this.hosts[(this.moves + 1) % 2]!;
    const loop: Loop = {
      now: () => context.loop.now(),
      watch: () => {
        throw new ErrnoError(Errno.ENOSPC, "Cannot watch: no room");
      },
      eventFd: (owned) => context.loop.eventFd(owned),
      watchEventFd: (fd, handler) => context.loop.watchEventFd(fd, handler),
      bottomHalf: (callback) => context.loop.bottomHalf(callback),
      timer: (callback) => context.loop.timer(callback),
      poll: (handler) => context.loop.poll(handler),
      beforeClose: (begin) => context.loop.beforeClose(begin),
    };
    let message = "";
    try {
      const options = NET_OPTIONS.parse(this.values);
      openNetBackend(options, { ...context, loop }, given).close();
    } catch (error) {
      message = (error as Error).message;
    }
    this.card = new Card(this.host, this.#open(this.host, given));
    this.card.received.push(...old.received);
    old.backend.close();
    return message;
  }

  #open(host: Host, saved?: Saved<unknown>): NetBackend {
    const options = NET_OPTIONS.parse(this.values);
    return openNetBackend(options, host.context, saved);
  }

  [Symbol.dispose](): void {
    this.card.backend.close();
  }
}
