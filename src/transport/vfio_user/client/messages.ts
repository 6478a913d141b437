/**
 * Parameters and results of the client's methods, and the payloads they are made of.
 *
 * @module
 */

import { setU64 } from "../../../core/bits.ts";
import { Errno, ErrnoError } from "../../../core/errno.ts";
import {
  commandName,
  DEVICE_INFO,
  DMA_MAP,
  DMA_UNMAP,
  IRQ_INFO,
  VFIO_DEVICE_FLAGS_PCI,
  VFIO_DEVICE_FLAGS_RESET,
  VFIO_USER_DEVICE_GET_INFO,
  VFIO_USER_DEVICE_GET_IRQ_INFO,
  VFIO_USER_F_DMA_REGION_READ,
  VFIO_USER_F_DMA_REGION_WRITE,
} from "../defs.ts";
import type { Reply } from "./connection.ts";

/** Memory to share with the server. */
export interface DmaMapping {
  /** Address at which the device is to see it. */
  readonly iova: number;
  /** Length in bytes. */
  readonly lengthBytes: number;
  /** The file it is in; without one the server must ask by message. */
  readonly fd?: number;
  /** First byte in the file; 0 unless told. */
  readonly fdOffset?: number;
  /** True if the device may read it; yes unless told. */
  readonly readable?: boolean;
  /** True if the device may write it; yes unless told. */
  readonly writable?: boolean;
  /** The client's own view of it, to answer DMA messages from. */
  readonly bytes?: Uint8Array<ArrayBuffer>;
}

/** Result of DEVICE_GET_INFO. */
export interface DeviceInfo {
  /** VFIO_DEVICE_FLAGS_* bits. */
  readonly flags: number;
  /** True if DEVICE_RESET works. */
  readonly resettable: boolean;
  /** True if it is a PCI device. */
  readonly pci: boolean;
  /** Number of regions it has. */
  readonly numRegions: number;
  /** Number of interrupt types it has. */
  readonly numIrqs: number;
}

/** Result of DEVICE_GET_IRQ_INFO. */
export interface IrqInfo {
  /** VFIO_IRQ_INFO_* bits. */
  readonly flags: number;
  /** Number of the type. */
  readonly index: number;
  /** Number of vectors. */
  readonly count: number;
}

/** One write of REGION_WRITE_MULTI. */
export interface RegionWrite {
  /** Number of the region. */
  readonly region: number;
  /** Offset in it. */
  readonly offset: number;
  /** 1 to 8 bytes. */
  readonly data: Uint8Array;
}

/** Parses a reply; closes its descriptors when that throws. */
export function parseOwning<T>(reply: Reply, parse: () => T): T {
  try {
    return parse();
  } catch (error) {
    for (const fd of reply.fds) fd.close();
    throw error;
  }
}

/** The payload of DMA_MAP. */
export function dmaMapPayload(mapping: DmaMapping): Uint8Array<ArrayBuffer> {
  const payload = new Uint8Array(DMA_MAP.SIZE);
  const view = new DataView(payload.buffer);
  view.setUint32(DMA_MAP.ARGSZ, DMA_MAP.SIZE, true);
  view.setUint32(
    DMA_MAP.FLAGS,
    ((mapping.readable ?? true) ? VFIO_USER_F_DMA_REGION_READ : 0) |
      ((mapping.writable ?? true) ? VFIO_USER_F_DMA_REGION_WRITE : 0),
    true,
  );
  setU64(view, DMA_MAP.OFFSET, mapping.fdOffset ?? 0);
  setU64(view, DMA_MAP.ADDR, mapping.iova);
  setU64(view, DMA_MAP.LENGTH, mapping.lengthBytes);
  return payload;
}

/** The payload of DMA_UNMAP. */
export function dmaUnmapPayload(
  iova: number,
  lengthBytes: number,
  flags: number,
): Uint8Array<ArrayBuffer> {
  const payload = new Uint8Array(DMA_UNMAP.SIZE);
  const view = new DataView(payload.buffer);
  view.setUint32(DMA_UNMAP.ARGSZ, DMA_UNMAP.SIZE, true);
  view.setUint32(DMA_UNMAP.FLAGS, flags, true);
  setU64(view, DMA_UNMAP.ADDR, iova);
  setU64(view, DMA_UNMAP.LENGTH, lengthBytes);
  return payload;
}

/** A payload of 32-bit words. */
export function words(...values: number[]): Uint8Array<ArrayBuffer> {
  const payload = new Uint8Array(values.length * 4);
  const view = new DataView(payload.buffer);
  values.forEach((value, i) => view.setUint32(i * 4, value, true));
  return payload;
}

/** Error for an error reply. */
export function refused(command: number, errno: number): ErrnoError {
  return new ErrnoError(
    errno,
    `Cannot ${commandName(command)}: the server refused`,
  );
}

/** The reply, unless it is an error reply, which is thrown. */
export function succeed(command: number, reply: Reply): Reply {
  if (reply.errno === 0) return reply;
  for (const fd of reply.fds) fd.close();
  throw refused(command, reply.errno);
}

/** Throws EPROTO unless a reply is of the size that the protocol says. */
export function expectSize(
  command: number,
  actual: number,
  expected: number,
): void {
  if (actual === expected) return;
  throw new ErrnoError(
    Errno.EPROTO,
    `Cannot use the reply to ${
      commandName(command)
    }: ${actual} where ${expected} is expected`,
  );
}

/** Reads the reply to DEVICE_GET_INFO. */
export function parseDeviceInfo(payload: Uint8Array<ArrayBuffer>): DeviceInfo {
  expectSize(VFIO_USER_DEVICE_GET_INFO, payload.length, DEVICE_INFO.SIZE);
  const view = new DataView(payload.buffer);
  const flags = view.getUint32(DEVICE_INFO.FLAGS, true);
  return {
    flags,
    resettable: (flags & VFIO_DEVICE_FLAGS_RESET) !== 0,
    pci: (flags & VFIO_DEVICE_FLAGS_PCI) !== 0,
    numRegions: view.getUint32(DEVICE_INFO.NUM_REGIONS, true),
    numIrqs: view.getUint32(DEVICE_INFO.NUM_IRQS, true),
  };
}

/** Reads the reply to DEVICE_GET_IRQ_INFO. */
export function parseIrqInfo(payload: Uint8Array<ArrayBuffer>): IrqInfo {
  expectSize(VFIO_USER_DEVICE_GET_IRQ_INFO, payload.length, IRQ_INFO.SIZE);
  const view = new DataView(payload.buffer);
  return {
    flags: view.getUint32(IRQ_INFO.FLAGS, true),
    index: view.getUint32(IRQ_INFO.INDEX, true),
    count: view.getUint32(IRQ_INFO.COUNT, true),
  };
}
