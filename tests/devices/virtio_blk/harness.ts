/**
 * A virtio-blk disk with a driver on one side and a RAM disk on the other.
 *
 * @module
 */

import { assert, assertEquals } from "@std/assert";
import type { DiskOptions } from "../../../devices/virtio_blk/config.ts";
import { VirtioBlk } from "../../../devices/virtio_blk/device.ts";
import { PciFunction, PciInterrupts } from "../../../src/pci/mod.ts";
import { DriverMemory } from "../../../src/testing/driver_memory.ts";
import type { MappableMemory } from "../../../src/memory/array_memory.ts";
import {
  checkReleased,
  memoryUnderTest,
  reachWhenSettling,
} from "../../memory_under_test.ts";
import {
  type CountedWrites,
  fakeContext,
  type RecordingLog,
} from "../../../src/testing/fake_context.ts";
import type { ManualLoop } from "../../../src/testing/manual_loop.ts";
import { F, STATUS } from "../../../src/testing/virtio_defs.ts";
import {
  type DriverQueue,
  VirtioDriver,
} from "../../../src/testing/virtio_driver.ts";
import { VirtioPci } from "../../../src/transport/virtio_pci/virtio_pci.ts";
import { ringFeatures, virtioOptions } from "../../../src/virtio/options.ts";
import type { DriverRing } from "../../../src/testing/driver_ring.ts";
import { LocalPci } from "../local_pci.ts";
import { RamDisk, type RamDiskOptions } from "./ram_disk.ts";

/** Feature bits, as numbers of their own (virtio 1.3, section 5.2.3). */
export const BF = {
  SIZE_MAX: 1,
  SEG_MAX: 2,
  RO: 5,
  BLK_SIZE: 6,
  FLUSH: 9,
  TOPOLOGY: 10,
  CONFIG_WCE: 11,
  MQ: 12,
  DISCARD: 13,
  WRITE_ZEROES: 14,
} as const;

/** Request types and status bytes (section 5.2.6). */
export const T = {
  IN: 0,
  OUT: 1,
  FLUSH: 4,
  GET_ID: 8,
  DISCARD: 11,
  WRITE_ZEROES: 13,
} as const;
export const S = { OK: 0, IOERR: 1, UNSUPP: 2 } as const;

/** Status byte before the device has written it. */
export const UNTOUCHED = 0xa5;

/** A request on its way. */
export interface Pending {
  readonly queue: DriverQueue;
  readonly head: number;
  /** The device-writable part, piece by piece. */
  readonly writable: readonly (readonly [number, number])[];
}

/** A request that came back. */
export interface Reply {
  readonly status: number;
  /** The device-writable part without the status. */
  readonly data: Uint8Array;
  /** Length in the used ring. */
  readonly written: number;
}

/** Cuts of a request's parts; each a list of lengths, the rest in one piece. */
export interface Cuts {
  readonly readable?: readonly number[];
  readonly writable?: readonly number[];
}

/** Differences of a {@linkcode Rig} from the usual. */
export interface RigOptions extends RamDiskOptions {
  readonly disk?: Partial<DiskOptions>;
  /** Features that the driver asks for; all that is offered unless told. */
  readonly features?: readonly number[];
  /** Size of the queues that the driver chooses; the device's unless told. */
  readonly ringSize?: number;
  /** Leave the driver before negotiation. */
  readonly bare?: boolean;
  /** True if the driver chooses packed queues. */
  readonly packed?: boolean;
}

export const RAM_IOVA = 0x1_0000_0000;
export const RAM_BYTES = 8 << 20;

/** A request header: type, reserved, sector. */
export function header(type: number, sector: number | bigint = 0): Uint8Array {
  const bytes = new Uint8Array(16);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, type, true);
  view.setBigUint64(8, BigInt(sector), true);
  return bytes;
}

/** Ranges of DISCARD and WRITE_ZEROES. */
export function ranges(
  ...list: readonly {
    sector: number | bigint;
    count: number;
    flags?: number;
  }[]
): Uint8Array {
  const bytes = new Uint8Array(16 * list.length);
  const view = new DataView(bytes.buffer);
  for (const [i, { sector, count, flags }] of list.entries()) {
    view.setBigUint64(i * 16, BigInt(sector), true);
    view.setUint32(i * 16 + 8, count, true);
    view.setUint32(i * 16 + 12, flags ?? 0, true);
  }
  return bytes;
}

/** Bytes that tell their place and a seed. */
export function pattern(lengthBytes: number, seed = 1): Uint8Array {
  const bytes = new Uint8Array(lengthBytes);
  for (let i = 0; i < lengthBytes; i++) {
    bytes[i] = seed * 37 + i * 7 + (i >> 8);
  }
  return bytes;
}

function join(...parts: readonly Uint8Array[]): Uint8Array {
  return Uint8Array.from(parts.flatMap((part) => [...part]));
}

function cut(total: number, lengths: readonly number[]): number[] {
  const pieces: number[] = [];
  let left = total;
  for (const length of lengths) {
    if (length >= left) break;
    pieces.push(length);
    left -= length;
  }
  if (left > 0) pieces.push(left);
  return pieces;
}

/** The whole set-up. */
export class Rig {
  readonly memory: MappableMemory;
  readonly ram: DriverMemory;
  readonly loop: ManualLoop;
  readonly log: RecordingLog;
  /** Register writes that the test says are on their way. */
  readonly posted: CountedWrites;
  readonly backend: RamDisk;
  readonly device: VirtioPci;
  readonly pci: LocalPci;
  readonly driver: VirtioDriver;
  readonly options: RigOptions;
  disk!: VirtioBlk;
  queues: DriverQueue[] = [];

  constructor(options: RigOptions = {}) {
    this.options = options;
    this.memory = memoryUnderTest();
    const buffer = this.memory.map({ iova: RAM_IOVA, lengthBytes: RAM_BYTES });
    this.ram = new DriverMemory(buffer, RAM_IOVA);
    const interrupts = new PciInterrupts();
    const fake = fakeContext({ memory: this.memory });
    this.loop = fake.loop;
    reachWhenSettling(this.loop, this.memory);
    this.log = fake.log;
    this.posted = fake.posted;
    const context = { ...fake, interrupts };
    this.backend = new RamDisk(this.memory, options);
    const disk: DiskOptions = {
      queues: 1,
      queueSize: 64,
      segMax: 62,
      serial: "serial-7",
      writeCache: true,
      ...options.disk,
    };
    this.device = new VirtioPci(
      context,
      (transport) =>
        this.disk = new VirtioBlk({
          context,
          transport,
          backend: this.backend,
          options: disk,
        }),
      {
        ringFeatures: ringFeatures(
          virtioOptions().parse({ packed: options.packed ? "on" : "off" }),
        ),
      },
    );
    this.pci = new LocalPci(
      new PciFunction(this.device, this.memory, interrupts, fake.log),
      interrupts,
    );
    this.driver = new VirtioDriver(this.pci, this.ram, {
      vectors: disk.queues + 1,
    });
    if (options.bare !== true) this.bringUp();
  }

  /** As a driver begins: negotiates, sets up its queues, starts. */
  bringUp(features: readonly number[] | undefined = this.options.features) {
    this.driver.negotiate(
      features ?? [
        ...Object.values(BF),
        F.RING_EVENT_IDX,
        F.RING_INDIRECT_DESC,
        F.RING_RESET,
        ...(this.options.packed ? [F.RING_PACKED] : []),
      ],
    );
    this.driver.setConfigVector(0);
    this.queues = [];
    for (let i = 0; i < this.driver.numQueues; i++) {
      const { ringSize } = this.options;
      const queue: DriverQueue<DriverRing> = this.driver.setupAnyQueue(i, {
        vector: i + 1,
        indirect: 4,
        ...(ringSize === undefined ? {} : { size: ringSize }),
      });
      // What the rig does with a ring can be done with either.
      this.queues.push(queue as DriverQueue);
    }
    this.driver.driverOk();
    this.loop.settle();
  }

  /** Makes a request available, without telling. */
  queue(
    readable: Uint8Array,
    writableBytes: number,
    cuts: Cuts = {},
    queue = this.queues[0]!,
  ): Pending {
    const read = cut(readable.length, cuts.readable ?? []);
    const write = cut(writableBytes, cuts.writable ?? []);
    assert(queue.ring.begin(read.length + write.length), "the ring is full");
    let at = 0;
    for (const length of read) {
      const iova = this.ram.alloc(length, 1);
      this.ram.write(iova, readable.subarray(at, at + length));
      queue.ring.readable(iova, length);
      at += length;
    }
    const writable: [number, number][] = [];
    for (const length of write) {
      const iova = this.ram.alloc(length, 1);
      this.ram.at(iova, length).fill(UNTOUCHED);
      queue.ring.writable(iova, length);
      writable.push([iova, length]);
    }
    return { queue, head: queue.ring.end(), writable };
  }

  /** Tells the device, and lets it do what it can without the back end. */
  flush(queue = this.queues[0]!): void {
    queue.flush();
    this.loop.settle();
  }

  /** The next request that came back, which must be this one. */
  take(pending: Pending): Reply {
    const { ring } = pending.queue;
    assert(ring.take(), "nothing came back");
    assertEquals(ring.usedHead, pending.head);
    return this.reply(pending, ring.usedLength);
  }

  /** Reply that the device has written for a request. */
  reply(pending: Pending, written: number): Reply {
    const bytes = join(
      ...pending.writable.map(([iova, length]) => this.ram.at(iova, length)),
    );
    return {
      status: bytes[bytes.length - 1]!,
      data: bytes.subarray(0, -1),
      written,
    };
  }

  /** The heads that came back, in order. */
  takeHeads(queue = this.queues[0]!): number[] {
    const heads: number[] = [];
    while (queue.ring.take()) heads.push(queue.ring.usedHead);
    return heads;
  }

  /** One request from beginning to end. */
  request(
    readable: Uint8Array,
    writableBytes: number,
    cuts?: Cuts,
    queue = this.queues[0]!,
  ): Reply {
    const pending = this.queue(readable, writableBytes, cuts, queue);
    this.flush(queue);
    while (this.backend.finishAll() > 0) this.loop.settle();
    return this.take(pending);
  }

  read(sector: number | bigint, lengthBytes: number, cuts?: Cuts): Reply {
    return this.request(header(T.IN, sector), lengthBytes + 1, cuts);
  }

  write(sector: number | bigint, data: Uint8Array, cuts?: Cuts): Reply {
    return this.request(join(header(T.OUT, sector), data), 1, cuts);
  }

  /** Makes a write available, without telling. */
  queueWrite(sector: number, data: Uint8Array, queue?: DriverQueue): Pending {
    return this.queue(join(header(T.OUT, sector), data), 1, {}, queue);
  }

  /** Makes a read available, without telling. */
  queueRead(
    sector: number,
    lengthBytes: number,
    queue?: DriverQueue,
  ): Pending {
    return this.queue(header(T.IN, sector), lengthBytes + 1, {}, queue);
  }

  ranged(type: number, list: Uint8Array): Reply {
    return this.request(join(header(type), list), 1);
  }

  /** Number of times a vector was raised since it was last asked for. */
  interrupts(vector: number): number {
    return this.pci.wait(vector, 0);
  }

  counter(name: string): number {
    const value = this.device.counters()[name];
    if (value === undefined) throw new Error(`There is no counter ${name}`);
    return value;
  }

  /** True if the device wants to be reset. */
  get needsReset(): boolean {
    return (this.driver.status & STATUS.NEEDS_RESET) !== 0;
  }

  close(): void {
    this.device.close();
    assert(this.backend.closed);
    assertEquals(this.disk.inFlight, 0, "a request was lost");
    checkReleased(this.memory);
  }

  [Symbol.dispose](): void {
    this.close();
  }
}
