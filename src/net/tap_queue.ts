/**
 * One queue of a TAP interface.
 *
 * @module
 */

import { Errno } from "../errno.ts";
import type { FdWatch, Loop } from "../event_loop.ts";
import {
  Epoll,
  type Fd,
  NativeBuffer,
  readv,
  setTapQueueAttached,
  writev,
} from "../libc/mod.ts";
import { libc } from "../libc/symbols.ts";
import type { ScatterGather } from "../memory/scatter_gather.ts";

/** The kernel queues 500 frames on a TAP unless told otherwise (TUN_READQ_SIZE); more than a few rounds of that is new traffic. */
const DISCARD_MAX = 2048;

/** Who is told what happens on a {@linkcode TapQueue}. */
export interface TapQueueListener {
  /** Frames are waiting. */
  onQueueReadable(pair: number): void;
  /** Sending may succeed again. */
  onQueueWritable(pair: number): void;
  /** The interface has been deleted. */
  onGone(): void;
}

/**
 * A descriptor with frames by readv(2) and writev(2).
 *
 * ```text
 *   attached (idle ⇄ watched) ⇄ detached: the kernel gives it no frames and takes none
 * ```
 */
export class TapQueue {
  /** Which queue pair of the card it serves. */
  readonly pair: number;
  readonly #fd: Fd;
  readonly #loop: Loop;
  readonly #listener: TapQueueListener;
  #watch: FdWatch | null = null;
  #attached = true;
  #receiving = true;
  #awaitsWritable = false;

  /** @param fd Taken over */
  constructor(pair: number, fd: Fd, loop: Loop, listener: TapQueueListener) {
    this.pair = pair;
    this.#fd = fd;
    this.#loop = loop;
    this.#listener = listener;
  }

  /** The descriptor. */
  get fd(): number {
    return this.#fd.number;
  }

  /** Whether the kernel gives and takes frames here. */
  get attached(): boolean {
    return this.#attached;
  }

  /**
   * Attaches or detaches; the queue must not be watched.
   *
   * @returns 0 or −errno
   */
  setAttached(on: boolean): number {
    if (on === this.#attached) return 0;
    const result = setTapQueueAttached(this.fd, on);
    if (result === 0) this.#attached = on;
    return result;
  }

  /** Begins to tell the listener. */
  start(): void {
    // The end of a detached queue is reported as an error of its descriptor.
    if (!this.#attached || this.#watch !== null) return;
    this.#watch = this.#loop.watch(
      this.fd,
      this.#events(),
      (events) => this.#onEvents(events),
    );
  }

  /** Tells nothing any more. */
  stop(): void {
    this.#watch?.close();
    this.#watch = null;
    this.#awaitsWritable = false;
  }

  /** Throws away what came while nobody listened. */
  discardWaiting(): void {
    using scratch = new NativeBuffer(1);
    for (let i = 0; i < DISCARD_MAX; i++) {
      if (libc.read(this.fd, scratch.pointer(), scratch.lengthBytes) < 0) {
        return;
      }
    }
  }

  /** As NetBackend.send. */
  send(frame: ScatterGather): number {
    const n = writev(this.fd, frame.iovec, frame.count);
    if (n !== -Errno.EAGAIN) return n;
    if (this.#watch === null) return -Errno.ENOBUFS;
    this.#awaitsWritable = true;
    this.#watch.setEvents(this.#events());
    return n;
  }

  /** As NetBackend.receive. */
  receive(into: ScatterGather): number {
    return readv(this.fd, into.iovec, into.count);
  }

  /** Pauses or resumes telling of frames. */
  setReceiving(on: boolean): void {
    this.#receiving = on;
    this.#watch?.setEvents(this.#events());
  }

  /** Closes the descriptor. */
  close(): void {
    this.stop();
    this.#fd.close();
  }

  #events(): number {
    return (this.#receiving ? Epoll.IN : 0) |
      (this.#awaitsWritable ? Epoll.OUT : 0);
  }

  #onEvents(events: number): void {
    // Cannot be masked, and lasts.
    if ((events & Epoll.ERR) !== 0) return this.#listener.onGone();
    if ((events & Epoll.OUT) !== 0 && this.#awaitsWritable) {
      this.#awaitsWritable = false;
      this.#watch?.setEvents(this.#events());
      this.#listener.onQueueWritable(this.pair);
    }
    if ((events & Epoll.IN) !== 0 && this.#receiving) {
      this.#listener.onQueueReadable(this.pair);
    }
  }
}
