/**
 * DMA_MAP and DMA_UNMAP: which guest memory the device reaches.
 *
 * @module
 */

import { getU64, hex, PAGE_SIZE } from "../../core/bits.ts";
import { Errno, ErrnoError } from "../../core/errno.ts";
import { isLengthSealed } from "../../os/mod.ts";
import type { Log } from "../../core/log.ts";
import { overcommitOf } from "../../memory/client_files.ts";
import type { DmaMemory } from "../../memory/dma_memory.ts";
import type { PciFunction } from "../../pci/function.ts";
import { Access } from "../../memory/guest_memory.ts";
import {
  DMA_MAP,
  DMA_UNMAP,
  VFIO_DMA_UNMAP_FLAG_ALL,
  VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP,
  VFIO_USER_F_DMA_REGION_FILE_IO,
  VFIO_USER_F_DMA_REGION_MMAP,
  VFIO_USER_F_DMA_REGION_READ,
  VFIO_USER_F_DMA_REGION_WRITE,
} from "./defs.ts";
import { checkArgsz, invalid, type Request, UNFINISHED } from "./request.ts";

const KNOWN_FLAGS = VFIO_USER_F_DMA_REGION_READ |
  VFIO_USER_F_DMA_REGION_WRITE | VFIO_USER_F_DMA_REGION_MMAP |
  VFIO_USER_F_DMA_REGION_FILE_IO;

function checkFlags(flags: number, fd: number): void {
  if ((flags & ~KNOWN_FLAGS) !== 0) {
    throw invalid(`Cannot map memory: flags are ${hex(flags)}`);
  }
  if (
    (flags & (VFIO_USER_F_DMA_REGION_READ | VFIO_USER_F_DMA_REGION_WRITE)) === 0
  ) {
    throw invalid("Cannot map memory: it is neither readable nor writable");
  }
  const needsFd = flags &
    (VFIO_USER_F_DMA_REGION_MMAP | VFIO_USER_F_DMA_REGION_FILE_IO);
  if (needsFd !== 0 && fd < 0) {
    throw invalid("Cannot map memory: its flags need a file descriptor");
  }
  if ((flags & VFIO_USER_F_DMA_REGION_FILE_IO) !== 0) {
    throw new ErrnoError(
      Errno.EOPNOTSUPP,
      "Cannot map memory: access by file I/O is not supported",
    );
  }
}

function checkRange(iova: number, lengthBytes: number, offset: number): void {
  if (lengthBytes === 0) throw invalid("Cannot map memory: its size is 0");
  if (
    iova + lengthBytes > Number.MAX_SAFE_INTEGER ||
    offset + lengthBytes > Number.MAX_SAFE_INTEGER
  ) {
    throw invalid(`Cannot map memory: it ends above 2^53 − 1`);
  }
  if (
    iova % PAGE_SIZE !== 0 || lengthBytes % PAGE_SIZE !== 0 ||
    offset % PAGE_SIZE !== 0
  ) {
    throw invalid(
      `Cannot map ${hex(iova)}: address, size or offset is not page-aligned`,
    );
  }
}

/** Number of ranges that are unmapped between two looks at the clock. */
const UNMAP_STEP = 16;

/**
 * Unmaps everything, or as much as there is time for.
 *
 * @returns Whether everything is unmapped
 */
export function unmapUntil(memory: DmaMemory, isOver: () => boolean): boolean {
  for (;;) {
    for (let i = 0; i < UNMAP_STEP; i++) {
      const last = memory.lastRange();
      if (last === null) return true;
      memory.unmap(last.iova, last.lengthBytes);
    }
    if (isOver()) return memory.count === 0;
  }
}

/** The DMA commands of one client. */
export class DmaCommands {
  readonly #memory: DmaMemory;
  readonly #maxDmaMaps: number;
  readonly #onUnsharedMemory: () => void;
  readonly #log: Log;
  /** True if the log tells of memory that may end the process, and of such that may be cut. */
  #overcommitTold = false;
  #unsealedTold = false;
  #sharedSeen: boolean;

  /**
   * @param onUnsharedMemory The client's main memory is not shared; called once at most. A writable range without
   * a descriptor says so when it comes before any with one: VMMs map from address 0 up, main memory first, and even
   * with shared memory they map ROMs (read-only) and later some video memory (writable) without a descriptor.
   * @param sharedSeen Whether the client has shown already which it is
   */
  constructor(
    memory: DmaMemory,
    maxDmaMaps: number,
    onUnsharedMemory: () => void,
    log: Log,
    sharedSeen = false,
  ) {
    this.#log = log;
    this.#memory = memory;
    this.#maxDmaMaps = maxDmaMaps;
    this.#onUnsharedMemory = onUnsharedMemory;
    this.#sharedSeen = sharedSeen;
  }

  /** True if the client has shown whether its main memory is shared. */
  get sharedSeen(): boolean {
    return this.#sharedSeen;
  }

  /**
   * DMA_MAP; the reply is empty.
   *
   * @throws {ErrnoError} EINVAL, EEXIST (overlap), ENOSPC (too many ranges), EOPNOTSUPP (file I/O), and what mmap says
   */
  map(request: Request): number {
    checkArgsz(request, "map memory", DMA_MAP.SIZE);
    const { in: view, at } = request;
    const flags = view.getUint32(at + DMA_MAP.FLAGS, true);
    const offset = getU64(view, at + DMA_MAP.OFFSET);
    const iova = getU64(view, at + DMA_MAP.ADDR);
    const lengthBytes = getU64(view, at + DMA_MAP.LENGTH);
    const fd = request.fds.peek(0);
    checkFlags(flags, fd);
    checkRange(iova, lengthBytes, fd < 0 ? 0 : offset);
    if (this.#memory.count >= this.#maxDmaMaps) {
      throw new ErrnoError(
        Errno.ENOSPC,
        `Cannot map ${hex(iova)}: there are ${this.#memory.count} mappings`,
      );
    }
    const access = (flags & VFIO_USER_F_DMA_REGION_READ ? Access.READ : 0) |
      (flags & VFIO_USER_F_DMA_REGION_WRITE ? Access.WRITE : 0);
    if (fd < 0) {
      this.#memory.map({ iova, lengthBytes, access });
      this.#noteUnshared(access);
    } else {
      if (this.#memory.map({ iova, lengthBytes, access, fd, offset })) {
        this.#tellRisks(fd);
      }
      this.#sharedSeen = true;
    }
    return 0;
  }

  /** Tells what can be known of a file that was just mapped, once per client. */
  #tellRisks(fd: number): void {
    if (!this.#unsealedTold && !isLengthSealed(fd)) {
      this.#unsealedTold = true;
      this.#log.info(
        "guest memory is in a file that can be cut short, which would end this process (SIGBUS); " +
          "QEMU seals that of memory-backend-memfd",
      );
    }
    if (this.#overcommitTold) return;
    const risk = overcommitOf(fd);
    if (risk === null) return;
    this.#overcommitTold = true;
    this.#log.warn(risk);
  }

  #noteUnshared(access: Access): void {
    if (this.#sharedSeen || (access & Access.WRITE) === 0) return;
    this.#sharedSeen = true;
    this.#onUnsharedMemory();
  }

  /** True if a DMA_UNMAP is of memory that unfinished requests use. */
  mustSettle(request: Request, pci: PciFunction): boolean {
    if (request.lengthBytes < DMA_UNMAP.SIZE) return false;
    const { in: view, at } = request;
    const flags = view.getUint32(at + DMA_UNMAP.FLAGS, true);
    if (flags === VFIO_DMA_UNMAP_FLAG_ALL) return pci.unfinished() > 0;
    return flags === 0 && pci.unfinished(
          getU64(view, at + DMA_UNMAP.ADDR),
          getU64(view, at + DMA_UNMAP.LENGTH),
        ) > 0;
  }

  /**
   * DMA_UNMAP; the reply repeats the request.
   *
   * @throws {ErrnoError} EINVAL, ENOENT (no such range), EOPNOTSUPP (dirty bitmap)
   */
  unmap(request: Request): number {
    checkArgsz(request, "unmap memory", DMA_UNMAP.SIZE);
    const { in: view, at, out, outAt } = request;
    const flags = view.getUint32(at + DMA_UNMAP.FLAGS, true);
    const iova = getU64(view, at + DMA_UNMAP.ADDR);
    const lengthBytes = getU64(view, at + DMA_UNMAP.LENGTH);
    switch (flags) {
      case 0:
        this.#memory.unmap(iova, lengthBytes);
        break;
      case VFIO_DMA_UNMAP_FLAG_ALL:
        if (iova !== 0 || lengthBytes !== 0) {
          throw invalid("Cannot unmap everything: address and size are not 0");
        }
        if (!unmapUntil(this.#memory, () => request.isTurnOver())) {
          return UNFINISHED;
        }
        break;
      case VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP:
        throw new ErrnoError(
          Errno.EOPNOTSUPP,
          "Cannot unmap memory: dirty pages are not logged",
        );
      default:
        throw invalid(`Cannot unmap memory: flags are ${hex(flags)}`);
    }
    for (let i = 0; i < DMA_UNMAP.SIZE; i += 4) {
      out.setUint32(outAt + i, view.getUint32(at + i, true), true);
    }
    return DMA_UNMAP.SIZE;
  }
}
