/**
 * Bit and integer helpers, so that no call site masks and shifts by hand.
 *
 * @module
 */

/** The page size every supported client uses, in bytes. */
export const PAGE_SIZE = 4096;

/** True if bit `n` (0–31) of the 32-bit word is set. */
export function bit(value: number, n: number): boolean {
  return ((value >>> n) & 1) === 1;
}

/** Bits `hi` down to `lo` of a 32-bit word, as an unsigned number. */
export function field(value: number, hi: number, lo: number): number {
  const width = hi - lo + 1;
  return width >= 32 ? value >>> 0 : (value >>> lo) & ((1 << width) - 1);
}

/** The word with bit `n` (0–31) set or cleared, unsigned. */
export function withBit(value: number, n: number, on: boolean): number {
  return (on ? value | (1 << n) : value & ~(1 << n)) >>> 0;
}

/** Low 32 bits of a non-negative integer below 2^53. */
export function low32(value: number): number {
  return value >>> 0;
}

/** Bits 32–63 of a non-negative integer below 2^53. */
export function high32(value: number): number {
  return Math.floor(value / 0x1_0000_0000);
}

/** The number made of two 32-bit words; exact while `high < 2^21`. */
export function u64(low: number, high: number): number {
  return (high >>> 0) * 0x1_0000_0000 + (low >>> 0);
}

/** Reads a little-endian 64-bit integer; at or above 2^53 the result is inexact but stays above 2^53−1. */
export function getU64(view: DataView, offset: number): number {
  return view.getUint32(offset + 4, true) * 0x1_0000_0000 +
    view.getUint32(offset, true);
}

/** Writes a non-negative integer below 2^53 as a little-endian 64-bit integer. */
export function setU64(view: DataView, offset: number, value: number): void {
  view.setUint32(offset, value >>> 0, true);
  view.setUint32(offset + 4, high32(value), true);
}

/** The smallest multiple of `alignment` (any positive integer) at or above `value`. */
export function alignUp(value: number, alignment: number): number {
  return Math.ceil(value / alignment) * alignment;
}

/** True if `value` is a power of two, and at least 1. */
export function isPowerOfTwo(value: number): boolean {
  // Not whether log2 is an integer: from 2^49 on it is one for neighbours of a power, too.
  return value >= 1 && 2 ** Math.round(Math.log2(value)) === value;
}

/** The number as C would print it with `%#x`. */
export function hex(value: number): string {
  return `0x${value.toString(16)}`;
}
