/**
 * From block requests to NBD commands, and which of the writes that were completed a flush has covered.
 *
 * @module
 */

import { bit } from "../../../core/bits.ts";
import { BlockOp, type BlockRequest } from "../contract.ts";
import type { NbdExport } from "./handshake.ts";
import { NBD_CMD, NBD_CMD_FLAG, NBD_FLAG_EXPORT } from "./protocol.ts";
import { NbdPayload, type NbdSlot } from "./slots.ts";

/** How much of a DISCARD or WRITE_ZEROES one command asks for, so that the server answers now and then. */
const RANGE_PART_BYTES = 0x800_0000;
/** As much as is sent where the server knows no WRITE_ZEROES. */
const ZEROES_PART_BYTES = 0x10_0000;

/** What lasts from one thread to the next. */
export interface NbdWriteState {
  /** Whether every write is to be durable when it is completed. */
  readonly writeThrough: boolean;
  /** Writes that were completed and that no flush has covered. */
  readonly unflushed: number;
}

/** Makes the commands of one client; outlives connections. */
export class NbdCommands {
  /** Whether every write is to be durable when it is completed. */
  writeThrough: boolean;
  readonly #zeroesPartBytes: number;
  #flags: number;
  /** Writes that were completed, and how many of them a flush has covered. */
  #completed = 0;
  #flushed = 0;

  /**
   * @param found What the server offers
   * @param maxTransferBytes Of a WRITE
   * @param state Of a predecessor
   */
  constructor(
    found: NbdExport,
    maxTransferBytes: number,
    state: NbdWriteState | null,
  ) {
    this.#flags = found.flags;
    this.#zeroesPartBytes = Math.min(ZEROES_PART_BYTES, maxTransferBytes);
    this.writeThrough = state?.writeThrough ?? false;
    this.#completed = state?.unflushed ?? 0;
  }

  /** Whether the server knows FLUSH. */
  get canFlush(): boolean {
    return this.#can(NBD_FLAG_EXPORT.SEND_FLUSH);
  }

  /** Whether the server knows TRIM. */
  get canTrim(): boolean {
    return this.#can(NBD_FLAG_EXPORT.SEND_TRIM);
  }

  /** Writes that were completed and that no flush has covered. */
  get unflushed(): number {
    return this.#completed - this.#flushed;
  }

  /** Another server, or the same one after a restart. */
  use(found: NbdExport): void {
    this.#flags = found.flags;
  }

  /** Writes the next command of a request into its slot. */
  prepare(slot: NbdSlot): void {
    const request = slot.request!;
    const left = request.lengthBytes - slot.doneBytes;
    slot.offset = request.offset + slot.doneBytes;
    slot.lengthBytes = left;
    slot.flags = 0;
    slot.payload = NbdPayload.NONE;
    if (slot.flushing) {
      slot.command = NBD_CMD.FLUSH;
      slot.offset = 0;
      slot.lengthBytes = 0;
      slot.mark = this.#completed;
      return;
    }
    switch (request.op) {
      case BlockOp.WRITE:
        slot.command = NBD_CMD.WRITE;
        slot.payload = NbdPayload.BUFFERS;
        slot.flags = this.#durableFlag(request);
        return;
      case BlockOp.DISCARD:
        slot.command = NBD_CMD.TRIM;
        slot.lengthBytes = Math.min(left, RANGE_PART_BYTES);
        return;
      case BlockOp.WRITE_ZEROES:
        this.#prepareZeroes(slot, request);
        return;
      default:
        slot.command = NBD_CMD.READ;
    }
  }

  /** Whether a flush must follow the last command of a request. */
  needsFlush(slot: NbdSlot): boolean {
    return this.#isDurable(slot.request!) &&
      (slot.flags & NBD_CMD_FLAG.FUA) === 0 && this.canFlush;
  }

  /** The last command of a request was done. */
  written(slot: NbdSlot): void {
    if (!slot.writes || !this.canFlush) return;
    const covered = this.#flushed === this.#completed &&
      (slot.flags & NBD_CMD_FLAG.FUA) !== 0;
    this.#completed++;
    if (covered) this.#flushed++;
  }

  /** A FLUSH was done. */
  flushed(slot: NbdSlot): void {
    this.#flushed = Math.max(this.#flushed, slot.mark);
  }

  /** The server that had completed them is gone: the next one's flushes say nothing of them. */
  forgetUnflushed(): void {
    this.#flushed = this.#completed;
  }

  /** What a successor needs. */
  save(): NbdWriteState {
    return { writeThrough: this.writeThrough, unflushed: this.unflushed };
  }

  #can(flag: number): boolean {
    return bit(this.#flags, flag);
  }

  #prepareZeroes(slot: NbdSlot, request: BlockRequest): void {
    slot.flags = this.#durableFlag(request);
    if (this.#can(NBD_FLAG_EXPORT.SEND_WRITE_ZEROES)) {
      slot.command = NBD_CMD.WRITE_ZEROES;
      slot.lengthBytes = Math.min(slot.lengthBytes, RANGE_PART_BYTES);
      if (!request.mayUnmap) slot.flags |= NBD_CMD_FLAG.NO_HOLE;
      return;
    }
    slot.command = NBD_CMD.WRITE;
    slot.payload = NbdPayload.ZEROES;
    slot.lengthBytes = Math.min(slot.lengthBytes, this.#zeroesPartBytes);
  }

  #isDurable(request: BlockRequest): boolean {
    return (request.op === BlockOp.WRITE ||
      request.op === BlockOp.WRITE_ZEROES) &&
      (request.durable || this.writeThrough);
  }

  #durableFlag(request: BlockRequest): number {
    return this.#isDurable(request) && this.#can(NBD_FLAG_EXPORT.SEND_FUA)
      ? NBD_CMD_FLAG.FUA
      : 0;
  }
}
