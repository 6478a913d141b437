/**
 * A packed virtqueue from the driver's side (virtio 1.3, section 2.8).
 *
 * @module
 */

import { high32 } from "../core/bits.ts";
import type { DriverMemory } from "./driver_memory.ts";
import type { DriverRing } from "./driver_ring.ts";
import type { VringOptions } from "./vring.ts";

// struct pvirtq_desc { le64 addr; le32 len; le16 id; le16 flags; }
const DESC = { ADDR: 0, LEN: 8, ID: 12, FLAGS: 14, SIZE: 16 } as const;
// struct pvirtq_event_suppress { le16 desc; le16 flags; }
const EVENT = { DESC: 0, FLAGS: 2, SIZE: 4 } as const;

const F_NEXT = 0x1;
const F_WRITE = 0x2;
const F_INDIRECT = 0x4;
const F_AVAIL = 0x80;
const F_USED = 0x8000;
const RING_EVENT_FLAGS_ENABLE = 0;
const RING_EVENT_FLAGS_DISABLE = 1;
const RING_EVENT_FLAGS_DESC = 2;
const WRAP = 0x8000;

/**
 * The driver's side of a packed virtqueue, with the calls of {@linkcode Vring}. The size need not be a power of two.
 * Nothing here allocates after construction.
 */
export class PackedVring implements DriverRing {
  readonly size: number;
  readonly descIova: number;
  readonly availIova: number;
  readonly usedIova: number;
  usedHead = 0;
  usedLength = 0;
  readonly #memory: DriverMemory;
  readonly #view: DataView;
  readonly #words: Uint16Array<ArrayBuffer>;
  readonly #desc: number;
  readonly #driverEvent: number;
  readonly #deviceEvent: number;
  readonly #eventIdx: boolean;
  readonly #inOrder: boolean;
  readonly #indirect: number;
  readonly #tablesIova: number;
  /** Buffer ids that are free, as a stack. */
  readonly #freeIds: Uint16Array;
  /** By buffer id: descriptors of the ring, 0 when it is not in flight, and bytes the device may write. */
  readonly #chainLength: Uint16Array;
  readonly #writableBytes: Uint32Array;
  /** Buffer ids in flight in the order they were made available, circular. */
  readonly #order: Uint16Array;
  #orderAt = 0;
  #takeAt = 0;
  #freeIdCount: number;
  #freeCount: number;
  #chains = 0;
  #unpublished = 0;
  #availAt = 0;
  #availWrap = 1;
  #usedAt = 0;
  #usedWrap = 1;
  /** The first descriptor that the device has not been shown, with the flags it is to get, and the wrap counter there. */
  #batchAt = 0;
  #batchWrap = 1;
  #batchFlags = -1;
  #batchLength = 0;
  /** With IN_ORDER: the last chain of the batch of used chains that is being taken, or −1. */
  #usedLast = -1;
  #lastLength = 0;
  #id = 0;
  #count = 0;
  #wanted = 0;
  #length = 0;
  #useTable = false;

  /**
   * Makes an empty ring.
   *
   * @throws {RangeError} When the memory has no room for it
   */
  constructor(memory: DriverMemory, options: VringOptions) {
    const { size } = options;
    this.size = size;
    this.#memory = memory;
    this.#eventIdx = options.eventIdx ?? false;
    this.#inOrder = options.inOrder ?? false;
    this.#indirect = options.indirect ?? 0;
    this.descIova = memory.alloc(DESC.SIZE * size, 16);
    this.availIova = memory.alloc(EVENT.SIZE, 4);
    this.usedIova = memory.alloc(EVENT.SIZE, 4);
    this.#tablesIova = this.#indirect === 0
      ? 0
      : memory.alloc(DESC.SIZE * this.#indirect * size, 16);
    this.#view = memory.view;
    this.#words = memory.words;
    this.#desc = memory.offset(this.descIova);
    this.#driverEvent = memory.offset(this.availIova);
    this.#deviceEvent = memory.offset(this.usedIova);
    this.#freeIds = new Uint16Array(size);
    this.#chainLength = new Uint16Array(size);
    this.#writableBytes = new Uint32Array(size);
    this.#order = new Uint16Array(size);
    for (let i = 0; i < size; i++) this.#freeIds[i] = size - 1 - i;
    this.#freeIdCount = this.#freeCount = size;
  }

  get free(): number {
    return this.#freeCount;
  }

  get inFlight(): number {
    return this.#chains - this.#unpublished;
  }

  get notifyData(): number {
    return this.#availAt | (this.#availWrap === 1 ? WRAP : 0);
  }

  get hasUsed(): boolean {
    if (this.#usedLast >= 0) return true;
    const flags = Atomics.load(this.#words, this.#flagsAt(this.#usedAt));
    const mark = this.#usedWrap === 1 ? F_AVAIL | F_USED : 0;
    return (flags & (F_AVAIL | F_USED)) === mark;
  }

  begin(descriptors: number): boolean {
    this.#useTable = descriptors > 1 && descriptors <= this.#indirect;
    if ((this.#useTable ? 1 : descriptors) > this.#freeCount) return false;
    this.#id = this.#freeIds[this.#freeIdCount - 1]!;
    this.#count = 0;
    this.#wanted = descriptors;
    this.#length = 0;
    this.#writableBytes[this.#id] = 0;
    return true;
  }

  readable(iova: number, lengthBytes: number): void {
    this.#add(iova, lengthBytes, 0);
  }

  writable(iova: number, lengthBytes: number): void {
    this.#writableBytes[this.#id]! += lengthBytes;
    this.#add(iova, lengthBytes, F_WRITE);
  }

  end(): number {
    if (this.#count !== this.#wanted) {
      throw new Error(
        `Cannot end a chain of ${this.#wanted} buffers: it has ${this.#count}`,
      );
    }
    const id = this.#id;
    if (this.#useTable) {
      this.#writeTable(this.#desc + this.#availAt * DESC.SIZE);
      this.#append(F_INDIRECT);
    }
    this.#freeIdCount--;
    this.#chainLength[id] = this.#length;
    this.#order[this.#orderAt] = id;
    this.#orderAt = (this.#orderAt + 1) % this.size;
    this.#chains++;
    this.#unpublished++;
    return id;
  }

  publish(): boolean {
    if (this.#batchFlags < 0) return false;
    const first = this.#batchAt;
    const length = this.#batchLength;
    Atomics.store(this.#words, this.#flagsAt(first), this.#batchFlags);
    this.#batchFlags = -1;
    this.#batchLength = 0;
    this.#unpublished = 0;
    // Sequentially consistent, so these loads are not done before the store above (2.8.21.3.1).
    const flags = Atomics.load(
      this.#words,
      (this.#deviceEvent + EVENT.FLAGS) >> 1,
    );
    if (flags === RING_EVENT_FLAGS_DISABLE) return false;
    if (flags !== RING_EVENT_FLAGS_DESC) return true;
    const event = Atomics.load(
      this.#words,
      (this.#deviceEvent + EVENT.DESC) >> 1,
    );
    let distance = (event & ~WRAP) - first;
    if (event >>> 15 !== this.#batchWrap) distance += this.size;
    return distance >= 0 && distance < length;
  }

  /**
   * Takes the next used chain; its descriptors are free again.
   *
   * @throws {Error} When the device returned what it was not given
   */
  take(): boolean {
    if (!this.hasUsed) return false;
    const at = this.#desc + this.#usedAt * DESC.SIZE;
    let id = this.#usedLast;
    if (id < 0) {
      id = this.#view.getUint16(at + DESC.ID, true);
      const flags = this.#view.getUint16(at + DESC.FLAGS, true);
      // Without WRITE the length says nothing (2.8.4).
      this.usedLength = (flags & F_WRITE) === 0
        ? 0
        : this.#view.getUint32(at + DESC.LEN, true);
      this.#checkInFlight(id);
    }
    this.usedHead = this.#inOrder ? this.#takeInOrder(id) : id;
    this.#release(this.usedHead);
    return true;
  }

  enableInterrupts(): boolean {
    if (this.#eventIdx) {
      Atomics.store(
        this.#words,
        (this.#driverEvent + EVENT.DESC) >> 1,
        this.#usedAt | (this.#usedWrap === 1 ? WRAP : 0),
      );
      this.#storeFlags(RING_EVENT_FLAGS_DESC);
    } else {
      this.#storeFlags(RING_EVENT_FLAGS_ENABLE);
    }
    return this.hasUsed;
  }

  disableInterrupts(): void {
    this.#storeFlags(RING_EVENT_FLAGS_DISABLE);
  }

  reset(): void {
    const memory = this.#memory;
    const size = this.size;
    memory.at(this.descIova, DESC.SIZE * size).fill(0);
    memory.at(this.availIova, EVENT.SIZE).fill(0);
    memory.at(this.usedIova, EVENT.SIZE).fill(0);
    for (let i = 0; i < size; i++) this.#freeIds[i] = size - 1 - i;
    this.#chainLength.fill(0);
    this.#freeIdCount = this.#freeCount = size;
    this.#orderAt =
      this.#takeAt =
      this.#chains =
      this.#unpublished =
        0;
    this.#availAt =
      this.#usedAt =
      this.#batchAt =
      this.#batchLength =
        0;
    this.#availWrap = this.#usedWrap = this.#batchWrap = 1;
    this.#batchFlags = this.#usedLast = -1;
  }

  close(): void {
    this.#memory.free(this.descIova, DESC.SIZE * this.size);
    this.#memory.free(this.availIova, EVENT.SIZE);
    this.#memory.free(this.usedIova, EVENT.SIZE);
    if (this.#indirect > 0) {
      const length = DESC.SIZE * this.#indirect * this.size;
      this.#memory.free(this.#tablesIova, length);
    }
  }

  /** Writes any descriptor of the ring, to misbehave. Addresses above 2^53 − 1 are bigints. */
  writeRaw(
    index: number,
    address: number | bigint,
    lengthBytes: number,
    id: number,
    flags: number,
  ): void {
    const at = this.#desc + index * DESC.SIZE;
    this.#view.setBigUint64(at + DESC.ADDR, BigInt(address), true);
    this.#view.setUint32(at + DESC.LEN, lengthBytes, true);
    this.#view.setUint16(at + DESC.ID, id, true);
    Atomics.store(this.#words, this.#flagsAt(index), flags);
  }

  /** The flags that make a descriptor available at the place of the next chain. */
  get availableFlags(): number {
    return this.#availWrap === 1 ? F_AVAIL : F_USED;
  }

  #add(iova: number, lengthBytes: number, flags: number): void {
    if (!this.#useTable) {
      const more = this.#count + 1 < this.#wanted;
      this.#write(this.#desc + this.#availAt * DESC.SIZE, iova, lengthBytes);
      this.#append(more ? flags | F_NEXT : flags);
    } else {
      const table = this.#memory.offset(this.#tablesIova) +
        (this.#id * this.#indirect + this.#count) * DESC.SIZE;
      this.#write(table, iova, lengthBytes);
      this.#view.setUint16(table + DESC.FLAGS, flags, true);
    }
    this.#count++;
  }

  /** Completes the next descriptor of the ring; the flags of the first that the device does not know are kept back. */
  #append(extra: number): void {
    const index = this.#availAt;
    const flags = this.availableFlags | extra;
    if (this.#batchFlags < 0) {
      this.#batchAt = index;
      this.#batchWrap = this.#availWrap;
      this.#batchFlags = flags;
    } else {
      Atomics.store(this.#words, this.#flagsAt(index), flags);
    }
    this.#batchLength++;
    this.#length++;
    this.#freeCount--;
    this.#availAt = index + 1;
    if (this.#availAt === this.size) {
      this.#availAt = 0;
      this.#availWrap ^= 1;
    }
  }

  /** Writes a descriptor of the chain's table; its address is computed here, for as an argument it would be allocated. */
  #writeTable(at: number): void {
    const iova = this.#tablesIova + this.#id * this.#indirect * DESC.SIZE;
    const view = this.#view;
    view.setUint32(at + DESC.ADDR, iova >>> 0, true);
    view.setUint32(at + DESC.ADDR + 4, high32(iova), true);
    view.setUint32(at + DESC.LEN, this.#count * DESC.SIZE, true);
    view.setUint16(at + DESC.ID, this.#id, true);
  }

  #write(at: number, iova: number, lengthBytes: number): void {
    const view = this.#view;
    view.setUint32(at + DESC.ADDR, iova >>> 0, true);
    view.setUint32(at + DESC.ADDR + 4, high32(iova), true);
    view.setUint32(at + DESC.LEN, lengthBytes, true);
    view.setUint16(at + DESC.ID, this.#id, true);
  }

  /** @param last The chain that the device has named @returns The oldest in flight, which is used too */
  #takeInOrder(last: number): number {
    const id = this.#order[this.#takeAt]!;
    this.#takeAt = (this.#takeAt + 1) % this.size;
    if (id === last) {
      // Its length was read when the batch began, and may have been written over by those of the others.
      if (this.#usedLast >= 0) this.usedLength = this.#lastLength;
      this.#usedLast = -1;
      return id;
    }
    if (this.#usedLast < 0) {
      this.#usedLast = last;
      this.#lastLength = this.usedLength;
    }
    this.usedLength = this.#writableBytes[id]!;
    return id;
  }

  #release(id: number): void {
    const length = this.#chainLength[id]!;
    this.#chainLength[id] = 0;
    this.#freeIds[this.#freeIdCount++] = id;
    this.#freeCount += length;
    this.#chains--;
    this.#usedAt += length;
    if (this.#usedAt >= this.size) {
      this.#usedAt -= this.size;
      this.#usedWrap ^= 1;
    }
  }

  #checkInFlight(id: number): void {
    if (id >= this.size || this.#chainLength[id] === 0) {
      throw new Error(`Cannot take chain ${id}: it is not in flight`);
    }
  }

  #storeFlags(flags: number): void {
    Atomics.store(this.#words, (this.#driverEvent + EVENT.FLAGS) >> 1, flags);
  }

  #flagsAt(index: number): number {
    return (this.#desc + index * DESC.SIZE + DESC.FLAGS) >> 1;
  }
}
