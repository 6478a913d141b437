/**
 * One queue of a TAP interface.
 *
 * @module
 */

import { Errno } from "../../../core/errno.ts";
import type { FdWatch, Loop } from "../../../loop/event_loop.ts";
import {
  Epoll,
  type Fd,
  NativeBuffer,
  readv,
  setTapQueueAttached,
  writev,
} from "../../../os/mod.ts";
import { libc } from "../../../os/symbols.ts";
import type { ScatterGather } from "../../../memory/scatter_gather.ts";

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
 * A descriptor with frames by readv(2) and writev(2): one call a frame, after which the buffers are the driver's again.
 * What is sent by the batch goes another way, see TapSender.
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
  readonly #borrowed: boolean;
  #watch: FdWatch | null = null;
  #attached: boolean;
  #receiving = true;
  #awaitsWritable = false;
  #rxErrors = 0;

  /**
   * @param fd Taken over
   * @param state.attached Whether the kernel gives and takes frames there; it does with a queue that was just opened
   * @param state.borrowed Whether someone else attaches and detaches it, and here that is only known
   */
  constructor(
    pair: number,
    fd: Fd,
    loop: Loop,
    listener: TapQueueListener,
    state: { readonly attached?: boolean; readonly borrowed?: boolean } = {},
  ) {
    this.pair = pair;
    this.#attached = state.attached ?? true;
    this.#borrowed = state.borrowed ?? false;
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

  /** How often receiving failed. */
  get rxErrors(): number {
    return this.#rxErrors;
  }

  /**
   * Attaches or detaches; the queue must not be watched.
   *
   * @returns 0 or −errno
   */
  setAttached(on: boolean): number {
    if (on === this.#attached) return 0;
    const result = this.#borrowed ? 0 : setTapQueueAttached(this.fd, on);
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

  /**
   * As NetBackend.receive.
   *
   * io_uring would read full batches of 32 at 1.14 to 1.56 times the rate (`deno task bench tap`). But each frame of a
   * batch takes buffers for the largest one beforehand: with GUEST_TSO and MRG_RXBUF, which Linux negotiates, 64 KiB
   * each, where one by one the next frame has what the last one left. And large frames need few calls.
   */
  receive(into: ScatterGather): number {
    const n = readv(this.fd, into.iovec, into.count);
    if (n >= 0 || n === -Errno.EAGAIN) return n;
    this.#rxErrors++;
    // What it was is lost or will come again; either way this is no time to go on.
    return -Errno.EAGAIN;
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

/** How often receiving failed, on all of the queues. */
export function receiveErrors(
  queues: readonly (TapQueue | undefined)[],
): number {
  return queues.reduce((sum, queue) => sum + (queue?.rxErrors ?? 0), 0);
}
