/**
 * From the location of an NBD export to a connection that is ready for requests.
 *
 * @module
 */

import { Errno, ErrnoError, errnoName } from "../../../core/errno.ts";
import {
  connectUnix,
  Epoll,
  type Fd,
  type InternetAddress,
  MessageHeader,
  NativeBuffer,
  Poll,
  pollFd,
  resolveTcp,
  socketError,
  startTcp,
} from "../../../os/mod.ts";
import type { FdWatch, Loop, Timer } from "../../../loop/event_loop.ts";
import { type NbdExport, NbdHandshake } from "./handshake.ts";
import type { NbdLocation } from "./uri.ts";

/** How long a server may take from the connection to the end of the negotiation. */
export const HANDSHAKE_TIMEOUT_MS = 10_000;

const BUFFER_BYTES = 16384;

/** A connection that is ready for requests. */
export interface NbdConnection {
  /** The socket, nonblocking; the receiver's to close. */
  readonly fd: Fd;
  /** What was agreed upon. */
  readonly found: NbdExport;
}

/** Where a server is, for connect(2): a path, or one of several addresses. */
export interface NbdTarget {
  /** For people. */
  readonly text: string;
  readonly location: NbdLocation;
  /** Empty for a UNIX socket. */
  readonly addresses: readonly InternetAddress[];
}

/**
 * Looks the server up; blocks where a name must be asked for.
 *
 * @throws {ErrnoError} ENXIO when the name has no address
 */
export function findNbdServer(location: NbdLocation): NbdTarget {
  const { path, host, port, exportName } = location;
  const name = exportName === "" ? "" : ` export "${exportName}"`;
  if (path !== null) {
    return { text: `${path}${name}`, location, addresses: [] };
  }
  const shown = host.includes(":") ? `[${host}]` : host;
  return {
    text: `${shown}:${port}${name}`,
    location,
    addresses: resolveTcp(host, port),
  };
}

function connect(target: NbdTarget, attempt: number): Fd {
  const { path } = target.location;
  if (path !== null) return connectUnix(path);
  return startTcp(target.addresses[attempt % target.addresses.length]!);
}

/** One negotiation over a socket. */
class Negotiation implements Disposable {
  readonly #fd: Fd;
  readonly #handshake: NbdHandshake;
  readonly #header = new MessageHeader();
  readonly #buffer = new NativeBuffer(BUFFER_BYTES);
  #pending: Uint8Array = new Uint8Array(0);
  #connected = false;

  constructor(fd: Fd, exportName: string) {
    this.#fd = fd;
    this.#handshake = new NbdHandshake(exportName);
  }

  /**
   * Goes on as far as it can without waiting.
   *
   * @param ready Whether the socket was found ready: until it is writable it may not be connected
   * @returns What was agreed upon, or what to wait for
   * @throws {ErrnoError}
   */
  step(ready: boolean): NbdExport | "readable" | "writable" {
    if (!this.#connected) {
      if (!ready) return "writable";
      const errno = socketError(this.#fd.number);
      if (errno !== 0) throw connectError(errno);
      this.#connected = true;
    }
    for (;;) {
      if (!this.#send()) return "writable";
      if (this.#handshake.result !== null) return this.#handshake.result;
      const got = this.#receive();
      if (got === 0) return "readable";
    }
  }

  [Symbol.dispose](): void {
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
      const sent = this.#header.send(
        this.#fd.number,
        this.#buffer,
        0,
        part.length,
      );
      if (sent === -Errno.EAGAIN) return false;
      if (sent < 0) throw connectError(-sent);
      this.#pending = this.#pending.subarray(sent);
    }
    return true;
  }

  #receive(): number {
    const got = this.#header.receive(
      this.#fd.number,
      this.#buffer,
      0,
      BUFFER_BYTES,
    );
    this.#header.closeFds();
    if (got === -Errno.EAGAIN) return 0;
    if (got < 0) throw connectError(-got);
    if (got === 0) {
      throw new ErrnoError(
        Errno.ECONNRESET,
        "Cannot use the NBD server: it closed the connection during the negotiation",
      );
    }
    this.#handshake.feed(this.#buffer.bytes.slice(0, got));
    return got;
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

/**
 * Connects and negotiates, blocking; for start-up.
 *
 * @throws {ErrnoError} With one line that says what is wrong, and the remedy
 */
export function connectNbd(target: NbdTarget): NbdConnection {
  const attempts = Math.max(1, target.addresses.length);
  for (let attempt = 0;; attempt++) {
    try {
      return connectOnce(target, attempt);
    } catch (error) {
      if (!(error instanceof ErrnoError)) throw error;
      if (attempt + 1 >= attempts) throw explained(error, target);
    }
  }
}

function connectOnce(target: NbdTarget, attempt: number): NbdConnection {
  const deadline = performance.now() + HANDSHAKE_TIMEOUT_MS;
  const fd = connect(target, attempt);
  using negotiation = new Negotiation(fd, target.location.exportName);
  try {
    for (let ready = false;;) {
      const next = negotiation.step(ready);
      if (typeof next !== "string") return { fd, found: next };
      const left = deadline - performance.now();
      const events = next === "readable" ? Poll.IN : Poll.OUT;
      if (left <= 0 || pollFd(fd.number, events, left) === 0) throw timedOut();
      ready = true;
    }
  } catch (error) {
    fd.close();
    throw error;
  }
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

/** What a {@linkcode NbdConnector} tells. */
export interface NbdConnectorClient {
  onConnected(connection: NbdConnection): void;
  onFailed(error: ErrnoError): void;
}

/**
 * Connects and negotiates on an event loop.
 *
 * ```text
 *   idle --start--> connecting --> onConnected | onFailed --> idle
 *                        ╰─ cancel ─> idle
 * ```
 */
export class NbdConnector {
  readonly #target: NbdTarget;
  readonly #loop: Loop;
  readonly #client: NbdConnectorClient;
  readonly #timeout: Timer;
  #attempt = 0;
  #fd: Fd | null = null;
  #negotiation: Negotiation | null = null;
  #watch: FdWatch | null = null;

  constructor(target: NbdTarget, loop: Loop, client: NbdConnectorClient) {
    this.#target = target;
    this.#loop = loop;
    this.#client = client;
    this.#timeout = loop.timer(() => this.#fail(timedOut()));
  }

  /** Begins an attempt. */
  start(): void {
    this.cancel();
    try {
      this.#fd = connect(this.#target, this.#attempt++);
    } catch (error) {
      this.#fail(error);
      return;
    }
    const { exportName } = this.#target.location;
    this.#negotiation = new Negotiation(this.#fd, exportName);
    this.#timeout.arm(HANDSHAKE_TIMEOUT_MS);
    this.#watch = this.#loop.watch(
      this.#fd.number,
      Epoll.OUT,
      () => this.#step(),
    );
  }

  /** Gives the attempt up. */
  cancel(): void {
    this.#timeout.cancel();
    this.#watch?.close();
    this.#watch = null;
    this.#negotiation?.[Symbol.dispose]();
    this.#negotiation = null;
    this.#fd?.close();
    this.#fd = null;
  }

  /** Gives up for good. */
  close(): void {
    this.cancel();
    this.#timeout.close();
  }

  #step(): void {
    let next: ReturnType<Negotiation["step"]>;
    try {
      next = this.#negotiation!.step(true);
    } catch (error) {
      this.#fail(error);
      return;
    }
    if (typeof next === "string") {
      this.#watch!.setEvents(next === "readable" ? Epoll.IN : Epoll.OUT);
      return;
    }
    const fd = this.#fd!;
    this.#watch!.close();
    this.#watch = null;
    this.#fd = null;
    this.cancel();
    this.#client.onConnected({ fd, found: next });
  }

  #fail(error: unknown): void {
    this.cancel();
    if (!(error instanceof ErrnoError)) throw error;
    this.#client.onFailed(explained(error, this.#target));
  }
}
