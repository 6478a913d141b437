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
import { Backoff } from "../backoff.ts";
import type { NetOffloads } from "../contract.ts";
import type { Connector, ConnectorContext } from "../socket/stream_backend.ts";
import {
  lastWords,
  type PeerCommand,
  PeerProcess,
  type RunningPeer,
  startPeer,
  takePeer,
} from "./process.ts";

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
  /** Command that starts it, the first time and whenever it has ended. */
  readonly command: PeerCommand;
  /** Lines that it says of itself whatever happens. */
  readonly usual: readonly RegExp[];
  /** Name by which what it says while it runs is logged; it is not when absent. */
  readonly speaker?: string;
  /**
   * Waits, blocking, until it runs; the first time only.
   *
   * @throws {import("../../../core/errno.ts").ErrnoError} When it does not, with the remedy
   */
  awaitStart(process: PeerProcess): void;
  /** Counters of its own. */
  counters?(): Record<string, number>;
  /** State for a successor with the same options, plain data. */
  save(): unknown;
  /** Puts what it has open into a bag; only close may follow. */
  handOver?(bag: ResourceBag): void;
  /** Releases what it has. */
  close?(): void;
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
  #process: PeerProcess | null;
  #starts: number;
  #started: boolean;

  /**
   * @param make Makes the program, with what a predecessor was and had open if there was one; it is closed here
   * @param saved State and descriptors of a predecessor, if there was one
   * @throws {import("../../../core/errno.ts").ErrnoError} With the remedy
   */
  constructor(
    make: (saved?: Saved<unknown>) => PeerProgram,
    context: ConnectorContext,
    saved?: Saved<unknown>,
  ) {
    const state = saved && new StateReader(saved.state, "a program");
    this.#context = context;
    this.#started = state !== undefined;
    this.#starts = state?.integer("starts", Number.MAX_SAFE_INTEGER) ?? 0;
    using undo = new DisposableStack();
    this.#backoff = undo.use(
      new Backoff(
        context.loop,
        RESTART_MAX_MS,
        () => this.#restart(),
        state?.part("backoff"),
      ),
    );
    this.#program = make(
      state &&
        { state: state.value("program"), bag: saved!.bag.at("program") },
    );
    undo.defer(() => this.#program.close?.());
    const { offloads } = this.#program;
    if (offloads !== undefined) this.offloads = offloads;
    this.#process = state === undefined ? null : state.partOrNull(
      "process",
      (state) => this.#adopt(takePeer(state, saved!.bag.at("process"))),
    );
    undo.move();
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

  save(): unknown {
    return {
      program: this.#program.save(),
      process: this.#process?.save() ?? null,
      backoff: this.#backoff.save(),
      starts: this.#starts,
    };
  }

  handOver(bag: ResourceBag): void {
    this.#program.handOver?.(bag.at("program"));
    this.#process?.handOver(bag.at("process"));
  }

  close(): void {
    this.#backoff.close();
    if (this.#context.ownership.end()) this.#process?.end();
    else this.#process?.leave();
    this.#process = null;
    this.#program.close?.();
  }

  #start(): void {
    const peer = startPeer(this.#program.command);
    this.#process = this.#adopt(peer);
    this.#starts++;
    this.#backoff.succeeded();
    this.#context.attach(peer.socket!);
  }

  #adopt(peer: RunningPeer): PeerProcess {
    const { loop, log } = this.#context;
    const onWords = (text: string) => {
      const { speaker, usual } = this.#program;
      // Before it has started, that is an error's text.
      const words = this.#started ? lastWords(text, usual) : "";
      if (speaker !== undefined && words !== "") {
        log.warn(`${speaker}: ${words}`);
      }
    };
    try {
      return new PeerProcess(peer, loop, () => this.#onEnd(), onWords);
    } catch (error) {
      if (peer.socket === null) peer.child.leave();
      else peer.child.close();
      peer.socket?.close();
      peer.stderr.close();
      throw error;
    }
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
    const { name, usual } = this.#program;
    const words = lastWords(process.said, usual);
    this.#context.log.warn(
      `${name} has ended (${formatExitStatus(status)}${
        words === "" ? "" : `, ${words}`
      }): the card is without a network until it is started again`,
    );
    this.#backoff.retry();
  }
}
