/**
 * Pieces of guest memory beside memory of our own: lists of them for one system call, and copies between them.
 *
 * @module
 */

import { setU64 } from "../core/bits.ts";
import {
  clearWords,
  copyWords,
  NativeBuffer,
  receiveMessage,
  sendMessage,
} from "../os/mod.ts";
import { Words } from "../os/symbols.ts";
import type { ScatterGather } from "./scatter_gather.ts";

/** IOV_MAX: the most segments of one call. */
const IOV_MAX = 1024;
// struct iovec { void *iov_base; size_t iov_len; } as four 32-bit words
const WORDS = 4;
/** As much as one call shall move: far from the largest result that it can return. */
const BYTES_MAX = 0x1000_0000;

/** Up to 1024 segments at a fixed address. Nothing here allocates after construction. */
export class Iovec implements Disposable {
  /** Segments in use. */
  count = 0;
  /** Sum of their lengths. */
  lengthBytes = 0;
  /** The array as C takes it. */
  readonly pointer: Deno.PointerObject;
  /** Its address. */
  readonly hva: number;
  readonly #buffer = new NativeBuffer(IOV_MAX * WORDS * 4);
  readonly #words = new Uint32Array(this.#buffer.bytes.buffer);

  constructor() {
    this.pointer = this.#buffer.pointer();
    this.hva = this.#buffer.hva;
  }

  /** Empties the array. */
  clear(): void {
    this.count = 0;
    this.lengthBytes = 0;
  }

  /** True when no other segment can be added. */
  get full(): boolean {
    return this.count === IOV_MAX || this.lengthBytes >= BYTES_MAX;
  }

  /**
   * Adds a piece of our own memory.
   *
   * @returns How much of it was added: all, or 0 when the array is full
   */
  addOwn(own: NativeBuffer, from: number, lengthBytes: number): number {
    if (lengthBytes === 0 || this.full) return 0;
    own.putAddress(this.#buffer.view, this.count * WORDS * 4, from);
    this.#end(lengthBytes);
    return lengthBytes;
  }

  /**
   * Adds a range of the bytes of a list.
   *
   * @param from Offset of its first byte in the list
   * @returns How much of it was added, less than `lengthBytes` when the array is full
   */
  addRange(list: ScatterGather, from: number, lengthBytes: number): number {
    const words = list.words;
    const end = list.count * WORDS;
    let at = 0;
    let skip = from;
    while (at < end && skip >= words[at + 2]!) {
      skip -= words[at + 2]!;
      at += WORDS;
    }
    let left = lengthBytes;
    for (; at < end && left > 0 && !this.full; at += WORDS) {
      const available = words[at + 2]! - skip;
      const length = left < available ? left : available;
      const to = this.count * WORDS;
      const low = words[at]! + skip;
      this.#words[to] = low;
      this.#words[to + 1] = words[at + 1]! + (low >= 0x1_0000_0000 ? 1 : 0);
      this.#end(length);
      left -= length;
      skip = 0;
    }
    return lengthBytes - left;
  }

  /** Ends a segment whose address is written. */
  #end(lengthBytes: number): void {
    const words = this.#words;
    const at = this.count * WORDS;
    words[at + 2] = lengthBytes;
    words[at + 3] = 0;
    this.count++;
    this.lengthBytes += lengthBytes;
  }

  /** Frees the memory. */
  close(): void {
    this.#buffer.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

// struct msghdr { void *name; socklen_t namelen; iovec *iov; size_t iovlen; void *control; size_t controllen; int flags; }
const MSGHDR = { NAME: 0, NAMELEN: 8, IOV: 16, IOVLEN: 24, SIZE: 56 } as const;
// struct sockaddr_storage
const NAME_MAX = 128;

/**
 * Segments for one sendmsg(2) or recvmsg(2). No control data is taken: descriptors that a peer sends are closed by the
 * kernel. Nothing here allocates after construction.
 */
export class SegmentMessage implements Disposable {
  /** Segments that are sent, or received into. */
  readonly segments: Iovec = new Iovec();
  readonly #memory = new NativeBuffer(MSGHDR.SIZE + NAME_MAX);
  readonly #pointer = this.#memory.pointer();
  readonly #nameBytes: number;

  /** @param destination Where it is sent to, a struct sockaddr; a connected socket needs none */
  constructor(destination: Uint8Array | null = null) {
    const { bytes, view, hva } = this.#memory;
    setU64(view, MSGHDR.IOV, this.segments.hva);
    this.#nameBytes = destination?.length ?? 0;
    if (destination === null) return;
    bytes.set(destination, MSGHDR.SIZE);
    setU64(view, MSGHDR.NAME, hva + MSGHDR.SIZE);
  }

  /** Sends once, without waiting. @returns Bytes sent, of a stream possibly fewer than all, or −errno */
  send(fd: number): number {
    this.#setCounts(this.#nameBytes);
    return sendMessage(fd, this.#pointer);
  }

  /** Receives bytes of a stream once, without waiting. @returns How many, 0 at its end, or −errno */
  receive(fd: number): number {
    this.#setCounts(0);
    return receiveMessage(fd, this.#pointer);
  }

  /** Receives a datagram, without waiting. @returns Its length, also when it was cut for want of room; or −errno */
  receiveDatagram(fd: number): number {
    // On a TCP socket this would throw the bytes away.
    const MSG_TRUNC = 0x20;
    this.#setCounts(0);
    return receiveMessage(fd, this.#pointer, MSG_TRUNC);
  }

  /** recvmsg(2) writes to the header what it gave. */
  #setCounts(nameBytes: number): void {
    const { view } = this.#memory;
    view.setUint32(MSGHDR.NAMELEN, nameBytes, true);
    view.setUint32(MSGHDR.IOVLEN, this.segments.count, true);
  }

  /** Frees the memory. */
  close(): void {
    this.segments.close();
    this.#memory.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/** Access to ranges of a list by one call into C for each segment. Nothing here allocates after construction. */
export class SegmentCopy {
  /** Address of our own memory, in its only element: a number that is passed on may have to be allocated. */
  readonly hva: Float64Array<ArrayBuffer> = new Float64Array(1);
  readonly #words = new Words(3);

  /**
   * Copies a range of a list to our own memory.
   *
   * @param from Offset of its first byte in the list
   */
  read(list: ScatterGather, from: number, lengthBytes: number): void {
    this.#run(list, from, lengthBytes, 0);
  }

  /** Copies our own memory to a range of a list. */
  write(list: ScatterGather, from: number, lengthBytes: number): void {
    this.#run(list, from, lengthBytes, 2);
  }

  /** Fills a range of a list with zeroes. */
  zero(list: ScatterGather, from: number, lengthBytes: number): void {
    this.#run(list, from, lengthBytes, -1);
  }

  /** @param own Where in the words of a call the address of our own memory goes; negative for none */
  #run(
    list: ScatterGather,
    from: number,
    lengthBytes: number,
    own: number,
  ): void {
    // SAFETY: our own memory has lengthBytes, as the caller has checked; the controller translated the segments, and they
    // stay mapped until this returns.
    const { words, count } = list;
    const { halves } = this.#words;
    const guest = own === 0 ? 2 : 0;
    let at = this.hva[0]!;
    let skip = from;
    let left = lengthBytes;
    halves[5] = 0;
    for (let i = 0; left > 0 && i < count * WORDS; i += WORDS) {
      const available = words[i + 2]! - skip;
      if (available <= 0) {
        skip = -available;
        continue;
      }
      const length = left < available ? left : available;
      const low = words[i]! + skip;
      halves[guest] = low;
      halves[guest + 1] = words[i + 1]! + (low >= 0x1_0000_0000 ? 1 : 0);
      halves[4] = length;
      if (own < 0) clearWords(this.#words);
      else {
        halves[own] = at >>> 0;
        halves[own + 1] = Math.floor(at / 0x1_0000_0000);
        copyWords(this.#words);
      }
      skip = 0;
      at += length;
      left -= length;
    }
  }
}
