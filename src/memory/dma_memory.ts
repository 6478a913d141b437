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
import { u64 } from "../core/bits.ts";
import { Errno } from "../core/errno.ts";
import {
  type Fd,
  NativeBuffer,
  type ResourceBag,
  type Saved,
  viewMemory,
} from "../os/mod.ts";
import type { StateReader } from "../core/state_reader.ts";
import { ClientFiles } from "./client_files.ts";
import {
  Access,
  type GuestMemory,
  type MemoryListener,
  type MemoryWindow,
  type ScratchMemory,
} from "./guest_memory.ts";
import { Backing, type DmaRange, type Region, UNREACHABLE } from "./region.ts";
import { RegionTable } from "./region_table.ts";
import { ScatterGather } from "./scatter_gather.ts";

export type { DmaRange };

/** What to map; the descriptor stays the caller's and may be closed afterwards. */
export interface DmaMapOptions extends DmaRange {
  /** The file behind the range; without one the range is known but cannot be reached yet. */
  readonly fd?: number;
  /** Where in the file, page-aligned. */
  readonly offset?: number;
}

/** A range that another thread of this process has mapped. Plain data. */
export interface BorrowedRange extends DmaRange {
  /** Where it is mapped; 0 when it is known and cannot be reached. */
  readonly hva: number;
  /** The mapping that it is all or a part of. */
  readonly mappingHva: number;
  readonly mappingBytes: number;
}

/** A range, and what it shows. Plain data. */
interface RangeState extends DmaRange {
  /** Number of its file, `fileN` in a bag; null when there is none. */
  readonly file: number | null;
  /** Where in the file, page-aligned. */
  readonly offset: number;
}

/** What is mapped; see {@linkcode DmaMemory.save}. Plain data. */
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

/** How guest memory is to be held. */
export interface DmaMemoryOptions {
  /**
   * Leave inaccessible pages where a mapping was, so that any later use of it faults: for tests; address space is not
   * given back.
   */
  readonly poison?: boolean;
  /** Have every page of a file there before it is used, so that no use of it can find that there is no memory left. */
  readonly prealloc?: boolean;
  /** What {@linkcode DmaMemory.save} of a predecessor gave: mapped here too. */
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

/** What is mapped, in numbers. */
export type DmaStatistics = CounterRecord<typeof DMA_COUNTERS>;

/** See {@linkcode DmaMemory.onUnreachable}. */
const SEARCHES_MAX = 100;

/** Ranges are sorted by iova and never overlap. */
export class DmaMemory implements GuestMemory, Disposable {
  readonly #table = new RegionTable();
  readonly #lists: NativeBuffer[] = [];
  /** Told when an access fails because its range came without a file; once until {@linkcode DmaMemory.unmapAll}. */
  onUnreachable: ((range: DmaRange) => void) | null = null;
  /** How often the cause of a failure is still looked for: a driver can fail for ever, and ranges may be many. */
  #searches = SEARCHES_MAX;
  readonly #files: ClientFiles;
  /** Mappings of another thread, by address. */
  readonly #borrowed = new Map<number, Backing>();

  constructor(options: DmaMemoryOptions = {}) {
    const { saved, poison = false, prealloc = false } = options;
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

  get generation(): number {
    return this.#table.generation;
  }

  get accessible(): boolean {
    return this.#table.accessible;
  }

  /** Takes all of it away from the device, or gives it back; what is mapped stays mapped. */
  set accessible(on: boolean) {
    this.#table.accessible = on;
  }

  /** How many ranges are mapped. */
  get count(): number {
    return this.#table.count;
  }

  /** How many ranges are mapped, and how long they are together. */
  statistics(): DmaStatistics {
    return { ranges: this.#table.count, lengthBytes: this.#table.lengthBytes };
  }

  /** The mapped range of the highest address, or null. */
  lastRange(): DmaRange | null {
    return this.#table.last();
  }

  /** The mapped ranges, in order of address. */
  ranges(): readonly DmaRange[] {
    return this.#table.regions();
  }

  /**
   * Adds a range.
   *
   * @returns Whether a file was mapped for it; not when it lies in one that is mapped already
   * @throws {ErrnoError} EEXIST on overlap; EINVAL when the file does not reach so far; what mmap says otherwise
   */
  map(options: DmaMapOptions): boolean {
    const { iova, lengthBytes, access, fd, offset = 0 } = options;
    this.#table.checkFree(iova, lengthBytes);
    if (fd === undefined) {
      this.#table.add(options, UNREACHABLE);
      return false;
    }
    const part = this.#files.map({ fd, offset, lengthBytes, access });
    this.#table.add(options, part.backing, part.offset);
    return part.isNew;
  }

  /** All ranges as another thread can borrow them. */
  lendable(): BorrowedRange[] {
    return this.#table.regions().map(lend);
  }

  /** The range that begins at an address, as another thread can borrow it. */
  lend(iova: number): BorrowedRange {
    return lend(this.#table.regionAt(iova)!);
  }

  /**
   * Adds a range that another thread has mapped and keeps mapped until this memory has unmapped it.
   *
   * @throws {ErrnoError} EEXIST on overlap
   */
  borrow(range: BorrowedRange): void {
    const { iova, lengthBytes, hva, mappingHva } = range;
    this.#table.checkFree(iova, lengthBytes);
    const backing = hva === 0 ? UNREACHABLE : this.#borrow(range);
    this.#table.add(range, backing, hva - mappingHva);
  }

  /**
   * Removes exactly one range.
   *
   * @throws {ErrnoError} ENOENT when no mapping is exactly this range
   */
  unmap(iova: number, lengthBytes: number): void {
    this.#table.remove(iova, lengthBytes);
  }

  /** Removes everything, as when the client has gone. */
  unmapAll(): void {
    this.#searches = SEARCHES_MAX;
    this.#table.clear();
  }

  createScatterGather(capacity: number): ScatterGather {
    const storage = new NativeBuffer(capacity * (16 + 8));
    this.#lists.push(storage);
    const { buffer } = storage.bytes;
    return new ScatterGather(
      new Uint32Array(buffer, 0, capacity * 4),
      storage.pointer(),
      new Float64Array(buffer, capacity * 16, capacity),
    );
  }

  createScratch(lengthBytes: number): ScratchMemory {
    const storage = new NativeBuffer(lengthBytes);
    this.#lists.push(storage);
    // SAFETY: `close` takes the storage away, after which nothing of this memory may be used.
    return this.#table.addScratch(
      storage.bytes.buffer,
      storage.hva,
      lengthBytes,
    );
  }

  holds(list: ScatterGather, access: Access): boolean {
    return this.#table.holds(list, access);
  }

  covers(iova: number, lengthBytes: number, access: Access): boolean {
    return this.#table.covers(iova, lengthBytes, access);
  }

  window(
    iova: number,
    lengthBytes: number,
    access: Access,
  ): MemoryWindow | null {
    const window = this.#table.window(iova, lengthBytes, access);
    if (window === null) this.#findCause(iova, lengthBytes);
    return window;
  }

  translate(
    iova: number,
    lengthBytes: number,
    access: Access,
    into: ScatterGather,
  ): number {
    const result = this.#table.translate(iova, lengthBytes, access, into);
    if (result === -Errno.EFAULT) this.#findCause(iova, lengthBytes);
    return result;
  }

  translateWords(
    words: Uint32Array,
    at: number,
    lengthBytes: number,
    access: Access,
    into: ScatterGather,
  ): number {
    const result = this.#table.translateWords(
      words,
      at,
      lengthBytes,
      access,
      into,
    );
    if (result === -Errno.EFAULT) {
      this.#findCause(u64(words[at]!, words[at + 1]!), lengthBytes);
    }
    return result;
  }

  gatherWords(
    list: ScatterGather,
    skipBytes: number,
    into: Uint32Array,
    at: number,
    count: number,
  ): number {
    return this.#table.gatherWords(list, skipBytes, into, at, count);
  }

  release(_list: ScatterGather, _writtenBytes: number): number {
    return 0;
  }

  gather(list: ScatterGather, into: Uint8Array, lengthBytes: number): number {
    return this.#table.gather(list, into, lengthBytes);
  }

  scatter(list: ScatterGather, from: Uint8Array, lengthBytes: number): number {
    return this.#table.scatter(list, from, lengthBytes);
  }

  read(iova: number, into: Uint8Array): number {
    const result = this.#table.read(iova, into);
    if (result === -Errno.EFAULT) this.#findCause(iova, into.length);
    return result;
  }

  write(iova: number, from: Uint8Array): number {
    const result = this.#table.write(iova, from);
    if (result === -Errno.EFAULT) this.#findCause(iova, from.length);
    return result;
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
    return this.#table.subscribe(listener);
  }

  /** What is mapped, whose files go into a bag. */
  save(bag: ResourceBag): MemoryState {
    const files: number[] = [];
    const ranges = this.#table.regions().map((region): RangeState => {
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
    this.#table.unsubscribeAll();
    for (const list of this.#lists.splice(0)) list.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #borrow({ mappingHva, mappingBytes }: BorrowedRange): Backing {
    const known = this.#borrowed.get(mappingHva);
    if (known !== undefined) return known;
    // SAFETY: the lender unmaps only after it was told that nothing here uses the range any more.
    const buffer = viewMemory(mappingHva, mappingBytes);
    const backing = new Backing(buffer, mappingHva, {
      release: () => this.#borrowed.delete(mappingHva),
    });
    this.#borrowed.set(mappingHva, backing);
    return backing;
  }
}

function lend(region: Region): BorrowedRange {
  const { iova, lengthBytes, access, hva, backing } = region;
  return {
    ...{ iova, lengthBytes, access, hva },
    mappingHva: backing.hva,
    mappingBytes: backing.lengthBytes,
  };
}
