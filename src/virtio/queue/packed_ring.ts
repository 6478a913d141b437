/**
 * The packed virtqueue (virtio 1.3, section 2.8), device side.
 *
 * @module
 */

import { Errno } from "../../core/errno.ts";
import {
  Access,
  type GuestMemory,
  MEMORY_PENDING,
  type MemoryWindow,
} from "../../memory/guest_memory.ts";
import {
  VRING_DESC_F,
  VRING_PACKED_ALIGN,
  VRING_PACKED_DESC,
  VRING_PACKED_DESC_F_AVAIL,
  VRING_PACKED_DESC_F_USED,
  VRING_PACKED_EVENT,
} from "../defs.ts";
import {
  ChainBuilder,
  type ChainRules,
  copyAddressAndLength,
  LAST_WORD,
} from "./chain_builder.ts";
import { offWrap, PackedEvents } from "./packed_events.ts";
import type { Chain } from "./queue.ts";
import { NOWHERE, type Ring, type RingFormat } from "./ring.ts";
import type { QueueAddresses, RingParts } from "./ring_parts.ts";
import type { PackedRingState } from "./ring_state.ts";

const RULES: ChainRules = {
  order: "2.8.17",
  buffer: "2.8.4",
  length: "2.8.4",
  segments: "2.8.18",
  table: "2.8.7",
};

const AVAIL = 1 << VRING_PACKED_DESC_F_AVAIL;
const USED = 1 << VRING_PACKED_DESC_F_USED;
/** The two flags that tell whose a descriptor is. */
const OWNER_MASK = AVAIL | USED;

/** {@linkcode OWNER_MASK} of a descriptor that is available while the wrap counter is as given (section 2.8.1). */
function availableMark(wrap: boolean): number {
  return wrap ? AVAIL : USED;
}

/** {@linkcode OWNER_MASK} of a descriptor that is used while the wrap counter is as given (section 2.8.1). */
function usedMark(wrap: boolean): number {
  return wrap ? OWNER_MASK : 0;
}

/**
 * A packed ring as the device sees it. Chains are known by their buffer ids, which are below the queue size.
 *
 * With IN_ORDER chains go back in the order in which they were available, whatever the order of {@linkcode Ring.push},
 * and one used descriptor stands for several where the driver cannot tell (2.8.8). The flags of a batch's first used
 * descriptor, by which the driver finds the others, are stored after all of the batch.
 */
export class PackedRing implements RingFormat {
  readonly name = "packed";
  readonly alignment = "2.8.11";
  readonly #ring: Ring;
  readonly #events: PackedEvents;
  readonly #builder: ChainBuilder;
  /** Descriptor that is looked at for the next chain, and the wrap counter there. */
  #availAt = 0;
  #availWrap = true;
  /** Place of the next used descriptor, and the wrap counter there. */
  #usedAt = 0;
  #usedWrap = true;
  /** Number of descriptors that the driver has not got back, from `#usedAt` to `#availAt`. */
  #outstanding = 0;
  /** Number of descriptors from `#availAt` on that were found available, … */
  #seen = 0;
  /** … how many of them were refreshed since, and where. */
  #fresh = 0;
  #refreshed: MemoryWindow | null = null;
  /** True while what was seen is being refreshed. */
  #isScanned = false;
  /** Number of descriptors of the ring that a chain has, by buffer id. */
  #descriptors = new Uint16Array(0);
  /** The buffer id of the descriptor that was copied last. */
  #id = 0;

  constructor(memory: GuestMemory, ring: Ring) {
    this.#ring = ring;
    this.#events = new PackedEvents(ring);
    this.#builder = new ChainBuilder(memory, RULES);
  }

  get here(): number {
    return offWrap(this.#availAt, this.#availWrap);
  }

  checkSize(size: number, maxSize: number): string | null {
    return Number.isInteger(size) && size >= 1 && size <= maxSize
      ? null
      : `queue size ${size} is not from 1 to ${maxSize} (2.8.10.1)`;
  }

  parts({ size, descIova, availIova, usedIova }: QueueAddresses): RingParts {
    const event = {
      lengthBytes: VRING_PACKED_EVENT.SIZE,
      alignment: VRING_PACKED_ALIGN.EVENT,
    };
    return [{
      name: "descriptor ring",
      iova: descIova,
      lengthBytes: size * VRING_PACKED_DESC.SIZE,
      alignment: VRING_PACKED_ALIGN.DESC,
      access: Access.READ | Access.WRITE,
    }, {
      ...event,
      name: "driver event suppression",
      iova: availIova,
      access: Access.READ,
    }, {
      ...event,
      name: "device event suppression",
      iova: usedIova,
      access: Access.WRITE,
    }];
  }

  reset(size: number): void {
    this.#availAt = this.#usedAt = 0;
    this.#availWrap = this.#usedWrap = true;
    this.#outstanding = this.#seen = this.#fresh = 0;
    this.#refreshed = null;
    this.#isScanned = false;
    this.#descriptors = new Uint16Array(size);
    this.#events.reset();
  }

  save(): unknown {
    return {
      availAt: this.#availAt,
      availWrap: this.#availWrap,
      usedAt: this.#usedAt,
      usedWrap: this.#usedWrap,
      eventFlags: this.#events.flags,
    };
  }

  load(state: PackedRingState): string | null {
    const { availAt, usedAt, size } = state;
    if (availAt >= size || usedAt >= size) {
      return `descriptors ${availAt} and ${usedAt} do not exist in a queue of ${size}`;
    }
    this.#availAt = availAt;
    this.#availWrap = state.availWrap;
    this.#usedAt = usedAt;
    this.#usedWrap = state.usedWrap;
    this.#events.reset(state.eventFlags);
    return null;
  }

  poll(): boolean {
    if (!this.#refresh()) return false;
    const before = this.#seen;
    this.#scan(this.#ring.size - this.#outstanding);
    return this.#seen > before;
  }

  look(): number {
    const ring = this.#ring;
    if (this.#fresh > 0 && ring.desc === this.#refreshed) return 1;
    ring.awaitsReach = false;
    if (!this.#isScanned) {
      ring.forgetOrder();
      if (!this.#refresh()) return 0;
      const room = ring.size - this.#outstanding;
      this.#scan(room > 0 ? room : 1);
      if (this.#seen === 0) return 0;
    }
    // Whoever sees that a descriptor is available may not have seen all of it yet.
    this.#isScanned = !this.#refresh();
    if (this.#isScanned) return 0;
    ring.found();
    this.#fresh = this.#seen;
    this.#refreshed = ring.desc;
    return 1;
  }

  take(chain: Chain): number {
    const ring = this.#ring;
    const { size, ledger } = ring;
    const at = this.#availAt;
    if (this.#outstanding === size) {
      return ring.fail(
        Errno.EINVAL,
        `descriptor ${at} is made available again before it was used (2.8.16)`,
      );
    }
    const count = this.#readChain(chain);
    if (count < 0) {
      return ring.failChain(chain, count, this.#builder.lastError);
    }
    const id = this.#id;
    if (id >= size || ledger.has(id)) {
      ring.abandon(chain);
      return ring.fail(
        Errno.EINVAL,
        id >= size
          ? `buffer id ${id} in a queue of ${size} (2.8.22)`
          : `buffer id ${id} is made available again before it was used (2.8.16)`,
      );
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

  unpop(head: number): void {
    const descriptors = this.#descriptors[head]!;
    this.#outstanding -= descriptors;
    this.#seen += descriptors;
    this.#fresh += descriptors;
    this.#availAt -= descriptors;
    if (this.#availAt >= 0) return;
    this.#availAt += this.#ring.size;
    this.#availWrap = !this.#availWrap;
  }

  publish(): number {
    const { ledger, desc } = this.#ring;
    const first = this.#usedAt;
    let firstFlags = -1;
    // Where the used descriptor of the batch goes, and whether it still has to be written.
    let at = first;
    let wrap = this.#usedWrap;
    let added = 0;
    let last = -1;
    for (let head = ledger.next(); head >= 0; head = ledger.next()) {
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
    if (added === 0) return 0;
    if (last >= 0) {
      const flags = this.#writeUsed(at, wrap, last, firstFlags < 0);
      if (firstFlags < 0) firstFlags = flags;
    }
    this.#outstanding -= added;
    // The driver looks here next: this shows it everything above (2.8.2).
    desc.storeU16(
      first * VRING_PACKED_DESC.SIZE + VRING_PACKED_DESC.FLAGS,
      firstFlags,
    );
    return added;
  }

  refreshEvents(): boolean {
    return this.#ring.refresh(
      this.#ring.driverArea,
      0,
      VRING_PACKED_EVENT.SIZE,
    );
  }

  wantsInterrupt(ago: number, count: number): boolean {
    const at = this.#usedAt - ago;
    return at >= 0
      ? this.#events.wantsInterrupt(at, this.#usedWrap, count)
      : this.#events.wantsInterrupt(
        at + this.#ring.size,
        !this.#usedWrap,
        count,
      );
  }

  ask(unseen: boolean): void {
    const ahead = unseen ? this.#seen : 0;
    this.#events.ask(this.#availAt + ahead, this.#availWrap);
  }

  spare(): void {
    this.#events.spare();
  }

  more(): number {
    if (!this.#refresh()) return NOWHERE;
    if (!this.#isAvailable(this.#availAt, this.#availWrap)) return 0;
    if (this.#seen === 0) this.#seen = 1;
    return 1;
  }

  #refresh(): boolean {
    const { desc, size } = this.#ring;
    return this.#ring.refresh(desc, 0, size * VRING_PACKED_DESC.SIZE);
  }

  /** Counts the descriptors that are available, up to a limit, behind those that were seen. */
  #scan(limit: number): void {
    const { size } = this.#ring;
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
    const flags = this.#ring.desc.loadU16(
      at * VRING_PACKED_DESC.SIZE + VRING_PACKED_DESC.FLAGS,
    );
    return (flags & OWNER_MASK) === availableMark(wrap);
  }

  /** Writes a used descriptor, but not the flags of the first; returns those. */
  #writeUsed(at: number, wrap: boolean, id: number, isFirst: boolean): number {
    const { desc, ledger } = this.#ring;
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
    if (this.#usedAt < this.#ring.size) return;
    this.#usedAt -= this.#ring.size;
    this.#usedWrap = !this.#usedWrap;
  }

  /**
   * Reads the chain that comes next (2.8.5 to 2.8.7).
   *
   * @returns How many descriptors of the ring it has, −errno or MEMORY_PENDING
   */
  #readChain(chain: Chain): number {
    const builder = this.#builder;
    const { size } = this.#ring;
    builder.begin(chain);
    let index = this.#availAt;
    let mark = availableMark(this.#availWrap);
    let flags = this.#copy(index);
    if ((flags & OWNER_MASK) !== mark) return this.#failOwner(index);
    if ((flags & VRING_DESC_F.INDIRECT) !== 0) {
      const result = this.#readTable(flags, chain);
      return result < 0 ? result : 1;
    }
    for (let count = 1;; count++) {
      const write = (flags & VRING_DESC_F.WRITE) !== 0;
      const result = builder.addBuffer(0, write, chain);
      if (result < 0) return result;
      if ((flags & VRING_DESC_F.NEXT) === 0) {
        return builder.end() < 0 ? MEMORY_PENDING : count;
      }
      if (count >= size - this.#outstanding) return this.#failLength(count);
      if (++index === size) {
        index = 0;
        mark ^= OWNER_MASK;
      }
      flags = this.#copy(index);
      if ((flags & OWNER_MASK) !== mark) return this.#failOwner(index);
      if ((flags & VRING_DESC_F.INDIRECT) !== 0) {
        return builder.fail(
          Errno.EINVAL,
          "an indirect descriptor in a chain linked by NEXT (2.8.19)",
        );
      }
    }
  }

  /** Copies a descriptor of the ring; returns its flags. */
  #copy(index: number): number {
    const { desc } = this.#ring;
    const from = index * VRING_PACKED_DESC.SIZE;
    const { words } = this.#builder;
    copyAddressAndLength(desc, from, words);
    // `id` is in the lower half, `flags` in the upper.
    words[LAST_WORD] = desc.getU32(from + VRING_PACKED_DESC.ID);
    this.#id = words[LAST_WORD]! & 0xffff;
    return words[LAST_WORD]! >>> 16;
  }

  /** Reads a whole indirect table: all of it is the chain, and no flag but WRITE counts (2.8.7). */
  #readTable(flags: number, chain: Chain): number {
    const builder = this.#builder;
    const { indirect, maxSize } = this.#ring;
    if (!indirect || (flags & VRING_DESC_F.NEXT) !== 0) {
      return builder.fail(
        Errno.EINVAL,
        indirect
          ? "a descriptor is both INDIRECT and NEXT (2.8.19)"
          : "an indirect descriptor without INDIRECT_DESC (2.8.19)",
      );
    }
    const result = builder.enterTable();
    if (result < 0) return result;
    const entries = builder.tableEntries;
    // As for split queues: the size that the device offers counts, not the one the driver chose.
    if (entries > maxSize) {
      return builder.fail(
        Errno.ELOOP,
        `an indirect table of ${entries} descriptors is longer than the queue size (2.8.19)`,
      );
    }
    for (let i = 0; i < entries; i++) {
      const at = builder.readEntry(i);
      if (at < 0) return at;
      const write =
        ((builder.words[at + LAST_WORD]! >>> 16) & VRING_DESC_F.WRITE) !== 0;
      const added = builder.addBuffer(at, write, chain);
      if (added < 0) return added;
    }
    return builder.end();
  }

  #failOwner(index: number): number {
    return this.#builder.fail(
      Errno.EINVAL,
      `a chain goes on in descriptor ${index}, which is not available (2.8.17)`,
    );
  }

  #failLength(count: number): number {
    return count === this.#ring.size
      ? this.#builder.fail(
        Errno.ELOOP,
        "a chain is longer than the queue size, or loops (2.8.17)",
      )
      : this.#builder.fail(
        Errno.EINVAL,
        "a chain goes on in descriptors that were not returned (2.8.17)",
      );
  }
}
