/**
 * Register-sized, little-endian loads and stores.
 *
 * @module
 */

import type { AccessWidth } from "./device.ts";

/** The widest aligned access with which a transfer of `count` bytes at `offset` may start. */
export function accessWidth(offset: number, count: number): AccessWidth {
  if ((offset & 3) === 0 && count >= 4) return 4;
  if ((offset & 1) === 0 && count >= 2) return 2;
  return 1;
}

/** Reads an unsigned number of `width` bytes. */
export function loadWidth(
  view: DataView,
  offset: number,
  width: AccessWidth,
): number {
  switch (width) {
    case 1:
      return view.getUint8(offset);
    case 2:
      return view.getUint16(offset, true);
    case 4:
      return view.getUint32(offset, true);
    default:
      return width satisfies never;
  }
}

/** Writes the low `width` bytes of a number. */
export function storeWidth(
  view: DataView,
  offset: number,
  width: AccessWidth,
  value: number,
): void {
  switch (width) {
    case 1:
      return view.setUint8(offset, value);
    case 2:
      return view.setUint16(offset, value, true);
    case 4:
      return view.setUint32(offset, value, true);
    default:
      width satisfies never;
  }
}
