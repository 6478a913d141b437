/**
 * The Compare command: reads blocks into memory of our own and looks at both, one command at a time.
 *
 * @module
 */

import { BlockOp } from "../../../src/backend/block/contract.ts";
import {
  Access,
  type GuestMemory,
  type ScratchMemory,
} from "../../../src/memory/guest_memory.ts";
import type { ScatterGather } from "../../../src/memory/scatter_gather.ts";
import type { Command } from "../command/command.ts";
import { NvmeSc } from "../defs.ts";

/** Bytes that are read and compared at once. */
const CHUNK_BYTES = 0x1_0000;

/** The request of the command is to be submitted; no status of the standard is negative. */
export const SUBMIT = -2;

/**
 * Compares.
 *
 * ```text
 *   idle --begin--> reading --next--> (reading … ) --end--> idle
 * ```
 * In a command that is being compared `step` counts the bytes that are done and `steps` is how many there are.
 */
export class Comparer {
  readonly #memory: GuestMemory;
  /** The driver's side, and what of it is not compared yet. */
  readonly #guest: ScatterGather;
  readonly #left: ScatterGather;
  #ours: ScratchMemory | null = null;
  #theirs = new Uint8Array(0);
  #active: Command | null = null;

  /** @param segments The most segments of a command */
  constructor(memory: GuestMemory, segments: number) {
    this.#memory = memory;
    this.#guest = memory.createScatterGather(segments);
    this.#left = memory.createScatterGather(segments);
  }

  /** Whether a command is being compared. */
  get busy(): boolean {
    return this.#active !== null;
  }

  /**
   * Begins with a command: `request.offset` says where and `request.buffers` with what.
   *
   * @returns {@linkcode SUBMIT} or a status
   */
  begin(command: Command): number {
    this.#active = command;
    if (this.#ours === null) {
      this.#ours = this.#memory.createScratch(CHUNK_BYTES);
      this.#theirs = new Uint8Array(CHUNK_BYTES);
    }
    const { request } = command;
    this.#guest.clear();
    this.#guest.append(request.buffers);
    this.#left.clear();
    this.#left.append(request.buffers);
    command.step = 0;
    command.steps = this.#guest.lengthBytes;
    request.op = BlockOp.READ;
    request.durable = false;
    return this.#readChunk(command);
  }

  /**
   * A chunk was read.
   *
   * @returns {@linkcode SUBMIT} or a status
   */
  next(command: Command): number {
    // What was unmapped in the meantime is not the driver's any more.
    if (!this.#isMapped) return NvmeSc.DATA_XFER_ERROR;
    const length = command.request.lengthBytes;
    const theirs = this.#theirs;
    const ours = this.#ours!.bytes;
    if (this.#memory.gather(this.#left, theirs, length) !== length) {
      return NvmeSc.DATA_XFER_ERROR;
    }
    for (let i = 0; i < length; i++) {
      if (theirs[i] === ours[i]) continue;
      command.blame(command.request.offset + i);
      return NvmeSc.COMPARE_FAILED;
    }
    this.#left.consume(length);
    command.step += length;
    if (command.step === command.steps) return NvmeSc.SUCCESS;
    command.request.offset += length;
    return this.#readChunk(command);
  }

  /** The command has a status, and its buffers again. */
  end(): void {
    if (this.#active === null) return;
    const { buffers } = this.#active.request;
    buffers.clear();
    buffers.append(this.#guest);
    this.#active = null;
  }

  /** Whether the driver's side is where it was. */
  get #isMapped(): boolean {
    return this.#memory.holds(this.#guest, Access.READ);
  }

  #readChunk(command: Command): number {
    if (!this.#isMapped) return NvmeSc.DATA_XFER_ERROR;
    const { request } = command;
    const length = Math.min(CHUNK_BYTES, command.steps - command.step);
    request.lengthBytes = length;
    request.buffers.clear();
    this.#ours!.append(length, request.buffers);
    return SUBMIT;
  }
}
