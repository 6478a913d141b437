/**
 * Eventfds by which drivers notify the queues of a device that several threads may serve.
 *
 * @module
 */

import type { EventFd, FdWatch, Loop } from "../../loop/loop.ts";

/** There is no eventfd for a queue. */
const NONE = -1;

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

  /** Gives all eventfds away, by queue; −1 for a queue without. */
  release(): number[] {
    this.#unwatch();
    const fds: number[] = [];
    for (const [index, fd] of this.#fds) fds[index] = fd.release();
    this.#fds.clear();
    return Array.from(fds, (fd) => fd ?? NONE);
  }

  /** Takes over what {@linkcode release} gave. */
  adopt(fds: readonly number[]): void {
    fds.forEach((fd, index) => {
      if (fd !== NONE) this.#fds.set(index, this.#loop.eventFd(fd));
    });
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
