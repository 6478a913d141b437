/**
 * Requests on their way to an NBD server and back.
 *
 * @module
 */

import type { BlockRequest } from "../contract.ts";
import { NBD_CMD } from "./protocol.ts";

/** Where a {@linkcode NbdSlot} is in its life. */
export const NbdSlotState = {
  /** Nothing is in it. */
  FREE: 0,
  /** It waits to be sent, or is partly sent. */
  QUEUED: 1,
  /** The server has it. */
  SENT: 2,
  /** The server has it, but nobody waits for the reply any more. */
  ABANDONED: 3,
} as const;

/** A state of {@linkcode NbdSlotState}. */
export type NbdSlotState = typeof NbdSlotState[keyof typeof NbdSlotState];

/** What follows the header of a request. */
export const NbdPayload = {
  NONE: 0,
  /** The buffers of the block request. */
  BUFFERS: 1,
  /** Zeroes. */
  ZEROES: 2,
} as const;

/** A kind of {@linkcode NbdPayload}. */
export type NbdPayload = typeof NbdPayload[keyof typeof NbdPayload];

/** One command on the wire, for one block request or a part of it. */
export class NbdSlot {
  /** Low half of the cookie. */
  readonly index: number;
  /** High half of the cookie; changes with each use. */
  generation = 0;
  state: NbdSlotState = NbdSlotState.FREE;
  /** Whose request it is; null once abandoned. */
  request: BlockRequest | null = null;
  /** NBD_CMD_*, and its NBD_CMD_FLAG bits. */
  command = 0;
  flags = 0;
  offset = 0;
  lengthBytes = 0;
  payload: NbdPayload = NbdPayload.NONE;
  /** How much of a request that is sent in parts is done. */
  doneBytes = 0;
  /** Whether the command is the flush that makes the request durable. */
  flushing = false;
  /** How many bytes of a READ have come, and the error that came with them. */
  receivedBytes = 0;
  error = 0;
  /** The tick at which it is given up. */
  deadline = 0;
  /** How many writes had been completed when a FLUSH was sent. */
  mark = 0;

  constructor(index: number) {
    this.index = index;
  }

  /** Bytes behind the header. */
  get payloadBytes(): number {
    return this.payload === NbdPayload.NONE ? 0 : this.lengthBytes;
  }

  /** Whether the command changes what the server holds. */
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
    this.#free = new Uint16Array(count);
    this.#freeCount = count;
    for (let i = 0; i < count; i++) this.#free[i] = count - 1 - i;
  }

  /** How many slots are not free. */
  get used(): number {
    return this.all.length - this.#freeCount;
  }

  /** How many have a request that is not answered. */
  get requests(): number {
    let count = 0;
    for (const { request } of this.all) if (request !== null) count++;
    return count;
  }

  /** A free slot; null when there is none. */
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

  /** The slot that a cookie names, if the server can have it; else null. */
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
