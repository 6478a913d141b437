/**
 * A split virtqueue from the driver's side (virtio 1.3, section 2.7).
 *
 * @module
 */

import { high32 } from "../core/bits.ts";
import type { DriverMemory } from "./driver_memory.ts";
import type { DriverRing } from "./driver_ring.ts";

// struct virtq_desc { le64 addr; le32 len; le16 flags; le16 next; }
const DESC = { ADDR: 0, LEN: 8, FLAGS: 12, NEXT: 14, SIZE: 16 } as const;
// struct virtq_avail { le16 flags; le16 idx; le16 ring[size]; le16 used_event; }
const AVAIL = { FLAGS: 0, IDX: 2, RING: 4 } as const;
// struct virtq_used { le16 flags; le16 idx; struct { le32 id; le32 len; } ring[size]; le16 avail_event; }
const USED = { FLAGS: 0, IDX: 2, RING: 4, ELEM_SIZE: 8 } as const;

/** The chain goes on at `next`. */
export const VRING_DESC_F_NEXT = 1;
/** The device writes this buffer. */
export const VRING_DESC_F_WRITE = 2;
/** The buffer is a table of descriptors. */
export const VRING_DESC_F_INDIRECT = 4;
const AVAIL_F_NO_INTERRUPT = 1;
const USED_F_NO_NOTIFY = 1;

/** Settings of a ring. */
export interface VringOptions {
  /** Entries: a power of two up to 32768 (for a packed ring, any number up to that). */
  readonly size: number;
  /** True if VIRTIO_F_RING_EVENT_IDX was negotiated. */
  readonly eventIdx?: boolean;
  /** True if VIRTIO_F_IN_ORDER was negotiated. */
  readonly inOrder?: boolean;
  /** The most descriptors of an indirect table (needs VIRTIO_F_RING_INDIRECT_DESC); 0, the default, uses none. */
  readonly indirect?: number;
}

/**
 * The driver's side of a split virtqueue. Nothing here allocates after construction.
 *
 * ```ts ignore
 * if (ring.begin(chainLength)) {
 *   ring.readable(iova, lengthBytes); // device-readable buffers first
 *   ring.writable(iova, lengthBytes);
 *   const head = ring.end();
 * }
 * if (ring.publish()) bell.ring(queueIndex);
 *
 * while (ring.take()) done(ring.usedHead, ring.usedLength);
 * ```
 */
export class Vring implements DriverRing {
  /** Entries. */
  readonly size: number;
  /** Address of the descriptor table. */
  readonly descIova: number;
  /** Address of the available ring (driver area). */
  readonly availIova: number;
  /** Address of the used ring (device area). */
  readonly usedIova: number;
  /** The chain that {@linkcode take} took. */
  usedHead = 0;
  /** Number of bytes the device says it wrote to it. */
  usedLength = 0;
  readonly #memory: DriverMemory;
  readonly #view: DataView;
  readonly #words: Uint16Array<ArrayBuffer>;
  readonly #desc: number;
  readonly #avail: number;
  readonly #used: number;
  readonly #eventIdx: boolean;
  readonly #inOrder: boolean;
  readonly #indirect: number;
  readonly #tablesIova: number;
  /** The free descriptors, linked. */
  readonly #nextFree: Uint16Array;
  /** Number of ring descriptors the chain of a head has; 0 when it is not in flight. */
  readonly #chainLength: Uint16Array;
  /** By head: how many bytes the device may write. */
  readonly #writableBytes: Uint32Array;
  /** Heads by the slot of the available ring they were put in. */
  readonly #slots: Uint16Array;
  /** With IN_ORDER: the last chain of the batch of used chains that is being taken, or −1; and its length. */
  #batchLast = -1;
  #batchLength = 0;
  #freeHead = 0;
  #freeCount: number;
  #availIdx = 0;
  #publishedIdx = 0;
  #lastUsed = 0;
  #head = -1;
  #last = -1;
  #count = 0;
  #wanted = 0;
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
    this.availIova = memory.alloc(this.#availBytes, 2);
    this.usedIova = memory.alloc(this.#usedBytes, 4);
    this.#tablesIova = this.#indirect === 0
      ? 0
      : memory.alloc(DESC.SIZE * this.#indirect * size, 16);
    this.#view = memory.view;
    this.#words = memory.words;
    this.#desc = memory.offset(this.descIova);
    this.#avail = memory.offset(this.availIova);
    this.#used = memory.offset(this.usedIova);
    this.#nextFree = new Uint16Array(size);
    this.#chainLength = new Uint16Array(size);
    this.#writableBytes = new Uint32Array(size);
    this.#slots = new Uint16Array(size);
    for (let i = 0; i < size; i++) this.#nextFree[i] = i + 1;
    this.#freeCount = size;
  }

  /** Descriptors of the ring that are free. */
  get free(): number {
    return this.#freeCount;
  }

  /** Chains that were published and not taken back. */
  get inFlight(): number {
    return (this.#publishedIdx - this.#lastUsed) & 0xffff;
  }

  /** The next available index to publish, as the device will see it. */
  get availIdx(): number {
    return this.#availIdx;
  }

  /** Word that a notification carries with NOTIFICATION_DATA: the available index (2.9). */
  get notifyData(): number {
    return this.#availIdx;
  }

  get #availBytes(): number {
    return AVAIL.RING + 2 * this.size + 2;
  }

  get #usedBytes(): number {
    return USED.RING + USED.ELEM_SIZE * this.size + 2;
  }

  /**
   * Begins a chain.
   *
   * @param descriptors How many buffers it will have, exactly; at least 1
   * @returns Whether there is room
   */
  begin(descriptors: number): boolean {
    this.#useTable = descriptors > 1 && descriptors <= this.#indirect;
    if ((this.#useTable ? 1 : descriptors) > this.#freeCount) return false;
    this.#head = this.#freeHead;
    this.#writableBytes[this.#head] = 0;
    this.#last = -1;
    this.#count = 0;
    this.#wanted = descriptors;
    return true;
  }

  /** Adds a buffer that the device reads. */
  readable(iova: number, lengthBytes: number): void {
    this.#add(iova, lengthBytes, 0);
  }

  /** Adds a buffer that the device writes. */
  writable(iova: number, lengthBytes: number): void {
    this.#writableBytes[this.#head]! += lengthBytes;
    this.#add(iova, lengthBytes, VRING_DESC_F_WRITE);
  }

  /**
   * Ends a chain and makes it available; the device sees it after {@linkcode publish}.
   *
   * @returns Its head, by which it comes back
   */
  end(): number {
    if (this.#count !== this.#wanted) {
      throw new Error(
        `Cannot end a chain of ${this.#wanted} buffers: it has ${this.#count}`,
      );
    }
    const head = this.#head;
    if (this.#useTable) {
      this.#takeFree();
      this.#writeDescriptor(
        this.#desc + head * DESC.SIZE,
        this.#tablesIova + head * this.#indirect * DESC.SIZE,
        this.#count * DESC.SIZE,
        VRING_DESC_F_INDIRECT,
        0,
      );
      this.#chainLength[head] = 1;
    } else {
      this.#chainLength[head] = this.#count;
    }
    this.makeAvailable(head);
    return head;
  }

  /** Puts a head into the available ring, whatever it is. */
  makeAvailable(head: number): void {
    const slot = this.#availIdx & (this.size - 1);
    this.#slots[slot] = head;
    this.#view.setUint16(this.#avail + AVAIL.RING + slot * 2, head, true);
    this.#availIdx = (this.#availIdx + 1) & 0xffff;
  }

  /**
   * Shows the device everything that was made available.
   *
   * @returns Whether it wants a notification
   */
  publish(): boolean {
    const before = this.#publishedIdx;
    const after = this.#availIdx;
    if (before === after) return false;
    Atomics.store(this.#words, (this.#avail + AVAIL.IDX) >> 1, after);
    this.#publishedIdx = after;
    // Atomics are sequentially consistent, so this load is not done before the store above (2.7.13.4).
    if (!this.#eventIdx) {
      const flags = Atomics.load(this.#words, (this.#used + USED.FLAGS) >> 1);
      return (flags & USED_F_NO_NOTIFY) === 0;
    }
    const event = Atomics.load(
      this.#words,
      (this.#used + USED.RING + USED.ELEM_SIZE * this.size) >> 1,
    );
    return ((after - event - 1) & 0xffff) < ((after - before) & 0xffff);
  }

  /** True if the device has used a chain that was not taken yet. */
  get hasUsed(): boolean {
    return Atomics.load(this.#words, (this.#used + USED.IDX) >> 1) !==
      this.#lastUsed;
  }

  /**
   * Takes the next used chain; its descriptors are free again.
   *
   * @returns Whether there was one, in {@linkcode usedHead} and {@linkcode usedLength}
   * @throws {Error} When the device returned what it was not given
   */
  take(): boolean {
    if (!this.hasUsed) return false;
    const slot = this.#lastUsed & (this.size - 1);
    if (this.#inOrder) {
      this.#takeInOrder(slot);
    } else {
      this.usedHead = this.#readUsed(slot);
    }
    this.#lastUsed = (this.#lastUsed + 1) & 0xffff;
    this.#release(this.usedHead);
    return true;
  }

  /** Reads a used entry: returns its head, its length is {@linkcode usedLength} then. */
  #readUsed(slot: number): number {
    const at = this.#used + USED.RING + slot * USED.ELEM_SIZE;
    const head = this.#view.getUint32(at, true);
    if (head >= this.size || this.#chainLength[head] === 0) {
      throw new Error(`Cannot take chain ${head}: it is not in flight`);
    }
    this.usedLength = this.#view.getUint32(at + 4, true);
    return head;
  }

  /** Takes the oldest chain in flight: it is used, whichever later one the device has named (2.7.9). */
  #takeInOrder(slot: number): void {
    if (this.#batchLast < 0) {
      this.#batchLast = this.#readUsed(slot);
      this.#batchLength = this.usedLength;
    }
    const head = this.#slots[slot]!;
    this.usedHead = head;
    if (head === this.#batchLast) {
      this.usedLength = this.#batchLength;
      this.#batchLast = -1;
    } else {
      this.usedLength = this.#writableBytes[head]!;
    }
  }

  /**
   * Asks for an interrupt with the next used chain, or the one that comes `after` others.
   *
   * @returns Whether a chain was used meanwhile, so that there may be no interrupt for it
   */
  enableInterrupts(after = 0): boolean {
    if (this.#eventIdx) {
      this.#storeUsedEvent((this.#lastUsed + after) & 0xffff);
    } else {
      Atomics.store(this.#words, (this.#avail + AVAIL.FLAGS) >> 1, 0);
    }
    const used = Atomics.load(this.#words, (this.#used + USED.IDX) >> 1);
    return ((used - this.#lastUsed) & 0xffff) > after;
  }

  /** Asks for no interrupts; the device may send some all the same. */
  disableInterrupts(): void {
    // With EVENT_IDX the flags stay 0 (2.7.10.1): the event is put as far away as can be instead.
    if (this.#eventIdx) this.#storeUsedEvent((this.#lastUsed - 1) & 0xffff);
    else {
      Atomics.store(
        this.#words,
        (this.#avail + AVAIL.FLAGS) >> 1,
        AVAIL_F_NO_INTERRUPT,
      );
    }
  }

  /** Forgets everything in flight and clears the rings, as after a reset of the queue. */
  reset(): void {
    const memory = this.#memory;
    memory.at(this.descIova, DESC.SIZE * this.size).fill(0);
    memory.at(this.availIova, this.#availBytes).fill(0);
    memory.at(this.usedIova, this.#usedBytes).fill(0);
    for (let i = 0; i < this.size; i++) this.#nextFree[i] = i + 1;
    this.#chainLength.fill(0);
    this.#freeHead = 0;
    this.#freeCount = this.size;
    this.#availIdx = this.#publishedIdx = this.#lastUsed = 0;
    this.#batchLast = -1;
  }

  /** Gives the memory of the rings back. */
  close(): void {
    this.#memory.free(this.descIova, DESC.SIZE * this.size);
    this.#memory.free(this.availIova, this.#availBytes);
    this.#memory.free(this.usedIova, this.#usedBytes);
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
    flags: number,
    next: number,
  ): void {
    const at = this.#desc + index * DESC.SIZE;
    this.#writeDescriptor(at, 0, lengthBytes, flags, next);
    this.#view.setBigUint64(at + DESC.ADDR, BigInt(address), true);
  }

  /** Writes a descriptor anywhere in memory, such as an indirect table of a test's own. */
  writeRawAt(
    iova: number,
    address: number,
    lengthBytes: number,
    flags: number,
    next: number,
  ): void {
    const at = this.#memory.offset(iova);
    this.#writeDescriptor(at, address, lengthBytes, flags, next);
  }

  /** Publishes any available index, to misbehave. */
  publishRaw(availIdx: number): void {
    Atomics.store(
      this.#words,
      (this.#avail + AVAIL.IDX) >> 1,
      availIdx & 0xffff,
    );
    this.#availIdx = this.#publishedIdx = availIdx & 0xffff;
  }

  /** The used index as the device last wrote it. */
  get deviceUsedIdx(): number {
    return Atomics.load(this.#words, (this.#used + USED.IDX) >> 1);
  }

  /** The head in a slot of the used ring, for chains that were made with {@linkcode writeRaw}. */
  usedHeadAt(slot: number): number {
    const at = this.#used + USED.RING + slot * USED.ELEM_SIZE;
    return this.#view.getUint32(at, true);
  }

  /** The length in a slot of the used ring. */
  usedLengthAt(slot: number): number {
    const at = this.#used + USED.RING + slot * USED.ELEM_SIZE;
    return this.#view.getUint32(at + 4, true);
  }

  #add(iova: number, lengthBytes: number, flags: number): void {
    if (this.#useTable) {
      const more = this.#count + 1 < this.#wanted;
      const table = this.#memory.offset(this.#tablesIova) +
        this.#head * this.#indirect * DESC.SIZE;
      this.#writeDescriptor(
        table + this.#count * DESC.SIZE,
        iova,
        lengthBytes,
        more ? flags | VRING_DESC_F_NEXT : flags,
        more ? this.#count + 1 : 0,
      );
    } else {
      const index = this.#takeFree();
      if (this.#last >= 0) {
        const last = this.#desc + this.#last * DESC.SIZE;
        const before = this.#view.getUint16(last + DESC.FLAGS, true);
        this.#view.setUint16(
          last + DESC.FLAGS,
          before | VRING_DESC_F_NEXT,
          true,
        );
        this.#view.setUint16(last + DESC.NEXT, index, true);
      }
      const at = this.#desc + index * DESC.SIZE;
      this.#writeDescriptor(at, iova, lengthBytes, flags, 0);
      this.#last = index;
    }
    this.#count++;
  }

  #takeFree(): number {
    const index = this.#freeHead;
    // With IN_ORDER descriptors are taken in the order of the table (2.7.5.2), and are freed in that order.
    this.#freeHead = this.#inOrder
      ? (index + 1) & (this.size - 1)
      : this.#nextFree[index]!;
    this.#freeCount--;
    return index;
  }

  /** Frees a chain. The links come from our own list, for the device could have changed the table. */
  #release(head: number): void {
    const length = this.#chainLength[head]!;
    this.#chainLength[head] = 0;
    this.#freeCount += length;
    if (this.#inOrder) return;
    // While in flight, a chain's entries still hold the order in which they were taken.
    let last = head;
    for (let i = 1; i < length; i++) last = this.#nextFree[last]!;
    this.#nextFree[last] = this.#freeHead;
    this.#freeHead = head;
  }

  #writeDescriptor(
    at: number,
    iova: number,
    lengthBytes: number,
    flags: number,
    next: number,
  ): void {
    const view = this.#view;
    view.setUint32(at + DESC.ADDR, iova >>> 0, true);
    view.setUint32(at + DESC.ADDR + 4, high32(iova), true);
    view.setUint32(at + DESC.LEN, lengthBytes, true);
    view.setUint16(at + DESC.FLAGS, flags, true);
    view.setUint16(at + DESC.NEXT, next, true);
  }

  #storeUsedEvent(value: number): void {
    Atomics.store(
      this.#words,
      (this.#avail + AVAIL.RING + 2 * this.size) >> 1,
      value,
    );
  }
}
