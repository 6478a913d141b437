/**
 * A card plugged into a frame stream that comes and goes.
 *
 * @module
 */

import {
  type CounterRecord,
  Counters,
  indicesOf,
} from "../../../core/counters.ts";
import { Errno } from "../../../core/errno.ts";
import type { Log } from "../../../core/log.ts";
import type { BottomHalf, FdWatch, Loop } from "../../../loop/event_loop.ts";
import {
  Epoll,
  type Fd,
  type ResourceBag,
  type Saved,
} from "../../../os/mod.ts";
import type { ScatterGather } from "../../../memory/scatter_gather.ts";
import { STREAM_COUNTERS } from "../counters.ts";
import type {
  NetBackend,
  NetContext,
  NetOffloads,
  NetPeer,
} from "../contract.ts";
import { VIRTIO_NET_HDR } from "../frame/vnet_header.ts";
import type { DeviceState, StateForm } from "../../../core/state_form.ts";
import type { StateReader } from "../../../core/state_reader.ts";
import { KEEPING_EVENTS, netForm, Ownership } from "../state.ts";
import { FrameStream } from "./frame_stream.ts";

/** Name of the socket's descriptor. */
const SOCKET = "socket";

const Count = indicesOf(STREAM_COUNTERS);

/** Maker of the connections of a {@linkcode StreamBackend}, one at a time. */
export interface Connector {
  /** For people; as of {@linkcode NetBackend}. */
  readonly description: string;
  /** Frames travel behind virtio-net headers, with these offloads; without any when absent. */
  readonly offloads?: NetOffloads;
  /** See {@linkcode NetBackend.setOffloads}. */
  setOffloads?(give: number): void;
  /**
   * Makes the first connection, or begins to.
   *
   * @throws {import("../../../core/errno.ts").ErrnoError} With the remedy, when there can be none
   */
  begin(): void;
  /** The connection has ended and is closed; makes another where that can be. */
  onLost(reason: string): void;
  /** Counters of its own. */
  counters?(): Readonly<Record<string, number>>;
  /** State for a successor, plain data. */
  save(): unknown;
  /** Puts what it has open into a bag; only close may follow. */
  handOver(bag: ResourceBag): void;
  /** Ends what it does; the connection is closed by then. */
  close(): void;
}

/** Surroundings of a {@linkcode Connector}. */
export interface ConnectorContext {
  readonly loop: Loop;
  readonly log: Log;
  /** Of what outlasts descriptors. */
  readonly ownership: Ownership;
  /** Takes over a connected socket; there must be none so far. */
  readonly attach: (fd: Fd) => void;
  /** Closes the connection, if any, of which the connector learned elsewhere that it has ended. */
  readonly detach: () => void;
}

/**
 * A network behind a stream socket: the card on one side, at most one connection on the other.
 *
 * ```text
 *   unplugged --attach--> plugged --the connection ends--> unplugged (the connector is told)
 * ```
 * Without a connection frames are dropped, as on a wire that leads nowhere. Without a card they are read and dropped, so
 * that nobody's queue fills up at the other end.
 */
export class StreamBackend implements NetBackend {
  readonly hasVnetHeader: boolean;
  readonly offloads?: NetOffloads;
  readonly #form: StateForm<object>;
  readonly #loop: Loop;
  readonly #connector: Connector;
  readonly #ownership: Ownership;
  /** More frames wait in our buffer, of which no descriptor tells. */
  readonly #more: BottomHalf;
  #stream: FrameStream | null = null;
  #watch: FdWatch | null = null;
  #peer: NetPeer | null = null;
  #receiving = true;
  /** True while what waits is kept for the first start. */
  #keeping = false;
  /** A frame was refused: the card waits to be told. */
  #refused = false;
  /** Without what the connection counts. */
  readonly #counters = new Counters(STREAM_COUNTERS);

  /**
   * @param kind Marks its state
   * @param connect Makes its connector, out of what a predecessor's was and had open if there was one
   * @param saved State and descriptors of a predecessor, if there was one
   * @throws {import("../../../core/errno.ts").ErrnoError} With the remedy, when there can be no connection
   */
  constructor(
    kind: string,
    context: NetContext,
    connect: (context: ConnectorContext, saved?: Saved<unknown>) => Connector,
    saved?: Saved<unknown>,
  ) {
    this.#form = netForm(kind);
    const state = saved && this.#form.read(saved.state);
    const { loop, log } = context;
    this.#loop = loop;
    this.#more = loop.bottomHalf(() => this.#serveMore());
    const ownership = new Ownership(loop, saved === undefined);
    this.#ownership = ownership;
    this.#connector = connect(
      {
        ...{ loop, log, ownership },
        attach: (fd) => this.#attach(fd),
        detach: () => this.#detach(),
      },
      state &&
        { state: state.value("connector"), bag: saved!.bag.at("connector") },
    );
    const { offloads } = this.#connector;
    this.hasVnetHeader = offloads !== undefined;
    if (offloads !== undefined) this.offloads = offloads;
    try {
      if (state === undefined) this.#connector.begin();
      else this.#load(state, saved!.bag);
    } catch (error) {
      this.close();
      throw error;
    }
  }

  get description(): string {
    return this.#connector.description;
  }

  get linkUp(): boolean {
    return this.#stream !== null;
  }

  setOffloads(give: number): number {
    this.#connector.setOffloads?.(give);
    return 0;
  }

  start(peer: NetPeer): void {
    this.#ownership.take();
    const stream = this.#stream;
    if (!this.#keeping) stream?.clear();
    this.#keeping = false;
    this.#peer = peer;
    this.#update();
    // Of these no descriptor tells.
    if (stream !== null && this.#hasMore(stream)) this.#more.schedule();
  }

  stop(): void {
    this.#peer = null;
    this.#refused = false;
    this.#keeping = false;
    this.#more.cancel();
    const reason = this.#stream?.endReason ?? null;
    if (reason !== null) this.#more.schedule();
    this.#update();
  }

  send(frame: ScatterGather, _pair?: number, more: boolean = false): number {
    const stream = this.#stream;
    if (stream === null || stream.endReason !== null) {
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
    // The connection turned out to be broken: it ends when the card has returned.
    if (stream.endReason !== null) this.#more.schedule();
    return result;
  }

  flush(): number {
    const stream = this.#stream;
    if (stream === null || stream.endReason !== null) return 0;
    const result = stream.flush();
    if (result === -Errno.EAGAIN) this.#update();
    else if (result < 0) this.#more.schedule();
    // What went into a connection that broke counts as sent, as it does on a wire.
    return 0;
  }

  receive(into: ScatterGather): number {
    const stream = this.#stream;
    if (stream === null) return -Errno.EAGAIN;
    const length = stream.receive(into);
    // No descriptor tells of the frames that were read along with this one, and the connection must not go away under the
    // card's feet.
    if (this.#hasMore(stream)) this.#more.schedule();
    return length;
  }

  setReceiving(on: boolean): void {
    this.#receiving = on;
    this.#update();
    if (on && this.#stream?.hasFrame === true) this.#more.schedule();
  }

  counters(): Readonly<Record<string, number>> {
    const connected = this.#stream === null ? 0 : 1;
    return { ...this.#counted(), connected, ...this.#connector.counters?.() };
  }

  save(): DeviceState {
    return this.#form.write({
      stream: this.#stream?.save() ?? null,
      running: this.#peer !== null || this.#keeping,
      counters: this.#counted(),
      connector: this.#connector.save(),
    });
  }

  handOver(bag: ResourceBag): void {
    if (this.#stream !== null) bag.put(SOCKET, this.#stream.fd);
    this.#connector.handOver(bag.at("connector"));
    this.#ownership.giveAway();
  }

  close(): void {
    this.stop();
    this.#detach();
    this.#connector.close();
  }

  #attach(fd: Fd): void {
    this.#plug(fd);
    this.#counters.add(Count.connections, 1);
    this.#peer?.onLinkChange?.();
  }

  #load(state: StateReader, bag: ResourceBag): void {
    this.#keeping = state.flag("running");
    this.#counters.restore(state.value("counters"));
    state.partOrNull("stream", (it) => this.#plug(bag.take(SOCKET), it));
    // The rest of a frame, and an end that the predecessor noticed and had not told yet.
    if (!this.#keeping) this.#more.schedule();
  }

  #plug(fd: Fd, state?: StateReader): void {
    const headerBytes = this.hasVnetHeader ? VIRTIO_NET_HDR.SIZE : 0;
    using undo = new DisposableStack();
    undo.use(fd);
    const stream = undo.use(new FrameStream(fd, headerBytes, state));
    this.#stream = stream;
    undo.defer(() => this.#stream = null);
    this.#watch = this.#loop.watch(
      stream.fd,
      this.#events(),
      (events) => this.#onEvents(events),
    );
    undo.move();
  }

  /** Closes the connection, if any; the connector is not told. */
  #detach(): void {
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

  /** True when it has frames, or an end, of which no descriptor tells. */
  #hasMore(stream: FrameStream): boolean {
    return stream.hasFrame || stream.endReason !== null;
  }

  /** With what this connection counts, if there is one. */
  #counted(): CounterRecord<typeof STREAM_COUNTERS> {
    const counters = this.#counters.toRecord();
    counters.rxDroppedRunt += this.#stream?.runts ?? 0;
    counters.rxBadLengths += this.#stream?.badLengths ?? 0;
    return counters;
  }

  #events(): number {
    if (this.#keeping) return KEEPING_EVENTS;
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
    const isEmpty = stream.bytesRead === before && !stream.hasFrame;
    const isPaused = this.#peer !== null && !this.#receiving;
    if (hungUp && (isEmpty || isPaused)) this.#lose("the peer closed it");
  }

  #onWritable(stream: FrameStream): void {
    const result = stream.flush();
    if (result === -Errno.EAGAIN) return;
    if (result < 0) return this.#lose(stream.endReason!);
    const refused = this.#refused;
    this.#refused = false;
    this.#update();
    if (refused) this.#peer?.onWritable();
  }

  /** Has the card take what there is, or throws it away. */
  #serve(stream: FrameStream): void {
    if (this.#peer === null) stream.discard();
    else if (this.#receiving) this.#peer.onReadable();
    if (this.#stream !== stream) return;
    if (stream.endReason !== null) this.#lose(stream.endReason);
    else if (this.#peer !== null && this.#receiving && stream.hasFrame) {
      this.#more.schedule();
    } else this.#more.cancel();
  }

  #serveMore(): void {
    const stream = this.#stream;
    if (stream === null || this.#keeping) return;
    if (stream.endReason !== null) return this.#lose(stream.endReason);
    this.#serve(stream);
  }

  #lose(reason: string): void {
    this.#detach();
    this.#connector.onLost(reason);
  }
}
