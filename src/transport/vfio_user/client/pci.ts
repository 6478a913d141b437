/**
 * A PCI device behind a client: configuration space, BARs, MSI-X with eventfds, doorbells.
 *
 * @module
 */

import { Errno, ErrnoError } from "../../../core/errno.ts";
import {
  createEventFd,
  drainEventFd,
  type Fd,
  type Mapping,
  Poll,
  pollFd,
  signalEventFd,
} from "../../../os/mod.ts";
import {
  type Bell,
  type BellWidth,
  type InterruptLines,
  listCapabilities,
  type PciAccess,
  type PciCapability,
  type PciWidth,
} from "../../../testing/pci_access.ts";
import {
  KVM_IOEVENTFD_FLAG_DATAMATCH,
  VFIO_PCI_CONFIG_REGION_INDEX,
  VFIO_PCI_MSIX_IRQ_INDEX,
  VFIO_REGION_INFO_FLAG_MMAP,
  VFIO_USER_IO_FD_TYPE_IOEVENTFD,
} from "../defs.ts";
import type { VfioUserClient } from "./client.ts";
import type { RegionIoFds } from "./region_info.ts";

const PCI_COMMAND = 0x04;
const PCI_COMMAND_MEMORY = 0x2;
const PCI_COMMAND_MASTER = 0x4;
const PCI_BASE_ADDRESS_0 = 0x10;
const PCI_NUM_BARS = 6;
const PCI_CAP_ID_MSIX = 0x11;
const PCI_MSIX_FLAGS = 2;
const PCI_MSIX_FLAGS_ENABLE = 0x8000;
const PCI_MSIX_FLAGS_QSIZE = 0x07ff;

/** A base address register, sized by writing all-ones as a driver would. */
export interface BarInfo {
  /** 0–5. */
  readonly index: number;
  /** Size in bytes. */
  readonly sizeBytes: number;
  /** Address space and width. */
  readonly kind: "memory32" | "memory64" | "io";
  /** True if reads have no side effects. */
  readonly prefetchable: boolean;
}

/**
 * Ways to ring doorbells: by a message that is waited for or not, by the eventfd that the server offers, or by a
 * store to a page that the server polls.
 */
export type BellKind = "message" | "posted" | "ioeventfd" | "mmap";

/** Eventfds that stand for the vectors of an interrupt type; owns them. */
export class EventFdLines implements InterruptLines, Disposable {
  readonly #fds: readonly Fd[];

  /**
   * Makes eventfds.
   *
   * @param vectors How many to make
   */
  constructor(vectors: number) {
    this.#fds = Array.from({ length: vectors }, () => createEventFd());
  }

  /** The descriptors, by vector. */
  get fds(): number[] {
    return this.#fds.map((fd) => fd.number);
  }

  wait(vector: number, timeoutMs: number): number {
    const fd = this.#fds[vector]!.number;
    if (timeoutMs > 0 && pollFd(fd, Poll.IN, timeoutMs) === 0) return 0;
    return drainEventFd(fd);
  }

  /** Closes the eventfds. */
  close(): void {
    for (const fd of this.#fds) fd.close();
  }

  /** Closes it. */
  [Symbol.dispose](): void {
    this.close();
  }
}

class MessageBell implements Bell {
  readonly #client: VfioUserClient;
  readonly #bar: number;
  readonly #offset: number;
  readonly #width: BellWidth;
  readonly #posted: boolean;

  constructor(
    client: VfioUserClient,
    bar: number,
    offset: number,
    width: BellWidth,
    posted: boolean,
  ) {
    this.#client = client;
    this.#bar = bar;
    this.#offset = offset;
    this.#width = width;
    this.#posted = posted;
  }

  ring(value: number): void {
    if (this.#width === 2) {
      this.#client.writeRegion16(this.#bar, this.#offset, value, this.#posted);
    } else {
      this.#client.writeRegion32(this.#bar, this.#offset, value, this.#posted);
    }
  }
}

class EventFdBell implements Bell {
  readonly #fd: number;

  constructor(fd: number) {
    this.#fd = fd;
  }

  ring(_value: number): void {
    signalEventFd(this.#fd);
  }
}

class MappedBell implements Bell {
  readonly #words: Uint16Array | Uint32Array;
  readonly #index: number;

  constructor(words: Uint16Array | Uint32Array, index: number) {
    this.#words = words;
    this.#index = index;
  }

  ring(value: number): void {
    Atomics.store(this.#words, this.#index, value);
  }
}

/** Settings of a {@linkcode PciClient} beyond the defaults. */
export interface PciClientOptions {
  /** Way to ring doorbells; by messages that are waited for unless told. */
  readonly bells?: BellKind;
}

/**
 * A PCI device behind a client, as a driver wants it. The client stays its creator's; what is made here (eventfds,
 * mappings) is closed with this.
 */
export class PciClient implements PciAccess, Disposable {
  /** The client. */
  readonly client: VfioUserClient;
  readonly #bells: BellKind;
  readonly #owned: Disposable[] = [];
  readonly #ioFds = new Map<number, RegionIoFds>();
  readonly #mappings = new Map<number, [at: number, mapping: Mapping][]>();

  /** Wraps a client that has negotiated. */
  constructor(client: VfioUserClient, options: PciClientOptions = {}) {
    this.client = client;
    this.#bells = options.bells ?? "message";
  }

  readConfig(offset: number, width: PciWidth): number {
    return this.#read(VFIO_PCI_CONFIG_REGION_INDEX, offset, width);
  }

  writeConfig(offset: number, width: PciWidth, value: number): void {
    this.#write(VFIO_PCI_CONFIG_REGION_INDEX, offset, width, value);
  }

  readBar(bar: number, offset: number, width: PciWidth): number {
    return this.#read(bar, offset, width);
  }

  writeBar(bar: number, offset: number, width: PciWidth, value: number): void {
    this.#write(bar, offset, width, value);
  }

  /** All capabilities, in the order of their list. */
  capabilities(): PciCapability[] {
    return listCapabilities(this);
  }

  /**
   * Offset of a capability.
   *
   * @throws {ErrnoError} ENOENT
   */
  findCapability(id: number): number {
    const found = this.capabilities().find((cap) => cap.id === id);
    if (found === undefined) {
      throw new ErrnoError(
        Errno.ENOENT,
        `Cannot find capability ${id}: the device has none`,
      );
    }
    return found.offset;
  }

  /** Sizes the BARs by writing all-ones to configuration space; what was there is put back. */
  sizeBars(): BarInfo[] {
    const bars: BarInfo[] = [];
    for (let index = 0; index < PCI_NUM_BARS; index++) {
      const low = this.#probeBar(index);
      if (low === 0) continue;
      if ((low & 1) !== 0) {
        const sizeBytes = ((~(low & ~3) & 0xffff) + 1) & 0x1_ffff;
        bars.push({ index, sizeBytes, kind: "io", prefetchable: false });
        continue;
      }
      const prefetchable = (low & 8) !== 0;
      const wide = (low & 6) === 4;
      const mask = (low & ~15) >>> 0;
      let sizeBytes = 0x1_0000_0000 - mask;
      if (wide) {
        const high = this.#probeBar(index + 1);
        if (mask === 0) sizeBytes = (0x1_0000_0000 - high) * 0x1_0000_0000;
      }
      const kind = wide ? "memory64" : "memory32";
      bars.push({ index, sizeBytes, kind, prefetchable });
      if (wide) index++;
    }
    return bars;
  }

  /** Lets the device answer memory accesses and use DMA, or not. */
  setEnabled(on: boolean): void {
    const bits = PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER;
    const command = this.readConfig(PCI_COMMAND, 2);
    this.writeConfig(PCI_COMMAND, 2, on ? command | bits : command & ~bits);
  }

  /** Number of MSI-X vectors the device has; 0 without the capability. */
  msixVectors(): number {
    const cap = this.capabilities().find((c) => c.id === PCI_CAP_ID_MSIX);
    if (cap === undefined) return 0;
    const flags = this.readConfig(cap.offset + PCI_MSIX_FLAGS, 2);
    return (flags & PCI_MSIX_FLAGS_QSIZE) + 1;
  }

  /** Enables MSI-X in configuration space, then assigns an eventfd to each vector: QEMU's order. */
  enableMsix(vectors: number): EventFdLines {
    const at = this.findCapability(PCI_CAP_ID_MSIX) + PCI_MSIX_FLAGS;
    const flags = this.readConfig(at, 2);
    this.writeConfig(at, 2, flags | PCI_MSIX_FLAGS_ENABLE);
    const lines = new EventFdLines(vectors);
    this.#owned.push(lines);
    this.client.setIrqEventFds(VFIO_PCI_MSIX_IRQ_INDEX, 0, lines.fds);
    return lines;
  }

  /** Takes the eventfds away and disables MSI-X. */
  disableMsix(): void {
    this.client.disableIrqs(VFIO_PCI_MSIX_IRQ_INDEX);
    const at = this.findCapability(PCI_CAP_ID_MSIX) + PCI_MSIX_FLAGS;
    const flags = this.readConfig(at, 2);
    this.writeConfig(at, 2, flags & ~PCI_MSIX_FLAGS_ENABLE);
  }

  /**
   * A way to ring the doorbell at `offset`, of the kind this was made for.
   *
   * @throws {ErrnoError} ENOENT when the server does not offer that kind there
   */
  bell(bar: number, offset: number, width: BellWidth): Bell {
    switch (this.#bells) {
      case "message":
        return new MessageBell(this.client, bar, offset, width, false);
      case "posted":
        return new MessageBell(this.client, bar, offset, width, true);
      case "ioeventfd":
        return this.#eventFdBell(bar, offset, width);
      case "mmap":
        return this.#mappedBell(bar, offset, width);
    }
  }

  /** Closes eventfds and mappings. */
  close(): void {
    for (const owned of this.#owned) owned[Symbol.dispose]();
    this.#owned.length = 0;
    this.#ioFds.clear();
    this.#mappings.clear();
  }

  /** Closes it. */
  [Symbol.dispose](): void {
    this.close();
  }

  #eventFdBell(bar: number, offset: number, width: BellWidth): Bell {
    let io = this.#ioFds.get(bar);
    if (io === undefined) {
      io = this.client.regionIoFds(bar);
      this.#owned.push(io);
      this.#ioFds.set(bar, io);
    }
    // A doorbell of virtio is told apart by its address; one with datamatch needs the value too.
    const found = io.subRegions.find((sub) =>
      sub.offset === offset && sub.type === VFIO_USER_IO_FD_TYPE_IOEVENTFD &&
      (sub.flags & KVM_IOEVENTFD_FLAG_DATAMATCH) === 0 &&
      (sub.lengthBytes === 0 || sub.lengthBytes === width)
    );
    if (found === undefined) throw noBell(bar, offset, "eventfd");
    return new EventFdBell(io.fds[found.fdIndex]!.number);
  }

  #mappedBell(bar: number, offset: number, width: BellWidth): Bell {
    let mappings = this.#mappings.get(bar);
    if (mappings === undefined) {
      mappings = [];
      using info = this.client.regionInfo(bar);
      const areas = (info.flags & VFIO_REGION_INFO_FLAG_MMAP) === 0
        ? []
        : info.mmapAreas;
      for (let i = 0; i < areas.length; i++) {
        const mapping = info.map(i);
        this.#owned.push(mapping);
        mappings.push([areas[i]!.offset, mapping]);
      }
      this.#mappings.set(bar, mappings);
    }
    for (const [at, mapping] of mappings) {
      if (offset < at || offset + width > at + mapping.lengthBytes) continue;
      return new MappedBell(
        width === 2
          ? new Uint16Array(mapping.buffer)
          : new Uint32Array(mapping.buffer),
        (offset - at) / width,
      );
    }
    throw noBell(bar, offset, "mappable page");
  }

  #probeBar(index: number): number {
    const at = PCI_BASE_ADDRESS_0 + index * 4;
    const before = this.readConfig(at, 4);
    this.writeConfig(at, 4, 0xffff_ffff);
    const mask = this.readConfig(at, 4);
    this.writeConfig(at, 4, before);
    return mask;
  }

  #read(region: number, offset: number, width: PciWidth): number {
    switch (width) {
      case 1:
        return this.client.readRegion8(region, offset);
      case 2:
        return this.client.readRegion16(region, offset);
      case 4:
        return this.client.readRegion32(region, offset);
    }
  }

  #write(region: number, offset: number, width: PciWidth, value: number): void {
    switch (width) {
      case 1:
        return this.client.writeRegion8(region, offset, value);
      case 2:
        return this.client.writeRegion16(region, offset, value);
      case 4:
        return this.client.writeRegion32(region, offset, value);
    }
  }
}

function noBell(bar: number, offset: number, what: string): ErrnoError {
  return new ErrnoError(
    Errno.ENOENT,
    `Cannot ring BAR ${bar} at ${offset}: the server offers no ${what} there`,
  );
}
