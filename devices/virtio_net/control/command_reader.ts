/**
 * The bytes of control commands.
 *
 * @module
 */

import type { GuestMemory } from "../../../src/memory/guest_memory.ts";
import type { ScatterGather } from "../../../src/memory/scatter_gather.ts";

/** Reads a command's data from the front. */
export class CommandReader {
  readonly #memory: GuestMemory;
  readonly #list: ScatterGather;
  readonly #word = new Uint8Array(4);
  readonly #view = new DataView(this.#word.buffer);

  /** @param segments The most segments of a command */
  constructor(memory: GuestMemory, segments: number) {
    this.#memory = memory;
    this.#list = memory.createScatterGather(segments);
  }

  /** Begins with a command. */
  begin(list: ScatterGather): void {
    this.#list.clear();
    this.#list.append(list);
  }

  /** Bytes that have not been read. */
  get leftBytes(): number {
    return this.#list.lengthBytes;
  }

  /** Reads 1, 2 or 4 bytes, little-endian; null at the end of the data. */
  number(width: 1 | 2 | 4): number | null {
    this.#word.fill(0);
    if (this.#memory.gather(this.#list, this.#word, width) < width) return null;
    this.#list.consume(width);
    return this.#view.getUint32(0, true);
  }

  /** Reads bytes; null at the end of the data. */
  bytes(lengthBytes: number): Uint8Array | null {
    const bytes = new Uint8Array(lengthBytes);
    if (this.#memory.gather(this.#list, bytes, lengthBytes) < lengthBytes) {
      return null;
    }
    this.#list.consume(lengthBytes);
    return bytes;
  }

  /** Leaves bytes out. */
  skip(lengthBytes: number): void {
    this.#list.consume(lengthBytes);
  }
}
