/**
 * What makes the connections of a card on a stream socket.
 *
 * @module
 */

import { Errno, ErrnoError, errnoName } from "../../../core/errno.ts";
import type { FdWatch, Loop } from "../../../loop/event_loop.ts";
import {
  acceptUnix,
  connectUnix,
  Epoll,
  type Fd,
  listenTcp,
  listenUnix,
  type ResourceBag,
  type Saved,
  sockaddrInet,
  socketError,
  startTcp,
  SyscallError,
  tuneTcp,
} from "../../../os/mod.ts";
import { Backoff, type BackoffState } from "../backoff.ts";
import type { Ownership } from "../ownership.ts";
import type { Log } from "../../../core/log.ts";
import type { StreamNetOptions } from "./drivers.ts";
import { formatEndpoint } from "./endpoint.ts";
import {
  makeSocketFile,
  removeSocketFile,
  type SocketFile,
} from "../../../os/socket/socket_file.ts";

/** A {@linkcode Connector} on its way to another thread. */
export type ConnectorState =
  | {
    readonly role: "server";
    /** Of its address; null for TCP. */
    readonly file: SocketFile | null;
    /** Whether it waits for a peer. */
    readonly accepting: boolean;
  }
  | {
    readonly role: "client";
    readonly began: boolean;
    readonly backoff: BackoffState;
  };

type Loaded<Role> = Saved<Extract<ConnectorState, { role: Role }>>;

/** Name of the socket that listens, or connects. */
const SOCKET = "socket";

/** What makes connections. */
export interface Connector {
  /** There is no connection (any more): make one. */
  begin(): void;
  /** What a successor must know. */
  save(): ConnectorState;
  /** Puts what it has open into a bag; only close may follow. */
  handOver(bag: ResourceBag): void;
  /** Ends what it does. */
  close(): void;
}

/** What a {@linkcode Connector} is made with. */
export interface ConnectorParts {
  readonly options: StreamNetOptions;
  readonly loop: Loop;
  readonly log: Log;
  /** Of what outlasts descriptors. */
  readonly ownership: Ownership;
  /** Told of each connection, which becomes the callee's. */
  readonly onConnected: (fd: Fd) => void;
}

/**
 * Makes the connector that the options ask for.
 *
 * @param saved What a predecessor was and had open, if there was one
 * @throws {ErrnoError} When a server's address cannot be had
 */
export function createConnector(
  parts: ConnectorParts,
  saved?: Saved<ConnectorState>,
): Connector {
  return parts.options.server
    ? new Server(parts, saved as Loaded<"server"> | undefined)
    : new Client(parts, saved as Loaded<"client"> | undefined);
}

/** Accepts one connection after another; further peers wait until the one before has gone. */
class Server implements Connector {
  readonly #fd: Fd;
  readonly #file: SocketFile | null;
  readonly #watch: FdWatch;
  readonly #log: Log;
  readonly #onConnected: (fd: Fd) => void;
  readonly #isTcp: boolean;
  readonly #ownership: Ownership;
  #accepting: boolean;

  constructor(parts: ConnectorParts, saved?: Loaded<"server">) {
    const { endpoint } = parts.options;
    this.#log = parts.log;
    this.#onConnected = parts.onConnected;
    this.#isTcp = endpoint.family === "inet";
    this.#ownership = parts.ownership;
    if (saved !== undefined) {
      this.#fd = saved.bag.take(SOCKET);
      this.#file = saved.state.file;
    } else if (endpoint.family === "unix") {
      const { made, file } = makeSocketFile(endpoint, listenUnix);
      this.#fd = made;
      this.#file = file;
    } else {
      this.#fd = listenTcp(endpoint.address);
      this.#file = null;
    }
    this.#accepting = saved?.state.accepting ?? false;
    try {
      this.#watch = parts.loop.watch(
        this.#fd.number,
        this.#accepting ? Epoll.IN : 0,
        () => this.#accept(),
      );
    } catch (error) {
      this.#release();
      throw error;
    }
  }

  begin(): void {
    this.#accepting = true;
    this.#watch.setEvents(Epoll.IN);
  }

  save(): ConnectorState {
    return { role: "server", file: this.#file, accepting: this.#accepting };
  }

  handOver(bag: ResourceBag): void {
    bag.put(SOCKET, this.#fd.number);
  }

  close(): void {
    this.#watch.close();
    this.#release();
  }

  #release(): void {
    this.#fd.close();
    const owned = this.#ownership.end();
    if (owned && this.#file !== null) removeSocketFile(this.#file);
  }

  #accept(): void {
    let fd: Fd | null;
    try {
      fd = acceptUnix(this.#fd.number);
    } catch (error) {
      if (!(error instanceof ErrnoError)) throw error;
      // Out of descriptors or memory: the peer stays in the queue, and this is called again.
      this.#log.warn(`Cannot take a connection: ${error.code}`);
      return;
    }
    if (fd === null) return;
    if (this.#isTcp) tuneTcp(fd.number);
    this.#accepting = false;
    this.#watch.setEvents(0);
    this.#onConnected(fd);
  }
}

/** Connects, and again when that fails or the connection ends. */
class Client implements Connector {
  readonly #options: StreamNetOptions;
  readonly #loop: Loop;
  readonly #log: Log;
  readonly #onConnected: (fd: Fd) => void;
  readonly #backoff: Backoff;
  /** A connection in the making. */
  #fd: Fd | null = null;
  #watch: FdWatch | null = null;
  #began: boolean;
  /** The last attempt failed. */
  #refused = false;

  constructor(parts: ConnectorParts, saved?: Loaded<"client">) {
    this.#options = parts.options;
    this.#loop = parts.loop;
    this.#log = parts.log;
    this.#onConnected = parts.onConnected;
    this.#began = saved?.state.began ?? false;
    // Before the backoff, which would go on by itself when this throws.
    if (saved?.bag.has(SOCKET)) this.#await(saved.bag.take(SOCKET));
    this.#backoff = new Backoff(
      parts.loop,
      parts.options.reconnectMs,
      () => this.#connect(),
      saved?.state.backoff,
    );
  }

  begin(): void {
    if (!this.#began) {
      this.#began = true;
      this.#connect();
    } else if (this.#options.reconnectMs > 0) this.#backoff.retry();
  }

  save(): ConnectorState {
    const backoff = this.#backoff.state();
    return { role: "client", began: this.#began, backoff };
  }

  handOver(bag: ResourceBag): void {
    if (this.#fd !== null) bag.put(SOCKET, this.#fd.number);
  }

  close(): void {
    this.#backoff.close();
    this.#abandon();
  }

  #abandon(): void {
    this.#watch?.close();
    this.#watch = null;
    this.#fd?.close();
    this.#fd = null;
  }

  #connect(): void {
    const { endpoint } = this.#options;
    try {
      if (endpoint.family === "unix") {
        return this.#succeed(connectUnix(endpoint.path));
      }
      this.#await(startTcp(sockaddrInet(endpoint.address)));
    } catch (error) {
      if (!(error instanceof SyscallError)) throw error;
      return this.#fail(error.errno, error);
    }
  }

  /** Takes over a connection in the making. */
  #await(fd: Fd): void {
    using undo = new DisposableStack();
    undo.use(fd);
    this.#watch = this.#loop.watch(fd.number, Epoll.OUT, () => {
      const errno = socketError(fd.number);
      this.#fd = null;
      this.#watch!.close();
      this.#watch = null;
      if (errno === 0) return this.#succeed(fd);
      fd.close();
      this.#fail(errno);
    });
    undo.move();
    this.#fd = fd;
  }

  #succeed(fd: Fd): void {
    this.#refused = false;
    this.#backoff.succeeded();
    this.#onConnected(fd);
  }

  #fail(errno: number, cause?: SyscallError): void {
    const where = formatEndpoint(this.#options.endpoint);
    const why = errno === Errno.ECONNREFUSED || errno === Errno.ENOENT
      ? "nobody listens there, start the other side"
      : errnoName(errno);
    if (this.#options.reconnectMs > 0) {
      // Once, however long that takes.
      if (!this.#refused) {
        this.#log.warn(
          `Cannot connect to ${where}: ${why}; trying again until it succeeds`,
        );
      }
      this.#refused = true;
      return this.#backoff.retry();
    }
    const message = `Cannot connect to ${where}: ${why}`;
    // Only the first attempt of a client that is not to try again is somebody's to hear of.
    if (cause !== undefined) throw new ErrnoError(errno, message, { cause });
    this.#log.warn(message);
  }
}
