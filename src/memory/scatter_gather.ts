/**
 * A reusable list of memory segments, laid out as the kernel's `struct iovec[]`.
 *
 * @module
 */

import { Errno } from "../core/errno.ts";
import { high32, u64 } from "../core/bits.ts";

// struct iovec { void *iov_base; size_t iov_len; } as four 32-bit words
const WORDS = 4;
const BASE_LOW = 0;
const BASE_HIGH = 1;
const LEN_LOW = 2;
const LEN_HIGH = 3;
/** An address in two words, on its way into a list. */
const SCRATCH = new Uint32Array(2);
/** The guest address that goes with it. */
const SCRATCH_IOVA = new Float64Array(1);
/** Added to the address of memory of our own, makes what cannot be a guest address, and stands in the place of one. */
const NO_IOVA = -(2 ** 52);

/**
 * Segments of our own address space (or, in a unit test, of a pretended one).
 *
 * Layout: `count` entries of `{ u64 base; u64 length }`, little-endian, so that readv(2), writev(2) and io_uring
 * take the buffer as it is. A segment is shorter than 4 GiB; segments that are adjacent, here and for the guest, are
 * joined. The guest's address of each segment is kept beside the array: the same memory may be mapped at several, and
 * only the one that was asked for counts when a range is unmapped ({@linkcode ScatterGather.overlaps}).
 */
export class ScatterGather {
  /** The iovec array; the first {@linkcode count} entries are in use. */
  readonly words: Uint32Array<ArrayBuffer>;
  /** The most segments it can hold. */
  readonly capacity: number;
  /** Address of {@linkcode words} for readv(2) and writev(2); null where there is no C (a test). */
  readonly iovec: Deno.PointerValue;
  /** Segments in use. */
  count = 0;
  /** Sum of their lengths in bytes. */
  lengthBytes = 0;
  readonly #iovas: Float64Array<ArrayBuffer>;

  /**
   * Makes an empty list.
   *
   * @param words Storage of four words a segment; at a stable address when C is to read it
   * @param iovec That address
   * @param iovas Storage of one number a segment
   */
  constructor(
    words: Uint32Array<ArrayBuffer>,
    iovec: Deno.PointerValue = null,
    iovas: Float64Array<ArrayBuffer> = new Float64Array(words.length / WORDS),
  ) {
    this.words = words;
    this.capacity = words.length / WORDS;
    this.iovec = iovec;
    this.#iovas = iovas;
  }

  /** Empties the list. */
  clear(): void {
    this.count = 0;
    this.lengthBytes = 0;
  }

  /**
   * Appends a segment of memory of our own, joining it to the last one where they touch.
   *
   * @returns 0, or −E2BIG when the list is full
   */
  push(hva: number, lengthBytes: number): number {
    SCRATCH[0] = hva >>> 0;
    SCRATCH[1] = high32(hva);
    return this.pushWords(SCRATCH, lengthBytes);
  }

  /**
   * As {@linkcode push}, with the address in two words: no call then passes a number that needs an allocation.
   *
   * @param address Low word, high word
   */
  pushWords(address: Uint32Array, lengthBytes: number): number {
    SCRATCH_IOVA[0] = u64(address[0]!, address[1]!) + NO_IOVA;
    return this.pushGuest(address, SCRATCH_IOVA, lengthBytes);
  }

  /**
   * As {@linkcode pushWords}, of guest memory.
   *
   * @param iova Its address as the guest gave it
   */
  pushGuest(
    address: Uint32Array,
    iova: Float64Array,
    lengthBytes: number,
  ): number {
    if (lengthBytes === 0) return 0;
    const words = this.words;
    const iovas = this.#iovas;
    const low = address[0]!;
    const high = address[1]!;
    let at = this.count * WORDS;
    if (this.count > 0) {
      const last = at - WORDS;
      const length = words[last + LEN_LOW]!;
      const joined = length + lengthBytes;
      const end = words[last + BASE_LOW]! + length;
      const carry = end >= 0x1_0000_0000 ? 1 : 0;
      if (
        joined < 0x1_0000_0000 && end >>> 0 === low &&
        words[last + BASE_HIGH]! + carry === high &&
        iovas[this.count - 1]! + length === iova[0]!
      ) {
        words[last + LEN_LOW] = joined;
        this.lengthBytes += lengthBytes;
        return 0;
      }
    }
    if (this.count === this.capacity) return -Errno.E2BIG;
    words[at++] = low;
    words[at++] = high;
    words[at++] = lengthBytes;
    words[at] = 0;
    iovas[this.count] = iova[0]!;
    this.count++;
    this.lengthBytes += lengthBytes;
    return 0;
  }

  /** True when a part of the list is guest memory of this range. */
  overlaps(iova: number, lengthBytes: number): boolean {
    const iovas = this.#iovas;
    const end = iova + lengthBytes;
    for (let i = 0; i < this.count; i++) {
      const first = iovas[i]!;
      if (first < end && first + this.words[i * WORDS + LEN_LOW]! > iova) {
        return true;
      }
    }
    return false;
  }

  /**
   * Appends the segments of another list.
   *
   * @param skipBytes How much of it is left out, from its start
   * @returns 0, or −E2BIG when they do not all fit (the list then is as it was)
   */
  append(other: ScatterGather, skipBytes = 0): number {
    const from = other.words;
    let first = 0;
    let skip = skipBytes;
    while (first < other.count && skip >= from[first * WORDS + LEN_LOW]!) {
      skip -= from[first * WORDS + LEN_LOW]!;
      first++;
    }
    const added = other.count - first;
    if (added === 0) return 0;
    if (this.count + added > this.capacity) return -Errno.E2BIG;
    const to = this.words;
    const iovas = this.#iovas;
    let at = this.count;
    // Copied by words: a 64-bit address as one number would cost a heap number now and then.
    for (let i = first; i < other.count; i++, at++) {
      const source = i * WORDS;
      const target = at * WORDS;
      to[target] = from[source]!;
      to[target + BASE_HIGH] = from[source + BASE_HIGH]!;
      to[target + LEN_LOW] = from[source + LEN_LOW]!;
      to[target + LEN_HIGH] = 0;
      iovas[at] = other.#iovas[i]!;
    }
    if (skip > 0) this.#shorten(this.count, skip);
    this.count += added;
    this.lengthBytes += other.lengthBytes - skipBytes;
    return 0;
  }

  /** Takes bytes off the front of a segment that is longer. */
  #shorten(segment: number, bytes: number): void {
    const words = this.words;
    const at = segment * WORDS;
    const low = words[at + BASE_LOW]! + bytes;
    words[at + BASE_LOW] = low;
    if (low >= 0x1_0000_0000) words[at + BASE_HIGH]!++;
    words[at + LEN_LOW]! -= bytes;
    this.#iovas[segment]! += bytes;
  }

  /** Address of segment `i`. */
  base(i: number): number {
    const at = i * WORDS;
    return u64(this.words[at + BASE_LOW]!, this.words[at + BASE_HIGH]!);
  }

  /** Address of segment `i` as the guest gave it; negative for memory of our own. */
  iova(i: number): number {
    return this.#iovas[i]!;
  }

  /** Length of segment `i` in bytes. */
  length(i: number): number {
    return this.words[i * WORDS + LEN_LOW]!;
  }

  /** Takes up to `lengthBytes` off the front, as after a partial transfer. */
  consume(lengthBytes: number): void {
    let left = Math.min(lengthBytes, this.lengthBytes);
    this.lengthBytes -= left;
    const words = this.words;
    let taken = 0;
    while (left > 0 && left >= words[taken * WORDS + LEN_LOW]!) {
      left -= words[taken * WORDS + LEN_LOW]!;
      taken++;
    }
    if (left > 0) this.#shorten(taken, left);
    if (taken > 0) {
      // The list always begins at its first entry, so that one pointer serves every call.
      words.copyWithin(0, taken * WORDS, this.count * WORDS);
      this.#iovas.copyWithin(0, taken, this.count);
      this.count -= taken;
    }
  }

  /** Cuts the list down to its first `lengthBytes`. */
  truncate(lengthBytes: number): void {
    let excess = this.lengthBytes - lengthBytes;
    if (excess <= 0) return;
    this.lengthBytes = lengthBytes;
    while (excess > 0) {
      const at = (this.count - 1) * WORDS;
      const length = this.words[at + LEN_LOW]!;
      if (excess < length) {
        this.words[at + LEN_LOW] = length - excess;
        return;
      }
      excess -= length;
      this.count--;
    }
  }
}
