/**
 * A card plugged into a stream socket, as QEMU's `-netdev stream`: to another card's, a switch or a user-mode network.
 *
 * @module
 */

import { Errno, ErrnoError, errnoName } from "../../../core/errno.ts";
import { StateReader } from "../../../core/state_reader.ts";
import type { FdWatch } from "../../../loop/event_loop.ts";
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
import { makeSocketFile } from "../../../os/socket/socket_file.ts";
import { OwnSocket } from "./own_socket.ts";
import { Backoff } from "../backoff.ts";
import type { OpenNet } from "../driver.ts";
import { formatEndpoint, type StreamNetOptions } from "./drivers.ts";
import {
  type Connector,
  type ConnectorContext,
  StreamBackend,
} from "./stream_backend.ts";

/** Marks the state of such a back end. */
const KIND = "stream";
/** Name of the socket that connects. */
const SOCKET = "socket";

/** Connects, or listens. */
export const openStream: OpenNet<StreamNetOptions> = (
  options,
  context,
  saved,
) =>
  new StreamBackend(
    KIND,
    context,
    (context, saved) =>
      options.server
        ? new Server(options, context, saved)
        : new Client(options, context, saved),
    saved,
  );

/** Accepts one connection after another; further peers wait until the one before has gone. */
class Server implements Connector {
  readonly description: string;
  readonly #context: ConnectorContext;
  readonly #where: string;
  readonly #socket: OwnSocket;
  readonly #watch: FdWatch;
  readonly #isTcp: boolean;
  /** True while it waits for a peer. */
  #accepting: boolean;

  /** @throws {ErrnoError} When the address cannot be had */
  constructor(
    { endpoint }: StreamNetOptions,
    context: ConnectorContext,
    saved?: Saved<unknown>,
  ) {
    this.#context = context;
    this.#where = formatEndpoint(endpoint);
    this.description = `stream, server at ${this.#where}`;
    this.#isTcp = endpoint.family === "inet";
    const state = saved && new StateReader(saved.state, "a server");
    this.#accepting = state?.flag("accepting") ?? false;
    this.#socket = new OwnSocket(
      context.ownership,
      () =>
        endpoint.family === "unix"
          ? makeSocketFile(endpoint, listenUnix)
          : { made: listenTcp(endpoint.address), file: null },
      state && { state, bag: saved!.bag },
    );
    try {
      this.#watch = context.loop.watch(
        this.#socket.fd,
        this.#accepting ? Epoll.IN : 0,
        () => this.#accept(),
      );
    } catch (error) {
      this.#socket.close();
      throw error;
    }
  }

  begin(): void {
    this.#accepting = true;
    this.#watch.setEvents(Epoll.IN);
  }

  onLost(reason: string): void {
    this.#context.log.warn(
      `The connection at ${this.#where} has ended: ${reason}; waiting for another`,
    );
    this.begin();
  }

  save(): unknown {
    return { file: this.#socket.file, accepting: this.#accepting };
  }

  handOver(bag: ResourceBag): void {
    this.#socket.handOver(bag);
  }

  close(): void {
    this.#watch.close();
    this.#socket.close();
  }

  #accept(): void {
    let fd: Fd | null;
    try {
      fd = acceptUnix(this.#socket.fd);
    } catch (error) {
      if (!(error instanceof ErrnoError)) throw error;
      // Out of descriptors or memory: the peer stays in the queue, and this is called again.
      this.#context.log.warn(`Cannot take a connection: ${error.code}`);
      return;
    }
    if (fd === null) return;
    if (this.#isTcp) tuneTcp(fd.number);
    this.#accepting = false;
    this.#watch.setEvents(0);
    this.#context.attach(fd);
    this.#context.log.info(`Connected at ${this.#where}`);
  }
}

/** Connects, and again when that fails or the connection ends. */
class Client implements Connector {
  readonly description: string;
  readonly #options: StreamNetOptions;
  readonly #context: ConnectorContext;
  readonly #where: string;
  readonly #backoff: Backoff;
  /** A connection in the making. */
  #fd: Fd | null = null;
  #watch: FdWatch | null = null;
  /** The last attempt failed. */
  #refused = false;

  constructor(
    options: StreamNetOptions,
    context: ConnectorContext,
    saved?: Saved<unknown>,
  ) {
    this.#options = options;
    this.#context = context;
    this.#where = formatEndpoint(options.endpoint);
    this.description = `stream to ${this.#where}`;
    this.#backoff = new Backoff(
      context.loop,
      options.reconnectMs,
      () => this.begin(),
      saved && new StateReader(saved.state, "a client"),
    );
    if (saved?.bag.has(SOCKET)) this.#await(saved.bag.take(SOCKET));
  }

  begin(): void {
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

  onLost(reason: string): void {
    const again = this.#options.reconnectMs > 0;
    const next = again ? "trying again" : "there will be no other";
    this.#context.log.warn(
      `The connection at ${this.#where} has ended: ${reason}; ${next}`,
    );
    if (again) this.#backoff.retry();
  }

  save(): unknown {
    return this.#backoff.save();
  }

  handOver(bag: ResourceBag): void {
    if (this.#fd !== null) bag.put(SOCKET, this.#fd.number);
  }

  close(): void {
    this.#backoff.close();
    this.#watch?.close();
    this.#fd?.close();
  }

  /** Takes over a connection in the making. */
  #await(fd: Fd): void {
    using undo = new DisposableStack();
    undo.use(fd);
    this.#watch = this.#context.loop.watch(fd.number, Epoll.OUT, () => {
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
    this.#context.attach(fd);
    this.#context.log.info(`Connected at ${this.#where}`);
  }

  #fail(errno: number, cause?: SyscallError): void {
    const why = errno === Errno.ECONNREFUSED || errno === Errno.ENOENT
      ? "nobody listens there, start the other side"
      : errnoName(errno);
    if (this.#options.reconnectMs > 0) {
      // Once, however long that takes.
      if (!this.#refused) {
        this.#context.log.warn(
          `Cannot connect to ${this.#where}: ${why}; trying again until it succeeds`,
        );
      }
      this.#refused = true;
      return this.#backoff.retry();
    }
    const message = `Cannot connect to ${this.#where}: ${why}`;
    // Only the first attempt of a client that is not to try again is somebody's to hear of.
    if (cause !== undefined) throw new ErrnoError(errno, message, { cause });
    this.#context.log.warn(message);
  }
}
