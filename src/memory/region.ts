/**
 * Ranges of guest addresses, and the memory of this process that they show.
 *
 * @module
 */

import type { Access } from "./guest_memory.ts";

/** A range of guest addresses. */
export interface DmaRange {
  /** First guest address. */
  readonly iova: number;
  /** Length in bytes. */
  readonly lengthBytes: number;
  /** Accesses of the device that are allowed. */
  readonly access: Access;
}

/** Memory of this process that any number of ranges show, each all or a part of it. */
export class Backing {
  /** Address of the first byte. */
  readonly hva: number;
  readonly lengthBytes: number;
  readonly buffer: ArrayBuffer;
  /** The same as bytes. */
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** The same as words. */
  readonly words: Uint32Array<ArrayBuffer>;
  /** Called when its last range is gone; views of the buffer must not be used afterwards. */
  readonly release: () => void;
  /** Number of ranges that show it. */
  ranges = 0;

  constructor(buffer: ArrayBuffer, hva: number, release = () => {}) {
    this.buffer = buffer;
    this.hva = hva;
    this.lengthBytes = buffer.byteLength;
    this.bytes = new Uint8Array(buffer);
    this.words = new Uint32Array(buffer, 0, Math.floor(buffer.byteLength / 4));
    this.release = release;
  }
}

/** Stands behind a range that is known and cannot be reached. */
export const UNREACHABLE: Backing = new Backing(new ArrayBuffer(0), 0);

/** A range with what lies behind it. */
export class Region implements DmaRange {
  readonly iova: number;
  readonly lengthBytes: number;
  /** The address after the last. */
  readonly end: number;
  readonly access: Access;
  /** Memory behind it, {@linkcode UNREACHABLE} for nothing. */
  readonly backing: Backing;
  /** Offset in that, in bytes. */
  readonly offset: number;
  /** Address of the first byte in our address space, or 0. */
  readonly hva: number;
  /** True when a window was made of it: such windows end with it. */
  windowed = false;

  /** @param offset Where in the backing; all of the range is inside */
  constructor(range: DmaRange, backing: Backing, offset: number) {
    this.iova = range.iova;
    this.lengthBytes = range.lengthBytes;
    this.end = range.iova + range.lengthBytes;
    // Without a backing nothing is allowed, so that one test of the access bits covers both.
    this.access = backing === UNREACHABLE ? 0 : range.access;
    this.backing = backing;
    this.offset = offset;
    this.hva = backing === UNREACHABLE ? 0 : backing.hva + offset;
  }
}

/** Fills the place of "last region" when there is none, so that the hot path needs no null check. */
export const NOWHERE: Region = new Region(
  { iova: 0, lengthBytes: 0, access: 0 },
  UNREACHABLE,
  0,
);
