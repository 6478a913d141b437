/**
 * The data pointer of a command, PRPs or an SGL, as a scatter-gather list.
 *
 * @module
 */

import { field } from "../../../src/core/bits.ts";
import type { Access, GuestMemory } from "../../../src/memory/guest_memory.ts";
import type { ScatterGather } from "../../../src/memory/scatter_gather.ts";
import { NvmeSc, SQE } from "../defs.ts";
import { PrpWalker } from "./prp.ts";
import { SglWalker } from "./sgl.ts";

/** PSDT, bits 15:14 of the first word. */
const Psdt = { PRP: 0, SGL_MPTR_CONTIGUOUS: 1, SGL_MPTR_SGL: 2 } as const;

/** Follows data pointers. */
export class DataPointer {
  readonly #prp: PrpWalker;
  readonly #sgl: SglWalker;

  /** @param memory Whose addresses commands hold */
  constructor(memory: GuestMemory) {
    this.#prp = new PrpWalker(memory);
    this.#sgl = new SglWalker(memory);
  }

  /** Sets the memory page size, as a power of two. */
  setPageShift(shift: number): void {
    this.#prp.setPageShift(shift);
  }

  /**
   * Appends what a command's data pointer describes.
   *
   * @param lengthBytes How much the command transfers, at least 1
   * @returns A status; see {@linkcode PrpWalker.map} and {@linkcode SglWalker.map}
   */
  map(
    sqe: Uint32Array,
    lengthBytes: number,
    access: Access,
    into: ScatterGather,
  ): number {
    switch (field(sqe[SQE.CDW0]!, 15, 14)) {
      case Psdt.PRP:
        return this.#prp.map(sqe, lengthBytes, access, into);
      case Psdt.SGL_MPTR_CONTIGUOUS:
      case Psdt.SGL_MPTR_SGL:
        // No metadata: what MPTR would be does not matter.
        return this.#sgl.map(sqe, lengthBytes, access, into);
      default:
        return NvmeSc.INVALID_FIELD;
    }
  }
}
