/**
 * Sizes as people write them.
 *
 * @module
 */

const UNITS = "KMGTP";

/** Remedy for a text that is no size. */
export const SIZE_WANTED =
  "a size below 8P is wanted, in bytes or like 64M or 10G; K, M, G, T and P are powers of 1024";

/**
 * A size such as `512`, `64M` or `10G`; the letters are powers of 1024.
 *
 * @returns Bytes, or null when the text is none or the size is beyond 2^53−1
 */
export function parseSize(text: string): number | null {
  const match = /^(\d{1,16})(?:([KMGTP])(?:iB|B)?|B)?$/i.exec(text);
  if (match === null) return null;
  const [, digits, unit] = match;
  const power = unit === undefined ? 0 : UNITS.indexOf(unit.toUpperCase()) + 1;
  const bytes = Number(digits) * 1024 ** power;
  return Number.isSafeInteger(bytes) ? bytes : null;
}

/** The size in the largest unit that divides it, as {@linkcode parseSize} takes it. */
export function formatSize(bytes: number): string {
  let power = 0;
  let value = bytes;
  while (power < UNITS.length && value >= 1024 && value % 1024 === 0) {
    value /= 1024;
    power++;
  }
  return power === 0 ? `${value}` : `${value}${UNITS[power - 1]}`;
}
