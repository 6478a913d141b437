/**
 * Transfers that the page cache serves while the controller waits.
 *
 * @module
 */

import { PAGE_SIZE } from "../../../core/bits.ts";
import { Errno } from "../../../core/errno.ts";
import {
  monotonicUs,
  NativeBuffer,
  preadv2,
  pwritev2,
  Rwf,
} from "../../../os/mod.ts";
import { Words } from "../../../os/symbols.ts";
import { ScatterGather } from "../../../memory/scatter_gather.ts";
import type { BlockRequest } from "../contract.ts";
import { FileCounter } from "./driver.ts";
import type { Counters } from "../../../core/counters.ts";
import { LIST_WORDS, Place } from "./steps.ts";

/** Copying more than this costs what waking a kernel thread does: let that copy, and the loop go on. */
const SHORT_BYTES = 256 * 1024;

/** Requests that are tried at once. */
export const AtOncePolicy = {
  /** Nothing. */
  NEVER: 0,
  /** Those that are likely to be in the page cache. */
  CACHED: 1,
  /** All but long transfers: the file is in memory. */
  SHORT: 2,
  /** Everything, whether it waits or not: there is no other way. */
  ALWAYS: 3,
} as const;

/** A policy of {@linkcode AtOncePolicy}. */
export type AtOncePolicy = typeof AtOncePolicy[keyof typeof AtOncePolicy];

/** Tries transfers at once, and learns from how that ends. */
export class AtOnce implements Disposable {
  readonly #fd: number;
  readonly #policy: AtOncePolicy;
  readonly #counts: Counters;
  readonly #storage = new NativeBuffer(LIST_WORDS * 4);
  readonly #list = new ScatterGather(
    new Uint32Array(this.#storage.bytes.buffer, 0, LIST_WORDS),
  );
  readonly #place = new Words(Place.LIST + 1);
  readonly #reads = new NowaitPredictor();
  readonly #writes = new NowaitPredictor();
  readonly #stalls = new StallGuard();
  /** True if the file system has no RWF_NOWAIT for writes: then whole pages are written at once while that is quick. */
  #timesWrites = false;

  /** @param counts By {@linkcode FileCounter} */
  constructor(fd: number, policy: AtOncePolicy, counts: Counters) {
    this.#fd = fd;
    this.#policy = policy;
    this.#counts = counts;
    this.#place.set(Place.LIST, this.#storage.hva);
  }

  /** True if fdatasync may be called at once. */
  get flushes(): boolean {
    return this.#policy >= AtOncePolicy.SHORT;
  }

  /** @returns Bytes read, 0 when it is to be done another way, or −errno */
  read(request: BlockRequest): number {
    const cached = this.#policy === AtOncePolicy.CACHED;
    if (!this.#isFor(request)) return 0;
    if (cached && !this.#reads.shouldTry()) return 0;
    this.#put(request);
    const flags = cached ? Rwf.NOWAIT : 0;
    const { count } = this.#list;
    const n = preadv2(this.#fd, this.#place, Place.LIST, count, flags);
    return cached ? judge(n, this.#reads) : n;
  }

  /**
   * @param durable Whether it must be durable when it is done
   * @returns Bytes written, 0 when it is to be done another way, or −errno
   */
  write(request: BlockRequest, durable: boolean): number {
    if (!this.#isFor(request)) return 0;
    if (this.#policy === AtOncePolicy.CACHED) {
      if (durable) return 0;
      return this.#timesWrites
        ? this.#writeTimed(request)
        : this.#writeNowait(request);
    }
    this.#put(request);
    const flags = durable ? Rwf.DSYNC : 0;
    const { count } = this.#list;
    return pwritev2(this.#fd, this.#place, Place.LIST, count, flags);
  }

  /** Frees the native memory. */
  close(): void {
    this.#storage.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #isFor(request: BlockRequest): boolean {
    return this.#policy !== AtOncePolicy.NEVER &&
      (this.#policy === AtOncePolicy.ALWAYS ||
        request.lengthBytes <= SHORT_BYTES);
  }

  #put(request: BlockRequest): void {
    const { halves } = this.#place;
    const { offset } = request;
    halves[0] = offset >>> 0;
    halves[1] = Math.floor(offset / 0x1_0000_0000);
    this.#list.clear();
    this.#list.append(request.buffers);
  }

  #writeNowait(request: BlockRequest): number {
    if (!this.#writes.shouldTry()) return 0;
    this.#put(request);
    const { count } = this.#list;
    const n = pwritev2(this.#fd, this.#place, Place.LIST, count, Rwf.NOWAIT);
    if (n === -Errno.EOPNOTSUPP) this.#timesWrites = true;
    return judge(n, this.#writes);
  }

  #writeTimed(request: BlockRequest): number {
    const { offset, lengthBytes } = request;
    // A part of a page would have to be read first.
    if (offset % PAGE_SIZE !== 0 || lengthBytes % PAGE_SIZE !== 0) return 0;
    if (!this.#stalls.shouldTry()) return 0;
    this.#put(request);
    const { count } = this.#list;
    const before = monotonicUs();
    const n = pwritev2(this.#fd, this.#place, Place.LIST, count, 0);
    if (this.#stalls.took((monotonicUs() - before) | 0)) {
      this.#counts.add(FileCounter.stalled, 1);
    }
    return Math.max(n, 0);
  }
}

/** @returns Bytes that were transferred; the ring meets any error again, and knows what to make of it */
function judge(result: number, predictor: NowaitPredictor): number {
  if (result > 0) {
    predictor.hit();
    return result;
  }
  if (result === -Errno.EOPNOTSUPP) predictor.giveUp();
  else if (result === -Errno.EAGAIN) predictor.miss();
  return 0;
}

/** Misses in a row that are put up with: a failed try costs 1 µs, a good one saves 30 µs. */
const PATIENCE = 8;
const SKIP_MAX = 1024;

/**
 * Remembers how tries ended. After eight misses in a row the next ones are left out, more and more up to 1024; a hit
 * forgives everything.
 */
export class NowaitPredictor {
  #supported = true;
  #misses = 0;
  #skip = 0;
  #penalty = 0;

  /** True if to try now. */
  shouldTry(): boolean {
    if (!this.#supported) return false;
    if (this.#skip === 0) return true;
    this.#skip--;
    return false;
  }

  /** The try was served. */
  hit(): void {
    this.#misses = 0;
    this.#penalty = 0;
  }

  /** The try would have waited. */
  miss(): void {
    if (++this.#misses < PATIENCE) return;
    this.#penalty = Math.min(this.#penalty * 2 + 1, SKIP_MAX);
    this.#skip = this.#penalty;
  }

  /** The file system cannot do that: no more tries. */
  giveUp(): void {
    this.#supported = false;
  }
}

/** A write into the page cache takes microseconds: this long says that the kernel made it wait. */
const STALL_US = 1000;
const STALL_SKIP_MIN = 256;
const STALL_SKIP_MAX = 65_536;
const FORGIVING_WRITES = 1024;

/**
 * Keeps writes that cannot be told not to wait (ext4 has no RWF_NOWAIT for them) from waiting often. They go to the page
 * cache at once while that is quick; after one that the kernel held up, as it does with too many dirty pages, the next
 * 256 do not, and after further ones more, up to 65,536.
 */
export class StallGuard {
  #skip = 0;
  #penalty = 0;
  #quick = 0;

  /** True if to write at once. */
  shouldTry(): boolean {
    if (this.#skip === 0) return true;
    this.#skip--;
    return false;
  }

  /**
   * Tells how long a write took.
   *
   * @param elapsedUs In microseconds
   * @returns Whether it was held up
   */
  took(elapsedUs: number): boolean {
    if (elapsedUs < STALL_US) {
      if (++this.#quick < FORGIVING_WRITES) return false;
      this.#quick = 0;
      this.#penalty >>>= 1;
      return false;
    }
    this.#quick = 0;
    this.#penalty = Math.min(
      Math.max(this.#penalty * 4, STALL_SKIP_MIN),
      STALL_SKIP_MAX,
    );
    this.#skip = this.#penalty;
    return true;
  }
}
