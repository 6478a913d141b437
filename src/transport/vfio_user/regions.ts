/**
 * Regions: what they are, and access to them by message.
 *
 * @module
 */

import { getU64, high32, low32, setU64 } from "../../core/bits.ts";
import { Errno } from "../../core/errno.ts";
import type { PciFunction } from "../../pci/function.ts";
import type { MmapArea } from "../../pci/device.ts";
import {
  CAP_SPARSE_MMAP,
  HEADER,
  INFO_CAP_HEADER,
  REGION_ACCESS,
  REGION_INFO,
  SPARSE_MMAP_AREA,
  VFIO_PCI_CONFIG_REGION_INDEX,
  VFIO_PCI_NUM_REGIONS,
  VFIO_REGION_INFO_CAP_SPARSE_MMAP,
  VFIO_REGION_INFO_FLAG_CAPS,
  VFIO_REGION_INFO_FLAG_MMAP,
  VFIO_REGION_INFO_FLAG_READ,
  VFIO_REGION_INFO_FLAG_WRITE,
  VFIO_USER_REGION_WRITE,
  WRITE_MULTI,
  WRITE_MULTI_DATA_MAX,
  WRITE_MULTI_ENTRY,
} from "./defs.ts";
import type { RegionFiles } from "./region_files.ts";
import type { RegionProgress } from "./client_state.ts";
import { checkArgsz, invalid, type Request, UNFINISHED } from "./request.ts";
import type { Agreement } from "./version.ts";

/** Bytes of a BAR that are accessed between two looks at the clock; aligned, so that accesses stay as they are. */
const STEP_BYTES = 64;
/** Writes of REGION_WRITE_MULTI that are done between two looks at the clock. */
const STEP_WRITES = 16;

/** Bytes of an access that are done in a step: configuration space takes each in one piece, and is small. */
function stepBytes(region: number, offset: number, left: number): number {
  return region === VFIO_PCI_CONFIG_REGION_INDEX
    ? left
    : Math.min(left, STEP_BYTES - offset % STEP_BYTES);
}

/** The region commands of one client. */
export class Regions {
  readonly #pci: PciFunction;
  readonly #files: RegionFiles;
  readonly #agreement: Agreement;
  readonly #sizes: number[] = [];
  /** Of the command at hand; see {@linkcode RegionProgress}. */
  #done: number;
  #data: Uint8Array<ArrayBuffer> | null;

  /** @param progress How far a predecessor has come with the command that comes first */
  constructor(
    pci: PciFunction,
    files: RegionFiles,
    agreement: Agreement,
    progress: RegionProgress = { done: 0, data: null },
  ) {
    this.#done = progress.done;
    this.#data = progress.data;
    this.#pci = pci;
    this.#files = files;
    this.#agreement = agreement;
    for (let region = 0; region < VFIO_PCI_NUM_REGIONS; region++) {
      this.#sizes.push(pci.regionSizeBytes(region));
    }
  }

  /** Progress of the command at hand. */
  get progress(): RegionProgress {
    return { done: this.#done, data: this.#data };
  }

  /**
   * DEVICE_GET_REGION_INFO. The capability is left out when argsz has no room for it; the reply then says how much
   * there must be. The descriptor comes with either reply: clients close what they do not want.
   *
   * @throws {ErrnoError} EINVAL
   */
  info(request: Request): number {
    const argsz = checkArgsz(request, "describe a region", REGION_INFO.SIZE);
    const index = request.in.getUint32(request.at + REGION_INFO.INDEX, true);
    const sizeBytes = this.#sizes[index];
    if (sizeBytes === undefined) {
      throw invalid(`Cannot describe region ${index}: there is none`);
    }
    const fd = this.#files.fd(index);
    const areas = fd === undefined ? [] : this.#pci.bar(index)!.mmap!;
    const capBytes = areas.length === 0
      ? 0
      : CAP_SPARSE_MMAP.SIZE + areas.length * SPARSE_MMAP_AREA.SIZE;
    const needed = REGION_INFO.SIZE + capBytes;
    const withCaps = capBytes > 0 && argsz >= needed;
    let flags = 0;
    if (sizeBytes > 0) {
      flags |= VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE;
    }
    if (fd !== undefined) {
      flags |= VFIO_REGION_INFO_FLAG_MMAP;
      request.outFds = this.#fdsFor(fd, areas.length);
    }
    const { out, outAt } = request;
    out.setUint32(outAt + REGION_INFO.ARGSZ, needed, true);
    out.setUint32(outAt + REGION_INFO.INDEX, index, true);
    setU64(out, outAt + REGION_INFO.LENGTH, sizeBytes);
    // An area's offset in the file is its offset in the region.
    setU64(out, outAt + REGION_INFO.OFFSET, 0);
    if (withCaps) {
      flags |= VFIO_REGION_INFO_FLAG_CAPS;
      putSparseMmap(out, outAt + REGION_INFO.SIZE, areas);
    }
    out.setUint32(outAt + REGION_INFO.FLAGS, flags, true);
    out.setUint32(
      outAt + REGION_INFO.CAP_OFFSET,
      withCaps ? REGION_INFO.SIZE : 0,
      true,
    );
    return withCaps ? needed : REGION_INFO.SIZE;
  }

  /**
   * All areas of a region are in one file, and one descriptor is what the protocol text asks for; QEMU takes more
   * for an error. SPDK's host library, known by its silence, indexes the descriptors by area instead.
   */
  #fdsFor(fd: number, areaCount: number): readonly number[] {
    return this.#agreement.silent
      ? new Array<number>(areaCount).fill(fd)
      : [fd];
  }

  /**
   * REGION_READ.
   *
   * @returns Length of the reply's payload, or −errno
   */
  read(request: Request): number {
    const checked = this.#check(request);
    if (checked < 0) return checked;
    const { in: view, at, out, outAt } = request;
    const count = view.getUint32(at + REGION_ACCESS.COUNT, true);
    if (count > STEP_BYTES) return this.#readInSteps(request, count);
    if (count > 0) {
      const result = this.#pci.readRegion(
        view.getUint32(at + REGION_ACCESS.REGION, true),
        getU64(view, at + REGION_ACCESS.OFFSET),
        out,
        outAt + REGION_ACCESS.DATA,
        count,
      );
      if (result < 0) return result;
    }
    repeat(request);
    return REGION_ACCESS.SIZE + count;
  }

  #readInSteps(request: Request, count: number): number {
    const { in: view, at, out, outAt } = request;
    const region = view.getUint32(at + REGION_ACCESS.REGION, true);
    const offset = getU64(view, at + REGION_ACCESS.OFFSET);
    // Where the reply goes may change until it is complete.
    const data = this.#data ??= new Uint8Array(count);
    const into = new DataView(data.buffer);
    while (this.#done < count) {
      const from = offset + this.#done;
      const step = stepBytes(region, from, count - this.#done);
      const result = this.#pci.readRegion(region, from, into, this.#done, step);
      if (result < 0) return result;
      this.#done += step;
      if (this.#done < count && request.isTurnOver()) return UNFINISHED;
    }
    repeat(request);
    new Uint8Array(out.buffer, out.byteOffset).set(
      data,
      outAt + REGION_ACCESS.DATA,
    );
    return REGION_ACCESS.SIZE + count;
  }

  /** True if a REGION_READ is done in one step, whatever comes of it. */
  readsAtOnce({ in: view, at, lengthBytes }: Request): boolean {
    return lengthBytes < REGION_ACCESS.SIZE ||
      view.getUint32(at + REGION_ACCESS.COUNT, true) <= STEP_BYTES;
  }

  /** True if a message is a REGION_WRITE to a BAR. */
  isBarWrite(message: DataView): boolean {
    return message.getUint16(HEADER.CMD, true) === VFIO_USER_REGION_WRITE &&
      message.getUint32(HEADER.SIZE + REGION_ACCESS.REGION, true) !==
        VFIO_PCI_CONFIG_REGION_INDEX;
  }

  /** True if a REGION_WRITE ends requests that are in flight. */
  mustSettle(request: Request): boolean {
    if (this.#check(request) < 0) return false;
    const { in: view, at } = request;
    const count = view.getUint32(at + REGION_ACCESS.COUNT, true);
    return request.lengthBytes - REGION_ACCESS.SIZE === count &&
      this.#pci.mustSettle(
        view.getUint32(at + REGION_ACCESS.REGION, true),
        getU64(view, at + REGION_ACCESS.OFFSET),
        view,
        at + REGION_ACCESS.DATA,
        count,
      );
  }

  /** True if one of the writes of a REGION_WRITE_MULTI does. */
  mustSettleMulti(request: Request): boolean {
    const { in: view, at } = request;
    const end = at + request.lengthBytes;
    for (
      let entry = at + WRITE_MULTI.WRS;
      entry + WRITE_MULTI_ENTRY.SIZE <= end;
      entry += WRITE_MULTI_ENTRY.SIZE
    ) {
      if (
        this.#isSmallWrite(view, entry) && this.#pci.mustSettle(
          view.getUint32(entry + WRITE_MULTI_ENTRY.REGION, true),
          getU64(view, entry + WRITE_MULTI_ENTRY.OFFSET),
          view,
          entry + WRITE_MULTI_ENTRY.DATA,
          view.getUint32(entry + WRITE_MULTI_ENTRY.COUNT, true),
        )
      ) return true;
    }
    return false;
  }

  /** The command at hand has come to its end. */
  end(): void {
    this.#done = 0;
    this.#data = null;
  }

  /**
   * REGION_WRITE.
   *
   * @returns Length of the reply's payload, or −errno
   */
  write(request: Request): number {
    const checked = this.#check(request);
    if (checked < 0) return checked;
    const { in: view, at } = request;
    const count = view.getUint32(at + REGION_ACCESS.COUNT, true);
    if (request.lengthBytes - REGION_ACCESS.SIZE !== count) {
      return -Errno.EINVAL;
    }
    const region = view.getUint32(at + REGION_ACCESS.REGION, true);
    const offset = getU64(view, at + REGION_ACCESS.OFFSET);
    while (this.#done < count) {
      const to = offset + this.#done;
      const step = stepBytes(region, to, count - this.#done);
      const from = at + REGION_ACCESS.DATA + this.#done;
      const result = this.#pci.writeRegion(region, to, view, from, step);
      if (result < 0) return result;
      this.#done += step;
      if (this.#done < count && request.isTurnOver()) return UNFINISHED;
    }
    repeat(request);
    return REGION_ACCESS.SIZE;
  }

  /**
   * REGION_WRITE_MULTI: all writes are checked before the first is done.
   *
   * @returns Length of the reply's payload, or −errno
   */
  writeMulti(request: Request): number {
    if (!this.#agreement.writeMultiple) return -Errno.EINVAL;
    if (request.lengthBytes < WRITE_MULTI.SIZE) return -Errno.EINVAL;
    const { in: view, at, out, outAt } = request;
    const count = getU64(view, at + WRITE_MULTI.WR_CNT);
    const first = at + WRITE_MULTI.WRS;
    if (
      request.lengthBytes !==
        WRITE_MULTI.SIZE + count * WRITE_MULTI_ENTRY.SIZE
    ) return -Errno.EINVAL;
    for (let i = 0; this.#done === 0 && i < count; i++) {
      if (!this.#isSmallWrite(view, first + i * WRITE_MULTI_ENTRY.SIZE)) {
        return -Errno.EINVAL;
      }
    }
    while (this.#done < count) {
      const entry = first + this.#done * WRITE_MULTI_ENTRY.SIZE;
      const result = this.#pci.writeRegion(
        view.getUint32(entry + WRITE_MULTI_ENTRY.REGION, true),
        getU64(view, entry + WRITE_MULTI_ENTRY.OFFSET),
        view,
        entry + WRITE_MULTI_ENTRY.DATA,
        view.getUint32(entry + WRITE_MULTI_ENTRY.COUNT, true),
      );
      if (result < 0) return result;
      this.#done++;
      if (
        this.#done % STEP_WRITES === 0 && this.#done < count &&
        request.isTurnOver()
      ) return UNFINISHED;
    }
    out.setUint32(outAt + WRITE_MULTI.WR_CNT, low32(count), true);
    out.setUint32(outAt + WRITE_MULTI.WR_CNT + 4, high32(count), true);
    return WRITE_MULTI.SIZE;
  }

  #isSmallWrite(view: DataView, entry: number): boolean {
    const count = view.getUint32(entry + WRITE_MULTI_ENTRY.COUNT, true);
    return count > 0 && count <= WRITE_MULTI_DATA_MAX && this.#isInside(
      view.getUint32(entry + WRITE_MULTI_ENTRY.REGION, true),
      getU64(view, entry + WRITE_MULTI_ENTRY.OFFSET),
      count,
    );
  }

  /** @returns 0 when the access lies inside a region and is not too large, −EINVAL otherwise */
  #check(request: Request): number {
    if (request.lengthBytes < REGION_ACCESS.SIZE) return -Errno.EINVAL;
    const { in: view, at } = request;
    const count = view.getUint32(at + REGION_ACCESS.COUNT, true);
    if (count > this.#agreement.maxDataXferSize) return -Errno.EINVAL;
    return this.#isInside(
        view.getUint32(at + REGION_ACCESS.REGION, true),
        getU64(view, at + REGION_ACCESS.OFFSET),
        count,
      )
      ? 0
      : -Errno.EINVAL;
  }

  #isInside(region: number, offset: number, count: number): boolean {
    return region < this.#sizes.length &&
      offset + count <= this.#sizes[region]!;
  }
}

/** The reply to an access begins as its request does. */
function repeat({ in: view, at, out, outAt }: Request): void {
  for (let i = 0; i < REGION_ACCESS.SIZE; i += 4) {
    out.setUint32(outAt + i, view.getUint32(at + i, true), true);
  }
}

function putSparseMmap(
  out: DataView,
  at: number,
  areas: readonly MmapArea[],
): void {
  out.setUint16(
    at + INFO_CAP_HEADER.ID,
    VFIO_REGION_INFO_CAP_SPARSE_MMAP,
    true,
  );
  out.setUint16(at + INFO_CAP_HEADER.VERSION, 1, true);
  out.setUint32(at + INFO_CAP_HEADER.NEXT, 0, true);
  out.setUint32(at + CAP_SPARSE_MMAP.NR_AREAS, areas.length, true);
  out.setUint32(at + CAP_SPARSE_MMAP.RESERVED, 0, true);
  for (let i = 0; i < areas.length; i++) {
    const area = at + CAP_SPARSE_MMAP.AREAS + i * SPARSE_MMAP_AREA.SIZE;
    setU64(out, area + SPARSE_MMAP_AREA.OFFSET, areas[i]!.offset);
    setU64(out, area + SPARSE_MMAP_AREA.LENGTH, areas[i]!.memory.bytes.length);
  }
}
