/**
 * Native memory that frames are copied into and out of by memcpy.
 *
 * @module
 */

import { NativeBuffer } from "../../../os/mod.ts";
import { libc, Words } from "../../../os/symbols.ts";
import type { ScatterGather } from "../../../memory/scatter_gather.ts";

const WORDS = 4;
const LEN_LOW = 2;
const TO = 0;
const FROM = 1;
const LENGTH = 2;

/** A buffer outside the JavaScript heap. Places in it are given as offsets, which unlike addresses are small numbers. */
export class FrameBuffer implements Disposable {
  /** Length in bytes. */
  readonly lengthBytes: number;
  readonly #memory: NativeBuffer;
  readonly #hva: number;
  readonly #copy = new Words(3);

  /** @param lengthBytes At least */
  constructor(lengthBytes: number) {
    this.#memory = new NativeBuffer(lengthBytes);
    this.#hva = this.#memory.hva;
    this.lengthBytes = this.#memory.lengthBytes;
  }

  /** Address of the first byte. */
  get hva(): number {
    return this.#hva;
  }

  /** All bytes. */
  get view(): DataView<ArrayBuffer> {
    return this.#memory.view;
  }

  /** The 32-bit number in network order at `offset`. */
  readUint32(offset: number): number {
    return this.#memory.view.getUint32(offset, false);
  }

  /** Puts a 32-bit number in network order at `offset`. */
  writeUint32(offset: number, value: number): void {
    this.#memory.view.setUint32(offset, value, false);
  }

  /**
   * Puts bytes at the start.
   *
   * @returns How many
   * @throws {RangeError} When there are more than it holds
   */
  fill(bytes: Uint8Array): number {
    this.#memory.bytes.set(bytes);
    return bytes.length;
  }

  /** A copy of the bytes from one offset up to another. */
  slice(from: number, to: number): Uint8Array<ArrayBuffer> {
    return this.#memory.bytes.slice(from, to);
  }

  /**
   * Copies bytes of the caller's own to `offset`.
   *
   * @param hva Where they are; as many as there are behind the offset at most
   */
  put(offset: number, hva: number, lengthBytes: number): void {
    const copy = this.#copy;
    copy.set(TO, this.#hva + offset);
    copy.set(FROM, hva);
    copy.set(LENGTH, lengthBytes);
    // SAFETY: the caller vouches for the source, and that there is room.
    libc.memcpy(copy.at[TO]!, copy.at[FROM]!, copy.at[LENGTH]!);
  }

  /** Moves bytes within the buffer; the ranges may overlap. */
  move(to: number, from: number, lengthBytes: number): void {
    this.#memory.bytes.copyWithin(to, from, from + lengthBytes);
  }

  /**
   * Copies all of a list to `offset`.
   *
   * @param list Not longer than what there is behind the offset
   */
  gather(list: ScatterGather, offset: number): void {
    const copy = this.#copy;
    const { at, halves } = copy;
    const { words } = list;
    let to = offset;
    for (let i = 0; i < list.count; i++) {
      const length = words[i * WORDS + LEN_LOW]!;
      copy.set(TO, this.#hva + to);
      halves[2 * FROM] = words[i * WORDS]!;
      halves[2 * FROM + 1] = words[i * WORDS + 1]!;
      copy.set(LENGTH, length);
      // SAFETY: translate() has checked the segment, and the caller that all of them together fit.
      libc.memcpy(at[TO]!, at[FROM]!, at[LENGTH]!);
      to += length;
    }
  }

  /** Copies bytes from `offset` to the start of a list, as many as it has room for. */
  scatter(list: ScatterGather, offset: number, lengthBytes: number): void {
    const copy = this.#copy;
    const { at, halves } = copy;
    const { words } = list;
    let from = offset;
    let left = lengthBytes;
    for (let i = 0; left > 0 && i < list.count; i++) {
      const room = words[i * WORDS + LEN_LOW]!;
      const part = left < room ? left : room;
      halves[2 * TO] = words[i * WORDS]!;
      halves[2 * TO + 1] = words[i * WORDS + 1]!;
      copy.set(FROM, this.#hva + from);
      copy.set(LENGTH, part);
      // SAFETY: at most a segment that translate() has checked, and what the caller vouches for in the buffer.
      libc.memcpy(at[TO]!, at[FROM]!, at[LENGTH]!);
      from += part;
      left -= part;
    }
  }

  /** Frees the memory. */
  close(): void {
    this.#memory.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}
