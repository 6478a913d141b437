/**
 * A namespace: blocks of a back end under a number.
 *
 * @module
 */

import type {
  BlockBackend,
  BlockRequest,
} from "../../../src/backend/block/contract.ts";
import type { BlockOptions } from "../../../src/backend/block/options.ts";

/** The largest namespace id: NN of Identify Controller, whichever namespaces there are by now. */
export const NSID_MAX = 32;

/** Storage and the namespace id it gets. */
export interface NamespaceStorage {
  /** 1 to {@linkcode NSID_MAX}. */
  readonly nsid: number;
  /** The controller closes it. */
  readonly backend: BlockBackend;
  /** Options that it was opened with; a controller whose storage does not tell them cannot be moved. */
  readonly block?: BlockOptions;
}

/** Storage with a namespace id. */
export class Namespace {
  /** 1 and up. */
  readonly nsid: number;
  readonly backend: BlockBackend;
  /** Options that its storage was opened with. */
  readonly block: BlockOptions | undefined;
  /** True once it was taken away: commands that have got it end as if there were none. */
  removed = false;
  /** Bytes of a logical block, as a power of two. */
  readonly lbaShift: number;
  /** Logical blocks. */
  blocks: number;
  #uncommitted = false;

  constructor({ nsid, backend, block }: NamespaceStorage) {
    this.nsid = nsid;
    this.backend = backend;
    this.block = block;
    this.lbaShift = Math.log2(backend.info.logicalBlockBytes);
    this.blocks = this.storedBlocks;
  }

  /** Logical blocks that the storage has by now. */
  get storedBlocks(): number {
    return Math.floor(this.backend.info.sizeBytes / 2 ** this.lbaShift);
  }

  /** Length of all of its blocks. */
  get sizeBytes(): number {
    return this.blocks * 2 ** this.lbaShift;
  }

  /**
   * Tells whether blocks lie inside, without rounding: the start is 64 bits wide.
   *
   * @param slbaLow Low word of the first block @param slbaHigh High word
   * @param count Number of blocks
   */
  contains(slbaLow: number, slbaHigh: number, count: number): boolean {
    // Exact below 2^53; from there on rounded, but not down to the size of any storage, and nothing wraps.
    return slbaHigh * 0x1_0000_0000 + slbaLow + count <= this.blocks;
  }

  /** Hands a request to the back end; see {@linkcode BlockBackend.submit}. */
  submit(request: BlockRequest): number {
    this.#uncommitted = true;
    return this.backend.submit(request);
  }

  /** Lets the back end begin with what was submitted. */
  commit(): void {
    if (!this.#uncommitted) return;
    this.#uncommitted = false;
    this.backend.commit();
  }
}

/** The namespaces of a controller as one thread serves them, by number. */
export class NamespaceSet {
  #all: readonly Namespace[] = [];
  readonly #byId: (Namespace | null)[] = new Array(NSID_MAX + 1).fill(null);
  #writeCache = true;

  /** In order of their numbers. */
  get all(): readonly Namespace[] {
    return this.#all;
  }

  /** The namespace, or null for a number that none has. */
  get(nsid: number): Namespace | null {
    return this.#byId[nsid] ?? null;
  }

  /** Tells whether a number could be a namespace's (section 6.1.2). */
  isValid(nsid: number): boolean {
    return nsid >= 1 && nsid <= NSID_MAX;
  }

  /** One more, under a number that is free, and whose storage was started. */
  add(ns: Namespace): void {
    this.#all = [...this.#all, ns].sort((a, b) => a.nsid - b.nsid);
    this.#byId[ns.nsid] = ns;
  }

  /**
   * Takes one away and closes its storage. Commands that are in flight there touch guest memory no more when this returns,
   * and are reported as ever.
   */
  remove(ns: Namespace): void {
    ns.removed = true;
    this.#all = this.#all.filter((each) => each !== ns);
    this.#byId[ns.nsid] = null;
    ns.commit();
    ns.backend.drain();
    ns.backend.close();
  }

  /** True while any of them may lose completed writes until a flush. */
  get volatileCache(): boolean {
    return this.all.some((ns) => ns.backend.info.volatileCache);
  }

  /**
   * Switches the write cache of all that have one.
   *
   * @returns False when one could not be switched
   */
  setWriteCache(on: boolean): boolean {
    if (on === this.#writeCache) return true;
    let done = true;
    for (const { backend } of this.all) {
      if (!backend.info.volatileCache) continue;
      if (backend.setWriteCache(on) < 0) done = false;
    }
    if (done) this.#writeCache = on;
    return done;
  }

  /** Lets every back end begin with what was submitted. */
  commit(): void {
    for (let i = 0; i < this.all.length; i++) this.all[i]!.commit();
  }

  /** Number of requests that {@linkcode NamespaceSet.drain} would wait for. */
  get unfinished(): number {
    return this.all.reduce(
      (sum, { backend }) => sum + (backend.unfinished?.() ?? 0),
      0,
    );
  }

  /** Waits until no request touches guest memory any more. */
  drain(): void {
    for (const ns of this.all) {
      ns.commit();
      ns.backend.drain();
    }
  }
}
