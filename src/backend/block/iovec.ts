/**
 * An iovec array that is put together for one call: headers of our own beside pieces of guest memory.
 *
 * @module
 */

import { clearWords, copyWords, NativeBuffer } from "../../os/mod.ts";
import { Words } from "../../os/symbols.ts";
import type { ScatterGather } from "../../memory/scatter_gather.ts";

/** IOV_MAX: what one call takes. */
export const IOV_MAX = 1024;

// struct iovec { void *iov_base; size_t iov_len; } as four 32-bit words
const WORDS = 4;
/** As much as one call shall move: far from what its result can count. */
const BYTES_MAX = 0x1000_0000;

/** Memory of our own that an {@linkcode Iovec} can hold pieces of; its address is kept in two words. */
export class Scratch implements Disposable {
  /** The bytes. */
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** The same bytes, for fields. */
  readonly view: DataView<ArrayBuffer>;
  /** Address of the first byte: low word, high word. */
  readonly address = new Uint32Array(2);
  readonly #buffer: NativeBuffer;

  /** @param lengthBytes At least; rounded up to whole pages */
  constructor(lengthBytes: number) {
    this.#buffer = new NativeBuffer(lengthBytes);
    this.bytes = this.#buffer.bytes;
    this.view = this.#buffer.view;
    this.address[0] = this.#buffer.hva >>> 0;
    this.address[1] = Math.floor(this.#buffer.hva / 0x1_0000_0000);
  }

  /** Frees the memory; further calls do nothing. */
  close(): void {
    this.#buffer.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/** Up to {@linkcode IOV_MAX} segments at a fixed address. Nothing here allocates after construction. */
export class Iovec implements Disposable {
  /** Segments in use. */
  count = 0;
  /** Sum of their lengths. */
  lengthBytes = 0;
  /** The array as C takes it. */
  readonly pointer: Deno.PointerObject;
  /** Its address. */
  readonly hva: number;
  readonly #buffer = new NativeBuffer(IOV_MAX * WORDS * 4);
  readonly #words = new Uint32Array(this.#buffer.bytes.buffer);
  readonly #copy = new Words(3);

  constructor() {
    this.pointer = this.#buffer.pointer();
    this.hva = this.#buffer.hva;
  }

  /** Empties the array. */
  clear(): void {
    this.count = 0;
    this.lengthBytes = 0;
  }

  /** Whether another segment can be added. */
  get full(): boolean {
    return this.count === IOV_MAX || this.lengthBytes >= BYTES_MAX;
  }

  /**
   * Adds a piece of our own memory.
   *
   * @returns How much of it was added: all, or 0 when the array is full
   */
  addScratch(scratch: Scratch, from: number, lengthBytes: number): number {
    if (lengthBytes === 0 || this.full) return 0;
    const words = this.#words;
    const at = this.count * WORDS;
    const low = scratch.address[0]! + from;
    // Addresses are never arguments: where a call is not inlined, each would be allocated.
    words[at] = low;
    words[at + 1] = scratch.address[1]! + (low >= 0x1_0000_0000 ? 1 : 0);
    this.#end(lengthBytes);
    return lengthBytes;
  }

  /**
   * Adds a range of the bytes of a list.
   *
   * @param from Offset of its first byte in the list
   * @returns How much of it was added, less than `lengthBytes` when the array is full
   */
  addRange(list: ScatterGather, from: number, lengthBytes: number): number {
    const words = list.words;
    const end = list.count * WORDS;
    let at = 0;
    let skip = from;
    while (at < end && skip >= words[at + 2]!) {
      skip -= words[at + 2]!;
      at += WORDS;
    }
    let left = lengthBytes;
    for (; at < end && left > 0 && !this.full; at += WORDS) {
      const available = words[at + 2]! - skip;
      const length = left < available ? left : available;
      const to = this.count * WORDS;
      const low = words[at]! + skip;
      this.#words[to] = low;
      this.#words[to + 1] = words[at + 1]! + (low >= 0x1_0000_0000 ? 1 : 0);
      this.#end(length);
      left -= length;
      skip = 0;
    }
    return lengthBytes - left;
  }

  /** The segment whose address was written has this length. */
  #end(lengthBytes: number): void {
    const words = this.#words;
    const at = this.count * WORDS;
    words[at + 2] = lengthBytes;
    words[at + 3] = 0;
    this.count++;
    this.lengthBytes += lengthBytes;
  }

  /** Copies the segments, one after the other, into our own memory; they fit. */
  copyTo(scratch: Scratch, at: number): void {
    this.#copyAll(scratch, at, 2, 0);
  }

  /** Fills the segments from our own memory. */
  copyFrom(scratch: Scratch, at: number): void {
    this.#copyAll(scratch, at, 0, 2);
  }

  // SAFETY: the segments are pieces of scratch memory or of lists that were translated and have not been unmapped,
  // and the caller has seen to it that the scratch memory is as long as they are.
  #copyAll(scratch: Scratch, at: number, segment: number, own: number): void {
    const { halves } = this.#copy;
    const words = this.#words;
    let from = at;
    for (let i = 0; i < this.count * WORDS; i += WORDS) {
      const low = scratch.address[0]! + from;
      halves[segment] = words[i]!;
      halves[segment + 1] = words[i + 1]!;
      halves[own] = low;
      halves[own + 1] = scratch.address[1]! + (low >= 0x1_0000_0000 ? 1 : 0);
      halves[4] = words[i + 2]!;
      halves[5] = 0;
      copyWords(this.#copy);
      from += words[i + 2]! | 0;
    }
  }

  /** Fills the segments with zeroes. */
  zero(): void {
    const { halves } = this.#copy;
    const words = this.#words;
    for (let i = 0; i < this.count * WORDS; i += WORDS) {
      halves[0] = words[i]!;
      halves[1] = words[i + 1]!;
      halves[4] = words[i + 2]!;
      halves[5] = 0;
      clearWords(this.#copy);
    }
  }

  /** Frees the memory. */
  close(): void {
    this.#buffer.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}
