/**
 * Guest memory as a driver sees it: bytes at an address, and an allocator.
 *
 * @module
 */

import { alignUp, setU64 } from "../core/bits.ts";

/** A free piece, by offset. */
interface FreePiece {
  offset: number;
  lengthBytes: number;
}

/**
 * Memory of a driver on any ArrayBuffer. Addresses are iovas, as they go into descriptors.
 *
 * The allocator serves set-up, not the data path: first fit over a list of free pieces, then a bump pointer.
 */
export class DriverMemory {
  /** Address of the first byte. */
  readonly iova: number;
  /** All bytes. */
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** The same bytes, for fields. */
  readonly view: DataView<ArrayBuffer>;
  /** The same bytes as 16-bit words, for Atomics. */
  readonly words: Uint16Array<ArrayBuffer>;
  #bump = 0;
  #free: FreePiece[] = [];

  /**
   * Makes memory of a buffer.
   *
   * @param iova Address of its first byte, as the device sees it
   */
  constructor(buffer: ArrayBuffer, iova: number) {
    this.iova = iova;
    this.bytes = new Uint8Array(buffer);
    this.view = new DataView(buffer);
    this.words = new Uint16Array(buffer, 0, buffer.byteLength >> 1);
  }

  /** Length in bytes. */
  get lengthBytes(): number {
    return this.bytes.length;
  }

  /** Bytes that are allocated or lost to alignment. */
  get usedBytes(): number {
    return this.#free.reduce(
      (used, piece) => used - piece.lengthBytes,
      this.#bump,
    );
  }

  /** Offset of an address in {@linkcode bytes}. */
  offset(iova: number): number {
    return iova - this.iova;
  }

  /** The bytes at an address. */
  at(iova: number, lengthBytes: number): Uint8Array<ArrayBuffer> {
    const offset = this.offset(iova);
    if (offset < 0 || offset + lengthBytes > this.lengthBytes) {
      throw new RangeError(
        `Cannot reach ${lengthBytes} bytes at ${iova}: outside the memory`,
      );
    }
    return this.bytes.subarray(offset, offset + lengthBytes);
  }

  /**
   * Allocates zeroed memory.
   *
   * @param alignment Of the address, any positive integer
   * @returns Its address
   * @throws {RangeError} When there is no room
   */
  alloc(lengthBytes: number, alignment = 16): number {
    const length = Math.max(lengthBytes, 1);
    const at = this.#takeFree(length, alignment) ??
      this.#takeFresh(length, alignment);
    this.bytes.fill(0, at, at + length);
    return this.iova + at;
  }

  /** Gives memory back; address and length must be those of one allocation. */
  free(iova: number, lengthBytes: number): void {
    this.#give(this.offset(iova), Math.max(lengthBytes, 1));
  }

  /** Writes bytes at an address. */
  write(iova: number, data: Uint8Array): void {
    this.at(iova, data.length).set(data);
  }

  /** Writes a 64-bit little-endian number at an address. */
  writeU64(iova: number, value: number): void {
    setU64(this.view, this.offset(iova), value);
  }

  #takeFresh(length: number, alignment: number): number {
    const at = alignUp(this.iova + this.#bump, alignment) - this.iova;
    if (at + length > this.lengthBytes) {
      throw new RangeError(
        `Cannot allocate ${length} bytes: ${
          this.lengthBytes - this.#bump
        } of ${this.lengthBytes} are left`,
      );
    }
    if (at > this.#bump) this.#give(this.#bump, at - this.#bump);
    this.#bump = at + length;
    return at;
  }

  #takeFree(length: number, alignment: number): number | undefined {
    for (let i = 0; i < this.#free.length; i++) {
      const piece = this.#free[i]!;
      const at = alignUp(this.iova + piece.offset, alignment) - this.iova;
      const end = piece.offset + piece.lengthBytes;
      if (at + length > end) continue;
      this.#free.splice(i, 1);
      if (at > piece.offset) this.#give(piece.offset, at - piece.offset);
      if (at + length < end) this.#give(at + length, end - at - length);
      return at;
    }
    return undefined;
  }

  /** Puts a piece into the list, joined with its neighbours. */
  #give(offset: number, lengthBytes: number): void {
    const list = this.#free;
    let i = list.findIndex((piece) => piece.offset > offset);
    if (i < 0) i = list.length;
    const before = list[i - 1];
    const after = list[i];
    if (
      (before !== undefined && before.offset + before.lengthBytes > offset) ||
      (after !== undefined && offset + lengthBytes > after.offset)
    ) {
      throw new RangeError(`Cannot free ${this.iova + offset}: it is free`);
    }
    list.splice(i, 0, { offset, lengthBytes });
    if (after !== undefined && offset + lengthBytes === after.offset) {
      list[i]!.lengthBytes += after.lengthBytes;
      list.splice(i + 1, 1);
    }
    if (before !== undefined && before.offset + before.lengthBytes === offset) {
      before.lengthBytes += list[i]!.lengthBytes;
      list.splice(i, 1);
    }
  }
}
