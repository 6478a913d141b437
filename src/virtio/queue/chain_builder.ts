/**
 * Common parts of the descriptor chains of both ring formats: buffers that go into the lists of a chain, and tables
 * of indirect descriptors.
 *
 * @module
 */

import { hex, PAGE_SIZE, u64 } from "../../core/bits.ts";
import { Errno } from "../../core/errno.ts";
import {
  Access,
  type GuestMemory,
  MEMORY_PENDING,
  type MemoryWindow,
} from "../../memory/guest_memory.ts";
import type { ScatterGather } from "../../memory/scatter_gather.ts";
import { VRING_DESC } from "../defs.ts";
import type { Chain } from "./queue.ts";

/** Words of a descriptor. */
const WORDS = VRING_DESC.SIZE / 4;
const ADDR_LOW = 0;
const ADDR_HIGH = 1;
const LEN = 2;
/** Descriptors of an indirect table that are copied at once. */
const INDIRECT_BATCH = 32;
/** More entries than that cannot be named by 16 bits. */
const INDIRECT_ENTRIES_MAX = 0x1_0000;
/** Pages of the longest table, if it begins inside one. */
const TABLE_SEGMENTS = INDIRECT_ENTRIES_MAX * VRING_DESC.SIZE / PAGE_SIZE + 1;

/** Place of the fourth word of a copied descriptor, behind its address and its length: its meaning is the format's. */
export const LAST_WORD = 3;

/** Sections of the standard that say what a chain must be, for messages. */
export interface ChainRules {
  /** Readable buffers come before writable ones. */
  readonly order: string;
  /** Memory that a descriptor refers to. */
  readonly buffer: string;
  /** The limit of a chain's length in bytes. */
  readonly length: string;
  /** The limit of a chain's length in buffers. */
  readonly segments: string;
  /** Shape of an indirect table. */
  readonly table: string;
}

/**
 * Fills a {@linkcode Chain} from descriptors. Every descriptor is copied once and only the copy is looked at, so that a
 * driver cannot change it between the check and the use.
 */
export class ChainBuilder {
  /** One descriptor of the ring, for the caller to copy it to, then a batch of an indirect table. */
  readonly words: Uint32Array<ArrayBuffer> = new Uint32Array(
    WORDS * (1 + INDIRECT_BATCH),
  );
  readonly #memory: GuestMemory;
  readonly #rules: ChainRules;
  readonly #table: ScatterGather;
  readonly #last = new Uint32Array(2);
  #tableEntries = 0;
  #batchFirst = 0;
  #batchCount = 0;
  #writing = false;
  #pending = false;
  #lastError = "";

  constructor(memory: GuestMemory, rules: ChainRules) {
    this.#memory = memory;
    this.#rules = rules;
    this.#table = memory.createScatterGather(TABLE_SEGMENTS);
  }

  /** Rule that the chain broke, after a negative result. */
  get lastError(): string {
    return this.#lastError;
  }

  /** Entries of the indirect table that was entered; 0 before. */
  get tableEntries(): number {
    return this.#tableEntries;
  }

  /** Begins a chain. */
  begin(chain: Chain): void {
    chain.readable.clear();
    chain.writable.clear();
    chain.isWhole = true;
    this.#writing = this.#pending = false;
    this.#tableEntries = 0;
  }

  /**
   * Ends a chain.
   *
   * @returns 0, or MEMORY_PENDING when a part of it is not in reach, and its lists are not whole
   */
  end(): number {
    const result = this.#pending ? MEMORY_PENDING : 0;
    if (this.#tableEntries > 0) this.#leaveTable(result);
    return result;
  }

  #leaveTable(writtenBytes: number): void {
    this.#memory.release(this.#table, writtenBytes);
    this.#table.clear();
  }

  /**
   * Adds the buffer of a copied descriptor.
   *
   * @param at Where in {@linkcode ChainBuilder.words} it is
   * @returns 0 or −errno
   */
  addBuffer(at: number, write: boolean, chain: Chain): number {
    if (this.#writing && !write) {
      return this.fail(
        Errno.EINVAL,
        `a device-readable buffer follows a device-writable one (${this.#rules.order})`,
      );
    }
    this.#writing = write;
    const words = this.words;
    const length = words[at + LEN]!;
    // An empty buffer is no violation, and vhost serves it too: it adds nothing, wherever it points.
    if (length === 0) return 0;
    const list = write ? chain.writable : chain.readable;
    if (
      chain.readable.lengthBytes + chain.writable.lengthBytes + length >=
        0x1_0000_0000
    ) {
      return this.fail(
        Errno.EINVAL,
        `a chain is 2^32 bytes long or longer (${this.#rules.length})`,
      );
    }
    if (!chain.isWhole) return this.#addLastByte(at, write, chain);
    const result = this.#memory.translateWords(
      words,
      at + ADDR_LOW,
      length,
      write ? Access.WRITE : Access.READ,
      list,
    );
    if (result === 0) return 0;
    if (result === MEMORY_PENDING) {
      // The others are asked for as well: the chain is read anew when all are there.
      this.#pending = true;
      return 0;
    }
    if (result === -Errno.E2BIG && chain.mayLack) {
      chain.isWhole = false;
      return this.#addLastByte(at, write, chain);
    }
    return this.#failBuffer(result, at, write, list.capacity);
  }

  /** Of a chain that is not whole only the last writable byte counts, where its device tells what became of it. */
  #addLastByte(at: number, write: boolean, chain: Chain): number {
    this.#drop(chain.readable);
    if (!write) return 0;
    this.#drop(chain.writable);
    const words = this.words;
    const low = words[at + ADDR_LOW]! + words[at + LEN]! - 1;
    this.#last[0] = low;
    this.#last[1] = words[at + ADDR_HIGH]! + (low >= 0x1_0000_0000 ? 1 : 0);
    const result = this.#memory.translateWords(
      this.#last,
      0,
      1,
      Access.WRITE,
      chain.writable,
    );
    return result === 0 ? 0 : this.#failBuffer(result, at, write, 1);
  }

  /**
   * Goes from the descriptor of the ring that was copied to the indirect table it refers to.
   *
   * @returns 0 or −errno; MEMORY_PENDING when it is not in reach
   */
  enterTable(): number {
    const words = this.words;
    const length = words[LEN]!;
    const entries = length / VRING_DESC.SIZE;
    if (
      length === 0 || length % VRING_DESC.SIZE !== 0 ||
      entries > INDIRECT_ENTRIES_MAX
    ) {
      return this.fail(
        Errno.EINVAL,
        `an indirect table has ${length} bytes (${this.#rules.table})`,
      );
    }
    const result = this.#memory.translateWords(
      words,
      ADDR_LOW,
      length,
      Access.READ,
      this.#table,
    );
    if (result === MEMORY_PENDING) return result;
    if (result < 0) return this.#failTable(-result);
    this.#tableEntries = entries;
    this.#batchFirst = 0;
    this.#batchCount = 0;
    return 0;
  }

  #failTable(errno: number): number {
    const at = u64(this.words[ADDR_LOW]!, this.words[ADDR_HIGH]!);
    return this.fail(
      errno,
      `an indirect table at ${
        hex(at)
      } is not guest memory that may be read (${this.#rules.table})`,
    );
  }

  /**
   * Copies a descriptor of the indirect table, with some that follow it.
   *
   * @param index Below {@linkcode ChainBuilder.tableEntries}
   * @returns Where in {@linkcode ChainBuilder.words} it is, or −errno
   */
  readEntry(index: number): number {
    const into = index - this.#batchFirst;
    if (into >= 0 && into < this.#batchCount) return WORDS * (1 + into);
    const rest = this.#tableEntries - index;
    const count = rest < INDIRECT_BATCH ? rest : INDIRECT_BATCH;
    const result = this.#memory.gatherWords(
      this.#table,
      index * VRING_DESC.SIZE,
      this.words,
      WORDS,
      count * WORDS,
    );
    if (result < 0) return this.#failTable(-result);
    this.#batchFirst = index;
    this.#batchCount = count;
    return WORDS;
  }

  #drop(list: ScatterGather): void {
    this.#memory.release(list, 0);
    list.clear();
  }

  /** Ends a chain with a message for {@linkcode ChainBuilder.lastError}; returns −errno, or what {@linkcode end} does. */
  fail(errno: number, message: string): number {
    this.#lastError = message;
    return this.end() < 0 ? MEMORY_PENDING : -errno;
  }

  #failBuffer(
    errno: number,
    at: number,
    write: boolean,
    capacity: number,
  ): number {
    if (errno === -Errno.E2BIG) {
      return this.fail(
        Errno.E2BIG,
        `a chain has more than ${capacity} segments, which is the limit of the device (${this.#rules.segments})`,
      );
    }
    const address = u64(
      this.words[at + ADDR_LOW]!,
      this.words[at + ADDR_HIGH]!,
    );
    return this.fail(
      -errno,
      `${this.words[at + LEN]!} bytes at ${
        hex(address)
      } are not guest memory that may be ${
        write ? "written" : "read"
      } (${this.#rules.buffer})`,
    );
  }
}

/** Copies the address and length of a descriptor of a ring, which every format has in the same place. */
export function copyAddressAndLength(
  desc: MemoryWindow,
  from: number,
  words: Uint32Array,
): void {
  words[ADDR_LOW] = desc.getU32(from);
  words[ADDR_HIGH] = desc.getU32(from + 4);
  words[LEN] = desc.getU32(from + VRING_DESC.LEN);
}
