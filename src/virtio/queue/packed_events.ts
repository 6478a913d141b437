/**
 * The event suppression structures of the packed virtqueue (virtio 1.3, section 2.8.10): who wants to hear of what.
 *
 * @module
 */

import {
  VRING_PACKED_EVENT,
  VRING_PACKED_EVENT_F_WRAP_CTR,
  VRING_PACKED_EVENT_FLAG,
} from "../defs.ts";
import type { Ring } from "./ring.ts";

const WRAP_BIT = 1 << VRING_PACKED_EVENT_F_WRAP_CTR;
const OFFSET_MASK = WRAP_BIT - 1;
const FLAGS_SHIFT = VRING_PACKED_EVENT.FLAGS * 8;
const FLAGS_MASK = 3;

/** A place in the ring as drivers and devices tell it to each other: the offset in bits 0–14, the wrap counter in bit 15. */
export function offWrap(at: number, wrap: boolean): number {
  return at | (wrap ? WRAP_BIT : 0);
}

/** Both structures of one queue, each a single 32-bit access: the driver's is read, the device's written. */
export class PackedEvents {
  readonly #ring: Ring;
  #flags: number = VRING_PACKED_EVENT_FLAG.ENABLE;

  constructor(ring: Ring) {
    this.#ring = ring;
  }

  /** Flags in the device's structure, VRING_PACKED_EVENT_FLAG. */
  get flags(): number {
    return this.#flags;
  }

  /** Begins with a structure in which a driver finds these flags. */
  reset(flags: number = VRING_PACKED_EVENT_FLAG.ENABLE): void {
    this.#flags = flags;
  }

  /**
   * Asks the driver to notify; the ring is ready.
   *
   * @param at From which descriptor on, where the driver can be told that; may be one lap beyond the end
   * @param wrap The wrap counter there, before that lap
   */
  ask(at: number, wrap: boolean): void {
    const { eventIdx, size } = this.#ring;
    if (eventIdx) {
      const place = at < size ? offWrap(at, wrap) : offWrap(at - size, !wrap);
      this.#store(VRING_PACKED_EVENT_FLAG.DESC, place);
    } else if (this.#flags !== VRING_PACKED_EVENT_FLAG.ENABLE) {
      this.#store(VRING_PACKED_EVENT_FLAG.ENABLE, 0);
    }
  }

  /** Tells the driver not to notify, if the ring is ready and it does not know yet. */
  spare(): void {
    // With EVENT_IDX the descriptor to be notified of lies behind as soon as it is popped, which says it all.
    if (this.#flags !== VRING_PACKED_EVENT_FLAG.ENABLE) return;
    if (this.#ring.ready()) this.#store(VRING_PACKED_EVENT_FLAG.DISABLE, 0);
  }

  /**
   * True when the driver wants to know that `added` descriptors from `first` on were used; its structure was refreshed.
   *
   * @param wrap The wrap counter at `first`
   */
  wantsInterrupt(first: number, wrap: boolean, added: number): boolean {
    const { driverArea, eventIdx, size } = this.#ring;
    const word = driverArea.loadU32(0);
    const flags = (word >>> FLAGS_SHIFT) & FLAGS_MASK;
    if (flags === VRING_PACKED_EVENT_FLAG.DISABLE) return false;
    // What must not be there, DESC without EVENT_IDX and 3, costs the driver an interrupt too many.
    if (flags !== VRING_PACKED_EVENT_FLAG.DESC || !eventIdx) return true;
    const sameLap = ((word & WRAP_BIT) !== 0) === wrap;
    const distance = (word & OFFSET_MASK) - first + (sameLap ? 0 : size);
    return distance >= 0 && distance < added;
  }

  #store(flags: number, place: number): void {
    this.#flags = flags;
    this.#ring.deviceArea.storeU32(0, place | (flags << FLAGS_SHIFT));
  }
}
