/**
 * A card's side of a frame stream that comes and goes.
 *
 * @module
 */

import {
  type CounterRecord,
  Counters,
  indicesOf,
} from "../../../core/counters.ts";
import { Errno, errnoName } from "../../../core/errno.ts";
import type { BottomHalf, FdWatch, Loop } from "../../../loop/event_loop.ts";
import {
  Epoll,
  type Fd,
  type ResourceBag,
  type Saved,
} from "../../../os/mod.ts";
import type { ScatterGather } from "../../../memory/scatter_gather.ts";
import { PORT_COUNTERS } from "../counters.ts";
import type { NetPeer } from "../contract.ts";
import { FrameStream, type FrameStreamState } from "./frame_stream.ts";
import { PARKED_EVENTS } from "./parked_events.ts";

/** Name of the socket's descriptor. */
const SOCKET = "socket";

const Count = indicesOf(PORT_COUNTERS);

/** A {@linkcode StreamPort} on its way to another thread. */
export interface PortState {
  /** The connection; null when there is none. */
  readonly stream: FrameStreamState | null;
  readonly sendError: number;
  /** Whether a card was there. */
  readonly running: boolean;
  readonly counters: Readonly<Record<string, number>>;
}

/**
 * What the connected back ends have in common: the card on one side, at most one connection on the other.
 *
 * ```text
 *   unplugged --attach--> plugged --the connection ends--> unplugged (onLost is told)
 * ```
 * Without a connection frames are dropped, as on a wire that leads nowhere. Without a card they are read and dropped, so
 * that nobody's queue fills up at the other end.
 */
export class StreamPort implements Disposable {
  readonly #loop: Loop;
  readonly #onLost: (reason: string) => void;
  readonly #headerBytes: number;
  /** More frames wait in our buffer, of which no descriptor tells. */
  readonly #more: BottomHalf;
  #stream: FrameStream | null = null;
  #watch: FdWatch | null = null;
  #peer: NetPeer | null = null;
  #receiving = true;
  /** What waits is to be kept for the first start. */
  #keeping = false;
  /** The card is being told of frames. */
  #serving = false;
  /** A frame was refused: the card waits to be told. */
  #refused = false;
  /** Why the connection is broken, as send() saw it. */
  #sendError = 0;
  /** Without what the connection counts. */
  readonly #counters = new Counters(PORT_COUNTERS);

  /**
   * @param onLost Called when the connection has ended and is closed; never from within a call of the card's
   * @param headerBytes As of {@linkcode FrameStream}
   */
  constructor(
    loop: Loop,
    onLost: (reason: string) => void,
    headerBytes = 0,
  ) {
    this.#loop = loop;
    this.#headerBytes = headerBytes;
    this.#onLost = onLost;
    this.#more = loop.bottomHalf(() => this.#serveMore());
  }

  /** Whether there is a connection. */
  get connected(): boolean {
    return this.#stream !== null;
  }

  /** Takes over a connected socket; there must be none so far. */
  attach(fd: Fd): void {
    const stream = new FrameStream(fd, this.#headerBytes);
    this.#stream = stream;
    this.#sendError = 0;
    this.#counters.add(Count.connections, 1);
    this.#watch = this.#loop.watch(
      fd.number,
      this.#events(),
      (events) => this.#onEvents(events),
    );
    this.#peer?.onLinkChange?.();
  }

  /**
   * Goes on with what a predecessor was and had open; there must have been nothing so far.
   *
   * @throws {SyscallError}
   */
  load({ state, bag }: Saved<PortState>): void {
    if (state.stream !== null) {
      const fd = bag.take(SOCKET);
      const stream = new FrameStream(fd, this.#headerBytes, state.stream);
      const handler = (events: number) => this.#onEvents(events);
      try {
        const events = state.running ? PARKED_EVENTS : Epoll.IN;
        this.#watch = this.#loop.watch(stream.fd, events, handler);
      } catch (error) {
        stream.close();
        throw error;
      }
      this.#stream = stream;
    }
    this.#keeping = state.running;
    this.#sendError = state.sendError;
    this.#counters.restore(state.counters);
    if (state.running) return;
    // The rest of a frame, and an end that was noticed on the other thread and not told yet.
    this.#update();
    this.#more.schedule();
  }

  /** What a successor must know. */
  save(): PortState {
    return {
      stream: this.#stream?.save() ?? null,
      sendError: this.#sendError,
      running: this.#peer !== null || this.#keeping,
      counters: this.#counters.toRecord(),
    };
  }

  /** Puts the socket, if there is one, into a bag; only close may follow. */
  handOver(bag: ResourceBag): void {
    if (this.#stream !== null) bag.put(SOCKET, this.#stream.fd);
  }

  /** Closes the connection, if any, without onLost being told. */
  detach(): void {
    const stream = this.#stream;
    if (stream === null) return;
    this.#counters.add(Count.rxDroppedRunt, stream.runts);
    this.#counters.add(Count.rxBadLengths, stream.badLengths);
    this.#watch!.close();
    this.#watch = null;
    this.#stream = null;
    this.#more.cancel();
    stream.close();
    const refused = this.#refused;
    this.#refused = false;
    // From now on it drops what it waited to send.
    if (refused) this.#peer?.onWritable();
    this.#peer?.onLinkChange?.();
  }

  /** See NetBackend. */
  start(peer: NetPeer): void {
    const stream = this.#stream;
    if (!this.#keeping) stream?.clear();
    this.#keeping = false;
    this.#peer = peer;
    this.#update();
    // Of these no descriptor tells.
    if (stream !== null && (stream.hasFrame || this.#hasEnded(stream))) {
      this.#more.schedule();
    }
  }

  /** See NetBackend. */
  stop(): void {
    this.#peer = null;
    this.#refused = false;
    this.#keeping = false;
    this.#more.cancel();
    const stream = this.#stream;
    if (stream !== null && this.#hasEnded(stream)) this.#more.schedule();
    this.#update();
  }

  /** See NetBackend. */
  send(frame: ScatterGather, more = false): number {
    const stream = this.#stream;
    if (stream === null || this.#sendError !== 0) {
      this.#counters.add(Count.txDropped, 1);
      return -Errno.ENOTCONN;
    }
    const result = stream.send(frame, more);
    if (result >= 0) {
      if (stream.isFull) this.#update();
      return result;
    }
    if (result === -Errno.EAGAIN) {
      this.#refused = true;
      this.#update();
      return result;
    }
    this.#counters.add(Count.txDropped, 1);
    if (result !== -Errno.EMSGSIZE) this.#breakOff(result);
    return result;
  }

  /** See NetBackend. */
  flush(): number {
    const stream = this.#stream;
    if (stream === null || this.#sendError !== 0) return 0;
    const result = stream.flush();
    if (result === -Errno.EAGAIN) this.#update();
    else if (result < 0) this.#breakOff(result);
    // What went into a connection that broke counts as sent, as it does on a wire.
    return 0;
  }

  /** See NetBackend. */
  receive(into: ScatterGather): number {
    const stream = this.#stream;
    if (stream === null) return -Errno.EAGAIN;
    const length = stream.receive(into);
    // The card may call on its own account: the connection must not go away under its feet, and no descriptor tells of
    // the frames that were read along with this one.
    if (!this.#serving && (stream.hasFrame || stream.endReason !== null)) {
      this.#more.schedule();
    }
    return length;
  }

  /** See NetBackend. */
  setReceiving(on: boolean): void {
    this.#receiving = on;
    this.#update();
    if (on && this.#stream?.hasFrame === true) this.#more.schedule();
  }

  /** Counters by name. */
  counters(): CounterRecord<typeof PORT_COUNTERS> {
    const counters = this.#counters.toRecord();
    if (this.#stream === null) return counters;
    counters.connected = 1;
    counters.rxDroppedRunt += this.#stream.runts;
    counters.rxBadLengths += this.#stream.badLengths;
    return counters;
  }

  /** Closes the connection. */
  close(): void {
    this.stop();
    this.detach();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  /** The connection turned out to be broken, in a call of the card's: it ends after that. */
  #breakOff(error: number): void {
    this.#sendError = -error;
    this.#more.schedule();
  }

  /** Whether its end is yet to be told of. */
  #hasEnded(stream: FrameStream): boolean {
    return this.#sendError !== 0 || stream.endReason !== null;
  }

  #events(): number {
    if (this.#keeping) return PARKED_EVENTS;
    const reading = this.#peer === null || this.#receiving;
    const writing = this.#refused || this.#stream?.isFull === true;
    return (reading ? Epoll.IN : 0) | (writing ? Epoll.OUT : 0);
  }

  #update(): void {
    this.#watch?.setEvents(this.#events());
  }

  #onEvents(events: number): void {
    if (this.#keeping) return;
    const stream = this.#stream!;
    if ((events & Epoll.OUT) !== 0) this.#onWritable(stream);
    // The card may have closed us.
    if (this.#stream !== stream) return;
    if ((events & (Epoll.IN | Epoll.HUP | Epoll.ERR)) === 0) return;
    const before = stream.bytesRead;
    stream.onReadable();
    this.#serve(stream);
    if (this.#stream !== stream) return;
    // Cannot be masked, and lasts: a card that does not read must not keep the loop busy.
    const hungUp = (events & (Epoll.HUP | Epoll.ERR)) !== 0;
    if (hungUp && stream.bytesRead === before && !stream.hasFrame) {
      this.#lose("the peer closed it");
    } else if (hungUp && this.#peer !== null && !this.#receiving) {
      this.#lose("the peer closed it");
    }
  }

  #onWritable(stream: FrameStream): void {
    const result = stream.flush();
    if (result === -Errno.EAGAIN) return;
    if (result < 0) return this.#lose(`it broke (${errnoName(-result)})`);
    const refused = this.#refused;
    this.#refused = false;
    this.#update();
    if (refused) this.#peer?.onWritable();
  }

  /** Has the card take what there is, or throws it away. */
  #serve(stream: FrameStream): void {
    this.#serving = true;
    try {
      if (this.#peer === null) stream.discard();
      else if (this.#receiving) this.#peer.onReadable();
    } finally {
      this.#serving = false;
    }
    if (this.#stream !== stream) return;
    if (stream.endReason !== null) this.#lose(stream.endReason);
    else if (this.#peer !== null && this.#receiving && stream.hasFrame) {
      this.#more.schedule();
    }
  }

  #serveMore(): void {
    const stream = this.#stream;
    if (stream === null || this.#keeping) return;
    if (this.#sendError !== 0) {
      return this.#lose(`it broke (${errnoName(this.#sendError)})`);
    }
    if (stream.endReason !== null) return this.#lose(stream.endReason);
    this.#serve(stream);
  }

  #lose(reason: string): void {
    this.detach();
    this.#onLost(reason);
  }
}
