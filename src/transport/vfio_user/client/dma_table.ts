/**
 * The client's own list of what it mapped for DMA, from which it answers a server that asks by message.
 *
 * @module
 */

import { getU64 } from "../../../core/bits.ts";
import { Errno } from "../../../core/errno.ts";
import type { NativeBuffer } from "../../../os/mod.ts";
import {
  DMA_ACCESS,
  HEADER,
  VERSION_DEFAULTS,
  VFIO_USER_DMA_READ,
  VFIO_USER_DMA_WRITE,
} from "../defs.ts";
import type { CommandHandler } from "./connection.ts";

/** Memory that the client shares with the server. */
export interface DmaRange {
  /** Address at which the device sees it. */
  readonly iova: number;
  /** Length in bytes. */
  readonly lengthBytes: number;
  /** True if the device may read it. */
  readonly readable: boolean;
  /** True if the device may write it. */
  readonly writable: boolean;
  /** The memory itself, for DMA by message; without it such a request is refused. */
  readonly bytes?: Uint8Array<ArrayBuffer>;
}

/** Ranges by iova, in the order they were mapped. */
export class DmaTable {
  readonly #ranges: DmaRange[] = [];

  /** Number of ranges that are mapped. */
  get size(): number {
    return this.#ranges.length;
  }

  /** Adds a range; overlaps are the server's to refuse. */
  add(range: DmaRange): void {
    this.#ranges.push(range);
  }

  /** Forgets the range that was added with exactly this address and length. */
  remove(iova: number, lengthBytes: number): void {
    const at = this.#ranges.findIndex((range) =>
      range.iova === iova && range.lengthBytes === lengthBytes
    );
    if (at >= 0) this.#ranges.splice(at, 1);
  }

  /** Forgets all ranges. */
  clear(): void {
    this.#ranges.length = 0;
  }

  /**
   * Copies out of the client's memory; the request may span adjacent ranges.
   *
   * @returns 0, −EFAULT when not mapped, −EPERM when not readable
   */
  read(iova: number, into: Uint8Array): number {
    return this.#copy(iova, into, false);
  }

  /**
   * Copies into the client's memory.
   *
   * @returns 0, −EFAULT when not mapped, −EPERM when not writable
   */
  write(iova: number, from: Uint8Array): number {
    return this.#copy(iova, from, true);
  }

  #copy(iova: number, data: Uint8Array, write: boolean): number {
    let done = 0;
    while (done < data.length) {
      const at = iova + done;
      const range = this.#ranges.find((range) =>
        at >= range.iova && at < range.iova + range.lengthBytes
      );
      if (range?.bytes === undefined) return -Errno.EFAULT;
      if (write ? !range.writable : !range.readable) return -Errno.EPERM;
      const offset = at - range.iova;
      const length = Math.min(data.length - done, range.lengthBytes - offset);
      const own = range.bytes.subarray(offset, offset + length);
      const peer = data.subarray(done, done + length);
      if (write) own.set(peer);
      else peer.set(own);
      done += length;
    }
    return 0;
  }
}

/**
 * Structures of DMA_READ and DMA_WRITE: as the protocol says, or with the 32-bit count of QEMU
 * 10.1 and 10.2, whose reply to DMA_WRITE is a bare header.
 */
export type DmaLayout = "protocol" | "qemu-10.1";

/** Answers DMA_READ and DMA_WRITE from a {@linkcode DmaTable}, with the error numbers QEMU gives. */
export class DmaResponder implements CommandHandler {
  readonly #table: DmaTable;
  readonly #old: boolean;
  readonly #maxTransferBytes: number;
  /** Number of DMA_READ requests that were answered or refused. */
  reads = 0;
  /** Number of DMA_WRITE requests that were answered or refused. */
  writes = 0;

  /**
   * Makes a handler for the DMA commands of one server.
   *
   * @param table What the server may reach
   * @param layout Layout of the structures on the wire
   * @param maxTransferBytes The most that one command may ask for
   */
  constructor(
    table: DmaTable,
    layout: DmaLayout = "protocol",
    maxTransferBytes: number = VERSION_DEFAULTS.max_data_xfer_size,
  ) {
    this.#table = table;
    this.#old = layout === "qemu-10.1";
    this.#maxTransferBytes = maxTransferBytes;
  }

  handle(command: number, message: DataView, reply: NativeBuffer): number {
    if (command !== VFIO_USER_DMA_READ && command !== VFIO_USER_DMA_WRITE) {
      return -Errno.ENOSYS;
    }
    const dataAt = HEADER.SIZE + (this.#old ? 12 : DMA_ACCESS.DATA);
    if (message.byteLength < dataAt) return -Errno.EINVAL;
    const iova = getU64(message, HEADER.SIZE + DMA_ACCESS.ADDR);
    const countAt = HEADER.SIZE + DMA_ACCESS.COUNT;
    const count = this.#old
      ? message.getUint32(countAt, true)
      : getU64(message, countAt);
    for (let at = HEADER.SIZE; at < dataAt; at++) {
      reply.bytes[at] = message.getUint8(at);
    }
    if (command === VFIO_USER_DMA_READ) {
      this.reads++;
      if (count > this.#maxTransferBytes) return -Errno.E2BIG;
      const data = reply.bytes.subarray(dataAt, dataAt + count);
      const error = this.#table.read(iova, data);
      return error < 0 ? error : dataAt - HEADER.SIZE + count;
    }
    this.writes++;
    if (count > message.byteLength - dataAt) return -Errno.E2BIG;
    const at = message.byteOffset + dataAt;
    const error = this.#table.write(
      iova,
      new Uint8Array(message.buffer, at, count),
    );
    if (error < 0) return error;
    return this.#old ? 0 : DMA_ACCESS.SIZE;
  }
}
