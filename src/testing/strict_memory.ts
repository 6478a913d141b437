/**
 * Guest memory that forgives nothing: for tests of whoever uses guest memory, which on {@linkcode ArrayMemory} may do
 * wrong and never know.
 *
 * @module
 */

import { high32, PAGE_SIZE } from "../core/bits.ts";
import { Errno } from "../core/errno.ts";
import {
  ArrayMemory,
  type ArrayRange,
  type MappableMemory,
} from "../memory/array_memory.ts";
import {
  Access,
  MEMORY_PENDING,
  type MemoryListener,
  type MemoryWindow,
  type ScratchMemory,
} from "../memory/guest_memory.ts";
import { MappedWindow } from "../memory/mapped_window.ts";
import type { DmaRange } from "../memory/region.ts";
import { ScatterGather } from "../memory/scatter_gather.ts";

/** The most segments of any list: IOV_MAX. */
const SEGMENTS_MAX = 1024;
/** Address of the first copy in a pretended address space, far from what {@linkcode ArrayMemory} pretends, and their distance. */
const FIRST_HVA = 0x1_0000_0000_0000;
const STRIDE = 0x1000_0000;
/** Byte that fills a buffer before it is written. */
const STALE = 0xa9;

/** A copy of a part of guest memory. */
interface Copy {
  readonly hva: number;
  readonly iova: number;
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly access: Access;
  /** The access that made it, where it is the first piece of what that asked for. */
  readonly wanted: Wanted | null;
}

/** Bytes by the key of what was wanted. */
type Reached = Map<string, Uint8Array[]>;

/** A part of guest memory that was not in reach. */
interface Wanted {
  readonly key: string;
  readonly iova: number;
  readonly lengthBytes: number;
}

/**
 * Memory as it is where it cannot be shared: the addresses in a list are those of copies.
 *
 * What the guest has in a buffer is read when it is translated. What is written by way of an address reaches the guest
 * when the list is released, as much as is said to be written; the rest is lost, and so is everything in a list that is
 * never released. A list that is released twice, or used after that, is a programmer's error. A window shows what was there
 * when it was refreshed.
 *
 * Accesses can be {@linkcode MEMORY_PENDING}: as {@linkcode StrictMemory.pends} says, until {@linkcode StrictMemory.reach} is
 * called, which takes what the guest has by then.
 */
export class StrictMemory implements MappableMemory {
  readonly #memory = new ArrayMemory([]);
  /** Those that are not released, by their number. */
  readonly #copies = new Map<number, Copy>();
  readonly #pieces = new ScatterGather(new Uint32Array(SEGMENTS_MAX * 4));
  readonly #hva = new Uint32Array(2);
  readonly #iova = new Float64Array(1);
  readonly #listeners = new Set<MemoryListener>();
  /** Accesses that are pending, with what is there when they are made again. */
  readonly #wanted = new Map<string, Wanted>();
  #reached: Reached = new Map();
  /** Contents for a step that has to be done once more. */
  #kept: Reached = new Map();
  #next = 0;
  #windows = 0;
  /** Number of accesses there were that can be pending. */
  accesses = 0;
  /** Accesses that are pending, by their number; none unless told. */
  pends: (access: number) => boolean = () => false;

  /**
   * Makes memory with ranges in it.
   *
   * @param ranges What is mapped from the start; nothing unless told
   */
  constructor(ranges: readonly ArrayRange[] = []) {
    for (const range of ranges) this.map(range);
  }

  /** Number of segments of lists that are not released. */
  get outstanding(): number {
    return this.#copies.size;
  }

  /**
   * Brings everything into reach that accesses are pending for, and has them made again.
   *
   * @returns Whether there was anything
   */
  reach(): boolean {
    // What a step did not ask for again was for one that never will be: nobody may find it later.
    this.#reached = this.#kept;
    this.#kept = new Map();
    if (this.#wanted.size === 0) {
      this.#reached.clear();
      return false;
    }
    for (const { key, iova, lengthBytes } of this.#wanted.values()) {
      const bytes = new Uint8Array(lengthBytes);
      if (this.#memory.read(iova, bytes) === 0) {
        keep(this.#reached, key, bytes);
      }
    }
    this.#wanted.clear();
    for (const listener of this.#listeners) listener.onReach?.();
    return true;
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
    return this.#memory.map(range);
  }

  mapPages(range: ArrayRange): ArrayBuffer {
    return this.#memory.mapPages(range);
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
    for (let i = 0; i < list.count; i++) {
      if (!this.covers(list.iova(i), list.length(i), access)) return false;
    }
    return true;
  }

  covers(iova: number, lengthBytes: number, access: Access): boolean {
    return this.#memory.covers(iova, lengthBytes, access);
  }

  window(
    iova: number,
    lengthBytes: number,
    access: Access,
  ): MemoryWindow | null {
    const window = this.#memory.window(iova, lengthBytes, access);
    if (window === null) return null;
    const name = `window ${this.#windows++}`;
    return new StrictWindow(window, (offset, bytes) => {
      const at = iova + offset;
      const { length } = bytes;
      const key = `${name}: ${offset} ${length}`;
      return this.#take({ key, iova: at, lengthBytes: length }, bytes);
    });
  }

  translate(
    iova: number,
    lengthBytes: number,
    access: Access,
    into: ScatterGather,
  ): number {
    const pieces = this.#pieces;
    pieces.clear();
    const result = this.#memory.translate(iova, lengthBytes, access, pieces);
    if (result < 0) return result;
    if (into.count + pieces.count > into.capacity) return -Errno.E2BIG;
    const bytes = new Uint8Array(lengthBytes).fill(STALE);
    const key = `${iova} ${lengthBytes}`;
    const wanted = { key, iova, lengthBytes };
    if (access === Access.READ) {
      const taken = this.#take(wanted, bytes);
      if (taken < 0) return taken;
    }
    for (let i = 0; i < pieces.count; i++) {
      const first = pieces.iova(i);
      const at = first - iova;
      const part = bytes.subarray(at, at + pieces.length(i));
      this.#copy(first, part, access, i === 0 ? wanted : null, into);
    }
    return 0;
  }

  translateWords(
    words: Uint32Array,
    at: number,
    lengthBytes: number,
    access: Access,
    into: ScatterGather,
  ): number {
    const iova = words[at + 1]! * 0x1_0000_0000 + words[at]!;
    return this.translate(iova, lengthBytes, access, into);
  }

  gatherWords(
    list: ScatterGather,
    skipBytes: number,
    into: Uint32Array,
    at: number,
    count: number,
  ): number {
    const bytes = new Uint8Array(skipBytes + count * 4);
    if (this.gather(list, bytes, bytes.length) < bytes.length) {
      return -Errno.EFAULT;
    }
    const view = new DataView(bytes.buffer, skipBytes);
    for (let i = 0; i < count; i++) into[at + i] = view.getUint32(i * 4, true);
    return 0;
  }

  release(list: ScatterGather, writtenBytes: number): number {
    const again = writtenBytes === MEMORY_PENDING;
    let left = again ? 0 : writtenBytes;
    let result = 0;
    for (let i = 0; i < list.count; i++) {
      const copy = this.#find(list.base(i));
      const isWhole = copy.hva === list.base(i) &&
        copy.bytes.length === list.length(i);
      if (!isWhole) {
        throw new Error(
          `Cannot release ${
            list.length(i)
          } bytes: ${copy.bytes.length} were translated`,
        );
      }
      this.#copies.delete(numberOf(copy.hva));
      if (again && copy.wanted !== null && copy.access === Access.READ) {
        keep(this.#kept, copy.wanted.key, new Uint8Array(copy.bytes.buffer));
      }
      const written = copy.bytes.subarray(0, left);
      if (written.length === 0) continue;
      if (copy.access !== Access.WRITE) {
        throw new Error("Cannot release as written: it was to be read");
      }
      left -= written.length;
      if (this.#memory.write(copy.iova, written) < 0) result = -Errno.EFAULT;
    }
    if (left > 0) throw new Error(`Cannot release: ${left} bytes too many`);
    return result;
  }

  gather(list: ScatterGather, into: Uint8Array, lengthBytes: number): number {
    let done = 0;
    for (let i = 0; i < list.count && done < lengthBytes; i++) {
      const length = Math.min(list.length(i), lengthBytes - done);
      into.set(this.bytes(list.base(i), length), done);
      done += length;
    }
    return done;
  }

  scatter(list: ScatterGather, from: Uint8Array, lengthBytes: number): number {
    let done = 0;
    for (let i = 0; i < list.count && done < lengthBytes; i++) {
      const length = Math.min(list.length(i), lengthBytes - done);
      const part = from.subarray(done, done + length);
      this.bytes(list.base(i), length).set(part);
      const { iova, hva } = this.#find(list.base(i));
      const at = iova + list.base(i) - hva;
      if (this.#memory.write(at, part) < 0) return done;
      done += length;
    }
    return done;
  }

  read(iova: number, into: Uint8Array): number {
    return this.#memory.read(iova, into);
  }

  write(iova: number, from: Uint8Array): number {
    return this.#memory.write(iova, from);
  }

  bytes(hva: number, lengthBytes: number): Uint8Array {
    // Scratch memory is no copy of anything.
    if (hva < FIRST_HVA) return this.#memory.bytes(hva, lengthBytes);
    const copy = this.#find(hva);
    const offset = hva - copy.hva;
    return copy.bytes.subarray(offset, offset + lengthBytes);
  }

  subscribe(listener: MemoryListener): () => void {
    this.#listeners.add(listener);
    const end = this.#memory.subscribe(listener);
    return () => {
      this.#listeners.delete(listener);
      end();
    };
  }

  /** Reads what is in reach. @returns 0, or MEMORY_PENDING */
  #take(wanted: Wanted, into: Uint8Array): number {
    const { key, iova } = wanted;
    const reached = this.#reached.get(key)?.pop();
    if (reached !== undefined) {
      into.set(reached);
      return 0;
    }
    if (this.#wanted.has(key)) return MEMORY_PENDING;
    if (!this.pends(this.accesses++)) return this.#memory.read(iova, into);
    this.#wanted.set(key, wanted);
    return MEMORY_PENDING;
  }

  #copy(
    iova: number,
    bytes: Uint8Array<ArrayBuffer>,
    access: Access,
    wanted: Wanted | null,
    into: ScatterGather,
  ): void {
    const number = this.#next++;
    // As far into a page as it is for the guest, which matters to some storage.
    const hva = FIRST_HVA + number * STRIDE + iova % PAGE_SIZE;
    this.#copies.set(number, { hva, iova, bytes, access, wanted });
    this.#hva[0] = hva >>> 0;
    this.#hva[1] = high32(hva);
    this.#iova[0] = iova;
    into.pushGuest(this.#hva, this.#iova, bytes.length);
  }

  #find(hva: number): Copy {
    const copy = this.#copies.get(numberOf(hva));
    if (copy !== undefined) return copy;
    throw new Error("Cannot use a buffer: it is released, or never was one");
  }
}

/** A window that shows what was there when it was refreshed, and garbage before. */
class StrictWindow implements MemoryWindow {
  readonly lengthBytes: number;
  readonly isLive = false;
  readonly #take: (offset: number, into: Uint8Array) => number;
  readonly #guest: MemoryWindow;
  readonly #copy: MappedWindow;
  readonly #bytes: Uint8Array<ArrayBuffer>;

  constructor(
    guest: MemoryWindow,
    take: (offset: number, into: Uint8Array) => number,
  ) {
    this.lengthBytes = guest.lengthBytes;
    this.#take = take;
    this.#guest = guest;
    this.#bytes = new Uint8Array(guest.lengthBytes).fill(STALE);
    this.#copy = new MappedWindow(this.#bytes.buffer, 0, guest.lengthBytes);
  }

  refresh(offset: number, lengthBytes: number): number {
    if (offset < 0 || offset + lengthBytes > this.lengthBytes) {
      throw new RangeError(
        `Cannot refresh ${lengthBytes} bytes at ${offset} of ${this.lengthBytes}`,
      );
    }
    return this.#take(
      offset,
      this.#bytes.subarray(offset, offset + lengthBytes),
    );
  }

  getU16(offset: number): number {
    return this.#copy.getU16(offset);
  }

  getU32(offset: number): number {
    return this.#copy.getU32(offset);
  }

  setU16(offset: number, value: number): void {
    this.#guest.setU16(offset, value);
    this.#copy.setU16(offset, value);
  }

  setU32(offset: number, value: number): void {
    this.#guest.setU32(offset, value);
    this.#copy.setU32(offset, value);
  }

  loadU16(offset: number): number {
    return this.#copy.loadU16(offset);
  }

  storeU16(offset: number, value: number): void {
    this.#guest.storeU16(offset, value);
    this.#copy.storeU16(offset, value);
  }

  loadU32(offset: number): number {
    return this.#copy.loadU32(offset);
  }

  storeU32(offset: number, value: number): void {
    this.#guest.storeU32(offset, value);
    this.#copy.storeU32(offset, value);
  }
}

/** Keeps what is there for an access that is made again; a chain may have the same buffer twice. */
function keep(into: Reached, key: string, bytes: Uint8Array): void {
  const kept = into.get(key) ?? [];
  kept.push(bytes);
  into.set(key, kept);
}

function numberOf(hva: number): number {
  return Math.floor((hva - FIRST_HVA) / STRIDE);
}
