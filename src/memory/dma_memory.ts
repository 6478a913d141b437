/**
 * Guest memory as the client shares it: DMA mappings with a file descriptor, mapped into this process once and
 * viewed for as long as they last.
 *
 * @module
 */

import { u64 } from "../bits.ts";
import { Errno } from "../errno.ts";
import { Mapping, NativeBuffer, Prot, viewMemory } from "../libc/mod.ts";
import {
  Access,
  type GuestMemory,
  type MemoryListener,
  type MemoryWindow,
  type ScratchMemory,
} from "./guest_memory.ts";
import { type Backing, type DmaRange, RegionTable } from "./region_table.ts";
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
}

/** Guest memory on its way from one thread of this process to another, still mapped. Plain data. */
export interface MemoryBaggage {
  /** In order of address. */
  readonly ranges: readonly BorrowedRange[];
  /** See {@linkcode DmaMemoryOptions.poison}. */
  readonly poison: boolean;
}

/** How guest memory is to be held. */
export interface DmaMemoryOptions {
  /**
   * Leave inaccessible pages where a mapping was, so that any later use of it faults: for tests; address space is not
   * given back. As the predecessor did where there is one.
   */
  readonly poison?: boolean;
  /** What {@linkcode DmaMemory.handOver} gave: viewed here from now on, and unmapped when it is no longer wanted. */
  readonly inherited?: MemoryBaggage;
}

/** What is mapped, in numbers. */
export interface DmaStatistics {
  /** How many ranges. */
  readonly ranges: number;
  /** Their length together. */
  readonly lengthBytes: number;
}

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
  readonly #poison: boolean;

  constructor(options: DmaMemoryOptions = {}) {
    const { inherited } = options;
    this.#poison = inherited?.poison ?? options.poison ?? false;
    for (const range of inherited?.ranges ?? []) {
      const { hva, lengthBytes } = range;
      this.#table.add(
        range,
        hva === 0 ? null : this.#back(new Mapping({ hva, lengthBytes })),
      );
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
    return this.#table.regions.length;
  }

  /** How many ranges are mapped, and how long they are together. */
  statistics(): DmaStatistics {
    const ranges = this.#table.regions;
    let lengthBytes = 0;
    for (const range of ranges) lengthBytes += range.lengthBytes;
    return { ranges: ranges.length, lengthBytes };
  }

  /** The mapped ranges, in order of address. */
  ranges(): readonly DmaRange[] {
    return this.#table.regions;
  }

  /**
   * Adds a range.
   *
   * @throws {ErrnoError} EEXIST on overlap; what mmap says otherwise
   */
  map(options: DmaMapOptions): void {
    this.#table.checkFree(options.iova, options.lengthBytes);
    this.#table.add(
      options,
      options.fd === undefined ? null : this.#map(options, options.fd),
    );
  }

  /**
   * The ranges as another thread can borrow them.
   *
   * @param known Guest addresses of those to leave out
   */
  lendable(known?: ReadonlySet<number>): BorrowedRange[] {
    const ranges: BorrowedRange[] = [];
    const { regions } = this.#table;
    if (known?.size === regions.length) return ranges;
    for (let i = 0; i < regions.length; i++) {
      const { iova, lengthBytes, hva, access } = regions[i]!;
      if (known?.has(iova)) continue;
      ranges.push({ iova, lengthBytes, hva, access });
    }
    return ranges;
  }

  /**
   * Adds a range that another thread has mapped and keeps mapped until this memory has unmapped it.
   *
   * @throws {ErrnoError} EEXIST on overlap
   */
  borrow(range: BorrowedRange): void {
    const { iova, lengthBytes, hva } = range;
    this.#table.checkFree(iova, lengthBytes);
    // SAFETY: the lender unmaps only after it was told that nothing here uses the range any more.
    this.#table.add(
      range,
      hva === 0 ? null : {
        buffer: viewMemory(hva, lengthBytes),
        hva,
        release: () => {},
      },
    );
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
    const storage = new NativeBuffer(capacity * 16);
    this.#lists.push(storage);
    const words = new Uint32Array(storage.bytes.buffer, 0, capacity * 4);
    return new ScatterGather(words, storage.pointer());
  }

  createScratch(lengthBytes: number): ScratchMemory {
    const storage = new NativeBuffer(lengthBytes);
    this.#lists.push(storage);
    // SAFETY: `close` takes the storage away, after which nothing of this memory may be used.
    return this.#table.addScratch({
      buffer: storage.bytes.buffer,
      hva: storage.hva,
      release: () => {},
    }, lengthBytes);
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

  readWords(
    address: Uint32Array,
    into: Uint32Array,
    at: number,
    count: number,
  ): number {
    const result = this.#table.readWords(address, into, at, count);
    if (result === -Errno.EFAULT) {
      this.#findCause(u64(address[0]!, address[1]!), count * 4);
    }
    return result;
  }

  commit(_list: ScatterGather, _lengthBytes: number): number {
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

  bytes(hva: number, lengthBytes: number): Uint8Array {
    return this.#table.bytesAt(hva, lengthBytes);
  }

  subscribe(listener: MemoryListener): () => void {
    return this.#table.subscribe(listener);
  }

  /**
   * Gives everything that is mapped to a {@linkcode DmaMemory} of another thread of this process. This one is then
   * closed; windows and lists made of it must not be used any more, and subscribers are not told.
   */
  handOver(): MemoryBaggage {
    this.#table.unsubscribeAll();
    const ranges = this.lendable();
    this.#table.handOver();
    this.close();
    return { ranges, poison: this.#poison };
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

  #map(options: DmaMapOptions, fd: number): Backing {
    return this.#back(
      new Mapping({
        fd,
        offset: options.offset ?? 0,
        lengthBytes: options.lengthBytes,
        prot: (options.access & Access.READ ? Prot.READ : 0) |
          (options.access & Access.WRITE ? Prot.WRITE : 0),
      }),
    );
  }

  #back(mapping: Mapping): Backing {
    // SAFETY: the table drops every view it holds before it calls release; windows and translations of others
    // end with the generation, which has changed by then.
    return {
      buffer: mapping.buffer,
      hva: mapping.hva,
      release: () => this.#poison ? mapping.poison() : mapping.close(),
      handOver: () => mapping.release(),
    };
  }
}
