/**
 * The connection of an NBD client: made at start-up, found again when it is lost, passed on when the client moves.
 *
 * @module
 */

import type { Counters } from "../../../core/counters.ts";
import { ErrnoError } from "../../../core/errno.ts";
import type { FdWatch, Loop, Timer } from "../../../loop/event_loop.ts";
import {
  Epoll,
  type Fd,
  type ResourceBag,
  type Saved,
} from "../../../os/mod.ts";
import type { Log } from "../../../core/log.ts";
import type { BlockContext, BlockInfo } from "../contract.ts";
import {
  connectNbd,
  findNbdServer,
  type NbdConnection,
  NbdConnector,
  type NbdTarget,
} from "./connect.ts";
import { NbdCounter } from "./counters.ts";
import type { NbdExport } from "./handshake.ts";
import { nbdInfo } from "./info.ts";
import { parseNbdUri } from "./uri.ts";
import type { NbdBlockOptions } from "./driver.ts";

const RETRY_FIRST_MS = 50;
const RETRY_MAX_MS = 5000;

/** What a link gives to that of another thread; plain data. */
export interface NbdLinkState {
  /** Where the server is, looked up already. */
  readonly target: NbdTarget;
  /** What the server of this connection, or of the last one, offers. */
  readonly found: NbdExport;
  readonly info: BlockInfo;
  /** How long to wait after the next failure, in milliseconds. */
  readonly retryMs: number;
}

const SOCKET = "nbd";

/** What a link works with, and tells. */
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
  readonly #connector: NbdConnector;
  readonly #retry: Timer;
  #found: NbdExport;
  #info: BlockInfo;
  #fd: Fd | null;
  #watch: FdWatch | null = null;
  #retryMs: number;
  /** Whether the loss of the connection was told and its end was not. */
  #lost: boolean;

  /**
   * Connects, blocking until the server has answered, unless there is a connection to go on with.
   *
   * @param saved From {@linkcode NbdLink.save}, and a connection if there was one
   * @throws {ErrnoError} With one line that says what is wrong, and the remedy
   */
  constructor(
    options: NbdBlockOptions,
    { loop, log }: BlockContext,
    client: NbdLinkClient,
    saved?: Saved<NbdLinkState>,
  ) {
    this.#options = options;
    this.#loop = loop;
    this.#log = log;
    this.#client = client;
    const { fd, state } = saved === undefined
      ? connectFirst(options, log)
      : { fd: takeSocket(saved.bag), state: saved.state };
    const { target } = state;
    this.#target = target;
    this.description = `NBD server ${target.text}`;
    this.#fd = fd;
    this.#lost = fd === null;
    this.#found = state.found;
    this.#info = state.info;
    this.#retryMs = state.retryMs;
    this.#connector = new NbdConnector(target, loop, {
      onConnected: (connection) => this.#onConnected(connection),
      onFailed: (error) => this.#onFailed(error),
    });
    this.#retry = loop.timer(() => this.#connector.start());
  }

  /** Properties of the storage: as they were found first, but for the size. */
  get info(): BlockInfo {
    return this.#info;
  }

  /** What the server of this connection, or of the last one, offers. */
  get found(): NbdExport {
    return this.#found;
  }

  /** Whether there is a connection. */
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
    else this.#retry.arm(0);
  }

  /** Whether the socket takes no more for now, so that its client is to be told when it does. */
  wait(blocked: boolean): void {
    this.#watch?.setEvents(blocked ? Epoll.IN | Epoll.OUT : Epoll.IN);
  }

  /** The server answers: should it be lost again, it is looked for soon. */
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
    this.#closeSocket();
    this.#client.counters.add(NbdCounter.disconnects, 1);
    const first = !this.#lost;
    this.#lost = true;
    if (first || unflushed > 0) this.#tellLoss(reason, unflushed);
    this.#retry.arm(this.#nextRetryMs());
  }

  /** Puts the connection, if there is one, into a bag; only {@linkcode NbdLink.close} is called afterwards. */
  handOver(bag: ResourceBag): void {
    if (this.#fd !== null) bag.put(SOCKET, this.#fd.number);
    this.#watch?.close();
    this.#watch = null;
    this.#retry.cancel();
    this.#connector.cancel();
    this.#fd?.close();
    this.#fd = null;
  }

  /** What a link that goes on must know. */
  save(): NbdLinkState {
    return {
      target: this.#target,
      found: this.#found,
      info: this.#info,
      retryMs: this.#retryMs,
    };
  }

  /** Closes the socket, and looks for no other. */
  close(): void {
    this.#retry.close();
    this.#connector.close();
    this.#closeSocket();
  }

  #watchSocket(): void {
    this.#watch = this.#loop.watch(
      this.#fd!.number,
      Epoll.IN,
      (events) => this.#client.onEvents(events),
    );
  }

  #closeSocket(): void {
    this.#watch?.close();
    this.#watch = null;
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

  #nextRetryMs(): number {
    const ms = this.#retryMs;
    this.#retryMs = Math.min(ms * 2, RETRY_MAX_MS);
    return ms;
  }

  #onFailed(error: ErrnoError): void {
    this.#client.counters.add(NbdCounter.failedConnects, 1);
    if (this.#log.debugEnabled) this.#log.debug(error.message);
    this.#retry.arm(this.#nextRetryMs());
  }

  #onConnected({ fd, found }: NbdConnection): void {
    let info: BlockInfo;
    try {
      info = nbdInfo(found, this.#options, this.#log);
    } catch (error) {
      fd.close();
      if (!(error instanceof ErrnoError)) throw error;
      this.#onFailed(error);
      return;
    }
    this.#found = found;
    this.#fd = fd;
    this.#client.counters.add(NbdCounter.reconnects, 1);
    this.#lost = false;
    this.#log.info(`Connected to ${this.description} again`);
    this.#watchSocket();
    const resized = info.sizeBytes !== this.#info.sizeBytes;
    // What was told to the guest stays as it is, but for the size.
    this.#info = { ...this.#info, sizeBytes: info.sizeBytes };
    this.#client.onConnected(resized);
  }
}

/** The connected socket, with nothing half sent or half received; null while the connection is lost. */
function takeSocket(bag: ResourceBag): Fd | null {
  return bag.has(SOCKET) ? bag.take(SOCKET) : null;
}

function connectFirst(
  options: NbdBlockOptions,
  log: Log,
): { fd: Fd; state: NbdLinkState } {
  const target = findNbdServer(parseNbdUri(options.uri));
  const { fd, found } = connectNbd(target);
  try {
    const info = nbdInfo(found, options, log);
    const retryMs = RETRY_FIRST_MS;
    return { fd, state: { target, found, info, retryMs } };
  } catch (error) {
    fd.close();
    throw error;
  }
}
