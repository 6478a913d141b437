/**
 * What every kind of mapped guest memory shares: ranges sorted by iova, and the one place where an address and a
 * length from a guest are checked.
 *
 * @module
 */

import { Errno, ErrnoError } from "../errno.ts";
import { hex, high32, u64 } from "../bits.ts";
import {
  Access,
  type MemoryListener,
  type ScratchMemory,
} from "./guest_memory.ts";
import { MappedWindow } from "./mapped_window.ts";
import type { ScatterGather } from "./scatter_gather.ts";

/** A range of guest addresses. */
export interface DmaRange {
  /** First guest address. */
  readonly iova: number;
  /** Length in bytes. */
  readonly lengthBytes: number;
  /** What the device may do. */
  readonly access: Access;
}

/** What lies behind a range. */
export interface Backing {
  /** All of its bytes. */
  readonly buffer: ArrayBuffer;
  /** Address of the first of them in our address space. */
  readonly hva: number;
  /** Takes the bytes away; views of the buffer must not be used afterwards. */
  release(): void;
  /** Leaves the bytes to somebody else, who releases them; absent where nobody could. */
  handOver?(): void;
}

/** A range with what lies behind it. */
export class Region implements DmaRange {
  readonly iova: number;
  readonly lengthBytes: number;
  /** The address after the last. */
  readonly end: number;
  readonly access: Access;
  /** What lies behind it; null when the range is known but cannot be reached. */
  readonly backing: Backing | null;
  /** Address of the first byte in our address space, or 0. */
  readonly hva: number;
  /** The bytes; empty without a backing. */
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** The same bytes as words. */
  readonly words: Uint32Array<ArrayBuffer>;

  /** @param backing At least as long as the range */
  constructor(range: DmaRange, backing: Backing | null) {
    this.iova = range.iova;
    this.lengthBytes = range.lengthBytes;
    this.end = range.iova + range.lengthBytes;
    // Without a backing nothing is allowed, so that one test of the access bits covers both.
    this.access = backing === null ? 0 : range.access;
    this.backing = backing;
    this.hva = backing === null ? 0 : backing.hva;
    const buffer = backing === null ? new ArrayBuffer(0) : backing.buffer;
    this.bytes = new Uint8Array(buffer);
    this.words = new Uint32Array(buffer, 0, Math.floor(buffer.byteLength / 4));
  }
}

/** Fills the place of "last region" when there is none, so that the hot path needs no null check. */
const NOWHERE = new Region({ iova: 0, lengthBytes: 0, access: 0 }, null);

/** Ranges, sorted by iova, never overlapping. Addresses of 2^53 and above are never mapped. */
export class RegionTable {
  readonly #regions: Region[] = [];
  /** The ranges in which addresses are found: all of them, or none while guest memory is not accessible. */
  #reachable: readonly Region[] = this.#regions;
  /** What lists may hold though no guest address leads there. */
  readonly #scratch: Region[] = [];
  readonly #listeners = new Set<MemoryListener>();
  /**
   * The address that is looked for, and what it is here. On data paths addresses go from function to function by way
   * of these: as arguments they are allocated wherever a call is not inlined.
   */
  readonly #address = new Float64Array(1);
  readonly #hva = new Uint32Array(2);
  #last: Region = NOWHERE;
  #lastByHva: Region = NOWHERE;
  #generation = 0;

  /** See {@linkcode GuestMemory.generation}. */
  get generation(): number {
    return this.#generation;
  }

  /** The ranges, in order of address, accessible or not. */
  get regions(): readonly Region[] {
    return this.#regions;
  }

  /** See {@linkcode GuestMemory.accessible}. */
  get accessible(): boolean {
    return this.#reachable === this.#regions;
  }

  /** Taken away, every range is announced as if it were unmapped; given back, all are as they are by then. */
  set accessible(on: boolean) {
    if (on === this.accessible) return;
    if (on) {
      this.#reachable = this.#regions;
      this.#changed();
      return;
    }
    for (const region of this.#regions) this.#announce(region);
    this.#reachable = [];
    this.#forgetLast();
  }

  /**
   * Refuses a range that cannot be added, before anything is mapped for it.
   *
   * @throws {ErrnoError} EEXIST on overlap
   */
  checkFree(iova: number, lengthBytes: number): void {
    const next = this.#regions[this.#firstEndingAfter(iova)];
    if (next !== undefined && next.iova < iova + lengthBytes) {
      throw new ErrnoError(
        Errno.EEXIST,
        `Cannot map ${hex(iova)}: it overlaps a mapping at ${hex(next.iova)}`,
      );
    }
  }

  /** Adds a range that {@linkcode RegionTable.checkFree} let pass. */
  add(range: DmaRange, backing: Backing | null): void {
    const at = this.#firstEndingAfter(range.iova);
    this.#regions.splice(at, 0, new Region(range, backing));
    this.#changed();
  }

  /**
   * Removes exactly one range and releases what lies behind it.
   *
   * @throws {ErrnoError} ENOENT when no mapping is exactly this range
   */
  remove(iova: number, lengthBytes: number): void {
    const at = this.#firstEndingAfter(iova);
    const region = this.#regions[at];
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
    this.#regions.splice(at, 1);
    this.#drop(region);
    this.#changed();
  }

  /** See {@linkcode GuestMemory.createScratch}; it stays when everything is removed. */
  addScratch(backing: Backing, lengthBytes: number): ScratchMemory {
    const region = new Region({ iova: 0, lengthBytes, access: 0 }, backing);
    this.#scratch.push(region);
    return {
      bytes: region.bytes.subarray(0, lengthBytes),
      append: (length, into) => into.push(backing.hva, length),
    };
  }

  /** Removes everything. */
  clear(): void {
    if (this.#regions.length === 0) return;
    for (const region of this.#regions) this.#announce(region);
    const regions = this.#regions.splice(0);
    for (const region of regions) this.#drop(region);
    this.#changed();
  }

  /**
   * Removes everything and takes nothing away: what lies behind the ranges is somebody else's from here on. Nobody is
   * told, since nobody may be left who listens.
   */
  handOver(): void {
    const regions = this.#regions.splice(0);
    this.#forgetLast();
    for (const { backing } of regions) backing?.handOver?.();
  }

  /** See {@linkcode GuestMemory.window}. */
  window(
    iova: number,
    lengthBytes: number,
    access: Access,
  ): MappedWindow | null {
    const region = this.#find(iova);
    if (
      region.backing === null || iova + lengthBytes > region.end ||
      (region.access & access) !== access
    ) return null;
    return new MappedWindow(
      region.backing.buffer,
      iova - region.iova,
      lengthBytes,
    );
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

  /** See {@linkcode GuestMemory.readWords}. */
  readWords(
    address: Uint32Array,
    into: Uint32Array,
    at: number,
    count: number,
  ): number {
    const iova = u64(address[0]!, address[1]!);
    this.#address[0] = iova;
    const region = this.#findAddress();
    const offset = iova - region.iova;
    if (
      offset % 4 !== 0 || iova + count * 4 > region.end ||
      (region.access & Access.READ) === 0
    ) return this.#readWordsBytewise(into, at, count);
    // x86_64 and aarch64 Linux are little-endian, so the words have the right order as they are.
    const words = region.words;
    const from = offset / 4;
    for (let i = 0; i < count; i++) into[at + i] = words[from + i]!;
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
   * See {@linkcode GuestMemory.bytes}.
   *
   * @throws {ErrnoError} EFAULT when the address is in no region
   */
  bytesAt(hva: number, lengthBytes: number): Uint8Array {
    for (const region of [...this.#reachable, ...this.#scratch]) {
      if (region.backing === null || hva < region.hva) continue;
      const offset = hva - region.hva;
      if (offset + lengthBytes <= region.lengthBytes) {
        return new Uint8Array(region.backing.buffer, offset, lengthBytes);
      }
    }
    throw new ErrnoError(
      Errno.EFAULT,
      `Cannot view ${hex(hva)}: it is not guest memory`,
    );
  }

  /** See {@linkcode GuestMemory.gather}. */
  gather(list: ScatterGather, into: Uint8Array, lengthBytes: number): number {
    let done = 0;
    for (let i = 0; i < list.count && done < lengthBytes; i++) {
      const word = i * 4;
      let hva = u64(list.words[word]!, list.words[word + 1]!);
      const length = list.words[word + 2]!;
      let left = Math.min(length, lengthBytes - done);
      while (left > 0) {
        this.#address[0] = hva;
        const region = this.#findHva();
        // The list is older than the last unmapping: what it points at is gone.
        if (region === NOWHERE) return done;
        let at = hva - region.hva;
        const n = Math.min(left, region.lengthBytes - at);
        for (const end = done + n; done < end;) {
          into[done++] = region.bytes[at++]!;
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
        const region = this.#findHva();
        if (region === NOWHERE) return done;
        let at = hva - region.hva;
        const n = Math.min(left, region.lengthBytes - at);
        for (const end = done + n; done < end;) {
          region.bytes[at++] = from[done++]!;
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
      if (region.backing === null || (region.access & access) !== access) {
        into.truncate(before);
        return -Errno.EFAULT;
      }
      const available = region.end - iova;
      const length = left < available ? left : available;
      const hva = region.hva + (iova - region.iova);
      this.#hva[0] = hva >>> 0;
      this.#hva[1] = high32(hva);
      const result = into.pushWords(this.#hva, length);
      if (result < 0) {
        into.truncate(before);
        return result;
      }
      this.#address[0] = iova + length;
      left -= length;
    }
    return 0;
  }

  /** Reads words from `#address` on, one byte at a time. */
  #readWordsBytewise(into: Uint32Array, at: number, count: number): number {
    const start = this.#address[0]!;
    let word = 0;
    for (let i = 0; i < count * 4; i++) {
      this.#address[0] = start + i;
      const region = this.#findAddress();
      if ((region.access & Access.READ) === 0) return -Errno.EFAULT;
      word |= region.bytes[start + i - region.iova]! << ((i & 3) * 8);
      if ((i & 3) === 3) {
        into[at + (i >>> 2)] = word;
        word = 0;
      }
    }
    return 0;
  }

  #copy(iova: number, bytes: Uint8Array, access: Access): number {
    const end = iova + bytes.length;
    // Checked as a whole first, so that a failed copy has copied nothing.
    for (let at = iova; at < end;) {
      const region = this.#find(at);
      if (region.backing === null || (region.access & access) !== access) {
        return -Errno.EFAULT;
      }
      at = region.end;
    }
    for (let done = 0; done < bytes.length;) {
      const region = this.#find(iova + done);
      const offset = iova + done - region.iova;
      const length = Math.min(
        bytes.length - done,
        region.lengthBytes - offset,
      );
      const guest = region.bytes.subarray(offset, offset + length);
      if (access === Access.READ) bytes.set(guest, done);
      else guest.set(bytes.subarray(done, done + length));
      done += length;
    }
    return 0;
  }

  /** Index of the first region that ends above `#address`. */
  #firstEnding(regions: readonly Region[]): number {
    const iova = this.#address[0]!;
    let low = 0;
    let high = regions.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (regions[middle]!.end > iova) high = middle;
      else low = middle + 1;
    }
    return low;
  }

  #firstEndingAfter(iova: number): number {
    this.#address[0] = iova;
    return this.#firstEnding(this.#regions);
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
    const regions = this.#reachable;
    const region = regions[this.#firstEnding(regions)];
    if (region === undefined || iova < region.iova) return NOWHERE;
    return this.#last = region;
  }

  /** The region whose bytes are at `#address` in our own address space. */
  #findHva(): Region {
    const hva = this.#address[0]!;
    const last = this.#lastByHva;
    if (hva >= last.hva && hva < last.hva + last.lengthBytes) return last;
    const regions = this.#reachable;
    for (let i = 0; i < regions.length; i++) {
      const region = regions[i]!;
      if (
        region.backing !== null && hva >= region.hva &&
        hva < region.hva + region.lengthBytes
      ) return this.#lastByHva = region;
    }
    for (let i = 0; i < this.#scratch.length; i++) {
      const region = this.#scratch[i]!;
      if (hva >= region.hva && hva < region.hva + region.lengthBytes) {
        return this.#lastByHva = region;
      }
    }
    return NOWHERE;
  }

  #announce(region: Region): void {
    for (const listener of this.#listeners) {
      listener.onUnmap?.(region.iova, region.lengthBytes);
    }
  }

  #drop(region: Region): void {
    this.#forgetLast();
    region.backing?.release();
  }

  #forgetLast(): void {
    this.#last = NOWHERE;
    this.#lastByHva = NOWHERE;
    this.#generation++;
  }

  #changed(): void {
    for (const listener of this.#listeners) listener.onChange?.();
  }
}
