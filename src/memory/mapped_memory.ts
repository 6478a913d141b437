/**
 * Guest memory that lies in our own address space, whoever put it there. Needs no system.
 *
 * @module
 */

import { hex, high32, PAGE_SIZE, u64 } from "../core/bits.ts";
import { Errno, ErrnoError } from "../core/errno.ts";
import { Backings } from "./backings.ts";
import {
  Access,
  type GuestMemory,
  type MemoryListener,
  type MemoryWindow,
  type ScratchMemory,
} from "./guest_memory.ts";
import { MappedWindow } from "./mapped_window.ts";
import {
  type Backing,
  type DmaRange,
  NOWHERE,
  Region,
  UNREACHABLE,
} from "./region.ts";
import type { ScatterGather } from "./scatter_gather.ts";
import { SortedRegions } from "./sorted_regions.ts";
import { SpanningWindow } from "./spanning_window.ts";

/** Storage of lists and scratch memory. */
export interface ListStorage {
  /** An empty list of so many segments. */
  list(capacity: number): ScatterGather;
  /** Zeros, and where lists are to say that they are. */
  scratch(lengthBytes: number): { buffer: ArrayBuffer; hva: number };
  /** Frees everything. */
  close(): void;
}

/** See {@linkcode MappedMemory.onUnreachable}. */
const SEARCHES_MAX = 100;

/**
 * Ranges of guest memory that lie in our own address space, and the one place where an address and a length from a guest
 * are checked. Ranges are sorted by iova and never overlap; addresses of 2^53 and above are never mapped.
 */
export class MappedMemory implements GuestMemory, Disposable {
  generation = 0;
  readonly #regions = new SortedRegions();
  readonly #backings = new Backings();
  readonly #listeners = new Set<MemoryListener>();
  readonly #storage: ListStorage;
  /**
   * The address that is looked for, and what it is here. On data paths addresses go from function to function by way
   * of these: as arguments they are allocated wherever a call is not inlined.
   */
  readonly #address = new Float64Array(1);
  readonly #hva = new Uint32Array(2);
  #last: Region = NOWHERE;
  #accessible = true;
  #lengthBytes = 0;
  /** Told when an access fails because its range came without a file; once until {@linkcode MappedMemory.unmapAll}. */
  onUnreachable: ((range: DmaRange) => void) | null = null;
  /** Times that the cause of a failure is still looked for: a driver can fail for ever, and ranges may be many. */
  #searches = SEARCHES_MAX;

  /** Makes memory without ranges. */
  constructor(storage: ListStorage) {
    this.#storage = storage;
  }

  get accessible(): boolean {
    return this.#accessible;
  }

  /**
   * Takes all of it away from the device, or gives it back; what is mapped stays mapped. Taken away, every range is
   * announced as if it were unmapped; given back, all are as they are by then.
   */
  set accessible(on: boolean) {
    if (on === this.#accessible) return;
    if (!on) {
      for (const region of this.#regions.list()) this.#announce(region);
      this.#last = NOWHERE;
      this.#backings.forgetLast();
      this.generation++;
    }
    this.#accessible = this.#backings.accessible = on;
    if (on) this.#changed();
  }

  /** Number of ranges. */
  get count(): number {
    return this.#regions.count;
  }

  /** Length of all ranges together, in bytes. */
  get lengthBytes(): number {
    return this.#lengthBytes;
  }

  /** The mapped range of the highest address, or null. */
  lastRange(): DmaRange | null {
    return this.#regions.last();
  }

  /** The mapped ranges, in order of address. */
  ranges(): readonly DmaRange[] {
    return this.#regions.list();
  }

  /**
   * The same with what lies behind them.
   *
   * @internal
   */
  regions(): readonly Region[] {
    return this.#regions.list();
  }

  /**
   * The range that holds an address.
   *
   * @internal
   */
  rangeAt(iova: number): Region {
    this.#address[0] = iova;
    return this.#regions.holding(this.#address);
  }

  /**
   * Refuses a range that cannot be added, before anything is mapped for it.
   *
   * @throws {ErrnoError} EEXIST on overlap
   * @internal
   */
  checkFree({ iova, lengthBytes }: DmaRange): void {
    const next = this.#regions.firstEndingAfter(iova);
    if (next === undefined || next.iova >= iova + lengthBytes) return;
    throw new ErrnoError(
      Errno.EEXIST,
      `Cannot map ${hex(iova)}: it overlaps a mapping at ${hex(next.iova)}`,
    );
  }

  /**
   * Adds a range of memory that is in our address space already.
   *
   * @param backing What it shows, from `offset` on; {@linkcode UNREACHABLE} for nothing
   * @throws {ErrnoError} EEXIST on overlap
   * @internal
   */
  show(range: DmaRange, backing: Backing, offset = 0): void {
    this.checkFree(range);
    this.#regions.add(new Region(range, backing, offset));
    this.#lengthBytes += range.lengthBytes;
    this.#backings.add(backing);
    for (const listener of this.#listeners) listener.onMap?.(range.iova);
    this.#changed();
  }

  /**
   * Removes exactly one range.
   *
   * @throws {ErrnoError} ENOENT when no mapping is exactly this range
   */
  unmap(iova: number, lengthBytes: number): void {
    const region = this.#regions.firstEndingAfter(iova);
    if (
      region === undefined || region.iova !== iova ||
      region.lengthBytes !== lengthBytes
    ) {
      throw new ErrnoError(
        Errno.ENOENT,
        `Cannot unmap ${hex(iova)}: no mapping of ${
          hex(lengthBytes)
        } bytes begins there`,
      );
    }
    this.#announce(region);
    this.#regions.remove(region);
    this.#drop(region);
    this.#changed();
  }

  /** Removes everything, as when the client has gone. */
  unmapAll(): void {
    this.#searches = SEARCHES_MAX;
    if (this.#regions.count === 0) return;
    const regions = this.#regions.list();
    for (const region of regions) this.#announce(region);
    this.#regions.clear();
    for (const region of regions) this.#drop(region);
    this.#changed();
  }

  createScatterGather(capacity: number): ScatterGather {
    return this.#storage.list(capacity);
  }

  createScratch(lengthBytes: number): ScratchMemory {
    const { buffer, hva } = this.#storage.scratch(lengthBytes);
    return this.#backings.addScratch(buffer, hva, lengthBytes);
  }

  holds(list: ScatterGather, access: Access): boolean {
    for (let i = 0; i < list.count; i++) {
      const iova = list.iova(i);
      const end = iova + list.length(i);
      const hva = list.base(i);
      for (let at = iova; at < end;) {
        const region = this.#find(at);
        if (
          (region.access & access) !== access ||
          region.hva + at - region.iova !== hva + at - iova
        ) return false;
        at = region.end;
      }
    }
    return true;
  }

  covers(iova: number, lengthBytes: number, access: Access): boolean {
    const end = iova + lengthBytes;
    let at = iova;
    do {
      const region = this.#find(at);
      if (
        region.backing === UNREACHABLE || (region.access & access) !== access
      ) return false;
      at = region.end;
    } while (at < end);
    return true;
  }

  window(
    iova: number,
    lengthBytes: number,
    access: Access,
  ): MemoryWindow | null {
    if (!this.covers(iova, lengthBytes, access)) {
      this.#findCause(iova, lengthBytes);
      return null;
    }
    const first = this.#find(iova);
    const offset = first.offset + iova - first.iova;
    let isOnePiece = true;
    let isOnPages = true;
    for (let at = iova; at < iova + lengthBytes;) {
      const region = this.#find(at);
      region.windowed = true;
      isOnePiece &&= region.backing === first.backing &&
        region.offset - region.iova === first.offset - first.iova;
      isOnPages &&= region.iova % PAGE_SIZE === 0 &&
        region.end % PAGE_SIZE === 0;
      at = region.end;
    }
    if (isOnePiece) {
      return new MappedWindow(first.backing.buffer, offset, lengthBytes);
    }
    return isOnPages ? this.#spanningWindow(iova, lengthBytes) : null;
  }

  translate(
    iova: number,
    lengthBytes: number,
    access: Access,
    into: ScatterGather,
  ): number {
    this.#address[0] = iova;
    return this.#translate(lengthBytes, access, into);
  }

  translateWords(
    words: Uint32Array,
    at: number,
    lengthBytes: number,
    access: Access,
    into: ScatterGather,
  ): number {
    this.#address[0] = u64(words[at]!, words[at + 1]!);
    return this.#translate(lengthBytes, access, into);
  }

  gatherWords(
    list: ScatterGather,
    skipBytes: number,
    into: Uint32Array,
    at: number,
    count: number,
  ): number {
    return this.#backings.gatherWords(list, skipBytes, into, at, count);
  }

  release(_list: ScatterGather, _writtenBytes: number): number {
    return 0;
  }

  gather(list: ScatterGather, into: Uint8Array, lengthBytes: number): number {
    return this.#backings.gather(list, into, lengthBytes);
  }

  scatter(list: ScatterGather, from: Uint8Array, lengthBytes: number): number {
    return this.#backings.scatter(list, from, lengthBytes);
  }

  read(iova: number, into: Uint8Array): number {
    return this.#copy(iova, into, Access.READ);
  }

  write(iova: number, from: Uint8Array): number {
    return this.#copy(iova, from, Access.WRITE);
  }

  /**
   * The bytes of our own address space behind a segment.
   *
   * @throws {ErrnoError} EFAULT when the address is in nothing that is mapped
   */
  bytes(hva: number, lengthBytes: number): Uint8Array {
    return this.#backings.bytesAt(hva, lengthBytes);
  }

  /** An access has failed: whoever is responsible for a range that cannot be reached is to hear of it, once. */
  #findCause(iova: number, lengthBytes: number): void {
    const tell = this.onUnreachable;
    if (tell === null || this.#searches === 0) return;
    this.#searches--;
    const end = iova + lengthBytes;
    const range = this.ranges().find((range) =>
      // What cannot be reached allows nothing.
      range.access === 0 && range.iova < end &&
      iova < range.iova + range.lengthBytes
    );
    if (range === undefined) return;
    this.#searches = 0;
    tell(range);
  }

  subscribe(listener: MemoryListener): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** Unmaps everything and frees the lists; further calls do nothing. */
  close(): void {
    this.unmapAll();
    this.#listeners.clear();
    this.#storage.close();
  }

  /** See {@linkcode MappedMemory.close}. */
  [Symbol.dispose](): void {
    this.close();
  }

  /** Translates from `#address` on. */
  #translate(
    lengthBytes: number,
    access: Access,
    into: ScatterGather,
  ): number {
    const before = into.lengthBytes;
    let left = lengthBytes;
    // 2^53 and above are never mapped, so a wrapping or inexact address finds no region.
    while (left > 0) {
      const region = this.#findAddress();
      const iova = this.#address[0]!;
      if (
        region.backing === UNREACHABLE || (region.access & access) !== access
      ) {
        into.truncate(before);
        this.#findCause(iova, left);
        return -Errno.EFAULT;
      }
      const available = region.end - iova;
      const length = left < available ? left : available;
      const hva = region.hva + (iova - region.iova);
      this.#hva[0] = hva >>> 0;
      this.#hva[1] = high32(hva);
      const result = into.pushGuest(this.#hva, this.#address, length);
      if (result < 0) {
        into.truncate(before);
        return result;
      }
      this.#address[0] = iova + length;
      left -= length;
    }
    return 0;
  }

  #copy(iova: number, bytes: Uint8Array, access: Access): number {
    // Checked as a whole first, so that a failed copy has copied nothing.
    if (bytes.length > 0 && !this.covers(iova, bytes.length, access)) {
      this.#findCause(iova, bytes.length);
      return -Errno.EFAULT;
    }
    for (let done = 0; done < bytes.length;) {
      const region = this.#find(iova + done);
      const length = Math.min(bytes.length - done, region.end - iova - done);
      const offset = region.offset + iova + done - region.iova;
      const guest = region.backing.bytes.subarray(offset, offset + length);
      if (access === Access.READ) bytes.set(guest, done);
      else guest.set(bytes.subarray(done, done + length));
      done += length;
    }
    return 0;
  }

  /** A window on whole mappings of whole pages, page by page. */
  #spanningWindow(iova: number, lengthBytes: number): SpanningWindow {
    const skew = iova % PAGE_SIZE;
    const pages: MappedWindow[] = [];
    for (let at = iova - skew; at < iova + lengthBytes; at += PAGE_SIZE) {
      const { backing, offset, iova: first } = this.#find(at);
      pages.push(
        new MappedWindow(backing.buffer, offset + at - first, PAGE_SIZE),
      );
    }
    return new SpanningWindow(pages, skew, lengthBytes);
  }

  #find(iova: number): Region {
    this.#address[0] = iova;
    return this.#findAddress();
  }

  /** The region that holds `#address`. */
  #findAddress(): Region {
    const iova = this.#address[0]!;
    const last = this.#last;
    if (iova >= last.iova && iova < last.end) return last;
    if (!this.#accessible) return NOWHERE;
    const region = this.#regions.holding(this.#address);
    if (region !== NOWHERE) this.#last = region;
    return region;
  }

  #announce(region: Region): void {
    for (const listener of this.#listeners) {
      listener.onUnmap?.(region.iova, region.lengthBytes);
    }
  }

  #drop(region: Region): void {
    this.#last = NOWHERE;
    this.#lengthBytes -= region.lengthBytes;
    if (region.windowed) this.generation++;
    this.#backings.remove(region.backing);
  }

  #changed(): void {
    for (const listener of this.#listeners) listener.onChange?.();
  }
}
