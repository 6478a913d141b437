/**
 * A card plugged into a stream socket, as QEMU's `-netdev stream`: to another card's, a switch or a user-mode network.
 *
 * @module
 */

import { Errno, ErrnoError, errnoName } from "../errno.ts";
import type { FdWatch, Loop } from "../event_loop.ts";
import {
  acceptUnix,
  connectUnix,
  Epoll,
  type Fd,
  listenTcp,
  listenUnix,
  sockaddrInet,
  socketError,
  startTcp,
  SyscallError,
  tuneTcp,
} from "../libc/mod.ts";
import type { ScatterGather } from "../memory/scatter_gather.ts";
import type { NetBackend, NetContext, NetPeer } from "./backend.ts";
import { Backoff } from "./backoff.ts";
import { CalmLog } from "./calm_log.ts";
import { formatEndpoint, type StreamNetOptions } from "./option_table.ts";
import { StreamPort } from "./stream_port.ts";
import { bindPath } from "./unix_path.ts";

/** What makes connections. */
interface Connector {
  /** There is no connection (any more): make one. */
  begin(): void;
  /** Ends what it does. */
  close(): void;
}

/** A frame stream over a UNIX or TCP socket. */
export class StreamBackend implements NetBackend {
  readonly description: string;
  readonly hasVnetHeader = false;
  readonly #port: StreamPort;
  readonly #connector: Connector;

  /**
   * @throws {ErrnoError} With the remedy: when a server's address cannot be had, or a client that is not to try again
   * is refused
   */
  constructor(options: StreamNetOptions, context: NetContext) {
    const { loop } = context;
    const where = formatEndpoint(options.endpoint);
    const log = new CalmLog(loop, context.log);
    this.description = options.server
      ? `stream, server at ${where}`
      : `stream to ${where}`;
    this.#port = new StreamPort(loop, (reason) => {
      const next = options.server
        ? "waiting for another"
        : options.reconnectMs > 0
        ? "trying again"
        : "there will be no other";
      log.warn(
        "lost",
        `The connection at ${where} has ended: ${reason}; ${next}`,
      );
      this.#connector.begin();
    });
    const connected = (fd: Fd) => {
      this.#port.attach(fd);
      log.info("connected", `Connected at ${where}`);
    };
    this.#connector = options.server
      ? new Server(options, loop, log, connected)
      : new Client(options, loop, log, connected);
    try {
      this.#connector.begin();
    } catch (error) {
      this.close();
      throw error;
    }
  }

  start(peer: NetPeer): void {
    this.#port.start(peer);
  }

  stop(): void {
    this.#port.stop();
  }

  send(frame: ScatterGather): number {
    return this.#port.send(frame);
  }

  receive(into: ScatterGather): number {
    return this.#port.receive(into);
  }

  setReceiving(on: boolean): void {
    this.#port.setReceiving(on);
  }

  counters(): Readonly<Record<string, number>> {
    return this.#port.counters();
  }

  close(): void {
    this.#connector.close();
    this.#port.close();
  }
}

/** Accepts one connection after another; further peers wait until the one before has gone. */
class Server implements Connector {
  readonly #fd: Fd;
  readonly #remove: () => void;
  readonly #watch: FdWatch;
  readonly #log: CalmLog;
  readonly #onConnected: (fd: Fd) => void;
  readonly #isTcp: boolean;
  #closed = false;

  constructor(
    options: StreamNetOptions,
    loop: Loop,
    log: CalmLog,
    onConnected: (fd: Fd) => void,
  ) {
    const { endpoint } = options;
    this.#log = log;
    this.#onConnected = onConnected;
    this.#isTcp = endpoint.family === "inet";
    if (endpoint.family === "unix") {
      const { fd, remove } = bindPath(endpoint.path, listenUnix);
      this.#fd = fd;
      this.#remove = remove;
    } else {
      this.#fd = listenTcp(endpoint.address);
      this.#remove = () => {};
    }
    this.#watch = loop.watch(this.#fd.number, 0, () => this.#accept());
  }

  begin(): void {
    this.#watch.setEvents(Epoll.IN);
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#watch.close();
    this.#fd.close();
    this.#remove();
  }

  #accept(): void {
    let fd: Fd | null;
    try {
      fd = acceptUnix(this.#fd.number);
    } catch (error) {
      if (!(error instanceof ErrnoError)) throw error;
      // Out of descriptors or memory: the peer stays in the queue, and this is called again.
      this.#log.warn("accept", `Cannot take a connection: ${error.code}`);
      return;
    }
    if (fd === null) return;
    if (this.#isTcp) tuneTcp(fd.number);
    this.#watch.setEvents(0);
    this.#onConnected(fd);
  }
}

/** Connects, and again when that fails or the connection ends. */
class Client implements Connector {
  readonly #options: StreamNetOptions;
  readonly #loop: Loop;
  readonly #log: CalmLog;
  readonly #onConnected: (fd: Fd) => void;
  readonly #backoff: Backoff;
  /** A connection in the making. */
  #fd: Fd | null = null;
  #watch: FdWatch | null = null;
  #began = false;

  constructor(
    options: StreamNetOptions,
    loop: Loop,
    log: CalmLog,
    onConnected: (fd: Fd) => void,
  ) {
    this.#options = options;
    this.#loop = loop;
    this.#log = log;
    this.#onConnected = onConnected;
    this.#backoff = new Backoff(
      loop,
      options.reconnectMs,
      () => this.#connect(),
    );
  }

  begin(): void {
    if (!this.#began) {
      this.#began = true;
      this.#connect();
    } else if (this.#options.reconnectMs > 0) this.#backoff.retry();
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
      this.#fd = startTcp(sockaddrInet(endpoint.address));
    } catch (error) {
      if (!(error instanceof SyscallError)) throw error;
      return this.#fail(error.errno, error);
    }
    this.#watch = this.#loop.watch(this.#fd.number, Epoll.OUT, () => {
      const errno = socketError(this.#fd!.number);
      if (errno === 0) {
        const fd = this.#fd!;
        this.#fd = null;
        this.#abandon();
        this.#succeed(fd);
      } else {
        this.#abandon();
        this.#fail(errno);
      }
    });
  }

  #succeed(fd: Fd): void {
    this.#backoff.succeeded();
    this.#onConnected(fd);
  }

  #fail(errno: number, cause?: SyscallError): void {
    const where = formatEndpoint(this.#options.endpoint);
    const why = errno === Errno.ECONNREFUSED || errno === Errno.ENOENT
      ? "nobody listens there, start the other side"
      : errnoName(errno);
    if (this.#options.reconnectMs > 0) {
      this.#log.warn(
        "refused",
        `Cannot connect to ${where}: ${why}; trying again until it succeeds`,
      );
      return this.#backoff.retry();
    }
    const message = `Cannot connect to ${where}: ${why}`;
    // Only the first attempt of a client that is not to try again is somebody's to hear of.
    if (cause !== undefined) throw new ErrnoError(errno, message, { cause });
    this.#log.warn("refused", message);
  }
}
