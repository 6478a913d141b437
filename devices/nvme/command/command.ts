/**
 * Commands in flight: objects made once, taken and given back.
 *
 * @module
 */

import { high32 } from "../../../src/core/bits.ts";
import { BlockRequest } from "../../../src/backend/block/contract.ts";
import type { GuestMemory } from "../../../src/memory/guest_memory.ts";
import { NVME_DSM_MAX_RANGES, NVME_DSM_RANGE } from "../defs.ts";
import type { Namespace } from "../io/namespace.ts";
import type { SubmissionQueue } from "../queue/queue.ts";

/** Where a command is. */
export const CommandState = {
  FREE: 0,
  /** Fetched; with the controller or a back end. */
  BUSY: 1,
  /** The back end has returned its request. */
  RETURNED: 2,
  /** It has a status, and its completion is to be posted. */
  DONE: 3,
} as const;

/** A state of {@linkcode CommandState}. */
export type CommandState = typeof CommandState[keyof typeof CommandState];

/**
 * One command.
 *
 * ```text
 *   free --fetch--> busy --status--> done --completion posted--> free
 *                    ↑ ↓ result       ↑
 *                  returned ──status──╯
 * ```
 * What it needs beyond its request is kept here, so that commands of several steps can go on from a completion.
 */
export class Command {
  /** What goes to the back end; its tag is this command's index. */
  readonly request: BlockRequest;
  state: CommandState = CommandState.FREE;
  /** Where it came from; null for what the controller does on its own account. */
  sq: SubmissionQueue | null = null;
  cid = 0;
  opcode = 0;
  /** What it works on. */
  namespace: Namespace | null = null;
  /** Namespace id of the entry, for the error log. */
  nsid = 0;
  /** First block that the error is about, for the error log: low and high word. */
  lbaLow = 0;
  lbaHigh = 0;
  /** What the back end said, when returned. */
  result = 0;
  /** Of the completion, when done. */
  status = 0;
  /** Of the completion. */
  dw0 = 0;
  /** How much its buffers are given when it succeeds, and are not released yet; only of a Read. */
  readBytes = 0;
  /** Whether it holds a reservation in its completion queue. */
  reserved = false;
  /** Whether its identifier is its own: not one that another command in flight has. */
  ownsCid = false;
  /** Which step of how many, for commands of several. */
  step = 0;
  steps = 0;
  #ranges: Uint32Array<ArrayBuffer> | null = null;
  #rangeBytes: Uint8Array<ArrayBuffer> | null = null;

  /** @param segments The most segments it may transfer */
  constructor(memory: GuestMemory, segments: number, tag: number) {
    this.request = new BlockRequest(memory, segments, tag);
  }

  /** What it ends with is about the block in which this byte of its namespace is. */
  blame(offset: number): void {
    const lba = Math.floor(offset / 2 ** this.namespace!.lbaShift);
    this.lbaLow = lba >>> 0;
    this.lbaHigh = high32(lba);
  }

  /** Room for the ranges of Dataset Management; made when it is first needed. */
  get ranges(): Uint32Array<ArrayBuffer> {
    return this.#ranges ??= new Uint32Array(
      NVME_DSM_MAX_RANGES * NVME_DSM_RANGE.WORDS,
    );
  }

  /** The same, as bytes. */
  get rangeBytes(): Uint8Array<ArrayBuffer> {
    return this.#rangeBytes ??= new Uint8Array(this.ranges.buffer);
  }
}

/** A fixed number of commands. */
export class CommandPool {
  readonly #free: Command[];
  #count: number;

  /** @param commands All of it, free */
  constructor(commands: readonly Command[]) {
    this.#free = [...commands];
    this.#count = commands.length;
  }

  /** How many are free. */
  get available(): number {
    return this.#count;
  }

  /** Takes a command, or null when all are in flight. */
  take(): Command | null {
    if (this.#count === 0) return null;
    const command = this.#free[--this.#count]!;
    command.state = CommandState.BUSY;
    command.namespace = null;
    command.sq = null;
    command.dw0 = command.readBytes = 0;
    command.lbaLow = command.lbaHigh = 0;
    return command;
  }

  /** Gives a command back. */
  give(command: Command): void {
    command.state = CommandState.FREE;
    this.#free[this.#count++] = command;
  }
}
