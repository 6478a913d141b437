/**
 * The server of one device: takes clients, one at a time.
 *
 * @module
 */

import { countersFrom } from "../../core/counters.ts";
import { CONNECTION_COUNTERS } from "./counters.ts";
import { ErrnoError } from "../../core/errno.ts";
import type { EventLoop, FdWatch, Timer } from "../../loop/event_loop.ts";
import type { Log } from "../../core/log.ts";
import {
  acceptUnix,
  Epoll,
  type Fd,
  peerPid,
  type ResourceBag,
  type Saved,
  setNonblocking,
} from "../../os/mod.ts";
import type { DmaMemory } from "../../memory/dma_memory.ts";
import type { PciFunction } from "../../pci/function.ts";
import type { PciInterrupts } from "../../pci/interrupts.ts";
import type { ServerState, SessionState } from "./client_state.ts";
import { HELLO_TIMEOUT_MS } from "../contract.ts";
import { VERSION_DEFAULTS } from "./defs.ts";
import { SocketWrites } from "../../pci/socket_writes.ts";
import { RegionFiles } from "./region_files.ts";
import { Session } from "./session.ts";
import type { ServerLimits } from "./version.ts";

/** While somebody is served, the first who waits is worth a word. */
const OTHERS = Epoll.IN | Epoll.ONESHOT;

/** Time to leave waiting clients alone after accepting one has failed. */
const ACCEPT_RETRY_MS = 100;

const DEFAULT_LIMITS: ServerLimits = {
  maxDataXferSize: VERSION_DEFAULTS.max_data_xfer_size,
  maxDmaMaps: VERSION_DEFAULTS.max_dma_maps,
  // More than 16 would make QEMU refuse us.
  maxMsgFds: 16,
};

/** Parts that a server works with. */
export interface VfioUserServerOptions {
  /** The loop that the device lives on. */
  readonly loop: EventLoop;
  /** For messages to people. */
  readonly log: Log;
  /** A listening UNIX stream socket; stays the caller's, and is made nonblocking. */
  readonly listener: number;
  /** The function to offer. */
  readonly pci: PciFunction;
  /** Its interrupts. */
  readonly interrupts: PciInterrupts;
  /** Its guest memory, which clients fill. */
  readonly memory: DmaMemory;
  /** Time a client may take until a version is agreed, in milliseconds; {@linkcode HELLO_TIMEOUT_MS} unless told. */
  readonly helloTimeoutMs?: number;
  /** Counts what clients send, for the function; its own without it. */
  readonly writes?: SocketWrites;
  /** Most that clients may ask for. */
  readonly limits?: Partial<ServerLimits>;
  /** A client maps its main memory without sharing it, so the device will not reach it; once a client at most. */
  readonly onUnsharedMemory?: () => void;
  /** A client has come, or gone for a reason that is told in words for people. */
  readonly onClient?: (
    pid: number,
    event: "connected" | "gone",
    reason?: string,
  ) => void;
  /** Result of {@linkcode VfioUserServer.save}, to go on from there: with the same client, who is not announced again. */
  readonly saved?: Saved<ServerState>;
}

/**
 * Offers a PCI function over vfio-user.
 *
 * ```text
 *   created --start--> waiting ⇄ serving --close--> closed
 *                                      --handOver--> a server on another thread
 * ```
 * One client is served at a time; others wait in the backlog of the socket and disturb nobody. When a client has
 * gone the device is reset and kept for the next one.
 */
export class VfioUserServer implements Disposable {
  readonly #options: VfioUserServerOptions;
  readonly #limits: ServerLimits;
  readonly #files: RegionFiles;
  readonly #writes: SocketWrites;
  readonly #counters = countersFrom(CONNECTION_COUNTERS);
  #session: Session | null = null;
  #clientPid = 0;
  /** True if it was said that another client is waiting: the watch of the listener, one-shot then, has fired. */
  #othersTold = false;
  #watch: FdWatch | null = null;
  #retry: Timer | null = null;
  #acceptFailed = false;
  #closed = false;

  /** @throws {ErrnoError} When the mappable parts of a BAR cannot be offered */
  constructor(options: VfioUserServerOptions) {
    this.#options = options;
    this.#limits = { ...DEFAULT_LIMITS, ...options.limits };
    this.#writes = options.writes ?? new SocketWrites();
    const { saved } = options;
    this.#files = new RegionFiles(
      options.pci,
      saved && { state: saved.state.files, bag: saved.bag },
    );
    if (saved === undefined) return;
    Object.assign(this.#counters, saved.state.counters);
    this.#acceptFailed = saved.state.acceptFailed;
  }

  /**
   * Begins to take clients, or goes on with the one that was there.
   *
   * @throws {Error} When that one cannot be served
   */
  start(): void {
    if (this.#watch !== null || this.#closed) return;
    const { loop, listener, saved } = this.#options;
    setNonblocking(listener);
    this.#retry = loop.timer(() => this.#listen());
    const client = saved?.state.client ?? null;
    this.#watch = loop.watch(
      listener,
      client === null ? Epoll.IN : client.othersTold ? 0 : OTHERS,
      () => this.#onWaiting(),
    );
    if (client === null) return;
    const { pid, session, othersTold } = client;
    const { bag } = saved!;
    const fd = bag.take("socket");
    try {
      this.#session = this.#open(fd, pid, { state: session, bag });
    } catch (error) {
      fd.close();
      throw error;
    }
    this.#othersTold = othersTold;
  }

  /** The client's process, if there is a client. */
  get clientPid(): number | null {
    return this.#session === null ? null : this.#clientPid;
  }

  /** True if a command of the client waits for requests in flight, so that the server cannot be saved. */
  get waiting(): boolean {
    return this.#session?.waiting ?? false;
  }

  /** State that a server that goes on with client and files must know. Between two turns; {@linkcode leave} follows. */
  save(bag: ResourceBag): ServerState {
    // Of a client that has gone there is nothing to tell.
    this.#session?.finish();
    const session = this.#session;
    return {
      files: this.#files.save(bag),
      counters: this.counters(),
      client: session === null ? null : {
        pid: this.#clientPid,
        session: session.save(bag),
        othersTold: this.#othersTold,
      },
      acceptFailed: this.#acceptFailed,
    };
  }

  /** Closes what is open here, and tells nobody: another server goes on with the client. */
  leave(): void {
    this.#closed = true;
    this.#watch?.close();
    this.#retry?.close();
    this.#session?.leave();
    this.#session = null;
    this.#files.close();
  }

  /** Drops the client and takes no more; the listening socket stays open. Further calls do nothing. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#watch?.close();
    this.#retry?.close();
    this.#session?.close("the server is closing");
    this.#session?.finish();
    this.#files.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  /** Counts since the server was made, over all clients. */
  counters(): Readonly<Record<string, number>> {
    return { ...this.#counters };
  }

  #listen(): void {
    if (!this.#closed) this.#watch?.setEvents(Epoll.IN);
  }

  #onWaiting(): void {
    const { log, listener } = this.#options;
    if (this.#session !== null) {
      // The watch is one-shot while somebody is served, so this is said once a client.
      this.#othersTold = true;
      log.info("another client is waiting until the present one has gone");
      return;
    }
    let fd: Fd | null;
    try {
      fd = acceptUnix(listener);
    } catch (error) {
      this.#onAcceptFailed(error);
      return;
    }
    if (fd === null) return;
    this.#acceptFailed = false;
    this.#serve(fd);
  }

  /** Looks away for a while: whoever waits goes on waiting, and the loop would find it without end. */
  #onAcceptFailed(error: unknown): void {
    this.#watch?.setEvents(0);
    this.#retry?.arm(ACCEPT_RETRY_MS);
    if (this.#acceptFailed) return;
    this.#acceptFailed = true;
    const reason = error instanceof ErrnoError ? error.code : String(error);
    this.#options.log.error(
      `cannot accept a client (${reason}), trying again until it works`,
      { error },
    );
  }

  #serve(fd: Fd): void {
    try {
      this.#session = this.#open(fd, peerPid(fd.number));
    } catch (error) {
      fd.close();
      this.#onAcceptFailed(error);
      return;
    }
    this.#counters.clients++;
    this.#othersTold = false;
    this.#watch?.setEvents(OTHERS);
    this.#options.onClient?.(this.#clientPid, "connected");
  }

  #open(fd: Fd, pid: number, saved?: Saved<SessionState>): Session {
    const { loop, log, pci, interrupts, memory } = this.#options;
    this.#clientPid = pid;
    return new Session({
      loop,
      log,
      fd,
      pci,
      interrupts,
      memory,
      files: this.#files,
      limits: this.#limits,
      writes: this.#writes,
      helloTimeoutMs: this.#options.helloTimeoutMs ?? HELLO_TIMEOUT_MS,
      counters: this.#counters,
      onUnsharedMemory: () => this.#options.onUnsharedMemory?.(),
      onClose: (reason) => this.#onGone(pid, reason),
      ...(saved === undefined ? {} : { saved }),
    });
  }

  #onGone(pid: number, reason: string): void {
    this.#session = null;
    this.#options.onClient?.(pid, "gone", reason);
    this.#listen();
  }
}
