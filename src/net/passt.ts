/**
 * A card plugged into passt, which gives the guest the host's own network without any privilege.
 *
 * @module
 */

import { Errno, ErrnoError } from "../errno.ts";
import type { Loop } from "../event_loop.ts";
import { formatExitStatus, SyscallError } from "../libc/mod.ts";
import type { ScatterGather } from "../memory/scatter_gather.ts";
import type { NetBackend, NetContext, NetPeer } from "./backend.ts";
import { Backoff, type BackoffState } from "./backoff.ts";
import { CalmLog } from "./calm_log.ts";
import { type Given, takeGiven } from "./given.ts";
import type { PasstNetOptions } from "./option_table.ts";
import {
  findPasst,
  type GivenPasstProcess,
  passtArguments,
  PasstProcess,
  startPasst,
} from "./passt_process.ts";
import { type GivenPort, StreamPort } from "./stream_port.ts";

/** A passt that does not like its options or its host says so and ends within this time, unless the machine is busy. */
const START_MS = 200;
const RESTART_MAX_MS = 5000;

const KIND = "passt";

interface GivenPasst extends Given {
  /** What was found at first, and is started again. */
  readonly program: string;
  readonly port: GivenPort;
  /** null while none runs. */
  readonly process: GivenPasstProcess | null;
  readonly backoff: BackoffState;
  readonly starts: number;
}

/**
 * A frame stream to a passt process.
 *
 * ```text
 *   running --it ends, or its socket does--> pausing --> running …
 * ```
 */
export class PasstBackend implements NetBackend {
  readonly description: string;
  readonly hasVnetHeader = false;
  readonly #loop: Loop;
  readonly #log: CalmLog;
  readonly #program: string;
  readonly #args: readonly string[];
  readonly #port: StreamPort;
  readonly #backoff: Backoff;
  #process: PasstProcess | null = null;
  #starts = 0;

  /**
   * @param inherited What a predecessor gave, if there was one
   * @param startMs How long to wait for an end at once
   * @throws {ErrnoError} With the remedy: when passt is not there, or ends at once
   */
  constructor(
    options: PasstNetOptions,
    context: NetContext,
    inherited?: unknown,
    startMs = START_MS,
  ) {
    const { loop } = context;
    const given = inherited === undefined
      ? null
      : takeGiven<GivenPasst>(inherited, KIND);
    this.#loop = loop;
    this.#log = new CalmLog(loop, context.log);
    this.#program = given?.program ?? findPasst(options.program);
    this.#args = passtArguments(options, context.mtu);
    this.description = `passt (${this.#program})`;
    this.#port = new StreamPort(loop, () => this.#onEnd());
    this.#backoff = new Backoff(
      loop,
      RESTART_MAX_MS,
      () => this.#restart(),
      given?.backoff ?? null,
    );
    try {
      if (given === null) {
        this.#start();
        this.#awaitTrouble(startMs);
      } else this.#inherit(given);
    } catch (error) {
      // What was given stays the giver's.
      if (given !== null) this.handOver();
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
    return {
      ...this.#port.counters(),
      starts: this.#starts,
      pid: this.#process?.pid ?? 0,
    };
  }

  handOver(): unknown {
    const process = this.#process;
    // Its end, if it comes now, is the successor's to see.
    this.#process = null;
    const given: GivenPasst = {
      version: 1,
      kind: KIND,
      program: this.#program,
      port: this.#port.handOver(),
      process: process?.handOver() ?? null,
      backoff: this.#backoff.state(),
      starts: this.#starts,
    };
    this.#backoff.close();
    return given;
  }

  close(): void {
    this.#backoff.close();
    this.#port.close();
    this.#process?.close();
    this.#process = null;
  }

  #inherit(given: GivenPasst): void {
    this.#starts = given.starts;
    if (given.process !== null) {
      this.#process = new PasstProcess(
        given.process,
        this.#loop,
        () => this.#onEnd(),
      );
    }
    this.#port.inherit(given.port);
  }

  #start(): void {
    const process = new PasstProcess(
      startPasst(this.#program, this.#args),
      this.#loop,
      () => this.#onEnd(),
    );
    this.#process = process;
    this.#starts++;
    this.#backoff.succeeded();
    this.#port.attach(process.takeSocket());
  }

  /** A port that is taken and the like is known at once, and the user is still there to read it. */
  #awaitTrouble(startMs: number): void {
    const process = this.#process!;
    const status = process.waitForExit(startMs);
    if (status === null) return;
    const why = process.lastWords || formatExitStatus(status);
    throw new ErrnoError(
      Errno.EIO,
      `Cannot use net=passt: ${this.#program} ends at once and says: ${why}`,
    );
  }

  #restart(): void {
    try {
      this.#start();
    } catch (error) {
      if (!(error instanceof SyscallError)) throw error;
      this.#log.warn("start", `${error.message}; trying again`);
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
    const words = process.lastWords;
    this.#log.warn(
      "end",
      `passt has ended (${formatExitStatus(status)}${
        words === "" ? "" : `, ${words}`
      }): the card is without a network until it is started again`,
    );
    this.#backoff.retry();
  }
}
