/**
 * Blocks in memory, gone with the process.
 *
 * @module
 */

import { Errno, ErrnoError } from "../../../core/errno.ts";
import {
  clearWords,
  createMemfd,
  fallocate,
  FallocateMode,
  type Fd,
  Mapping,
  type ResourceBag,
  type Saved,
  statFd,
  truncateFd,
} from "../../../os/mod.ts";
import { Words } from "../../../os/symbols.ts";
import {
  type BlockBackend,
  type BlockClient,
  type BlockInfo,
  BlockOp,
  type BlockRequest,
} from "../contract.ts";
import { BLOCK_COUNTERS, countRequest } from "../counters.ts";
import { Counters } from "../../../core/counters.ts";
import { formatSize } from "../../../core/size.ts";
import type { OpenBlock } from "../driver.ts";
import type { DeviceState } from "../../../core/state_form.ts";
import { blockForm, readInfo } from "../state.ts";
import { SegmentCopy } from "../../../memory/segments.ts";
import type { MemoryBlockOptions } from "./driver.ts";

/** Clearing more than this is left to the kernel, which takes the pages away instead. */
const CLEAR_MAX_BYTES = 64 * 1024;
const KIND = "memory";
const FORM = blockForm(KIND);
const PAGE_BYTES = 4096;
const HUGE_PAGE_BYTES = 2 * 1024 * 1024;
const MAX_TRANSFER_BYTES = 16 * 1024 * 1024;

/** Makes the storage. */
export const openMemory: OpenBlock<MemoryBlockOptions> = (
  options,
  _context,
  saved,
) => new MemoryBackend(options, saved);

/** A memfd, mapped once; every request is done when it is submitted. */
export class MemoryBackend implements BlockBackend {
  readonly #pages: string;
  readonly #options: MemoryBlockOptions;
  readonly #fd: Fd;
  #mapping: Mapping;
  #info: BlockInfo;
  #client: BlockClient | null = null;
  readonly #counts = new Counters(BLOCK_COUNTERS);
  readonly #base = new Float64Array(1);
  readonly #segments = new SegmentCopy();
  readonly #clearing = new Words(3);
  readonly #range = new Words(2);

  /**
   * @param saved What another was and had open, which this goes on with
   * @throws {import("../../../os/mod.ts").SyscallError} ENOMEM and the like
   */
  constructor(
    options: MemoryBlockOptions,
    saved?: Saved<unknown>,
  ) {
    this.#options = options;
    const state = saved && FORM.read(saved.state);
    if (state !== undefined) this.#counts.restore(state.value("counters"));
    this.#info = state === undefined
      ? this.#describe(options.sizeBytes)
      : readInfo(state.value("info"));
    const { sizeBytes } = this.#info;
    this.#pages = options.sizeBytes >= HUGE_PAGE_BYTES && hasHugePages()
      ? " on huge pages"
      : "";
    this.#fd = saved?.bag.take(KIND) ?? createMemfd("outboard-disk", sizeBytes);
    try {
      this.#mapping = this.#map(sizeBytes);
    } catch (error) {
      this.#fd.close();
      throw error;
    }
    this.#base[0] = this.#mapping.hva;
  }

  get description(): string {
    return `memory of ${formatSize(this.#info.sizeBytes)}${this.#pages}`;
  }

  get info(): BlockInfo {
    return this.#info;
  }

  start(client: BlockClient): void {
    this.#client = client;
  }

  submit(request: BlockRequest): number {
    const result = this.#serve(request);
    countRequest(this.#counts, request, result);
    return result;
  }

  commit(): void {}

  drain(): void {}

  setWriteCache(_on: boolean): number {
    // Nothing here outlasts the process, with or without a cache.
    return 0;
  }

  resize(sizeBytes: number): void {
    if (sizeBytes === this.#info.sizeBytes) return;
    // In this order no page of the mapping in use lies beyond the file: touching one would be fatal.
    if (sizeBytes > this.#info.sizeBytes) {
      truncateFd(this.#fd.number, sizeBytes);
    }
    try {
      this.#remap(sizeBytes);
    } finally {
      // Also back to what it was.
      truncateFd(this.#fd.number, this.#info.sizeBytes);
    }
    this.#client?.onResize();
  }

  counters(): Readonly<Record<string, number>> {
    return this.#counts.toRecord();
  }

  save(): DeviceState {
    return this.#state(this.#counts.toRecord());
  }

  handOver(bag: ResourceBag): void {
    bag.put(KIND, this.#fd.number);
  }

  share(bag: ResourceBag): DeviceState {
    bag.put(KIND, this.#fd.number);
    return this.#state(new Counters(BLOCK_COUNTERS).toRecord());
  }

  rescan(): boolean {
    const { sizeBytes } = statFd(this.#fd.number);
    if (sizeBytes === this.#info.sizeBytes) return false;
    this.#remap(sizeBytes);
    this.#client?.onResize();
    return true;
  }

  close(): void {
    this.#mapping.close();
    this.#fd.close();
  }

  #state(counters: Readonly<Record<string, number>>): DeviceState {
    return FORM.write({ info: this.#info, counters });
  }

  #remap(sizeBytes: number): void {
    const mapping = this.#map(sizeBytes);
    this.#mapping.close();
    this.#mapping = mapping;
    this.#base[0] = mapping.hva;
    this.#info = this.#describe(sizeBytes);
  }

  #map(lengthBytes: number): Mapping {
    try {
      const mapping = new Mapping({ fd: this.#fd.number, lengthBytes });
      mapping.preferHugePages();
      return mapping;
    } catch (error) {
      if (!(error instanceof ErrnoError)) throw error;
      throw new ErrnoError(
        error.errno,
        `Cannot keep a disk of ${
          formatSize(lengthBytes)
        } in memory: this process has no room for it, choose a smaller size or file=`,
        { cause: error },
      );
    }
  }

  #describe(sizeBytes: number): BlockInfo {
    const { readonly, logicalBlockBytes, physicalBlockBytes, discard } =
      this.#options;
    return {
      sizeBytes,
      logicalBlockBytes,
      physicalBlockBytes: physicalBlockBytes ?? PAGE_BYTES,
      optimalBytes: 0,
      readonly,
      volatileCache: false,
      discardGranularityBytes: discard && !readonly ? PAGE_BYTES : 0,
      maxTransferBytes: MAX_TRANSFER_BYTES,
    };
  }

  #serve(request: BlockRequest): number {
    const { op, offset, lengthBytes, buffers } = request;
    if (op === BlockOp.FLUSH) return 0;
    if (this.#options.readonly && op !== BlockOp.READ) return -Errno.EROFS;
    // The controller checks that, but here a mistake would be a write to memory of somebody else.
    if (offset < 0 || offset + lengthBytes > this.#info.sizeBytes) {
      return -Errno.EINVAL;
    }
    switch (op) {
      case BlockOp.READ:
      case BlockOp.WRITE:
        if (buffers.lengthBytes !== lengthBytes) return -Errno.EINVAL;
        this.#segments.hva[0] = this.#base[0]! + offset;
        if (op === BlockOp.READ) this.#segments.write(buffers, 0, lengthBytes);
        else this.#segments.read(buffers, 0, lengthBytes);
        return 0;
      case BlockOp.DISCARD:
        return this.#options.discard ? this.#punch(request) : 0;
      case BlockOp.WRITE_ZEROES:
        return this.#clear(request);
      default:
        return op satisfies never;
    }
  }

  #clear(request: BlockRequest): number {
    const { lengthBytes } = request;
    // No promise is lost with the pages: memory that is there and memory that will be are the same to a guest.
    if (request.mayUnmap || lengthBytes > CLEAR_MAX_BYTES) {
      return this.#punch(request);
    }
    const { halves } = this.#clearing;
    const at = this.#base[0]! + request.offset;
    halves[0] = at >>> 0;
    halves[1] = Math.floor(at / 0x1_0000_0000);
    halves[4] = lengthBytes;
    halves[5] = 0;
    clearWords(this.#clearing);
    return 0;
  }

  #punch(request: BlockRequest): number {
    const { offset, lengthBytes } = request;
    if (lengthBytes === 0) return 0;
    const { halves } = this.#range;
    halves[0] = offset >>> 0;
    halves[1] = Math.floor(offset / 0x1_0000_0000);
    halves[2] = lengthBytes >>> 0;
    halves[3] = Math.floor(lengthBytes / 0x1_0000_0000);
    const mode = FallocateMode.PUNCH_HOLE | FallocateMode.KEEP_SIZE;
    return fallocate(this.#fd.number, mode, this.#range);
  }
}

/** True if the system gives huge pages to a memfd that asks; taken not to where that may not be read. */
function hasHugePages(): boolean {
  const path = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
  const { state } = Deno.permissions.querySync({ name: "read", path });
  if (state !== "granted") return false;
  try {
    return !/\[(never|deny)\]/.test(Deno.readTextFileSync(path));
  } catch {
    return false;
  }
}
