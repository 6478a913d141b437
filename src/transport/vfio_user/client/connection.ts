/**
 * Messages over one socket, from the client's side: ids, replies, timeouts, and requests that the server sends.
 *
 * @module
 */

import { Errno, ErrnoError } from "../../../core/errno.ts";
import {
  closeFd,
  Fd,
  MessageHeader,
  NativeBuffer,
  Poll,
  pollFd,
  SCM_MAX_FD,
} from "../../../os/mod.ts";
import {
  commandName,
  HEADER,
  VFIO_USER_F_ERROR,
  VFIO_USER_F_NO_REPLY,
  VFIO_USER_F_TYPE_COMMAND,
  VFIO_USER_F_TYPE_MASK,
  VFIO_USER_F_TYPE_REPLY,
} from "../defs.ts";

/** A reply, copied out of the connection. */
export interface Reply {
  /** 0, or the error number of an error reply (EIO where it names none). */
  readonly errno: number;
  /** Bytes after the header. */
  readonly payload: Uint8Array<ArrayBuffer>;
  /** Descriptors that came with it; the caller closes them. */
  readonly fds: readonly Fd[];
}

/** Settings of a connection. */
export interface ConnectionOptions {
  /** The longest to wait for a reply; QEMU's 5000 unless told. */
  readonly timeoutMs?: number;
  /** The largest message to accept, in bytes; 1 MiB of data and its structures unless told. */
  readonly maxMessageBytes?: number;
  /** Fail, as QEMU does, when a message header arrives in pieces. */
  readonly strictHeader?: boolean;
}

/** Answers a command of the server. */
export interface CommandHandler {
  /**
   * Handles one command; `message` is good during the call.
   *
   * @param reply Where the payload of the reply goes, at {@linkcode HEADER}.SIZE
   * @returns Length of the reply's payload, or −errno for an error reply
   */
  handle(command: number, message: DataView, reply: NativeBuffer): number;
}

const DEFAULT_TIMEOUT_MS = 5000;
const DEFAULT_MAX_MESSAGE_BYTES = 1_048_576 + 4096;

// What is known of a message id.
const FREE = 0;
const AWAITED = 1;
const KEPT = 2;
const COUNTED = 3;
const ABANDONED = 4;

/**
 * A blocking connection to a server.
 *
 * The payload of a request is written to {@linkcode out} behind the header, the reply is read from
 * {@linkcode in}; both are reused by every message, so a call allocates nothing.
 */
export class ClientConnection implements Disposable {
  readonly #socket: Fd;
  readonly #header = new MessageHeader();
  readonly #handler: CommandHandler;
  readonly #timeoutMs: number;
  readonly #maxMessageBytes: number;
  readonly #strictHeader: boolean;
  readonly #states = new Uint8Array(65_536);
  readonly #commands = new Uint8Array(65_536);
  readonly #kept = new Map<number, Reply>();
  readonly #fds = new Int32Array(SCM_MAX_FD);
  readonly #in: NativeBuffer;
  readonly #answer: NativeBuffer;
  /** Commands of the server that arrived while a message of ours was half sent. */
  readonly #deferred: Uint8Array<ArrayBuffer>[] = [];
  #out = new NativeBuffer(4096);
  #fdCount = 0;
  #inLength = 0;
  #lastId = 0xffff;
  #inFlight = 0;
  #countedErrors = 0;
  #whole = false;
  #sending = false;
  #awaiting = false;
  #deadlineMs = 0;

  /**
   * Takes a socket over.
   *
   * @param socket A connected, nonblocking stream socket; the connection owns it from now on
   * @param handler Answers what the server asks
   */
  constructor(
    socket: Fd,
    handler: CommandHandler,
    options: ConnectionOptions = {},
  ) {
    this.#socket = socket;
    this.#handler = handler;
    this.#timeoutMs = options.timeoutMs ?? DEFAULT_TIMEOUT_MS;
    this.#maxMessageBytes = options.maxMessageBytes ??
      DEFAULT_MAX_MESSAGE_BYTES;
    this.#strictHeader = options.strictHeader ?? false;
    this.#in = new NativeBuffer(this.#maxMessageBytes);
    this.#answer = new NativeBuffer(this.#maxMessageBytes);
  }

  /** The socket's number, −1 once closed. */
  get fd(): number {
    return this.#socket.number;
  }

  /** Requests sent by {@linkcode submit} and {@linkcode count} whose replies have not arrived. */
  get inFlight(): number {
    return this.#inFlight;
  }

  /** The message to send: payloads go to {@linkcode HEADER}.SIZE. */
  get out(): DataView<ArrayBuffer> {
    return this.#out.view;
  }

  /** The message that {@linkcode exchange} received, header included; good until the next call. */
  get in(): DataView<ArrayBuffer> {
    return this.#in.view;
  }

  /** Length of the received payload in bytes. */
  get replyBytes(): number {
    return this.#inLength - HEADER.SIZE;
  }

  /** Makes room for a payload in {@linkcode out}, whose contents are lost if it grows. */
  reserve(payloadBytes: number): void {
    if (HEADER.SIZE + payloadBytes <= this.#out.lengthBytes) return;
    this.#out.close();
    this.#out = new NativeBuffer(HEADER.SIZE + payloadBytes);
  }

  /**
   * Sends the request whose payload is in {@linkcode out} and waits for its reply.
   *
   * @returns 0 with the reply in {@linkcode in}, or −errno of an error reply
   * @throws {ErrnoError} ETIMEDOUT, ECONNRESET, EPIPE, or EPROTO for a reply that breaks the protocol
   */
  exchange(
    command: number,
    payloadBytes: number,
    fds?: ArrayLike<number>,
  ): number {
    const id = this.#send(command, payloadBytes, AWAITED, fds);
    this.#awaiting = true;
    try {
      let got: number;
      do got = this.#receiveMessage(); while (got !== id);
    } catch (error) {
      this.#states[id] = ABANDONED;
      throw this.#explain(error, command);
    } finally {
      this.#awaiting = false;
    }
    return this.#in.view.getUint32(HEADER.FLAGS, true) & VFIO_USER_F_ERROR
      ? -this.#replyErrno()
      : 0;
  }

  /** Sends the request whose payload is in {@linkcode out} with the no-reply bit. */
  post(command: number, payloadBytes: number, fds?: ArrayLike<number>): void {
    this.#send(command, payloadBytes, FREE, fds);
  }

  /**
   * Sends the request in {@linkcode out} without waiting.
   *
   * @returns What {@linkcode collect} wants to know
   */
  submit(
    command: number,
    payloadBytes: number,
    fds?: ArrayLike<number>,
  ): number {
    return this.#send(command, payloadBytes, KEPT, fds);
  }

  /** Waits for the reply to a submitted request. */
  collect(id: number): Reply {
    this.#startClock();
    for (;;) {
      const reply = this.#kept.get(id);
      if (reply !== undefined) {
        this.#kept.delete(id);
        return reply;
      }
      if (this.#states[id] !== KEPT) {
        throw new ErrnoError(
          Errno.ENOENT,
          `Cannot collect reply ${id}: no such request is in flight`,
        );
      }
      this.#receiveMessage();
    }
  }

  /** Sends the request in {@linkcode out} without waiting; its reply will only be counted. */
  count(command: number, payloadBytes: number): void {
    this.#send(command, payloadBytes, COUNTED);
  }

  /**
   * Waits until at most `remaining` requests are in flight.
   *
   * @returns How many counted requests failed since the last call
   */
  settle(remaining = 0): number {
    this.#startClock();
    while (this.#inFlight > remaining) this.#receiveMessage();
    const errors = this.#countedErrors;
    this.#countedErrors = 0;
    return errors;
  }

  /** Answers commands of the server until none is waiting. */
  serve(): void {
    this.#startClock();
    this.#answerDeferred();
    while (pollFd(this.#socket.number, Poll.IN, 0) !== 0) {
      this.#startClock();
      this.#receiveMessage();
    }
  }

  /**
   * Sends bytes as they are, to misbehave.
   *
   * @throws {ErrnoError} EPIPE when the server has gone
   */
  sendRaw(bytes: Uint8Array, fds?: ArrayLike<number>): void {
    this.#startClock();
    this.reserve(bytes.length);
    this.#out.bytes.set(bytes);
    this.#sendAll(this.#out, bytes.length, fds);
  }

  /** Receives the next whole message, whatever it is, and gives it as it came, header included. */
  receiveRaw(): Reply {
    this.#startClock();
    this.#fillMessage();
    const message = this.#in.bytes.slice(0, this.#inLength);
    return { errno: 0, payload: message, fds: this.takeFds() };
  }

  /** True if the server has closed the connection, waiting for that if need be. */
  waitForClose(): boolean {
    this.#startClock();
    try {
      for (;;) this.#fillMessage();
    } catch (error) {
      if (!(error instanceof ErrnoError)) throw error;
      return error.errno === Errno.ECONNRESET;
    }
  }

  /** The descriptors of the last reply; the caller owns them. */
  takeFds(): Fd[] {
    const fds: Fd[] = [];
    for (let i = 0; i < this.#fdCount; i++) fds.push(new Fd(this.#fds[i]!));
    this.#fdCount = 0;
    return fds;
  }

  /** The payload of the last reply, copied. */
  takePayload(): Uint8Array<ArrayBuffer> {
    return this.#in.bytes.slice(HEADER.SIZE, this.#inLength);
  }

  /** Closes the socket and everything that was received and not taken. */
  close(): void {
    this.#whole = true;
    this.#dropInput();
    for (const reply of this.#kept.values()) {
      for (const fd of reply.fds) fd.close();
    }
    this.#kept.clear();
    this.#socket.close();
    this.#header.close();
    this.#in.close();
    this.#answer.close();
    this.#out.close();
  }

  /** Closes it. */
  [Symbol.dispose](): void {
    this.close();
  }

  #send(
    command: number,
    payloadBytes: number,
    state: number,
    fds?: ArrayLike<number>,
  ): number {
    this.#startClock();
    const id = this.#nextId();
    const view = this.#out.view;
    view.setUint16(HEADER.MSG_ID, id, true);
    view.setUint16(HEADER.CMD, command, true);
    view.setUint32(HEADER.MSG_SIZE, HEADER.SIZE + payloadBytes, true);
    view.setUint32(
      HEADER.FLAGS,
      state === FREE
        ? VFIO_USER_F_TYPE_COMMAND | VFIO_USER_F_NO_REPLY
        : VFIO_USER_F_TYPE_COMMAND,
      true,
    );
    view.setUint32(HEADER.ERROR_NO, 0, true);
    this.#sendAll(this.#out, HEADER.SIZE + payloadBytes, fds);
    this.#states[id] = state;
    this.#commands[id] = command;
    if (state === KEPT || state === COUNTED) this.#inFlight++;
    return id;
  }

  #nextId(): number {
    for (let tried = 0; tried < 65_536; tried++) {
      this.#lastId = (this.#lastId + 1) & 0xffff;
      if (this.#states[this.#lastId] === FREE) return this.#lastId;
    }
    throw new ErrnoError(
      Errno.ENOBUFS,
      "Cannot send a request: 65536 are in flight",
    );
  }

  #sendAll(
    buffer: NativeBuffer,
    lengthBytes: number,
    fds?: ArrayLike<number>,
  ): void {
    let sent = 0;
    while (sent < lengthBytes) {
      const n = this.#header.send(
        this.#socket.number,
        buffer,
        sent,
        lengthBytes - sent,
        sent === 0 ? fds : undefined,
      );
      if (n >= 0) sent += n;
      else if (n === -Errno.EAGAIN) this.#waitToSend();
      else throw new ErrnoError(-n, "Cannot send: the connection failed");
    }
    if (this.#deferred.length > 0) this.#answerDeferred();
  }

  #answerDeferred(): void {
    while (this.#deferred.length > 0 && !this.#sending) {
      const message = this.#deferred.shift()!;
      this.#handleCommand(new DataView(message.buffer));
    }
  }

  /** Receives while the socket takes nothing: a server whose replies are not read may read no requests. */
  #waitToSend(): void {
    // What we send while a reply is awaited is an answer; the awaited reply must stay in the socket until then.
    const ready = this.#wait(
      this.#awaiting ? Poll.OUT : Poll.IN | Poll.OUT,
    );
    if ((ready & Poll.IN) === 0) return;
    this.#sending = true;
    try {
      this.#receiveMessage();
    } finally {
      this.#sending = false;
    }
  }

  /**
   * Receives one message and deals with it, unless it is the reply that {@linkcode exchange} awaits.
   *
   * @returns The id of an awaited reply, which stays in `in`; −1 for anything else
   */
  #receiveMessage(): number {
    this.#fillMessage();
    const view = this.#in.view;
    const type = view.getUint32(HEADER.FLAGS, true) & VFIO_USER_F_TYPE_MASK;
    if (type === VFIO_USER_F_TYPE_REPLY) return this.#acceptReply();
    if (type !== VFIO_USER_F_TYPE_COMMAND) {
      throw new ErrnoError(
        Errno.EPROTO,
        `Cannot take a message: its type is ${type}`,
      );
    }
    if (this.#sending) {
      this.#deferred.push(this.#in.bytes.slice(0, this.#inLength));
    } else {
      this.#handleCommand(
        new DataView(this.#in.bytes.buffer, 0, this.#inLength),
      );
    }
    return -1;
  }

  #acceptReply(): number {
    const view = this.#in.view;
    const id = view.getUint16(HEADER.MSG_ID, true);
    const command = view.getUint16(HEADER.CMD, true);
    const state = this.#states[id]!;
    if (state === FREE) {
      throw new ErrnoError(
        Errno.EPROTO,
        `Cannot take a reply: nothing was asked under id ${id}`,
      );
    }
    if (command !== this.#commands[id]) {
      throw new ErrnoError(
        Errno.EPROTO,
        `Cannot take a reply to ${commandName(this.#commands[id]!)}: it says ${
          commandName(command)
        }`,
      );
    }
    this.#states[id] = FREE;
    if (state === AWAITED) return id;
    const errno = this.#replyErrno();
    if (state === KEPT) {
      this.#inFlight--;
      this.#kept.set(id, {
        errno,
        payload: this.takePayload(),
        fds: this.takeFds(),
      });
    } else if (state === COUNTED) {
      this.#inFlight--;
      if (errno !== 0) this.#countedErrors++;
    }
    return -1;
  }

  #replyErrno(): number {
    const view = this.#in.view;
    if ((view.getUint32(HEADER.FLAGS, true) & VFIO_USER_F_ERROR) === 0) {
      return 0;
    }
    return view.getUint32(HEADER.ERROR_NO, true) || Errno.EIO;
  }

  #handleCommand(message: DataView): void {
    const command = message.getUint16(HEADER.CMD, true);
    const id = message.getUint16(HEADER.MSG_ID, true);
    const flags = message.getUint32(HEADER.FLAGS, true);
    const result = this.#handler.handle(command, message, this.#answer);
    if ((flags & VFIO_USER_F_NO_REPLY) !== 0) return;
    const view = this.#answer.view;
    const size = HEADER.SIZE + Math.max(result, 0);
    view.setUint16(HEADER.MSG_ID, id, true);
    view.setUint16(HEADER.CMD, command, true);
    view.setUint32(HEADER.MSG_SIZE, size, true);
    view.setUint32(
      HEADER.FLAGS,
      VFIO_USER_F_TYPE_REPLY | (result < 0 ? VFIO_USER_F_ERROR : 0),
      true,
    );
    view.setUint32(HEADER.ERROR_NO, result < 0 ? -result : 0, true);
    this.#sendAll(this.#answer, size);
  }

  /** Reads like QEMU: a header with the descriptors, then the rest. */
  #fillMessage(): void {
    this.#dropInput();
    this.#fill(HEADER.SIZE, this.#strictHeader);
    const size = this.#in.view.getUint32(HEADER.MSG_SIZE, true);
    if (size < HEADER.SIZE || size > this.#maxMessageBytes) {
      throw new ErrnoError(
        Errno.EPROTO,
        `Cannot take a message of ${size} bytes: ${HEADER.SIZE} to ${this.#maxMessageBytes} are allowed`,
      );
    }
    if (size > HEADER.SIZE) this.#fill(size, false);
    this.#whole = true;
  }

  #fill(target: number, atOnce: boolean): void {
    while (this.#inLength < target) {
      const n = this.#header.receive(
        this.#socket.number,
        this.#in,
        this.#inLength,
        target - this.#inLength,
      );
      if (n > 0) {
        this.#inLength += n;
        this.#keepFds();
        if (atOnce && this.#inLength < target) {
          throw new ErrnoError(
            Errno.EPROTO,
            `Cannot take a message: ${n} bytes of its header came alone`,
          );
        }
      } else if (n === -Errno.EAGAIN) {
        this.#wait(Poll.IN);
      } else {
        throw new ErrnoError(
          n === 0 ? Errno.ECONNRESET : -n,
          "Cannot receive: the server closed the connection",
        );
      }
    }
  }

  #keepFds(): void {
    const header = this.#header;
    for (let i = 0; i < header.fdCount; i++) {
      if (this.#fdCount < SCM_MAX_FD) {
        this.#fds[this.#fdCount++] = header.fds[i]!;
      } else {
        closeFd(header.fds[i]!);
      }
    }
    header.fdCount = 0;
  }

  /** Drops the last message; one that is half received stays, for its rest will come. */
  #dropInput(): void {
    if (!this.#whole) return;
    this.#whole = false;
    for (let i = 0; i < this.#fdCount; i++) closeFd(this.#fds[i]!);
    this.#fdCount = 0;
    this.#inLength = 0;
  }

  #startClock(): void {
    this.#deadlineMs = performance.now() + this.#timeoutMs;
  }

  #wait(events: number): number {
    const left = this.#deadlineMs - performance.now();
    const ready = left <= 0 ? 0 : pollFd(this.#socket.number, events, left);
    if (ready === 0) {
      throw new ErrnoError(
        Errno.ETIMEDOUT,
        `Cannot wait longer: nothing came within ${this.#timeoutMs} ms`,
      );
    }
    return ready;
  }

  #explain(error: unknown, command: number): unknown {
    if (!(error instanceof ErrnoError)) return error;
    const why = error.errno === Errno.ETIMEDOUT
      ? `no reply within ${this.#timeoutMs} ms`
      : error.errno === Errno.ECONNRESET
      ? "the server closed the connection"
      : error.message;
    return new ErrnoError(
      error.errno,
      `Cannot complete ${commandName(command)}: ${why}`,
      { cause: error },
    );
  }
}
