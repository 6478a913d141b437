/**
 * The packed virtqueue (virtio 1.3, section 2.8), device side.
 *
 * @module
 */

import { Errno } from "../errno.ts";
import {
  Access,
  type GuestMemory,
  type MemoryWindow,
} from "../memory/guest_memory.ts";
import { MappedWindow } from "../memory/mapped_window.ts";
import { assumedBytes, ChainLedger } from "./chain_ledger.ts";
import {
  VIRTQUEUE_MAX_SIZE,
  VRING_DESC_F,
  VRING_PACKED_DESC,
  VRING_PACKED_EVENT,
  VRING_PACKED_EVENT_F_WRAP_CTR,
  VRING_PACKED_EVENT_FLAG,
} from "./defs.ts";
import { type Features, VIRTIO_F } from "./features.ts";
import {
  availableMark,
  OWNER_MASK,
  PackedChainReader,
  usedMark,
} from "./packed_chain_reader.ts";
import type { Chain } from "./queue.ts";
import type { QueueAddresses, Ring } from "./ring.ts";
import type { RingState } from "./ring_state.ts";
import { checkPackedAddresses } from "./ring_layout.ts";

/** No generation of any memory: the ring must be resolved before it is touched. */
const UNRESOLVED = -1;
const WRAP_BIT = 1 << VRING_PACKED_EVENT_F_WRAP_CTR;
const OFFSET_MASK = WRAP_BIT - 1;
const EVENT_FLAGS_MASK = 3;

/** Stands for a part of the ring that is not resolved; it is never accessed. */
const NO_WINDOW: MemoryWindow = new MappedWindow(new ArrayBuffer(0), 0, 0);

/** What a disabled queue holds. */
const NO_CHAINS = new ChainLedger(0, false);

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
  /** Whether the queue is polled, so that the driver is not asked to notify. */
  #polled: boolean;
  /** Whether the device wants to be notified, once nobody polls. */
  #wantsNotification = true;
  readonly #memory: GuestMemory;
  readonly #reader: PackedChainReader;

  #addresses: QueueAddresses | null = null;
  #suspended = false;
  #held = false;
  #eventIdx = false;
  #indirect = false;
  #inOrder = false;
  #size = 0;

  #generation = UNRESOLVED;
  #desc = NO_WINDOW;
  #driverEvent = NO_WINDOW;
  #deviceEvent = NO_WINDOW;

  /** Which descriptor is looked at for the next chain, and the wrap counter there. */
  #availAt = 0;
  #availWrap = true;
  /** Where the next used descriptor is written, and the wrap counter there. */
  #usedAt = 0;
  #usedWrap = true;
  /** How many descriptors the driver has not got back, from `#usedAt` to `#availAt`. */
  #outstanding = 0;
  /** How many descriptors from `#availAt` on a poll has found available. */
  #seen = 0;
  /** What the flags in the device's event suppression structure are. */
  #eventFlags: number = VRING_PACKED_EVENT_FLAG.ENABLE;
  #ledger = NO_CHAINS;
  /** How many descriptors of the ring a chain has, by buffer id. */
  #descriptors = new Uint16Array(0);

  #lastError = "";

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
    if (
      !Number.isInteger(maxSize) || maxSize < 1 || maxSize > VIRTQUEUE_MAX_SIZE
    ) {
      throw new RangeError(`Cannot make a queue of ${maxSize} entries`);
    }
    this.#memory = memory;
    this.#reader = new PackedChainReader(memory, maxSize);
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
    const wrong = checkPackedAddresses(addresses, this.maxSize);
    if (wrong !== null) {
      this.#lastError = wrong;
      return -Errno.EINVAL;
    }
    const { size, descIova, availIova, usedIova } = addresses;
    this.#addresses = { size, descIova, availIova, usedIova };
    this.#size = size;
    this.#eventIdx = features.has(VIRTIO_F.RING_EVENT_IDX);
    this.#indirect = features.has(VIRTIO_F.RING_INDIRECT_DESC);
    this.#inOrder = features.has(VIRTIO_F.IN_ORDER);
    this.#ledger = new ChainLedger(size, this.#inOrder);
    this.#descriptors = new Uint16Array(size);
    return 0;
  }

  disable(): void {
    this.#addresses = null;
    this.#size = 0;
    this.#forgetWindows();
    this.#availAt = this.#usedAt = 0;
    this.#availWrap = this.#usedWrap = true;
    this.#outstanding = this.#seen = 0;
    this.#eventFlags = VRING_PACKED_EVENT_FLAG.ENABLE;
    this.#ledger = NO_CHAINS;
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
      format: "packed",
      enabled: at !== null,
      size: this.#size,
      descIova: at?.descIova ?? 0,
      availIova: at?.availIova ?? 0,
      usedIova: at?.usedIova ?? 0,
      availAt: this.#availAt,
      availWrap: this.#availWrap,
      usedAt: this.#usedAt,
      usedWrap: this.#usedWrap,
      eventFlags: this.#eventFlags,
    };
  }

  load(features: Features, state: RingState): number {
    if (state.format !== "packed") {
      this.disable();
      return this.#fail(
        Errno.EINVAL,
        `a ${state.format} queue was saved, this is a packed one`,
      );
    }
    if (!state.enabled) {
      this.disable();
      return 0;
    }
    const result = this.enable(features, state);
    if (result < 0) return result;
    const { availAt, usedAt } = state;
    if (availAt >= state.size || usedAt >= state.size) {
      this.disable();
      return this.#fail(
        Errno.EINVAL,
        `descriptors ${availAt} and ${usedAt} do not exist in a queue of ${state.size}`,
      );
    }
    this.#availAt = availAt;
    this.#availWrap = state.availWrap;
    this.#usedAt = usedAt;
    this.#usedWrap = state.usedWrap;
    this.#eventFlags = state.eventFlags;
    return 0;
  }

  hasTaken(next: number): boolean {
    return this.#addresses !== null &&
      next === (this.#availAt | (this.#availWrap ? WRAP_BIT : 0));
  }

  poll(): boolean {
    if (!this.#ready() || this.#held) return false;
    const size = this.#size;
    let found = false;
    let at = this.#availAt + this.#seen;
    let wrap = this.#availWrap;
    if (at >= size) {
      at -= size;
      wrap = !wrap;
    }
    // All descriptors of a chain are marked (2.8.6), so the first that is not is where new ones will appear.
    while (
      this.#outstanding + this.#seen < size && this.#isAvailable(at, wrap)
    ) {
      found = true;
      this.#seen++;
      if (++at === size) {
        at = 0;
        wrap = !wrap;
      }
    }
    return found;
  }

  pop(chain: Chain): number {
    if (!this.#ready() || this.#held) return 0;
    const at = this.#availAt;
    const flags = this.#desc.loadU16(
      at * VRING_PACKED_DESC.SIZE + VRING_PACKED_DESC.FLAGS,
    );
    if ((flags & OWNER_MASK) !== availableMark(this.#availWrap)) return 0;
    const size = this.#size;
    if (this.#outstanding === size) {
      return this.#fail(
        Errno.EINVAL,
        `descriptor ${at} is made available again before it was used (2.8.16)`,
      );
    }
    const count = this.#reader.read(
      this.#desc,
      size,
      size - this.#outstanding,
      this.#indirect,
      at,
      this.#availWrap,
      flags,
      chain,
    );
    if (count < 0) return this.#fail(-count, this.#reader.lastError);
    const id = this.#reader.id;
    if (id >= size || this.#ledger.has(id)) return this.#failId(id);
    chain.head = id;
    this.#ledger.pop(id, this.#inOrder ? assumedBytes(chain) : 0);
    this.#descriptors[id] = count;
    this.#outstanding += count;
    this.#seen = this.#seen > count ? this.#seen - count : 0;
    this.#availAt = at + count;
    if (this.#availAt >= size) {
      this.#availAt -= size;
      this.#availWrap = !this.#availWrap;
    }
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
      const id = this.#ledger.unpop();
      if (id < 0) throw this.#notHeld("unpop a chain");
      const descriptors = this.#descriptors[id]!;
      this.#outstanding -= descriptors;
      this.#seen += descriptors;
      this.#availAt -= descriptors;
      if (this.#availAt < 0) {
        this.#availAt += this.#size;
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
    if (this.#addresses === null) return;
    if (!this.#ledger.push(head, writtenBytes)) {
      throw this.#notHeld(`push chain ${head}`);
    }
  }

  publish(): boolean {
    if (!this.#ready()) return false;
    const ledger = this.#ledger;
    let head = ledger.next();
    if (head < 0) return false;
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
    this.#desc.storeU16(
      first * VRING_PACKED_DESC.SIZE + VRING_PACKED_DESC.FLAGS,
      firstFlags,
    );
    const wanted = this.#wantsInterrupt(first, firstWrap, added);
    if (!wanted) this.suppressed++;
    return wanted;
  }

  enableNotifications(): boolean {
    if (!this.#ready()) return false;
    this.#wantsNotification = true;
    // Whoever looks once more would find nothing, for ever.
    if (this.#held) return false;
    if (!this.#polled) this.#askForNotification(0);
    // As in publish: either we see what the driver made available, or it sees that we want to be notified.
    const more = this.#isAvailable(this.#availAt, this.#availWrap);
    if (more && this.#seen === 0) this.#seen = 1;
    return more;
  }

  beginPolling(): void {
    this.#polled = true;
  }

  endPolling(): boolean {
    this.#polled = false;
    if (!this.#wantsNotification || !this.#ready()) return false;
    // Not from what was taken last: the driver has passed that where the device leaves chains in the ring.
    this.#askForNotification(this.#seen);
    return this.poll();
  }

  disableNotifications(): void {
    this.#wantsNotification = false;
    // With EVENT_IDX the descriptor to be notified of lies behind as soon as it is popped, which says it all.
    if (this.#eventFlags !== VRING_PACKED_EVENT_FLAG.ENABLE || !this.#ready()) {
      return;
    }
    this.#storeEvent(VRING_PACKED_EVENT_FLAG.DISABLE, 0);
  }

  /** @param ahead From which descriptor behind the next one on the driver is to notify, where it can be told that (2.8.10) */
  #askForNotification(ahead: number): void {
    if (this.#eventIdx) {
      let at = this.#availAt + ahead;
      let wrap = this.#availWrap;
      if (at >= this.#size) {
        at -= this.#size;
        wrap = !wrap;
      }
      this.#storeEvent(
        VRING_PACKED_EVENT_FLAG.DESC,
        at | (wrap ? WRAP_BIT : 0),
      );
    } else if (this.#eventFlags !== VRING_PACKED_EVENT_FLAG.ENABLE) {
      this.#storeEvent(VRING_PACKED_EVENT_FLAG.ENABLE, 0);
    }
  }

  #storeEvent(flags: number, offWrap: number): void {
    this.#eventFlags = flags;
    this.#deviceEvent.storeU32(
      0,
      offWrap | (flags << (VRING_PACKED_EVENT.FLAGS * 8)),
    );
  }

  /** Whether the driver wants to know that `added` descriptors from `first` on were used (2.8.10). */
  #wantsInterrupt(first: number, wrap: boolean, added: number): boolean {
    const word = this.#driverEvent.loadU32(0);
    const flags = (word >>> (VRING_PACKED_EVENT.FLAGS * 8)) & EVENT_FLAGS_MASK;
    if (flags === VRING_PACKED_EVENT_FLAG.DISABLE) return false;
    // What must not be there, DESC without EVENT_IDX and 3, costs the driver an interrupt too many.
    if (flags !== VRING_PACKED_EVENT_FLAG.DESC || !this.#eventIdx) return true;
    const sameLap = ((word & WRAP_BIT) !== 0) === wrap;
    const distance = (word & OFFSET_MASK) - first + (sameLap ? 0 : this.#size);
    return distance >= 0 && distance < added;
  }

  #isAvailable(at: number, wrap: boolean): boolean {
    const flags = this.#desc.loadU16(
      at * VRING_PACKED_DESC.SIZE + VRING_PACKED_DESC.FLAGS,
    );
    return (flags & OWNER_MASK) === availableMark(wrap);
  }

  /** Writes a used descriptor, but not the flags of the first; returns those. */
  #writeUsed(at: number, wrap: boolean, id: number, isFirst: boolean): number {
    const written = this.#ledger.written(id);
    const from = at * VRING_PACKED_DESC.SIZE;
    const desc = this.#desc;
    const flags = usedMark(wrap) | (written > 0 ? VRING_DESC_F.WRITE : 0);
    desc.setU32(from + VRING_PACKED_DESC.LEN, written);
    desc.setU16(from + VRING_PACKED_DESC.ID, id);
    if (!isFirst) desc.setU16(from + VRING_PACKED_DESC.FLAGS, flags);
    return flags;
  }

  #advanceUsed(count: number): void {
    this.#usedAt += count;
    if (this.#usedAt < this.#size) return;
    this.#usedAt -= this.#size;
    this.#usedWrap = !this.#usedWrap;
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
      at.size * VRING_PACKED_DESC.SIZE,
      Access.READ | Access.WRITE,
    );
    const length = VRING_PACKED_EVENT.SIZE;
    const driver = memory.window(at.availIova, length, Access.READ);
    const device = memory.window(at.usedIova, length, Access.WRITE);
    if (desc === null || driver === null || device === null) return false;
    this.#desc = desc;
    this.#driverEvent = driver;
    this.#deviceEvent = device;
    this.#generation = memory.generation;
    return true;
  }

  #forgetWindows(): void {
    this.#generation = UNRESOLVED;
    this.#desc = this.#driverEvent = this.#deviceEvent = NO_WINDOW;
  }

  #notHeld(action: string): Error {
    return new Error(
      `Cannot ${action} of queue ${this.index}: the device does not hold it`,
    );
  }

  #failId(id: number): number {
    return this.#fail(
      Errno.EINVAL,
      id >= this.#size
        ? `buffer id ${id} in a queue of ${this.#size} (2.8.22)`
        : `buffer id ${id} is made available again before it was used (2.8.16)`,
    );
  }

  #fail(errno: number, message: string): number {
    this.#lastError = `queue ${this.index}: ${message}`;
    return -errno;
  }
}
