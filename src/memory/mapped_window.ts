/**
 * A window on memory that lies in our own address space.
 *
 * @module
 */

import type { MemoryWindow } from "./guest_memory.ts";

/** Loads and stores on a mapping. Layout: `lengthBytes` bytes at `offset` of the buffer. */
export class MappedWindow implements MemoryWindow {
  readonly lengthBytes: number;
  readonly isLive = true;
  readonly #view: DataView<ArrayBuffer>;
  readonly #indices: Uint16Array<ArrayBuffer>;
  readonly #words: Uint32Array<ArrayBuffer>;

  /** @param offset Even, inside the buffer with all of the window */
  constructor(buffer: ArrayBuffer, offset: number, lengthBytes: number) {
    this.lengthBytes = lengthBytes;
    this.#view = new DataView(buffer, offset, lengthBytes);
    // An odd start has no 16-bit indices; rings are aligned, so only a control structure can be odd.
    this.#indices = offset % 2 === 0
      ? new Uint16Array(buffer, offset, lengthBytes >>> 1)
      : new Uint16Array(0);
    this.#words = offset % 4 === 0
      ? new Uint32Array(buffer, offset, lengthBytes >>> 2)
      : new Uint32Array(0);
  }

  refresh(_offset: number, _lengthBytes: number): number {
    return 0;
  }

  getU16(offset: number): number {
    return this.#view.getUint16(offset, true);
  }

  getU32(offset: number): number {
    return this.#view.getUint32(offset, true);
  }

  setU16(offset: number, value: number): void {
    this.#view.setUint16(offset, value, true);
  }

  setU32(offset: number, value: number): void {
    this.#view.setUint32(offset, value, true);
  }

  // x86_64 and aarch64 Linux are little-endian, as the rings are, so a plain Uint16Array has the right order.
  loadU16(offset: number): number {
    return Atomics.load(this.#indices, offset >>> 1);
  }

  storeU16(offset: number, value: number): void {
    Atomics.store(this.#indices, offset >>> 1, value);
  }

  loadU32(offset: number): number {
    return Atomics.load(this.#words, offset >>> 2);
  }

  storeU32(offset: number, value: number): void {
    Atomics.store(this.#words, offset >>> 2, value);
  }
}
