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
  Fd,
  listenTcp,
  listenUnix,
  sockaddrInet,
  socketError,
  startTcp,
  SyscallError,
  tuneTcp,
} from "../../../os/mod.ts";
import { Backoff, type BackoffState } from "../backoff.ts";
import type { Log } from "../../../core/log.ts";
import type { StreamNetOptions } from "./drivers.ts";
import { formatEndpoint } from "./endpoint.ts";
import {
  makeSocketFile,
  removeSocketFile,
  type SocketFile,
} from "../../../os/socket/socket_file.ts";

/** A {@linkcode Connector} on its way to another thread. */
export type GivenConnector =
  | {
    readonly role: "server";
    /** Listens. */
    readonly fd: number;
    /** Of its address; null for TCP. */
    readonly file: SocketFile | null;
    /** Whether it waits for a peer. */
    readonly accepting: boolean;
  }
  | {
    readonly role: "client";
    /** A connection in the making; null when there is none. */
    readonly fd: number | null;
    readonly began: boolean;
    readonly backoff: BackoffState;
  };

/** What makes connections. */
export interface Connector {
  /** There is no connection (any more): make one. */
  begin(): void;
  /** Gives what it has to a successor on another thread; only close may follow. */
  handOver(): GivenConnector;
  /** Ends what it does. */
  close(): void;
}

/** What a {@linkcode Connector} is made with. */
export interface ConnectorParts {
  readonly options: StreamNetOptions;
  readonly loop: Loop;
  readonly log: Log;
  /** Told of each connection, which becomes the callee's. */
  readonly onConnected: (fd: Fd) => void;
}

/**
 * Makes the connector that the options ask for.
 *
 * @param given What a predecessor gave, if there was one
 * @throws {ErrnoError} When a server's address cannot be had
 */
export function createConnector(
  parts: ConnectorParts,
  given: GivenConnector | null,
): Connector {
  return parts.options.server
    ? new Server(parts, given?.role === "server" ? given : null)
    : new Client(parts, given?.role === "client" ? given : null);
}

/** Accepts one connection after another; further peers wait until the one before has gone. */
class Server implements Connector {
  readonly #fd: Fd;
  readonly #file: SocketFile | null;
  readonly #watch: FdWatch;
  readonly #log: Log;
  readonly #onConnected: (fd: Fd) => void;
  readonly #isTcp: boolean;
  #accepting: boolean;

  constructor(
    parts: ConnectorParts,
    given: Extract<GivenConnector, { role: "server" }> | null,
  ) {
    const { endpoint } = parts.options;
    this.#log = parts.log;
    this.#onConnected = parts.onConnected;
    this.#isTcp = endpoint.family === "inet";
    if (given !== null) {
      this.#fd = new Fd(given.fd);
      this.#file = given.file;
    } else if (endpoint.family === "unix") {
      const { made, file } = makeSocketFile(endpoint, listenUnix);
      this.#fd = made;
      this.#file = file;
    } else {
      this.#fd = listenTcp(endpoint.address);
      this.#file = null;
    }
    this.#accepting = given?.accepting ?? false;
    this.#watch = parts.loop.watch(
      this.#fd.number,
      this.#accepting ? Epoll.IN : 0,
      () => this.#accept(),
    );
  }

  begin(): void {
    this.#accepting = true;
    this.#watch.setEvents(Epoll.IN);
  }

  handOver(): GivenConnector {
    this.#watch.close();
    return {
      role: "server",
      fd: this.#fd.release(),
      file: this.#file,
      accepting: this.#accepting,
    };
  }

  close(): void {
    this.#watch.close();
    // Closed before, or given away with its file?
    if (this.#fd.number < 0) return;
    this.#fd.close();
    if (this.#file !== null) removeSocketFile(this.#file);
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

  constructor(
    parts: ConnectorParts,
    given: Extract<GivenConnector, { role: "client" }> | null,
  ) {
    this.#options = parts.options;
    this.#loop = parts.loop;
    this.#log = parts.log;
    this.#onConnected = parts.onConnected;
    this.#began = given?.began ?? false;
    // Before the backoff, which would go on by itself when this throws.
    if (given !== null && given.fd !== null) this.#await(new Fd(given.fd));
    this.#backoff = new Backoff(
      parts.loop,
      parts.options.reconnectMs,
      () => this.#connect(),
      given?.backoff ?? null,
    );
  }

  begin(): void {
    if (!this.#began) {
      this.#began = true;
      this.#connect();
    } else if (this.#options.reconnectMs > 0) this.#backoff.retry();
  }

  handOver(): GivenConnector {
    const backoff = this.#backoff.state();
    const fd = this.#fd?.release() ?? null;
    this.close();
    return { role: "client", fd, began: this.#began, backoff };
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
    this.#watch = this.#loop.watch(fd.number, Epoll.OUT, () => {
      const errno = socketError(fd.number);
      this.#fd = null;
      this.#watch!.close();
      this.#watch = null;
      if (errno === 0) return this.#succeed(fd);
      fd.close();
      this.#fail(errno);
    });
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
