/**
 * Messages over a UNIX stream socket: framing, descriptors, and queues that never block the loop.
 *
 * @module
 */

import { Errno, errnoName } from "../../core/errno.ts";
import type { BottomHalf, FdWatch, Loop } from "../../loop/event_loop.ts";
import {
  Epoll,
  type Fd,
  MessageHeader,
  NativeBuffer,
  type ResourceBag,
  type Saved,
} from "../../os/mod.ts";
import type { ConnectionState } from "./client_state.ts";
import {
  HEADER,
  VFIO_USER_F_ERROR,
  VFIO_USER_F_NO_REPLY,
  VFIO_USER_F_TYPE_MASK,
  VFIO_USER_F_TYPE_REPLY,
} from "./defs.ts";
import { FdList } from "./fd_list.ts";
import { SocketWrites } from "../../pci/socket_writes.ts";

/** Number of messages that are handled before others on the loop have their turn. */
export const MESSAGES_PER_TURN = 64;

/**
 * Number of bytes that are received and sent before others have their turn; the message that reaches it is the last. A
 * large access to a register takes as many calls of the device model as it has words.
 */
export const BYTES_PER_TURN = 65_536;

/** Time for which messages are handled before others on the loop have their turn, in milliseconds; a step may take longer. */
const TURN_MS = 2;

const HUNG_UP = "it closed the connection";

/** The room to receive into beside the largest message, in bytes. */
const RECEIVE_SLACK = 65_536;

/** Fate of a message. */
export const Handled = {
  DONE: 0,
  /** It is given again in a later turn of the loop, before any other. */
  UNFINISHED: 1,
  /** It is given again, before any other, after {@linkcode Connection.resume}. */
  WAITING: 2,
} as const;
/** One of {@linkcode Handled}. */
export type Handled = typeof Handled[keyof typeof Handled];

/** Owner of a connection, which is told of its events. */
export interface ConnectionHandler {
  /**
   * A whole message is in {@linkcode Connection.incoming}, its descriptors in {@linkcode Connection.fds};
   * descriptors that are not taken are closed on return. Must not throw.
   *
   * @param at Offset of its header
   * @param sizeBytes Its size, header included
   * @returns What becomes of it
   */
  onMessage(at: number, sizeBytes: number): Handled;
  /** The connection has ended; called once, and nothing is called afterwards. */
  onClose(reason: string): void;
}

interface QueuedFds {
  at: number;
  readonly fds: readonly number[];
}

/**
 * One connected socket.
 *
 * ```text
 *  receiving ⇄ paused (the queue of unsent messages is full: nothing is read)
 *      └───────────┴→ closed, or handed over
 * ```
 *
 * A message to send is composed in {@linkcode Connection.outgoing} at {@linkcode Connection.outAt} and sent with
 * {@linkcode Connection.send}, in one sendmsg. What the socket does not take waits and leaves when it can.
 */
export class Connection {
  /** Received bytes. */
  readonly incoming: DataView<ArrayBuffer>;
  /** Bytes to send. */
  readonly outgoing: DataView<ArrayBuffer>;
  /** The largest message either way, in bytes. */
  readonly maxMessageBytes: number;
  readonly #loop: Loop;
  readonly #fd: Fd;
  readonly #handler: ConnectionHandler;
  readonly #watch: FdWatch;
  readonly #again: BottomHalf;
  readonly #writes: SocketWrites;
  readonly #header = new MessageHeader();
  readonly #receiveBuffer: NativeBuffer;
  readonly #sendBuffer: NativeBuffer;
  readonly #queuedFds: QueuedFds[] = [];
  /** Those of the queued that nobody else owns. */
  readonly #takenFds: Fd[] = [];
  #fds = new FdList();
  #laterFds = new FdList();
  /** Offset of the message that #laterFds belong to, −1 for none. */
  #laterAt = -1;
  /** Unhandled bytes are from #start to #end. */
  #start = 0;
  #end = 0;
  /** True if whole messages may be among them. */
  #backlog = false;
  /** Unsent bytes are from #sendStart to #sendEnd. */
  #sendStart = 0;
  #sendEnd = 0;
  /** Bytes left of the message at #sendStart once a part of it is sent; 0 when it is whole. */
  #sendLeft = 0;
  /** Bytes received and sent in this turn. */
  #turnBytes = 0;
  #turnEndsMs = 0;
  #running = false;
  /** True if the first message waits for {@linkcode Connection.resume}. */
  #waiting = false;
  #closeReason: string | null = null;

  /**
   * @param fd A nonblocking connected stream socket; owned from here on
   * @param maxMessageBytes The largest message, header included
   * @param saved What {@linkcode Connection.save} gave of this socket, to go on from there
   * @param writes Counts what is received and handled
   * @throws {ErrnoError} When there is no memory or the socket cannot be watched; it is then still the caller's
   */
  constructor(
    loop: Loop,
    fd: Fd,
    maxMessageBytes: number,
    handler: ConnectionHandler,
    saved?: Saved<ConnectionState>,
    writes: SocketWrites = new SocketWrites(),
  ) {
    this.#loop = loop;
    this.#fd = fd;
    this.#writes = writes;
    this.#handler = handler;
    this.maxMessageBytes = maxMessageBytes;
    const owned: Disposable[] = [this.#header];
    try {
      this.#receiveBuffer = new NativeBuffer(maxMessageBytes + RECEIVE_SLACK);
      owned.push(this.#receiveBuffer);
      this.#sendBuffer = new NativeBuffer(2 * maxMessageBytes);
      owned.push(this.#sendBuffer);
      this.#watch = loop.watch(
        fd.number,
        saved !== undefined && saved.state.unsent.length > 0
          ? Epoll.IN | Epoll.OUT
          : Epoll.IN,
        (events) => this.#run(events),
      );
    } catch (error) {
      for (const resource of owned) resource[Symbol.dispose]();
      throw error;
    }
    this.incoming = this.#receiveBuffer.view;
    this.outgoing = this.#sendBuffer.view;
    this.#again = loop.bottomHalf(() => this.#run(0));
    writes.begin(fd.number, saved?.state.received.length ?? 0);
    if (saved !== undefined) this.#load(saved);
  }

  #load({ state, bag }: Saved<ConnectionState>): void {
    const { received, fds, later, unsent, sendLeft, queuedFds } = state;
    this.#receiveBuffer.bytes.set(received);
    this.#end = received.length;
    this.#fds.load(fds, bag.at("first"));
    if (later !== null) {
      this.#laterFds.load(later, bag.at("later"));
      this.#laterAt = later.at;
    }
    this.#sendBuffer.bytes.set(unsent);
    this.#sendEnd = unsent.length;
    this.#sendLeft = sendLeft;
    queuedFds.forEach(({ at, count }, i) => {
      const fds = Array.from({ length: count }, (_, j) => {
        const fd = bag.take(`queued.${i}.${j}`);
        this.#takenFds.push(fd);
        return fd.number;
      });
      this.#queuedFds.push({ at, fds });
    });
    if (received.length === 0) return;
    // The socket need not say anything more for whole messages to be handled; and until they are, nothing may be
    // received behind them.
    this.#backlog = true;
    this.#again.schedule();
  }

  /** State that a connection that goes on with this socket must know. Only between two turns, and not on a closed connection. */
  save(bag: ResourceBag): ConnectionState {
    bag.put("socket", this.#fd.number);
    const laterAt = this.#laterAt - this.#start;
    return {
      received: this.#receiveBuffer.bytes.slice(this.#start, this.#end),
      fds: this.#fds.save(bag.at("first")),
      later: this.#laterAt < 0
        ? null
        : { ...this.#laterFds.save(bag.at("later")), at: laterAt },
      unsent: this.#sendBuffer.bytes.slice(this.#sendStart, this.#sendEnd),
      sendLeft: this.#sendLeft,
      queuedFds: this.#queuedFds.map(({ at, fds }, i) => {
        fds.forEach((fd, j) => bag.put(`queued.${i}.${j}`, fd));
        return { at: at - this.#sendStart, count: fds.length };
      }),
    };
  }

  /** Closes the descriptors, and tells nobody: another connection goes on with the socket. */
  leave(): void {
    this.#watch.close();
    this.#again.cancel();
    this.#writes.end();
    this.#fd.close();
    this.#fds.closeAll();
    this.#laterFds.closeAll();
    for (const fd of this.#takenFds.splice(0)) fd.close();
    this.#closeReason = "it goes on elsewhere";
    this.#header.close();
    this.#receiveBuffer.close();
    this.#sendBuffer.close();
  }

  /** Descriptors of the message at hand. */
  get fds(): FdList {
    return this.#fds;
  }

  /** Offset of the next message in {@linkcode Connection.outgoing}; there is room for the largest. */
  get outAt(): number {
    return this.#sendEnd;
  }

  /** True if the connection has ended. */
  get closed(): boolean {
    return this.#closeReason !== null;
  }

  /** True if the messages handled in this turn of the loop have taken their time. */
  get turnOver(): boolean {
    return this.#loop.now() >= this.#turnEndsMs;
  }

  /** Bytes that wait to be sent. */
  get queuedBytes(): number {
    return this.#sendEnd - this.#sendStart;
  }

  /**
   * Sends the message composed at {@linkcode Connection.outAt}, now or when the socket takes it.
   *
   * @param fds Descriptors to go along; they stay the caller's and must stay open while the connection lasts
   */
  send(sizeBytes: number, fds?: readonly number[]): void {
    if (this.closed) return;
    const at = this.#sendEnd;
    this.#sendEnd += sizeBytes;
    this.#turnBytes += sizeBytes;
    if (fds !== undefined && fds.length > 0) this.#queuedFds.push({ at, fds });
    // With messages waiting, this one must wait too, for order.
    if (at === this.#sendStart) this.#flush();
  }

  /** Begins a turn of the loop, whose work is bounded. */
  beginTurn(): void {
    this.#turnEndsMs = this.#loop.now() + TURN_MS;
  }

  /** A message that waits is handled again, in the next turn of the loop. */
  resume(): void {
    if (!this.#waiting || this.closed) return;
    this.#waiting = false;
    this.#watchSocket();
    this.#again.schedule();
  }

  /** Ends the connection; everything received and not handled, and everything not sent, is dropped. */
  close(reason: string): void {
    if (this.closed) return;
    this.#closeReason = reason;
    this.#watch.close();
    this.#again.cancel();
    this.#writes.end();
    this.#fd.close();
    // A handler further up the stack may still look at the buffers.
    if (!this.#running) this.#finish();
  }

  #finish(): void {
    this.#fds.closeAll();
    this.#laterFds.closeAll();
    for (const fd of this.#takenFds.splice(0)) fd.close();
    this.#header.close();
    this.#receiveBuffer.close();
    this.#sendBuffer.close();
    this.#handler.onClose(this.#closeReason!);
  }

  #run(events: number): void {
    if (this.closed) return;
    if (this.#waiting && (events & (Epoll.HUP | Epoll.ERR)) !== 0) {
      return this.close(HUNG_UP);
    }
    this.#running = true;
    try {
      if (this.#sendStart !== this.#sendEnd) this.#flush();
      if (
        (events & (Epoll.IN | Epoll.HUP | Epoll.ERR)) !== 0 && !this.#backlog
      ) this.#receive();
      this.#handleMessages();
      if (!this.closed) {
        this.#writes.settle(this.#backlog ? this.#end - this.#start : 0);
      }
    } finally {
      this.#running = false;
      if (this.closed) this.#finish();
    }
  }

  #receive(): void {
    if (this.closed) return;
    const at = this.#end;
    this.#writes.beginReceive();
    const n = this.#header.receive(
      this.#fd.number,
      this.#receiveBuffer,
      at,
      this.#receiveBuffer.lengthBytes - at,
    );
    this.#writes.endReceive(n > 0 ? n : 0);
    if (n <= 0) {
      if (n === 0) this.close(HUNG_UP);
      else if (n !== -Errno.EAGAIN) {
        this.close(`cannot receive: ${errnoName(-n)}`);
      }
      return;
    }
    this.#end = at + n;
    if (this.#header.fdCount > 0 || this.#header.fdsTruncated) {
      this.#takeFds();
    }
  }

  /**
   * Gives the descriptors just received to the message that starts last in the bytes just received: the kernel
   * ends a receive after the bytes that descriptors were sent with. Where none starts, it is the one in progress.
   */
  #takeFds(): void {
    let last = this.#start;
    for (let at = this.#start; at < this.#end;) {
      last = at;
      if (this.#end - at < HEADER.FLAGS) break;
      const size = this.incoming.getUint32(at + HEADER.MSG_SIZE, true);
      if (size < HEADER.SIZE || size > this.maxMessageBytes) break;
      at += size;
    }
    const list = last === this.#start ? this.#fds : this.#laterFds;
    // Nothing is received while a whole message waits, so only the one at #start can have begun before.
    if (last !== this.#start) this.#laterAt = last;
    if (this.#header.fdsTruncated) list.truncated = true;
    const { fds, fdCount } = this.#header;
    let dropped = false;
    for (let i = 0; i < fdCount; i++) if (!list.add(fds[i]!)) dropped = true;
    if (dropped) this.close("it sent too many file descriptors");
  }

  #handleMessages(): void {
    let budget = MESSAGES_PER_TURN;
    this.#turnBytes = 0;
    this.beginTurn();
    let started = false;
    while (!this.closed) {
      if (this.#laterAt === this.#start && this.#laterAt >= 0) this.#swapFds();
      const available = this.#end - this.#start;
      if (available < HEADER.SIZE) break;
      const at = this.#start;
      const size = this.incoming.getUint32(at + HEADER.MSG_SIZE, true);
      if (size < HEADER.SIZE || size > this.maxMessageBytes) {
        this.#refuse(at, size < HEADER.SIZE ? Errno.EINVAL : Errno.EMSGSIZE);
        return;
      }
      if (available < size) break;
      if (!this.#hasRoom()) {
        this.#backlog = true;
        // Until some of the queue has left.
        this.#watch.setEvents(Epoll.OUT);
        return;
      }
      if (
        budget-- === 0 || this.#turnBytes >= BYTES_PER_TURN ||
        (started && this.turnOver)
      ) return this.#goOnLater();
      started = true;
      this.#turnBytes += size;
      const handled = this.#handler.onMessage(at, size);
      if (handled !== Handled.DONE && !this.closed) {
        if (handled === Handled.UNFINISHED) this.#goOnLater();
        else this.#wait();
        return;
      }
      this.#fds.closeAll();
      this.#start = at + size;
    }
    this.#backlog = false;
    if (!this.closed) this.#makeRoom();
  }

  #goOnLater(): void {
    this.#backlog = true;
    this.#again.schedule();
  }

  #wait(): void {
    this.#backlog = true;
    this.#waiting = true;
    this.#watchSocket();
  }

  #watchSocket(): void {
    const unsent = this.#sendStart === this.#sendEnd ? 0 : Epoll.OUT;
    this.#watch.setEvents(unsent | (this.#waiting ? 0 : Epoll.IN));
  }

  #swapFds(): void {
    const empty = this.#fds;
    this.#fds = this.#laterFds;
    this.#laterFds = empty;
    this.#laterAt = -1;
  }

  /** Moves a partial message to the front when the rest of it may not fit behind. */
  #makeRoom(): void {
    if (this.#start === this.#end) {
      this.#start = 0;
      this.#end = 0;
    } else if (
      this.#start > 0 &&
      this.#receiveBuffer.lengthBytes - this.#start < this.maxMessageBytes
    ) {
      this.#receiveBuffer.bytes.copyWithin(0, this.#start, this.#end);
      this.#end -= this.#start;
      this.#start = 0;
    }
  }

  /** The next message cannot be found: says why, as far as the socket takes it, and ends the connection. */
  #refuse(at: number, errno: number): void {
    const flags = this.incoming.getUint32(at + HEADER.FLAGS, true);
    const isReply = (flags & VFIO_USER_F_TYPE_MASK) === VFIO_USER_F_TYPE_REPLY;
    if ((flags & VFIO_USER_F_NO_REPLY) === 0 && !isReply && this.#hasRoom()) {
      this.sendError(this.incoming, at, errno);
    }
    this.close(
      errno === Errno.EMSGSIZE
        ? `it sent a message above ${this.maxMessageBytes} bytes`
        : "it sent a message shorter than its header",
    );
  }

  /**
   * Sends the header-only reply that says a message failed.
   *
   * @param message Where that is, at `at`
   */
  sendError(message: DataView, at: number, errno: number): void {
    const out = this.outgoing;
    const to = this.outAt;
    out.setUint16(to, message.getUint16(at + HEADER.MSG_ID, true), true);
    out.setUint16(
      to + HEADER.CMD,
      message.getUint16(at + HEADER.CMD, true),
      true,
    );
    out.setUint32(to + HEADER.MSG_SIZE, HEADER.SIZE, true);
    out.setUint32(
      to + HEADER.FLAGS,
      VFIO_USER_F_TYPE_REPLY | VFIO_USER_F_ERROR,
      true,
    );
    out.setUint32(to + HEADER.ERROR_NO, errno, true);
    this.send(HEADER.SIZE);
  }

  /** True if the largest message fits behind what waits to be sent. */
  #hasRoom(): boolean {
    const capacity = this.#sendBuffer.lengthBytes;
    if (capacity - this.#sendEnd >= this.maxMessageBytes) return true;
    const queued = this.#sendEnd - this.#sendStart;
    if (capacity - queued < this.maxMessageBytes) return false;
    const moved = this.#sendStart;
    this.#sendBuffer.bytes.copyWithin(0, moved, this.#sendEnd);
    this.#sendStart = 0;
    this.#sendEnd = queued;
    for (const entry of this.#queuedFds) entry.at -= moved;
    return true;
  }

  /**
   * Sends what waits, one message a call: the kernel then never splits one within its header, which some clients
   * take for a broken stream.
   */
  #flush(): void {
    while (this.#sendStart !== this.#sendEnd) {
      const at = this.#sendStart;
      const whole = this.#sendLeft === 0;
      if (whole) {
        this.#sendLeft = this.outgoing.getUint32(at + HEADER.MSG_SIZE, true);
      }
      const asked = this.#sendLeft;
      const queued = this.#queuedFds[0];
      const fds = queued !== undefined && queued.at === at && whole
        ? queued.fds
        : undefined;
      const n = this.#header.send(
        this.#fd.number,
        this.#sendBuffer,
        at,
        asked,
        fds,
      );
      if (n < 0) {
        if (whole) this.#sendLeft = 0;
        if (n === -Errno.EAGAIN) this.#watchSocket();
        else this.close(`cannot send: ${errnoName(-n)}`);
        return;
      }
      // Descriptors go with the first byte.
      if (fds !== undefined && n > 0) this.#queuedFds.shift();
      this.#sendStart = at + n;
      this.#sendLeft = asked - n;
      if (n < asked) return this.#watchSocket();
    }
    this.#sendStart = 0;
    this.#sendEnd = 0;
    this.#watchSocket();
  }
}
