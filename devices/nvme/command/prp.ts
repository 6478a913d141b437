/**
 * Physical region pages (NVM Express 1.4, section 4.3): from PRP1, PRP2 and PRP lists to a scatter-gather list.
 *
 * @module
 */

import { Errno } from "../../../src/core/errno.ts";
import type { Access } from "../../../src/memory/guest_memory.ts";
import type { ScatterGather } from "../../../src/memory/scatter_gather.ts";
import { NvmeSc, SQE } from "../defs.ts";
import type { PointerMemory } from "./pointer_memory.ts";

/** Entries of a PRP list that are copied at once. */
const BATCH = 64;
const ENTRY_BYTES = 8;

/**
 * Walks PRPs. Every entry is copied once and only the copy is looked at, so that a driver cannot change it between
 * the check and the use.
 */
export class PrpWalker {
  readonly #memory: PointerMemory;
  readonly #entries = new Uint32Array(BATCH * 2);
  /** Address of the next entry of the list: low word, high word. */
  readonly #list = new Uint32Array(2);
  /** CC.MPS in bytes. */
  pageBytes = 4096;

  /** @param memory Whose addresses PRPs are */
  constructor(memory: PointerMemory) {
    this.#memory = memory;
  }

  /**
   * Appends what a command's PRPs describe.
   *
   * @param sqe The command
   * @param lengthBytes Length of its transfer, at least 1
   * @returns A status: SUCCESS, PRP_INVALID_OFFSET, DATA_XFER_ERROR when a part is not guest memory, or
   * INVALID_FIELD when an entry is missing that is needed, or the list is full
   */
  map(
    sqe: Uint32Array,
    lengthBytes: number,
    access: Access,
    into: ScatterGather,
  ): number {
    const prp1 = sqe[SQE.PRP1]!;
    if ((prp1 & 3) !== 0) return NvmeSc.PRP_INVALID_OFFSET;
    const room = this.pageBytes - (prp1 & (this.pageBytes - 1));
    const first = lengthBytes < room ? lengthBytes : room;
    const status = this.#page(sqe, SQE.PRP1, first, access, into);
    const rest = lengthBytes - first;
    if (status !== NvmeSc.SUCCESS || rest === 0) return status;
    const prp2 = sqe[SQE.PRP2]!;
    if (isMissing(sqe, SQE.PRP2)) return NvmeSc.INVALID_FIELD;
    if (rest <= this.pageBytes) {
      if ((prp2 & (this.pageBytes - 1)) !== 0) {
        return NvmeSc.PRP_INVALID_OFFSET;
      }
      return this.#page(sqe, SQE.PRP2, rest, access, into);
    }
    if ((prp2 & (ENTRY_BYTES - 1)) !== 0) return NvmeSc.PRP_INVALID_OFFSET;
    this.#list[0] = prp2;
    this.#list[1] = sqe[SQE.PRP2 + 1]!;
    return this.#walk(rest, access, into);
  }

  #page(
    words: Uint32Array,
    at: number,
    lengthBytes: number,
    access: Access,
    into: ScatterGather,
  ): number {
    const result = this.#memory.map(words, at, lengthBytes, access, into);
    if (result === 0) return NvmeSc.SUCCESS;
    return result === -Errno.E2BIG
      ? NvmeSc.INVALID_FIELD
      : NvmeSc.DATA_XFER_ERROR;
  }

  /** Follows the list; each turn takes off data or, once per page, follows a pointer, so it ends. */
  #walk(lengthBytes: number, access: Access, into: ScatterGather): number {
    const page = this.pageBytes;
    const mask = page - 1;
    const entries = this.#entries;
    let left = lengthBytes;
    while (left > 0) {
      const inPage = (page - (this.#list[0]! & mask)) / ENTRY_BYTES;
      const wanted = Math.ceil(left / page);
      // When a page of the list does not hold all entries, its last one points to the next page.
      const chained = wanted > inPage;
      const here = chained ? inPage : wanted;
      const count = here < BATCH ? here : BATCH;
      if (this.#memory.readWords(this.#list, entries, count * 2) < 0) {
        return NvmeSc.DATA_XFER_ERROR;
      }
      const follow = chained && count === inPage;
      const data = follow ? count - 1 : count;
      for (let i = 0; i < data; i++) {
        if ((entries[i * 2]! & mask) !== 0) return NvmeSc.PRP_INVALID_OFFSET;
        if (isMissing(entries, i * 2)) return NvmeSc.INVALID_FIELD;
        const length = left < page ? left : page;
        const status = this.#page(entries, i * 2, length, access, into);
        if (status !== NvmeSc.SUCCESS) return status;
        left -= length;
      }
      if (!follow) {
        // Still inside the page, so nothing is carried.
        this.#list[0] = this.#list[0]! + data * ENTRY_BYTES;
        continue;
      }
      if ((entries[data * 2]! & mask) !== 0) return NvmeSc.PRP_INVALID_OFFSET;
      if (isMissing(entries, data * 2)) return NvmeSc.INVALID_FIELD;
      this.#list[0] = entries[data * 2]!;
      this.#list[1] = entries[data * 2 + 1]!;
    }
    return NvmeSc.SUCCESS;
  }
}

/** Tells whether an entry behind the first is 0: the driver gave none, and does not mean the page at address 0. */
function isMissing(words: Uint32Array, at: number): boolean {
  return words[at] === 0 && words[at + 1] === 0;
}
