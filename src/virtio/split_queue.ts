/**
 * The split virtqueue (virtio 1.3, section 2.7), device side.
 *
 * @module
 */

import { Errno } from "../errno.ts";
import { isPowerOfTwo } from "../bits.ts";
import {
  Access,
  type GuestMemory,
  type MemoryWindow,
} from "../memory/guest_memory.ts";
import { MappedWindow } from "../memory/mapped_window.ts";
import { assumedBytes, ChainLedger } from "./chain_ledger.ts";
import { ChainReader } from "./chain_reader.ts";
import {
  VIRTQUEUE_MAX_SIZE,
  VRING_AVAIL,
  VRING_AVAIL_F_NO_INTERRUPT,
  VRING_DESC,
  VRING_USED,
  VRING_USED_F_NO_NOTIFY,
} from "./defs.ts";
import { type Features, VIRTIO_F } from "./features.ts";
import type { Chain } from "./queue.ts";
import type { QueueAddresses, Ring } from "./ring.ts";
import type { RingState } from "./ring_state.ts";
import {
  availBytes,
  availEventOffset,
  checkSplitAddresses,
  usedBytes,
  usedEventOffset,
} from "./ring_layout.ts";

/** No generation of any memory: the ring must be resolved before it is touched. */
const UNRESOLVED = -1;
const INDEX_MASK = 0xffff;

/** Stands for a part of the ring that is not resolved; it is never accessed. */
const NO_WINDOW: MemoryWindow = new MappedWindow(new ArrayBuffer(0), 0, 0);

/** What a disabled queue holds. */
const NO_CHAINS = new ChainLedger(0, false);

/**
 * A split virtqueue as the device sees it.
 *
 * The transport enables, disables, suspends and resumes ({@linkcode Ring}); the device model does everything else.
 * With IN_ORDER chains go back in the order in which they were available, whatever the order of
 * {@linkcode SplitQueue.push}, and one used entry stands for several where the driver cannot tell (section 2.7.9).
 *
 * Memory ordering: both indices, `flags` and the event words are accessed by Atomics, which JavaScript defines to be
 * sequentially consistent. A load of an index thus comes before the loads of what it covers, a store of an index
 * after the stores of what it covers, and, which is the full barrier that both notification protocols need (section
 * 2.7.13.4.1 and its mirror image for the device), a store of an index or event word before a later load of the
 * other side's word: on x86-64 the store is an XCHG, on AArch64 the pair is STLR and LDAR.
 */
export class SplitQueue implements Ring {
  readonly index: number;
  readonly maxSize: number;
  suppressed = 0;
  /** Whether the queue is polled, so that the driver is not asked to notify. */
  #polled: boolean;
  /** Whether the device wants to be notified, once nobody polls. */
  #wantsNotification = true;
  readonly #memory: GuestMemory;
  readonly #reader: ChainReader;

  #addresses: QueueAddresses | null = null;
  #suspended = false;
  #held = false;
  #eventIdx = false;
  #indirect = false;
  #inOrder = false;
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
  /** The used index as the driver knows it. */
  #usedIdx = 0;
  #notificationsOff = false;
  #ledger = NO_CHAINS;

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
    this.#polled = polled;
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

  get inFlight(): number {
    return this.#ledger.held;
  }

  get outstanding(): number {
    return this.#ledger.outstanding;
  }

  get resolved(): boolean {
    return this.#generation === this.#memory.generation;
  }

  enable(features: Features, addresses: QueueAddresses): number {
    this.disable();
    const wrong = checkSplitAddresses(addresses, this.maxSize);
    if (wrong !== null) {
      this.#lastError = wrong;
      return -Errno.EINVAL;
    }
    const { size, descIova, availIova, usedIova } = addresses;
    this.#addresses = { size, descIova, availIova, usedIova };
    this.#size = size;
    this.#mask = size - 1;
    this.#eventIdx = features.has(VIRTIO_F.RING_EVENT_IDX);
    this.#indirect = features.has(VIRTIO_F.RING_INDIRECT_DESC);
    this.#inOrder = features.has(VIRTIO_F.IN_ORDER);
    this.#ledger = new ChainLedger(size, this.#inOrder);
    return 0;
  }

  disable(): void {
    this.#addresses = null;
    this.#size = 0;
    this.#mask = 0;
    this.#forgetWindows();
    this.#lastAvail = this.#availIdx = this.#polledIdx = 0;
    this.#usedIdx = 0;
    this.#ledger = NO_CHAINS;
    this.#notificationsOff = false;
    this.#suspended = false;
    this.#lastError = "";
  }

  suspend(): void {
    this.#suspended = true;
    this.#forgetWindows();
  }

  resume(): void {
    this.#suspended = false;
  }

  hold(): void {
    this.#held = true;
  }

  release(): void {
    this.#held = false;
  }

  save(): RingState {
    const at = this.#addresses;
    return {
      format: "split",
      enabled: at !== null,
      size: this.#size,
      descIova: at?.descIova ?? 0,
      availIova: at?.availIova ?? 0,
      usedIova: at?.usedIova ?? 0,
      availIdx: this.#lastAvail,
      usedIdx: this.#usedIdx,
      notificationsOff: this.#notificationsOff,
    };
  }

  load(features: Features, state: RingState): number {
    if (state.format !== "split") {
      this.disable();
      return this.#fail(
        Errno.EINVAL,
        `a ${state.format} queue was saved, this is a split one`,
      );
    }
    if (!state.enabled) {
      this.disable();
      return 0;
    }
    const result = this.enable(features, state);
    if (result < 0) return result;
    const { availIdx, usedIdx } = state;
    if (((availIdx - usedIdx) & INDEX_MASK) > this.#size) {
      this.disable();
      return this.#fail(
        Errno.EINVAL,
        `indices ${availIdx} and ${usedIdx} are further apart than ${state.size} entries`,
      );
    }
    this.#lastAvail = this.#availIdx = this.#polledIdx = availIdx;
    this.#usedIdx = usedIdx;
    this.#notificationsOff = state.notificationsOff;
    return 0;
  }

  hasTaken(next: number): boolean {
    return next === this.#lastAvail && this.#addresses !== null;
  }

  poll(): boolean {
    if (!this.#ready() || this.#held) return false;
    const idx = this.#avail.loadU16(VRING_AVAIL.IDX);
    if (idx === this.#polledIdx) return false;
    this.#polledIdx = idx;
    return true;
  }

  pop(chain: Chain): number {
    if (!this.#ready() || this.#held) return 0;
    const next = this.#lastAvail;
    if (next === this.#availIdx) {
      const result = this.#lookForAvailable();
      if (result <= 0) return result;
    }
    if (this.#ledger.outstanding === this.#size) {
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
    if (this.#ledger.has(head)) {
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
    this.#ledger.pop(head, this.#inOrder ? assumedBytes(chain) : 0);
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
      if (this.#ledger.unpop() < 0) throw this.#notHeld("unpop a chain");
      this.#lastAvail = (this.#lastAvail - 1) & INDEX_MASK;
    }
  }

  /**
   * Returns a chain; see {@linkcode Virtqueue.push}. Ignored while the queue is disabled: the driver has reset it.
   *
   * @throws {Error} When the chain is not with the device: a mistake of the device model
   */
  push(head: number, writtenBytes: number): void {
    if (this.#addresses === null) return;
    if (!this.#ledger.push(head, writtenBytes)) {
      throw this.#notHeld(`push chain ${head}`);
    }
  }

  publish(): boolean {
    if (!this.#ready()) return false;
    const before = this.#usedIdx;
    const after = this.#inOrder ? this.#writeBatches() : this.#writeAll();
    if (before === after) return false;
    this.#used.storeU16(VRING_USED.IDX, after);
    this.#usedIdx = after;
    // The store above comes before these loads for everyone (see the class), so either we see that the driver
    // wants an interrupt, or the driver sees the new index after it asked for one.
    const wanted = this.#eventIdx
      ? needsEvent(
        this.#avail.loadU16(usedEventOffset(this.#size)),
        after,
        before,
      )
      : (this.#avail.loadU16(VRING_AVAIL.FLAGS) &
        VRING_AVAIL_F_NO_INTERRUPT) === 0;
    if (!wanted) this.suppressed++;
    return wanted;
  }

  enableNotifications(): boolean {
    if (!this.#ready()) return false;
    this.#wantsNotification = true;
    // Whoever looks once more would find nothing, for ever.
    if (this.#held) return false;
    if (this.#polled) {
      return this.#avail.loadU16(VRING_AVAIL.IDX) !== this.#lastAvail;
    }
    this.#askForNotification(this.#lastAvail);
    // As in publish: either we see the driver's new index, or the driver sees that we want to be notified.
    const idx = this.#avail.loadU16(VRING_AVAIL.IDX);
    this.#polledIdx = idx;
    return idx !== this.#lastAvail;
  }

  /** @param availIdx From which index on the driver is to notify, where it can be told that (2.7.10) */
  #askForNotification(availIdx: number): void {
    if (this.#eventIdx) {
      this.#used.storeU16(availEventOffset(this.#size), availIdx);
    } else if (this.#notificationsOff) {
      this.#used.storeU16(VRING_USED.FLAGS, 0);
    }
    this.#notificationsOff = false;
  }

  beginPolling(): void {
    this.#polled = true;
  }

  endPolling(): boolean {
    this.#polled = false;
    if (!this.#wantsNotification || !this.#ready()) return false;
    // Not from what was taken last: the driver has passed that where the device leaves chains in the ring.
    this.#askForNotification(this.#polledIdx);
    return this.poll();
  }

  disableNotifications(): void {
    this.#wantsNotification = false;
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

  /** Writes a used entry for every chain that is done; returns the index behind them. */
  #writeAll(): number {
    const ledger = this.#ledger;
    let idx = this.#usedIdx;
    for (let head = ledger.next(); head >= 0; head = ledger.next()) {
      this.#writeUsed(idx & this.#mask, head, ledger.written(head));
      idx = (idx + 1) & INDEX_MASK;
    }
    return idx;
  }

  /**
   * Writes one used entry for a batch: where that of its first chain would be, with what is to be said of its last
   * (2.7.9). A batch ends with a chain of which the driver must be told how much was written.
   */
  #writeBatches(): number {
    const ledger = this.#ledger;
    let first = this.#usedIdx;
    let idx = first;
    let last = -1;
    for (let head = ledger.next(); head >= 0; head = ledger.next()) {
      idx = (idx + 1) & INDEX_MASK;
      last = head;
      if (ledger.canBeSkipped(head)) continue;
      this.#writeUsed(first & this.#mask, head, ledger.written(head));
      first = idx;
      last = -1;
    }
    if (last >= 0) {
      this.#writeUsed(first & this.#mask, last, ledger.written(last));
    }
    return idx;
  }

  #notHeld(action: string): Error {
    return new Error(
      `Cannot ${action} of queue ${this.index}: the device does not hold it`,
    );
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
