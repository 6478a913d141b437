/**
 * The data pointer of a command, PRPs or an SGL, as a scatter-gather list.
 *
 * @module
 */

import { field } from "../../../src/core/bits.ts";
import type { Access, GuestMemory } from "../../../src/memory/guest_memory.ts";
import type { ScatterGather } from "../../../src/memory/scatter_gather.ts";
import { NvmeSc, SQE } from "../defs.ts";
import { PointerMemory } from "./pointer_memory.ts";
import { PrpWalker } from "./prp.ts";
import { SglWalker } from "./sgl.ts";

/** PSDT, bits 15:14 of the first word. */
const Psdt = { PRP: 0, SGL_MPTR_CONTIGUOUS: 1, SGL_MPTR_SGL: 2 } as const;

/** Follows data pointers. */
export class DataPointer {
  readonly #memory: PointerMemory;
  readonly #prp: PrpWalker;
  readonly #sgl: SglWalker;

  /** @param memory Whose addresses commands hold */
  constructor(memory: GuestMemory) {
    this.#memory = new PointerMemory(memory);
    this.#prp = new PrpWalker(this.#memory);
    this.#sgl = new SglWalker(this.#memory);
  }

  /** The memory page size in bytes. */
  get pageBytes(): number {
    return this.#prp.pageBytes;
  }

  /** Sets the memory page size, as a power of two. */
  setPageShift(shift: number): void {
    this.#prp.pageBytes = 2 ** shift;
  }

  /**
   * Appends what a command's data pointer describes.
   *
   * @param lengthBytes Length of the command's transfer, at least 1
   * @returns A status; see {@linkcode PrpWalker.map} and {@linkcode SglWalker.map}. MEMORY_PENDING when a part is not in reach
   */
  map(
    sqe: Uint32Array,
    lengthBytes: number,
    access: Access,
    into: ScatterGather,
  ): number {
    return this.#memory.end(this.#map(sqe, lengthBytes, access, into));
  }

  #map(
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
