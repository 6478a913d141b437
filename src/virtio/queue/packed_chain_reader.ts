/**
 * Descriptor chains of the packed virtqueue (virtio 1.3, sections 2.8.5 to 2.8.7): reads and checks one at a time.
 *
 * @module
 */

import { Errno } from "../../core/errno.ts";
import {
  type GuestMemory,
  MEMORY_PENDING,
  type MemoryWindow,
} from "../../memory/guest_memory.ts";
import {
  ChainBuilder,
  type ChainRules,
  copyAddressAndLength,
  LAST_WORD,
} from "./chain_builder.ts";
import {
  VRING_DESC_F,
  VRING_PACKED_DESC,
  VRING_PACKED_DESC_F_AVAIL,
  VRING_PACKED_DESC_F_USED,
} from "../defs.ts";
import type { Chain } from "./queue.ts";

const RULES: ChainRules = {
  order: "2.8.17",
  buffer: "2.8.4",
  length: "2.8.4",
  segments: "2.8.18",
  table: "2.8.7",
};

const AVAIL = 1 << VRING_PACKED_DESC_F_AVAIL;
const USED = 1 << VRING_PACKED_DESC_F_USED;

/** The two flags that tell whose a descriptor is. */
export const OWNER_MASK: number = AVAIL | USED;

/** {@linkcode OWNER_MASK} of a descriptor that is available while the wrap counter is as given (section 2.8.1). */
export function availableMark(wrap: boolean): number {
  return wrap ? AVAIL : USED;
}

/** {@linkcode OWNER_MASK} of a descriptor that is used while the wrap counter is as given (section 2.8.1). */
export function usedMark(wrap: boolean): number {
  return wrap ? OWNER_MASK : 0;
}

/** Reads descriptor chains of one packed queue; see {@linkcode ChainBuilder} for why a driver cannot change them. */
export class PackedChainReader {
  readonly #builder: ChainBuilder;
  readonly #maxSize: number;
  #id = 0;

  /** @param maxSize The largest size of the queue that the device offers */
  constructor(memory: GuestMemory, maxSize: number) {
    this.#builder = new ChainBuilder(memory, RULES);
    this.#maxSize = maxSize;
  }

  /** Which rule the chain broke, after a negative {@linkcode read}. */
  get lastError(): string {
    return this.#builder.lastError;
  }

  /** The buffer id of the chain that was read. */
  get id(): number {
    return this.#id;
  }

  /**
   * Reads the chain that begins at a descriptor of the ring.
   *
   * @param desc The descriptor ring
   * @param size Its entries
   * @param room How many of them can be the driver's, at least 1
   * @param indirect Whether INDIRECT_DESC was negotiated
   * @param at Index of the descriptor
   * @param wrap The wrap counter there
   * @returns How many descriptors of the ring it has, with the lists of `chain` and {@linkcode id} filled, or −errno
   * when it breaks a rule ({@linkcode lastError}), or MEMORY_PENDING
   */
  read(
    desc: MemoryWindow,
    size: number,
    room: number,
    indirect: boolean,
    at: number,
    wrap: boolean,
    chain: Chain,
  ): number {
    const builder = this.#builder;
    builder.begin(chain);
    let current = this.#copy(desc, at);
    let mark = availableMark(wrap);
    if ((current & OWNER_MASK) !== mark) return this.#failOwner(at);
    if ((current & VRING_DESC_F.INDIRECT) !== 0) {
      const result = this.#readTable(current, indirect, chain);
      return result < 0 ? result : 1;
    }
    let index = at;
    for (let count = 1;; count++) {
      const write = (current & VRING_DESC_F.WRITE) !== 0;
      const result = builder.addBuffer(0, write, chain);
      if (result < 0) return result;
      if ((current & VRING_DESC_F.NEXT) === 0) {
        return builder.end() < 0 ? MEMORY_PENDING : count;
      }
      if (count >= room) return this.#failLength(count, size);
      if (++index === size) {
        index = 0;
        mark ^= OWNER_MASK;
      }
      current = this.#copy(desc, index);
      if ((current & OWNER_MASK) !== mark) return this.#failOwner(index);
      if ((current & VRING_DESC_F.INDIRECT) !== 0) {
        return builder.fail(
          Errno.EINVAL,
          "an indirect descriptor in a chain linked by NEXT (2.8.19)",
        );
      }
    }
  }

  /** Copies a descriptor of the ring; returns its flags. */
  #copy(desc: MemoryWindow, index: number): number {
    const from = index * VRING_PACKED_DESC.SIZE;
    const words = this.#builder.words;
    copyAddressAndLength(desc, from, words);
    // `id` is in the lower half, `flags` in the upper.
    words[LAST_WORD] = desc.getU32(from + VRING_PACKED_DESC.ID);
    this.#id = words[LAST_WORD]! & 0xffff;
    return words[LAST_WORD]! >>> 16;
  }

  /** Reads a whole indirect table: all of it is the chain, and no flag but WRITE counts (2.8.7). */
  #readTable(flags: number, indirect: boolean, chain: Chain): number {
    const builder = this.#builder;
    if (!indirect) {
      return builder.fail(
        Errno.EINVAL,
        "an indirect descriptor without INDIRECT_DESC (2.8.19)",
      );
    }
    if ((flags & VRING_DESC_F.NEXT) !== 0) {
      return builder.fail(
        Errno.EINVAL,
        "a descriptor is both INDIRECT and NEXT (2.8.19)",
      );
    }
    const result = builder.enterTable();
    if (result < 0) return result;
    const entries = builder.tableEntries;
    // As for split queues: the size that the device offers counts, not the one the driver chose.
    if (entries > this.#maxSize) {
      return builder.fail(
        Errno.ELOOP,
        `an indirect table of ${entries} descriptors is longer than the queue size (2.8.19)`,
      );
    }
    for (let i = 0; i < entries; i++) {
      const at = builder.readEntry(i);
      if (at < 0) return at;
      const write =
        ((builder.words[at + LAST_WORD]! >>> 16) & VRING_DESC_F.WRITE) !== 0;
      const added = builder.addBuffer(at, write, chain);
      if (added < 0) return added;
    }
    return builder.end();
  }

  #failOwner(index: number): number {
    return this.#builder.fail(
      Errno.EINVAL,
      `a chain goes on in descriptor ${index}, which is not available (2.8.17)`,
    );
  }

  #failLength(count: number, size: number): number {
    return count === size
      ? this.#builder.fail(
        Errno.ELOOP,
        "a chain is longer than the queue size, or loops (2.8.17)",
      )
      : this.#builder.fail(
        Errno.EINVAL,
        "a chain goes on in descriptors that were not returned (2.8.17)",
      );
  }
}
