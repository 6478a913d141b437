/**
 * A window that is made anew whenever its mapping was.
 *
 * @module
 */

import type { Access, GuestMemory, MemoryWindow } from "./guest_memory.ts";
import { MappedWindow } from "./mapped_window.ts";

/** No generation of any memory. */
const UNRESOLVED = -1;

/** Stands for a range that cannot be reached; it is never accessed. */
export const NO_WINDOW: MemoryWindow = new MappedWindow(
  new ArrayBuffer(0),
  0,
  0,
);

/** A range of guest memory that is accessed for as long as a driver wants, through whatever it is mapped to. */
export class RangeWindow {
  readonly iova: number;
  readonly #memory: GuestMemory;
  readonly #lengthBytes: number;
  readonly #access: Access;
  #window = NO_WINDOW;
  #generation = UNRESOLVED;

  constructor(
    memory: GuestMemory,
    iova: number,
    lengthBytes: number,
    access: Access,
  ) {
    this.iova = iova;
    this.#memory = memory;
    this.#lengthBytes = lengthBytes;
    this.#access = access;
  }

  /** The window; only after {@linkcode RangeWindow.ready} in the same turn of the loop. */
  get window(): MemoryWindow {
    return this.#window;
  }

  /** True when all of the range can be reached: a single comparison once it was found. */
  ready(): boolean {
    return this.#generation === this.#memory.generation || this.#resolve();
  }

  #resolve(): boolean {
    this.#window = NO_WINDOW;
    this.#generation = UNRESOLVED;
    const window = this.#memory.window(
      this.iova,
      this.#lengthBytes,
      this.#access,
    );
    if (window === null) return false;
    this.#window = window;
    this.#generation = this.#memory.generation;
    return true;
  }
}
