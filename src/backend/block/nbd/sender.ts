/**
 * Sends NBD requests: headers of our own and data straight from guest memory, as many as fit in one call.
 *
 * @module
 */

import { Errno } from "../../../core/errno.ts";
import { NativeBuffer } from "../../../os/mod.ts";
import { BlockOp } from "../contract.ts";
import { RequestQueue } from "../request_queue.ts";
import { SegmentCopy, SegmentMessage } from "../../../memory/segments.ts";
import { type NbdSlot, NbdSlotState } from "./commands.ts";
import { NBD_REQUEST, NBD_REQUEST_MAGIC } from "./protocol.ts";

const ZERO_BYTES = 65536;
/** Room of a header, so that each has an address of its own. */
const HEADER_STRIDE = 32;

/** {@linkcode NbdSender.flush}'s answer when the socket takes no more for now. */
export const BLOCKED = 1;

/** The sending half of a connection; outlives connections. */
export class NbdSender {
  readonly #message = new SegmentMessage();
  readonly #iovec = this.#message.segments;
  readonly #headers: NativeBuffer;
  readonly #zeroes = new NativeBuffer(ZERO_BYTES);
  readonly #queue = new RequestQueue<NbdSlot>();
  /** Bytes of the oldest that are sent, header included. */
  #sentBytes = 0;
  /** Copy of the rest of a request that was given up when it was partly sent. */
  #rest: NativeBuffer | null = null;
  #restFrom = 0;
  #restBytes = 0;

  /** @param slots Number of slots there are */
  constructor(slots: number) {
    this.#headers = new NativeBuffer(slots * HEADER_STRIDE);
  }

  /** Slots that wait, the partly sent one included. */
  get waiting(): number {
    return this.#queue.length;
  }

  /** True when nothing waits, and no request is half sent. */
  get idle(): boolean {
    return this.#queue.length === 0 && this.#restBytes === 0;
  }

  /** Puts a slot at the end of the queue. */
  push(slot: NbdSlot): void {
    slot.state = NbdSlotState.QUEUED;
    slot.receivedBytes = 0;
    slot.error = 0;
    this.#queue.push(slot);
    this.#writeHeader(slot);
  }

  /** Takes the oldest slot that no byte was sent of away from the queue; null when there is none. */
  pop(): NbdSlot | null {
    return this.#sentBytes > 0 ? null : this.#queue.shift();
  }

  /**
   * Copies what is left of the slot that is partly sent, so that it can be given up without breaking the stream.
   *
   * @returns The slot, which the server will answer; null when none is partly sent
   */
  detach(): NbdSlot | null {
    if (this.#sentBytes === 0) return null;
    const slot = this.#queue.shift()!;
    const sent = this.#sentBytes;
    const bytes = NBD_REQUEST.SIZE + slot.payloadBytes - sent;
    const rest = new NativeBuffer(bytes);
    const at = slot.index * HEADER_STRIDE;
    const header = this.#headers.bytes.subarray(
      at + Math.min(sent, NBD_REQUEST.SIZE),
      at + NBD_REQUEST.SIZE,
    );
    rest.bytes.set(header);
    const { op, buffers } = slot.request!;
    if (op === BlockOp.WRITE) {
      const left = bytes - header.length;
      const copy = new SegmentCopy();
      copy.hva[0] = rest.hva + header.length;
      copy.read(buffers, slot.payloadBytes - left, left);
    }
    this.#rest = rest;
    this.#restFrom = 0;
    this.#restBytes = bytes;
    this.#sentBytes = 0;
    return slot;
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
    while (this.#restBytes > 0 || (this.#queue.length > 0 && !hold)) {
      this.#fill(hold);
      const sent = this.#message.send(fd);
      if (sent < 0) return sent === -Errno.EAGAIN ? BLOCKED : sent;
      this.#account(sent);
    }
    return 0;
  }

  /** Frees the memory. */
  close(): void {
    this.#dropRest();
    this.#headers.close();
    this.#zeroes.close();
    this.#message.close();
  }

  #fill(hold: boolean): void {
    const iovec = this.#iovec;
    iovec.clear();
    if (this.#restBytes > 0) {
      iovec.addOwn(this.#rest!, this.#restFrom, this.#restBytes);
    }
    if (hold) return;
    for (let i = 0; i < this.#queue.length; i++) {
      const skip = i === 0 ? this.#sentBytes : 0;
      if (!this.#addSlot(this.#queue.at(i), skip)) return;
    }
  }

  /** Adds a slot from byte `skip` on; false when not all of it fitted. */
  #addSlot(slot: NbdSlot, skip: number): boolean {
    const iovec = this.#iovec;
    if (skip < NBD_REQUEST.SIZE) {
      const at = slot.index * HEADER_STRIDE + skip;
      const length = NBD_REQUEST.SIZE - skip;
      if (iovec.addOwn(this.#headers, at, length) < length) return false;
      skip = NBD_REQUEST.SIZE;
    }
    const from = skip - NBD_REQUEST.SIZE;
    const left = slot.payloadBytes - from;
    if (left === 0) return true;
    const { op, buffers } = slot.request!;
    if (op === BlockOp.WRITE) {
      return iovec.addRange(buffers, from, left) === left;
    }
    for (let done = 0; done < left;) {
      const length = left - done < ZERO_BYTES ? left - done : ZERO_BYTES;
      if (iovec.addOwn(this.#zeroes, 0, length) === 0) return false;
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
      const slot = this.#queue.at(0);
      const left = NBD_REQUEST.SIZE + slot.payloadBytes - this.#sentBytes;
      if (sent < left) {
        this.#sentBytes += sent;
        return;
      }
      sent -= left;
      this.#sentBytes = 0;
      this.#queue.shift();
      slot.state = NbdSlotState.SENT;
    }
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
