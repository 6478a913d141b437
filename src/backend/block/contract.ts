/**
 * The contract between a storage controller and what holds its blocks.
 *
 * Data moves between guest memory and the back end by the kernel or by C: a request carries the addresses of guest
 * memory, and JavaScript never touches the bytes.
 *
 * @module
 */

import type { Loop } from "../../loop/event_loop.ts";
import type { Log } from "../../core/log.ts";
import type { DeviceState } from "../../core/state_form.ts";
import type { ResourceBag } from "../../os/resource_bag.ts";
import type { GuestMemory } from "../../memory/guest_memory.ts";
import type { ScatterGather } from "../../memory/scatter_gather.ts";

/** Kinds of requests. */
export const BlockOp = {
  /** Storage to memory. */
  READ: 0,
  /** Memory to storage. */
  WRITE: 1,
  /** Makes every write that was completed before durable. */
  FLUSH: 2,
  /** The range is not needed any more; it may read as anything afterwards, but the same each time. */
  DISCARD: 3,
  /** The range reads as zeroes afterwards. */
  WRITE_ZEROES: 4,
} as const;

/** An operation of {@linkcode BlockOp}. */
export type BlockOp = typeof BlockOp[keyof typeof BlockOp];

/**
 * One request; made once by its controller and used again after each completion.
 *
 * ```text
 *   free --submit--> in flight --result--> free
 * ```
 * While it is in flight it belongs to the back end: the controller leaves every field alone.
 */
export class BlockRequest {
  /** Action on them. */
  op: BlockOp = BlockOp.FLUSH;
  /** First byte; a multiple of the logical block. */
  offset = 0;
  /** Length in bytes; a multiple of the logical block. Equals the length of `buffers` for READ and WRITE. */
  lengthBytes = 0;
  /** WRITE and WRITE_ZEROES: durable before completion (FUA). */
  durable = false;
  /** WRITE_ZEROES: the space may be given back. */
  mayUnmap = false;
  /** Guest memory to fill or to take from; the back end leaves the list as it is. */
  readonly buffers: ScatterGather;
  /** Number of the request; the controller's to use. */
  readonly tag: number;
  /** The back end's to use while the request is in flight. */
  slot = -1;

  /**
   * @param memory Whose segments `buffers` will hold
   * @param segments The most segments of a request, at most 1024
   */
  constructor(memory: GuestMemory, segments: number, tag: number) {
    this.buffers = memory.createScatterGather(segments);
    this.tag = tag;
  }
}

/** {@linkcode BlockBackend.submit}'s answer for a request that is now in flight. */
export const PENDING = 1;

/** Controller as its back end sees it; called on the controller's event loop. */
export interface BlockClient {
  /**
   * A request that was {@linkcode PENDING} is done and is the controller's again. Requests finish in any order. Several
   * completions may come in one turn of the loop: collect them, and publish in a bottom half.
   *
   * @param result 0 or −errno; −ECANCELED when {@linkcode BlockBackend.drain} gave up on it: it may or may not be done,
   * and a controller that is not being reset submits it again, but not before drain has returned
   */
  onComplete(request: BlockRequest, result: number): void;
  /** {@linkcode BlockBackend.info} changed: the storage has another size. */
  onResize(): void;
}

/** Properties of storage. Sizes in bytes. */
export interface BlockInfo {
  /** Length of the storage, a multiple of the logical block. */
  readonly sizeBytes: number;
  /** Smallest unit of addressing: 512 or 4096. */
  readonly logicalBlockBytes: number;
  /** Smallest unit that is written without a read; a multiple of the logical block. */
  readonly physicalBlockBytes: number;
  /** Best size of a request; 0 when there is none. */
  readonly optimalBytes: number;
  /** True if every write fails with EROFS. */
  readonly readonly: boolean;
  /** True if completed writes may be lost by a power failure until a FLUSH. */
  readonly volatileCache: boolean;
  /** True if DISCARD does anything; its unit in bytes, 0 when it does nothing. */
  readonly discardGranularityBytes: number;
  /** Longest READ or WRITE in bytes; DISCARD and WRITE_ZEROES move no data and may be longer. */
  readonly maxTransferBytes: number;
}

/** Context that a back end is opened with. */
export interface BlockContext {
  readonly loop: Loop;
  readonly log: Log;
  /** Memory of the segments in requests (for back ends that must look at bytes). */
  readonly memory: GuestMemory;
  /** Tells what becomes of the start; see DeviceContext.onStart. */
  onStart(tell: (started: boolean) => void): void;
}

/**
 * Storage behind a controller.
 *
 * ```text
 *   open → idle --start--> running (submit … submit, commit) → closed
 * ```
 * The controller checks nothing that the back end checks and the other way round: the controller has translated
 * every address and checked that the range lies inside the storage and is aligned to logical blocks; the back end
 * knows readonly, alignment for direct I/O, and errors. Nothing blocks, except {@linkcode drain}.
 */
export interface BlockBackend {
  /** For people, such as `file disk.img`. */
  readonly description: string;
  /** Properties; the same object until {@linkcode BlockClient.onResize}. */
  readonly info: BlockInfo;
  /** Begins to call `client`. */
  start(client: BlockClient): void;
  /**
   * Takes a request.
   *
   * @returns {@linkcode PENDING} when the request is in flight and {@linkcode BlockClient.onComplete} will tell its end, else
   * the result: 0 when it is done already, −errno when it failed
   */
  submit(request: BlockRequest): number;
  /** The controller has no more requests for now: hand what was submitted to the kernel or the wire, all at once. */
  commit(): void;
  /**
   * Waits (blocking, but never for a network peer) until no request touches guest memory any more: for resets and
   * before memory is unmapped. Requests that cannot finish soon are taken out of flight. Every request in flight is
   * reported through {@linkcode BlockClient.onComplete} before this returns.
   */
  drain(): void;
  /** Number of requests that {@linkcode drain} would wait for now. Absent for storage that takes them out of flight instead. */
  unfinished?(): number;
  /**
   * Sets the logical cache mode, as WCE does.
   *
   * @param on Whether completed writes may wait for a FLUSH; off makes every write durable
   * @returns 0, or −ENOTSUP where it cannot be changed
   */
  setWriteCache(on: boolean): number;
  /**
   * Changes the size of storage that can grow and shrink and is not read-only.
   *
   * @param sizeBytes A multiple of the logical block, and not 0
   * @throws {Error} With the reason
   */
  resize?(sizeBytes: number): void;
  /**
   * Looks whether the storage has another size by now, as a person asked who changed it outside.
   *
   * @returns Whether it has; then {@linkcode BlockClient.onResize} was called
   * @throws {Error} With the reason
   */
  rescan?(): boolean;
  /** Counters by name, for metrics. */
  counters?(): Readonly<Record<string, number>>;
  /**
   * Tells what a back end of the same kind must know to go on. Called when nothing is in flight; changes nothing.
   * Absent, as the next, for one that stays where it is.
   *
   * @throws {Error} While requests are in flight
   */
  save?(): DeviceState;
  /**
   * Puts what it has opened into a bag, for a back end that is opened with that and with what {@linkcode save} gave. Only
   * close is called afterwards, and it leaves the outside as it is.
   */
  handOver?(bag: ResourceBag): void;
  /**
   * As the last two, for a back end on another thread that serves the same storage beside this one.
   *
   * @throws {import("../../os/mod.ts").SyscallError}
   */
  share?(bag: ResourceBag): unknown;
  /** Drains and releases everything. */
  close(): void;
}
