/**
 * The vfio-user client: one method for each command.
 *
 * @module
 */

import { setU64 } from "../../../core/bits.ts";
import { Errno, ErrnoError } from "../../../core/errno.ts";
import { connectUnix, type Fd } from "../../../os/mod.ts";
import {
  commandName,
  DEVICE_INFO,
  DMA_UNMAP,
  HEADER,
  IRQ_INFO,
  IRQ_SET,
  REGION_ACCESS,
  REGION_INFO,
  REGION_IO_FDS,
  VFIO_DMA_UNMAP_FLAG_ALL,
  VFIO_USER_DEVICE_GET_INFO,
  VFIO_USER_DEVICE_GET_IRQ_INFO,
  VFIO_USER_DEVICE_GET_REGION_INFO,
  VFIO_USER_DEVICE_GET_REGION_IO_FDS,
  VFIO_USER_DEVICE_RESET,
  VFIO_USER_DEVICE_SET_IRQS,
  VFIO_USER_DMA_MAP,
  VFIO_USER_DMA_UNMAP,
  VFIO_USER_REGION_READ,
  VFIO_USER_REGION_WRITE,
  VFIO_USER_REGION_WRITE_MULTI,
  VFIO_USER_VERSION,
  WRITE_MULTI,
  WRITE_MULTI_DATA_MAX,
  WRITE_MULTI_ENTRY,
} from "../defs.ts";
import {
  ClientConnection,
  type ConnectionOptions,
  type Reply,
} from "./connection.ts";
import {
  type DmaLayout,
  type DmaRange,
  DmaResponder,
  DmaTable,
} from "./dma_table.ts";
import {
  type DeviceInfo,
  dmaMapPayload,
  type DmaMapping,
  dmaUnmapPayload,
  expectSize,
  type IrqInfo,
  parseDeviceInfo,
  parseIrqInfo,
  parseOwning,
  refused,
  type RegionWrite,
  succeed,
  words,
} from "./messages.ts";
import { irqRuns, type IrqSet, writeIrqSet } from "./irqs.ts";
import {
  type Agreement,
  parseAgreement,
  type Proposal,
  versionPayload,
} from "./negotiation.ts";
import { RegionInfo, RegionIoFds } from "./region_info.ts";

/** Settings of a client. */
export interface ClientOptions extends ConnectionOptions {
  /** Structures of DMA_READ and DMA_WRITE; as the protocol says unless told. */
  readonly dmaLayout?: DmaLayout;
}

const PAYLOAD = HEADER.SIZE;
const DATA = PAYLOAD + REGION_ACCESS.DATA;
const ARGSZ_ATTEMPTS = 3;

/**
 * A client of a vfio-user server, as a VMM would be one: it blocks until the server has replied.
 *
 * ```text
 *   connect → negotiate → anything else … → close
 * ```
 * Methods throw {@linkcode ErrnoError} with the error number of an error reply, ETIMEDOUT when there is none in time,
 * ECONNRESET or EPIPE when the server has gone, and EPROTO when a reply breaks the protocol.
 */
export class VfioUserClient implements Disposable {
  /** The connection, for messages that no method makes. */
  readonly connection: ClientConnection;
  /** Memory that is mapped for DMA. */
  readonly dma: DmaTable = new DmaTable();
  /** Answers DMA messages of the server, and counts them. */
  readonly dmaResponder: DmaResponder;
  #agreement: Agreement | null = null;

  /**
   * Connects to a server; {@linkcode negotiate} comes next.
   *
   * @param socket A connected nonblocking stream socket, owned by the client from now on; a path is connected to
   */
  constructor(socket: Fd | string, options: ClientOptions = {}) {
    this.dmaResponder = new DmaResponder(this.dma, options.dmaLayout);
    this.connection = new ClientConnection(
      typeof socket === "string" ? connectUnix(socket) : socket,
      this.dmaResponder,
      options,
    );
  }

  /** Result of {@linkcode negotiate}. */
  get agreement(): Agreement {
    if (this.#agreement === null) {
      throw new ErrnoError(
        Errno.ENOTCONN,
        "Cannot tell the agreed version: nothing was negotiated",
      );
    }
    return this.#agreement;
  }

  /** Agrees on a version and capabilities; the first call on a connection. */
  negotiate(proposal: Proposal = {}): Agreement {
    const reply = this.call(VFIO_USER_VERSION, versionPayload(proposal));
    for (const fd of reply.fds) fd.close();
    return this.#agreement = parseAgreement(reply.payload, proposal);
  }

  /**
   * Sends any request.
   *
   * @returns The reply, an error reply included
   */
  request(
    command: number,
    payload: Uint8Array = new Uint8Array(0),
    fds: readonly number[] = [],
  ): Reply {
    this.#put(payload);
    const result = this.connection.exchange(command, payload.length, fds);
    return {
      errno: -result,
      payload: this.connection.takePayload(),
      fds: this.connection.takeFds(),
    };
  }

  /** Sends any request with the no-reply bit. */
  post(
    command: number,
    payload: Uint8Array = new Uint8Array(0),
    fds: readonly number[] = [],
  ): void {
    this.#put(payload);
    this.connection.post(command, payload.length, fds);
  }

  /**
   * Sends any request and does not wait.
   *
   * @returns What {@linkcode collect} wants
   */
  submit(
    command: number,
    payload: Uint8Array = new Uint8Array(0),
    fds: readonly number[] = [],
  ): number {
    this.#put(payload);
    return this.connection.submit(command, payload.length, fds);
  }

  /** Waits for the reply to a submitted request. */
  collect(id: number): Reply {
    return this.connection.collect(id);
  }

  /** Sends any request and throws for an error reply. */
  call(
    command: number,
    payload: Uint8Array = new Uint8Array(0),
    fds: readonly number[] = [],
  ): Reply {
    return succeed(command, this.request(command, payload, fds));
  }

  /** Shares memory with the server. */
  dmaMap(mapping: DmaMapping): void {
    const reply = this.call(
      VFIO_USER_DMA_MAP,
      dmaMapPayload(mapping),
      mapping.fd === undefined ? [] : [mapping.fd],
    );
    this.#finishMap(mapping, reply);
  }

  /** Shares several ranges with all requests in flight at once, as QEMU does. */
  dmaMapAll(mappings: readonly DmaMapping[]): void {
    const ids = mappings.map((mapping) =>
      this.submit(
        VFIO_USER_DMA_MAP,
        dmaMapPayload(mapping),
        mapping.fd === undefined ? [] : [mapping.fd],
      )
    );
    const replies = ids.map((id) => this.collect(id));
    replies.forEach((reply, i) => {
      this.#finishMap(mappings[i]!, succeed(VFIO_USER_DMA_MAP, reply));
    });
  }

  /** Unmaps memory that was shared with exactly this address and length. */
  dmaUnmap(iova: number, lengthBytes: number): void {
    const payload = dmaUnmapPayload(iova, lengthBytes, 0);
    const reply = this.call(VFIO_USER_DMA_UNMAP, payload);
    expectSize(VFIO_USER_DMA_UNMAP, reply.payload.length, DMA_UNMAP.SIZE);
    this.dma.remove(iova, lengthBytes);
  }

  /** Unmaps all memory (an extension of libvfio-user and VFIO). */
  unmapAll(): void {
    const payload = dmaUnmapPayload(0, 0, VFIO_DMA_UNMAP_FLAG_ALL);
    const reply = this.call(VFIO_USER_DMA_UNMAP, payload);
    expectSize(VFIO_USER_DMA_UNMAP, reply.payload.length, DMA_UNMAP.SIZE);
    this.dma.clear();
  }

  /** Asks what the device is. */
  deviceInfo(): DeviceInfo {
    const request = words(DEVICE_INFO.SIZE, 0, 0, 0);
    return parseDeviceInfo(
      this.call(VFIO_USER_DEVICE_GET_INFO, request).payload,
    );
  }

  /** Asks about a region: first with the smallest argsz, again with the one the server wants. The caller closes it. */
  regionInfo(index: number): RegionInfo {
    const reply = this.#callWithSize(
      VFIO_USER_DEVICE_GET_REGION_INFO,
      words(REGION_INFO.SIZE, 0, index, 0, 0, 0, 0, 0),
    );
    return parseOwning(
      reply,
      () => new RegionInfo(reply.payload, reply.fds),
    );
  }

  /** Asks which registers of a region eventfds stand for. The caller closes the result. */
  regionIoFds(index: number): RegionIoFds {
    const reply = this.#callWithSize(
      VFIO_USER_DEVICE_GET_REGION_IO_FDS,
      words(REGION_IO_FDS.SIZE, 0, index, 0),
    );
    return parseOwning(
      reply,
      () => new RegionIoFds(reply.payload, reply.fds),
    );
  }

  /** Asks about an interrupt type. */
  irqInfo(index: number): IrqInfo {
    const request = words(IRQ_INFO.SIZE, 0, index, 0);
    return parseIrqInfo(
      this.call(VFIO_USER_DEVICE_GET_IRQ_INFO, request).payload,
    );
  }

  /** Masks, unmasks, triggers or assigns interrupts, in one message. */
  setIrqs(set: IrqSet): void {
    this.connection.reserve(IRQ_SET.SIZE + (set.booleans?.length ?? 0));
    const length = writeIrqSet(this.connection.out, PAYLOAD, set);
    this.#exchange(VFIO_USER_DEVICE_SET_IRQS, length, set.fds);
  }

  /**
   * Assigns eventfds to vectors, −1 to take one away, in as many messages as the server's limit and the runs make
   * it (QEMU's way).
   */
  setIrqEventFds(index: number, start: number, fds: readonly number[]): void {
    const most = Math.max(this.#agreement?.maxMessageFds ?? 1, 1);
    for (const [from, to] of irqRuns(fds, most)) {
      this.setIrqs({
        index,
        start: start + from,
        count: to - from,
        action: "trigger",
        fds: fds[from]! < 0 ? [] : fds.slice(from, to),
      });
    }
  }

  /** Takes all interrupts of a type away. */
  disableIrqs(index: number): void {
    this.setIrqs({ index, action: "trigger" });
  }

  /** Resets the device. */
  reset(): void {
    this.#exchange(VFIO_USER_DEVICE_RESET, 0);
  }

  /** Reads bytes of a region. */
  readRegion(
    region: number,
    offset: number,
    lengthBytes: number,
  ): Uint8Array<ArrayBuffer> {
    this.#exchangeRead(region, offset, lengthBytes);
    return this.connection.takePayload().subarray(REGION_ACCESS.DATA);
  }

  /** Reads 8 bits of a region. Allocates nothing. */
  readRegion8(region: number, offset: number): number {
    this.#exchangeRead(region, offset, 1);
    return this.connection.in.getUint8(DATA);
  }

  /** Reads 16 bits of a region. Allocates nothing. */
  readRegion16(region: number, offset: number): number {
    this.#exchangeRead(region, offset, 2);
    return this.connection.in.getUint16(DATA, true);
  }

  /** Reads 32 bits of a region. Allocates nothing. */
  readRegion32(region: number, offset: number): number {
    this.#exchangeRead(region, offset, 4);
    return this.connection.in.getUint32(DATA, true);
  }

  /**
   * Writes bytes to a region.
   *
   * @param posted Ask for no reply, so that an error goes unnoticed
   */
  writeRegion(
    region: number,
    offset: number,
    data: Uint8Array,
    posted = false,
  ): void {
    this.connection.reserve(REGION_ACCESS.SIZE + data.length);
    for (let i = 0; i < data.length; i++) {
      this.connection.out.setUint8(DATA + i, data[i]!);
    }
    this.#exchangeWrite(region, offset, data.length, posted);
  }

  /** Writes 8 bits of a region. Allocates nothing. */
  writeRegion8(
    region: number,
    offset: number,
    value: number,
    posted = false,
  ): void {
    this.connection.out.setUint8(DATA, value);
    this.#exchangeWrite(region, offset, 1, posted);
  }

  /** Writes 16 bits of a region. Allocates nothing. */
  writeRegion16(
    region: number,
    offset: number,
    value: number,
    posted = false,
  ): void {
    this.connection.out.setUint16(DATA, value, true);
    this.#exchangeWrite(region, offset, 2, posted);
  }

  /** Writes 32 bits of a region. Allocates nothing. */
  writeRegion32(
    region: number,
    offset: number,
    value: number,
    posted = false,
  ): void {
    this.connection.out.setUint32(DATA, value, true);
    this.#exchangeWrite(region, offset, 4, posted);
  }

  /** Sends a 32-bit read without waiting; {@linkcode settle} waits. Allocates nothing. */
  queueRead32(region: number, offset: number): void {
    this.#putAccess(region, offset, 4);
    this.connection.count(VFIO_USER_REGION_READ, REGION_ACCESS.SIZE);
  }

  /** Sends a 32-bit write without waiting; {@linkcode settle} waits. Allocates nothing. */
  queueWrite32(region: number, offset: number, value: number): void {
    this.connection.out.setUint32(DATA, value, true);
    this.#putAccess(region, offset, 4);
    this.connection.count(VFIO_USER_REGION_WRITE, REGION_ACCESS.SIZE + 4);
  }

  /**
   * Waits until at most `remaining` queued requests are unanswered.
   *
   * @returns How many queued requests got an error reply
   */
  settle(remaining = 0): number {
    return this.connection.settle(remaining);
  }

  /** Writes several registers with one message. */
  writeMulti(writes: readonly RegionWrite[], posted = false): void {
    const length = WRITE_MULTI.SIZE + writes.length * WRITE_MULTI_ENTRY.SIZE;
    this.connection.reserve(length);
    const view = this.connection.out;
    setU64(view, PAYLOAD + WRITE_MULTI.WR_CNT, writes.length);
    writes.forEach((write, i) => {
      const at = PAYLOAD + WRITE_MULTI.WRS + i * WRITE_MULTI_ENTRY.SIZE;
      setU64(view, at + WRITE_MULTI_ENTRY.OFFSET, write.offset);
      view.setUint32(at + WRITE_MULTI_ENTRY.REGION, write.region, true);
      view.setUint32(at + WRITE_MULTI_ENTRY.COUNT, write.data.length, true);
      for (let j = 0; j < WRITE_MULTI_DATA_MAX; j++) {
        view.setUint8(at + WRITE_MULTI_ENTRY.DATA + j, write.data[j] ?? 0);
      }
    });
    if (posted) {
      return this.connection.post(VFIO_USER_REGION_WRITE_MULTI, length);
    }
    this.#exchange(VFIO_USER_REGION_WRITE_MULTI, length);
    const done = this.connection.in.getUint32(
      PAYLOAD + WRITE_MULTI.WR_CNT,
      true,
    );
    expectSize(VFIO_USER_REGION_WRITE_MULTI, done, writes.length);
  }

  /** Disconnects. */
  close(): void {
    this.connection.close();
    this.dma.clear();
  }

  /** Closes it. */
  [Symbol.dispose](): void {
    this.close();
  }

  #put(payload: Uint8Array): void {
    this.connection.reserve(payload.length);
    new Uint8Array(this.connection.out.buffer).set(payload, PAYLOAD);
  }

  #exchange(
    command: number,
    payloadBytes: number,
    fds?: readonly number[],
  ): void {
    const result = this.connection.exchange(command, payloadBytes, fds);
    if (result < 0) throw refused(command, -result);
  }

  #putAccess(region: number, offset: number, count: number): void {
    const view = this.connection.out;
    setU64(view, PAYLOAD + REGION_ACCESS.OFFSET, offset);
    view.setUint32(PAYLOAD + REGION_ACCESS.REGION, region, true);
    view.setUint32(PAYLOAD + REGION_ACCESS.COUNT, count, true);
  }

  #exchangeRead(region: number, offset: number, count: number): void {
    this.#putAccess(region, offset, count);
    this.#exchange(VFIO_USER_REGION_READ, REGION_ACCESS.SIZE);
    this.#expectAccess(VFIO_USER_REGION_READ, count, count);
  }

  #exchangeWrite(
    region: number,
    offset: number,
    count: number,
    posted: boolean,
  ): void {
    this.#putAccess(region, offset, count);
    const length = REGION_ACCESS.SIZE + count;
    if (posted) return this.connection.post(VFIO_USER_REGION_WRITE, length);
    this.#exchange(VFIO_USER_REGION_WRITE, length);
    this.#expectAccess(VFIO_USER_REGION_WRITE, count, 0);
  }

  #expectAccess(command: number, count: number, dataBytes: number): void {
    expectSize(
      command,
      this.connection.replyBytes,
      REGION_ACCESS.SIZE + dataBytes,
    );
    const at = PAYLOAD + REGION_ACCESS.COUNT;
    expectSize(command, this.connection.in.getUint32(at, true), count);
  }

  #finishMap(mapping: DmaMapping, reply: Reply): void {
    expectSize(VFIO_USER_DMA_MAP, reply.payload.length, 0);
    const range: DmaRange = {
      iova: mapping.iova,
      lengthBytes: mapping.lengthBytes,
      readable: mapping.readable ?? true,
      writable: mapping.writable ?? true,
    };
    this.dma.add(
      mapping.bytes === undefined ? range : { ...range, bytes: mapping.bytes },
    );
  }

  /** Asks again with the argsz that the server wants when the first one is too small. */
  #callWithSize(command: number, request: Uint8Array<ArrayBuffer>): Reply {
    const view = new DataView(request.buffer);
    for (let attempt = 0; attempt < ARGSZ_ATTEMPTS; attempt++) {
      const argsz = view.getUint32(0, true);
      const reply = this.call(command, request);
      const length = reply.payload.length;
      const wanted = length < 4
        ? 0
        : new DataView(reply.payload.buffer).getUint32(0, true);
      if (length >= 4 && length <= argsz && wanted <= argsz) return reply;
      for (const fd of reply.fds) fd.close();
      if (length < 4 || length > argsz) {
        throw new ErrnoError(
          Errno.EPROTO,
          `Cannot use the reply to ${
            commandName(command)
          }: it has ${length} bytes, argsz was ${argsz}`,
        );
      }
      view.setUint32(0, wanted, true);
    }
    throw new ErrnoError(
      Errno.EPROTO,
      `Cannot ${
        commandName(command)
      }: the server wants a larger argsz each time`,
    );
  }
}
