/**
 * Requests: from the queues that one thread serves to the storage, and back.
 *
 * @module
 */

import { Counters, countersOf } from "../../src/core/counters.ts";
import {
  type BlockBackend,
  type BlockClient,
  BlockOp,
  type BlockRequest,
  PENDING,
} from "../../src/backend/block/contract.ts";
import { Errno } from "../../src/core/errno.ts";
import type { BottomHalf } from "../../src/loop/event_loop.ts";
import { Access, type GuestMemory } from "../../src/memory/guest_memory.ts";
import type { DeviceContext } from "../../src/pci/context.ts";
import type {
  QueueThreadHandler,
  QueueTransport,
} from "../../src/virtio/device.ts";
import type { Features } from "../../src/virtio/features.ts";
import type { Virtqueue } from "../../src/virtio/queue/queue.ts";
import { BLK_COUNTERS, BlkCounter, countRequest } from "./counters.ts";
import type { DiskOptions } from "./config.ts";
import { VIRTIO_BLK_F } from "./defs.ts";
import { type Slot, SlotPool, SlotState } from "./in_flight.ts";
import { RequestParser, statusOfResult, Verdict } from "./request.ts";

/** Decisions of the control side about requests. Plain data. */
export interface BlkSettings {
  /** True when completed writes may wait for a flush. */
  readonly writeback: boolean;
  /** Length of the storage, as the driver knows it. */
  readonly sizeBytes: number;
}

/** Parts of {@linkcode BlkQueues}. */
export interface BlkQueuesParts {
  readonly context: Pick<DeviceContext, "memory" | "loop">;
  readonly transport: QueueTransport;
  /** Storage of the blocks; started here, and closed. */
  readonly backend: BlockBackend;
  readonly options: DiskOptions;
  /** The storage has another size. */
  readonly onResize: () => void;
}

/** Requests that are taken from a queue before the loop gets its turn. */
const BUDGET = 128;

/**
 * IOV_MAX: what one readv(2) or writev(2) takes. A chain has fewer descriptors, but behind an IOMMU each page of a buffer
 * may lie somewhere else. Untouched, the room costs address space only.
 */
const SEGMENTS_MAX = 1024;

/**
 * The requests of a disk on one thread.
 *
 * ```text
 *   idle --start--> running ⇄ paused
 *    ↑                 |  ╰─ a rule broken ─> failed
 *    └──── reset ──────┴───────────────────────┘
 * ```
 * A request goes parse → submit → (in flight) → status byte → used ring. What completes in one turn of the loop is
 * shown to the driver at once, with at most one interrupt for each queue. Requests that a drain took out of flight
 * unfinished, because memory was unmapped or the device paused, are submitted again; those of a queue that was
 * reset meanwhile (its epoch tells) are forgotten.
 */
export class BlkQueues implements QueueThreadHandler, BlockClient {
  readonly #memory: GuestMemory;
  readonly #transport: QueueTransport;
  readonly #backend: BlockBackend;
  /** Counters of this thread. */
  readonly tally = new Counters(BLK_COUNTERS);
  readonly #pool: SlotPool;
  readonly #parser: RequestParser;
  readonly #more: readonly BottomHalf[];
  readonly #publish: BottomHalf;
  readonly #unsubscribe: () => void;
  readonly #onResize: () => void;
  #queues: readonly Virtqueue[] = [];
  /** The life of each queue: changes when it is reset, so that a request of the last one can be told. */
  readonly #epochs: Uint32Array;
  /** 1 for a queue with chains pushed that are not published. */
  readonly #dirty: Uint8Array;
  #parked = 0;
  #draining = false;
  #running = false;
  #paused = false;
  #writeback = false;
  /** True when the driver may write `writeback`. */
  #mayChangeCache = false;

  constructor(parts: BlkQueuesParts) {
    const { context, transport, backend, options } = parts;
    const { loop, memory } = context;
    const { info } = backend;
    const { queues, queueSize } = options;
    this.#memory = memory;
    this.#transport = transport;
    this.#backend = backend;
    this.#onResize = parts.onResize;
    this.#pool = new SlotPool(memory, SEGMENTS_MAX, queues * queueSize);
    this.#parser = new RequestParser(memory, {
      sizeBytes: info.sizeBytes,
      logicalBlockBytes: info.logicalBlockBytes,
      maxTransferBytes: info.maxTransferBytes,
      readonly: info.readonly,
      durableWrites: false,
      discard: false,
      writeZeroes: false,
    }, options.serial);
    this.#epochs = new Uint32Array(queues);
    this.#dirty = new Uint8Array(queues);
    this.#more = Array.from(
      { length: queues },
      (_, i) => loop.bottomHalf(() => this.#serve(i)),
    );
    this.#publish = loop.bottomHalf(() => this.#publishAll());
    this.#unsubscribe = memory.subscribe({
      onUnmap: (iova, lengthBytes) => this.#onUnmap(iova, lengthBytes),
      onChange: () => this.#unpark(),
    });
    backend.start(this);
  }

  /** Number of requests that were taken from the queues and not answered. */
  get inFlight(): number {
    return this.#pool.used;
  }

  dependsOnRegisters(): boolean {
    // Only writes do, of which it asks itself.
    return false;
  }

  configure(settings: unknown): void {
    const { writeback, sizeBytes } = settings as BlkSettings;
    this.#writeback = writeback;
    const result = this.#backend.setWriteCache(writeback);
    const { limits } = this.#parser;
    limits.durableWrites = !writeback && result < 0;
    // Another thread has changed the size of what this one has open too.
    if (sizeBytes !== limits.sizeBytes) this.#backend.rescan?.();
  }

  start(features: Features, queues: readonly Virtqueue[]): void {
    this.#queues = queues;
    this.#running = true;
    const { limits } = this.#parser;
    limits.discard = features.has(VIRTIO_BLK_F.DISCARD);
    limits.writeZeroes = features.has(VIRTIO_BLK_F.WRITE_ZEROES);
    this.#mayChangeCache = features.has(VIRTIO_BLK_F.CONFIG_WCE);
  }

  notify(queue: Virtqueue): void {
    this.#serve(queue.index);
  }

  pause(): void {
    this.#paused = true;
    for (const more of this.#more) more.cancel();
    this.#drain();
  }

  resume(): void {
    this.#paused = false;
    this.#unpark();
    // What was pushed meanwhile is shown now.
    this.#publish.schedule();
  }

  hold(): number {
    // The queues give nothing new. What a drain has parked was submitted again at once, unless the disk is paused.
    return this.#pool.used;
  }

  unfinished(iova?: number, lengthBytes?: number): number {
    if (iova !== undefined && !this.#pool.uses(iova, lengthBytes!)) return 0;
    return this.#backend.unfinished?.() ?? 0;
  }

  resetQueue(queue: Virtqueue): void {
    this.#forgetQueue(queue.index);
    this.#drain();
    // Requests of the other queues were taken out of flight with those of this one.
    this.#unpark();
  }

  reset(): void {
    this.#running = false;
    for (let i = 0; i < this.#epochs.length; i++) this.#forgetQueue(i);
    this.#drain();
    this.#unpark();
    this.#publish.cancel();
    this.#queues = [];
    const { limits } = this.#parser;
    limits.discard = limits.writeZeroes = false;
  }

  onComplete(request: BlockRequest, result: number): void {
    const slot = this.#pool.slots[request.tag];
    if (slot === undefined || slot.state !== SlotState.IN_FLIGHT) {
      throw new Error(
        `Cannot complete block request ${request.tag}: it is not in flight`,
      );
    }
    if (this.#draining && this.#isAlive(slot)) {
      // While it drains, a back end is given nothing new: what is left of the request waits.
      if (
        result === -Errno.ECANCELED ||
        (result === 0 && this.#parser.nextRange(slot))
      ) {
        slot.state = SlotState.PARKED;
        this.#parked++;
        return;
      }
    }
    slot.state = SlotState.SERVING;
    if (this.#advance(slot, result)) {
      // The next part of it was submitted, and nobody else will commit that.
      this.#backend.commit();
    }
    if (this.#dirty[slot.queue] !== 0) this.#publish.schedule();
  }

  onResize(): void {
    this.#parser.limits.sizeBytes = this.#backend.info.sizeBytes;
    this.#onResize();
  }

  counters(): Readonly<Record<string, number>> {
    return {
      ...this.tally.toRecord(),
      inFlight: this.#pool.used,
      ...countersOf("backend", this.#backend.counters?.()),
    };
  }

  close(): void {
    this.#running = false;
    for (let i = 0; i < this.#epochs.length; i++) this.#forgetQueue(i);
    this.#publish.cancel();
    this.#unsubscribe();
    this.#backend.close();
  }

  #serve(index: number): void {
    const queue = this.#queues[index];
    if (!this.#running || this.#paused || !queue?.enabled) return;
    let left = BUDGET;
    let got = 0;
    do {
      queue.disableNotifications();
      let submitted = false;
      while (left > 0) {
        const slot = this.#pool.take();
        got = queue.pop(slot.chain);
        if (got <= 0) {
          this.#pool.release(slot);
          break;
        }
        slot.queue = index;
        slot.epoch = this.#epochs[index]!;
        const verdict = this.#parser.parse(slot);
        if (this.#isEarly(slot, verdict) && !queue.settled()) {
          queue.unpop(1);
          this.#pool.release(slot);
          break;
        }
        if (this.#begin(slot, verdict)) submitted = true;
        if (!this.#running) break;
        left--;
      }
      if (submitted) this.#backend.commit();
      if (!this.#running) return;
      this.#publishQueue(index);
      if (got < 0) return this.#fail(queue.lastError);
      if (left === 0) return this.#more[index]!.schedule();
    } while (queue.enableNotifications());
  }

  /**
   * True when a request must not be served before the register writes that the driver has sent before it: a write that may
   * wait for a flush, unless the driver has just said otherwise by a write of `writeback` (5.2.6.2). What a flush or a
   * read does is the same in both modes, and a write is only made better by a mode that has ended.
   */
  #isEarly(slot: Slot, verdict: number): boolean {
    return this.#mayChangeCache && this.#writeback &&
      verdict === Verdict.SUBMIT &&
      (slot.request.op === BlockOp.WRITE ||
        slot.request.op === BlockOp.WRITE_ZEROES);
  }

  /** @returns Whether the back end has something that it must be told to begin with */
  #begin(slot: Slot, verdict: number): boolean {
    if (verdict === Verdict.SUBMIT) return this.#submit(slot);
    if (verdict === Verdict.BROKEN) {
      // What was served before it shall be seen.
      this.#publishQueue(slot.queue);
      this.#failAt(slot, this.#parser.lastError);
      this.#pool.release(slot);
      return false;
    }
    this.#finish(slot, verdict);
    return false;
  }

  /** Submits the request of a slot; ends it when it is done at once. Returns whether it is in flight. */
  #submit(slot: Slot): boolean {
    const result = this.#give(slot);
    return result === PENDING || this.#advance(slot, result);
  }

  /** Gives the request of a slot to the back end. Returns what that says. */
  #give(slot: Slot): number {
    // What waited here, or is the next part of a request, was checked when the disk may have been larger.
    if (!this.#parser.fits(slot.request)) return -Errno.EIO;
    slot.state = SlotState.IN_FLIGHT;
    const result = this.#backend.submit(slot.request);
    if (result !== PENDING) slot.state = SlotState.SERVING;
    return result;
  }

  /** A part of the request of a slot is done. Returns whether the next part is in flight. */
  #advance(slot: Slot, result: number): boolean {
    while (
      result === 0 && slot.rangeCount > 1 && this.#isAlive(slot) &&
      this.#parser.nextRange(slot)
    ) {
      result = this.#give(slot);
      if (result === PENDING) return true;
    }
    this.#finish(slot, statusOfResult(result));
    return false;
  }

  /** Answers the driver. */
  #finish(slot: Slot, status: number): void {
    if (!this.#isAlive(slot)) return this.#drop(slot);
    const written = this.#parser.complete(slot, status);
    countRequest(this.tally, slot, status);
    this.#queues[slot.queue]!.push(slot.chain.head, written);
    this.#dirty[slot.queue] = 1;
    this.#pool.release(slot);
  }

  #drop(slot: Slot): void {
    this.tally.add(BlkCounter.dropped, 1);
    this.#pool.release(slot);
  }

  /** True when the slot belongs to the present life of its queue. */
  #isAlive(slot: Slot): boolean {
    return slot.epoch === this.#epochs[slot.queue];
  }

  #publishQueue(index: number): void {
    this.#dirty[index] = 0;
    const queue = this.#queues[index];
    if (queue !== undefined && queue.publish()) {
      this.#transport.interrupt(queue);
    }
  }

  #publishAll(): void {
    for (let i = 0; i < this.#dirty.length; i++) {
      if (this.#dirty[i] !== 0) this.#publishQueue(i);
    }
  }

  #forgetQueue(index: number): void {
    this.#epochs[index]!++;
    this.#dirty[index] = 0;
    this.#more[index]!.cancel();
  }

  /** Behind an IOMMU memory is unmapped for each request: only those that use it have to come to an end before. */
  #onUnmap(iova: number, lengthBytes: number): void {
    if (this.#pool.uses(iova, lengthBytes)) this.#drain();
  }

  /**
   * Nothing touches guest memory afterwards. What could not finish is parked.
   *
   * @throws {Error} When the back end breaks its contract
   */
  #drain(): void {
    if (this.#pool.used === this.#parked) return;
    this.#draining = true;
    try {
      this.#backend.drain();
    } finally {
      this.#draining = false;
    }
    const left = this.#pool.count(SlotState.IN_FLIGHT);
    if (left === 0) return;
    throw new Error(
      `Cannot drain ${this.#backend.description}: it kept ${left} requests`,
    );
  }

  /** Submits again what was parked and is still somebody's. */
  #unpark(): void {
    if (this.#parked === 0) return;
    let submitted = false;
    for (const slot of this.#pool.slots) {
      if (slot.state !== SlotState.PARKED) continue;
      const alive = this.#isAlive(slot);
      if (alive && this.#paused) continue;
      this.#parked--;
      slot.state = SlotState.SERVING;
      if (!alive) this.#drop(slot);
      else if (this.#resubmit(slot)) submitted = true;
    }
    if (submitted) this.#backend.commit();
    this.#publish.schedule();
  }

  #resubmit(slot: Slot): boolean {
    const memory = this.#memory;
    const { readable, writable } = slot.chain;
    if (
      !memory.holds(readable, Access.READ) ||
      !memory.holds(writable, Access.WRITE)
    ) {
      this.#failAt(
        slot,
        "memory was unmapped that a request in flight was using",
      );
      this.#drop(slot);
      return false;
    }
    this.tally.add(BlkCounter.reissued, 1);
    return this.#submit(slot);
  }

  /** Gives up because of a request. Its chain stays with the queue, which shows the driver nothing any more. */
  #failAt(slot: Slot, reason: string): void {
    this.#fail(reason);
    this.#queues[slot.queue]!.push(slot.chain.head, 0);
  }

  #fail(reason: string): void {
    if (!this.#running) return;
    this.#running = false;
    this.#transport.fail(reason);
  }
}
