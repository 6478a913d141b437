/**
 * A window on mappings that follow one another for the guest and lie apart in our own address space.
 *
 * @module
 */

import { PAGE_SIZE } from "../core/bits.ts";
import type { MemoryWindow } from "./guest_memory.ts";
import type { MappedWindow } from "./mapped_window.ts";

const PAGE_SHIFT = 12;
const IN_PAGE = PAGE_SIZE - 1;

/**
 * Loads and stores on pages that lie apart, as with a guest behind an IOMMU.
 *
 * Each access looks up its page first. No value may lie in two pages: of aligned ones none does. (To map the pages a
 * second time, side by side, would spare that, but cannot be done with pages that are parts of huge ones, nor where
 * memory is an ArrayBuffer.)
 */
export class SpanningWindow implements MemoryWindow {
  readonly lengthBytes: number;
  readonly isLive = true;
  /** Whole pages; the window begins in the first of them, … */
  readonly #pages: readonly MappedWindow[];
  /** … so far from its start. */
  readonly #skew: number;

  /**
   * @param pages Each page of the window, whole
   * @param skew Where the window begins in the first, in bytes
   */
  constructor(
    pages: readonly MappedWindow[],
    skew: number,
    lengthBytes: number,
  ) {
    this.#pages = pages;
    this.#skew = skew;
    this.lengthBytes = lengthBytes;
  }

  refresh(_offset: number, _lengthBytes: number): number {
    return 0;
  }

  getU16(offset: number): number {
    const at = offset + this.#skew;
    return this.#page(at).getU16(at & IN_PAGE);
  }

  getU32(offset: number): number {
    const at = offset + this.#skew;
    return this.#page(at).getU32(at & IN_PAGE);
  }

  setU16(offset: number, value: number): void {
    const at = offset + this.#skew;
    this.#page(at).setU16(at & IN_PAGE, value);
  }

  setU32(offset: number, value: number): void {
    const at = offset + this.#skew;
    this.#page(at).setU32(at & IN_PAGE, value);
  }

  loadU16(offset: number): number {
    const at = offset + this.#skew;
    return this.#page(at).loadU16(at & IN_PAGE);
  }

  storeU16(offset: number, value: number): void {
    const at = offset + this.#skew;
    this.#page(at).storeU16(at & IN_PAGE, value);
  }

  loadU32(offset: number): number {
    const at = offset + this.#skew;
    return this.#page(at).loadU32(at & IN_PAGE);
  }

  storeU32(offset: number, value: number): void {
    const at = offset + this.#skew;
    this.#page(at).storeU32(at & IN_PAGE, value);
  }

  #page(at: number): MappedWindow {
    return this.#pages[at >>> PAGE_SHIFT]!;
  }
}
