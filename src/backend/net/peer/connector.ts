/**
 * A program that runs as a child process at the other end of a card's frame stream, and is started again when it ends.
 *
 * @module
 */

import {
  formatExitStatus,
  type ResourceBag,
  type Saved,
  SyscallError,
} from "../../../os/mod.ts";
import { StateReader } from "../../../core/state_reader.ts";
import type { Log } from "../../../core/log.ts";
import { Backoff, type BackoffState, parseBackoff } from "../backoff.ts";
import type { NetOffloads } from "../contract.ts";
import type { Connector, ConnectorContext } from "../socket/stream_backend.ts";
import {
  PeerProcess,
  type PeerProcessState,
  type StartedPeer,
} from "./process.ts";

/** PID_MAX_LIMIT of Linux on 64 bits. */
const PID_MAX = 4 * 1024 * 1024;
const RESTART_MAX_MS = 5000;

/** Program that cards are plugged into. */
export interface PeerProgram {
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
  /** Picks what may be the reason for its end out of all that it said, as one line; empty when there is none. */
  reasonIn(said: string): string;
  /** Called with what it says once it has started for the first time; before, that is an error's text. */
  onWords?(text: string, log: Log): void;
  /** Counters of its own. */
  counters?(): Record<string, number>;
  /** State for a successor with the same options, plain data. */
  save(): unknown;
  /** Puts what it has open into a bag; only close may follow. */
  handOver?(bag: ResourceBag): void;
  /** Releases what it has. */
  close(): void;
}

interface PeerState {
  /** As of {@linkcode PeerProgram.save}. */
  readonly program: unknown;
  /** null while none runs. */
  readonly process: PeerProcessState | null;
  readonly backoff: BackoffState;
  readonly starts: number;
}

/** @throws {import("../../../core/errno.ts").ErrnoError} EINVAL when it cannot be */
function parsePeerState(state: unknown): PeerState {
  const reader = new StateReader(state, "a program");
  return {
    program: reader.value("program"),
    process: reader.partOrNull("process", (process) => ({
      pid: process.integer("pid", PID_MAX),
      said: process.text("said"),
    })),
    backoff: parseBackoff(reader.part("backoff")),
    starts: reader.integer("starts", Number.MAX_SAFE_INTEGER),
  };
}

/**
 * Starts a program, and again when it ends.
 *
 * ```text
 *   running --it ends, or its socket does--> pausing --> running …
 * ```
 */
export class PeerConnector implements Connector {
  readonly offloads?: NetOffloads;
  readonly #context: ConnectorContext;
  readonly #program: PeerProgram;
  readonly #backoff: Backoff;
  #process: PeerProcess | null = null;
  #starts = 0;
  #started = false;

  /**
   * @param make Makes the program, with what a predecessor was and had open if there was one; it is closed here
   * @param saved What a predecessor was and had open, if there was one
   * @throws {import("../../../core/errno.ts").ErrnoError} With the remedy
   */
  constructor(
    make: (saved?: Saved<unknown>) => PeerProgram,
    context: ConnectorContext,
    saved?: Saved<unknown>,
  ) {
    const state = saved && parsePeerState(saved.state);
    this.#context = context;
    this.#program = make(
      state && { state: state.program, bag: saved!.bag.at("program") },
    );
    const { offloads } = this.#program;
    if (offloads !== undefined) this.offloads = offloads;
    this.#backoff = new Backoff(
      context.loop,
      RESTART_MAX_MS,
      () => this.#restart(),
      state?.backoff,
    );
    if (state === undefined) return;
    this.#starts = state.starts;
    this.#started = true;
    if (state.process === null) return;
    try {
      const bag = saved!.bag.at("process");
      this.#process = this.#watch({ state: state.process, bag });
    } catch (error) {
      this.close();
      throw error;
    }
  }

  get description(): string {
    return this.#program.description;
  }

  setOffloads(give: number): void {
    this.#program.setOffloads?.(give);
  }

  begin(): void {
    this.#start();
    this.#program.awaitStart(this.#process!);
    this.#started = true;
  }

  onLost(): void {
    this.#onEnd();
  }

  counters(): Readonly<Record<string, number>> {
    return {
      ...this.#program.counters?.(),
      starts: this.#starts,
      pid: this.#process?.pid ?? 0,
    };
  }

  save(): PeerState {
    return {
      program: this.#program.save(),
      process: this.#process?.save() ?? null,
      backoff: this.#backoff.state(),
      starts: this.#starts,
    };
  }

  handOver(bag: ResourceBag): void {
    this.#program.handOver?.(bag.at("program"));
    this.#process?.handOver(bag.at("process"));
  }

  close(): void {
    this.#backoff.close();
    if (this.#context.ownership.end()) this.#process?.close();
    else this.#process?.leave();
    this.#process = null;
    this.#program.close();
  }

  #start(): void {
    const process = this.#watch(this.#program.start());
    this.#process = process;
    this.#starts++;
    this.#backoff.succeeded();
    this.#context.attach(process.takeSocket());
  }

  #watch(peer: StartedPeer | Saved<PeerProcessState>): PeerProcess {
    const { loop, log } = this.#context;
    return new PeerProcess(
      peer,
      loop,
      () => this.#onEnd(),
      (text) => {
        if (this.#started) this.#program.onWords?.(text, log);
      },
    );
  }

  #restart(): void {
    const { log } = this.#context;
    try {
      this.#start();
      log.info(`${this.#program.name} was started again`);
    } catch (error) {
      if (!(error instanceof SyscallError)) throw error;
      log.warn(`${error.message}; trying again`);
      this.#backoff.retry();
    }
  }

  /** Its socket or its process has ended: whichever is noticed first takes the other along. */
  #onEnd(): void {
    const process = this.#process;
    if (process === null) return;
    this.#process = null;
    this.#context.detach();
    const status = process.end();
    const words = this.#program.reasonIn(process.said);
    this.#context.log.warn(
      `${this.#program.name} has ended (${formatExitStatus(status)}${
        words === "" ? "" : `, ${words}`
      }): the card is without a network until it is started again`,
    );
    this.#backoff.retry();
  }
}
