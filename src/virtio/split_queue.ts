/**
 * The split virtqueue (virtio 1.3, section 2.7), device side.
 *
 * @module
 */

import { Errno } from "../errno.ts";
import { hex, isPowerOfTwo } from "../bits.ts";
import {
  Access,
  type GuestMemory,
  type MemoryWindow,
} from "../memory/guest_memory.ts";
import { MappedWindow } from "../memory/mapped_window.ts";
import { ChainReader } from "./chain_reader.ts";
import {
  VIRTQUEUE_MAX_SIZE,
  VRING_ALIGN,
  VRING_AVAIL,
  VRING_AVAIL_F_NO_INTERRUPT,
  VRING_DESC,
  VRING_USED,
  VRING_USED_F_NO_NOTIFY,
} from "./defs.ts";
import { type Features, VIRTIO_F } from "./features.ts";
import type { Chain, Virtqueue } from "./queue.ts";

/** Where a driver has put a queue. */
export interface QueueAddresses {
  /** Entries of the ring. */
  readonly size: number;
  /** Address of the descriptor table. */
  readonly descIova: number;
  /** Address of the available ring. */
  readonly availIova: number;
  /** Address of the used ring. */
  readonly usedIova: number;
}

/** No generation of any memory: the ring must be resolved before it is touched. */
const UNRESOLVED = -1;
const INDEX_MASK = 0xffff;

/** Stands for a part of the ring that is not resolved; it is never accessed. */
const NO_WINDOW: MemoryWindow = new MappedWindow(new ArrayBuffer(0), 0, 0);

/**
 * A split virtqueue as the device sees it.
 *
 * ```text
 *   disabled --enable--> enabled ⇄ suspended
 *      ↑                    |          |
 *      └───── disable ──────┴──────────┘
 * ```
 * The transport enables, disables, suspends and resumes; the device model does everything else. While the queue is
 * suspended, or its ring is not mapped, {@linkcode SplitQueue.pop} finds nothing and what is pushed is kept until
 * the ring can be reached again.
 *
 * Memory ordering: both indices, `flags` and the event words are accessed by Atomics, which JavaScript defines to be
 * sequentially consistent. A load of an index thus comes before the loads of what it covers, a store of an index
 * after the stores of what it covers, and, which is the full barrier that both notification protocols need (section
 * 2.7.13.4.1 and its mirror image for the device), a store of an index or event word before a later load of the
 * other side's word: on x86-64 the store is an XCHG, on AArch64 the pair is STLR and LDAR.
 */
export class SplitQueue implements Virtqueue {
  readonly index: number;
  /** The largest size the device offers. */
  readonly maxSize: number;
  /** Whether the queue is polled all the time, so that the driver is never asked to notify. */
  readonly polled: boolean;
  readonly #memory: GuestMemory;
  readonly #reader: ChainReader;

  #addresses: QueueAddresses | null = null;
  #suspended = false;
  #eventIdx = false;
  #indirect = false;
  #size = 0;
  #mask = 0;

  #generation = UNRESOLVED;
  #desc = NO_WINDOW;
  #avail = NO_WINDOW;
  #used = NO_WINDOW;

  /** Which available entry is taken next. */
  #lastAvail = 0;
  /** The driver's `idx` when it was last looked at. */
  #availIdx = 0;
  /** The driver's `idx` when it was last looked at by anything, polling included. */
  #polledIdx = 0;
  /** Which used entry is written next, and which is the first that the driver has not been shown. */
  #nextUsed = 0;
  #publishedUsed = 0;
  /** How many of the unpublished used entries are not in the ring yet, because it could not be reached. */
  #stashed = 0;
  #stash = new Uint32Array(0);
  #notificationsOff = false;

  /** Heads that were popped, by available entry, and which heads are with the device. */
  #heads = new Uint16Array(0);
  #busy = new Uint8Array(0);
  #inFlight = 0;

  #lastError = "";

  /**
   * @param index Number of the queue in its device
   * @param maxSize The largest size, a power of two up to 32768
   * @param polled Whether {@linkcode poll} is called all the time
   */
  constructor(
    memory: GuestMemory,
    index: number,
    maxSize: number,
    polled = false,
  ) {
    if (!isPowerOfTwo(maxSize) || maxSize > VIRTQUEUE_MAX_SIZE) {
      throw new RangeError(`Cannot make a queue of ${maxSize} entries`);
    }
    this.#memory = memory;
    this.#reader = new ChainReader(memory, maxSize);
    this.index = index;
    this.maxSize = maxSize;
    this.polled = polled;
  }

  get size(): number {
    return this.#size;
  }

  get enabled(): boolean {
    return this.#addresses !== null;
  }

  get lastError(): string {
    return this.#lastError;
  }

  /** How many chains the device has popped and not pushed. */
  get inFlight(): number {
    return this.#inFlight;
  }

  /** Whether the ring was found in memory, and nothing has been unmapped since. */
  get resolved(): boolean {
    return this.#generation === this.#memory.generation;
  }

  /**
   * Starts the queue from index 0. The ring is not touched yet: a driver may zero it after it has enabled the queue
   * (SPDK does), and may map it later.
   *
   * @param features The negotiated features
   * @returns 0, or −EINVAL when the driver broke a rule ({@linkcode lastError}); the queue is then disabled
   */
  enable(features: Features, addresses: QueueAddresses): number {
    this.disable();
    const wrong = checkAddresses(addresses, this.maxSize);
    if (wrong !== null) {
      this.#lastError = wrong;
      return -Errno.EINVAL;
    }
    const size = addresses.size;
    this.#addresses = addresses;
    this.#size = size;
    this.#mask = size - 1;
    this.#eventIdx = features.has(VIRTIO_F.RING_EVENT_IDX);
    this.#indirect = features.has(VIRTIO_F.RING_INDIRECT_DESC);
    this.#heads = new Uint16Array(size);
    this.#busy = new Uint8Array(size);
    this.#stash = new Uint32Array(size * 2);
    return 0;
  }

  /** Forgets the ring and what is in flight; until it is enabled again pop finds nothing and push does nothing. */
  disable(): void {
    this.#addresses = null;
    this.#size = 0;
    this.#mask = 0;
    this.#forgetWindows();
    this.#lastAvail = this.#availIdx = this.#polledIdx = 0;
    this.#nextUsed = this.#publishedUsed = this.#stashed = 0;
    this.#inFlight = 0;
    this.#notificationsOff = false;
    this.#suspended = false;
    this.#lastError = "";
  }

  /** Stops touching the ring, until {@linkcode resume}; nothing is lost. */
  suspend(): void {
    this.#suspended = true;
    this.#forgetWindows();
  }

  /** Touches the ring again. */
  resume(): void {
    this.#suspended = false;
  }

  /**
   * Whether the driver has made something available since anything here last looked: for polling handlers, which
   * must tell new chains from those a device has left in the ring.
   */
  poll(): boolean {
    if (!this.#ready()) return false;
    const idx = this.#avail.loadU16(VRING_AVAIL.IDX);
    if (idx === this.#polledIdx) return false;
    this.#polledIdx = idx;
    return true;
  }

  pop(chain: Chain): number {
    if (!this.#ready()) return 0;
    const next = this.#lastAvail;
    if (next === this.#availIdx) {
      const result = this.#lookForAvailable();
      if (result <= 0) return result;
    }
    if (this.#inFlight === this.#size) {
      return this.#fail(
        Errno.EINVAL,
        `more than ${this.#size} chains are available at once (2.7.13)`,
      );
    }
    const slot = next & this.#mask;
    const head = this.#avail.getU16(
      VRING_AVAIL.RING + slot * VRING_AVAIL.ENTRY_SIZE,
    );
    if (head >= this.#size) {
      return this.#fail(
        Errno.EINVAL,
        `available entry ${slot} names descriptor ${head} of ${this.#size} (2.7.6)`,
      );
    }
    if (this.#busy[head] !== 0) {
      return this.#fail(
        Errno.EINVAL,
        `descriptor ${head} is made available again before it was used (2.7.13.1)`,
      );
    }
    const result = this.#reader.read(
      this.#desc,
      this.#size,
      this.#indirect,
      head,
      chain,
    );
    if (result < 0) return this.#fail(-result, this.#reader.lastError);
    chain.head = head;
    this.#heads[slot] = head;
    this.#busy[head] = 1;
    this.#inFlight++;
    this.#lastAvail = (next + 1) & INDEX_MASK;
    return 1;
  }

  /**
   * Gives the last `count` chains that were popped back; none popped since the first of them may have been pushed.
   *
   * @throws {Error} When they were: a mistake of the device model
   */
  unpop(count: number): void {
    if (this.#addresses === null) return;
    for (let i = 0; i < count; i++) {
      const previous = (this.#lastAvail - 1) & INDEX_MASK;
      const head = this.#heads[previous & this.#mask]!;
      this.#takeBack(head, "unpop");
      this.#lastAvail = previous;
    }
  }

  /**
   * Returns a chain; see {@linkcode Virtqueue.push}. Ignored while the queue is disabled: the driver has reset it.
   *
   * @throws {Error} When the chain is not with the device: a mistake of the device model
   */
  push(head: number, writtenBytes: number): void {
    if (this.#addresses === null) return;
    this.#takeBack(head, "push");
    const reachable = this.#ready();
    if (reachable && this.#stashed > 0) this.#flushStash();
    const slot = this.#nextUsed & this.#mask;
    this.#nextUsed = (this.#nextUsed + 1) & INDEX_MASK;
    if (!reachable) {
      this.#stash[slot * 2] = head;
      this.#stash[slot * 2 + 1] = writtenBytes;
      this.#stashed++;
      return;
    }
    this.#writeUsed(slot, head, writtenBytes);
  }

  publish(): boolean {
    const before = this.#publishedUsed;
    const after = this.#nextUsed;
    if (before === after || !this.#ready()) return false;
    if (this.#stashed > 0) this.#flushStash();
    this.#used.storeU16(VRING_USED.IDX, after);
    this.#publishedUsed = after;
    // The store above comes before these loads for everyone (see the class), so either we see that the driver
    // wants an interrupt, or the driver sees the new index after it asked for one.
    if (this.#eventIdx) {
      return needsEvent(
        this.#avail.loadU16(usedEventOffset(this.#size)),
        after,
        before,
      );
    }
    const flags = this.#avail.loadU16(VRING_AVAIL.FLAGS);
    return (flags & VRING_AVAIL_F_NO_INTERRUPT) === 0;
  }

  enableNotifications(): boolean {
    if (!this.#ready()) return false;
    if (this.polled) {
      return this.#avail.loadU16(VRING_AVAIL.IDX) !== this.#lastAvail;
    }
    if (this.#eventIdx) {
      this.#used.storeU16(availEventOffset(this.#size), this.#lastAvail);
    } else if (this.#notificationsOff) {
      this.#used.storeU16(VRING_USED.FLAGS, 0);
    }
    this.#notificationsOff = false;
    // As in publish: either we see the driver's new index, or the driver sees that we want to be notified.
    const idx = this.#avail.loadU16(VRING_AVAIL.IDX);
    this.#polledIdx = idx;
    return idx !== this.#lastAvail;
  }

  disableNotifications(): void {
    if (this.#notificationsOff || !this.#ready()) return;
    this.#notificationsOff = true;
    // With EVENT_IDX `flags` stays 0 (2.7.10.2), and an event word that lies behind already says it all.
    if (this.#eventIdx) return;
    this.#used.storeU16(VRING_USED.FLAGS, VRING_USED_F_NO_NOTIFY);
  }

  /** Whether the ring may be touched: a single comparison once it is resolved. */
  #ready(): boolean {
    return this.#generation === this.#memory.generation || this.#resolve();
  }

  #resolve(): boolean {
    const at = this.#addresses;
    this.#forgetWindows();
    if (at === null || this.#suspended) return false;
    const memory = this.#memory;
    const desc = memory.window(
      at.descIova,
      at.size * VRING_DESC.SIZE,
      Access.READ,
    );
    const avail = memory.window(
      at.availIova,
      availBytes(at.size, this.#eventIdx),
      Access.READ,
    );
    const used = memory.window(
      at.usedIova,
      usedBytes(at.size, this.#eventIdx),
      Access.WRITE,
    );
    if (desc === null || avail === null || used === null) return false;
    this.#desc = desc;
    this.#avail = avail;
    this.#used = used;
    this.#generation = memory.generation;
    return true;
  }

  #forgetWindows(): void {
    this.#generation = UNRESOLVED;
    this.#desc = this.#avail = this.#used = NO_WINDOW;
  }

  /** Reads the driver's index: 1 when it has moved, 0 when not, −EINVAL when it moved too far. */
  #lookForAvailable(): number {
    const idx = this.#avail.loadU16(VRING_AVAIL.IDX);
    const added = (idx - this.#lastAvail) & INDEX_MASK;
    this.#polledIdx = idx;
    if (added === 0) return 0;
    if (added > this.#size) {
      return this.#fail(
        Errno.EINVAL,
        `available index moved by ${added}, more than the queue size ${this.#size} (2.7.13.3)`,
      );
    }
    this.#availIdx = idx;
    return 1;
  }

  #writeUsed(slot: number, head: number, writtenBytes: number): void {
    const at = VRING_USED.RING + slot * VRING_USED.ENTRY_SIZE;
    this.#used.setU32(at + VRING_USED.ENTRY_ID, head);
    this.#used.setU32(at + VRING_USED.ENTRY_LEN, writtenBytes);
  }

  #flushStash(): void {
    const stash = this.#stash;
    for (let i = this.#stashed; i > 0; i--) {
      const slot = (this.#nextUsed - i) & this.#mask;
      this.#writeUsed(slot, stash[slot * 2]!, stash[slot * 2 + 1]!);
    }
    this.#stashed = 0;
  }

  #takeBack(head: number, verb: string): void {
    if (this.#busy[head] !== 1) {
      throw new Error(
        `Cannot ${verb} chain ${head} of queue ${this.index}: the device does not hold it`,
      );
    }
    this.#busy[head] = 0;
    this.#inFlight--;
  }

  #fail(errno: number, message: string): number {
    this.#lastError = `queue ${this.index}: ${message}`;
    return -errno;
  }
}

/**
 * Whether an event at index `event` lies in what was added from `before` to `after` (all 16 bits; section 2.7.7.2).
 */
export function needsEvent(
  event: number,
  after: number,
  before: number,
): boolean {
  return ((after - event - 1) & INDEX_MASK) < ((after - before) & INDEX_MASK);
}

function usedEventOffset(size: number): number {
  return VRING_AVAIL.RING + size * VRING_AVAIL.ENTRY_SIZE;
}

function availEventOffset(size: number): number {
  return VRING_USED.RING + size * VRING_USED.ENTRY_SIZE;
}

// Without EVENT_IDX the event words are not accessed (2.7.7.2), so they need not be mapped.
function availBytes(size: number, eventIdx: boolean): number {
  return usedEventOffset(size) + (eventIdx ? VRING_AVAIL.EVENT_SIZE : 0);
}

function usedBytes(size: number, eventIdx: boolean): number {
  return availEventOffset(size) + (eventIdx ? VRING_USED.EVENT_SIZE : 0);
}

function checkAddresses(at: QueueAddresses, maxSize: number): string | null {
  if (!isPowerOfTwo(at.size) || at.size > maxSize) {
    return `queue size ${at.size} is not a power of two up to ${maxSize} (2.7)`;
  }
  const parts: readonly [string, number, number, number][] = [
    [
      "descriptor table",
      at.descIova,
      VRING_ALIGN.DESC,
      at.size * VRING_DESC.SIZE,
    ],
    [
      "available ring",
      at.availIova,
      VRING_ALIGN.AVAIL,
      availBytes(at.size, true),
    ],
    ["used ring", at.usedIova, VRING_ALIGN.USED, usedBytes(at.size, true)],
  ];
  for (const [name, iova, alignment, lengthBytes] of parts) {
    if (iova + lengthBytes > Number.MAX_SAFE_INTEGER) {
      return `${name} at ${hex(iova)} ends above 2^53-1`;
    }
    if (iova % alignment !== 0) {
      return `${name} at ${
        hex(iova)
      } is not aligned to ${alignment} bytes (2.7.1)`;
    }
  }
  return null;
}
