/**
 * User-mode networking: libslirp gives the guest a network of its own behind this process's sockets. Frames come and go
 * by a stream socket.
 *
 * @module
 */

import { Errno, ErrnoError } from "../../../core/errno.ts";
import { type Fd, NativeBuffer } from "../../../os/mod.ts";
import { Words } from "../../../os/symbols.ts";
import { FrameStream } from "../socket/frame_stream.ts";
import { NetOffload } from "../contract.ts";
import type { UserNetOptions } from "../user/driver.ts";
import { SlirpCounter } from "./counters.ts";
import { VIRTIO_NET_HDR } from "../frame/vnet_header.ts";
import { SlirpCallbacks, type SlirpHost } from "./callbacks.ts";
import { addHostForward, buildSlirpConfig } from "./config.ts";
import {
  LEASE_REQUEST_BYTES,
  putLeaseRequest,
  recordLease,
} from "./lease_frames.ts";
import {
  completeChecksum,
  joinSegments,
  PAYLOAD_AT,
  writeHeader,
} from "./offloads.ts";
import type { SlirpPage } from "./page.ts";
import { SlirpPoll } from "./poll.ts";
import { type Libslirp, SLIRP_POLL, type SlirpSymbols } from "./symbols.ts";

const TIMEOUT_NONE = 0xffff_ffff;
/** Timeout that libslirp asks for when nothing it has runs out (TIMEOUT_DEFAULT). */
const TIMEOUT_IDLE_MS = 1000;

/** Parts of a {@linkcode SlirpNetwork}. */
export interface SlirpNetworkParts {
  readonly options: UserNetOptions;
  /** The card's, in bytes. */
  readonly mtu: number;
  /** Open; closed with the network, or when that cannot be made. */
  readonly library: Libslirp;
  /** The card's end of the wire leads here; taken over. */
  readonly socket: Fd;
  readonly page: SlirpPage;
  /** Told of the first thing that the guest does wrong. */
  readonly onGuestError: (message: string) => void;
}

/** libslirp, which belongs to the thread that opened it, and is turned there until the card has gone. */
export class SlirpNetwork implements SlirpHost, Disposable {
  readonly #parts: SlirpNetworkParts;
  readonly #symbols: SlirpSymbols;
  readonly #page: SlirpPage;
  readonly #callbacks: SlirpCallbacks;
  readonly #stream: FrameStream;
  /** Arguments of slirp_input: the instance, a frame. */
  readonly #input = new Words(2);
  readonly #timeout = new NativeBuffer(4);
  readonly #timeoutPointer = this.#timeout.pointer();
  readonly #poll = new SlirpPoll();
  #slirp: Deno.PointerValue = null;
  #closed = false;
  /** True while answers are for nobody. */
  #restoring = false;
  #guestErrors = 0;

  /** @throws {ErrnoError} EADDRINUSE and the like when a port cannot be forwarded */
  constructor(parts: SlirpNetworkParts) {
    this.#parts = parts;
    this.#symbols = parts.library.symbols;
    this.#page = parts.page;
    this.#callbacks = new SlirpCallbacks(this, this.#poll);
    this.#stream = new FrameStream(parts.socket, VIRTIO_NET_HDR.SIZE);
    try {
      this.#create();
      this.#restoreLeases();
      for (const forward of parts.options.hostForwards) {
        addHostForward(this.#symbols, this.#slirp, forward);
      }
    } catch (error) {
      this.close();
      throw error;
    }
  }

  /** True once the card has gone. */
  get ended(): boolean {
    return this.#stream.endReason !== null;
  }

  /**
   * Waits until there is something to do, and does it.
   *
   * @param maxMs The longest to wait
   * @returns True when something came, from either side
   */
  turn(maxMs = Infinity): boolean {
    const symbols = this.#symbols;
    const poll = this.#poll;
    poll.begin(this.#stream.fd, this.#stream.isFull);
    const { view } = this.#timeout;
    view.setUint32(0, TIMEOUT_NONE, true);
    symbols.slirp_pollfds_fill(
      this.#slirp,
      this.#timeoutPointer,
      this.#callbacks.addPoll,
      null,
    );
    this.#page.set(SlirpCounter.sockets, poll.count - 1);
    this.#page.set(SlirpCounter.pollErrors, poll.failures);
    const timeoutMs = view.getUint32(0, true);
    const isReady = poll.wait(
      Math.min(timeoutMs < TIMEOUT_IDLE_MS ? timeoutMs : Infinity, maxMs),
    );
    for (let due = poll.takeDue(); due !== null; due = poll.takeDue()) {
      symbols.slirp_handle_timer(this.#slirp, due.id, due.opaque);
    }
    if ((poll.revents(0) & ~SLIRP_POLL.OUT) !== 0) this.#takeFrames();
    // Also sends what has waited for an answer to ARP, so it runs even when nothing is ready.
    symbols.slirp_pollfds_poll(
      this.#slirp,
      0,
      this.#callbacks.getRevents,
      null,
    );
    this.#stream.flush();
    return isReady;
  }

  /** Ends all connections. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    // It calls back: its timers are freed.
    if (this.#slirp !== null) this.#symbols.slirp_cleanup(this.#slirp);
    this.#slirp = null;
    this.#callbacks.close();
    this.#poll.close();
    this.#stream.close();
    this.#timeout.close();
    this.#parts.library.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  onFrame(hva: number, lengthBytes: number): void {
    if (this.#restoring) return;
    const stream = this.#stream;
    const page = this.#page;
    const at = stream.put(hva, lengthBytes, VIRTIO_NET_HDR.SIZE);
    if (at < 0) return page.add(SlirpCounter.rxDropped, 1);
    const { offloads } = page;
    const { beforeLast, unsent } = stream;
    const length = VIRTIO_NET_HDR.SIZE + lengthBytes;
    writeHeader(unsent, at, offloads);
    if (
      (offloads & NetOffload.TSO4) !== 0 && beforeLast >= 0 &&
      joinSegments(unsent, beforeLast, at, length)
    ) stream.join(PAYLOAD_AT);
    else recordLease(page, unsent, at + VIRTIO_NET_HDR.SIZE, lengthBytes);
  }

  onGuestError(message: string): void {
    this.#page.add(SlirpCounter.guestErrors, 1);
    if (this.#guestErrors++ === 0) this.#parts.onGuestError(message);
  }

  #create(): void {
    const { options, mtu } = this.#parts;
    const config = buildSlirpConfig(options, mtu);
    try {
      this.#slirp = this.#symbols.slirp_new(
        config.pointer(),
        this.#callbacks.table,
        null,
      );
    } finally {
      config.close();
    }
    if (this.#slirp === null) {
      throw new ErrnoError(
        Errno.EINVAL,
        "Cannot start user-mode networking: libslirp refuses the options",
      );
    }
    this.#input.set(0, Number(Deno.UnsafePointer.value(this.#slirp)));
  }

  /** A guest whose network has died keeps its address: it asked for it before, and is made to ask again. */
  #restoreLeases(): void {
    const leases = this.#page.leases();
    if (leases.length === 0) return;
    using frame = new NativeBuffer(LEASE_REQUEST_BYTES);
    this.#restoring = true;
    for (const lease of leases) {
      putLeaseRequest(frame.bytes, lease);
      this.#input.set(1, frame.hva);
      this.#putIn(LEASE_REQUEST_BYTES);
    }
    this.#restoring = false;
  }

  #takeFrames(): void {
    const stream = this.#stream;
    stream.onReadable();
    const headerBytes = VIRTIO_NET_HDR.SIZE;
    let length = stream.take(this.#input, 1, headerBytes);
    while (length >= 0) {
      completeChecksum(stream.received, stream.taken, length);
      this.#putIn(length - headerBytes);
      // What is not here yet has another turn: libslirp's own sockets have theirs between.
      length = stream.hasFrame
        ? stream.take(this.#input, 1, headerBytes)
        : -Errno.EAGAIN;
    }
  }

  /** Puts in the frame whose address is there. */
  #putIn(lengthBytes: number): void {
    const { at } = this.#input;
    // SAFETY: the instance is alive until close(), the frame is in memory of ours that nobody else writes to.
    this.#symbols.slirp_input(at[0]!, at[1]!, lengthBytes);
  }
}
