/**
 * User-mode networking: libslirp gives the guest a network of its own behind this process's sockets.
 *
 * libslirp belongs to the thread that opened it, which is the card's event loop.
 *
 * @module
 */

import { Errno, ErrnoError } from "../errno.ts";
import type { BottomHalf, Timer } from "../event_loop.ts";
import { NativeBuffer } from "../libc/mod.ts";
import { libc } from "../libc/symbols.ts";
import type { Log } from "../log.ts";
import type { ScatterGather } from "../memory/scatter_gather.ts";
import type { NetBackend, NetContext, NetPeer } from "./backend.ts";
import { FrameRing } from "./frame_ring.ts";
import type { UserNetOptions } from "./option_table.ts";
import { SlirpCallbacks, type SlirpHost } from "./slirp_callbacks.ts";
import { buildSlirpConfig } from "./slirp_config.ts";
import { addHostForward } from "./slirp_forward.ts";
import { type GivenSlirp, SLIRP_KIND } from "./slirp_given.ts";
import { SlirpPollTable } from "./slirp_poll.ts";
import {
  IF_MTU_MAX,
  IF_MTU_MIN,
  type Libslirp,
  type SlirpSymbols,
} from "./slirp_symbols.ts";
import { SlirpTimers } from "./slirp_timers.ts";

/** Ethernet and VLAN header. */
const HEADER_MAX = 18;
/** The longest frame a guest may send: the largest IP packet there is. */
const TX_FRAME_MAX = 65535 + HEADER_MAX;
/** Memory for frames that wait; at an MTU of 1500 that is 2730 frames. */
const RING_BYTES = 4 << 20;
const TIMEOUT_NONE = 0xffff_ffff;
/** What libslirp asks for when nothing it has runs out (TIMEOUT_DEFAULT). */
const TIMEOUT_IDLE_MS = 1000;

/** A card's connection to libslirp. */
export class SlirpBackend implements NetBackend, SlirpHost {
  readonly description: string;
  readonly hasVnetHeader = false;
  readonly #library: Libslirp;
  readonly #symbols: SlirpSymbols;
  readonly #log: Log;
  readonly #callbacks: SlirpCallbacks;
  readonly #ring: FrameRing;
  readonly #txFrame = new NativeBuffer(TX_FRAME_MAX);
  readonly #txPointer = this.#txFrame.pointer();
  /** Arguments of memcpy. */
  readonly #copy = new BigUint64Array(3);
  readonly #copyHalves = new Uint32Array(this.#copy.buffer);
  readonly #timeout = new NativeBuffer(4);
  readonly #timeoutPointer = this.#timeout.pointer();
  readonly #polls: SlirpPollTable;
  readonly #timers: SlirpTimers;
  readonly #service: BottomHalf;
  readonly #pollTimer: Timer;
  #pollDeadlineMs = Infinity;
  #slirp: Deno.PointerValue = null;
  #closed = false;
  #peer: NetPeer | null = null;
  #receiving = true;
  #throttled = false;
  /** What waits is to be kept for the first start. */
  #keeping = false;
  #txErrors = 0;
  #rxDropped = 0;
  #guestErrors = 0;

  /**
   * @param library Open; closed with this object, or when this throws
   * @param given What a predecessor gave, if there was one; still good when this throws
   * @throws {ErrnoError} EADDRINUSE and the like when a port cannot be forwarded, EINVAL for the MTU
   */
  constructor(
    options: UserNetOptions,
    context: NetContext,
    library: Libslirp,
    given: GivenSlirp | null = null,
  ) {
    const { loop, mtu } = context;
    this.description = `user (libslirp ${library.version})`;
    this.#library = library;
    this.#symbols = library.symbols;
    this.#log = context.log;
    const frameMax = Math.min(mtu, IF_MTU_MAX) + HEADER_MAX;
    this.#ring = new FrameRing(frameMax, Math.floor(RING_BYTES / frameMax));
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
    try {
      if (given === null) {
        this.#create(options, mtu);
        for (const forward of options.hostForwards) {
          addHostForward(this.#symbols, this.#slirp, forward);
        }
      } else this.#inherit(given);
    } catch (error) {
      this.close();
      throw error;
    }
    if (!this.#keeping) this.#service.schedule();
  }

  start(peer: NetPeer): void {
    this.#peer = peer;
    this.#resume();
  }

  stop(): void {
    this.#peer = null;
    this.#ring.clear();
    this.#resume();
  }

  send(frame: ScatterGather): number {
    const length = frame.lengthBytes;
    if (length > TX_FRAME_MAX) {
      this.#txErrors++;
      return -Errno.EMSGSIZE;
    }
    // Copied even when it is one segment: libslirp reads parts of a frame twice, and the guest could change it between.
    this.#gather(frame);
    this.#symbols.slirp_input(this.#slirp, this.#txPointer, length);
    this.#service.schedule();
    return 0;
  }

  receive(into: ScatterGather): number {
    const length = this.#ring.pop(into);
    if (length < 0 && length !== -Errno.EAGAIN) this.#rxDropped++;
    if (this.#throttled && this.#ring.count <= this.#ring.capacity / 4) {
      this.#throttled = false;
      this.#service.schedule();
    }
    return length;
  }

  setReceiving(on: boolean): void {
    this.#receiving = on;
    if (on && this.#ring.count > 0) this.#service.schedule();
  }

  counters(): Readonly<Record<string, number>> {
    return {
      rxDropped: this.#rxDropped,
      txErrors: this.#txErrors,
      guestErrors: this.#guestErrors,
      pollErrors: this.#polls.failures,
      sockets: this.#polls.watchedCount,
    };
  }

  handOver(): unknown {
    // Nothing has changed when this throws.
    this.#library.pin();
    const instance = Number(Deno.UnsafePointer.value(this.#slirp));
    // From here on no call of libslirp comes from this thread, and so none of its callbacks.
    this.#slirp = null;
    this.#service.cancel();
    this.#pollTimer.close();
    this.#polls.close();
    return {
      version: 1,
      kind: SLIRP_KIND,
      library: this.#library.name,
      instance,
      callbacks: this.#callbacks.handOver(),
      timers: this.#timers.handOver(),
      frames: this.#ring.snapshot(),
      running: this.#peer !== null || this.#keeping,
      txErrors: this.#txErrors,
      rxDropped: this.#rxDropped,
      guestErrors: this.#guestErrors,
      pollErrors: this.#polls.failures,
    } satisfies GivenSlirp;
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.stop();
    // It calls back: descriptors are unregistered and timers freed.
    if (this.#slirp !== null) this.#symbols.slirp_cleanup(this.#slirp);
    this.#slirp = null;
    this.#service.cancel();
    this.#pollTimer.close();
    this.#timers.close();
    this.#polls.close();
    this.#callbacks.close();
    this.#ring.close();
    this.#txFrame.close();
    this.#timeout.close();
    this.#library.close();
  }

  // What libslirp calls.

  onFrame(hva: number, lengthBytes: number): void {
    const drops = this.#peer === null && !this.#keeping;
    if (drops || this.#ring.push(hva, lengthBytes) < 0) {
      this.#rxDropped++;
    }
  }

  onGuestError(message: string): void {
    if (this.#guestErrors++ === 0) {
      this.#log.warn(`The guest's network traffic is wrong: ${message.trim()}`);
    }
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

  #create(options: UserNetOptions, mtu: number): void {
    if (mtu < IF_MTU_MIN || mtu > IF_MTU_MAX) {
      throw new ErrnoError(
        Errno.EINVAL,
        `Cannot use an MTU of ${mtu} with net=user: ${IF_MTU_MIN} to ${IF_MTU_MAX} are possible`,
      );
    }
    const config = buildSlirpConfig(options, mtu);
    try {
      this.#slirp = this.#symbols.slirp_new(
        config.pointer(),
        this.#callbacks.install(),
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
  }

  /** SAFETY: see {@linkcode GivenSlirp}. */
  #inherit(given: GivenSlirp): void {
    this.#ring.restore(given.frames);
    this.#timers.inherit(given.timers);
    this.#keeping = given.running;
    this.#txErrors = given.txErrors;
    this.#rxDropped = given.rxDropped;
    this.#guestErrors = given.guestErrors;
    this.#polls.failures = given.pollErrors;
    // Last, and it cannot fail: up to here the instance is the predecessor's, whom close() does no harm.
    this.#callbacks.install(given.callbacks);
    this.#slirp = Deno.UnsafePointer.create(BigInt(given.instance));
  }

  /** Has libslirp go on, if it waited for the first start. */
  #resume(): void {
    if (!this.#keeping) return;
    this.#keeping = false;
    this.#service.schedule();
  }

  #gather(frame: ScatterGather): void {
    const { words } = frame;
    const halves = this.#copyHalves;
    const copy = this.#copy;
    let at = this.#txFrame.hva;
    for (let i = 0; i < frame.count; i++) {
      const part = frame.length(i);
      halves[0] = at >>> 0;
      halves[1] = Math.floor(at / 0x1_0000_0000);
      // The segment's address as the list has it: as a number it would be an object on its way here.
      halves[2] = words[i * 4]!;
      halves[3] = words[i * 4 + 1]!;
      halves[4] = part;
      // SAFETY: translate() has checked the segment, and send() that all of them together fit into the buffer.
      libc.memcpy(copy[0]!, copy[1]!, copy[2]!);
      at += part;
    }
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
    this.#tell();
    // The card may have closed us.
    if (this.#closed) return;
    this.#throttled ||= this.#ring.count > this.#ring.capacity * 3 / 4;
    this.#polls.begin(!this.#throttled);
    const timeout = this.#timeout;
    timeout.view.setUint32(0, TIMEOUT_NONE, true);
    symbols.slirp_pollfds_fill(
      this.#slirp,
      this.#timeoutPointer,
      this.#callbacks.addPoll,
      null,
    );
    this.#polls.apply();
    this.#armPollTimer(timeout.view.getUint32(0, true));
  }

  #tell(): void {
    const peer = this.#peer;
    if (peer === null || this.#ring.count === 0 || !this.#receiving) return;
    peer.onReadable();
    if (this.#ring.count > 0 && this.#receiving) this.#service.schedule();
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
