/**
 * Guest memory on ArrayBuffers: for unit tests of devices, and for whoever has no memory to share. It needs no
 * permission and behaves as the real one does, except that C cannot reach it.
 *
 * @module
 */

import { alignUp, PAGE_SIZE } from "../core/bits.ts";
import { Access, type GuestMemory } from "./guest_memory.ts";
import { Backing, type DmaRange } from "./region.ts";
import { type ListStorage, MappedMemory } from "./mapped_memory.ts";
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

/** Storage whose addresses are pretended. */
class ArrayStorage implements ListStorage {
  #nextHva = FIRST_HVA;

  list(capacity: number): ScatterGather {
    return new ScatterGather(new Uint32Array(capacity * 4));
  }

  scratch(lengthBytes: number): { buffer: ArrayBuffer; hva: number } {
    return {
      buffer: new ArrayBuffer(lengthBytes),
      hva: this.reserve(lengthBytes),
    };
  }

  /** Takes addresses; a page between them keeps segments of different buffers apart. */
  reserve(lengthBytes: number): number {
    const hva = this.#nextHva;
    this.#nextHva += alignUp(lengthBytes, PAGE_SIZE) + PAGE_SIZE;
    return hva;
  }

  close(): void {}
}

/** Guest memory whose hvas are pretended: base of the mapping + offset. */
export class ArrayMemory extends MappedMemory implements MappableMemory {
  readonly #hvas: ArrayStorage;

  /**
   * Makes memory with ranges in it.
   *
   * @param ranges What is mapped from the start; 1 MiB at address 0 unless told
   */
  constructor(
    ranges: readonly ArrayRange[] = [{ iova: 0, lengthBytes: 0x10_0000 }],
  ) {
    const storage = new ArrayStorage();
    super(storage);
    this.#hvas = storage;
    for (const range of ranges) this.map(range);
  }

  map(range: ArrayRange): ArrayBuffer {
    const { iova, lengthBytes, offset } = range;
    const buffer = range.buffer ?? new ArrayBuffer(lengthBytes);
    const hva = this.#hvas.reserve(buffer.byteLength);
    const access = range.access ?? (Access.READ | Access.WRITE);
    const backing = new Backing(buffer, hva);
    this.show({ iova, lengthBytes, access }, backing, offset);
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
}
