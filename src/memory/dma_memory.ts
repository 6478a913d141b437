/**
 * Guest memory as the client shares it: DMA mappings with a file descriptor, mapped into this process once and
 * viewed for as long as they last.
 *
 * @module
 */

import {
  type CounterRecord,
  type CounterTable,
  gauge,
} from "../core/counters.ts";
import {
  type Fd,
  NativeBuffer,
  type ResourceBag,
  type Saved,
  viewMemory,
} from "../os/mod.ts";
import type { StateReader } from "../core/state_reader.ts";
import { ClientFiles } from "./client_files.ts";
import { Access } from "./guest_memory.ts";
import { type ListStorage, MappedMemory } from "./mapped_memory.ts";
import { Backing, type DmaRange, type Region, UNREACHABLE } from "./region.ts";
import { ScatterGather } from "./scatter_gather.ts";

export type { DmaRange };

/** Range to map; the descriptor stays the caller's and may be closed afterwards. */
export interface DmaMapOptions extends DmaRange {
  /** The file behind the range; without one the range is known but cannot be reached yet. */
  readonly fd?: number;
  /** Offset in the file, page-aligned. */
  readonly offset?: number;
}

/** A range that another thread of this process has mapped. Plain data. */
export interface SharedRange extends DmaRange {
  /** Address where it is mapped; 0 when it is known and cannot be reached. */
  readonly hva: number;
  /** The mapping that it is all or a part of. */
  readonly mappingHva: number;
  readonly mappingBytes: number;
}

/** A range, and what it shows. Plain data. */
interface RangeState extends DmaRange {
  /** Number of its file, `fileN` in a bag; null when there is none. */
  readonly file: number | null;
  /** Offset in the file, page-aligned. */
  readonly offset: number;
}

/** Ranges that are mapped; see {@linkcode DmaMemory.save}. Plain data. */
export interface MemoryState {
  /** In order of address. */
  readonly ranges: readonly RangeState[];
}

/**
 * Checks what was mapped; ranges that cannot be are refused when they are mapped.
 *
 * @throws {ErrnoError} EINVAL
 */
export function parseMemoryState(reader: StateReader): MemoryState {
  const { MAX_SAFE_INTEGER } = Number;
  return {
    ranges: reader.parts("ranges", (range) => ({
      iova: range.integer("iova", MAX_SAFE_INTEGER),
      lengthBytes: range.integer("lengthBytes", MAX_SAFE_INTEGER),
      access: range.integer("access", Access.READ | Access.WRITE) as Access,
      file: range.value("file") === null
        ? null
        : range.integer("file", MAX_SAFE_INTEGER),
      offset: range.integer("offset", MAX_SAFE_INTEGER),
    })),
  };
}

/** Options of guest memory. */
export interface DmaMemoryOptions {
  /**
   * Leave inaccessible pages where a mapping was, so that any later use of it faults: for tests; address space is not
   * given back.
   */
  readonly poison?: boolean;
  /** Have every page of a file there before it is used, so that no use of it can find that there is no memory left. */
  readonly prealloc?: boolean;
  /** State that {@linkcode DmaMemory.save} of a predecessor gave: mapped here too. */
  readonly saved?: Saved<MemoryState>;
}

/** Numbers of what is mapped. */
export const DMA_COUNTERS = {
  ranges: [gauge("device_dma_maps", "Ranges of guest memory in reach")],
  /** Their length together. */
  lengthBytes: [
    gauge("device_dma_mapped_bytes", "Guest memory in reach", "bytes"),
  ],
} satisfies CounterTable;

/** Numbers of what is mapped. */
export type DmaStatistics = CounterRecord<typeof DMA_COUNTERS>;

/** Memory that C can take. */
class NativeStorage implements ListStorage {
  readonly #buffers: NativeBuffer[] = [];

  list(capacity: number): ScatterGather {
    const storage = this.#add(capacity * (16 + 8));
    const { buffer } = storage.bytes;
    return new ScatterGather(
      new Uint32Array(buffer, 0, capacity * 4),
      storage.pointer(),
      new Float64Array(buffer, capacity * 16, capacity),
    );
  }

  // SAFETY: `close` takes the storage away, after which nothing of this memory may be used.
  scratch(lengthBytes: number): { buffer: ArrayBuffer; hva: number } {
    const { bytes, hva } = this.#add(lengthBytes);
    return { buffer: bytes.buffer, hva };
  }

  close(): void {
    for (const buffer of this.#buffers.splice(0)) buffer.close();
  }

  #add(lengthBytes: number): NativeBuffer {
    const buffer = new NativeBuffer(lengthBytes);
    this.#buffers.push(buffer);
    return buffer;
  }
}

/**
 * Memory of a client, mapped from its files.
 *
 * One of two that are {@linkcode MappedMemory}, and no more beside it than what a system is needed for: an access of a device
 * passes nothing on.
 */
export class DmaMemory extends MappedMemory {
  readonly #files: ClientFiles;
  /** Mappings of another thread, by address. */
  readonly #shared = new Map<number, Backing>();

  constructor(options: DmaMemoryOptions = {}) {
    super(new NativeStorage());
    const { saved, poison = false, prealloc = false } = options;
    this.#files = new ClientFiles({ poison, prealloc });
    if (saved === undefined) return;
    try {
      this.#load(saved);
    } catch (error) {
      this.close();
      throw error;
    }
  }

  #load({ state, bag }: Saved<MemoryState>): void {
    const files = new Map<number, Fd>();
    try {
      for (const { file, offset, ...range } of state.ranges) {
        if (file === null) {
          this.map(range);
          continue;
        }
        const fd = files.get(file) ?? bag.take(`file${file}`);
        files.set(file, fd);
        this.map({ ...range, fd: fd.number, offset });
      }
    } finally {
      for (const fd of files.values()) fd.close();
    }
  }

  /** Number of ranges, and their length together. */
  statistics(): DmaStatistics {
    return { ranges: this.count, lengthBytes: this.lengthBytes };
  }

  /**
   * Adds a range.
   *
   * @returns Whether a file was mapped for it; not when it lies in one that is mapped already
   * @throws {ErrnoError} EEXIST on overlap; EINVAL when the file does not reach so far; what mmap says otherwise
   */
  map(options: DmaMapOptions): boolean {
    const { iova, lengthBytes, access, fd, offset = 0 } = options;
    if (fd === undefined) {
      this.show(options, UNREACHABLE);
      return false;
    }
    this.checkFree(options);
    const part = this.#files.map({ fd, offset, lengthBytes, access });
    this.show({ iova, lengthBytes, access }, part.backing, part.offset);
    return part.isNew;
  }

  /** All ranges as another thread maps them. */
  sharedRanges(): SharedRange[] {
    return this.regions().map(sharedRange);
  }

  /** The range that begins at an address, as another thread maps it. */
  sharedRange(iova: number): SharedRange {
    return sharedRange(this.rangeAt(iova));
  }

  /**
   * Adds a range that another thread has mapped and keeps mapped until this memory has unmapped it.
   *
   * @throws {ErrnoError} EEXIST on overlap
   */
  mapShared(range: SharedRange): void {
    const { hva, mappingHva } = range;
    const backing = hva === 0 ? UNREACHABLE : this.#backingOf(range);
    this.show(range, backing, hva - mappingHva);
  }

  /** Saves what is mapped, whose files go into a bag. */
  save(bag: ResourceBag): MemoryState {
    const files: number[] = [];
    const ranges = this.regions().map((region): RangeState => {
      const { iova, lengthBytes, access } = region;
      const place = this.#files.placeOf(region);
      if (place === null) {
        return { iova, lengthBytes, access, file: null, offset: 0 };
      }
      const { fd, offset } = place;
      let file = files.indexOf(fd);
      if (file < 0) {
        file = files.push(fd) - 1;
        bag.put(`file${file}`, fd);
      }
      return { iova, lengthBytes, access, file, offset };
    });
    return { ranges };
  }

  #backingOf({ mappingHva, mappingBytes }: SharedRange): Backing {
    const known = this.#shared.get(mappingHva);
    if (known !== undefined) return known;
    // SAFETY: the other thread unmaps only after it was told that nothing here uses the range any more.
    const buffer = viewMemory(mappingHva, mappingBytes);
    const backing = new Backing(
      buffer,
      mappingHva,
      () => this.#shared.delete(mappingHva),
    );
    this.#shared.set(mappingHva, backing);
    return backing;
  }
}

function sharedRange(region: Region): SharedRange {
  const { iova, lengthBytes, access, hva, backing } = region;
  return {
    ...{ iova, lengthBytes, access, hva },
    mappingHva: backing.hva,
    mappingBytes: backing.lengthBytes,
  };
}
