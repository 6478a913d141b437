/**
 * The seam between a device and guest memory.
 *
 * Nothing above this seam may assume that a view of guest memory exists: with shared guest RAM an access is a
 * load or store in our own address space, without it a message to the client, and in a unit test a byte of an
 * ArrayBuffer. Whichever it is, every address and length a guest supplies is checked here and nowhere else.
 *
 * @module
 */

import { Errno } from "../core/errno.ts";
import type { ScatterGather } from "./scatter_gather.ts";

/**
 * Time that a ring in use may be out of reach before its driver is held to have broken the rules, in milliseconds.
 * A client takes memory away and maps it again in other pieces whenever its memory map changes, and a driver goes on
 * meanwhile; QEMU needs a fraction of a millisecond for that.
 */
export const RING_ABSENCE_MS = 1000;

/**
 * The answer of an access to memory that is not in reach yet, as where every byte is asked for by message: −EAGAIN.
 *
 * It has done nothing. {@linkcode MemoryListener.onReach} tells when to make the same access again, as a part of whatever
 * step it was a part of: that step leaves no trace, is done again from its start, and finds then what has happened
 * meanwhile. Memory that is mapped never answers so.
 */
export const MEMORY_PENDING: number = -Errno.EAGAIN;

/** Accesses of a transfer to guest memory; the bits of a DMA mapping's protection. */
export const Access = {
  /** The device reads guest memory. */
  READ: 1,
  /** The device writes guest memory. */
  WRITE: 2,
} as const;

/** A bit set of {@linkcode Access}. */
export type Access = number;

/**
 * A range of guest memory that is accessed often and in small pieces, such as a ring.
 *
 * Offsets are in bytes from the start of the window and belong to the caller: they must lie inside. All values
 * are little-endian, and none lies in two pages of the guest's. A window is good while
 * {@linkcode GuestMemory.generation} stays what it was when the window was made; using it later is a programmer's error.
 */
export interface MemoryWindow {
  /** Length in bytes. */
  readonly lengthBytes: number;
  /** True where every read is a look of its own, so that {@linkcode refresh} has nothing to do: where memory is mapped. */
  readonly isLive: boolean;
  /**
   * Looks at a range, once for all that is read there afterwards. What is read is at least as new as this call; of what was
   * not refreshed it is any older value, and garbage at first.
   *
   * @returns 0, or {@linkcode MEMORY_PENDING}: then the next refresh of the same range is at least as new as this call
   */
  refresh(offset: number, lengthBytes: number): number;
  /** Reads 16 bits. */
  getU16(offset: number): number;
  /** Reads 32 bits. */
  getU32(offset: number): number;
  /** Writes 16 bits. */
  setU16(offset: number, value: number): void;
  /** Writes 32 bits. */
  setU32(offset: number, value: number): void;
  /** Reads a 16-bit index that the other side publishes (sequentially consistent); `offset` is even. */
  loadU16(offset: number): number;
  /** Publishes a 16-bit index: everything written before is visible to whoever sees it; `offset` is even. */
  storeU16(offset: number, value: number): void;
  /** As {@linkcode loadU16}, 32 bits; `offset` is a multiple of 4, in memory and in the window. */
  loadU32(offset: number): number;
  /** As {@linkcode storeU16}, 32 bits; `offset` is a multiple of 4, in memory and in the window. */
  storeU32(offset: number, value: number): void;
}

/** Memory of a device's own that is used as guest memory is: see {@linkcode GuestMemory.createScratch}. */
export interface ScratchMemory {
  /** The bytes. */
  readonly bytes: Uint8Array<ArrayBuffer>;
  /**
   * Appends the first `lengthBytes` to a list.
   *
   * @returns 0, or −E2BIG when the list is full
   */
  append(lengthBytes: number, into: ScatterGather): number;
}

/** The guest's memory as a device sees it. */
export interface GuestMemory {
  /**
   * Changes whenever a mapping goes that a window was made on, or memory is no longer accessible; windows made before are
   * then no longer valid. What is mapped and unmapped for each request, as behind an IOMMU, changes nothing.
   */
  readonly generation: number;

  /**
   * True when the device may access guest memory. While it may not (its function is not a bus master, see
   * {@linkcode PciFunction} of src/pci/function.ts) nothing is found here, which is then no mistake of the driver.
   */
  readonly accessible: boolean;

  /**
   * An empty list for this memory, in storage that back ends can hand to the kernel.
   *
   * @param capacity The most segments it will hold, at most 1024 (IOV_MAX)
   */
  createScatterGather(capacity: number): ScatterGather;

  /**
   * Memory that no guest can see but that lists of this memory may hold, so that back ends fill it and take from it
   * as they do with the guest's. Lasts as long as this object.
   */
  createScratch(lengthBytes: number): ScratchMemory;

  /** True when all segments of a list are still mapped where they were when it was filled, and for this. */
  holds(list: ScatterGather, access: Access): boolean;

  /** True when all of a range is mapped, and for this. */
  covers(iova: number, lengthBytes: number, access: Access): boolean;

  /**
   * Makes a window on a range; it may span adjacent mappings, which are then whole pages.
   *
   * @param iova Address of the first byte, as the guest gave it
   * @param access What will be done; all bits must be allowed by the mapping
   * @returns The window, or null when the range is not mapped, not allowed, or wraps
   */
  window(
    iova: number,
    lengthBytes: number,
    access: Access,
  ): MemoryWindow | null;

  /**
   * Appends the range to a scatter-gather list; it may span adjacent mappings.
   *
   * The segments stay valid until a mapping goes that they lie in, of which {@linkcode MemoryListener.onUnmap} tells
   * ({@linkcode ScatterGather.overlaps}).
   *
   * @returns 0, −EFAULT when any part is not mapped or not allowed (the list is then as it was), −E2BIG when
   * the list is full, or {@linkcode MEMORY_PENDING}
   */
  translate(
    iova: number,
    lengthBytes: number,
    access: Access,
    into: ScatterGather,
  ): number;

  /**
   * As {@linkcode translate}, with the address as a descriptor holds it. For data paths: a number above 2^31 that is
   * passed to a function costs an allocation wherever the compiler does not inline the call, two words never do.
   *
   * @param words Low word of the address at index `at`, high word behind it
   */
  translateWords(
    words: Uint32Array,
    at: number,
    lengthBytes: number,
    access: Access,
    into: ScatterGather,
  ): number;

  /**
   * Copies little-endian 32-bit words out of a list without allocating: for small tables on data paths, such as indirect
   * descriptors.
   *
   * @param skipBytes Where in the list the first word begins; no alignment needed
   * @param into Where the words go, from index `at` on
   * @returns 0, or −EFAULT when the list is shorter, or its memory is gone (what was copied is then unspecified)
   */
  gatherWords(
    list: ScatterGather,
    skipBytes: number,
    into: Uint32Array,
    at: number,
    count: number,
  ): number;

  /**
   * Gives back what {@linkcode translate} and {@linkcode translateWords} have put into a list: once, whatever became of
   * the request, with all of its segments and in the order in which they came. Nobody uses their addresses afterwards.
   * Free of cost where memory is shared; where it is not, this is when bytes that were written by way of addresses travel
   * and buffers become free. {@linkcode scatter}, {@linkcode write} and the stores of a window need no more to be seen by
   * the guest.
   *
   * @param writtenBytes How much of the list was written, from its start; 0 unless {@linkcode Access.WRITE} was asked for;
   * {@linkcode MEMORY_PENDING} when the step that took it is done again, which finds it in reach
   * @returns 0, or −errno when the guest does not get what was written
   */
  release(list: ScatterGather, writtenBytes: number): number;

  /**
   * Copies the first bytes of a list out, as for a header. Allocates nothing, and goes byte by byte.
   *
   * @param list Filled by {@linkcode translate}, or made of segments of such lists
   * @param into At least `lengthBytes` long
   * @returns How many bytes were copied: fewer than `lengthBytes` when the list is shorter
   */
  gather(list: ScatterGather, into: Uint8Array, lengthBytes: number): number;

  /**
   * Copies bytes to the start of a list filled under {@linkcode Access.WRITE}; the counterpart of
   * {@linkcode gather}.
   *
   * @returns How many bytes were copied: fewer than `lengthBytes` when the list is shorter
   */
  scatter(list: ScatterGather, from: Uint8Array, lengthBytes: number): number;

  /**
   * Copies out of guest memory, for control paths.
   *
   * @returns 0 or −EFAULT
   */
  read(iova: number, into: Uint8Array): number;

  /**
   * Copies into guest memory, for control paths.
   *
   * @returns 0 or −EFAULT
   */
  write(iova: number, from: Uint8Array): number;

  /**
   * Calls back before mappings go away (so that nothing is left in use) and after any change.
   *
   * @returns A function that ends the subscription
   */
  subscribe(listener: MemoryListener): () => void;
}

/** Told about changes of guest memory. */
export interface MemoryListener {
  /** A range that begins there has come. */
  onMap?(iova: number): void;
  /**
   * The range is about to go, or not to be accessible any more: finish or drop everything that uses it before
   * returning.
   */
  onUnmap?(iova: number, lengthBytes: number): void;
  /** Something was mapped or unmapped, or is accessible again. */
  onChange?(): void;
  /**
   * Tells that what accesses were {@linkcode MEMORY_PENDING} for is in reach, or never will be. It stays so for one turn: whoever has
   * anything to do again does it in that, or asks anew later.
   */
  onReach?(): void;
}
