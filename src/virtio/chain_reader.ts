/**
 * Descriptor chains of the split virtqueue (virtio 1.3, section 2.7.5): reads and checks one chain at a time.
 *
 * @module
 */

import { hex, u64 } from "../bits.ts";
import { Errno } from "../errno.ts";
import {
  Access,
  type GuestMemory,
  type MemoryWindow,
} from "../memory/guest_memory.ts";
import { VRING_DESC, VRING_DESC_F } from "./defs.ts";
import type { Chain } from "./queue.ts";

/** Words of a descriptor. */
const WORDS = VRING_DESC.SIZE / 4;
const ADDR_LOW = 0;
const ADDR_HIGH = 1;
const LEN = 2;
/** `flags` in the lower half, `next` in the upper. */
const FLAGS_NEXT = 3;
/** Descriptors of an indirect table that are copied at once. */
const INDIRECT_BATCH = 32;
/** More entries than that cannot be named by a 16-bit `next`. */
const INDIRECT_ENTRIES_MAX = 0x1_0000;

/**
 * Reads descriptor chains of one queue. Every descriptor is copied once and only the copy is looked at, so that a
 * driver cannot change it between the check and the use.
 */
export class ChainReader {
  readonly #memory: GuestMemory;
  readonly #maxSize: number;
  /** One descriptor of the ring, then a batch of an indirect table. */
  readonly #words = new Uint32Array(WORDS * (1 + INDIRECT_BATCH));
  /** Address of the indirect table, and of the batch that is read from it: low word, high word. */
  readonly #table = new Uint32Array(2);
  readonly #batch = new Uint32Array(2);
  #tableEntries = 0;
  #batchFirst = 0;
  #batchCount = 0;
  #lastError = "";

  /** @param maxSize The largest size of the queue that the device offers */
  constructor(memory: GuestMemory, maxSize: number) {
    this.#memory = memory;
    this.#maxSize = maxSize;
  }

  /** Which rule the chain broke, after a negative {@linkcode read}. */
  get lastError(): string {
    return this.#lastError;
  }

  /**
   * Reads the chain that begins at descriptor `head` of the ring.
   *
   * @param desc The descriptor table
   * @param size Its entries; `head` is below it
   * @param indirect Whether INDIRECT_DESC was negotiated
   * @returns 0 with the lists of `chain` filled, or −errno when the chain breaks a rule ({@linkcode lastError})
   */
  read(
    desc: MemoryWindow,
    size: number,
    indirect: boolean,
    head: number,
    chain: Chain,
  ): number {
    chain.readable.clear();
    chain.writable.clear();
    const words = this.#words;
    this.#tableEntries = 0;
    let inTable = false;
    let index = head;
    let count = 0;
    let writing = false;
    for (;;) {
      const at = inTable
        ? this.#readIndirect(index)
        : this.#readDirect(desc, index);
      if (at < 0) return at;
      const flags = words[at + FLAGS_NEXT]! & 0xffff;
      if ((flags & VRING_DESC_F.INDIRECT) !== 0) {
        const result = this.#enterTable(at, flags, indirect, inTable);
        if (result < 0) return result;
        inTable = true;
        index = 0;
        continue;
      }
      // Every step counts, so a loop ends here too. Within an indirect table a driver is held to the size that
      // the device offers: Linux builds such chains without regard to the size it chose itself.
      if (++count > (inTable ? this.#maxSize : size)) {
        return this.#fail(
          Errno.ELOOP,
          "a chain is longer than the queue size, or loops (2.7.5.3.1)",
        );
      }
      const write = (flags & VRING_DESC_F.WRITE) !== 0;
      const result = this.#addBuffer(at, write, writing, chain);
      if (result < 0) return result;
      writing = write;
      if ((flags & VRING_DESC_F.NEXT) === 0) return 0;
      index = words[at + FLAGS_NEXT]! >>> 16;
      const limit = inTable ? this.#tableEntries : size;
      if (index >= limit) return this.#failNext(index, limit);
    }
  }

  #addBuffer(
    at: number,
    write: boolean,
    writing: boolean,
    chain: Chain,
  ): number {
    if (writing && !write) {
      return this.#fail(
        Errno.EINVAL,
        "a device-readable buffer follows a device-writable one (2.7.4.2)",
      );
    }
    const words = this.#words;
    const length = words[at + LEN]!;
    // An empty buffer is no violation, and vhost serves it too: it adds nothing, wherever it points.
    if (length === 0) return 0;
    const list = write ? chain.writable : chain.readable;
    if (
      chain.readable.lengthBytes + chain.writable.lengthBytes + length >=
        0x1_0000_0000
    ) {
      return this.#fail(
        Errno.EINVAL,
        "a chain is 2^32 bytes long or longer (2.7.5.2)",
      );
    }
    const result = this.#memory.translateWords(
      words,
      at + ADDR_LOW,
      length,
      write ? Access.WRITE : Access.READ,
      list,
    );
    return result === 0
      ? 0
      : this.#failBuffer(result, at, write, list.capacity);
  }

  #failNext(next: number, limit: number): number {
    return this.#fail(
      Errno.EINVAL,
      `next is ${next} in a table of ${limit} descriptors (2.7.5)`,
    );
  }

  #failBuffer(
    errno: number,
    at: number,
    write: boolean,
    capacity: number,
  ): number {
    if (errno === -Errno.E2BIG) {
      return this.#fail(
        Errno.E2BIG,
        `a chain has more than ${capacity} segments, which is the limit of the device (2.7.4.1)`,
      );
    }
    const address = u64(
      this.#words[at + ADDR_LOW]!,
      this.#words[at + ADDR_HIGH]!,
    );
    return this.#fail(
      -errno,
      `${this.#words[at + LEN]!} bytes at ${
        hex(address)
      } are not guest memory that may be ${write ? "written" : "read"} (2.7.5)`,
    );
  }

  #enterTable(
    at: number,
    flags: number,
    indirect: boolean,
    inTable: boolean,
  ): number {
    if (!indirect) {
      return this.#fail(
        Errno.EINVAL,
        "an indirect descriptor without INDIRECT_DESC (2.7.5.3.1)",
      );
    }
    if (inTable) {
      return this.#fail(
        Errno.EINVAL,
        "an indirect descriptor inside an indirect table (2.7.5.3.1)",
      );
    }
    if ((flags & VRING_DESC_F.NEXT) !== 0) {
      return this.#fail(
        Errno.EINVAL,
        "a descriptor is both INDIRECT and NEXT (2.7.5.3.1)",
      );
    }
    const words = this.#words;
    const length = words[at + LEN]!;
    const entries = length / VRING_DESC.SIZE;
    if (
      length === 0 || length % VRING_DESC.SIZE !== 0 ||
      entries > INDIRECT_ENTRIES_MAX
    ) {
      return this.#fail(
        Errno.EINVAL,
        `an indirect table has ${length} bytes (2.7.5.3)`,
      );
    }
    this.#table[0] = words[at + ADDR_LOW]!;
    this.#table[1] = words[at + ADDR_HIGH]!;
    this.#tableEntries = entries;
    this.#batchFirst = 0;
    this.#batchCount = 0;
    return 0;
  }

  /** Copies a descriptor of the ring; returns where in `#words` it is. */
  #readDirect(desc: MemoryWindow, index: number): number {
    const from = index * VRING_DESC.SIZE;
    const words = this.#words;
    words[ADDR_LOW] = desc.getU32(from);
    words[ADDR_HIGH] = desc.getU32(from + 4);
    words[LEN] = desc.getU32(from + VRING_DESC.LEN);
    words[FLAGS_NEXT] = desc.getU32(from + VRING_DESC.FLAGS);
    return 0;
  }

  /** Copies a descriptor of the indirect table, with some that follow it; returns where in `#words` it is. */
  #readIndirect(index: number): number {
    const into = index - this.#batchFirst;
    if (into >= 0 && into < this.#batchCount) return WORDS * (1 + into);
    const rest = this.#tableEntries - index;
    const count = rest < INDIRECT_BATCH ? rest : INDIRECT_BATCH;
    const low = this.#table[0]! + index * VRING_DESC.SIZE;
    this.#batch[0] = low;
    // At the end of the address space this wraps to 0, where bytes 2^64 and above are not either.
    this.#batch[1] = this.#table[1]! + (low >= 0x1_0000_0000 ? 1 : 0);
    const result = this.#memory.readWords(
      this.#batch,
      this.#words,
      WORDS,
      count * WORDS,
    );
    if (result < 0) {
      return this.#fail(
        -result,
        `an indirect table at ${
          hex(u64(this.#table[0]!, this.#table[1]!))
        } is not guest memory that may be read (2.7.5.3)`,
      );
    }
    this.#batchFirst = index;
    this.#batchCount = count;
    return WORDS;
  }

  #fail(errno: number, message: string): number {
    this.#lastError = message;
    return -errno;
  }
}
