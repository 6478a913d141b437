/**
 * Guest memory as the client shares it: DMA mappings with a file descriptor, mapped into this process once and
 * viewed for as long as they last.
 *
 * @module
 */

import {
  type CounterRecord,
  type CounterTable,
  gauge,
} from "../core/counters.ts";
import { hex, high32, PAGE_SIZE, u64 } from "../core/bits.ts";
import { Errno, ErrnoError } from "../core/errno.ts";
import {
  type Fd,
  NativeBuffer,
  type ResourceBag,
  type Saved,
  viewMemory,
} from "../os/mod.ts";
import type { StateReader } from "../core/state_reader.ts";
import { Backings } from "./backings.ts";
import { ClientFiles } from "./client_files.ts";
import {
  Access,
  type GuestMemory,
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
import { ScatterGather } from "./scatter_gather.ts";
import { SortedRegions } from "./sorted_regions.ts";
import { SpanningWindow } from "./spanning_window.ts";

export type { DmaRange };

/** Range to map; the descriptor stays the caller's and may be closed afterwards. */
export interface DmaMapOptions extends DmaRange {
  /** The file behind the range; without one the range is known but cannot be reached yet. */
  readonly fd?: number;
  /** Offset in the file, page-aligned. */
  readonly offset?: number;
}

/** A range that another thread of this process has mapped. Plain data. */
export interface SharedRange extends DmaRange {
  /** Address where it is mapped; 0 when it is known and cannot be reached. */
  readonly hva: number;
  /** The mapping that it is all or a part of. */
  readonly mappingHva: number;
  readonly mappingBytes: number;
}

/** A range, and what it shows. Plain data. */
interface RangeState extends DmaRange {
  /** Number of its file, `fileN` in a bag; null when there is none. */
  readonly file: number | null;
  /** Offset in the file, page-aligned. */
  readonly offset: number;
}

/** Ranges that are mapped; see {@linkcode DmaMemory.save}. Plain data. */
export interface MemoryState {
  /** In order of address. */
  readonly ranges: readonly RangeState[];
}

/**
 * Checks what was mapped; ranges that cannot be are refused when they are mapped.
 *
 * @throws {ErrnoError} EINVAL
 */
export function parseMemoryState(reader: StateReader): MemoryState {
  const { MAX_SAFE_INTEGER } = Number;
  return {
    ranges: reader.parts("ranges", (range) => ({
      iova: range.integer("iova", MAX_SAFE_INTEGER),
      lengthBytes: range.integer("lengthBytes", MAX_SAFE_INTEGER),
      access: range.integer("access", Access.READ | Access.WRITE) as Access,
      file: range.value("file") === null
        ? null
        : range.integer("file", MAX_SAFE_INTEGER),
      offset: range.integer("offset", MAX_SAFE_INTEGER),
    })),
  };
}

/** Storage of lists and scratch memory. */
export interface ListStorage {
  /** An empty list of so many segments. */
  list(capacity: number): ScatterGather;
  /** Zeros, and where lists are to say that they are. */
  scratch(lengthBytes: number): { buffer: ArrayBuffer; hva: number };
  /** Frees everything. */
  close(): void;
}

/** Options of guest memory. */
export interface DmaMemoryOptions {
  /** Storage of lists and scratch memory; where C finds them, unless told. */
  readonly storage?: ListStorage;
  /**
   * Leave inaccessible pages where a mapping was, so that any later use of it faults: for tests; address space is not
   * given back.
   */
  readonly poison?: boolean;
  /** Have every page of a file there before it is used, so that no use of it can find that there is no memory left. */
  readonly prealloc?: boolean;
  /** State that {@linkcode DmaMemory.save} of a predecessor gave: mapped here too. */
  readonly saved?: Saved<MemoryState>;
}

/** Numbers of what is mapped. */
export const DMA_COUNTERS = {
  ranges: [gauge("device_dma_maps", "Ranges of guest memory in reach")],
  /** Their length together. */
  lengthBytes: [
    gauge("device_dma_mapped_bytes", "Guest memory in reach", "bytes"),
  ],
} satisfies CounterTable;

/** Numbers of what is mapped. */
export type DmaStatistics = CounterRecord<typeof DMA_COUNTERS>;

/** See {@linkcode DmaMemory.onUnreachable}. */
const SEARCHES_MAX = 100;

/** Memory that C can take. */
class NativeStorage implements ListStorage {
  readonly #buffers: NativeBuffer[] = [];

  list(capacity: number): ScatterGather {
    const storage = this.#add(capacity * (16 + 8));
    const { buffer } = storage.bytes;
    return new ScatterGather(
      new Uint32Array(buffer, 0, capacity * 4),
      storage.pointer(),
      new Float64Array(buffer, capacity * 16, capacity),
    );
  }

  // SAFETY: `close` takes the storage away, after which nothing of this memory may be used.
  scratch(lengthBytes: number): { buffer: ArrayBuffer; hva: number } {
    const { bytes, hva } = this.#add(lengthBytes);
    return { buffer: bytes.buffer, hva };
  }

  close(): void {
    for (const buffer of this.#buffers.splice(0)) buffer.close();
  }

  #add(lengthBytes: number): NativeBuffer {
    const buffer = new NativeBuffer(lengthBytes);
    this.#buffers.push(buffer);
    return buffer;
  }
}

/**
 * Ranges of guest memory that lie in our own address space, and the one place where an address and a length from a guest
 * are checked. Ranges are sorted by iova and never overlap; addresses of 2^53 and above are never mapped.
 */
export class DmaMemory implements GuestMemory, Disposable {
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
  /** Told when an access fails because its range came without a file; once until {@linkcode DmaMemory.unmapAll}. */
  onUnreachable: ((range: DmaRange) => void) | null = null;
  /** Times that the cause of a failure is still looked for: a driver can fail for ever, and ranges may be many. */
  #searches = SEARCHES_MAX;
  readonly #files: ClientFiles;
  /** Mappings of another thread, by address. */
  readonly #shared = new Map<number, Backing>();

  constructor(options: DmaMemoryOptions = {}) {
    const { saved, poison = false, prealloc = false } = options;
    this.#storage = options.storage ?? new NativeStorage();
    this.#files = new ClientFiles({ poison, prealloc });
    if (saved === undefined) return;
    try {
      this.#load(saved);
    } catch (error) {
      this.close();
      throw error;
    }
  }

  #load({ state, bag }: Saved<MemoryState>): void {
    const files = new Map<number, Fd>();
    try {
      for (const { file, offset, ...range } of state.ranges) {
        if (file === null) {
          this.map(range);
          continue;
        }
        const fd = files.get(file) ?? bag.take(`file${file}`);
        files.set(file, fd);
        this.map({ ...range, fd: fd.number, offset });
      }
    } finally {
      for (const fd of files.values()) fd.close();
    }
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

  /** Number of ranges, and their length together. */
  statistics(): DmaStatistics {
    return { ranges: this.count, lengthBytes: this.#lengthBytes };
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
   * Adds a range.
   *
   * @returns Whether a file was mapped for it; not when it lies in one that is mapped already
   * @throws {ErrnoError} EEXIST on overlap; EINVAL when the file does not reach so far; what mmap says otherwise
   */
  map(options: DmaMapOptions): boolean {
    const { iova, lengthBytes, access, fd, offset = 0 } = options;
    this.#checkFree(options);
    if (fd === undefined) {
      this.#add(options, UNREACHABLE, 0);
      return false;
    }
    const part = this.#files.map({ fd, offset, lengthBytes, access });
    this.#add({ iova, lengthBytes, access }, part.backing, part.offset);
    return part.isNew;
  }

  /**
   * Adds a range of memory that is in our address space already.
   *
   * @param offset Where in the backing it begins
   * @throws {ErrnoError} EEXIST on overlap
   */
  show(range: DmaRange, backing: Backing, offset = 0): void {
    this.#checkFree(range);
    this.#add(range, backing, offset);
  }

  /** All ranges as another thread maps them. */
  sharedRanges(): SharedRange[] {
    return this.#regions.list().map(sharedRange);
  }

  /** The range that begins at an address, as another thread maps it. */
  sharedRange(iova: number): SharedRange {
    this.#address[0] = iova;
    return sharedRange(this.#regions.holding(this.#address));
  }

  /**
   * Adds a range that another thread has mapped and keeps mapped until this memory has unmapped it.
   *
   * @throws {ErrnoError} EEXIST on overlap
   */
  mapShared(range: SharedRange): void {
    const { hva, mappingHva } = range;
    const backing = hva === 0 ? UNREACHABLE : this.#backingOf(range);
    this.show(range, backing, hva - mappingHva);
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
  bytesAt(hva: number, lengthBytes: number): Uint8Array {
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

  /** Saves what is mapped, whose files go into a bag. */
  save(bag: ResourceBag): MemoryState {
    const files: number[] = [];
    const ranges = this.#regions.list().map((region): RangeState => {
      const { iova, lengthBytes, access } = region;
      const place = this.#files.placeOf(region);
      if (place === null) {
        return { iova, lengthBytes, access, file: null, offset: 0 };
      }
      const { fd, offset } = place;
      let file = files.indexOf(fd);
      if (file < 0) {
        file = files.push(fd) - 1;
        bag.put(`file${file}`, fd);
      }
      return { iova, lengthBytes, access, file, offset };
    });
    return { ranges };
  }

  /** Unmaps everything and frees the lists; further calls do nothing. */
  close(): void {
    this.unmapAll();
    this.#listeners.clear();
    this.#storage.close();
  }

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

  #checkFree({ iova, lengthBytes }: DmaRange): void {
    const next = this.#regions.firstEndingAfter(iova);
    if (next === undefined || next.iova >= iova + lengthBytes) return;
    throw new ErrnoError(
      Errno.EEXIST,
      `Cannot map ${hex(iova)}: it overlaps a mapping at ${hex(next.iova)}`,
    );
  }

  #add(range: DmaRange, backing: Backing, offset: number): void {
    this.#regions.add(new Region(range, backing, offset));
    this.#lengthBytes += range.lengthBytes;
    this.#backings.add(backing);
    for (const listener of this.#listeners) listener.onMap?.(range.iova);
    this.#changed();
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

  #backingOf({ mappingHva, mappingBytes }: SharedRange): Backing {
    const known = this.#shared.get(mappingHva);
    if (known !== undefined) return known;
    // SAFETY: the other thread unmaps only after it was told that nothing here uses the range any more.
    const buffer = viewMemory(mappingHva, mappingBytes);
    const backing = new Backing(buffer, mappingHva, {
      release: () => this.#shared.delete(mappingHva),
    });
    this.#shared.set(mappingHva, backing);
    return backing;
  }
}

function sharedRange(region: Region): SharedRange {
  const { iova, lengthBytes, access, hva, backing } = region;
  return {
    ...{ iova, lengthBytes, access, hva },
    mappingHva: backing.hva,
    mappingBytes: backing.lengthBytes,
  };
}
