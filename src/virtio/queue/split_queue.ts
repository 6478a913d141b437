/**
 * The split virtqueue (virtio 1.3, section 2.7), device side.
 *
 * @module
 */

import { Errno } from "../../core/errno.ts";
import type { GuestMemory, MemoryWindow } from "../../memory/guest_memory.ts";
import type { WriteOrder } from "../../pci/posted_writes.ts";
import type { ChainLedger } from "./chain_ledger.ts";
import { ChainReader } from "./chain_reader.ts";
import {
  VRING_AVAIL,
  VRING_AVAIL_F_NO_INTERRUPT,
  VRING_DESC,
  VRING_USED,
  VRING_USED_F_NO_NOTIFY,
} from "../defs.ts";
import type { Features } from "../features.ts";
import type { Chain } from "./queue.ts";
import type { QueueAddresses, Ring } from "./ring.ts";
import { NOWHERE, RingCore } from "./ring_core.ts";
import {
  availEventOffset,
  SPLIT_LAYOUT,
  usedEventOffset,
} from "./ring_layout.ts";
import type { RingState } from "./ring_state.ts";

const INDEX_MASK = 0xffff;

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
  readonly #core: RingCore;
  readonly #ledger: ChainLedger;
  readonly #reader: ChainReader;
  /** Which available entry is taken next. */
  #lastAvail = 0;
  /** Up to where available entries and their descriptors were refreshed, and by way of which window. */
  #availIdx = 0;
  #refreshed: MemoryWindow | null = null;
  /** The driver's `idx` while what it covers is refreshed, and whether the available entries still are to be. */
  #found = NOWHERE;
  #isStale = false;
  /** Whether everything before that is behind register writes that have been carried out. */
  #settled = true;
  /** The driver's `idx` when it was last looked at by anything, polling included. */
  #polledIdx = 0;
  /** The used index as the driver knows it, … */
  #usedIdx = 0;
  /** … up to where it is decided whether it gets an interrupt, and up to where that is being looked at. */
  #decidedIdx = 0;
  #askedIdx = 0;
  #notificationsOff = false;

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
    this.#core = new RingCore(memory, SPLIT_LAYOUT, index, maxSize, polled);
    this.#ledger = this.#core.ledger;
    this.#reader = new ChainReader(memory, maxSize);
    this.index = index;
    this.maxSize = maxSize;
  }

  get size(): number {
    return this.#core.size;
  }

  get enabled(): boolean {
    return this.#core.enabled;
  }

  get lastError(): string {
    return this.#core.lastError;
  }

  get inFlight(): number {
    return this.#ledger.held;
  }

  get outstanding(): number {
    return this.#ledger.outstanding;
  }

  get resolved(): boolean {
    return this.#core.resolved;
  }

  get undecided(): boolean {
    return this.#core.undecided;
  }

  get awaitsReach(): boolean {
    return this.#core.awaitsReach;
  }

  missing(): string | null {
    return this.#core.missing();
  }

  enable(features: Features, addresses: QueueAddresses): number {
    this.disable();
    return this.#core.enable(features, addresses);
  }

  disable(): void {
    this.#core.disable();
    this.#lastAvail = this.#availIdx = this.#polledIdx = 0;
    this.#usedIdx = this.#decidedIdx = 0;
    this.#notificationsOff = false;
    this.#refreshed = null;
    this.#found = NOWHERE;
  }

  suspend(): void {
    this.#core.suspend();
  }

  resume(): void {
    this.#core.resume();
  }

  hold(): void {
    this.#core.hold();
  }

  release(): void {
    this.#core.release();
  }

  keepOrder(order: WriteOrder | null, everyChain: boolean): void {
    this.#core.keepOrder(order, everyChain);
  }

  save(): RingState {
    return {
      format: "split",
      ...this.#core.save(),
      availIdx: this.#lastAvail,
      usedIdx: this.#usedIdx,
      notificationsOff: this.#notificationsOff,
    };
  }

  load(features: Features, state: RingState): number {
    this.disable();
    if (state.format !== "split") return this.#core.failFormat(state.format);
    if (!state.enabled) return 0;
    const result = this.enable(features, state);
    if (result < 0) return result;
    const { availIdx, usedIdx, size } = state;
    if (((availIdx - usedIdx) & INDEX_MASK) > size) {
      this.disable();
      return this.#core.fail(
        Errno.EINVAL,
        `indices ${availIdx} and ${usedIdx} are further apart than ${size} entries`,
      );
    }
    this.#lastAvail = this.#availIdx = this.#polledIdx = availIdx;
    this.#usedIdx = this.#decidedIdx = usedIdx;
    this.#notificationsOff = state.notificationsOff;
    return 0;
  }

  hasTaken(next: number): boolean {
    return next === this.#lastAvail && this.#core.enabled;
  }

  poll(): boolean {
    if (!this.#core.readyToTake()) return false;
    const idx = this.#loadIdx();
    if (idx < 0 || idx === this.#polledIdx) return false;
    this.#polledIdx = idx;
    return true;
  }

  pop(chain: Chain): number {
    const core = this.#core;
    if (!core.readyToTake()) return 0;
    const next = this.#lastAvail;
    if (next === this.#availIdx || core.desc !== this.#refreshed) {
      const result = this.#lookForAvailable();
      if (result <= 0) return result;
    }
    if (core.everyChain && !this.settled()) return 0;
    if (this.#ledger.outstanding === core.size) {
      return core.fail(
        Errno.EINVAL,
        `more than ${core.size} chains are available at once (2.7.13)`,
      );
    }
    const slot = next & (core.size - 1);
    const head = core.driverArea.getU16(
      VRING_AVAIL.RING + slot * VRING_AVAIL.ENTRY_SIZE,
    );
    if (head >= core.size) {
      return core.fail(
        Errno.EINVAL,
        `available entry ${slot} names descriptor ${head} of ${core.size} (2.7.6)`,
      );
    }
    if (this.#ledger.has(head)) {
      return core.fail(
        Errno.EINVAL,
        `descriptor ${head} is made available again before it was used (2.7.13.1)`,
      );
    }
    const { desc, size, indirect } = core;
    const result = this.#reader.read(desc, size, indirect, head, chain);
    if (result < 0) {
      return core.failChain(chain, result, this.#reader.lastError);
    }
    chain.head = head;
    this.#ledger.pop(head, chain);
    this.#lastAvail = (next + 1) & INDEX_MASK;
    return 1;
  }

  settled(): boolean {
    // What has come since does not keep waiting what was found before: the index is not looked at until all is taken.
    return this.#settled ||= this.#core.admit();
  }

  /**
   * Gives the last `count` chains that were popped back; none popped since the first of them may have been pushed.
   *
   * @throws {Error} When they were: a mistake of the device model
   */
  unpop(count: number): void {
    if (!this.#core.enabled) return;
    for (let i = 0; i < count; i++) {
      this.#core.unpop();
      this.#lastAvail = (this.#lastAvail - 1) & INDEX_MASK;
    }
  }

  /**
   * Returns a chain; see {@linkcode Virtqueue.push}. Ignored while the queue is disabled: the driver has reset it.
   *
   * @throws {Error} When the chain is not with the device: a mistake of the device model
   */
  push(head: number, writtenBytes: number): void {
    this.#core.push(head, writtenBytes);
  }

  publish(): boolean {
    const core = this.#core;
    if (!core.ready()) return false;
    const before = this.#usedIdx;
    const after = core.inOrder ? this.#writeBatches() : this.#writeAll();
    if (before !== after) {
      core.deviceArea.storeU16(VRING_USED.IDX, after);
      this.#usedIdx = after;
    } else if (!core.undecided) return false;
    // The store above comes before these loads for everyone (see the class), so either we see that the driver
    // wants an interrupt, or the driver sees the new index after it asked for one.
    const wanted = this.#decide();
    if (!wanted && !core.undecided) this.suppressed++;
    return wanted;
  }

  /** Whether the driver wants to know of what it was not told of, as far as that can be said. */
  #decide(): boolean {
    const core = this.#core;
    const { driverArea, eventIdx, size } = core;
    const at = eventIdx ? usedEventOffset(size) : VRING_AVAIL.FLAGS;
    let wanted = false;
    while (this.#decidedIdx !== this.#usedIdx) {
      // What comes into reach is as old as the question.
      const idx = core.undecided ? this.#askedIdx : this.#usedIdx;
      core.undecided = !core.refresh(driverArea, at, 2);
      if (core.undecided) {
        this.#askedIdx = idx;
        break;
      }
      const word = driverArea.loadU16(at);
      wanted ||= eventIdx
        ? needsEvent(word, idx, this.#decidedIdx)
        : (word & VRING_AVAIL_F_NO_INTERRUPT) === 0;
      this.#decidedIdx = idx;
    }
    return wanted;
  }

  enableNotifications(): boolean {
    const core = this.#core;
    if (!core.beginNotifications(this.#lastAvail)) return false;
    if (!core.polled) this.#askForNotification(this.#lastAvail);
    // As in publish: either we see the driver's new index, or the driver sees that we want to be notified.
    const idx = this.#loadIdx();
    core.askedAt = idx < 0 ? this.#lastAvail : NOWHERE;
    if (idx < 0) return false;
    if (!core.polled) this.#polledIdx = idx;
    return idx !== this.#lastAvail;
  }

  /** @param availIdx From which index on the driver is to notify, where it can be told that (2.7.10) */
  #askForNotification(availIdx: number): void {
    const core = this.#core;
    if (core.eventIdx) {
      core.deviceArea.storeU16(availEventOffset(core.size), availIdx);
    } else if (this.#notificationsOff) {
      core.deviceArea.storeU16(VRING_USED.FLAGS, 0);
    }
    this.#notificationsOff = false;
  }

  beginPolling(): void {
    this.#core.beginPolling();
  }

  endPolling(): boolean {
    if (!this.#core.endPolling()) return false;
    // Not from what was taken last: the driver has passed that where the device leaves chains in the ring.
    this.#askForNotification(this.#polledIdx);
    return this.poll();
  }

  disableNotifications(): void {
    const core = this.#core;
    core.endNotifications();
    if (this.#notificationsOff || core.askedAt === this.#lastAvail) return;
    if (!core.ready()) return;
    this.#notificationsOff = true;
    // With EVENT_IDX `flags` stays 0 (2.7.10.2), and an event word that lies behind already says it all.
    if (core.eventIdx) return;
    core.deviceArea.storeU16(VRING_USED.FLAGS, VRING_USED_F_NO_NOTIFY);
  }

  /** Reads the driver's index: 1 when it has moved, 0 when not, −EINVAL when it moved too far. */
  #lookForAvailable(): number {
    const core = this.#core;
    core.awaitsReach = false;
    if (this.#found < 0 || core.desc !== this.#refreshed) {
      // A chain that had to wait may have turned out not to depend on any register.
      core.forgetOrder();
      this.#availIdx = this.#lastAvail;
      this.#refreshed = core.desc;
      this.#found = this.#loadIdx();
      if (this.#found < 0) return 0;
      this.#polledIdx = this.#found;
      this.#isStale = true;
    }
    const idx = this.#found;
    this.#found = NOWHERE;
    const added = (idx - this.#lastAvail) & INDEX_MASK;
    if (added === 0) return 0;
    if (added > core.size) {
      return core.fail(
        Errno.EINVAL,
        `available index moved by ${added}, more than the queue size ${core.size} (2.7.13.3)`,
      );
    }
    if (!this.#refreshEntries()) {
      this.#found = idx;
      return 0;
    }
    core.askedAt = NOWHERE;
    this.#availIdx = idx;
    this.#settled = false;
    return 1;
  }

  /** @returns Whether all available entries and descriptors were refreshed since an index was found */
  #refreshEntries(): boolean {
    const core = this.#core;
    const { desc, driverArea, size } = core;
    if (this.#isStale) {
      const ringBytes = size * VRING_AVAIL.ENTRY_SIZE;
      this.#isStale = !core.refresh(driverArea, VRING_AVAIL.RING, ringBytes);
    }
    return !this.#isStale && core.refresh(desc, 0, size * VRING_DESC.SIZE);
  }

  /** The driver's index as it is now, or {@linkcode NOWHERE} while it is not in reach. */
  #loadIdx(): number {
    const { driverArea } = this.#core;
    return this.#core.refresh(driverArea, VRING_AVAIL.IDX, 2)
      ? driverArea.loadU16(VRING_AVAIL.IDX)
      : NOWHERE;
  }

  /** Writes a used entry for every chain that is done; returns the index behind them. */
  #writeAll(): number {
    const ledger = this.#ledger;
    const { deviceArea, size } = this.#core;
    let idx = this.#usedIdx;
    for (let head = ledger.next(); head >= 0; head = ledger.next()) {
      writeUsed(deviceArea, idx & (size - 1), head, ledger.written(head));
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
    const { deviceArea, size } = this.#core;
    let first = this.#usedIdx;
    let idx = first;
    let last = -1;
    for (let head = ledger.next(); head >= 0; head = ledger.next()) {
      idx = (idx + 1) & INDEX_MASK;
      last = head;
      if (ledger.canBeSkipped(head)) continue;
      writeUsed(deviceArea, first & (size - 1), head, ledger.written(head));
      first = idx;
      last = -1;
    }
    if (last >= 0) {
      writeUsed(deviceArea, first & (size - 1), last, ledger.written(last));
    }
    return idx;
  }
}

/** Writes the used entry of a slot. */
function writeUsed(
  used: MemoryWindow,
  slot: number,
  head: number,
  writtenBytes: number,
): void {
  const at = VRING_USED.RING + slot * VRING_USED.ENTRY_SIZE;
  used.setU32(at + VRING_USED.ENTRY_ID, head);
  used.setU32(at + VRING_USED.ENTRY_LEN, writtenBytes);
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
