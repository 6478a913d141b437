/**
 * The files behind the mappable parts of BARs.
 *
 * @module
 */

import { hex, PAGE_SIZE } from "../../core/bits.ts";
import {
  createMemfd,
  type Fd,
  type ResourceBag,
  type Saved,
  sealLength,
} from "../../os/mod.ts";
import type { BarSpec, SharedMemory } from "../../pci/device.ts";
import type { PciFunction } from "../../pci/function.ts";
import {
  VFIO_PCI_BAR0_REGION_INDEX,
  VFIO_PCI_BAR5_REGION_INDEX,
} from "./defs.ts";
import { invalid } from "./request.ts";

/** Shared memory that can be moved to another file; `MemfdMemory` is. */
interface RelocatableMemory extends SharedMemory {
  relocate(fd: number, offset: number): void;
  show(fd: number, offset: number): void;
}

function isRelocatable(memory: SharedMemory): memory is RelocatableMemory {
  return typeof (memory as Partial<RelocatableMemory>).relocate === "function";
}

function hasMappableAreas(bar: BarSpec | undefined): bar is BarSpec {
  return bar?.mmap !== undefined && bar.mmap.length > 0 &&
    bar.mmap.every(({ memory }) => isRelocatable(memory));
}

function checkAreas(bar: BarSpec): void {
  for (const { offset, memory: { bytes } } of bar.mmap!) {
    if (
      offset % PAGE_SIZE !== 0 || bytes.length % PAGE_SIZE !== 0 ||
      offset + bytes.length > bar.sizeBytes
    ) {
      throw invalid(
        `Cannot offer BAR ${bar.index} for mapping: ${
          hex(bytes.length)
        } bytes at ${hex(offset)} are not whole pages inside it`,
      );
    }
  }
}

/**
 * One file a BAR, of the BAR's length, with every mappable area at its own offset and nothing between. So one
 * descriptor serves all areas of a region, and the file offset of an area is its offset in the BAR, which is what
 * clients go by: most take one descriptor a region and no more.
 */
export class RegionFiles implements Disposable {
  readonly #bars: BarSpec[] = [];
  readonly #files = new Map<number, Fd>();

  /**
   * @param saved What {@linkcode RegionFiles.save} gave: the areas then show these files, in place of what the model may
   * have put into them
   * @throws {ErrnoError} EINVAL when areas are not whole pages inside their BAR; and what making files throws
   */
  constructor(pci: PciFunction, saved?: Saved<readonly number[]>) {
    for (
      let index = VFIO_PCI_BAR0_REGION_INDEX;
      index <= VFIO_PCI_BAR5_REGION_INDEX;
      index++
    ) {
      const bar = pci.bar(index);
      if (!hasMappableAreas(bar)) continue;
      checkAreas(bar);
      this.#bars.push(bar);
    }
    try {
      if (saved === undefined) this.renew();
      else this.#load(saved);
    } catch (error) {
      this.close();
      throw error;
    }
  }

  #load({ state, bag }: Saved<readonly number[]>): void {
    const bars = this.#bars.map(({ index }) => index).join();
    const given = state.join();
    if (bars !== given) {
      throw new Error(
        `Cannot take over mappable memory: there were files for BARs ${
          given || "none"
        }, there are for ${bars || "none"}`,
      );
    }
    for (const bar of this.#bars) {
      const file = bag.take(`bar${bar.index}`);
      this.#files.set(bar.index, file);
      for (const { offset, memory } of bar.mmap!) {
        (memory as RelocatableMemory).show(file.number, offset);
      }
    }
  }

  /** Puts the files into a bag: clients keep what they mapped. @returns Numbers of the BARs */
  save(bag: ResourceBag): number[] {
    for (const [bar, file] of this.#files) bag.put(`bar${bar}`, file.number);
    return [...this.#files.keys()];
  }

  /** The file behind a region; undefined when no part of it can be mapped. */
  fd(region: number): number | undefined {
    return this.#files.get(region)?.number;
  }

  /** Puts the areas into new files, so that a client that has gone shares nothing with the next. */
  renew(): void {
    for (const bar of this.#bars) {
      const file = createMemfd(`outboard-bar${bar.index}`, bar.sizeBytes);
      try {
        // Otherwise a client could cut the file, and our next access would be a SIGBUS.
        sealLength(file.number);
        for (const { offset, memory } of bar.mmap!) {
          (memory as RelocatableMemory).relocate(file.number, offset);
        }
      } catch (error) {
        file.close();
        throw error;
      }
      this.#files.get(bar.index)?.close();
      this.#files.set(bar.index, file);
    }
  }

  /** Closes the files; the device's memory stays mapped. */
  close(): void {
    for (const file of this.#files.values()) file.close();
    this.#files.clear();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}
