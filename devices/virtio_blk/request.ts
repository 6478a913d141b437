/**
 * One request: from the driver's chain to a block request, and from its result to the status byte.
 *
 * @module
 */

import {
  BlockOp,
  type BlockRequest,
} from "../../src/backend/block/contract.ts";
import { Errno } from "../../src/core/errno.ts";
import type { GuestMemory } from "../../src/memory/guest_memory.ts";
import type { ScatterGather } from "../../src/memory/scatter_gather.ts";
import {
  VIRTIO_BLK_ID_BYTES,
  VIRTIO_BLK_OUTHDR,
  VIRTIO_BLK_RANGE,
  VIRTIO_BLK_S,
  VIRTIO_BLK_SECTOR_SIZE,
  VIRTIO_BLK_T,
  VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
} from "./defs.ts";
import { RANGES_MAX, type Slot } from "./in_flight.ts";

/** Findings of {@linkcode RequestParser.parse} where that is not a VIRTIO_BLK_S_* status to answer with. */
export const Verdict = {
  /** The back end is to do it. */
  SUBMIT: -1,
  /** It cannot even be answered: the device fails ({@linkcode RequestParser.lastError}). */
  BROKEN: -2,
} as const;

/** Longest range of DISCARD and WRITE_ZEROES in sectors: 1 GiB. */
export const RANGE_SECTORS_MAX = 0x20_0000;

/** From here on the upper half of a sector number makes an offset beyond 2^53. */
const SECTOR_HIGH_LIMIT = 0x1000;

/** Limits of requests; change with the storage and with what was negotiated. */
export interface RequestLimits {
  /** Length of the storage. */
  sizeBytes: number;
  /** Its logical block. */
  logicalBlockBytes: number;
  /** Longest read or write. */
  maxTransferBytes: number;
  /** True when every kind of write is refused. */
  readonly: boolean;
  /** True when each write is to be durable by itself: the cache is off, and the back end cannot see to it. */
  durableWrites: boolean;
  /** True when DISCARD was negotiated. */
  discard: boolean;
  /** True when WRITE_ZEROES was negotiated. */
  writeZeroes: boolean;
}

/**
 * Reads and checks requests, and ends them. Every byte of a request is read once; nothing is allocated.
 *
 * A chain is `header | data to write` (device-readable) and then `data that was read | status` (device-writable), cut
 * into descriptors anywhere (section 2.7.4).
 */
export class RequestParser {
  /** Limits of requests; the device keeps them up to date. */
  readonly limits: RequestLimits;
  /** Reason that the last request was {@linkcode Verdict.BROKEN} for. */
  lastError = "";
  readonly #memory: GuestMemory;
  readonly #id = new Uint8Array(VIRTIO_BLK_ID_BYTES);
  readonly #header = new Uint8Array(VIRTIO_BLK_OUTHDR.SIZE);
  readonly #view = new DataView(this.#header.buffer);
  /** The status byte, and where it goes. */
  readonly #byte = new Uint8Array(1);
  readonly #last: ScatterGather;
  readonly #address = new Uint32Array(2);

  /** @param serial What GET_ID tells, at most 20 ASCII characters */
  constructor(memory: GuestMemory, limits: RequestLimits, serial: string) {
    this.#memory = memory;
    this.limits = limits;
    this.#last = memory.createScatterGather(1);
    new TextEncoder().encodeInto(serial, this.#id);
  }

  /**
   * Parses the chain of a slot into its request.
   *
   * @returns A {@linkcode Verdict}, or the VIRTIO_BLK_S_* status of a request that is done already
   */
  parse(slot: Slot): number {
    const { readable, writable } = slot.chain;
    if (writable.lengthBytes < 1) {
      return this.#broken("a request has no room for its status (5.2.6)");
    }
    slot.dataBytes = 0;
    slot.rangeCount = 0;
    if (!slot.chain.isWhole) return VIRTIO_BLK_S.IOERR;
    const got = this.#memory.gather(
      readable,
      this.#header,
      VIRTIO_BLK_OUTHDR.SIZE,
    );
    if (got < VIRTIO_BLK_OUTHDR.SIZE) {
      return this.#broken("a request is shorter than its header (5.2.6)");
    }
    slot.type = this.#view.getUint32(VIRTIO_BLK_OUTHDR.TYPE, true);
    slot.range = 0;
    slot.request.durable = false;
    slot.request.mayUnmap = false;
    slot.request.buffers.clear();
    switch (slot.type) {
      case VIRTIO_BLK_T.IN:
        return this.#parseIn(slot);
      case VIRTIO_BLK_T.OUT:
        return this.#parseOut(slot);
      case VIRTIO_BLK_T.FLUSH:
        return this.#parseFlush(slot);
      case VIRTIO_BLK_T.GET_ID:
        return this.#getId(slot);
      case VIRTIO_BLK_T.DISCARD:
        return this.#parseRanges(slot, this.limits.discard, 0);
      case VIRTIO_BLK_T.WRITE_ZEROES:
        return this.#parseRanges(
          slot,
          this.limits.writeZeroes,
          VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
        );
      default:
        return VIRTIO_BLK_S.UNSUPP;
    }
  }

  /** True when a request lies inside the storage, which may have become smaller since it was parsed. */
  fits(request: BlockRequest): boolean {
    const { offset, lengthBytes } = request;
    return offset + lengthBytes <= this.limits.sizeBytes;
  }

  /**
   * Goes on to the next range of a DISCARD or WRITE_ZEROES.
   *
   * @returns Whether there was one, now in the slot's request
   */
  nextRange(slot: Slot): boolean {
    for (;;) {
      slot.range++;
      if (slot.range >= slot.rangeCount) return false;
      this.#placeRange(slot);
      // All of them were checked, against what the storage was then; an empty one needs nothing.
      if (slot.request.lengthBytes > 0) return true;
    }
  }

  /**
   * Ends the request of a slot: the status goes into the last device-writable byte.
   *
   * @param status VIRTIO_BLK_S_*
   * @returns What the used ring is to tell: how many bytes were written without a gap from the start (2.7.8.2)
   */
  complete(slot: Slot, status: number): number {
    const { writable } = slot.chain;
    const room = writable.lengthBytes - 1;
    const data = status === VIRTIO_BLK_S.OK ? slot.dataBytes : 0;
    this.#aimAtLastByte(writable);
    this.#byte[0] = status;
    this.#memory.scatter(this.#last, this.#byte, 1);
    return data === room && slot.chain.isWhole ? room + 1 : data;
  }

  #aimAtLastByte(list: ScatterGather): void {
    // Straight from the words of the list: an address as one number would cost a heap number.
    const words = list.words;
    const last = (list.count - 1) * 4;
    const low = words[last]! + words[last + 2]! - 1;
    this.#address[0] = low;
    this.#address[1] = words[last + 1]! + (low >= 0x1_0000_0000 ? 1 : 0);
    this.#last.clear();
    this.#last.pushWords(this.#address, 1);
  }

  #broken(reason: string): number {
    this.lastError = reason;
    return Verdict.BROKEN;
  }

  #parseIn(slot: Slot): number {
    const lengthBytes = slot.chain.writable.lengthBytes - 1;
    const status = this.#placeTransfer(slot, lengthBytes);
    if (status !== Verdict.SUBMIT) return status;
    slot.request.op = BlockOp.READ;
    slot.dataBytes = lengthBytes;
    slot.request.buffers.append(slot.chain.writable);
    // The status byte is no data.
    slot.request.buffers.truncate(lengthBytes);
    return Verdict.SUBMIT;
  }

  #parseOut(slot: Slot): number {
    // A device that offers RO MUST fail writes with IOERR (5.2.6.2).
    if (this.limits.readonly) return VIRTIO_BLK_S.IOERR;
    const { readable } = slot.chain;
    const status = this.#placeTransfer(
      slot,
      readable.lengthBytes - VIRTIO_BLK_OUTHDR.SIZE,
    );
    if (status !== Verdict.SUBMIT) return status;
    slot.request.op = BlockOp.WRITE;
    slot.request.durable = this.limits.durableWrites;
    slot.request.buffers.append(readable, VIRTIO_BLK_OUTHDR.SIZE);
    return Verdict.SUBMIT;
  }

  #placeTransfer(slot: Slot, lengthBytes: number): number {
    if (
      lengthBytes > this.limits.maxTransferBytes ||
      !this.#place(slot, this.#view, VIRTIO_BLK_OUTHDR.SECTOR, lengthBytes)
    ) return VIRTIO_BLK_S.IOERR;
    return lengthBytes === 0 ? VIRTIO_BLK_S.OK : Verdict.SUBMIT;
  }

  /** Writes a range into the request, and checks it against the storage. */
  #place(
    slot: Slot,
    view: DataView,
    at: number,
    lengthBytes: number,
  ): boolean {
    const low = view.getUint32(at, true);
    const high = view.getUint32(at + 4, true);
    if (high >= SECTOR_HIGH_LIMIT) return false;
    const { sizeBytes, logicalBlockBytes } = this.limits;
    const sectorMask = logicalBlockBytes / VIRTIO_BLK_SECTOR_SIZE - 1;
    // Exact: below 2^44 sectors, thus below 2^53 bytes.
    const offset = (high * 0x1_0000_0000 + low) * VIRTIO_BLK_SECTOR_SIZE;
    slot.request.offset = offset;
    slot.request.lengthBytes = lengthBytes;
    return (low & sectorMask) === 0 &&
      (lengthBytes & (logicalBlockBytes - 1)) === 0 &&
      offset <= sizeBytes && lengthBytes <= sizeBytes - offset;
  }

  #parseFlush(slot: Slot): number {
    const { request } = slot;
    request.op = BlockOp.FLUSH;
    request.offset = 0;
    request.lengthBytes = 0;
    return Verdict.SUBMIT;
  }

  #getId(slot: Slot): number {
    const { writable } = slot.chain;
    const room = writable.lengthBytes - 1;
    const length = room < VIRTIO_BLK_ID_BYTES ? room : VIRTIO_BLK_ID_BYTES;
    slot.dataBytes = this.#memory.scatter(writable, this.#id, length);
    return VIRTIO_BLK_S.OK;
  }

  /** Checks all ranges before the first of them is served. */
  #parseRanges(slot: Slot, negotiated: boolean, flagsMask: number): number {
    if (!negotiated) return VIRTIO_BLK_S.UNSUPP;
    if (this.limits.readonly) return VIRTIO_BLK_S.IOERR;
    const { request } = slot;
    const { buffers } = request;
    buffers.append(slot.chain.readable, VIRTIO_BLK_OUTHDR.SIZE);
    const { lengthBytes } = buffers;
    if (
      lengthBytes === 0 || lengthBytes % VIRTIO_BLK_RANGE.SIZE !== 0 ||
      lengthBytes > RANGES_MAX * VIRTIO_BLK_RANGE.SIZE
    ) return VIRTIO_BLK_S.IOERR;
    this.#memory.gather(buffers, slot.rangeBytes(), lengthBytes);
    buffers.clear();
    slot.rangeCount = lengthBytes / VIRTIO_BLK_RANGE.SIZE;
    for (slot.range = 0; slot.range < slot.rangeCount; slot.range++) {
      const at = slot.range * VIRTIO_BLK_RANGE.SIZE;
      const flags = slot.ranges.getUint32(at + VIRTIO_BLK_RANGE.FLAGS, true);
      // An unknown flag, and UNMAP with DISCARD, MUST be answered with UNSUPP (5.2.6.2).
      if ((flags & ~flagsMask) !== 0) return VIRTIO_BLK_S.UNSUPP;
      if (!this.#placeRange(slot)) return VIRTIO_BLK_S.IOERR;
    }
    const zeroes = slot.type === VIRTIO_BLK_T.WRITE_ZEROES;
    request.op = zeroes ? BlockOp.WRITE_ZEROES : BlockOp.DISCARD;
    request.durable = zeroes && this.limits.durableWrites;
    slot.range = -1;
    return this.nextRange(slot) ? Verdict.SUBMIT : VIRTIO_BLK_S.OK;
  }

  #placeRange(slot: Slot): boolean {
    const at = slot.range * VIRTIO_BLK_RANGE.SIZE;
    const view = slot.ranges;
    const sectors = view.getUint32(at + VIRTIO_BLK_RANGE.NUM_SECTORS, true);
    const flags = view.getUint32(at + VIRTIO_BLK_RANGE.FLAGS, true);
    slot.request.mayUnmap = (flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP) !== 0;
    return sectors <= RANGE_SECTORS_MAX &&
      this.#place(
        slot,
        view,
        at + VIRTIO_BLK_RANGE.SECTOR,
        sectors * VIRTIO_BLK_SECTOR_SIZE,
      );
  }
}

/** The VIRTIO_BLK_S_* status for the result of a back end. */
export function statusOfResult(result: number): number {
  if (result === 0) return VIRTIO_BLK_S.OK;
  return result === -Errno.EOPNOTSUPP
    ? VIRTIO_BLK_S.UNSUPP
    : VIRTIO_BLK_S.IOERR;
}
