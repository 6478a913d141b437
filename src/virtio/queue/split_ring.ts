/**
 * The split virtqueue (virtio 1.3, section 2.7), device side.
 *
 * @module
 */

import { isPowerOfTwo } from "../../core/bits.ts";
import { Errno } from "../../core/errno.ts";
import {
  Access,
  type GuestMemory,
  type MemoryWindow,
} from "../../memory/guest_memory.ts";
import {
  VRING_ALIGN,
  VRING_AVAIL,
  VRING_AVAIL_F_NO_INTERRUPT,
  VRING_DESC,
  VRING_DESC_F,
  VRING_USED,
  VRING_USED_F_NO_NOTIFY,
} from "../defs.ts";
import {
  ChainBuilder,
  type ChainRules,
  copyAddressAndLength,
  LAST_WORD,
} from "./chain_builder.ts";
import type { ChainLedger } from "./chain_ledger.ts";
import type { Chain } from "./queue.ts";
import { NOWHERE, type Ring, type RingFormat } from "./ring.ts";
import type { QueueAddresses, RingParts } from "./ring_parts.ts";
import type { SplitRingState } from "./ring_state.ts";

const INDEX_MASK = 0xffff;

const RULES: ChainRules = {
  order: "2.7.4.2",
  buffer: "2.7.5",
  length: "2.7.5.2",
  segments: "2.7.4.1",
  table: "2.7.5.3",
};

/**
 * A split ring as the device sees it.
 *
 * With IN_ORDER chains go back in the order in which they were available, whatever the order of {@linkcode Ring.push},
 * and one used entry stands for several where the driver cannot tell (section 2.7.9).
 */
export class SplitRing implements RingFormat {
  readonly name = "split";
  readonly alignment = "2.7.1";
  readonly #ring: Ring;
  readonly #ledger: ChainLedger;
  readonly #builder: ChainBuilder;
  /** Available entry that is taken next. */
  #lastAvail = 0;
  /** Up to where available entries and their descriptors were refreshed, and by way of which window. */
  #availIdx = 0;
  #refreshed: MemoryWindow | null = null;
  /** The driver's `idx` while what it covers is refreshed, and whether the available entries still are to be. */
  #found = NOWHERE;
  #isStale = false;
  /** The driver's `idx` when it was last looked at by anything, polling included. */
  #polledIdx = 0;
  /** The used index as the driver knows it. */
  #usedIdx = 0;
  #notificationsOff = false;
  /** Places of `used_event` in the available ring (2.7.6), and `avail_event` in the used ring (2.7.8). */
  #usedEventAt = 0;
  #availEventAt = 0;

  constructor(memory: GuestMemory, ring: Ring) {
    this.#ring = ring;
    this.#ledger = ring.ledger;
    this.#builder = new ChainBuilder(memory, RULES);
  }

  get here(): number {
    return this.#lastAvail;
  }

  checkSize(size: number, maxSize: number): string | null {
    return isPowerOfTwo(size) && size <= maxSize
      ? null
      : `queue size ${size} is not a power of two up to ${maxSize} (2.7)`;
  }

  parts(
    { size, descIova, availIova, usedIova }: QueueAddresses,
    eventIdx: boolean,
  ): RingParts {
    // Without EVENT_IDX the event words are not accessed (2.7.7.2), and need not be mapped.
    const availEvent = eventIdx ? VRING_AVAIL.EVENT_SIZE : 0;
    const usedEvent = eventIdx ? VRING_USED.EVENT_SIZE : 0;
    return [{
      name: "descriptor table",
      iova: descIova,
      lengthBytes: size * VRING_DESC.SIZE,
      alignment: VRING_ALIGN.DESC,
      access: Access.READ,
    }, {
      name: "available ring",
      iova: availIova,
      lengthBytes: usedEventOffset(size) + availEvent,
      alignment: VRING_ALIGN.AVAIL,
      access: Access.READ,
    }, {
      name: "used ring",
      iova: usedIova,
      lengthBytes: availEventOffset(size) + usedEvent,
      alignment: VRING_ALIGN.USED,
      access: Access.WRITE,
    }];
  }

  reset(size: number): void {
    this.#lastAvail =
      this.#availIdx =
      this.#polledIdx =
      this.#usedIdx =
        0;
    this.#notificationsOff = false;
    this.#refreshed = null;
    this.#found = NOWHERE;
    this.#usedEventAt = usedEventOffset(size);
    this.#availEventAt = availEventOffset(size);
  }

  save(): unknown {
    return {
      availIdx: this.#lastAvail,
      usedIdx: this.#usedIdx,
      notificationsOff: this.#notificationsOff,
    };
  }

  load(state: SplitRingState): string | null {
    const { availIdx, usedIdx, size } = state;
    if (((availIdx - usedIdx) & INDEX_MASK) > size) {
      return `indices ${availIdx} and ${usedIdx} are further apart than ${size} entries`;
    }
    this.#lastAvail = this.#availIdx = this.#polledIdx = availIdx;
    this.#usedIdx = usedIdx;
    this.#notificationsOff = state.notificationsOff;
    return null;
  }

  poll(): boolean {
    const idx = this.#loadIdx();
    if (idx < 0 || idx === this.#polledIdx) return false;
    this.#polledIdx = idx;
    return true;
  }

  look(): number {
    const ring = this.#ring;
    const { desc } = ring;
    if (this.#lastAvail !== this.#availIdx && desc === this.#refreshed) {
      return 1;
    }
    ring.awaitsReach = false;
    if (this.#found < 0 || desc !== this.#refreshed) {
      ring.forgetOrder();
      this.#availIdx = this.#lastAvail;
      this.#refreshed = desc;
      this.#found = this.#loadIdx();
      if (this.#found < 0) return 0;
      this.#polledIdx = this.#found;
      this.#isStale = true;
    }
    const idx = this.#found;
    this.#found = NOWHERE;
    const added = (idx - this.#lastAvail) & INDEX_MASK;
    if (added === 0) return 0;
    if (added > ring.size) {
      return ring.fail(
        Errno.EINVAL,
        `available index moved by ${added}, more than the queue size ${ring.size} (2.7.13.3)`,
      );
    }
    if (!this.#refreshEntries()) {
      this.#found = idx;
      return 0;
    }
    ring.found();
    this.#availIdx = idx;
    return 1;
  }

  take(chain: Chain): number {
    const ring = this.#ring;
    const { size } = ring;
    if (this.#ledger.outstanding === size) {
      return ring.fail(
        Errno.EINVAL,
        `more than ${size} chains are available at once (2.7.13)`,
      );
    }
    const slot = this.#lastAvail & (size - 1);
    const head = ring.driverArea.getU16(
      VRING_AVAIL.RING + slot * VRING_AVAIL.ENTRY_SIZE,
    );
    if (head >= size) {
      return ring.fail(
        Errno.EINVAL,
        `available entry ${slot} names descriptor ${head} of ${size} (2.7.6)`,
      );
    }
    if (this.#ledger.has(head)) {
      return ring.fail(
        Errno.EINVAL,
        `descriptor ${head} is made available again before it was used (2.7.13.1)`,
      );
    }
    const result = this.#readChain(head, chain);
    if (result < 0) {
      return ring.failChain(chain, result, this.#builder.lastError);
    }
    chain.head = head;
    this.#ledger.pop(head, chain);
    this.#lastAvail = (this.#lastAvail + 1) & INDEX_MASK;
    return 1;
  }

  unpop(_head: number): void {
    this.#lastAvail = (this.#lastAvail - 1) & INDEX_MASK;
  }

  publish(): number {
    const before = this.#usedIdx;
    const after = this.#ring.inOrder ? this.#writeBatches() : this.#writeAll();
    if (before === after) return 0;
    this.#ring.deviceArea.storeU16(VRING_USED.IDX, after);
    this.#usedIdx = after;
    return (after - before) & INDEX_MASK;
  }

  refreshEvents(): boolean {
    return this.#ring.refresh(this.#ring.driverArea, this.#eventsAt, 2);
  }

  wantsInterrupt(ago: number, count: number): boolean {
    const ring = this.#ring;
    const word = ring.driverArea.loadU16(this.#eventsAt);
    if (!ring.eventIdx) return (word & VRING_AVAIL_F_NO_INTERRUPT) === 0;
    const before = this.#usedIdx - ago;
    return needsEvent(word, before + count, before);
  }

  get #eventsAt(): number {
    return this.#ring.eventIdx ? this.#usedEventAt : VRING_AVAIL.FLAGS;
  }

  ask(unseen: boolean): void {
    const { eventIdx, deviceArea } = this.#ring;
    if (eventIdx) {
      // From which index on the driver is to notify (2.7.10).
      const at = unseen ? this.#polledIdx : this.#lastAvail;
      deviceArea.storeU16(this.#availEventAt, at);
    } else if (this.#notificationsOff) {
      deviceArea.storeU16(VRING_USED.FLAGS, 0);
    }
    this.#notificationsOff = false;
  }

  spare(): void {
    const ring = this.#ring;
    if (this.#notificationsOff || !ring.ready()) return;
    this.#notificationsOff = true;
    // With EVENT_IDX `flags` stays 0 (2.7.10.2), and an event word that lies behind already says it all.
    if (ring.eventIdx) return;
    ring.deviceArea.storeU16(VRING_USED.FLAGS, VRING_USED_F_NO_NOTIFY);
  }

  more(): number {
    const idx = this.#loadIdx();
    if (idx < 0) return NOWHERE;
    if (!this.#ring.polled) this.#polledIdx = idx;
    return idx === this.#lastAvail ? 0 : 1;
  }

  /** @returns Whether all available entries and descriptors were refreshed since an index was found */
  #refreshEntries(): boolean {
    const ring = this.#ring;
    const { desc, driverArea, size } = ring;
    if (this.#isStale) {
      const ringBytes = size * VRING_AVAIL.ENTRY_SIZE;
      this.#isStale = !ring.refresh(driverArea, VRING_AVAIL.RING, ringBytes);
    }
    return !this.#isStale && ring.refresh(desc, 0, size * VRING_DESC.SIZE);
  }

  /** The driver's index as it is now, or {@linkcode NOWHERE} while it is not in reach. */
  #loadIdx(): number {
    const { driverArea } = this.#ring;
    return this.#ring.refresh(driverArea, VRING_AVAIL.IDX, 2)
      ? driverArea.loadU16(VRING_AVAIL.IDX)
      : NOWHERE;
  }

  /** Writes a used entry for every chain that is done; returns the index behind them. */
  #writeAll(): number {
    const ledger = this.#ledger;
    let idx = this.#usedIdx;
    for (let head = ledger.next(); head >= 0; head = ledger.next()) {
      this.#writeUsed(idx, head);
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
      this.#writeUsed(first, head);
      first = idx;
      last = -1;
    }
    if (last >= 0) this.#writeUsed(first, last);
    return idx;
  }

  #writeUsed(idx: number, head: number): void {
    const { deviceArea, size } = this.#ring;
    const slot = idx & (size - 1);
    const at = VRING_USED.RING + slot * VRING_USED.ENTRY_SIZE;
    deviceArea.setU32(at + VRING_USED.ENTRY_ID, head);
    deviceArea.setU32(at + VRING_USED.ENTRY_LEN, this.#ledger.written(head));
  }

  /** Reads the chain that begins at descriptor `head` (2.7.5); returns 0, −errno or MEMORY_PENDING. */
  #readChain(head: number, chain: Chain): number {
    const builder = this.#builder;
    const { words } = builder;
    const { maxSize } = this.#ring;
    let limit = this.#ring.size;
    builder.begin(chain);
    let inTable = false;
    let index = head;
    let count = 0;
    for (;;) {
      const at = inTable ? builder.readEntry(index) : this.#copy(index);
      if (at < 0) return at;
      // `flags` is in the lower half, `next` in the upper.
      const flags = words[at + LAST_WORD]! & 0xffff;
      if ((flags & VRING_DESC_F.INDIRECT) !== 0) {
        const result = this.#enterTable(flags, inTable);
        if (result < 0) return result;
        inTable = true;
        limit = builder.tableEntries;
        index = 0;
        continue;
      }
      // Every step counts, so a loop ends here too. Within an indirect table a driver is held to the size that
      // the device offers: Linux builds such chains without regard to the size it chose itself.
      if (++count > (inTable ? maxSize : limit)) {
        return builder.fail(
          Errno.ELOOP,
          "a chain is longer than the queue size, or loops (2.7.5.3.1)",
        );
      }
      const write = (flags & VRING_DESC_F.WRITE) !== 0;
      const result = builder.addBuffer(at, write, chain);
      if (result < 0) return result;
      if ((flags & VRING_DESC_F.NEXT) === 0) return builder.end();
      index = words[at + LAST_WORD]! >>> 16;
      if (index >= limit) {
        return builder.fail(
          Errno.EINVAL,
          `next is ${index} in a table of ${limit} descriptors (2.7.5)`,
        );
      }
    }
  }

  #enterTable(flags: number, inTable: boolean): number {
    const wrong = !this.#ring.indirect
      ? "an indirect descriptor without INDIRECT_DESC (2.7.5.3.1)"
      : inTable
      ? "an indirect descriptor inside an indirect table (2.7.5.3.1)"
      : (flags & VRING_DESC_F.NEXT) !== 0
      ? "a descriptor is both INDIRECT and NEXT (2.7.5.3.1)"
      : null;
    return wrong === null
      ? this.#builder.enterTable()
      : this.#builder.fail(Errno.EINVAL, wrong);
  }

  /** Copies a descriptor of the ring; returns where in the builder's words it is. */
  #copy(index: number): number {
    const { desc } = this.#ring;
    const from = index * VRING_DESC.SIZE;
    const { words } = this.#builder;
    copyAddressAndLength(desc, from, words);
    words[LAST_WORD] = desc.getU32(from + VRING_DESC.FLAGS);
    return 0;
  }
}

function usedEventOffset(size: number): number {
  return VRING_AVAIL.RING + size * VRING_AVAIL.ENTRY_SIZE;
}

function availEventOffset(size: number): number {
  return VRING_USED.RING + size * VRING_USED.ENTRY_SIZE;
}

/**
 * True when an event at index `event` lies in what was added from `before` to `after` (all modulo 2^16; section 2.7.7.2).
 */
export function needsEvent(
  event: number,
  after: number,
  before: number,
): boolean {
  return ((after - event - 1) & INDEX_MASK) < ((after - before) & INDEX_MASK);
}
