/**
 * User-mode networking by libslirp, as a program that a card is plugged into.
 *
 * @module
 */

import { StateReader } from "../../../core/state_reader.ts";
import { Errno, ErrnoError, errnoName } from "../../../core/errno.ts";
import {
  formatExitStatus,
  type ResourceBag,
  type Saved,
} from "../../../os/mod.ts";
import type { PeerProgram } from "../peer/connector.ts";
import {
  lastWords,
  type PeerCommand,
  type PeerProcess,
} from "../peer/process.ts";
import { SLIRP_OFFLOADS } from "./offloads.ts";
import { SlirpPage } from "./page.ts";
import { IF_MTU_MAX, IF_MTU_MIN } from "./symbols.ts";
import { EXIT_NO_LIBRARY, READY, type SlirpTask } from "./task.ts";

/** Marks the state of a card on libslirp. */
export const SLIRP_KIND = "slirp";

/** A start takes a tenth of a second; a machine that is that busy gets nothing else done either. */
const START_MS = 30_000;
/** So long it may take to end after its last words. */
const END_MS = 5000;

/** Variables that tell the runtime where what it has compiled before lies. */
const VARIABLES = [
  ...["PATH", "LD_LIBRARY_PATH"],
  ...["HOME", "DENO_DIR", "XDG_CACHE_HOME"],
];

/** There is no libslirp on this machine. */
export class NoLibslirpError extends ErrnoError {
  /** Reason, for people. */
  readonly reason: string;

  /** @param reason For people */
  constructor(reason: string) {
    super(Errno.ENOENT, `Cannot use libslirp: ${reason}`);
    this.reason = reason;
  }
}

/** Name of the descriptor of its page. */
const PAGE = "page";

/** libslirp in a process of its own. */
export class Slirp implements PeerProgram {
  readonly name = "libslirp's process";
  readonly usual = [READY];
  readonly speaker = "libslirp";
  readonly offloads = SLIRP_OFFLOADS;
  readonly #task: SlirpTask;
  readonly #page: SlirpPage;
  #version = "";

  /**
   * @param saved State and descriptors of a predecessor, if there was one
   * @throws {ErrnoError} EINVAL for an MTU that libslirp cannot have
   */
  constructor(task: SlirpTask, saved?: Saved<unknown>) {
    const { mtu } = task;
    if (mtu < IF_MTU_MIN || mtu > IF_MTU_MAX) {
      throw new ErrnoError(
        Errno.EINVAL,
        `Cannot use an MTU of ${mtu} with net=user: ${IF_MTU_MIN} to ${IF_MTU_MAX} are possible`,
      );
    }
    this.#task = task;
    if (saved !== undefined) {
      this.#version = new StateReader(saved.state, "libslirp").text("version");
    }
    this.#page = new SlirpPage(saved?.bag.take(PAGE));
  }

  get description(): string {
    return `user (libslirp ${this.#version})`;
  }

  get command(): PeerCommand {
    const program = Deno.execPath();
    return {
      program,
      args: [
        ...[program, "run", "--quiet", "--no-prompt", "--no-config"],
        ...["--allow-ffi", import.meta.resolve("./helper.ts")],
        JSON.stringify(this.#task),
      ],
      variables: VARIABLES,
      fds: [this.#page.fd],
    };
  }

  awaitStart(process: PeerProcess): void {
    const ready = process.waitForWords(READY, START_MS);
    if (ready !== null) {
      this.#version = ready[1]!;
      return;
    }
    const status = process.waitForExit(END_MS) ?? process.end();
    const words = lastWords(process.said, this.usual);
    if (status.code === EXIT_NO_LIBRARY) throw new NoLibslirpError(words);
    if (status.code !== null && errnoName(status.code) in Errno) {
      throw new ErrnoError(status.code, words.replace(/ \(E\w+\)$/, ""));
    }
    throw new ErrnoError(
      Errno.EIO,
      `Cannot use net=user: ${this.name} does not run (${
        formatExitStatus(status)
      }) and says: ${words}`,
    );
  }

  setOffloads(give: number): void {
    this.#page.offloads = give;
  }

  counters(): Record<string, number> {
    return this.#page.counters();
  }

  save(): unknown {
    return { version: this.#version };
  }

  handOver(bag: ResourceBag): void {
    bag.put(PAGE, this.#page.fd);
  }

  close(): void {
    this.#page.close();
  }
}
