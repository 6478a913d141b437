/** Storage in an array, as obedient or as difficult as a test wants it. */

import { assert, assertEquals } from "@std/assert";
import {
  type BlockBackend,
  type BlockClient,
  type BlockInfo,
  BlockOp,
  type BlockRequest,
  PENDING,
} from "../../../src/backend/block/contract.ts";
import { Errno } from "../../../src/core/errno.ts";
import type { MappableMemory } from "../../../src/memory/array_memory.ts";

/** Submitted request, as it was then. */
export interface Submitted {
  readonly op: BlockOp;
  readonly offset: number;
  readonly lengthBytes: number;
  readonly durable: boolean;
  readonly mayUnmap: boolean;
}

/** A disk whose bytes are in `bytes`; what is discarded reads as 0xdd. */
export class RamDisk implements BlockBackend {
  readonly description = "ram disk";
  info: BlockInfo;
  bytes: Uint8Array;
  /** True if requests wait for {@linkcode RamDisk.finish}. */
  slow = false;
  /** Results that are given in place of doing anything, first come. */
  readonly results: number[] = [];
  /** Result that a drain reports; null does the request. */
  drainResult: number | null = null;
  readonly log: Submitted[] = [];
  readonly pending: BlockRequest[] = [];
  writeCacheResult = 0;
  writeCache: boolean | null = null;
  /** Looks whether the storage has another size, when it is somebody else's too. */
  rescan?: () => boolean;
  /** Gives the parts that another thread needs to use it too. */
  share?: () => unknown;
  commits = 0;
  drains = 0;
  closed = 0;
  readonly #memory: MappableMemory;
  #client: BlockClient | null = null;

  constructor(
    memory: MappableMemory,
    sizeBytes: number,
    info: Partial<BlockInfo> = {},
  ) {
    this.#memory = memory;
    this.bytes = new Uint8Array(sizeBytes);
    this.info = {
      sizeBytes,
      logicalBlockBytes: 512,
      physicalBlockBytes: 4096,
      optimalBytes: 65536,
      readonly: false,
      volatileCache: true,
      discardGranularityBytes: 4096,
      maxTransferBytes: 1 << 20,
      ...info,
    };
  }

  start(client: BlockClient): void {
    assertEquals(this.#client, null, "started twice");
    this.#client = client;
  }

  submit(request: BlockRequest): number {
    assert(!this.pending.includes(request), "submitted twice");
    const { op, offset, lengthBytes, durable, mayUnmap } = request;
    this.log.push({ op, offset, lengthBytes, durable, mayUnmap });
    if (op === BlockOp.READ || op === BlockOp.WRITE) {
      assertEquals(request.buffers.lengthBytes, lengthBytes);
    }
    if (this.slow) {
      this.pending.push(request);
      return PENDING;
    }
    return this.results.shift() ?? this.#execute(request);
  }

  commit(): void {
    this.commits++;
  }

  /** Finishes request `at` of those that wait. */
  finish(at = 0, result?: number): void {
    assert(at < this.pending.length, "nothing is pending");
    const request = this.pending.splice(at, 1)[0]!;
    this.#client!.onComplete(
      request,
      result ?? this.results.shift() ?? this.#execute(request),
    );
  }

  /** Reports a request once more. */
  repeat(request: BlockRequest): void {
    this.#client!.onComplete(request, 0);
  }

  unfinished(): number {
    return this.pending.length;
  }

  drain(): void {
    this.drains++;
    while (this.pending.length > 0) {
      this.finish(0, this.drainResult ?? undefined);
    }
  }

  setWriteCache(on: boolean): number {
    if (this.writeCacheResult === 0) this.writeCache = on;
    return this.writeCacheResult;
  }

  resize(sizeBytes: number): void {
    const bytes = new Uint8Array(sizeBytes);
    bytes.set(this.bytes.subarray(0, sizeBytes));
    this.bytes = bytes;
    this.info = { ...this.info, sizeBytes };
    this.#client!.onResize();
  }

  counters(): Record<string, number> {
    return { submitted: this.log.length };
  }

  close(): void {
    this.closed++;
    this.drain();
  }

  #execute(request: BlockRequest): number {
    const { op, offset, lengthBytes, buffers } = request;
    assert(offset >= 0 && offset + lengthBytes <= this.bytes.length);
    assertEquals(offset % this.info.logicalBlockBytes, 0);
    const range = this.bytes.subarray(offset, offset + lengthBytes);
    switch (op) {
      case BlockOp.WRITE_ZEROES:
        range.fill(0);
        return 0;
      case BlockOp.DISCARD:
        range.fill(0xdd);
        return 0;
      case BlockOp.FLUSH:
        return 0;
    }
    if (op === BlockOp.WRITE && this.info.readonly) return -Errno.EROFS;
    let at = 0;
    for (let i = 0; i < buffers.count; i++) {
      const guest = this.#memory.bytes(buffers.base(i), buffers.length(i));
      const part = range.subarray(at, at + guest.length);
      if (op === BlockOp.READ) guest.set(part);
      else part.set(guest);
      at += guest.length;
    }
    return 0;
  }
}
