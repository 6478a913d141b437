/**
 * Receives NBD replies: headers into a small buffer of our own, data straight into guest memory.
 *
 * Every byte comes from outside: a reply to nothing, data beyond what was asked for and the like end the connection.
 *
 * @module
 */

import { Errno } from "../../../core/errno.ts";
import { NativeBuffer, readv } from "../../../os/mod.ts";
import { Iovec, SegmentCopy } from "../../../memory/segments.ts";
import { type NbdSlot, type NbdSlots, NbdSlotState } from "./commands.ts";
import {
  NBD_CHUNK,
  NBD_CMD,
  NBD_ERROR,
  NBD_ERROR_CHUNK,
  NBD_OFFSET_DATA,
  NBD_OFFSET_HOLE,
  NBD_REPLY_FLAG_DONE,
  NBD_REPLY_TYPE,
  NBD_SIMPLE_REPLY,
  NBD_SIMPLE_REPLY_MAGIC,
  NBD_STRUCTURED_REPLY_MAGIC,
} from "./protocol.ts";

/** Receiver of a server's replies. */
export interface NbdReplySink {
  /** @param error NBD_ERROR_*, 0 for success */
  onReply(slot: NbdSlot, error: number): void;
}

/** Enough for many replies; data of a READ that comes with them is copied. */
const BUFFER_BYTES = 8192;
/** Calls of readv before the loop gets its turn. */
const BUDGET = 32;
/** Error messages of servers are cut short here; they are 4096 bytes at most. */
const ERROR_CHUNK_MAX_BYTES = 8192;

/** The next thing in the stream. */
const Stage = {
  HEADER: 0,
  /** The fixed part of a chunk. */
  CHUNK: 1,
  /** Data for a slot. */
  DATA: 2,
  /** Bytes that are of no use. */
  SKIP: 3,
} as const;

/** Nothing more can be parsed before more bytes are there. */
const MORE = 1;

/** The receiving half of a connection; outlives connections. */
export class NbdReceiver {
  /** The reason of −EPROTO. */
  lastError = "";
  readonly #slots: NbdSlots;
  readonly #sink: NbdReplySink;
  readonly #buffer = new NativeBuffer(BUFFER_BYTES);
  readonly #view = this.#buffer.view;
  readonly #bufferHva = Float64Array.of(this.#buffer.hva);
  readonly #iovec = new Iovec();
  readonly #copy = new SegmentCopy();
  #structured = false;
  /** The bytes of the buffer that were not looked at. */
  #start = 0;
  #end = 0;
  #stage: number = Stage.HEADER;
  /** The slot that is being answered. */
  #slot: NbdSlot | null = null;
  /** Of the chunk at hand. */
  #type = 0;
  #done = false;
  #chunkBytes = 0;
  /** Bytes that are left of the data, and where in the request they go. */
  #left = 0;
  #at = 0;
  /** Changes with each connection, so that a call in progress can tell. */
  #epoch = 0;

  constructor(slots: NbdSlots, sink: NbdReplySink) {
    this.#slots = slots;
    this.#sink = sink;
  }

  /** Begins with a new connection. */
  restart(structured: boolean): void {
    this.#structured = structured;
    this.#start = this.#end = 0;
    this.#stage = Stage.HEADER;
    this.#slot = null;
    this.#epoch++;
  }

  /** True when every byte that was received is dealt with, and no reply is half there. */
  get idle(): boolean {
    return this.#stage === Stage.HEADER && this.#start === this.#end;
  }

  /** The slots that were abandoned get no more data: their buffers are somebody else's now. */
  forgetAbandoned(): void {
    if (
      this.#stage === Stage.DATA &&
      this.#slot!.state === NbdSlotState.ABANDONED
    ) this.#stage = Stage.SKIP;
  }

  /**
   * Receives all that waits, within reason.
   *
   * @returns 0, −EPROTO ({@linkcode lastError}), −EPIPE at the end of the stream, or what readv(2) says
   */
  receive(fd: number): number {
    const epoch = this.#epoch;
    for (let i = 0; i < BUDGET; i++) {
      const got = this.#read(fd);
      if (got <= 0) {
        if (got === 0) return -Errno.EPIPE;
        return got === -Errno.EAGAIN ? 0 : got;
      }
      for (;;) {
        const result = this.#parse();
        // A reply can lead to anything, the end of the connection included.
        if (epoch !== this.#epoch) return 0;
        if (result < 0) return result;
        if (result === MORE) break;
      }
    }
    return 0;
  }

  /** Frees the memory. */
  close(): void {
    this.#buffer.close();
    this.#iovec.close();
  }

  #read(fd: number): number {
    if (this.#start > 0) {
      this.#buffer.bytes.copyWithin(0, this.#start, this.#end);
      this.#end -= this.#start;
      this.#start = 0;
    }
    const iovec = this.#iovec;
    iovec.clear();
    let direct = 0;
    if (this.#stage === Stage.DATA) {
      const { buffers } = this.#slot!.request!;
      direct = iovec.addRange(buffers, this.#at, this.#left);
      // The array may be too short for all of the data: then nothing else may follow it.
      if (direct === this.#left) this.#addBuffer();
    } else this.#addBuffer();
    const got = readv(fd, iovec.pointer, iovec.count);
    if (got <= 0) return got;
    const moved = got < direct ? got : direct;
    this.#left -= moved;
    this.#at += moved;
    this.#end += got - moved;
    return got;
  }

  #addBuffer(): void {
    this.#iovec.addOwn(this.#buffer, this.#end, BUFFER_BYTES - this.#end);
  }

  /** Parses one thing. Returns 0 when there was one, MORE, or −EPROTO. */
  #parse(): number {
    switch (this.#stage) {
      case Stage.HEADER:
        return this.#parseHeader();
      case Stage.CHUNK:
        return this.#parseChunk();
      case Stage.DATA:
        return this.#takeData();
      default:
        return this.#skip();
    }
  }

  #parseHeader(): number {
    const available = this.#end - this.#start;
    if (available < NBD_SIMPLE_REPLY.SIZE) return MORE;
    const view = this.#view;
    const at = this.#start;
    const magic = view.getUint32(at);
    if (magic === NBD_STRUCTURED_REPLY_MAGIC && this.#structured) {
      if (available < NBD_CHUNK.SIZE) return MORE;
    } else if (magic !== NBD_SIMPLE_REPLY_MAGIC) {
      return this.#broken("it sent something that is no reply");
    }
    // The cookie is at the same place in both.
    const slot = this.#slots.find(
      view.getUint32(at + NBD_SIMPLE_REPLY.COOKIE),
      view.getUint32(at + NBD_SIMPLE_REPLY.COOKIE + 4),
    );
    if (slot === null) return this.#broken("it answered what nobody asked");
    this.#slot = slot;
    return magic === NBD_SIMPLE_REPLY_MAGIC
      ? this.#beginSimple(slot, at)
      : this.#beginChunk(slot, at);
  }

  #beginSimple(slot: NbdSlot, at: number): number {
    const error = this.#view.getUint32(at + NBD_SIMPLE_REPLY.ERROR);
    this.#start = at + NBD_SIMPLE_REPLY.SIZE;
    if (slot.command !== NBD_CMD.READ || error !== 0) {
      this.#sink.onReply(slot, error);
      return 0;
    }
    if (this.#structured) {
      return this.#broken("it answered a read without structure");
    }
    this.#done = true;
    this.#beginData(slot, 0, slot.lengthBytes);
    return 0;
  }

  #beginChunk(slot: NbdSlot, at: number): number {
    const view = this.#view;
    const flags = view.getUint16(at + NBD_CHUNK.FLAGS);
    this.#done = (flags & NBD_REPLY_FLAG_DONE) !== 0;
    this.#type = view.getUint16(at + NBD_CHUNK.TYPE);
    this.#chunkBytes = view.getUint32(at + NBD_CHUNK.LENGTH);
    this.#start = at + NBD_CHUNK.SIZE;
    if (this.#type === NBD_REPLY_TYPE.NONE) {
      if (this.#chunkBytes !== 0 || !this.#done) return this.#malformed();
      return this.#endChunk();
    }
    this.#stage = Stage.CHUNK;
    if ((this.#type & NBD_REPLY_TYPE.ERROR_BIT) !== 0) {
      return this.#chunkBytes >= NBD_ERROR_CHUNK.SIZE &&
          this.#chunkBytes <= ERROR_CHUNK_MAX_BYTES
        ? 0
        : this.#malformed();
    }
    if (slot.command !== NBD_CMD.READ) return this.#malformed();
    if (this.#type === NBD_REPLY_TYPE.OFFSET_DATA) {
      return this.#chunkBytes > NBD_OFFSET_DATA.SIZE ? 0 : this.#malformed();
    }
    return this.#type === NBD_REPLY_TYPE.OFFSET_HOLE &&
        this.#chunkBytes === NBD_OFFSET_HOLE.SIZE
      ? 0
      : this.#malformed();
  }

  #parseChunk(): number {
    const available = this.#end - this.#start;
    if ((this.#type & NBD_REPLY_TYPE.ERROR_BIT) !== 0) {
      if (available < NBD_ERROR_CHUNK.SIZE) return MORE;
      return this.#takeError(this.#slot!);
    }
    const isData = this.#type === NBD_REPLY_TYPE.OFFSET_DATA;
    const size = isData ? NBD_OFFSET_DATA.SIZE : NBD_OFFSET_HOLE.SIZE;
    if (available < size) return MORE;
    const view = this.#view;
    const at = this.#start;
    this.#start += size;
    const slot = this.#slot!;
    const length = isData
      ? this.#chunkBytes - NBD_OFFSET_DATA.SIZE
      : view.getUint32(at + NBD_OFFSET_HOLE.LENGTH);
    const offset = view.getUint32(at) * 0x1_0000_0000 + view.getUint32(at + 4);
    const from = offset - slot.offset;
    // The second test also ends a server that sends the same piece for ever.
    if (
      length === 0 || from < 0 || from + length > slot.lengthBytes ||
      slot.receivedBytes + length > slot.lengthBytes
    ) return this.#broken("it sent data outside of what was asked for");
    if (isData) {
      // A double that is passed on may be allocated; an integer is not.
      this.#beginData(slot, from | 0, length | 0);
      return 0;
    }
    slot.receivedBytes += length | 0;
    if (slot.state === NbdSlotState.SENT) {
      this.#copy.zero(slot.request!.buffers, from | 0, length | 0);
    }
    return this.#endChunk();
  }

  #takeError(slot: NbdSlot): number {
    const at = this.#start;
    const error = this.#view.getUint32(at + NBD_ERROR_CHUNK.ERROR);
    const message = this.#view.getUint16(at + NBD_ERROR_CHUNK.MESSAGE_LENGTH);
    const left = this.#chunkBytes - NBD_ERROR_CHUNK.SIZE;
    if (message > left) return this.#malformed();
    if (slot.error === 0) slot.error = error === 0 ? NBD_ERROR.EIO : error;
    this.#start += NBD_ERROR_CHUNK.SIZE;
    this.#left = left;
    this.#stage = Stage.SKIP;
    return 0;
  }

  #beginData(slot: NbdSlot, from: number, lengthBytes: number): void {
    slot.receivedBytes += lengthBytes;
    this.#at = from;
    this.#left = lengthBytes;
    this.#stage = slot.state === NbdSlotState.SENT ? Stage.DATA : Stage.SKIP;
  }

  /** Copies what is in the buffer already; the rest is read to its place. */
  #takeData(): number {
    const available = this.#end - this.#start;
    const part = this.#left < available ? this.#left : available;
    this.#copy.hva[0] = this.#bufferHva[0]! + this.#start;
    this.#copy.write(this.#slot!.request!.buffers, this.#at, part);
    this.#at += part;
    return this.#take(part);
  }

  #skip(): number {
    const available = this.#end - this.#start;
    return this.#take(this.#left < available ? this.#left : available);
  }

  #take(lengthBytes: number): number {
    this.#start += lengthBytes;
    this.#left -= lengthBytes;
    return this.#left > 0 ? MORE : this.#endChunk();
  }

  #endChunk(): number {
    this.#stage = Stage.HEADER;
    if (!this.#done) return 0;
    const slot = this.#slot!;
    if (
      slot.command === NBD_CMD.READ && slot.error === 0 &&
      slot.receivedBytes !== slot.lengthBytes
    ) return this.#broken("it did not send all that was asked for");
    this.#sink.onReply(slot, slot.error);
    return 0;
  }

  #malformed(): number {
    return this.#broken("it sent a malformed reply");
  }

  #broken(reason: string): number {
    this.lastError = reason;
    return -Errno.EPROTO;
  }
}
