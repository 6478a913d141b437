/**
 * Region as a server describes it: its capability chain, the parts that can be mapped, and its ioeventfds.
 *
 * @module
 */

import { getU64 } from "../../../core/bits.ts";
import { Errno, ErrnoError } from "../../../core/errno.ts";
import { type Fd, Mapping } from "../../../os/mod.ts";
import {
  CAP_SPARSE_MMAP,
  INFO_CAP_HEADER,
  REGION_INFO,
  REGION_IO_FDS,
  SPARSE_MMAP_AREA,
  SUB_REGION_IOEVENTFD,
  VFIO_REGION_INFO_CAP_SPARSE_MMAP,
  VFIO_REGION_INFO_FLAG_CAPS,
  VFIO_REGION_INFO_FLAG_MMAP,
} from "../defs.ts";

/** A part of a region, in bytes. */
export interface RegionArea {
  /** Offset in the region. */
  readonly offset: number;
  /** Length. */
  readonly lengthBytes: number;
}

/** One entry of the capability chain. */
export interface RegionCapability {
  /** Id of the capability. */
  readonly id: number;
  /** Its version. */
  readonly version: number;
  /** Offset in the region info. */
  readonly offset: number;
}

function broken(what: string, why: string): ErrnoError {
  return new ErrnoError(Errno.EPROTO, `Cannot read ${what}: ${why}`);
}

function parseChain(view: DataView): RegionCapability[] {
  const chain: RegionCapability[] = [];
  let at = view.getUint32(REGION_INFO.CAP_OFFSET, true);
  while (at !== 0) {
    if (
      at < REGION_INFO.SIZE || at + INFO_CAP_HEADER.SIZE > view.byteLength ||
      chain.some((cap) => cap.offset === at)
    ) {
      throw broken("region info", `a capability at ${at} is out of place`);
    }
    chain.push({
      id: view.getUint16(at + INFO_CAP_HEADER.ID, true),
      version: view.getUint16(at + INFO_CAP_HEADER.VERSION, true),
      offset: at,
    });
    at = view.getUint32(at + INFO_CAP_HEADER.NEXT, true);
  }
  return chain;
}

function parseAreas(
  view: DataView,
  capability: RegionCapability,
  regionBytes: number,
): RegionArea[] {
  const at = capability.offset;
  const room = view.byteLength - at - CAP_SPARSE_MMAP.SIZE;
  const count = room < 0
    ? 1
    : view.getUint32(at + CAP_SPARSE_MMAP.NR_AREAS, true);
  if (count * SPARSE_MMAP_AREA.SIZE > room) {
    throw broken("region info", `${count} mmap areas do not fit`);
  }
  const areas: RegionArea[] = [];
  for (let i = 0; i < count; i++) {
    const entry = at + CAP_SPARSE_MMAP.AREAS + i * SPARSE_MMAP_AREA.SIZE;
    const offset = getU64(view, entry + SPARSE_MMAP_AREA.OFFSET);
    const lengthBytes = getU64(view, entry + SPARSE_MMAP_AREA.LENGTH);
    if (offset + lengthBytes > regionBytes) {
      throw broken("region info", `mmap area ${i} ends outside the region`);
    }
    areas.push({ offset, lengthBytes });
  }
  return areas;
}

/** A region, with the descriptors for what can be mapped of it. */
export class RegionInfo implements Disposable {
  /** Number of the region. */
  readonly index: number;
  /** VFIO_REGION_INFO_FLAG_* bits. */
  readonly flags: number;
  /** Its length in bytes; 0 when it does not exist. */
  readonly lengthBytes: number;
  /** Offset in the descriptor. */
  readonly fdOffset: number;
  /** The capability chain. */
  readonly capabilities: readonly RegionCapability[];
  /** Areas that can be mapped: the sparse ones, or all of it. */
  readonly mmapAreas: readonly RegionArea[];
  /** Descriptors: one for all areas, or one for each. */
  readonly fds: readonly Fd[];

  /**
   * Reads a region info with its capabilities.
   *
   * @param fds What came with it; owned by the result
   * @throws {ErrnoError} EPROTO
   */
  constructor(payload: Uint8Array<ArrayBuffer>, fds: readonly Fd[]) {
    const view = new DataView(
      payload.buffer,
      payload.byteOffset,
      payload.length,
    );
    if (payload.length < REGION_INFO.SIZE) {
      throw broken("region info", `it has ${payload.length} bytes`);
    }
    this.index = view.getUint32(REGION_INFO.INDEX, true);
    this.flags = view.getUint32(REGION_INFO.FLAGS, true);
    this.lengthBytes = getU64(view, REGION_INFO.LENGTH);
    this.fdOffset = getU64(view, REGION_INFO.OFFSET);
    this.fds = fds;
    this.capabilities = (this.flags & VFIO_REGION_INFO_FLAG_CAPS) !== 0
      ? parseChain(view)
      : [];
    const sparse = this.capabilities.find((cap) =>
      cap.id === VFIO_REGION_INFO_CAP_SPARSE_MMAP
    );
    this.mmapAreas = (this.flags & VFIO_REGION_INFO_FLAG_MMAP) === 0
      ? []
      : sparse === undefined
      ? [{ offset: 0, lengthBytes: this.lengthBytes }]
      : parseAreas(view, sparse, this.lengthBytes);
  }

  /**
   * Maps one of {@linkcode mmapAreas}.
   *
   * @throws {ErrnoError} EINVAL when no descriptor came for it
   */
  map(area: number): Mapping {
    const { offset, lengthBytes } = this.mmapAreas[area]!;
    const fd = this.fds.length > 1 ? this.fds[area] : this.fds[0];
    if (fd === undefined) {
      throw new ErrnoError(
        Errno.EINVAL,
        `Cannot map region ${this.index}: no descriptor came for area ${area}`,
      );
    }
    return new Mapping({
      fd: fd.number,
      offset: this.fdOffset + offset,
      lengthBytes,
    });
  }

  /** Closes the descriptors; mappings stay. */
  close(): void {
    for (const fd of this.fds) fd.close();
  }

  /** Closes it. */
  [Symbol.dispose](): void {
    this.close();
  }
}

/** A register that an eventfd stands for. */
export interface SubRegion extends RegionArea {
  /** Index in {@linkcode RegionIoFds.fds}. */
  readonly fdIndex: number;
  /** VFIO_USER_IO_FD_TYPE_*. */
  readonly type: number;
  /** KVM_IOEVENTFD_FLAG_* bits. */
  readonly flags: number;
  /** The value that signals, where the flags say so. */
  readonly datamatch: number;
}

/** The ioeventfds of a region. */
export class RegionIoFds implements Disposable {
  /** The registers. */
  readonly subRegions: readonly SubRegion[];
  /** The descriptors. */
  readonly fds: readonly Fd[];

  /**
   * Reads the reply; an entry of 48 bytes is libvfio-user's, with its datamatch at 40.
   *
   * @param fds What came with it; owned by the result
   * @throws {ErrnoError} EPROTO
   */
  constructor(payload: Uint8Array<ArrayBuffer>, fds: readonly Fd[]) {
    const view = new DataView(
      payload.buffer,
      payload.byteOffset,
      payload.length,
    );
    if (payload.length < REGION_IO_FDS.SIZE) {
      throw broken("region I/O fds", `the reply has ${payload.length} bytes`);
    }
    const count = view.getUint32(REGION_IO_FDS.COUNT, true);
    const room = payload.length - REGION_IO_FDS.SIZE;
    const stride = count === 0 ? 0 : Math.floor(room / count);
    if (count > 0 && stride < SUB_REGION_IOEVENTFD.SIZE) {
      throw broken("region I/O fds", `${count} entries do not fit`);
    }
    const datamatchAt = stride >= 48 ? 40 : SUB_REGION_IOEVENTFD.DATAMATCH;
    const subRegions: SubRegion[] = [];
    for (let i = 0; i < count; i++) {
      const at = REGION_IO_FDS.SUB_REGIONS + i * stride;
      const fdIndex = view.getUint32(at + SUB_REGION_IOEVENTFD.FD_INDEX, true);
      if (fdIndex >= fds.length) {
        throw broken(
          "region I/O fds",
          `entry ${i} names descriptor ${fdIndex}`,
        );
      }
      subRegions.push({
        offset: getU64(view, at + SUB_REGION_IOEVENTFD.OFFSET),
        lengthBytes: getU64(view, at + SUB_REGION_IOEVENTFD.LENGTH),
        fdIndex,
        type: view.getUint32(at + SUB_REGION_IOEVENTFD.TYPE, true),
        flags: view.getUint32(at + SUB_REGION_IOEVENTFD.FLAGS, true),
        datamatch: getU64(view, at + datamatchAt),
      });
    }
    this.subRegions = subRegions;
    this.fds = fds;
  }

  /** Closes the descriptors. */
  close(): void {
    for (const fd of this.fds) fd.close();
  }

  /** Closes it. */
  [Symbol.dispose](): void {
    this.close();
  }
}
