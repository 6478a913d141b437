/**
 * Frames on their way from C to a card that has not fetched them yet.
 *
 * @module
 */

import { Errno } from "../errno.ts";
import { alignUp } from "../bits.ts";
import { NativeBuffer } from "../libc/mod.ts";
import { libc, Words } from "../libc/symbols.ts";
import type { ScatterGather } from "../memory/scatter_gather.ts";

/**
 * A bounded queue of frames in native memory; bytes come in and leave by memcpy.
 *
 * Layout: slots of a fixed size, one frame in each, and their lengths beside them.
 */
export class FrameRing implements Disposable {
  /** The longest frame it takes, in bytes. */
  readonly frameMaxBytes: number;
  /** How many frames it holds at most. */
  readonly capacity: number;
  readonly #slotBytes: number;
  readonly #memory: NativeBuffer;
  readonly #lengths: Uint32Array<ArrayBuffer>;
  /** Arguments of memcpy: kept here, so that no address is an object on its way through another function. */
  readonly #copy = new Words(3);
  #head = 0;
  #count = 0;

  /** @param frameMaxBytes The longest frame it is to take */
  constructor(frameMaxBytes: number, capacity: number) {
    this.frameMaxBytes = frameMaxBytes;
    this.capacity = capacity;
    this.#slotBytes = alignUp(frameMaxBytes, 64);
    this.#memory = new NativeBuffer(this.#slotBytes * capacity);
    this.#lengths = new Uint32Array(capacity);
  }

  /** How many frames wait. */
  get count(): number {
    return this.#count;
  }

  /**
   * Copies a frame in.
   *
   * @param hva Address of its bytes, of which there are `lengthBytes`
   * @returns 0, −ENOBUFS when the ring is full, −EMSGSIZE when the frame is longer than a slot
   */
  push(hva: number, lengthBytes: number): number {
    if (lengthBytes > this.frameMaxBytes) return -Errno.EMSGSIZE;
    if (this.#count === this.capacity) return -Errno.ENOBUFS;
    const slot = (this.#head + this.#count) % this.capacity;
    const copy = this.#copy;
    copy.set(0, this.#memory.hva + slot * this.#slotBytes);
    copy.set(1, hva);
    copy.set(2, lengthBytes);
    // SAFETY: a slot is at least frameMaxBytes long; the caller vouches for the source.
    libc.memcpy(copy.at[0]!, copy.at[1]!, copy.at[2]!);
    this.#lengths[slot] = lengthBytes;
    this.#count++;
    return 0;
  }

  /**
   * Copies the oldest frame out and drops it.
   *
   * @returns Its length in bytes; −EAGAIN when there is none, −EMSGSIZE when it did not fit and is lost
   */
  pop(into: ScatterGather): number {
    if (this.#count === 0) return -Errno.EAGAIN;
    const length = this.#lengths[this.#head]!;
    let from = this.#memory.hva + this.#head * this.#slotBytes;
    this.#head = (this.#head + 1) % this.capacity;
    this.#count--;
    if (into.lengthBytes < length) return -Errno.EMSGSIZE;
    const copy = this.#copy;
    let left = length;
    // The segments sum up to at least `left`, so the loop ends inside the list.
    for (let i = 0; left > 0; i++) {
      const available = into.length(i);
      const part = left < available ? left : available;
      copy.set(0, into.base(i));
      copy.set(1, from);
      copy.set(2, part);
      // SAFETY: a segment that translate() checked, and at most what is left of the slot's frame.
      libc.memcpy(copy.at[0]!, copy.at[1]!, copy.at[2]!);
      from += part;
      left -= part;
    }
    return length;
  }

  /** Copies of all frames, oldest first; they stay where they are. */
  snapshot(): Uint8Array<ArrayBuffer>[] {
    return Array.from({ length: this.#count }, (_, i) => {
      const slot = (this.#head + i) % this.capacity;
      const at = slot * this.#slotBytes;
      return this.#memory.bytes.slice(at, at + this.#lengths[slot]!);
    });
  }

  /**
   * Fills an empty ring with frames, oldest first.
   *
   * @throws {RangeError} When they are more or longer than it takes
   */
  restore(frames: readonly Uint8Array[]): void {
    if (
      frames.length > this.capacity ||
      frames.some(({ length }) => length > this.frameMaxBytes)
    ) {
      throw new RangeError(
        `Cannot restore ${frames.length} frames: ${this.capacity} of ${this.frameMaxBytes} bytes are the most`,
      );
    }
    this.#head = 0;
    this.#count = frames.length;
    frames.forEach((frame, i) => {
      this.#memory.bytes.set(frame, i * this.#slotBytes);
      this.#lengths[i] = frame.length;
    });
  }

  /** Drops all frames. */
  clear(): void {
    this.#head = 0;
    this.#count = 0;
  }

  /** Frees the memory. */
  close(): void {
    this.clear();
    this.#memory.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}
