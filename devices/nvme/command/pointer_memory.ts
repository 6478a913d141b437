/**
 * Guest memory in the eyes of one data pointer.
 *
 * @module
 */

import {
  Access,
  type GuestMemory,
  MEMORY_PENDING,
} from "../../../src/memory/guest_memory.ts";
import type { ScatterGather } from "../../../src/memory/scatter_gather.ts";

/** Pieces of lists that are read at most for one data pointer. */
const READS_MAX = 1024;

/**
 * Reads the lists that a data pointer leads to and translates what they describe. What is not in reach is asked for, all of
 * it, and the pointer is followed anew when it is there.
 */
export class PointerMemory {
  readonly #memory: GuestMemory;
  /** The parts of lists that were read. */
  readonly #read: ScatterGather;
  #pending = false;

  constructor(memory: GuestMemory) {
    this.#memory = memory;
    this.#read = memory.createScatterGather(READS_MAX);
  }

  /**
   * Copies the next part of a list.
   *
   * @param address Low and high word
   * @returns 0 or −errno
   */
  readWords(address: Uint32Array, into: Uint32Array, count: number): number {
    const memory = this.#memory;
    const read = this.#read;
    const before = read.lengthBytes;
    let result = memory.translateWords(
      address,
      0,
      count * 4,
      Access.READ,
      read,
    );
    if (result === 0) {
      result = memory.gatherWords(read, before, into, 0, count);
    }
    if (result === MEMORY_PENDING) this.#pending = true;
    return result;
  }

  /**
   * Appends data whose address is at `at` of some words.
   *
   * @returns 0, also for what is not in reach, or −errno
   */
  map(
    words: Uint32Array,
    at: number,
    lengthBytes: number,
    access: Access,
    into: ScatterGather,
  ): number {
    const result = this.#memory.translateWords(
      words,
      at,
      lengthBytes,
      access,
      into,
    );
    if (result !== MEMORY_PENDING) return result;
    this.#pending = true;
    return 0;
  }

  /** Leaves the lists. @returns The status, or MEMORY_PENDING when a part was not in reach */
  end(status: number): number {
    const pending = this.#pending;
    this.#pending = false;
    this.#memory.release(this.#read, pending ? MEMORY_PENDING : 0);
    this.#read.clear();
    return pending ? MEMORY_PENDING : status;
  }
}
