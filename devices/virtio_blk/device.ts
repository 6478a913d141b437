/**
 * The virtio block device (virtio 1.3, section 5.2).
 *
 * @module
 */

import {
  type BlockBackend,
  type BlockClient,
  BlockOp,
  type BlockRequest,
  PENDING,
} from "../../src/backend/block/contract.ts";
import { formatSize } from "../../src/core/size.ts";
import { Errno } from "../../src/core/errno.ts";
import type { BottomHalf } from "../../src/loop/event_loop.ts";
import { Access } from "../../src/memory/guest_memory.ts";
import type {
  AccessWidth,
  DeviceCommand,
  DeviceContext,
} from "../../src/pci/device.ts";
import type { VirtioDevice, VirtioTransport } from "../../src/virtio/device.ts";
import type { Features } from "../../src/virtio/features.ts";
import type { Virtqueue } from "../../src/virtio/queue/queue.ts";
import { resizeCommand } from "./commands.ts";
import {
  BlkConfig,
  diskFeatures,
  type DiskOptions,
  effectiveSegMax,
} from "./config.ts";
import { BlkCounter, BlkCounters } from "./counters.ts";
import {
  PCI_CLASS_STORAGE_SCSI,
  VIRTIO_BLK_CONFIG,
  VIRTIO_BLK_F,
  VIRTIO_ID_BLOCK,
} from "./defs.ts";
import { type Slot, SlotPool, SlotState } from "./in_flight.ts";
import {
  RequestParser,
  statusOfResult,
  StatusWriter,
  Verdict,
} from "./request.ts";
import {
  parseVirtioBlkState,
  VIRTIO_BLK_STATE_VERSION,
  type VirtioBlkHandOver,
  type VirtioBlkState,
} from "./state.ts";

/** What a {@linkcode VirtioBlk} is made with. */
export interface VirtioBlkParts {
  /** As handed to the model. */
  readonly context: DeviceContext;
  readonly transport: VirtioTransport;
  /** What holds its blocks; the disk starts and closes it. */
  readonly backend: BlockBackend;
  /** How it behaves. */
  readonly options: DiskOptions;
  /** What was counted where the disk came from, by name; counting goes on from there. */
  readonly counters?: Readonly<Record<string, number>>;
}

/** Requests that are taken from a queue before the loop gets its turn. */
const BUDGET = 128;

/**
 * IOV_MAX: what one readv(2) or writev(2) takes. A chain has fewer descriptors, but behind an IOMMU each page of a buffer
 * may lie somewhere else. Untouched, the room costs address space only.
 */
const SEGMENTS_MAX = 1024;

/**
 * A disk.
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
export class VirtioBlk implements VirtioDevice, BlockClient {
  readonly deviceId: number = VIRTIO_ID_BLOCK;
  readonly pciClassCode: number = PCI_CLASS_STORAGE_SCSI;
  readonly features: Features;
  readonly queueSizes: readonly number[];
  readonly configLengthBytes: number = VIRTIO_BLK_CONFIG.SIZE;
  readonly commands: Readonly<Record<string, DeviceCommand>>;
  readonly #context: DeviceContext;
  readonly #transport: VirtioTransport;
  readonly #backend: BlockBackend;
  readonly #options: DiskOptions;
  readonly #config: BlkConfig;
  readonly #counters = new BlkCounters();
  readonly #pool: SlotPool;
  readonly #parser: RequestParser;
  readonly #status: StatusWriter;
  readonly #more: readonly BottomHalf[];
  readonly #publish: BottomHalf;
  readonly #unsubscribe: () => void;
  #queues: readonly Virtqueue[] = [];
  /** The life of each queue: changes when it is reset, so that a request of the last one can be told. */
  readonly #epochs: Uint32Array;
  /** Which queues have chains pushed that are not published. */
  readonly #dirty: Uint8Array;
  #parked = 0;
  /** The size that a person has heard of last, from this disk or from its twin on another thread. */
  #toldBytes: number;
  #draining = false;
  #running = false;
  #paused = false;
  /** Whether the driver may write `writeback`. */
  #mayChangeCache = false;

  constructor(parts: VirtioBlkParts) {
    const { context, transport, backend, options } = parts;
    const { loop, memory } = context;
    const { info } = backend;
    const { queues, queueSize } = options;
    this.#context = context;
    this.#transport = transport;
    this.#backend = backend;
    this.#options = options;
    this.features = diskFeatures(info, queues);
    this.queueSizes = new Array<number>(queues).fill(queueSize);
    const segMax = effectiveSegMax(info, options.segMax);
    this.#config = new BlkConfig(info, queues, segMax);
    this.#pool = new SlotPool(
      memory,
      SEGMENTS_MAX,
      queues * queueSize,
    );
    this.#parser = new RequestParser(memory, {
      sizeBytes: info.sizeBytes,
      logicalBlockBytes: info.logicalBlockBytes,
      maxTransferBytes: info.maxTransferBytes,
      readonly: info.readonly,
      durableWrites: false,
      discard: false,
      writeZeroes: false,
    }, options.serial);
    this.#status = new StatusWriter(memory);
    this.#toldBytes = info.sizeBytes;
    this.#epochs = new Uint32Array(queues);
    this.#dirty = new Uint8Array(queues);
    this.#more = this.queueSizes.map((_, i) =>
      loop.bottomHalf(() => this.#serve(i))
    );
    this.#publish = loop.bottomHalf(() => this.#publishAll());
    this.#unsubscribe = memory.subscribe({
      onUnmap: (iova, lengthBytes) => this.#onUnmap(iova, lengthBytes),
      onChange: () => this.#unpark(),
    });
    this.commands = { resize: resizeCommand(backend) };
    if (parts.counters !== undefined) this.#counters.goOnFrom(parts.counters);
    this.#setWriteCache(options.writeCache);
    backend.start(this);
  }

  /** How many requests were taken from the queues and not answered. */
  get inFlight(): number {
    return this.#pool.used;
  }

  dependsOnRegisters(): boolean {
    // Only writes do, of which it asks itself.
    return false;
  }

  acceptsFeatures(features: Features): boolean {
    // The driver may read the mode as soon as FEATURES_OK is set (5.2.5).
    this.#setWriteCache(this.#initialWriteCache(features));
    return true;
  }

  readConfig(offset: number, width: AccessWidth): number {
    return this.#config.read(offset, width);
  }

  writeConfig(offset: number, width: AccessWidth, value: number): void {
    // The only field that a driver may write (5.2.4).
    if (offset !== VIRTIO_BLK_CONFIG.WRITEBACK || width !== 1) return;
    this.#setWriteCache(value !== 0);
  }

  start(features: Features, queues: readonly Virtqueue[]): void {
    this.#queues = queues;
    this.#running = true;
    const { limits } = this.#parser;
    limits.discard = features.has(VIRTIO_BLK_F.DISCARD);
    limits.writeZeroes = features.has(VIRTIO_BLK_F.WRITE_ZEROES);
    this.#mayChangeCache = features.has(VIRTIO_BLK_F.CONFIG_WCE);
    if (!features.has(VIRTIO_BLK_F.CONFIG_WCE)) {
      this.#setWriteCache(this.#initialWriteCache(features));
    }
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

  save(): VirtioBlkState {
    return {
      version: VIRTIO_BLK_STATE_VERSION,
      writeback: this.#config.writeback,
      sizeBytes: this.#parser.limits.sizeBytes,
    };
  }

  load(value: unknown): void {
    const state = parseVirtioBlkState(value);
    this.#setWriteCache(state.writeback);
    // The driver knows another size than the storage has by now, or a twin on another thread has changed it.
    const { sizeBytes } = this.#parser.limits;
    this.#toldBytes = state.sizeBytes;
    if (state.sizeBytes === sizeBytes) return;
    if (!this.#backend.rescan?.()) this.#transport.configChanged();
  }

  queueGroup(queue: number): number {
    return queue;
  }

  share(): VirtioBlkHandOver {
    const backend = this.#backend;
    if (backend.share === undefined) {
      throw new Error(
        `Cannot use several IOThreads: ${backend.description} is served by one`,
      );
    }
    return { backend: backend.share(), counters: {} };
  }

  handOver(): VirtioBlkHandOver {
    const backend = this.#backend;
    if (backend.handOver === undefined) {
      throw new Error(
        `Cannot move the disk: ${backend.description} stays on its thread`,
      );
    }
    return {
      backend: backend.handOver(),
      counters: this.#counters.toRecord(),
    };
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
    this.#setWriteCache(this.#options.writeCache);
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
    const { sizeBytes } = this.#backend.info;
    this.#parser.limits.sizeBytes = sizeBytes;
    this.#config.setSize(sizeBytes);
    if (sizeBytes !== this.#toldBytes) {
      this.#context.log.info(`the disk has ${formatSize(sizeBytes)} now`, {
        event: "RESIZED",
        sizeBytes,
      });
    }
    this.#toldBytes = sizeBytes;
    this.#transport.configChanged();
    this.#transport.sharedStateChanged?.();
  }

  counters(): Readonly<Record<string, number>> {
    const counters = this.#counters.toRecord();
    counters.inFlight = this.#pool.used;
    for (
      const [name, value] of Object.entries(this.#backend.counters?.() ?? {})
    ) {
      counters[`backend.${name}`] = value;
    }
    return counters;
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
   * Whether a request must not be served before the register writes that the driver has sent before it: a write that may
   * wait for a flush, unless the driver has just said otherwise by a write of `writeback` (5.2.6.2). What a flush or a
   * read does is the same in both modes, and a write is only made better by a mode that has ended.
   */
  #isEarly(slot: Slot, verdict: number): boolean {
    return this.#mayChangeCache && this.#config.writeback &&
      verdict === Verdict.SUBMIT && this.#isAlive(slot) &&
      (slot.request.op === BlockOp.WRITE ||
        slot.request.op === BlockOp.WRITE_ZEROES);
  }

  /** @returns Whether the back end has something that it must be told to begin with */
  #begin(slot: Slot, verdict: number): boolean {
    if (!this.#isAlive(slot)) {
      this.#drop(slot);
      return false;
    }
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
    const written = this.#status.complete(slot, status);
    // Where guest memory is reached by messages, a reset may have come meanwhile.
    if (!this.#isAlive(slot)) return this.#drop(slot);
    this.#counters.countRequest(slot, status);
    this.#queues[slot.queue]!.push(slot.chain.head, written);
    this.#dirty[slot.queue] = 1;
    this.#pool.release(slot);
  }

  #drop(slot: Slot): void {
    this.#counters.add(BlkCounter.dropped, 1);
    this.#pool.release(slot);
  }

  /** Whether the slot belongs to the present life of its queue. */
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
    const { memory } = this.#context;
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
    this.#counters.add(BlkCounter.reissued, 1);
    this.#parser.fillBuffers(slot);
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

  #initialWriteCache(features: Features): boolean {
    // A driver that cannot flush gets a writethrough cache (5.2.5.2, 5.2.6.2).
    return this.#options.writeCache && features.has(VIRTIO_BLK_F.FLUSH);
  }

  #setWriteCache(on: boolean): void {
    this.#config.writeback = on;
    const result = this.#backend.setWriteCache(on);
    this.#parser.limits.durableWrites = !on && result < 0;
  }
}
