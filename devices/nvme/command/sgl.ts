/**
 * Scatter gather lists of the standard (NVM Express 1.4, section 4.4) to a scatter-gather list of ours: data blocks,
 * segments and last segments.
 *
 * @module
 */

import { Errno } from "../../../src/core/errno.ts";
import type { Access } from "../../../src/memory/guest_memory.ts";
import type { ScatterGather } from "../../../src/memory/scatter_gather.ts";
import { NVME_SGL_DESC, NvmeSc, NvmeSgl, SQE } from "../defs.ts";
import type { PointerMemory } from "./pointer_memory.ts";

/** Descriptors that are copied at once. */
const BATCH = 32;
/** Descriptors of one command, at most: more than segments fit a request, empty ones included. */
const DESCRIPTORS_MAX = 2048;
const WORDS = NVME_SGL_DESC.WORDS;

/** Walks SGLs; every descriptor is copied once and only the copy is looked at. */
export class SglWalker {
  readonly #memory: PointerMemory;
  readonly #words = new Uint32Array(BATCH * WORDS);
  /** Address of the next descriptor of the segment: low word, high word. */
  readonly #segment = new Uint32Array(2);
  /** Descriptors left in the segment, and whether it is the last. */
  #left = 0;
  #last = false;
  /** Bytes that the descriptors are still to describe. */
  #wanted = 0;

  /** @param memory Whose addresses descriptors hold */
  constructor(memory: PointerMemory) {
    this.#memory = memory;
  }

  /**
   * Appends what a command's SGL describes.
   *
   * @param sqe The command; its SGL1 is where PRP1 and PRP2 are otherwise
   * @param lengthBytes Length of its transfer: the descriptors must sum up to it exactly
   * @returns A status: SUCCESS, SGL_INVALID_*, or DATA_XFER_ERROR when a part is not guest memory
   */
  map(
    sqe: Uint32Array,
    lengthBytes: number,
    access: Access,
    into: ScatterGather,
  ): number {
    this.#left = 0;
    this.#wanted = lengthBytes;
    const type = sqe[SQE.PRP1 + NVME_SGL_DESC.TYPE]! >>> 24;
    let status = type === NvmeSgl.DATA_DESC << 4
      ? this.#block(sqe, SQE.PRP1, access, into)
      : this.#enter(sqe, SQE.PRP1, type);
    let count = 0;
    while (status === NvmeSc.SUCCESS && this.#left > 0) {
      const batch = this.#left < BATCH ? this.#left : BATCH;
      const result = this.#memory.readWords(
        this.#segment,
        this.#words,
        batch * WORDS,
      );
      if (result < 0) return statusOf(result);
      this.#advance(batch);
      count += batch;
      if (count > DESCRIPTORS_MAX) return NvmeSc.SGL_INVALID_COUNT;
      status = this.#batch(batch, access, into);
    }
    if (status !== NvmeSc.SUCCESS) return status;
    return this.#wanted === 0 ? NvmeSc.SUCCESS : NvmeSc.SGL_INVALID_DATA;
  }

  /** Follows descriptors that were copied; `#left` more of their segment were not. */
  #batch(count: number, access: Access, into: ScatterGather): number {
    const words = this.#words;
    const ends = this.#left === 0;
    for (let i = 0; i < count; i++) {
      const at = i * WORDS;
      const type = words[at + NVME_SGL_DESC.TYPE]! >>> 24;
      const isLast = ends && i === count - 1;
      if (type === NvmeSgl.DATA_DESC << 4) {
        const status = this.#block(words, at, access, into);
        if (status !== NvmeSc.SUCCESS) return status;
        // A segment that is not the last one ends with a pointer (section 4.4).
        if (isLast && !this.#last) return NvmeSc.SGL_INVALID_LAST;
        continue;
      }
      // Only the last descriptor of a segment may lead on, and that of the last segment does not.
      if (isLast && !this.#last) return this.#enter(words, at, type);
      return isSegment(type)
        ? NvmeSc.SGL_INVALID_LAST
        : NvmeSc.SGL_INVALID_TYPE;
    }
    return NvmeSc.SUCCESS;
  }

  /** Goes to the segment that a descriptor points at. */
  #enter(words: Uint32Array, at: number, type: number): number {
    if (!isSegment(type)) return NvmeSc.SGL_INVALID_TYPE;
    const length = words[at + NVME_SGL_DESC.LENGTH]!;
    if (length === 0 || length % NVME_SGL_DESC.SIZE !== 0) {
      return NvmeSc.SGL_INVALID_LAST;
    }
    const count = length / NVME_SGL_DESC.SIZE;
    if (count > DESCRIPTORS_MAX) return NvmeSc.SGL_INVALID_COUNT;
    this.#segment[0] = words[at + NVME_SGL_DESC.ADDR]!;
    this.#segment[1] = words[at + NVME_SGL_DESC.ADDR + 1]!;
    this.#left = count;
    this.#last = type === NvmeSgl.LAST_SEG_DESC << 4;
    return NvmeSc.SUCCESS;
  }

  #advance(descriptors: number): void {
    const low = this.#segment[0]! + descriptors * NVME_SGL_DESC.SIZE;
    this.#segment[0] = low;
    // Above 2^64 it wraps to 0; addresses of 2^53 and more are no memory anyway.
    this.#segment[1] = this.#segment[1]! + (low >= 0x1_0000_0000 ? 1 : 0);
    this.#left -= descriptors;
  }

  #block(
    words: Uint32Array,
    at: number,
    access: Access,
    into: ScatterGather,
  ): number {
    const length = words[at + NVME_SGL_DESC.LENGTH]!;
    if (length > this.#wanted) return NvmeSc.SGL_INVALID_DATA;
    this.#wanted -= length;
    const from = at + NVME_SGL_DESC.ADDR;
    const result = this.#memory.map(words, from, length, access, into);
    return result === 0 ? NvmeSc.SUCCESS : statusOf(result);
  }
}

/** The status for what could not be translated. */
function statusOf(result: number): number {
  return result === -Errno.E2BIG
    ? NvmeSc.SGL_INVALID_COUNT
    : NvmeSc.DATA_XFER_ERROR;
}

/** Tells whether a descriptor leads to a segment; the sub-type must be "address". */
function isSegment(type: number): boolean {
  return type === NvmeSgl.SEG_DESC << 4 || type === NvmeSgl.LAST_SEG_DESC << 4;
}
