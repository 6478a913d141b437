/**
 * The contract of a store: storage that an author writes with promises, in a file of their own.
 *
 * @module
 */

import type { Log } from "../../../core/log.ts";
import type { Options } from "../../../core/options.ts";

/** Properties of a store. Sizes in bytes. */
export interface StoreInfo {
  /** Length of the storage; what is no whole block at its end is not used. */
  readonly sizeBytes: number;
  /** Smallest unit of addressing, 512 or 4096; the option `block-size` unless told, and never less than that. */
  readonly logicalBlockBytes?: 512 | 4096;
  /** Smallest unit that is written without a read, up to 4096; that is 4096 unless told. */
  readonly physicalBlockBytes?: 512 | 4096;
  /** Best size of a request; none unless told. */
  readonly optimalBytes?: number;
  /** True if writes are refused; as they are without {@linkcode Store.write}. */
  readonly readonly?: boolean;
}

/**
 * Open storage.
 *
 * Offsets and lengths are in bytes, multiples of the logical block, and lie inside the storage. Many calls are under way
 * at once, and may end in any order; none of them overlaps a write that is under way, unless the guest asks for that.
 *
 * A call that is rejected fails the guest's request: with the error's `code` or `errno` where that is one of Linux, such
 * as `ENOSPC`, else with EIO, which the log tells of once for each place in the file. A call that never settles fails
 * after the option `timeout`; when the guest resets its disk or takes its memory away nobody waits for it.
 */
export interface Store {
  /** Properties, fixed from the start. */
  readonly info: StoreInfo;
  /**
   * Reads.
   *
   * @param into Filled when the promise resolves, and not touched any more then
   */
  read(offset: number, into: Uint8Array<ArrayBuffer>): Promise<void> | void;
  /**
   * Writes. Without it the disk is read-only.
   *
   * @param from As it is until the promise resolves
   */
  write?(offset: number, from: Uint8Array<ArrayBuffer>): Promise<void> | void;
  /** Makes every write that was done before durable. Without it, each write is durable when its promise resolves. */
  flush?(): Promise<void> | void;
  /** The range is not needed any more. Without it, the guest is told that discarding does nothing. */
  discard?(offset: number, lengthBytes: number): Promise<void> | void;
  /** Makes the range read as zeroes. Without it, zeroes are written. */
  writeZeroes?(offset: number, lengthBytes: number): Promise<void> | void;
  /** Releases everything, within 4 s. Called once; no other call follows. */
  close?(): Promise<void> | void;
}

/** Context that a store is opened with. */
export interface StoreContext {
  /** The log of the disk. */
  readonly log: Log;
  /** True if the disk is read-only, as `readonly=on` asks for. */
  readonly readonly: boolean;
}

/**
 * Export `store`, or the default, of the file.
 *
 * ```text
 *   IOThread: the disk ── requests, shared memory ──> Worker: open(options, context) → Store
 * ```
 * It is used as `--device virtio-blk,backend=./store.ts,KEY=VALUE…`, where each KEY is one of its options and none of the
 * disk's. The Worker is an ordinary one, with a runtime: `fetch`, npm packages and timers work. An error that nobody
 * catches there ends the store, and no more than that.
 */
export interface StoreModel<O = unknown> {
  /** The name, for people. */
  readonly name: string;
  /** One line on what it is. */
  readonly help?: string;
  /** Its own options, as `options({…})` declares them; none unless told. */
  readonly options?: Options<O>;
  /**
   * Opens the storage, within 10 s.
   *
   * @param options What was written, checked and converted
   * @throws {Error} With one line and the remedy
   */
  open(options: O, context: StoreContext): Promise<Store> | Store;
}
