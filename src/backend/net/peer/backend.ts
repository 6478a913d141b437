/**
 * A card plugged into a program that runs as a child process: a frame stream to it, and a new one when it ends.
 *
 * @module
 */

import {
  formatExitStatus,
  type ResourceBag,
  type Saved,
  SyscallError,
} from "../../../os/mod.ts";
import type { Loop } from "../../../loop/event_loop.ts";
import type { Log } from "../../../core/log.ts";
import type { ScatterGather } from "../../../memory/scatter_gather.ts";
import type {
  NetBackend,
  NetContext,
  NetOffloads,
  NetPeer,
} from "../contract.ts";
import { Backoff, type BackoffState } from "../backoff.ts";
import { Ownership } from "../ownership.ts";
import { type NetBackendState, takeState } from "../state.ts";
import {
  PeerProcess,
  type PeerProcessState,
  type StartedPeer,
} from "./process.ts";
import { type PortState, StreamPort } from "../socket/stream_port.ts";
import { VIRTIO_NET_HDR } from "../frame/vnet_header.ts";

const RESTART_MAX_MS = 5000;

/** A program that cards are plugged into. */
export interface PeerProgram {
  /** What marks the state of such a back end. */
  readonly kind: string;
  /** For people, such as `passt`. */
  readonly name: string;
  /** For people, with more of it. */
  readonly description: string;
  /** Frames travel behind virtio-net headers, with these offloads; without any when absent. */
  readonly offloads?: NetOffloads;
  /** See {@linkcode NetBackend.setOffloads}. */
  setOffloads?(give: number): void;
  /**
   * Starts it, the first time and whenever it has ended.
   *
   * @throws {SyscallError}
   */
  start(): StartedPeer;
  /**
   * Waits, blocking, until it runs; the first time only.
   *
   * @throws {import("../../../core/errno.ts").ErrnoError} When it does not, with the remedy
   */
  awaitStart(process: PeerProcess): void;
  /** What of all that it said may be the reason for its end, in one line; empty when there is none. */
  reasonIn(said: string): string;
  /** Told of what it says once it has started for the first time; before, that is an error's text. */
  onWords?(text: string, log: Log): void;
  /** Counters of its own. */
  counters?(): Record<string, number>;
  /** What a successor with the same options must know. */
  save(): unknown;
  /** Puts what it has open into a bag; only close may follow. */
  handOver?(bag: ResourceBag): void;
  /** Releases what it has. */
  close(): void;
}

/** A {@linkcode PeerBackend} on its way to another thread. */
export interface PeerState extends NetBackendState {
  /** As of {@linkcode PeerProgram.save}. */
  readonly program: unknown;
  readonly port: PortState;
  /** null while none runs. */
  readonly process: PeerProcessState | null;
  readonly backoff: BackoffState;
  readonly starts: number;
}

/**
 * What a predecessor of that kind was and had open, if there was one.
 *
 * @throws {ErrnoError} EINVAL when it was of another
 */
export function takePeer(
  saved: Saved<unknown> | undefined,
  kind: string,
): Saved<PeerState> | undefined {
  return saved && { state: takeState(saved.state, kind), bag: saved.bag };
}

/**
 * A frame stream to a program.
 *
 * ```text
 *   running --it ends, or its socket does--> pausing --> running …
 * ```
 */
export class PeerBackend implements NetBackend {
  readonly hasVnetHeader: boolean;
  readonly offloads?: NetOffloads;
  readonly #loop: Loop;
  readonly #log: Log;
  readonly #program: PeerProgram;
  readonly #port: StreamPort;
  readonly #backoff: Backoff;
  readonly #ownership: Ownership;
  #process: PeerProcess | null = null;
  #starts = 0;
  #started = false;

  /**
   * @param program Closed with this object, or when this throws
   * @param saved What a predecessor was and had open, if there was one
   * @throws {import("../../../core/errno.ts").ErrnoError} With the remedy: when the program is not there, or does not run
   */
  constructor(
    program: PeerProgram,
    context: NetContext,
    saved?: Saved<PeerState>,
  ) {
    const { loop } = context;
    this.#loop = loop;
    this.#log = context.log;
    this.#program = program;
    this.#ownership = new Ownership(loop, saved === undefined);
    this.hasVnetHeader = program.offloads !== undefined;
    if (program.offloads !== undefined) this.offloads = program.offloads;
    this.#port = new StreamPort(
      loop,
      () => this.#onEnd(),
      this.hasVnetHeader ? VIRTIO_NET_HDR.SIZE : 0,
    );
    this.#backoff = new Backoff(
      loop,
      RESTART_MAX_MS,
      () => this.#restart(),
      saved?.state.backoff,
    );
    try {
      if (saved === undefined) {
        this.#start();
        program.awaitStart(this.#process!);
      } else this.#load(saved);
      this.#started = true;
    } catch (error) {
      this.close();
      throw error;
    }
  }

  get description(): string {
    return this.#program.description;
  }

  get linkUp(): boolean {
    return this.#port.connected;
  }

  setOffloads(give: number): number {
    this.#program.setOffloads?.(give);
    return 0;
  }

  start(peer: NetPeer): void {
    this.#ownership.take();
    this.#port.start(peer);
  }

  stop(): void {
    this.#port.stop();
  }

  send(frame: ScatterGather, _pair?: number, more?: boolean): number {
    return this.#port.send(frame, more);
  }

  flush(): number {
    return this.#port.flush();
  }

  receive(into: ScatterGather): number {
    return this.#port.receive(into);
  }

  setReceiving(on: boolean): void {
    this.#port.setReceiving(on);
  }

  counters(): Readonly<Record<string, number>> {
    return {
      ...this.#port.counters(),
      ...this.#program.counters?.(),
      starts: this.#starts,
      pid: this.#process?.pid ?? 0,
    };
  }

  save(): PeerState {
    return {
      version: 1,
      kind: this.#program.kind,
      program: this.#program.save(),
      port: this.#port.save(),
      process: this.#process?.save() ?? null,
      backoff: this.#backoff.state(),
      starts: this.#starts,
    };
  }

  handOver(bag: ResourceBag): void {
    this.#program.handOver?.(bag.at("program"));
    this.#port.handOver(bag.at("port"));
    this.#process?.handOver(bag.at("process"));
    this.#ownership.giveAway();
  }

  close(): void {
    this.#backoff.close();
    this.#port.close();
    if (this.#ownership.end()) this.#process?.close();
    else this.#process?.leave();
    this.#process = null;
    this.#program.close();
  }

  #load({ state, bag }: Saved<PeerState>): void {
    this.#starts = state.starts;
    if (state.process !== null) {
      this.#process = this.#watch({
        state: state.process,
        bag: bag.at("process"),
      });
    }
    this.#port.load({ state: state.port, bag: bag.at("port") });
  }

  #start(): void {
    const process = this.#watch(this.#program.start());
    this.#process = process;
    this.#starts++;
    this.#backoff.succeeded();
    this.#port.attach(process.takeSocket());
  }

  #watch(peer: StartedPeer | Saved<PeerProcessState>): PeerProcess {
    return new PeerProcess(
      peer,
      this.#loop,
      () => this.#onEnd(),
      (text) => {
        if (this.#started) this.#program.onWords?.(text, this.#log);
      },
    );
  }

  #restart(): void {
    try {
      this.#start();
      this.#log.info(`${this.#program.name} was started again`);
    } catch (error) {
      if (!(error instanceof SyscallError)) throw error;
      this.#log.warn(`${error.message}; trying again`);
      this.#backoff.retry();
    }
  }

  /** Its socket or its process has ended: whichever is noticed first takes the other along. */
  #onEnd(): void {
    const process = this.#process;
    if (process === null) return;
    this.#process = null;
    this.#port.detach();
    const status = process.end();
    const words = this.#program.reasonIn(process.said);
    this.#log.warn(
      `${this.#program.name} has ended (${formatExitStatus(status)}${
        words === "" ? "" : `, ${words}`
      }): the card is without a network until it is started again`,
    );
    this.#backoff.retry();
  }
}
