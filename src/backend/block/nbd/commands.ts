/**
 * From block requests to NBD commands: the slots that hold them on their way to a server and back, and which of the writes
 * that were completed a flush has covered.
 *
 * @module
 */

import type { StateReader } from "../../../core/state_reader.ts";
import { bit } from "../../../core/bits.ts";
import { Errno } from "../../../core/errno.ts";
import { BlockOp, type BlockRequest } from "../contract.ts";
import type { NbdAgreement } from "./connection.ts";
import {
  NBD_CMD,
  NBD_CMD_FLAG,
  NBD_ERROR,
  NBD_FLAG_EXPORT,
} from "./protocol.ts";

/** Stages in the life of a {@linkcode NbdSlot}. */
export const NbdSlotState = {
  FREE: 0,
  /** Waits to be sent, or is partly sent. */
  QUEUED: 1,
  /** With the server. */
  SENT: 2,
  /** With the server, while nobody waits for the reply any more. */
  ABANDONED: 3,
} as const;

/** A state of {@linkcode NbdSlotState}. */
export type NbdSlotState = typeof NbdSlotState[keyof typeof NbdSlotState];

/** One command on the wire, for one block request or a part of it. */
export class NbdSlot {
  /** Low half of the cookie. */
  readonly index: number;
  /** High half of the cookie; changes with each use. */
  generation = 0;
  state: NbdSlotState = NbdSlotState.FREE;
  /** Null once abandoned. */
  request: BlockRequest | null = null;
  /** NBD_CMD_*, and its NBD_CMD_FLAG bits. */
  command: number = NBD_CMD.DISC;
  flags = 0;
  offset = 0;
  lengthBytes = 0;
  /** Bytes behind the header: of the request's buffers, or zeroes for a WRITE_ZEROES. */
  payloadBytes = 0;
  /** Bytes that earlier commands of the request have done. */
  doneBytes = 0;
  /** Bytes of a READ that have come, and the error that came with them. */
  receivedBytes = 0;
  error = 0;
  /** Tick at which it is given up. */
  deadline = 0;
  /** Writes that had been completed when a FLUSH was sent. */
  mark = 0;

  constructor(index: number) {
    this.index = index;
  }

  /** True when the command changes what the server holds. */
  get writes(): boolean {
    return this.command === NBD_CMD.WRITE || this.command === NBD_CMD.TRIM ||
      this.command === NBD_CMD.WRITE_ZEROES;
  }
}

/** All slots of a back end. */
export class NbdSlots {
  /** Every slot, free or not. */
  readonly all: readonly NbdSlot[];
  readonly #free: Uint16Array;
  #freeCount: number;

  /** @param count At most 65536 */
  constructor(count: number) {
    this.all = Array.from({ length: count }, (_, i) => new NbdSlot(i));
    this.#free = Uint16Array.from(this.all, ({ index }) => count - 1 - index);
    this.#freeCount = count;
  }

  /** Slots that are not free. */
  get used(): number {
    return this.all.length - this.#freeCount;
  }

  /** Takes a free slot; null when there is none. */
  take(): NbdSlot | null {
    if (this.#freeCount === 0) return null;
    const slot = this.all[this.#free[--this.#freeCount]!]!;
    slot.generation = (slot.generation + 1) & 0x3fff_ffff;
    return slot;
  }

  /** Gives a slot back. */
  release(slot: NbdSlot): void {
    slot.state = NbdSlotState.FREE;
    slot.request = null;
    this.#free[this.#freeCount++] = slot.index;
  }

  /** Finds the slot that a cookie names, if the server can have it; else null. */
  find(generation: number, index: number): NbdSlot | null {
    if (index >= this.all.length) return null;
    const slot = this.all[index]!;
    if (slot.generation !== generation) return null;
    return slot.state === NbdSlotState.SENT ||
        slot.state === NbdSlotState.ABANDONED
      ? slot
      : null;
  }
}

/** Most that one command of a DISCARD or WRITE_ZEROES covers, so that the server answers now and then. */
const RANGE_PART_BYTES = 0x800_0000;
/** Most zeroes of one command, where the server knows no WRITE_ZEROES. */
const ZEROES_PART_BYTES = 0x10_0000;

/** State of the writes of a client; plain data. */
export interface NbdWriteState {
  /** True when every write is to be durable when it is completed. */
  readonly writeThrough: boolean;
  /** Writes that were completed and that no flush has covered. */
  readonly unflushed: number;
}

/** @throws {import("../../../core/errno.ts").ErrnoError} EINVAL when a saved state has it wrong */
export function parseWriteState(reader: StateReader): NbdWriteState {
  return {
    writeThrough: reader.flag("writeThrough"),
    unflushed: reader.integer("unflushed", Number.MAX_SAFE_INTEGER),
  };
}

/** Makes the commands of one client; outlives connections. */
export class NbdCommands {
  /** True when every write is to be durable when it is completed. */
  writeThrough: boolean;
  readonly #zeroesPartBytes: number;
  #flags: number;
  /** Writes that were completed, and how many of them a flush has covered. */
  #completed = 0;
  #flushed = 0;

  /**
   * @param maxTransferBytes Of a WRITE
   * @param state To go on from
   */
  constructor(
    found: NbdAgreement,
    maxTransferBytes: number,
    state: NbdWriteState | null,
  ) {
    this.#flags = found.flags;
    this.#zeroesPartBytes = Math.min(ZEROES_PART_BYTES, maxTransferBytes);
    this.writeThrough = state?.writeThrough ?? false;
    this.#completed = state?.unflushed ?? 0;
  }

  /** True when the server knows FLUSH. */
  get canFlush(): boolean {
    return bit(this.#flags, NBD_FLAG_EXPORT.SEND_FLUSH);
  }

  /** True when the server knows TRIM. */
  get canTrim(): boolean {
    return bit(this.#flags, NBD_FLAG_EXPORT.SEND_TRIM);
  }

  /** Writes that were completed and that no flush has covered. */
  get unflushed(): number {
    return this.#completed - this.#flushed;
  }

  /** Goes on with another server, or the same one after a restart. */
  use(found: NbdAgreement): void {
    this.#flags = found.flags;
  }

  /** Writes the next command of a request into its slot. */
  prepare(slot: NbdSlot): void {
    const request = slot.request!;
    const left = request.lengthBytes - slot.doneBytes;
    slot.flags = 0;
    slot.offset = request.offset + slot.doneBytes;
    slot.lengthBytes = left;
    slot.payloadBytes = 0;
    switch (request.op) {
      case BlockOp.READ:
        slot.command = NBD_CMD.READ;
        return;
      case BlockOp.WRITE:
        slot.command = NBD_CMD.WRITE;
        slot.flags = this.#durableFlag(request);
        slot.payloadBytes = left;
        return;
      case BlockOp.FLUSH:
        return this.prepareFlush(slot);
      case BlockOp.DISCARD:
        slot.command = NBD_CMD.TRIM;
        slot.lengthBytes = Math.min(left, RANGE_PART_BYTES);
        return;
      case BlockOp.WRITE_ZEROES:
        return this.#prepareZeroes(slot, request);
      default:
        request.op satisfies never;
    }
  }

  /** Writes a FLUSH into a slot, for a request that is one or is to be durable. */
  prepareFlush(slot: NbdSlot): void {
    slot.command = NBD_CMD.FLUSH;
    slot.flags = 0;
    slot.offset = 0;
    slot.lengthBytes = 0;
    slot.payloadBytes = 0;
    slot.mark = this.#completed;
  }

  /** True when a FLUSH must follow the last command of a request. */
  needsFlush(slot: NbdSlot): boolean {
    return this.#isDurable(slot.request!) &&
      (slot.flags & NBD_CMD_FLAG.FUA) === 0 && this.canFlush;
  }

  /** Counts the last command of a request, which was done. */
  written(slot: NbdSlot): void {
    if (!slot.writes || !this.canFlush) return;
    const covered = this.#flushed === this.#completed &&
      (slot.flags & NBD_CMD_FLAG.FUA) !== 0;
    this.#completed++;
    if (covered) this.#flushed++;
  }

  /** Counts what a FLUSH has covered that was done. */
  flushed(slot: NbdSlot): void {
    this.#flushed = Math.max(this.#flushed, slot.mark);
  }

  /** Forgets writes whose server is gone: the flushes of the next one say nothing of them. */
  forgetUnflushed(): void {
    this.#flushed = this.#completed;
  }

  /** Gives what to go on from. */
  save(): NbdWriteState {
    return { writeThrough: this.writeThrough, unflushed: this.unflushed };
  }

  #prepareZeroes(slot: NbdSlot, request: BlockRequest): void {
    slot.flags = this.#durableFlag(request);
    if (bit(this.#flags, NBD_FLAG_EXPORT.SEND_WRITE_ZEROES)) {
      slot.command = NBD_CMD.WRITE_ZEROES;
      slot.lengthBytes = Math.min(slot.lengthBytes, RANGE_PART_BYTES);
      if (!request.mayUnmap) slot.flags |= NBD_CMD_FLAG.NO_HOLE;
      return;
    }
    slot.command = NBD_CMD.WRITE;
    slot.lengthBytes = Math.min(slot.lengthBytes, this.#zeroesPartBytes);
    slot.payloadBytes = slot.lengthBytes;
  }

  #isDurable(request: BlockRequest): boolean {
    return (request.op === BlockOp.WRITE ||
      request.op === BlockOp.WRITE_ZEROES) &&
      (request.durable || this.writeThrough);
  }

  #durableFlag(request: BlockRequest): number {
    return this.#isDurable(request) &&
        bit(this.#flags, NBD_FLAG_EXPORT.SEND_FUA)
      ? NBD_CMD_FLAG.FUA
      : 0;
  }
}

const NBD_ERRORS: readonly number[] = Object.values(NBD_ERROR);

/** Linux's error number for one of NBD's, which has the same number. An unknown one is to be taken for EINVAL. */
export function errnoOfNbd(error: number): number {
  return NBD_ERRORS.includes(error) ? error : Errno.EINVAL;
}
