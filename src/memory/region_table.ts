/**
 * What every kind of mapped guest memory shares: ranges sorted by iova, and the one place where an address and a
 * length from a guest are checked.
 *
 * @module
 */

import { Errno, ErrnoError } from "../core/errno.ts";
import { hex, high32, PAGE_SIZE, u64 } from "../core/bits.ts";
import {
  Access,
  type MemoryListener,
  type MemoryWindow,
  type ScratchMemory,
} from "./guest_memory.ts";
import { MappedWindow } from "./mapped_window.ts";
import {
  Backing,
  type DmaRange,
  NOWHERE,
  Region,
  UNREACHABLE,
} from "./region.ts";
import type { ScatterGather } from "./scatter_gather.ts";
import { SortedRegions } from "./sorted_regions.ts";
import { SpanningWindow } from "./spanning_window.ts";

/** Ranges, sorted by iova, never overlapping. Addresses of 2^53 and above are never mapped. */
export class RegionTable {
  readonly #regions = new SortedRegions();
  /** What the ranges show, and what lists may hold though no guest address leads there; in order of address. */
  readonly #backings: Backing[] = [];
  #accessible = true;
  readonly #listeners = new Set<MemoryListener>();
  /**
   * The address that is looked for, and what it is here. On data paths addresses go from function to function by way
   * of these: as arguments they are allocated wherever a call is not inlined.
   */
  readonly #address = new Float64Array(1);
  readonly #hva = new Uint32Array(2);
  /** A word on its way, byte by byte. */
  readonly #word = new Uint32Array(1);
  readonly #bytes = new Uint8Array(this.#word.buffer);
  #last: Region = NOWHERE;
  #lastByHva: Backing = UNREACHABLE;
  #generation = 0;
  #lengthBytes = 0;

  /** See {@linkcode GuestMemory.generation}. */
  get generation(): number {
    return this.#generation;
  }

  /** The ranges, in order of address; a new list. */
  regions(): readonly Region[] {
    return this.#regions.list();
  }

  /** The last range, or null. */
  last(): Region | null {
    return this.#regions.last();
  }

  /** How many ranges there are. */
  get count(): number {
    return this.#regions.count;
  }

  /** How long they are together. */
  get lengthBytes(): number {
    return this.#lengthBytes;
  }

  /** The range that holds an address, accessible or not; or null. */
  regionAt(iova: number): Region | null {
    this.#address[0] = iova;
    const region = this.#regions.holding(this.#address);
    return region === NOWHERE ? null : region;
  }

  /** See {@linkcode GuestMemory.accessible}. */
  get accessible(): boolean {
    return this.#accessible;
  }

  /** Taken away, every range is announced as if it were unmapped; given back, all are as they are by then. */
  set accessible(on: boolean) {
    if (on === this.#accessible) return;
    if (on) {
      this.#accessible = true;
      this.#changed();
      return;
    }
    for (const region of this.#regions.list()) this.#announce(region);
    this.#accessible = false;
    this.#last = NOWHERE;
    this.#lastByHva = UNREACHABLE;
    this.#generation++;
  }

  /**
   * Refuses a range that cannot be added, before anything is mapped for it.
   *
   * @throws {ErrnoError} EEXIST on overlap
   */
  checkFree(iova: number, lengthBytes: number): void {
    const next = this.#regions.firstEndingAfter(iova);
    if (next !== undefined && next.iova < iova + lengthBytes) {
      throw new ErrnoError(
        Errno.EEXIST,
        `Cannot map ${hex(iova)}: it overlaps a mapping at ${hex(next.iova)}`,
      );
    }
  }

  /**
   * Adds a range that {@linkcode RegionTable.checkFree} let pass.
   *
   * @param backing What it shows, from `offset` on; {@linkcode UNREACHABLE} for nothing
   */
  add(range: DmaRange, backing: Backing, offset = 0): void {
    this.#regions.add(new Region(range, backing, offset));
    this.#lengthBytes += range.lengthBytes;
    if (backing.ranges++ === 0 && backing !== UNREACHABLE) {
      this.#backings.splice(this.#backingsBelow(backing.hva), 0, backing);
    }
    for (const listener of this.#listeners) listener.onMap?.(range.iova);
    this.#changed();
  }

  /**
   * Removes exactly one range; releases what lies behind it when no other range shows that.
   *
   * @throws {ErrnoError} ENOENT when no mapping is exactly this range
   */
  remove(iova: number, lengthBytes: number): void {
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
    this.#lengthBytes -= lengthBytes;
    this.#drop(region);
    this.#changed();
  }

  /** See {@linkcode GuestMemory.createScratch}; it stays when everything is removed. */
  addScratch(
    buffer: ArrayBuffer,
    hva: number,
    lengthBytes: number,
  ): ScratchMemory {
    const backing = new Backing(buffer, hva, { release: () => {} });
    this.#backings.splice(this.#backingsBelow(hva), 0, backing);
    return {
      bytes: backing.bytes.subarray(0, lengthBytes),
      append: (length, into) => into.push(hva, length),
    };
  }

  /** Removes everything. */
  clear(): void {
    if (this.#regions.count === 0) return;
    const regions = this.#regions.list();
    for (const region of regions) this.#announce(region);
    this.#regions.clear();
    this.#lengthBytes = 0;
    for (const region of regions) this.#drop(region);
    this.#changed();
  }

  /** See {@linkcode GuestMemory.holds}. */
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

  /** See {@linkcode GuestMemory.covers}. */
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

  /** See {@linkcode GuestMemory.window}. */
  window(
    iova: number,
    lengthBytes: number,
    access: Access,
  ): MemoryWindow | null {
    if (!this.covers(iova, lengthBytes, access)) return null;
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

  /** See {@linkcode GuestMemory.translate}. */
  translate(
    iova: number,
    lengthBytes: number,
    access: Access,
    into: ScatterGather,
  ): number {
    this.#address[0] = iova;
    return this.#translate(lengthBytes, access, into);
  }

  /** See {@linkcode GuestMemory.translateWords}. */
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

  /** See {@linkcode GuestMemory.gatherWords}. */
  gatherWords(
    list: ScatterGather,
    skipBytes: number,
    into: Uint32Array,
    at: number,
    count: number,
  ): number {
    const { words } = list;
    let segment = 0;
    let skip = skipBytes;
    const end = at + count;
    for (let to = at; to < end;) {
      while (segment < list.count && skip >= words[segment * 4 + 2]!) {
        skip -= words[segment * 4 + 2]!;
        segment++;
      }
      if (segment === list.count) return -Errno.EFAULT;
      const hva = u64(words[segment * 4]!, words[segment * 4 + 1]!) + skip;
      this.#address[0] = hva;
      const backing = this.#findHva();
      if (backing === UNREACHABLE) return -Errno.EFAULT;
      const offset = hva - backing.hva;
      const room = Math.min(
        words[segment * 4 + 2]! - skip,
        backing.lengthBytes - offset,
      );
      if (offset % 4 !== 0 || room < 4) {
        if (this.gather(list, this.#bytes, 4, skip, segment) < 4) {
          return -Errno.EFAULT;
        }
        into[to++] = this.#word[0]!;
        skip += 4;
        continue;
      }
      // x86_64 and aarch64 Linux are little-endian, so the words have the right order as they are.
      const source = backing.words;
      const from = offset / 4;
      const n = Math.min(end - to, room >>> 2);
      for (let i = 0; i < n; i++) into[to + i] = source[from + i]!;
      to += n;
      skip += n * 4;
    }
    return 0;
  }

  /** See {@linkcode GuestMemory.read}. */
  read(iova: number, into: Uint8Array): number {
    return this.#copy(iova, into, Access.READ);
  }

  /** See {@linkcode GuestMemory.write}. */
  write(iova: number, from: Uint8Array): number {
    return this.#copy(iova, from, Access.WRITE);
  }

  /**
   * The bytes of our own address space behind a segment.
   *
   * @throws {ErrnoError} EFAULT when the address is in nothing that is mapped
   */
  bytesAt(hva: number, lengthBytes: number): Uint8Array {
    this.#address[0] = hva;
    const backing = this.#findHva();
    const offset = hva - backing.hva;
    if (
      backing !== UNREACHABLE && offset + lengthBytes <= backing.lengthBytes
    ) {
      return new Uint8Array(backing.buffer, offset, lengthBytes);
    }
    throw new ErrnoError(
      Errno.EFAULT,
      `Cannot view ${hex(hva)}: it is not guest memory`,
    );
  }

  /**
   * See {@linkcode GuestMemory.gather}.
   *
   * @param skipBytes Where in a segment to begin, which is longer
   * @param first Which segment that is
   */
  gather(
    list: ScatterGather,
    into: Uint8Array,
    lengthBytes: number,
    skipBytes = 0,
    first = 0,
  ): number {
    let done = 0;
    let skip = skipBytes;
    for (let i = first; i < list.count && done < lengthBytes; i++) {
      const word = i * 4;
      let hva = u64(list.words[word]!, list.words[word + 1]!) + skip;
      const length = list.words[word + 2]! - skip;
      skip = 0;
      let left = Math.min(length, lengthBytes - done);
      while (left > 0) {
        this.#address[0] = hva;
        const backing = this.#findHva();
        // The list is older than the last unmapping: what it points at is gone.
        if (backing === UNREACHABLE) return done;
        const { bytes } = backing;
        let at = hva - backing.hva;
        const n = Math.min(left, backing.lengthBytes - at);
        for (const end = done + n; done < end;) {
          into[done++] = bytes[at++]!;
        }
        left -= n;
        hva += n;
      }
    }
    return done;
  }

  /** See {@linkcode GuestMemory.scatter}. */
  scatter(list: ScatterGather, from: Uint8Array, lengthBytes: number): number {
    let done = 0;
    for (let i = 0; i < list.count && done < lengthBytes; i++) {
      const word = i * 4;
      let hva = u64(list.words[word]!, list.words[word + 1]!);
      const length = list.words[word + 2]!;
      let left = Math.min(length, lengthBytes - done);
      while (left > 0) {
        this.#address[0] = hva;
        const backing = this.#findHva();
        if (backing === UNREACHABLE) return done;
        const { bytes } = backing;
        let at = hva - backing.hva;
        const n = Math.min(left, backing.lengthBytes - at);
        for (const end = done + n; done < end;) {
          bytes[at++] = from[done++]!;
        }
        left -= n;
        hva += n;
      }
    }
    return done;
  }

  /** See {@linkcode GuestMemory.subscribe}. */
  subscribe(listener: MemoryListener): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** Ends every subscription. */
  unsubscribeAll(): void {
    this.#listeners.clear();
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

  /** What has bytes at `#address` of our own address space. */
  #findHva(): Backing {
    const hva = this.#address[0]!;
    const last = this.#lastByHva;
    if (hva >= last.hva && hva < last.hva + last.lengthBytes) return last;
    const at = this.#backingsBelow(hva + 1) - 1;
    const backing = at < 0 ? UNREACHABLE : this.#backings[at]!;
    if (hva >= backing.hva + backing.lengthBytes) return UNREACHABLE;
    // No range shows scratch memory, which stays in reach.
    if (!this.#accessible && backing.ranges > 0) return UNREACHABLE;
    return this.#lastByHva = backing;
  }

  /** How many backings begin below an address of our own. */
  #backingsBelow(hva: number): number {
    let low = 0;
    let high = this.#backings.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#backings[middle]!.hva >= hva) high = middle;
      else low = middle + 1;
    }
    return low;
  }

  #announce(region: Region): void {
    for (const listener of this.#listeners) {
      listener.onUnmap?.(region.iova, region.lengthBytes);
    }
  }

  #drop(region: Region): void {
    this.#last = NOWHERE;
    if (region.windowed) this.#generation++;
    const { backing } = region;
    if (--backing.ranges > 0 || backing === UNREACHABLE) return;
    this.#lastByHva = UNREACHABLE;
    this.#backings.splice(this.#backingsBelow(backing.hva), 1);
    backing.owner.release();
  }

  #changed(): void {
    for (const listener of this.#listeners) listener.onChange?.();
  }
}
