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
  writev,
} from "../../../os/mod.ts";
import { libc } from "../../../os/symbols.ts";
import type { ScatterGather } from "../../../memory/scatter_gather.ts";
import type { NetPeer } from "../contract.ts";

/** The kernel queues 500 frames on a TAP unless told otherwise (TUN_READQ_SIZE); more than a few rounds of that is new traffic. */
const DISCARD_MAX = 2048;

/**
 * A descriptor with frames by readv(2) and writev(2): one call a frame, after which the buffers are the driver's again.
 * What is sent by the batch goes another way, see TapSender.
 *
 * ```text
 *   attached (idle --start--> watched --stop--> idle) ⇄ detached: the kernel gives it no frames and takes none
 * ```
 */
export class TapQueue {
  /** Number of the queue pair of the card that it serves. */
  readonly pair: number;
  /** True while the kernel gives and takes frames here; changed by whoever tells the kernel. */
  attached: boolean;
  /** Count of failures to receive. */
  rxErrors = 0;
  readonly #fd: Fd;
  readonly #loop: Loop;
  readonly #onGone: () => void;
  #peer: NetPeer | null = null;
  #watch: FdWatch | null = null;
  #receiving = true;
  #awaitsWritable = false;

  /**
   * @param fd Taken over
   * @param onGone Called when the interface has been deleted
   * @param attached As of a queue that was just opened unless told
   */
  constructor(
    pair: number,
    fd: Fd,
    loop: Loop,
    onGone: () => void,
    attached = true,
  ) {
    this.pair = pair;
    this.attached = attached;
    this.#fd = fd;
    this.#loop = loop;
    this.#onGone = onGone;
  }

  /** The descriptor. */
  get fd(): number {
    return this.#fd.number;
  }

  /** Begins to call the card, if it is attached. */
  start(peer: NetPeer): void {
    this.#peer = peer;
    // The end of a detached queue is reported as an error of its descriptor.
    if (!this.attached || this.#watch !== null) return;
    this.#watch = this.#loop.watch(
      this.fd,
      this.#events(),
      (events) => this.#onEvents(events),
    );
  }

  /** Calls nothing any more. */
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
    this.rxErrors++;
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
    if ((events & Epoll.ERR) !== 0) return this.#onGone();
    if ((events & Epoll.OUT) !== 0 && this.#awaitsWritable) {
      this.#awaitsWritable = false;
      this.#watch?.setEvents(this.#events());
      this.#peer?.onWritable(this.pair);
    }
    // The card may have stopped it.
    if (this.#watch === null) return;
    if ((events & Epoll.IN) !== 0 && this.#receiving) {
      this.#peer?.onReadable(this.pair);
    }
  }
}
