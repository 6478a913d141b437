/**
 * The connection of an NBD client: made at start-up, made again when it is lost, passed on when the client moves.
 *
 * @module
 */

import type { Counters } from "../../../core/counters.ts";
import { Errno, ErrnoError, errnoName } from "../../../core/errno.ts";
import type { Log } from "../../../core/log.ts";
import type { FdWatch, Loop, Timer } from "../../../loop/event_loop.ts";
import {
  connectUnix,
  Epoll,
  type Fd,
  type InetSockaddr,
  MessageHeader,
  NativeBuffer,
  pollFd,
  resolveTcp,
  type ResourceBag,
  type Saved,
  socketError,
  startTcp,
} from "../../../os/mod.ts";
import type { StateReader } from "../../../core/state_reader.ts";
import type { BlockContext, BlockInfo } from "../contract.ts";
import { readInfo } from "../state.ts";
import { type NbdBlockOptions, NbdCounter } from "./driver.ts";
import { type NbdExport, NbdHandshake, nbdInfo } from "./handshake.ts";
import { type NbdLocation, parseNbdUri } from "./uri.ts";

/** Longest time from the connection to the end of the negotiation. */
const HANDSHAKE_TIMEOUT_MS = 10_000;
const RETRY_FIRST_MS = 50;
const RETRY_MAX_MS = 5000;
const BUFFER_BYTES = 16384;
const SOCKET = "nbd";

/** Server to connect to: by its path, or by one of several addresses. */
interface NbdTarget {
  /** For people. */
  readonly text: string;
  readonly location: NbdLocation;
  /** Empty for a UNIX socket. */
  readonly addresses: readonly InetSockaddr[];
}

/**
 * Finds the server.
 *
 * @param known Its addresses; looked up when absent, which blocks where a name must be asked for
 * @throws {ErrnoError} ENXIO when the name has no address
 */
function findServer(uri: string, known?: readonly InetSockaddr[]): NbdTarget {
  const location = parseNbdUri(uri);
  const { path, host, port, exportName } = location;
  const name = exportName === "" ? "" : ` export "${exportName}"`;
  if (path !== null) {
    return { text: `${path}${name}`, location, addresses: [] };
  }
  const shown = host.includes(":") ? `[${host}]` : host;
  return {
    text: `${shown}:${port}${name}`,
    location,
    addresses: known ?? resolveTcp(host, port),
  };
}

/** One attempt to connect: a socket, and the negotiation over it. */
class Attempt implements Disposable {
  #socket: Fd | null;
  readonly #handshake: NbdHandshake;
  readonly #header = new MessageHeader();
  readonly #buffer = new NativeBuffer(BUFFER_BYTES);
  #pending: Uint8Array = new Uint8Array(0);
  #connected = false;

  /**
   * Begins to connect.
   *
   * @param attempt Counts attempts: each takes the next address
   * @throws {ErrnoError}
   */
  constructor({ location, addresses }: NbdTarget, attempt: number) {
    const { path, exportName } = location;
    this.#handshake = new NbdHandshake(exportName);
    this.#socket = path === null
      ? startTcp(addresses[attempt % addresses.length]!)
      : connectUnix(path);
  }

  get fd(): number {
    return this.#socket!.number;
  }

  /**
   * Goes on as far as it can without waiting.
   *
   * @param ready True when the socket was found ready: until it is writable it may not be connected
   * @returns The export that was agreed upon, or what to wait for: bits of {@linkcode Epoll}, which poll(2) has too
   * @throws {ErrnoError}
   */
  step(ready: boolean): NbdExport | number {
    if (!this.#connected) {
      if (!ready) return Epoll.OUT;
      const errno = socketError(this.fd);
      if (errno !== 0) throw connectError(errno);
      this.#connected = true;
    }
    for (;;) {
      if (!this.#send()) return Epoll.OUT;
      if (this.#handshake.result !== null) return this.#handshake.result;
      if (!this.#receive()) return Epoll.IN;
    }
  }

  /** Gives the socket away, which is nonblocking. */
  release(): Fd {
    const socket = this.#socket!;
    this.#socket = null;
    return socket;
  }

  [Symbol.dispose](): void {
    this.#socket?.close();
    this.#header.close();
    this.#buffer.close();
  }

  #send(): boolean {
    const more = this.#handshake.takeOutput();
    if (more.length > 0) {
      this.#pending = Uint8Array.from([...this.#pending, ...more]);
    }
    while (this.#pending.length > 0) {
      const part = this.#pending.subarray(0, BUFFER_BYTES);
      this.#buffer.bytes.set(part);
      const sent = this.#header.send(this.fd, this.#buffer, 0, part.length);
      if (sent === -Errno.EAGAIN) return false;
      if (sent < 0) throw connectError(-sent);
      this.#pending = this.#pending.subarray(sent);
    }
    return true;
  }

  #receive(): boolean {
    const got = this.#header.receive(this.fd, this.#buffer, 0, BUFFER_BYTES);
    this.#header.closeFds();
    if (got === -Errno.EAGAIN) return false;
    if (got < 0) throw connectError(-got);
    if (got === 0) {
      throw new ErrnoError(
        Errno.ECONNRESET,
        "Cannot use the NBD server: it closed the connection during the negotiation",
      );
    }
    this.#handshake.feed(this.#buffer.bytes.slice(0, got));
    return true;
  }
}

function connectError(errno: number): ErrnoError {
  return new ErrnoError(errno, "Cannot connect");
}

function timedOut(): ErrnoError {
  return new ErrnoError(
    Errno.ETIMEDOUT,
    "Cannot use the NBD server: it does not answer",
  );
}

function explained(error: ErrnoError, target: NbdTarget): ErrnoError {
  const why = explain(error.errno, target);
  const { message } = error;
  // Only what the operating system said needs a remedy; the negotiation's errors have theirs.
  if (message.startsWith("Cannot use the NBD server")) return error;
  return new ErrnoError(
    error.errno,
    `Cannot reach the NBD server at ${target.text}: ${why}`,
    { cause: error },
  );
}

function explain(errno: number, target: NbdTarget): string {
  const { path } = target.location;
  switch (errno) {
    case Errno.ENOENT:
      return "there is no such socket, start the server first (qemu-nbd -k PATH, nbdkit -U PATH)";
    case Errno.ECONNREFUSED:
      return path === null
        ? "nobody listens there, start the server first or give another port"
        : "nobody listens on that socket, start the server again";
    case Errno.EACCES:
    case Errno.EPERM:
      return path === null
        ? "a firewall of this host does not permit it"
        : `not permitted, see "ls -l ${path}" and run as a user who may write to it`;
    case Errno.ENOTSOCK:
      return "that is no socket";
    case Errno.ETIMEDOUT:
      return "no answer, see whether the address is right and no firewall is in between";
    case Errno.ENETUNREACH:
    case Errno.EHOSTUNREACH:
      return "there is no way to that address, see whether it is right and the network is up";
    case Errno.EAGAIN:
      return "too many wait for it already, see what it is doing";
    default:
      return `${
        errnoName(errno)
      }, see whether it runs and the address is right`;
  }
}

/** Connects and negotiates, blocking. */
function connectOnce(target: NbdTarget, number: number): [Fd, NbdExport] {
  const deadline = performance.now() + HANDSHAKE_TIMEOUT_MS;
  using attempt = new Attempt(target, number);
  for (let ready = false;; ready = true) {
    const next = attempt.step(ready);
    if (typeof next !== "number") return [attempt.release(), next];
    const left = deadline - performance.now();
    if (left <= 0 || pollFd(attempt.fd, next, left) === 0) throw timedOut();
  }
}

function connectAny(target: NbdTarget): [Fd, NbdExport] {
  for (let attempt = 1;; attempt++) {
    try {
      return connectOnce(target, attempt - 1);
    } catch (error) {
      if (!(error instanceof ErrnoError)) throw error;
      if (attempt >= target.addresses.length) throw explained(error, target);
    }
  }
}

/** Outcome of a negotiation, as far as it is needed after it. */
export type NbdAgreement = Pick<NbdExport, "flags" | "structuredReplies">;

/** Owner of a link, which is told of what happens and counts it. */
export interface NbdLinkClient {
  readonly counters: Counters;
  /** The socket is ready, with bits of {@linkcode Epoll}. */
  readonly onEvents: (events: number) => void;
  /** There is a connection again. */
  readonly onConnected: (resized: boolean) => void;
}

/**
 * A connection to an NBD server.
 *
 * ```text
 *   connected --lost--> waiting --timer--> connecting --> connected
 *                          ↑───────failed──────┘
 * ```
 */
export class NbdLink {
  /** For people. */
  readonly description: string;
  readonly #options: NbdBlockOptions;
  readonly #loop: Loop;
  readonly #log: Log;
  readonly #client: NbdLinkClient;
  readonly #target: NbdTarget;
  /** Ends the wait for the next attempt, or the attempt. */
  readonly #timer: Timer;
  #found: NbdAgreement;
  #info: BlockInfo;
  #fd: Fd | null;
  #attempt: Attempt | null = null;
  #attempts = 0;
  /** Of the connection, or of the attempt. */
  #watch: FdWatch | null = null;
  #retryMs = RETRY_FIRST_MS;
  /** True from when the loss of the connection was told until its end was. */
  #lost: boolean;

  /**
   * Connects to one address after the other, blocking until a server has answered; or goes on with what there was.
   *
   * @param saved From {@linkcode NbdLink.save}, and a connection if there was one
   * @throws {ErrnoError} With one line that says what is wrong, and the remedy
   */
  constructor(
    options: NbdBlockOptions,
    { loop, log }: BlockContext,
    client: NbdLinkClient,
    saved?: Saved<StateReader>,
  ) {
    this.#options = options;
    this.#loop = loop;
    this.#log = log;
    this.#client = client;
    if (saved === undefined) {
      this.#target = findServer(options.uri);
      const [fd, found] = connectAny(this.#target);
      using undo = new DisposableStack();
      undo.use(fd);
      this.#info = nbdInfo(found, options, log);
      undo.move();
      this.#found = found;
      this.#fd = fd;
    } else {
      const { state, bag } = saved;
      const addresses = state.parts("addresses", (it) => it.bytes("bytes"));
      this.#target = findServer(options.uri, addresses);
      this.#info = readInfo(state.value("info"));
      this.#found = {
        flags: state.integer("flags", 0xffff),
        structuredReplies: state.flag("structuredReplies"),
      };
      this.#fd = bag.has(SOCKET) ? bag.take(SOCKET) : null;
    }
    this.description = `NBD server ${this.#target.text}`;
    this.#lost = this.#fd === null;
    this.#timer = loop.timer(() => this.#onTimer());
  }

  /** Properties of the storage: as they were found first, but for the size. */
  get info(): BlockInfo {
    return this.#info;
  }

  /** Outcome of the negotiation, of this connection or of the last one. */
  get found(): NbdAgreement {
    return this.#found;
  }

  /** True while there is a connection. */
  get connected(): boolean {
    return this.#fd !== null;
  }

  /** The socket; −1 while there is no connection. */
  get fd(): number {
    return this.#fd?.number ?? -1;
  }

  /** Begins to tell its client. */
  start(): void {
    if (this.#fd !== null) this.#watchSocket();
    else this.#timer.arm(0);
  }

  /** Tells the client, or no longer, when a connected socket takes more. */
  wait(blocked: boolean): void {
    this.#watch?.setEvents(blocked ? Epoll.IN | Epoll.OUT : Epoll.IN);
  }

  /** Notes that the server answers: should it be lost again, the next attempt is soon. */
  answered(): void {
    this.#retryMs = RETRY_FIRST_MS;
  }

  /**
   * Closes a connection that is of no use any more, and looks for another.
   *
   * @param reason For people
   * @param unflushed Completed writes that the server may lose with it
   */
  lose(reason: string, unflushed: number): void {
    this.#disconnect();
    this.#client.counters.add(NbdCounter.disconnects, 1);
    const first = !this.#lost;
    this.#lost = true;
    if (first || unflushed > 0) this.#tellLoss(reason, unflushed);
    this.#waitForRetry();
  }

  /** Puts the connection, if there is one, into a bag; only {@linkcode NbdLink.close} is called afterwards. */
  handOver(bag: ResourceBag): void {
    if (this.#fd !== null) bag.put(SOCKET, this.#fd.number);
    this.#timer.cancel();
    this.#disconnect();
  }

  /** Gives what to go on from. */
  save(): Readonly<Record<string, unknown>> {
    const { flags, structuredReplies } = this.#found;
    const addresses = this.#target.addresses.map((bytes) => ({ bytes }));
    return { addresses, flags, structuredReplies, info: this.#info };
  }

  /** Closes the socket, and looks for no other. */
  close(): void {
    this.#timer.close();
    this.#disconnect();
  }

  #watchSocket(): void {
    this.#watch = this.#loop.watch(
      this.#fd!.number,
      Epoll.IN,
      (events) => this.#client.onEvents(events),
    );
  }

  /** Closes the connection, and ends an attempt. */
  #disconnect(): void {
    this.#watch?.close();
    this.#watch = null;
    this.#attempt?.[Symbol.dispose]();
    this.#attempt = null;
    this.#fd?.close();
    this.#fd = null;
  }

  #tellLoss(reason: string, unflushed: number): void {
    this.#log.warn(
      `Lost the connection to ${this.description}: ${reason}; trying again` +
        (unflushed === 0
          ? ""
          : `; ${unflushed} completed writes were not flushed: should that server have lost them, check the guest's file systems`),
      { reason, unflushedWrites: unflushed },
    );
  }

  #waitForRetry(): void {
    this.#timer.arm(this.#retryMs);
    this.#retryMs = Math.min(this.#retryMs * 2, RETRY_MAX_MS);
  }

  #onTimer(): void {
    if (this.#attempt !== null) return this.#onFailed(timedOut());
    try {
      this.#attempt = new Attempt(this.#target, this.#attempts++);
    } catch (error) {
      return this.#onFailed(error);
    }
    this.#timer.arm(HANDSHAKE_TIMEOUT_MS);
    const { fd } = this.#attempt;
    this.#watch = this.#loop.watch(fd, Epoll.OUT, () => this.#step());
  }

  #step(): void {
    const attempt = this.#attempt!;
    let found: NbdExport | number;
    let info: BlockInfo;
    try {
      found = attempt.step(true);
      if (typeof found === "number") return this.#watch!.setEvents(found);
      info = nbdInfo(found, this.#options, this.#log);
    } catch (error) {
      return this.#onFailed(error);
    }
    this.#timer.cancel();
    const fd = attempt.release();
    this.#disconnect();
    this.#fd = fd;
    this.#found = found;
    this.#client.counters.add(NbdCounter.reconnects, 1);
    this.#lost = false;
    this.#log.info(`Connected to ${this.description} again`);
    this.#watchSocket();
    const resized = info.sizeBytes !== this.#info.sizeBytes;
    // What was told to the guest stays as it is, but for the size.
    this.#info = { ...this.#info, sizeBytes: info.sizeBytes };
    this.#client.onConnected(resized);
  }

  #onFailed(error: unknown): void {
    this.#disconnect();
    if (!(error instanceof ErrnoError)) throw error;
    this.#client.counters.add(NbdCounter.failedConnects, 1);
    if (this.#log.debugEnabled) {
      this.#log.debug(explained(error, this.#target).message);
    }
    this.#waitForRetry();
  }
}
