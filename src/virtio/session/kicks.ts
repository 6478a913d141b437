/**
 * Eventfds by which drivers notify the queues of a device that several threads may serve.
 *
 * @module
 */

import type { ResourceBag } from "../../os/resource_bag.ts";
import type { EventFd, FdWatch, Loop } from "../../loop/loop.ts";

/**
 * One eventfd for each queue that another thread may serve. A client that knows it signals that thread past this one; it
 * lasts as long as the device, on whichever thread, since clients keep it.
 */
export class QueueKicks implements Disposable {
  readonly #loop: Loop;
  readonly #onKick: (index: number) => void;
  readonly #fds = new Map<number, EventFd>();
  readonly #watches = new Map<number, FdWatch>();

  /** @param onKick A queue was notified that this thread serves */
  constructor(loop: Loop, onKick: (index: number) => void) {
    this.#loop = loop;
    this.#onKick = onKick;
  }

  /** The eventfd of a queue; undefined when there is none. */
  fd(index: number): number | undefined {
    return this.#fds.get(index)?.number;
  }

  /** The eventfd of a queue, made if there is none. */
  make(index: number): number {
    const fd = this.#fds.get(index) ?? this.#loop.eventFd();
    this.#fds.set(index, fd);
    return fd.number;
  }

  /** Has the thread look that serves a queue. */
  signal(index: number): void {
    this.#fds.get(index)?.signal();
  }

  /** This thread serves all queues but these. */
  watchAllBut(elsewhere: ReadonlySet<number>): void {
    for (const [index, fd] of this.#fds) {
      if (elsewhere.has(index)) {
        this.#watches.get(index)?.close();
        this.#watches.delete(index);
      } else if (!this.#watches.has(index)) {
        this.#watches.set(
          index,
          this.#loop.watchEventFd(fd.number, () => this.#onKick(index)),
        );
      }
    }
  }

  /** Puts the eventfds into a bag, by number of the queue. */
  save(bag: ResourceBag): void {
    for (const [index, fd] of this.#fds) bag.put(`${index}`, fd.number);
  }

  /** Takes over what {@linkcode save} put, of as many queues. */
  load(bag: ResourceBag, queues: number): void {
    for (let index = 0; index < queues; index++) {
      const name = `${index}`;
      if (!bag.has(name)) continue;
      this.#fds.set(index, this.#loop.eventFd(bag.take(name).release()));
    }
    this.watchAllBut(new Set());
  }

  [Symbol.dispose](): void {
    this.#unwatch();
    for (const fd of this.#fds.values()) fd.close();
    this.#fds.clear();
  }

  #unwatch(): void {
    for (const watch of this.#watches.values()) watch.close();
    this.#watches.clear();
  }
}
