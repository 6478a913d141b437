/**
 * User-mode networking: libslirp gives the guest a network of its own behind this process's sockets. Frames come and go
 * by a stream socket.
 *
 * libslirp belongs to the thread that opened it, which is the event loop's.
 *
 * @module
 */

import { Errno, ErrnoError } from "../../../core/errno.ts";
import type {
  BottomHalf,
  FdWatch,
  Loop,
  Timer,
} from "../../../loop/event_loop.ts";
import { Epoll, type Fd, NativeBuffer } from "../../../os/mod.ts";
import { Words } from "../../../os/symbols.ts";
import { FrameStream } from "../socket/frame_stream.ts";
import { NetOffload } from "../contract.ts";
import { SlirpCounter } from "../user/counters.ts";
import type { UserNetOptions } from "../user/driver.ts";
import { VIRTIO_NET_HDR } from "../frame/vnet_header.ts";
import { SlirpCallbacks, type SlirpHost } from "./callbacks.ts";
import { buildSlirpConfig } from "./config.ts";
import { addHostForward } from "./forward.ts";
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
import { SlirpPollTable } from "./poll.ts";
import type { Libslirp, SlirpSymbols } from "./symbols.ts";
import { SlirpTimers } from "./timers.ts";

const TIMEOUT_NONE = 0xffff_ffff;
/** What libslirp asks for when nothing it has runs out (TIMEOUT_DEFAULT). */
const TIMEOUT_IDLE_MS = 1000;

/** What a {@linkcode SlirpNetwork} is made with. */
export interface SlirpNetworkParts {
  readonly options: UserNetOptions;
  /** The card's, in bytes. */
  readonly mtu: number;
  /** Open; closed with the network, or when that cannot be made. */
  readonly library: Libslirp;
  readonly loop: Loop;
  /** The card's end of the wire leads here; taken over. */
  readonly socket: Fd;
  readonly page: SlirpPage;
  /** Told of the first thing that the guest does wrong. */
  readonly onGuestError: (message: string) => void;
  /** The card has gone. */
  readonly onEnd: () => void;
}

/** libslirp on an event loop. */
export class SlirpNetwork implements SlirpHost, Disposable {
  readonly #parts: SlirpNetworkParts;
  readonly #symbols: SlirpSymbols;
  readonly #page: SlirpPage;
  readonly #callbacks: SlirpCallbacks;
  readonly #stream: FrameStream;
  readonly #watch: FdWatch;
  /** Arguments of slirp_input: the instance, a frame. */
  readonly #input = new Words(2);
  readonly #timeout = new NativeBuffer(4);
  readonly #timeoutPointer = this.#timeout.pointer();
  readonly #polls: SlirpPollTable;
  readonly #timers: SlirpTimers;
  readonly #service: BottomHalf;
  readonly #pollTimer: Timer;
  #pollDeadlineMs = Infinity;
  #slirp: Deno.PointerValue = null;
  #closed = false;
  /** Answers are nobody's business. */
  #restoring = false;
  #guestErrors = 0;

  /** @throws {ErrnoError} EADDRINUSE and the like when a port cannot be forwarded */
  constructor(parts: SlirpNetworkParts) {
    const { library, loop, options, page } = parts;
    this.#parts = parts;
    this.#symbols = library.symbols;
    this.#page = page;
    this.#service = loop.bottomHalf(() => this.#serve());
    this.#polls = new SlirpPollTable(loop, () => this.#service.schedule());
    this.#timers = new SlirpTimers(loop, (id, opaque) => {
      library.symbols.slirp_handle_timer(this.#slirp, id, opaque);
      this.#service.schedule();
    });
    this.#pollTimer = loop.timer(() => {
      this.#pollDeadlineMs = Infinity;
      this.#service.schedule();
    });
    this.#callbacks = new SlirpCallbacks(this);
    this.#stream = new FrameStream(parts.socket, VIRTIO_NET_HDR.SIZE);
    this.#watch = loop.watch(
      this.#stream.fd,
      Epoll.IN,
      (events) => this.#onCard(events),
    );
    try {
      this.#create();
      this.#restoreLeases();
      for (const forward of options.hostForwards) {
        addHostForward(this.#symbols, this.#slirp, forward);
      }
    } catch (error) {
      this.close();
      throw error;
    }
    this.#service.schedule();
  }

  /** Ends all connections. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    // It calls back: descriptors are unregistered and timers freed.
    if (this.#slirp !== null) this.#symbols.slirp_cleanup(this.#slirp);
    this.#slirp = null;
    this.#service.cancel();
    this.#pollTimer.close();
    this.#timers.close();
    this.#polls.close();
    this.#callbacks.close();
    this.#watch.close();
    this.#stream.close();
    this.#timeout.close();
    this.#parts.library.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  // What libslirp calls.

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

  clockNs(): number {
    // Half a millisecond more, so that no rounding of so large a number leads to the millisecond before.
    return (this.#timers.clockMs() + 0.5) * 1e6;
  }

  newTimer(id: number, opaque: Deno.PointerValue): number {
    return this.#timers.create(id, opaque);
  }

  freeTimer(handle: number): void {
    this.#timers.free(handle);
  }

  armTimer(handle: number, expireMs: number): void {
    this.#timers.arm(handle, expireMs);
  }

  onFdChange(fd: number): void {
    this.#polls.drop(fd);
  }

  onNotify(): void {
    this.#service.schedule();
  }

  addPoll(fd: number, events: number): number {
    return this.#polls.add(fd, events);
  }

  revents(index: number): number {
    return this.#polls.revents(index);
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

  #onCard(events: number): void {
    const stream = this.#stream;
    if ((events & Epoll.OUT) !== 0) this.#service.schedule();
    if ((events & (Epoll.IN | Epoll.HUP | Epoll.ERR)) === 0) return;
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
    if (stream.endReason !== null) return this.#parts.onEnd();
    this.#service.schedule();
  }

  /** Puts in the frame whose address is there. */
  #putIn(lengthBytes: number): void {
    const { at } = this.#input;
    // SAFETY: the instance is alive until close(), the frame is in memory of ours that nobody else writes to.
    this.#symbols.slirp_input(at[0]!, at[1]!, lengthBytes);
  }

  /** Everything libslirp has to do after any activity, once a turn. */
  #serve(): void {
    const symbols = this.#symbols;
    // Also sends what has waited for an answer to ARP, so it runs even when nothing is ready.
    symbols.slirp_pollfds_poll(
      this.#slirp,
      0,
      this.#callbacks.getRevents,
      null,
    );
    const sent = this.#stream.flush();
    if (sent < 0 && sent !== -Errno.EAGAIN) return this.#parts.onEnd();
    const full = this.#stream.isFull;
    this.#watch.setEvents(Epoll.IN | (full ? Epoll.OUT : 0));
    // While the card takes nothing, what comes for it waits in the sockets.
    this.#polls.begin(!full);
    const timeout = this.#timeout;
    timeout.view.setUint32(0, TIMEOUT_NONE, true);
    symbols.slirp_pollfds_fill(
      this.#slirp,
      this.#timeoutPointer,
      this.#callbacks.addPoll,
      null,
    );
    this.#polls.apply();
    this.#page.set(SlirpCounter.sockets, this.#polls.watchedCount);
    this.#page.set(SlirpCounter.pollErrors, this.#polls.failures);
    this.#armPollTimer(timeout.view.getUint32(0, true));
  }

  /** A timer that is due no later than asked is left alone: too early costs a look, arming costs a system call. */
  #armPollTimer(timeoutMs: number): void {
    if (timeoutMs >= TIMEOUT_IDLE_MS) return;
    const deadlineMs = this.#timers.clockMs() + timeoutMs;
    if (this.#pollDeadlineMs <= deadlineMs) return;
    this.#pollDeadlineMs = deadlineMs;
    this.#pollTimer.arm(timeoutMs);
  }
}
