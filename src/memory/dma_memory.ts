/**
 * Guest memory as the client shares it: DMA mappings with a file descriptor, mapped into this process once and
 * viewed for as long as they last.
 *
 * @module
 */

import { Mapping, NativeBuffer, Prot } from "../libc/mod.ts";
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

/** Ranges are sorted by iova and never overlap. */
export class DmaMemory implements GuestMemory, Disposable {
  readonly #table = new RegionTable();
  readonly #lists: NativeBuffer[] = [];
  readonly #poison: boolean;

  /**
   * @param options.poison Leave inaccessible pages where a mapping was, so that any later use of it faults: for
   * tests; address space is not given back
   */
  constructor(options: { readonly poison?: boolean } = {}) {
    this.#poison = options.poison ?? false;
  }

  get generation(): number {
    return this.#table.generation;
  }

  /** How many ranges are mapped. */
  get count(): number {
    return this.#table.regions.length;
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
      options.fd === undefined ? null : this.#back(options, options.fd),
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
    return this.#table.window(iova, lengthBytes, access);
  }

  translate(
    iova: number,
    lengthBytes: number,
    access: Access,
    into: ScatterGather,
  ): number {
    return this.#table.translate(iova, lengthBytes, access, into);
  }

  translateWords(
    words: Uint32Array,
    at: number,
    lengthBytes: number,
    access: Access,
    into: ScatterGather,
  ): number {
    return this.#table.translateWords(words, at, lengthBytes, access, into);
  }

  readWords(
    address: Uint32Array,
    into: Uint32Array,
    at: number,
    count: number,
  ): number {
    return this.#table.readWords(address, into, at, count);
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
    return this.#table.read(iova, into);
  }

  write(iova: number, from: Uint8Array): number {
    return this.#table.write(iova, from);
  }

  bytes(hva: number, lengthBytes: number): Uint8Array {
    return this.#table.bytesAt(hva, lengthBytes);
  }

  subscribe(listener: MemoryListener): () => void {
    return this.#table.subscribe(listener);
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

  #back(options: DmaMapOptions, fd: number): Backing {
    const mapping = new Mapping({
      fd,
      offset: options.offset ?? 0,
      lengthBytes: options.lengthBytes,
      prot: (options.access & Access.READ ? Prot.READ : 0) |
        (options.access & Access.WRITE ? Prot.WRITE : 0),
    });
    // SAFETY: the table drops every view it holds before it calls release; windows and translations of others
    // end with the generation, which has changed by then.
    return {
      buffer: mapping.buffer,
      hva: mapping.hva,
      release: () => this.#poison ? mapping.poison() : mapping.close(),
    };
  }
}
