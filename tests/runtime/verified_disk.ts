/**
 * A virtio-blk driver with several queues that knows what every block must hold, for tests that disturb the server
 * meanwhile.
 *
 * @module
 */

import { high32 } from "../../src/core/bits.ts";
import {
  type DriverMemory,
  type DriverQueue,
  type DriverRing,
  F,
  type VirtioDriver,
} from "../../src/testing/mod.ts";
import { PATIENCE_MS } from "../until.ts";

/** Bytes of a block, and of each request. */
export const BLOCK_BYTES = 4096;
const SECTORS = BLOCK_BYTES / 512;
const VIRTIO_BLK_F_MQ = 12;
const READ = 0;
const WRITE = 1;
const HEADER_BYTES = 16;
const SLOT_BYTES = 32;
const PENDING_STATUS = 0xff;

/** Room for one request. */
interface Slot {
  readonly queue: DriverQueue<DriverRing>;
  readonly header: number;
  readonly memory: DriverMemory;
  readonly buffer: number;
  busy: boolean;
  block: number;
  write: boolean;
  generation: number;
}

/** Settings of a {@linkcode VerifiedDisk}. */
export interface VerifiedDiskOptions {
  /** Queues to use. */
  readonly queues: number;
  readonly slotsPerQueue: number;
  /** Number of blocks, from the first one, that are used. */
  readonly blocks: number;
  /** Memory of the buffers of every other slot; with the rings unless told. */
  readonly otherMemory?: DriverMemory;
  readonly seed: number;
  /** Packed rings; split ones unless told. */
  readonly packed?: boolean;
}

/** Random reads and writes over all queues; every read is compared with what was written last. */
export class VerifiedDisk {
  /** Requests that came back. */
  completed = 0;
  readonly #virtio: VirtioDriver;
  readonly #options: VerifiedDiskOptions;
  readonly #slots: Slot[] = [];
  /** By queue, then by head. */
  readonly #inFlight: Map<number, Slot>[] = [];
  /** Number of times each block was written; 0 means that it holds zeroes. */
  readonly #generations: Uint32Array;
  readonly #locked: Uint8Array;
  #random: number;

  /** Resets the device, negotiates and starts it. */
  constructor(virtio: VirtioDriver, options: VerifiedDiskOptions) {
    this.#virtio = virtio;
    this.#options = options;
    this.#random = options.seed;
    this.#generations = new Uint32Array(options.blocks);
    this.#locked = new Uint8Array(options.blocks);
    this.restart();
  }

  /** Resets the device and starts it again; what was in flight is forgotten. */
  restart(): void {
    const virtio = this.#virtio;
    virtio.negotiate([
      F.RING_INDIRECT_DESC,
      F.RING_EVENT_IDX,
      VIRTIO_BLK_F_MQ,
      ...(this.#options.packed ? [F.RING_PACKED] : []),
    ]);
    for (const { header, memory, buffer } of this.#slots) {
      virtio.memory.free(header, SLOT_BYTES);
      memory.free(buffer, BLOCK_BYTES);
    }
    this.#slots.length = this.#inFlight.length = 0;
    this.#locked.fill(0);
    for (let index = 0; index < this.#options.queues; index++) {
      const queue = virtio.setupAnyQueue(index, { indirect: 3 });
      this.#inFlight.push(new Map());
      for (let i = 0; i < this.#options.slotsPerQueue; i++) {
        this.#addSlot(queue, i % 2 === 1);
      }
    }
    virtio.driverOk();
  }

  /** Number of requests that are in flight; those with buffers in the other memory when asked so. */
  inFlight(inOther = false): number {
    return this.#slots.filter((slot) =>
      slot.busy && (!inOther || slot.memory !== this.#virtio.memory)
    ).length;
  }

  /**
   * Takes what is done, and issues new requests in its place.
   *
   * @param useOther Whether slots with buffers in the other memory are used
   */
  step(useOther = true): void {
    this.reap();
    for (const slot of this.#slots) {
      if (slot.busy || (!useOther && slot.memory !== this.#virtio.memory)) {
        continue;
      }
      this.#issue(slot);
    }
    for (const { queue } of this.#slots) queue.flush();
  }

  /** Takes what is done. */
  reap(): void {
    for (let i = 0; i < this.#inFlight.length; i++) {
      const { ring } = this.#virtio.queues[i]!;
      while (ring.take()) this.#finish(i, ring.usedHead, ring.usedLength);
    }
  }

  /**
   * Steps for as many requests as told, letting other work of this process run.
   *
   * @throws {Error} When nothing comes back for a minute, or a block is not what it must be
   */
  async run(requests: number): Promise<void> {
    await this.#until(requests, () => this.step());
  }

  /** Waits for everything that is in flight. */
  async drain(): Promise<void> {
    await this.#until(0, () => this.reap(), () => this.inFlight() === 0);
  }

  /** Reads every block and compares it. */
  async verifyAll(): Promise<void> {
    await this.drain();
    for (let block = 0; block < this.#options.blocks;) {
      for (const slot of this.#slots) {
        if (block >= this.#options.blocks) break;
        this.#issueAt(slot, block++, false);
      }
      for (const { queue } of this.#slots) queue.flush();
      await this.drain();
    }
  }

  /**
   * Forgets what the blocks that were being written hold: a failed device may or may not have written them. They are
   * written anew.
   */
  async settleAfterFailure(): Promise<void> {
    const torn = this.#slots.filter((slot) => slot.busy && slot.write)
      .map(({ block }) => block);
    this.restart();
    for (const block of torn) {
      this.#issueAt(this.#slots[0]!, block, true);
      this.#slots[0]!.queue.flush();
      await this.drain();
    }
  }

  async #until(
    requests: number,
    step: () => void,
    isOver: () => boolean = () => true,
  ): Promise<void> {
    const end = this.completed + requests;
    let seen = this.completed;
    let deadline = performance.now() + PATIENCE_MS;
    for (let turn = 0; this.completed < end || !isOver(); turn++) {
      step();
      if (this.completed !== seen) {
        seen = this.completed;
        deadline = performance.now() + PATIENCE_MS;
      } else if (performance.now() > deadline) {
        throw new Error(
          `Cannot go on: ${this.inFlight()} requests have not come back for ${PATIENCE_MS} ms, status ${this.#virtio.status}`,
        );
      }
      if (turn % 16 === 0) await new Promise((go) => setTimeout(go, 0));
    }
  }

  #addSlot(queue: DriverQueue<DriverRing>, other: boolean): void {
    const rings = this.#virtio.memory;
    const memory = other ? this.#options.otherMemory ?? rings : rings;
    this.#slots.push({
      queue,
      header: rings.alloc(SLOT_BYTES, 16),
      memory,
      buffer: memory.alloc(BLOCK_BYTES, BLOCK_BYTES),
      busy: false,
      block: 0,
      write: false,
      generation: 0,
    });
  }

  #issue(slot: Slot): void {
    const random = this.#next();
    const block = (random >>> 8) % this.#options.blocks;
    // One request at a time for each block: else nobody knows what it holds.
    if (this.#locked[block] !== 0) return;
    this.#issueAt(slot, block, (random & 1) === 1);
  }

  #issueAt(slot: Slot, block: number, write: boolean): void {
    const { queue, header, memory, buffer } = slot;
    const rings = this.#virtio.memory;
    const at = rings.offset(header);
    const sector = block * SECTORS;
    rings.view.setUint32(at, write ? WRITE : READ, true);
    rings.view.setUint32(at + 8, sector >>> 0, true);
    rings.view.setUint32(at + 12, high32(sector), true);
    rings.view.setUint8(at + HEADER_BYTES, PENDING_STATUS);
    const generation = this.#generations[block]! + (write ? 1 : 0);
    words(memory, buffer).fill(write ? pattern(block, generation) : ~0);
    if (!queue.ring.begin(3)) throw new Error("Cannot issue: the ring is full");
    queue.ring.readable(header, HEADER_BYTES);
    if (write) queue.ring.readable(buffer, BLOCK_BYTES);
    else queue.ring.writable(buffer, BLOCK_BYTES);
    queue.ring.writable(header + HEADER_BYTES, 1);
    this.#inFlight[queue.index]!.set(queue.ring.end(), slot);
    Object.assign(slot, { busy: true, block, write, generation });
    this.#locked[block] = 1;
  }

  #finish(queue: number, head: number, written: number): void {
    const slot = this.#inFlight[queue]!.get(head);
    if (slot === undefined) {
      throw new Error(`queue ${queue}: head ${head} came back twice`);
    }
    this.#inFlight[queue]!.delete(head);
    const rings = this.#virtio.memory;
    const status = rings.view.getUint8(
      rings.offset(slot.header) + HEADER_BYTES,
    );
    const expected = slot.write ? 1 : BLOCK_BYTES + 1;
    if (status !== 0 || written !== expected) {
      throw new Error(
        `block ${slot.block}: status ${status}, ${written} bytes written, ${expected} expected`,
      );
    }
    if (slot.write) this.#generations[slot.block] = slot.generation;
    else this.#compare(slot);
    slot.busy = false;
    this.#locked[slot.block] = 0;
    this.completed++;
  }

  #compare({ memory, buffer, block, generation }: Slot): void {
    const expected = generation === 0 ? 0 : pattern(block, generation);
    const found = words(memory, buffer).findIndex((word) => word !== expected);
    if (found >= 0) {
      throw new Error(
        `block ${block}, word ${found}: not what write ${generation} left`,
      );
    }
  }

  #next(): number {
    this.#random = (Math.imul(this.#random, 1664525) + 1013904223) >>> 0;
    return this.#random;
  }
}

function words(memory: DriverMemory, iova: number): Uint32Array {
  const bytes = memory.at(iova, BLOCK_BYTES);
  return new Uint32Array(bytes.buffer, bytes.byteOffset, BLOCK_BYTES / 4);
}

function pattern(block: number, generation: number): number {
  return (Math.imul(block + 1, 0x9e3779b1) ^ Math.imul(generation, 40503)) >>>
    0;
}
