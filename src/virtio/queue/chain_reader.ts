/**
 * Descriptor chains of the split virtqueue (virtio 1.3, section 2.7.5): reads and checks one chain at a time.
 *
 * @module
 */

import { Errno } from "../../core/errno.ts";
import type { GuestMemory, MemoryWindow } from "../../memory/guest_memory.ts";
import {
  ChainBuilder,
  type ChainRules,
  copyAddressAndLength,
  LAST_WORD,
} from "./chain_builder.ts";
import { VRING_DESC, VRING_DESC_F } from "../defs.ts";
import type { Chain } from "./queue.ts";

const RULES: ChainRules = {
  order: "2.7.4.2",
  buffer: "2.7.5",
  length: "2.7.5.2",
  segments: "2.7.4.1",
  table: "2.7.5.3",
};

/** Reads descriptor chains of one split queue; see {@linkcode ChainBuilder} for why a driver cannot change them. */
export class ChainReader {
  readonly #builder: ChainBuilder;
  readonly #maxSize: number;

  /** @param maxSize The largest size of the queue that the device offers */
  constructor(memory: GuestMemory, maxSize: number) {
    this.#builder = new ChainBuilder(memory, RULES);
    this.#maxSize = maxSize;
  }

  /** Which rule the chain broke, after a negative {@linkcode read}. */
  get lastError(): string {
    return this.#builder.lastError;
  }

  /**
   * Reads the chain that begins at descriptor `head` of the ring.
   *
   * @param desc The descriptor table
   * @param size Its entries; `head` is below it
   * @param indirect Whether INDIRECT_DESC was negotiated
   * @returns 0 with the lists of `chain` filled, −errno when the chain breaks a rule ({@linkcode lastError}), or
   * MEMORY_PENDING
   */
  read(
    desc: MemoryWindow,
    size: number,
    indirect: boolean,
    head: number,
    chain: Chain,
  ): number {
    const builder = this.#builder;
    const words = builder.words;
    builder.begin(chain);
    let inTable = false;
    let index = head;
    let count = 0;
    for (;;) {
      const at = inTable
        ? builder.readEntry(index)
        : this.#readDirect(desc, index);
      if (at < 0) return at;
      // `flags` is in the lower half, `next` in the upper.
      const flags = words[at + LAST_WORD]! & 0xffff;
      if ((flags & VRING_DESC_F.INDIRECT) !== 0) {
        const result = this.#enterTable(flags, indirect, inTable);
        if (result < 0) return result;
        inTable = true;
        index = 0;
        continue;
      }
      // Every step counts, so a loop ends here too. Within an indirect table a driver is held to the size that
      // the device offers: Linux builds such chains without regard to the size it chose itself.
      if (++count > (inTable ? this.#maxSize : size)) {
        return builder.fail(
          Errno.ELOOP,
          "a chain is longer than the queue size, or loops (2.7.5.3.1)",
        );
      }
      const write = (flags & VRING_DESC_F.WRITE) !== 0;
      const result = builder.addBuffer(at, write, chain);
      if (result < 0) return result;
      if ((flags & VRING_DESC_F.NEXT) === 0) return builder.end();
      index = words[at + LAST_WORD]! >>> 16;
      const limit = inTable ? builder.tableEntries : size;
      if (index >= limit) return this.#failNext(index, limit);
    }
  }

  #failNext(next: number, limit: number): number {
    return this.#builder.fail(
      Errno.EINVAL,
      `next is ${next} in a table of ${limit} descriptors (2.7.5)`,
    );
  }

  #enterTable(flags: number, indirect: boolean, inTable: boolean): number {
    const builder = this.#builder;
    if (!indirect) {
      return builder.fail(
        Errno.EINVAL,
        "an indirect descriptor without INDIRECT_DESC (2.7.5.3.1)",
      );
    }
    if (inTable) {
      return builder.fail(
        Errno.EINVAL,
        "an indirect descriptor inside an indirect table (2.7.5.3.1)",
      );
    }
    if ((flags & VRING_DESC_F.NEXT) !== 0) {
      return builder.fail(
        Errno.EINVAL,
        "a descriptor is both INDIRECT and NEXT (2.7.5.3.1)",
      );
    }
    return builder.enterTable();
  }

  /** Copies a descriptor of the ring; returns where in the builder's words it is. */
  #readDirect(desc: MemoryWindow, index: number): number {
    const from = index * VRING_DESC.SIZE;
    const words = this.#builder.words;
    copyAddressAndLength(desc, from, words);
    words[LAST_WORD] = desc.getU32(from + VRING_DESC.FLAGS);
    return 0;
  }
}
