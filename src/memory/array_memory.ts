/**
 * Guest memory on ArrayBuffers: for unit tests of devices, and for whoever has no memory to share. It needs no
 * permission and behaves as the real one does, except that C cannot reach it.
 *
 * @module
 */

import { alignUp, PAGE_SIZE } from "../core/bits.ts";
import {
  Access,
  type GuestMemory,
  type MemoryListener,
  type MemoryWindow,
  type ScratchMemory,
} from "./guest_memory.ts";
import { Backing, type DmaRange } from "./region.ts";
import { DmaMemory } from "./dma_memory.ts";
import { ScatterGather } from "./scatter_gather.ts";

/** A range to map. */
export interface ArrayRange {
  /** First guest address. */
  readonly iova: number;
  /** Length in bytes. */
  readonly lengthBytes: number;
  /** Accesses of the device that are allowed; everything unless told. */
  readonly access?: Access;
  /** The bytes behind it, as when memory is mapped a second time; fresh zeros without it. */
  readonly buffer?: ArrayBuffer;
  /** Offset in the buffer. */
  readonly offset?: number;
}

const FIRST_HVA = 0x7f00_0000_0000;

/** Guest memory that a test maps and unmaps. */
export interface MappableMemory extends GuestMemory {
  /** Takes all of it away from the device, or gives it back; what is mapped stays mapped. */
  accessible: boolean;
  /** The mapped ranges, in order of address. */
  ranges(): readonly DmaRange[];
  /**
   * Adds a range.
   *
   * @returns The bytes behind it, as the guest sees them
   * @throws {ErrnoError} EEXIST on overlap
   */
  map(range: ArrayRange): ArrayBuffer;
  /**
   * Adds a range page by page: pages that follow one another for the guest and lie apart here, as behind an IOMMU.
   *
   * @returns The bytes behind it, as the guest sees them
   * @throws {ErrnoError} EEXIST on overlap
   */
  mapPages(range: ArrayRange): ArrayBuffer;
  /**
   * Removes exactly one range.
   *
   * @throws {ErrnoError} ENOENT when no mapping is exactly this range
   */
  unmap(iova: number, lengthBytes: number): void;
  /** Removes everything, as when the client has gone. */
  unmapAll(): void;
  /**
   * The bytes behind a segment that {@linkcode GuestMemory.translate} made, for what C does elsewhere.
   *
   * @param hva Address inside one segment; the range must lie in that segment
   */
  bytes(hva: number, lengthBytes: number): Uint8Array;
}

/** Guest memory whose hvas are pretended: base of the mapping + offset. */
export class ArrayMemory implements MappableMemory {
  readonly #memory: DmaMemory;
  #nextHva = FIRST_HVA;

  /**
   * Makes memory with ranges in it.
   *
   * @param ranges What is mapped from the start; 1 MiB at address 0 unless told
   */
  constructor(
    ranges: readonly ArrayRange[] = [{ iova: 0, lengthBytes: 0x10_0000 }],
  ) {
    this.#memory = new DmaMemory({
      storage: {
        list: (capacity) => new ScatterGather(new Uint32Array(capacity * 4)),
        scratch: (lengthBytes) => ({
          buffer: new ArrayBuffer(lengthBytes),
          hva: this.#reserve(lengthBytes),
        }),
        close: () => {},
      },
    });
    for (const range of ranges) this.map(range);
  }

  get generation(): number {
    return this.#memory.generation;
  }

  get accessible(): boolean {
    return this.#memory.accessible;
  }

  set accessible(on: boolean) {
    this.#memory.accessible = on;
  }

  ranges(): readonly DmaRange[] {
    return this.#memory.ranges();
  }

  map(range: ArrayRange): ArrayBuffer {
    const buffer = range.buffer ?? new ArrayBuffer(range.lengthBytes);
    const hva = this.#reserve(buffer.byteLength);
    const access = range.access ?? (Access.READ | Access.WRITE);
    this.#memory.show(
      { iova: range.iova, lengthBytes: range.lengthBytes, access },
      new Backing(buffer, hva, { release: () => {} }),
      range.offset,
    );
    return buffer;
  }

  mapPages(range: ArrayRange): ArrayBuffer {
    const { iova, lengthBytes } = range;
    const buffer = range.buffer ?? new ArrayBuffer(lengthBytes);
    for (let offset = 0; offset < lengthBytes; offset += PAGE_SIZE) {
      const page = { iova: iova + offset, lengthBytes: PAGE_SIZE };
      this.map({ ...range, ...page, buffer, offset });
    }
    return buffer;
  }

  unmap(iova: number, lengthBytes: number): void {
    this.#memory.unmap(iova, lengthBytes);
  }

  unmapAll(): void {
    this.#memory.unmapAll();
  }

  createScatterGather(capacity: number): ScatterGather {
    return this.#memory.createScatterGather(capacity);
  }

  createScratch(lengthBytes: number): ScratchMemory {
    return this.#memory.createScratch(lengthBytes);
  }

  holds(list: ScatterGather, access: Access): boolean {
    return this.#memory.holds(list, access);
  }

  covers(iova: number, lengthBytes: number, access: Access): boolean {
    return this.#memory.covers(iova, lengthBytes, access);
  }

  window(
    iova: number,
    lengthBytes: number,
    access: Access,
  ): MemoryWindow | null {
    return this.#memory.window(iova, lengthBytes, access);
  }

  translate(
    iova: number,
    lengthBytes: number,
    access: Access,
    into: ScatterGather,
  ): number {
    return this.#memory.translate(iova, lengthBytes, access, into);
  }

  translateWords(
    words: Uint32Array,
    at: number,
    lengthBytes: number,
    access: Access,
    into: ScatterGather,
  ): number {
    return this.#memory.translateWords(words, at, lengthBytes, access, into);
  }

  gatherWords(
    list: ScatterGather,
    skipBytes: number,
    into: Uint32Array,
    at: number,
    count: number,
  ): number {
    return this.#memory.gatherWords(list, skipBytes, into, at, count);
  }

  release(_list: ScatterGather, _writtenBytes: number): number {
    return 0;
  }

  gather(list: ScatterGather, into: Uint8Array, lengthBytes: number): number {
    return this.#memory.gather(list, into, lengthBytes);
  }

  scatter(list: ScatterGather, from: Uint8Array, lengthBytes: number): number {
    return this.#memory.scatter(list, from, lengthBytes);
  }

  read(iova: number, into: Uint8Array): number {
    return this.#memory.read(iova, into);
  }

  write(iova: number, from: Uint8Array): number {
    return this.#memory.write(iova, from);
  }

  bytes(hva: number, lengthBytes: number): Uint8Array {
    return this.#memory.bytesAt(hva, lengthBytes);
  }

  subscribe(listener: MemoryListener): () => void {
    return this.#memory.subscribe(listener);
  }

  /** A page between mappings keeps segments of different buffers apart. */
  #reserve(lengthBytes: number): number {
    const hva = this.#nextHva;
    this.#nextHva += alignUp(lengthBytes, PAGE_SIZE) + PAGE_SIZE;
    return hva;
  }
}
