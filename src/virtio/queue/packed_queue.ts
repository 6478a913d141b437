/**
 * The packed virtqueue (virtio 1.3, section 2.8), device side.
 *
 * @module
 */

import { Errno } from "../../core/errno.ts";
import type { GuestMemory, MemoryWindow } from "../../memory/guest_memory.ts";
import type { WriteOrder } from "../../pci/posted_writes.ts";
import type { ChainLedger } from "./chain_ledger.ts";
import {
  VRING_DESC_F,
  VRING_PACKED_DESC,
  VRING_PACKED_EVENT,
} from "../defs.ts";
import type { Features } from "../features.ts";
import {
  availableMark,
  OWNER_MASK,
  PackedChainReader,
  usedMark,
} from "./packed_chain_reader.ts";
import { offWrap, PackedEvents } from "./packed_events.ts";
import type { Chain } from "./queue.ts";
import type { QueueAddresses, Ring } from "./ring.ts";
import { NOWHERE, RingCore } from "./ring_core.ts";
import { PACKED_LAYOUT } from "./ring_layout.ts";
import type { RingState } from "./ring_state.ts";

/**
 * A packed virtqueue as the device sees it. Chains are known by their buffer ids, which are below the queue size.
 *
 * The transport enables, disables, suspends and resumes ({@linkcode Ring}); the device model does everything else.
 * With IN_ORDER chains go back in the order in which they were available, whatever the order of
 * {@linkcode PackedQueue.push}, and one used descriptor stands for several where the driver cannot tell (2.8.8).
 *
 * Memory ordering: the flags that make a descriptor available or used and the event suppression structures are
 * accessed by Atomics, which are sequentially consistent. Thus the flags of a chain's first descriptor are loaded
 * before the rest of it, and those of a batch's first used descriptor, by which the driver finds the others, are
 * stored after all of the batch. The same order is the full barrier between showing something and looking whether the
 * other side wants a notification (2.8.21.3.1 and its mirror image for the device). Either structure is one 32-bit
 * access, so neither side sees half of one.
 */
export class PackedQueue implements Ring {
  readonly index: number;
  readonly maxSize: number;
  suppressed = 0;
  readonly #core: RingCore;
  readonly #ledger: ChainLedger;
  readonly #events: PackedEvents;
  readonly #reader: PackedChainReader;
  /** Which descriptor is looked at for the next chain, and the wrap counter there. */
  #availAt = 0;
  #availWrap = true;
  /** Where the next used descriptor is written, and the wrap counter there. */
  #usedAt = 0;
  #usedWrap = true;
  /** For how many used descriptors it is not decided whether the driver gets an interrupt, and for how many that is looked at. */
  #untold = 0;
  #asked = 0;
  /** How many descriptors the driver has not got back, from `#usedAt` to `#availAt`. */
  #outstanding = 0;
  /** How many descriptors from `#availAt` on were found available, … */
  #seen = 0;
  /** … how many of them were refreshed since, and where. */
  #fresh = 0;
  #refreshed: MemoryWindow | null = null;
  /** Whether what was seen is being refreshed. */
  #isScanned = false;
  /** How many descriptors of the ring a chain has, by buffer id. */
  #descriptors = new Uint16Array(0);

  /**
   * @param index Number of the queue in its device
   * @param maxSize The largest size, up to 32768
   * @param polled Whether {@linkcode poll} is called all the time
   */
  constructor(
    memory: GuestMemory,
    index: number,
    maxSize: number,
    polled = false,
  ) {
    this.#core = new RingCore(memory, PACKED_LAYOUT, index, maxSize, polled);
    this.#events = new PackedEvents(this.#core);
    this.#ledger = this.#core.ledger;
    this.#reader = new PackedChainReader(memory, maxSize);
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
    const result = this.#core.enable(features, addresses);
    if (result < 0) return result;
    this.#descriptors = new Uint16Array(addresses.size);
    return 0;
  }

  disable(): void {
    this.#core.disable();
    this.#availAt = this.#usedAt = 0;
    this.#availWrap = this.#usedWrap = true;
    this.#outstanding =
      this.#seen =
      this.#fresh =
      this.#untold =
        0;
    this.#refreshed = null;
    this.#isScanned = false;
    this.#events.reset();
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
      format: "packed",
      ...this.#core.save(),
      availAt: this.#availAt,
      availWrap: this.#availWrap,
      usedAt: this.#usedAt,
      usedWrap: this.#usedWrap,
      eventFlags: this.#events.flags,
    };
  }

  load(features: Features, state: RingState): number {
    this.disable();
    if (state.format !== "packed") return this.#core.failFormat(state.format);
    if (!state.enabled) return 0;
    const result = this.enable(features, state);
    if (result < 0) return result;
    const { availAt, usedAt, size } = state;
    if (availAt >= size || usedAt >= size) {
      this.disable();
      return this.#core.fail(
        Errno.EINVAL,
        `descriptors ${availAt} and ${usedAt} do not exist in a queue of ${size}`,
      );
    }
    this.#availAt = availAt;
    this.#availWrap = state.availWrap;
    this.#usedAt = usedAt;
    this.#usedWrap = state.usedWrap;
    this.#events.reset(state.eventFlags);
    return 0;
  }

  hasTaken(next: number): boolean {
    return this.#core.enabled &&
      next === offWrap(this.#availAt, this.#availWrap);
  }

  poll(): boolean {
    const core = this.#core;
    if (!core.readyToTake() || !this.#refresh()) return false;
    const before = this.#seen;
    this.#scan(core.size - this.#outstanding);
    return this.#seen > before;
  }

  pop(chain: Chain): number {
    const core = this.#core;
    if (!core.readyToTake()) return 0;
    const { desc, size } = core;
    const ledger = this.#ledger;
    const at = this.#availAt;
    if (
      (this.#fresh === 0 || desc !== this.#refreshed) &&
      !this.#lookForAvailable()
    ) return 0;
    if (core.everyChain && !core.admit()) return 0;
    if (this.#outstanding === size) {
      return core.fail(
        Errno.EINVAL,
        `descriptor ${at} is made available again before it was used (2.8.16)`,
      );
    }
    const count = this.#reader.read(
      desc,
      size,
      size - this.#outstanding,
      core.indirect,
      at,
      this.#availWrap,
      chain,
    );
    const { id } = this.#reader;
    if (count < 0) {
      return core.failChain(chain, count, this.#reader.lastError);
    }
    if (id >= size || ledger.has(id)) {
      core.abandon(chain);
      return this.#failId(id);
    }
    chain.head = id;
    ledger.pop(id, chain);
    this.#descriptors[id] = count;
    this.#outstanding += count;
    this.#seen = this.#seen > count ? this.#seen - count : 0;
    this.#fresh = this.#fresh > count ? this.#fresh - count : 0;
    this.#availAt = at + count;
    if (this.#availAt >= size) {
      this.#availAt -= size;
      this.#availWrap = !this.#availWrap;
    }
    return 1;
  }

  settled(): boolean {
    return this.#core.admit();
  }

  /**
   * Gives the last `count` chains that were popped back; none popped since the first of them may have been pushed.
   *
   * @throws {Error} When they were: a mistake of the device model
   */
  unpop(count: number): void {
    if (!this.#core.enabled) return;
    for (let i = 0; i < count; i++) {
      const descriptors = this.#descriptors[this.#core.unpop()]!;
      this.#outstanding -= descriptors;
      this.#seen += descriptors;
      this.#fresh += descriptors;
      this.#availAt -= descriptors;
      if (this.#availAt < 0) {
        this.#availAt += this.#core.size;
        this.#availWrap = !this.#availWrap;
      }
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
    if (!this.#core.ready()) return false;
    const ledger = this.#ledger;
    let head = ledger.next();
    if (head < 0) return this.#core.undecided && this.#decide();
    const first = this.#usedAt;
    const firstWrap = this.#usedWrap;
    let firstFlags = -1;
    // Where the used descriptor of the batch goes, and whether it still has to be written.
    let at = first;
    let wrap = firstWrap;
    let added = 0;
    let last = -1;
    for (; head >= 0; head = ledger.next()) {
      const count = this.#descriptors[head]!;
      added += count;
      this.#advanceUsed(count);
      last = head;
      if (ledger.canBeSkipped(head)) continue;
      const flags = this.#writeUsed(at, wrap, head, firstFlags < 0);
      if (firstFlags < 0) firstFlags = flags;
      at = this.#usedAt;
      wrap = this.#usedWrap;
      last = -1;
    }
    if (last >= 0) {
      const flags = this.#writeUsed(at, wrap, last, firstFlags < 0);
      if (firstFlags < 0) firstFlags = flags;
    }
    this.#outstanding -= added;
    // The driver looks here next: this shows it everything above (2.8.2).
    this.#core.desc.storeU16(
      first * VRING_PACKED_DESC.SIZE + VRING_PACKED_DESC.FLAGS,
      firstFlags,
    );
    this.#untold = Math.min(this.#untold + added, this.#core.size);
    const wanted = this.#decide();
    if (!wanted && !this.#core.undecided) this.suppressed++;
    return wanted;
  }

  /** Whether the driver wants to know of what it was not told of, as far as that can be said. */
  #decide(): boolean {
    const core = this.#core;
    let wanted = false;
    while (this.#untold > 0) {
      // What comes into reach is as old as the question.
      const count = core.undecided ? this.#asked : this.#untold;
      core.undecided = !core.refresh(
        core.driverArea,
        0,
        VRING_PACKED_EVENT.SIZE,
      );
      if (core.undecided) {
        this.#asked = count;
        break;
      }
      const at = this.#usedAt - this.#untold;
      wanted ||= at >= 0
        ? this.#events.wantsInterrupt(at, this.#usedWrap, count)
        : this.#events.wantsInterrupt(at + core.size, !this.#usedWrap, count);
      this.#untold -= count;
    }
    return wanted;
  }

  enableNotifications(): boolean {
    const core = this.#core;
    const here = offWrap(this.#availAt, this.#availWrap);
    if (!core.beginNotifications(here)) return false;
    if (!core.polled) this.#events.ask(this.#availAt, this.#availWrap);
    // As in publish: either we see what the driver made available, or it sees that we want to be notified.
    const isThere = this.#refresh();
    core.askedAt = isThere ? NOWHERE : here;
    if (!isThere) return false;
    const more = this.#isAvailable(this.#availAt, this.#availWrap);
    if (more && this.#seen === 0) this.#seen = 1;
    return more;
  }

  beginPolling(): void {
    this.#core.beginPolling();
  }

  endPolling(): boolean {
    if (!this.#core.endPolling()) return false;
    // Not from what was taken last: the driver has passed that where the device leaves chains in the ring.
    this.#events.ask(this.#availAt + this.#seen, this.#availWrap);
    return this.poll();
  }

  disableNotifications(): void {
    this.#core.endNotifications();
    if (this.#core.askedAt === offWrap(this.#availAt, this.#availWrap)) return;
    this.#events.spare();
  }

  /** Whether there are chains to be taken, which then are as the driver has made them. */
  #lookForAvailable(): boolean {
    const core = this.#core;
    core.awaitsReach = false;
    if (!this.#isScanned) {
      if (!this.#refresh()) return false;
      const room = core.size - this.#outstanding;
      this.#scan(room > 0 ? room : 1);
      if (this.#seen === 0) {
        // A chain that had to wait may have turned out not to depend on any register.
        core.forgetOrder();
        return false;
      }
    }
    // Whoever sees that a descriptor is available may not have seen all of it yet.
    this.#isScanned = !this.#refresh();
    if (this.#isScanned) return false;
    core.askedAt = NOWHERE;
    this.#fresh = this.#seen;
    this.#refreshed = core.desc;
    return true;
  }

  #refresh(): boolean {
    const { desc, size } = this.#core;
    return this.#core.refresh(desc, 0, size * VRING_PACKED_DESC.SIZE);
  }

  /** Counts the descriptors that are available, up to a limit, behind those that were seen. */
  #scan(limit: number): void {
    const size = this.#core.size;
    let at = this.#availAt + this.#seen;
    let wrap = this.#availWrap;
    if (at >= size) {
      at -= size;
      wrap = !wrap;
    }
    // All descriptors of a chain are marked (2.8.6), so the first that is not is where new ones will appear.
    while (this.#seen < limit && this.#isAvailable(at, wrap)) {
      this.#seen++;
      if (++at === size) {
        at = 0;
        wrap = !wrap;
      }
    }
  }

  #isAvailable(at: number, wrap: boolean): boolean {
    const flags = this.#core.desc.loadU16(
      at * VRING_PACKED_DESC.SIZE + VRING_PACKED_DESC.FLAGS,
    );
    return (flags & OWNER_MASK) === availableMark(wrap);
  }

  /** Writes a used descriptor, but not the flags of the first; returns those. */
  #writeUsed(at: number, wrap: boolean, id: number, isFirst: boolean): number {
    const { desc } = this.#core;
    const ledger = this.#ledger;
    const written = ledger.written(id);
    const from = at * VRING_PACKED_DESC.SIZE;
    const flags = usedMark(wrap) | (written > 0 ? VRING_DESC_F.WRITE : 0);
    desc.setU32(from + VRING_PACKED_DESC.LEN, written);
    desc.setU16(from + VRING_PACKED_DESC.ID, id);
    if (!isFirst) desc.setU16(from + VRING_PACKED_DESC.FLAGS, flags);
    return flags;
  }

  #advanceUsed(count: number): void {
    this.#usedAt += count;
    if (this.#usedAt < this.#core.size) return;
    this.#usedAt -= this.#core.size;
    this.#usedWrap = !this.#usedWrap;
  }

  #failId(id: number): number {
    return this.#core.fail(
      Errno.EINVAL,
      id >= this.#core.size
        ? `buffer id ${id} in a queue of ${this.#core.size} (2.8.22)`
        : `buffer id ${id} is made available again before it was used (2.8.16)`,
    );
  }
}
