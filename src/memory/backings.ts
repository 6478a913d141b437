/**
 * Memory of this process that ranges of guest memory show, by our own addresses, and copies out of it and into it.
 *
 * @module
 */

import { hex, u64 } from "../core/bits.ts";
import { Errno, ErrnoError } from "../core/errno.ts";
import type { ScratchMemory } from "./guest_memory.ts";
import { Backing, UNREACHABLE } from "./region.ts";
import type { ScatterGather } from "./scatter_gather.ts";

/** Memory that ranges show, and that lists may hold though no guest address leads there. */
export class Backings {
  /** While false, ranges are not in reach; scratch memory is. */
  accessible = true;
  /** In order of address. */
  readonly #backings: Backing[] = [];
  #last: Backing = UNREACHABLE;
  /** The address that is looked for: as an argument it is allocated wherever a call is not inlined. */
  readonly #address = new Float64Array(1);
  /** A word on its way, byte by byte. */
  readonly #word = new Uint32Array(1);
  readonly #bytes = new Uint8Array(this.#word.buffer);

  /** One more range shows it. */
  add(backing: Backing): void {
    if (backing.ranges++ === 0 && backing !== UNREACHABLE) {
      this.#insert(backing);
    }
  }

  /** One range less shows it; releases it after the last. */
  remove(backing: Backing): void {
    if (--backing.ranges > 0 || backing === UNREACHABLE) return;
    this.forgetLast();
    this.#backings.splice(this.#below(backing.hva), 1);
    backing.release();
  }

  /** Forgets what was found last, which may be out of reach. */
  forgetLast(): void {
    this.#last = UNREACHABLE;
  }

  /** See {@linkcode GuestMemory.createScratch}; it stays. */
  addScratch(
    buffer: ArrayBuffer,
    hva: number,
    lengthBytes: number,
  ): ScratchMemory {
    const backing = new Backing(buffer, hva);
    this.#insert(backing);
    return {
      bytes: backing.bytes.subarray(0, lengthBytes),
      append: (length, into) => into.push(hva, length),
    };
  }

  /** See {@linkcode GuestMemory.gatherWords}. */
  gatherWords(
    list: ScatterGather,
    skipBytes: number,
    into: Uint32Array,
    at: number,
    count: number,
  ): number {
    const { words } = list;
    let segment = 0;
    let skip = skipBytes;
    const end = at + count;
    for (let to = at; to < end;) {
      while (segment < list.count && skip >= words[segment * 4 + 2]!) {
        skip -= words[segment * 4 + 2]!;
        segment++;
      }
      if (segment === list.count) return -Errno.EFAULT;
      const hva = u64(words[segment * 4]!, words[segment * 4 + 1]!) + skip;
      this.#address[0] = hva;
      const backing = this.#find();
      if (backing === UNREACHABLE) return -Errno.EFAULT;
      const offset = hva - backing.hva;
      const room = Math.min(
        words[segment * 4 + 2]! - skip,
        backing.lengthBytes - offset,
      );
      if (offset % 4 !== 0 || room < 4) {
        if (this.#copy(list, this.#bytes, 4, false, skip, segment) < 4) {
          return -Errno.EFAULT;
        }
        into[to++] = this.#word[0]!;
        skip += 4;
        continue;
      }
      // x86_64 and aarch64 Linux are little-endian, so the words have the right order as they are.
      const source = backing.words;
      const from = offset / 4;
      const n = Math.min(end - to, room >>> 2);
      for (let i = 0; i < n; i++) into[to + i] = source[from + i]!;
      to += n;
      skip += n * 4;
    }
    return 0;
  }

  /**
   * The bytes of our own address space behind a segment.
   *
   * @throws {ErrnoError} EFAULT when the address is in nothing that is mapped
   */
  bytesAt(hva: number, lengthBytes: number): Uint8Array {
    this.#address[0] = hva;
    const backing = this.#find();
    const offset = hva - backing.hva;
    if (
      backing !== UNREACHABLE && offset + lengthBytes <= backing.lengthBytes
    ) {
      return new Uint8Array(backing.buffer, offset, lengthBytes);
    }
    throw new ErrnoError(
      Errno.EFAULT,
      `Cannot view ${hex(hva)}: it is not guest memory`,
    );
  }

  /** See {@linkcode GuestMemory.gather}. */
  gather(list: ScatterGather, into: Uint8Array, lengthBytes: number): number {
    return this.#copy(list, into, lengthBytes, false);
  }

  /** See {@linkcode GuestMemory.scatter}. */
  scatter(list: ScatterGather, from: Uint8Array, lengthBytes: number): number {
    return this.#copy(list, from, lengthBytes, true);
  }

  /**
   * Copies between the start of a list and bytes of our own; returns how many.
   *
   * @param skipBytes Where in a segment to begin, which is longer
   * @param first Which segment that is
   */
  #copy(
    list: ScatterGather,
    own: Uint8Array,
    lengthBytes: number,
    toGuest: boolean,
    skipBytes = 0,
    first = 0,
  ): number {
    let done = 0;
    let skip = skipBytes;
    for (let i = first; i < list.count && done < lengthBytes; i++) {
      const word = i * 4;
      let hva = u64(list.words[word]!, list.words[word + 1]!) + skip;
      const length = list.words[word + 2]! - skip;
      skip = 0;
      let left = Math.min(length, lengthBytes - done);
      while (left > 0) {
        this.#address[0] = hva;
        const backing = this.#find();
        // The list is older than the last unmapping: what it points at is gone.
        if (backing === UNREACHABLE) return done;
        const { bytes } = backing;
        let at = hva - backing.hva;
        const n = Math.min(left, backing.lengthBytes - at);
        const end = done + n;
        if (toGuest) { while (done < end) bytes[at++] = own[done++]!; }
        else while (done < end) own[done++] = bytes[at++]!;
        left -= n;
        hva += n;
      }
    }
    return done;
  }

  #insert(backing: Backing): void {
    this.#backings.splice(this.#below(backing.hva), 0, backing);
  }

  /** Finds what has bytes at `#address` of our own address space. */
  #find(): Backing {
    const hva = this.#address[0]!;
    const last = this.#last;
    if (hva >= last.hva && hva < last.hva + last.lengthBytes) return last;
    const at = this.#below(hva + 1) - 1;
    const backing = at < 0 ? UNREACHABLE : this.#backings[at]!;
    if (hva >= backing.hva + backing.lengthBytes) return UNREACHABLE;
    // No range shows scratch memory, which stays in reach.
    if (!this.accessible && backing.ranges > 0) return UNREACHABLE;
    return this.#last = backing;
  }

  /** Number of backings that begin below an address of our own. */
  #below(hva: number): number {
    let low = 0;
    let high = this.#backings.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#backings[middle]!.hva >= hva) high = middle;
      else low = middle + 1;
    }
    return low;
  }
}
