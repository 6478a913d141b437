/**
 * Storage for tests: bytes that are moved when a test says so, with a power switch.
 *
 * @module
 */

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

/** A request as it arrived. */
export interface Seen {
  readonly op: BlockOp;
  readonly offset: number;
  readonly lengthBytes: number;
  readonly durable: boolean;
  readonly mayUnmap: boolean;
}

/** Differences of a {@linkcode RamDisk} from the usual. */
export interface RamDiskOptions {
  readonly info?: Partial<BlockInfo>;
  /** Answer at once; otherwise requests wait for {@linkcode RamDisk.finish}. */
  readonly immediate?: boolean;
  /** True if the cache mode can be set. */
  readonly canSetCache?: boolean;
  /** Take requests out of flight when drained, as a network does, in place of finishing them. */
  readonly cancels?: boolean;
}

const SIZE = 1 << 20;

/** A disk in memory, with a volatile cache. */
export class RamDisk implements BlockBackend {
  readonly description = "ram disk";
  info: BlockInfo;
  readonly #memory: MappableMemory;
  readonly #options: RamDiskOptions;
  /** Bytes that reads see. */
  bytes: Uint8Array;
  /** Bytes that would be left after a power failure. */
  stable: Uint8Array;
  /** Requests that wait; those behind the index of the last commit are not known to the disk yet. */
  readonly waiting: BlockRequest[] = [];
  committed = 0;
  commits = 0;
  readonly seen: Seen[] = [];
  /** Results that the next requests get in place of being done. */
  readonly results: number[] = [];
  /** Called inside submit, before anything else. */
  onSubmit: (() => void) | null = null;
  writeCache = true;
  cacheCalls: boolean[] = [];
  closed = false;
  drains = 0;
  #client: BlockClient | null = null;

  constructor(memory: MappableMemory, options: RamDiskOptions = {}) {
    this.#memory = memory;
    this.#options = options;
    this.info = {
      sizeBytes: SIZE,
      logicalBlockBytes: 512,
      physicalBlockBytes: 4096,
      optimalBytes: 65536,
      readonly: false,
      volatileCache: true,
      discardGranularityBytes: 4096,
      maxTransferBytes: SIZE,
      ...options.info,
    };
    // Huge disks are for arithmetic: only their first bytes exist.
    const length = Math.min(this.info.sizeBytes, SIZE);
    this.bytes = new Uint8Array(length);
    this.stable = new Uint8Array(length);
  }

  get client(): BlockClient {
    return this.#client!;
  }

  start(client: BlockClient): void {
    assertEquals(this.#client, null, "started twice");
    this.#client = client;
  }

  submit(request: BlockRequest): number {
    this.onSubmit?.();
    const { op, offset, lengthBytes, durable, mayUnmap, buffers } = request;
    assert(offset >= 0 && offset + lengthBytes <= this.info.sizeBytes);
    assertEquals(offset % this.info.logicalBlockBytes, 0);
    assertEquals(lengthBytes % this.info.logicalBlockBytes, 0);
    if (op === BlockOp.READ || op === BlockOp.WRITE) {
      assertEquals(buffers.lengthBytes, lengthBytes);
    } else assertEquals(buffers.lengthBytes, 0);
    this.seen.push({ op, offset, lengthBytes, durable, mayUnmap });
    if (this.#options.immediate) return this.#execute(request);
    this.waiting.push(request);
    return PENDING;
  }

  commit(): void {
    this.commits++;
    this.committed = this.waiting.length;
  }

  /** Finishes a waiting request; the first unless told. */
  finish(index = 0, result?: number): void {
    assert(index < this.committed, "the request was not committed");
    const [request] = this.waiting.splice(index, 1);
    this.committed--;
    this.#client!.onComplete(request!, result ?? this.#execute(request!));
  }

  /** Finishes everything that waits; how many requests. */
  finishAll(): number {
    let count = 0;
    for (; this.committed > 0; count++) this.finish();
    return count;
  }

  drain(): void {
    this.drains++;
    const count = this.waiting.length;
    this.committed = 0;
    for (let i = 0; i < count; i++) {
      const request = this.waiting.shift()!;
      this.#client!.onComplete(
        request,
        this.#options.cancels ? -Errno.ECANCELED : this.#execute(request),
      );
    }
    assertEquals(this.waiting.length, 0, "given something new while draining");
  }

  unfinished(): number {
    return this.#options.cancels ? 0 : this.waiting.length;
  }

  setWriteCache(on: boolean): number {
    this.cacheCalls.push(on);
    if (this.#options.canSetCache === false) return -Errno.EOPNOTSUPP;
    this.writeCache = on;
    return 0;
  }

  resize(sizeBytes: number): void {
    this.info = { ...this.info, sizeBytes };
    const resized = () => {
      const bytes = new Uint8Array(sizeBytes);
      bytes.set(this.bytes.subarray(0, sizeBytes));
      return bytes;
    };
    this.bytes = resized();
    this.stable = resized();
    this.#client!.onResize();
  }

  counters(): Record<string, number> {
    return { seen: this.seen.length };
  }

  close(): void {
    assert(!this.closed, "closed twice");
    this.drain();
    this.closed = true;
  }

  /** The power fails and comes back: what was not stable is gone. */
  powerCycle(): void {
    this.bytes = this.stable.slice();
  }

  #execute(request: BlockRequest): number {
    const result = this.results.shift();
    if (result !== undefined) return result;
    const { op, offset, lengthBytes, buffers } = request;
    const end = offset + lengthBytes;
    switch (op) {
      case BlockOp.READ: {
        let at = offset;
        for (let i = 0; i < buffers.count; i++) {
          const length = buffers.length(i);
          this.#memory.bytes(buffers.base(i), length)
            .set(this.bytes.subarray(at, at + length));
          at += length;
        }
        break;
      }
      case BlockOp.WRITE: {
        let at = offset;
        for (let i = 0; i < buffers.count; i++) {
          const length = buffers.length(i);
          this.bytes.set(this.#memory.bytes(buffers.base(i), length), at);
          at += length;
        }
        if (request.durable || !this.writeCache) this.#stabilize(offset, end);
        break;
      }
      case BlockOp.FLUSH:
        this.stable = this.bytes.slice();
        break;
      case BlockOp.DISCARD:
        this.bytes.fill(0xdd, offset, end);
        break;
      case BlockOp.WRITE_ZEROES:
        this.bytes.fill(0, offset, end);
        if (request.durable || !this.writeCache) this.#stabilize(offset, end);
        break;
    }
    return 0;
  }

  #stabilize(offset: number, end: number): void {
    this.stable.set(this.bytes.subarray(offset, end), offset);
  }
}
