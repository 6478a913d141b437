/**
 * Sends NBD requests: headers of our own and data straight from guest memory, as many as fit in one call.
 *
 * @module
 */

import { setU64 } from "../../../core/bits.ts";
import { Errno } from "../../../core/errno.ts";
import { NativeBuffer, sendMessage } from "../../../os/mod.ts";
import { Iovec, Scratch } from "../iovec.ts";
import { NBD_REQUEST, NBD_REQUEST_MAGIC } from "./protocol.ts";
import { NbdPayload, type NbdSlot, NbdSlotState } from "./slots.ts";

const ZERO_BYTES = 65536;
/** Room of a header, so that each has an address of its own. */
const HEADER_STRIDE = 32;
// struct msghdr { void *name; socklen_t namelen; iovec *iov; size_t iovlen; void *control; size_t controllen; int flags; }
const MSGHDR = { IOV: 16, IOVLEN: 24, SIZE: 56 } as const;

/** {@linkcode NbdSender.flush}'s answer when the socket takes no more for now. */
export const BLOCKED = 1;

/** The sending half of a connection; outlives connections. */
export class NbdSender {
  readonly #iovec = new Iovec();
  readonly #headers: Scratch;
  readonly #zeroes = new Scratch(ZERO_BYTES);
  readonly #message = new NativeBuffer(MSGHDR.SIZE);
  readonly #messagePointer = this.#message.pointer();
  /** A ring of the slots that wait, oldest first. */
  readonly #ring: (NbdSlot | null)[];
  #first = 0;
  #waiting = 0;
  /** How much of the oldest is sent, header included. */
  #sentBytes = 0;
  /** The rest of a request that was given up when it was partly sent: a copy. */
  #rest: Scratch | null = null;
  #restFrom = 0;
  #restBytes = 0;

  /** @param slots How many there are; a power of two */
  constructor(slots: number) {
    this.#headers = new Scratch(slots * HEADER_STRIDE);
    this.#ring = new Array<NbdSlot | null>(slots).fill(null);
    setU64(this.#message.view, MSGHDR.IOV, this.#iovec.hva);
  }

  /** How many slots wait, the partly sent one included. */
  get waiting(): number {
    return this.#waiting;
  }

  /** Whether nothing waits, and no request is half sent. */
  get idle(): boolean {
    return this.#waiting === 0 && this.#restBytes === 0;
  }

  /** Puts a slot at the end of the queue. */
  push(slot: NbdSlot): void {
    slot.state = NbdSlotState.QUEUED;
    slot.receivedBytes = 0;
    slot.error = 0;
    const at = (this.#first + this.#waiting) & (this.#ring.length - 1);
    this.#ring[at] = slot;
    this.#waiting++;
    this.#writeHeader(slot);
  }

  /** Takes the oldest slot that no byte was sent of away from the queue; null when there is none. */
  pop(): NbdSlot | null {
    if (this.#waiting === 0 || this.#sentBytes > 0) return null;
    return this.#shift();
  }

  /**
   * Copies what is left of the slot that is partly sent, so that it can be given up without breaking the stream.
   *
   * @returns The slot, which the server will answer; null when none is partly sent
   */
  detach(): NbdSlot | null {
    if (this.#sentBytes === 0) return null;
    const slot = this.#ring[this.#first]!;
    const bytes = NBD_REQUEST.SIZE + slot.payloadBytes - this.#sentBytes;
    const rest = new Scratch(bytes);
    let copied = 0;
    while (copied < bytes) {
      this.#iovec.clear();
      this.#addSlot(slot, this.#sentBytes + copied);
      this.#iovec.copyTo(rest, copied);
      copied += this.#iovec.lengthBytes;
    }
    this.#rest = rest;
    this.#restFrom = 0;
    this.#restBytes = bytes;
    this.#sentBytes = 0;
    return this.#shift();
  }

  /** Forgets what was partly sent, with its connection; the queue stays. */
  restart(): void {
    this.#sentBytes = 0;
    this.#dropRest();
  }

  /**
   * Sends what waits.
   *
   * @param hold Send only what is left of a request that was given up
   * @returns 0 when all is sent that may be, {@linkcode BLOCKED}, or −errno
   */
  flush(fd: number, hold: boolean): number {
    while (this.#restBytes > 0 || (this.#waiting > 0 && !hold)) {
      this.#fill(hold);
      this.#message.view.setUint32(MSGHDR.IOVLEN, this.#iovec.count, true);
      const sent = sendMessage(fd, this.#messagePointer);
      if (sent < 0) return sent === -Errno.EAGAIN ? BLOCKED : sent;
      this.#account(sent);
    }
    return 0;
  }

  /** Frees the memory. */
  close(): void {
    this.#dropRest();
    this.#iovec.close();
    this.#headers.close();
    this.#zeroes.close();
    this.#message.close();
  }

  #fill(hold: boolean): void {
    const iovec = this.#iovec;
    iovec.clear();
    if (this.#restBytes > 0) {
      iovec.addScratch(this.#rest!, this.#restFrom, this.#restBytes);
    }
    if (hold) return;
    const mask = this.#ring.length - 1;
    for (let i = 0; i < this.#waiting; i++) {
      const slot = this.#ring[(this.#first + i) & mask]!;
      if (!this.#addSlot(slot, i === 0 ? this.#sentBytes : 0)) return;
    }
  }

  /** Adds a slot from byte `skip` on; false when not all of it fitted. */
  #addSlot(slot: NbdSlot, skip: number): boolean {
    const iovec = this.#iovec;
    if (skip < NBD_REQUEST.SIZE) {
      const at = slot.index * HEADER_STRIDE + skip;
      const length = NBD_REQUEST.SIZE - skip;
      if (iovec.addScratch(this.#headers, at, length) < length) return false;
      skip = NBD_REQUEST.SIZE;
    }
    const from = skip - NBD_REQUEST.SIZE;
    const left = slot.payloadBytes - from;
    if (left === 0) return true;
    if (slot.payload === NbdPayload.BUFFERS) {
      return iovec.addRange(slot.request!.buffers, from, left) === left;
    }
    for (let done = 0; done < left;) {
      const length = left - done < ZERO_BYTES ? left - done : ZERO_BYTES;
      if (iovec.addScratch(this.#zeroes, 0, length) === 0) return false;
      done += length;
    }
    return true;
  }

  #account(sent: number): void {
    if (this.#restBytes > 0) {
      const part = sent < this.#restBytes ? sent : this.#restBytes;
      this.#restFrom += part;
      this.#restBytes -= part;
      sent -= part;
      if (this.#restBytes > 0) return;
      this.#dropRest();
    }
    while (sent > 0) {
      const slot = this.#ring[this.#first]!;
      const left = NBD_REQUEST.SIZE + slot.payloadBytes - this.#sentBytes;
      if (sent < left) {
        this.#sentBytes += sent;
        return;
      }
      sent -= left;
      this.#sentBytes = 0;
      this.#shift().state = NbdSlotState.SENT;
    }
  }

  #shift(): NbdSlot {
    const slot = this.#ring[this.#first]!;
    this.#ring[this.#first] = null;
    this.#first = (this.#first + 1) & (this.#ring.length - 1);
    this.#waiting--;
    return slot;
  }

  #dropRest(): void {
    this.#rest?.close();
    this.#rest = null;
    this.#restBytes = 0;
  }

  #writeHeader(slot: NbdSlot): void {
    const view = this.#headers.view;
    const at = slot.index * HEADER_STRIDE;
    const offset = slot.offset;
    view.setUint32(at + NBD_REQUEST.MAGIC, NBD_REQUEST_MAGIC);
    view.setUint16(at + NBD_REQUEST.FLAGS, slot.flags);
    view.setUint16(at + NBD_REQUEST.TYPE, slot.command);
    view.setUint32(at + NBD_REQUEST.COOKIE, slot.generation);
    view.setUint32(at + NBD_REQUEST.COOKIE + 4, slot.index);
    view.setUint32(
      at + NBD_REQUEST.OFFSET,
      Math.floor(offset / 0x1_0000_0000),
    );
    view.setUint32(at + NBD_REQUEST.OFFSET + 4, offset >>> 0);
    view.setUint32(at + NBD_REQUEST.LENGTH, slot.lengthBytes);
  }
}
