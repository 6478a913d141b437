/**
 * Sets of virtio feature bits. Features are bit *numbers* (virtio 1.3, section 6).
 *
 * @module
 */

import { bit } from "../core/bits.ts";

/** Feature bits that belong to every device type. */
export const VIRTIO_F = {
  NOTIFY_ON_EMPTY: 24,
  ANY_LAYOUT: 27,
  RING_INDIRECT_DESC: 28,
  RING_EVENT_IDX: 29,
  VERSION_1: 32,
  ACCESS_PLATFORM: 33,
  RING_PACKED: 34,
  IN_ORDER: 35,
  ORDER_PLATFORM: 36,
  SR_IOV: 37,
  NOTIFICATION_DATA: 38,
  NOTIF_CONFIG_DATA: 39,
  RING_RESET: 40,
  ADMIN_VQ: 41,
} as const;

/** An immutable set of feature bits 0–63. Words beyond read as 0, as recent drivers expect. */
export class Features {
  readonly #low: number;
  readonly #high: number;

  /**
   * Makes a set of two words.
   *
   * @param low Bits 0–31
   * @param high Bits 32–63
   */
  constructor(low: number, high: number) {
    this.#low = low >>> 0;
    this.#high = high >>> 0;
  }

  /** The set of the given bit numbers. */
  static of(...bits: number[]): Features {
    let low = 0;
    let high = 0;
    for (const n of bits) {
      if (n < 32) low |= 1 << n;
      else high |= 1 << (n - 32);
    }
    return new Features(low, high);
  }

  /** True when bit `n` is in the set. */
  has(n: number): boolean {
    return n < 32 ? bit(this.#low, n) : bit(this.#high, n - 32);
  }

  /** 32-bit word `select` (0: bits 0–31, 1: bits 32–63, others 0). */
  word(select: number): number {
    return select === 0 ? this.#low : select === 1 ? this.#high : 0;
  }

  /** Bits of either set. */
  union(other: Features): Features {
    return new Features(this.#low | other.#low, this.#high | other.#high);
  }

  /** True when every bit of this set is in the other. */
  isSubsetOf(other: Features): boolean {
    return (this.#low & ~other.#low) === 0 && (this.#high & ~other.#high) === 0;
  }

  /** As the kernel prints it in sysfs' `features`, bit 0 first, in hexadecimal for logs. */
  toString(): string {
    return `0x${this.#high.toString(16).padStart(8, "0")}${
      this.#low.toString(16).padStart(8, "0")
    }`;
  }
}
