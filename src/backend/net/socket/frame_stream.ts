/**
 * Frames in a byte stream, each behind its length as a 32-bit number in network order: what QEMU's `-netdev stream`
 * and passt speak.
 *
 * @module
 */

import type { StateReader } from "../../../core/state_reader.ts";
import { Errno, errnoName } from "../../../core/errno.ts";
import { copyWords, type Fd, NativeBuffer } from "../../../os/mod.ts";
import { Words } from "../../../os/symbols.ts";
import type { ScatterGather } from "../../../memory/scatter_gather.ts";
import { SegmentCopy, SegmentMessage } from "../../../memory/segments.ts";

/** Length in bytes of the number before each frame. */
const LENGTH_BYTES = 4;

/** The longest frame either side may send, as in QEMU (NET_BUFSIZE). */
export const STREAM_FRAME_MAX: number = 4096 + 65536;
/** A destination, a source and a type: what is shorter is no Ethernet frame. */
const ETH_HLEN = 14;
/** Bytes that are taken from the socket at once. */
const RECEIVE_BYTES = 256 * 1024;
/** Most bytes that are put into it at once. */
const SEND_BYTES = 256 * 1024;
/** Most reads of one receive(), however many frames without meaning it finds. */
const READS_MAX = 4;

/**
 * One connection.
 *
 * ```text
 *   open --the peer closes, an error, a length that cannot be--> ended (the reason stays)
 * ```
 * Sending copies a frame; those that were sent with `more` leave together, by one call. What the socket has no room for
 * is kept, and the next frame waits until that has left. Receiving reads as much as there is, and copies one frame after
 * the other out of that.
 */
export class FrameStream implements Disposable {
  readonly #fd: Fd;
  /** The shortest frame. */
  readonly #minBytes: number;
  readonly #message = new SegmentMessage();
  readonly #in = new NativeBuffer(RECEIVE_BYTES);
  readonly #out = new NativeBuffer(SEND_BYTES);
  readonly #segments = new SegmentCopy();
  /** Of memory that is no list: where to, where from, how much. */
  readonly #copy = new Words(3);
  /** Received bytes that were not taken yet: from here … */
  #head = 0;
  /** … to here. */
  #tail = 0;
  #taken = 0;
  /** The socket had less than was asked for: it is empty until the next event. */
  #drained = false;
  /** Bytes of frames that are yet to leave: from here … */
  #outHead = 0;
  /** … to here. */
  #outTail = 0;
  /** Offset of the last of them, and of the one before; −1 where there is none of which nothing has left. */
  #last = -1;
  #beforeLast = -1;
  /** The socket had no room for them. */
  #full = false;
  #endReason: string | null = null;
  #bytesRead = 0;
  #runts = 0;
  #badLengths = 0;

  /**
   * @param fd A connected socket; taken over
   * @param headerBytes Length of what each frame begins with before its addresses
   * @param state Of a predecessor on that socket, if there was one
   * @throws {import("../../../core/errno.ts").ErrnoError} EINVAL when the state cannot be
   */
  constructor(fd: Fd, headerBytes = 0, state?: StateReader) {
    this.#minBytes = headerBytes + ETH_HLEN;
    this.#fd = fd;
    if (state === undefined) return;
    const received = state.bytes("received");
    const unsent = state.bytes("unsent");
    this.#endReason = state.textOrNull("endReason");
    this.#in.bytes.set(received);
    this.#tail = received.length;
    this.#out.bytes.set(unsent);
    this.#outTail = unsent.length;
    this.#full = this.#outTail > 0;
  }

  /** The socket. */
  get fd(): number {
    return this.#fd.number;
  }

  /** Reason for nothing more to come or go, for people; null while something may. */
  get endReason(): string | null {
    return this.#endReason;
  }

  /** Memory of the frames that have come. */
  get received(): DataView<ArrayBuffer> {
    return this.#in.view;
  }

  /** Offset in {@linkcode received} of the frame that was taken last. */
  get taken(): number {
    return this.#taken;
  }

  /** Memory of the frames that are yet to leave. */
  get unsent(): DataView<ArrayBuffer> {
    return this.#out.view;
  }

  /** Count of bytes that came so far. */
  get bytesRead(): number {
    return this.#bytesRead;
  }

  /** Count of frames that were too short to be any. */
  get runts(): number {
    return this.#runts;
  }

  /** Count of lengths that could not be, which is one at most: it ends the connection. */
  get badLengths(): number {
    return this.#badLengths;
  }

  /** True when the socket had no room for what was to leave: until it has, nothing more is taken. */
  get isFull(): boolean {
    return this.#full;
  }

  /** True when the next {@linkcode receive} finds something without reading. */
  get hasFrame(): boolean {
    const available = this.#tail - this.#head;
    if (this.#endReason !== null || available < LENGTH_BYTES) return false;
    const length = this.#in.view.getUint32(this.#head);
    return !isPossible(length) || available >= LENGTH_BYTES + length;
  }

  /**
   * Sends one frame.
   *
   * @param more The caller calls {@linkcode flush} soon
   * @returns ≥ 0 when it was taken, −EAGAIN when there is no room for it yet, −EMSGSIZE when it is too long, another
   * −errno when the connection is broken
   */
  send(frame: ScatterGather, more = false): number {
    const length = frame.lengthBytes;
    const at = this.#reserve(length);
    if (at < 0) return at;
    this.#segments.hva[0] = this.#out.hva + at;
    this.#segments.read(frame, 0, length);
    return more ? 0 : this.#sendOff();
  }

  /**
   * Sends one frame out of memory of the caller's own, when {@linkcode flush} is called or there are many.
   *
   * @param headerBytes Length of what is to be written before it, by the caller
   * @returns Offset of that in {@linkcode unsent} until then, or as {@linkcode send}
   */
  put(hva: number, lengthBytes: number, headerBytes: number): number {
    const at = this.#reserve(headerBytes + lengthBytes);
    if (at < 0) return at;
    this.#copy.set(0, this.#out.hva + at + headerBytes);
    this.#copy.set(1, hva);
    this.#copy.set(2, lengthBytes);
    // SAFETY: the caller vouches for the source, and the room was made.
    copyWords(this.#copy);
    return at;
  }

  /** Offset of the frame before the last one that was put; −1 when that has left. */
  get beforeLast(): number {
    return this.#beforeLast;
  }

  /** Appends to the frame before the last one what that has behind its first `skipBytes`; it is no frame any more. */
  join(skipBytes: number): void {
    const to = this.#last - LENGTH_BYTES;
    const from = this.#last + skipBytes;
    this.#out.bytes.copyWithin(to, from, this.#outTail);
    this.#outTail -= from - to;
    this.#last = this.#beforeLast;
    this.#beforeLast = -1;
    this.#out.view.setUint32(
      this.#last - LENGTH_BYTES,
      this.#outTail - this.#last,
    );
  }

  /**
   * Sends what waits.
   *
   * @returns 0 when nothing is left, −EAGAIN when something is, another −errno when the connection is broken
   */
  flush(): number {
    this.#last = this.#beforeLast = -1;
    while (this.#outHead < this.#outTail) {
      const { segments } = this.#message;
      segments.clear();
      segments.addOwn(
        this.#out,
        this.#outHead,
        this.#outTail - this.#outHead,
      );
      const sent = this.#message.send(this.#fd.number);
      if (sent < 0) {
        this.#full = sent === -Errno.EAGAIN;
        if (!this.#full) this.#break(sent);
        return sent;
      }
      this.#outHead += sent;
    }
    this.#outHead = this.#outTail = 0;
    this.#full = false;
    return 0;
  }

  /** The socket has bytes, or an end: the next {@linkcode receive} may read. */
  onReadable(): void {
    this.#drained = false;
  }

  /**
   * Receives one frame.
   *
   * @returns Its length, also where the list has room for less; −EAGAIN when there is none, be it that nothing has come
   * or that the connection has ended
   */
  receive(into: ScatterGather): number {
    const at = this.#next();
    if (at < 0) return at;
    const length = this.#in.view.getUint32(at - LENGTH_BYTES);
    this.#segments.hva[0] = this.#in.hva + at;
    this.#segments.write(into, 0, length);
    return length;
  }

  /**
   * Receives one frame where it is: its bytes are good until the next call.
   *
   * @param address Word `i` of it becomes the address of the byte behind the first `skipBytes`
   * @returns As of {@linkcode receive}
   */
  take(address: Words, i: number, skipBytes: number): number {
    const at = this.#next();
    if (at < 0) return at;
    this.#taken = at;
    address.set(i, this.#in.hva + at + skipBytes);
    return this.#in.view.getUint32(at - LENGTH_BYTES);
  }

  /** Reads what has come, once, and throws whole frames away. */
  discard(): void {
    this.clear();
    if (this.#endReason === null) this.#read();
    this.clear();
  }

  /** Throws away the frames that were read already. */
  clear(): void {
    while (this.#endReason === null && this.#takeFrame() !== 0);
  }

  /** State for a successor on that socket; plain data. */
  save(): Readonly<Record<string, unknown>> {
    return {
      // Frames, and the beginning of one.
      received: this.#in.bytes.slice(this.#head, this.#tail),
      // The first of them perhaps in part.
      unsent: this.#out.bytes.slice(this.#outHead, this.#outTail),
      endReason: this.#endReason,
    };
  }

  /** Closes the socket. */
  close(): void {
    this.#endReason ??= "it was closed here";
    this.#fd.close();
    this.#message.close();
    this.#in.close();
    this.#out.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  /** @returns Offset of the next frame's first byte, or −EAGAIN */
  #next(): number {
    let reads = 0;
    while (this.#endReason === null) {
      const at = this.#takeFrame();
      if (at > 0) {
        if (this.#in.view.getUint32(at - LENGTH_BYTES) >= this.#minBytes) {
          return at;
        }
        this.#runts++;
        continue;
      }
      if (this.#endReason !== null || this.#drained || reads++ === READS_MAX) {
        break;
      }
      this.#read();
    }
    return -Errno.EAGAIN;
  }

  /** @returns Offset of the first byte of a frame that is taken off the buffer, 0 when there is no whole one */
  #takeFrame(): number {
    const available = this.#tail - this.#head;
    if (available < LENGTH_BYTES) return 0;
    const length = this.#in.view.getUint32(this.#head);
    if (!isPossible(length)) {
      this.#badLengths++;
      this.#endReason =
        `it announced a frame of ${length} bytes, ${STREAM_FRAME_MAX} are the most, so it does not speak this protocol`;
      return 0;
    }
    if (available < LENGTH_BYTES + length) return 0;
    const at = this.#head + LENGTH_BYTES;
    this.#head = at + length;
    return at;
  }

  /** Reads once, behind what is there: less than a frame, whenever this is called. */
  #read(): void {
    const left = this.#tail - this.#head;
    if (this.#head > 0) {
      this.#in.bytes.copyWithin(0, this.#head, this.#tail);
      this.#head = 0;
      this.#tail = left;
    }
    // Never 0: the buffer is longer than the longest frame.
    const room = this.#in.lengthBytes - left;
    const { segments } = this.#message;
    segments.clear();
    segments.addOwn(this.#in, left, room);
    const n = this.#message.receive(this.#fd.number);
    if (n > 0) {
      this.#tail = left + n;
      this.#bytesRead += n;
      this.#drained = n < room;
    } else if (n === -Errno.EAGAIN) this.#drained = true;
    else if (n === 0) this.#endReason = "the peer closed it";
    else this.#break(n);
  }

  #break(error: number): void {
    this.#endReason ??= `it broke (${errnoName(-error)})`;
  }

  /**
   * Makes room for a frame, behind its length.
   *
   * @returns Offset of its first byte, or −errno
   */
  #reserve(length: number): number {
    if (length > STREAM_FRAME_MAX) return -Errno.EMSGSIZE;
    if (
      this.#full || this.#outTail + LENGTH_BYTES + length > SEND_BYTES
    ) {
      const flushed = this.flush();
      if (flushed < 0) return flushed;
    }
    const at = this.#outTail + LENGTH_BYTES;
    this.#out.view.setUint32(this.#outTail, length);
    this.#outTail = at + length;
    this.#beforeLast = this.#last;
    this.#last = at;
    return at;
  }

  /** As flush(), which fails only when the connection does: what was taken is kept. */
  #sendOff(): number {
    const flushed = this.flush();
    return flushed === -Errno.EAGAIN ? 0 : flushed;
  }
}

function isPossible(length: number): boolean {
  return length > 0 && length <= STREAM_FRAME_MAX;
}
