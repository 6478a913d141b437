/**
 * A virtio-net card with a driver on one side and a scripted network on the other.
 *
 * @module
 */

import { ResourceBag } from "../../../src/os/mod.ts";
import { assert, assertEquals } from "@std/assert";
import { VirtioNet } from "../../../devices/virtio_net/device.ts";
import type { NetOffloads } from "../../../src/backend/net/contract.ts";
import {
  type PciDevice,
  PciFunction,
  PciInterrupts,
} from "../../../src/pci/mod.ts";
import type { DriverRing } from "../../../src/testing/driver_ring.ts";
import { DriverMemory } from "../../../src/testing/driver_memory.ts";
import type { MappableMemory } from "../../../src/memory/array_memory.ts";
import {
  checkReleased,
  memoryUnderTest,
  reachWhenSettling,
} from "../../memory_under_test.ts";
import {
  fakeContext,
  type RecordingLog,
} from "../../../src/testing/fake_context.ts";
import type { ManualLoop } from "../../../src/testing/manual_loop.ts";
import { F, STATUS } from "../../../src/testing/virtio_defs.ts";
import {
  type DriverQueue,
  VirtioDriver,
} from "../../../src/testing/virtio_driver.ts";
import type { Features } from "../../../src/virtio/features.ts";
import { VirtioPci } from "../../../src/transport/virtio_pci/virtio_pci.ts";
import { LocalPci } from "../local_pci.ts";
import {
  type GivenScript,
  type HeadedFrame,
  ScriptedBackend,
} from "./scripted_backend.ts";

export { type HeadedFrame, ScriptedBackend } from "./scripted_backend.ts";

export const HDR_BYTES = 12;
export const MAC = [0x52, 0x54, 0x00, 0x12, 0x34, 0x56] as const;
export const PEER_MAC = [0x52, 0x55, 0x0a, 0x00, 0x02, 0x02] as const;
export const VECTOR = { CONFIG: 0, RX: 1, TX: 2, CTRL: 3 } as const;

/** Feature bits, as numbers of their own (virtio 1.3, section 5.1.3). */
export const NF = {
  MTU: 3,
  MAC: 5,
  MRG_RXBUF: 15,
  STATUS: 16,
  CTRL_VQ: 17,
  CTRL_RX: 18,
  CTRL_VLAN: 19,
  CTRL_RX_EXTRA: 20,
  GUEST_ANNOUNCE: 21,
  CTRL_MAC_ADDR: 23,
} as const;

/** More of them: offloads, queues, coalescing. */
export const OF = {
  CSUM: 0,
  GUEST_CSUM: 1,
  CTRL_GUEST_OFFLOADS: 2,
  GUEST_TSO4: 7,
  GUEST_TSO6: 8,
  GUEST_ECN: 9,
  GUEST_UFO: 10,
  HOST_TSO4: 11,
  HOST_TSO6: 12,
  HOST_ECN: 13,
  HOST_UFO: 14,
  MQ: 22,
  VQ_NOTF_COAL: 52,
  NOTF_COAL: 53,
  GUEST_USO4: 54,
  GUEST_USO6: 55,
  HOST_USO: 56,
} as const;

/** Differences of a {@linkcode Rig} from the usual. */
export interface RigOptions {
  readonly mtu?: number;
  readonly linkUp?: boolean;
  readonly queueSize?: number;
  readonly txDelayUsec?: number;
  readonly rxReliefUsec?: number;
  readonly vnetHeader?: boolean;
  /** True if the back end keeps frames until it is flushed. */
  readonly keeps?: boolean;
  /** Offloads of the back end; none unless told. It has headers then. */
  readonly offloads?: NetOffloads;
  /** Queue pairs of the card and its back end. */
  readonly queuePairs?: number;
  /** Queue pairs of the back end, if not the same. */
  readonly backendPairs?: number;
  /** True if the card offers offloads. */
  readonly offersOffloads?: boolean;
  /** Features that the driver asks for; all that is offered unless told. */
  readonly features?: readonly number[];
  /** Features of rings that are offered, if not the usual. */
  readonly ringFeatures?: Features;
  /** Leave the driver before negotiation. */
  readonly bare?: boolean;
}

/** A received frame as the driver found it. */
export interface Received {
  readonly header: number[];
  readonly frame: Uint8Array;
  /** Lengths that the device says it wrote to each buffer. */
  readonly lengths: number[];
}

/** Everything that there is. */
export const ALL_OFFLOADS: NetOffloads = { take: 0x7f, give: 0x7f };

const RAM_IOVA = 0x1_0000_0000;
const RAM_BYTES = 8 << 20;

/** The whole set-up. */
export class Rig {
  readonly memory: MappableMemory;
  readonly ram: DriverMemory;
  loop!: ManualLoop;
  log!: RecordingLog;
  backend!: ScriptedBackend;
  device!: VirtioPci;
  readonly pci: LocalPci;
  readonly driver: VirtioDriver;
  card!: VirtioNet;
  rx!: DriverQueue;
  tx!: DriverQueue;
  ctrl: DriverQueue | null = null;
  /** The pairs that the driver set up. */
  pairs: { rx: DriverQueue; tx: DriverQueue }[] = [];
  readonly #options: RigOptions;
  readonly #interrupts = new PciInterrupts();
  readonly #rxBuffers = new Map<number, readonly (readonly number[])[]>();

  constructor(options: RigOptions = {}) {
    this.memory = memoryUnderTest();
    const buffer = this.memory.map({ iova: RAM_IOVA, lengthBytes: RAM_BYTES });
    this.ram = new DriverMemory(buffer, RAM_IOVA);
    this.#options = options;
    this.#makeDevice();
    this.pci = new LocalPci(
      new PciFunction(
        this.#mailbox(),
        this.memory,
        this.#interrupts,
        this.log,
      ),
      this.#interrupts,
    );
    const vectors = 2 * (options.queuePairs ?? 1) + 2;
    this.driver = new VirtioDriver(this.pci, this.ram, { vectors });
    if (options.bare !== true) this.bringUp(options.features);
  }

  #makeDevice(script?: GivenScript): void {
    const options = this.#options;
    const fake = fakeContext({ memory: this.memory });
    this.loop = fake.loop;
    reachWhenSettling(this.loop, this.memory);
    this.log = fake.log;
    const context = { ...fake, interrupts: this.#interrupts };
    this.backend = new ScriptedBackend(
      this.memory,
      options.vnetHeader ?? options.offloads !== undefined,
      options.offloads ?? { take: 0, give: 0 },
      options.backendPairs ?? options.queuePairs ?? 1,
      script,
      options.keeps,
    );
    this.device = new VirtioPci(
      context,
      (transport) =>
        this.card = new VirtioNet({
          context,
          transport,
          backend: this.backend,
          options: {
            mac: Uint8Array.from(MAC),
            mtu: options.mtu ?? 1500,
            linkUp: options.linkUp ?? true,
            queueSize: options.queueSize ?? 256,
            txDelayUsec: options.txDelayUsec ?? 0,
            rxReliefUsec: options.rxReliefUsec ?? 0,
            queuePairs: options.queuePairs ?? 1,
            offloads: options.offersOffloads ?? true,
          },
        }),
      {
        ...(options.ringFeatures === undefined
          ? {}
          : { ringFeatures: options.ringFeatures }),
      },
    );
  }

  /** Device of the time: configuration space and MSI-X stay as they are when it moves. */
  #mailbox(): PciDevice {
    return {
      spec: this.device.spec,
      readBar: (...access) => this.device.readBar(...access),
      writeBar: (...access) => this.device.writeBar(...access),
      reset: (reason) => this.device.reset(reason),
      stop: () => this.device.stop(),
      start: () => this.device.start(),
      close: () => this.device.close(),
    };
  }

  /**
   * The card goes on as another one on another loop, which holds until its `start()`.
   *
   * @param anew Whether that one opens its network itself
   */
  move(anew = false): void {
    assertEquals(this.device.hold!(), 0);
    const state = structuredClone(this.device.save!());
    const script = structuredClone(this.backend.save().body);
    using bag = ResourceBag.of();
    this.device.handOver(bag);
    const { loop, backend } = this;
    this.device.close();
    assert(backend.closed);
    assertEquals([loop.hasScheduled, loop.timerCount], [false, 0]);
    this.#makeDevice(anew ? undefined : script);
    this.device.load!(state);
  }

  #setup(index: number, vector: number): DriverQueue {
    if (!this.driver.has(F.RING_PACKED)) {
      return this.driver.setupQueue(index, { vector });
    }
    // What the rig does with a ring can be done with either.
    const queue: DriverQueue<DriverRing> = this.driver
      .setupPackedQueue(index, { vector });
    return queue as DriverQueue;
  }

  /** As a driver begins: negotiates, sets up its queues, starts. */
  bringUp(features?: readonly number[]): void {
    this.driver.negotiate(
      features ?? [
        ...Object.values(NF),
        F.RING_EVENT_IDX,
        F.RING_INDIRECT_DESC,
        F.RING_RESET,
      ],
    );
    this.#rxBuffers.clear();
    this.driver.setConfigVector(VECTOR.CONFIG);
    this.rx = this.#setup(0, VECTOR.RX);
    this.tx = this.#setup(1, VECTOR.TX);
    const pairs = this.driver.has(OF.MQ) ? this.driver.readConfig(8, 2) : 1;
    this.pairs = [{ rx: this.rx, tx: this.tx }];
    for (let i = 1; i < pairs; i++) {
      this.pairs.push({
        rx: this.#setup(2 * i, 2 * i + 1),
        tx: this.#setup(2 * i + 1, 2 * i + 2),
      });
    }
    this.ctrl = this.driver.has(NF.CTRL_VQ)
      ? this.#setup(2 * pairs, 2 * pairs + 1)
      : null;
    this.driver.driverOk();
    this.settle();
  }

  /** Lets everything happen that can. */
  settle(): void {
    do this.loop.settle(); while (this.backend.pump() > 0);
  }

  /** Frames come in, and are handled. */
  arrive(...frames: (Uint8Array | HeadedFrame | number)[]): void {
    this.backend.incoming.push(...frames);
    this.settle();
  }

  /** Posts receive buffers, one descriptor each or several; the device is told once. */
  postRx(...buffers: readonly (number | readonly number[])[]): boolean {
    for (const buffer of buffers) {
      const lengths = typeof buffer === "number" ? [buffer] : buffer;
      assert(this.rx.ring.begin(lengths.length));
      const pieces = lengths.map((length) => {
        const iova = this.ram.alloc(length, 1);
        this.ram.at(iova, length).fill(0xee);
        this.rx.ring.writable(iova, length);
        return [iova, length];
      });
      this.#rxBuffers.set(this.rx.ring.end(), pieces);
    }
    const kick = this.rx.ring.publish();
    if (kick) this.rx.kick();
    this.settle();
    return kick;
  }

  /** Takes the received frames. */
  received(): Received[] {
    const frames: Received[] = [];
    while (this.rx.ring.hasUsed) {
      const lengths: number[] = [];
      const bytes: number[] = [];
      let left = 1;
      while (left-- > 0) {
        assert(this.rx.ring.take(), "a buffer of the frame is missing");
        const head = this.rx.ring.usedHead;
        const written = this.rx.ring.usedLength;
        const content = this.#rxBuffers.get(head)!
          .flatMap(([iova, length]) => [...this.ram.at(iova!, length!)]);
        assert(written <= content.length);
        lengths.push(written);
        bytes.push(...content.slice(0, written));
        if (lengths.length === 1 && this.driver.has(NF.MRG_RXBUF)) {
          left = bytes[10]! + bytes[11]! * 256 - 1;
        }
      }
      frames.push({
        header: bytes.slice(0, HDR_BYTES),
        frame: Uint8Array.from(bytes.slice(HDR_BYTES)),
        lengths,
      });
    }
    return frames;
  }

  /** Makes a chain of device-readable buffers available, without telling. */
  queueTx(...parts: readonly Uint8Array[]): number {
    assert(this.tx.ring.begin(parts.length));
    for (const part of parts) {
      const iova = this.ram.alloc(part.length, 1);
      this.ram.write(iova, part);
      this.tx.ring.readable(iova, part.length);
    }
    return this.tx.ring.end();
  }

  /** Transmits frames behind empty headers. */
  transmit(...frames: readonly Uint8Array[]): void {
    for (const frame of frames) {
      this.queueTx(Uint8Array.from([...new Uint8Array(HDR_BYTES), ...frame]));
    }
    this.tx.flush();
    this.settle();
  }

  /** Takes transmitted buffers back; how many. */
  reclaim(): number {
    let taken = 0;
    while (this.tx.ring.take()) {
      assertEquals(this.tx.ring.usedLength, 0);
      taken++;
    }
    return taken;
  }

  /**
   * Sends a control command.
   *
   * @param data All device-readable bytes, class and command first
   * @param ackBytes Length of the device-writable part
   * @returns The acknowledgement; −1 when none was written
   */
  command(data: readonly number[], ackBytes = 1): number {
    const queue = this.ctrl!;
    const at = this.ram.alloc(data.length + 1, 1);
    const ack = this.ram.alloc(ackBytes + 1, 1);
    this.ram.write(at, Uint8Array.from(data));
    const readable = data.length > 0 ? 1 : 0;
    const writable = ackBytes > 0 ? 1 : 0;
    queue.ring.begin(readable + writable);
    if (readable > 0) queue.ring.readable(at, data.length);
    if (writable > 0) queue.ring.writable(ack, ackBytes);
    queue.ring.end();
    queue.flush();
    this.settle();
    assert(queue.ring.take(), "the command was not answered");
    if (queue.ring.usedLength === 0) return -1;
    assertEquals(queue.ring.usedLength, 1);
    return this.ram.at(ack, 1)[0]!;
  }

  /**
   * Sends a control command that has a result.
   *
   * @returns The acknowledgement and what is behind it, as far as the device says it wrote
   */
  query(data: readonly number[], answerBytes: number): number[] {
    const queue = this.ctrl!;
    const at = this.ram.alloc(data.length, 1);
    const answer = this.ram.alloc(answerBytes, 1);
    this.ram.write(at, Uint8Array.from(data));
    queue.ring.begin(2);
    queue.ring.readable(at, data.length);
    queue.ring.writable(answer, answerBytes);
    queue.ring.end();
    queue.flush();
    this.settle();
    assert(queue.ring.take(), "the command was not answered");
    return [...this.ram.at(answer, queue.ring.usedLength)];
  }

  /** Number of times a vector was raised since it was last asked for. */
  interrupts(vector: number): number {
    return this.pci.wait(vector, 0);
  }

  /** A counter of the card. */
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
    assertEquals(this.backend.peer, null);
    checkReleased(this.memory);
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/** An Ethernet frame of `lengthBytes` with a body that tells `seed`. */
export function frame(
  lengthBytes: number,
  seed = 1,
  destination: readonly number[] = MAC,
): Uint8Array {
  const bytes = new Uint8Array(lengthBytes);
  for (let i = 0; i < lengthBytes; i++) bytes[i] = seed * 31 + i * 7;
  bytes.set([...destination, ...PEER_MAC, 0x08, 0x00].slice(0, lengthBytes));
  return bytes;
}

/** The same with an 802.1Q tag. */
export function taggedFrame(
  lengthBytes: number,
  vid: number,
  destination: readonly number[] = MAC,
): Uint8Array {
  const bytes = frame(lengthBytes, 1, destination);
  bytes.set([0x81, 0x00, 0xa0 | (vid >> 8), vid & 0xff], 12);
  return bytes;
}
