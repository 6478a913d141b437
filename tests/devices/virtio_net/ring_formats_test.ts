/** The card over every format of queue that its driver can choose. */

import { assert, assertEquals } from "@std/assert";
import { VirtioNet } from "../../../devices/virtio_net/device.ts";
import { Errno } from "../../../src/core/errno.ts";
import type { GuestMemory } from "../../../src/memory/guest_memory.ts";
import type { ScatterGather } from "../../../src/memory/scatter_gather.ts";
import type { NetBackend, NetPeer } from "../../../src/backend/net/contract.ts";
import { PciFunction, PciInterrupts } from "../../../src/pci/mod.ts";
import {
  type DriverRing,
  F,
  fakeContext,
  VirtioDriver,
} from "../../../src/testing/mod.ts";
import { DriverMemory } from "../../../src/testing/driver_memory.ts";
import type { DriverQueue } from "../../../src/testing/virtio_driver.ts";
import { ringFeatures, virtioOptions } from "../../../src/virtio/options.ts";
import { VirtioPci } from "../../../src/transport/virtio_pci/virtio_pci.ts";
import {
  checkReleased,
  memoryUnderTest,
  reachWhenSettling,
} from "../../memory_under_test.ts";
import { LocalPci } from "../local_pci.ts";

const MRG_RXBUF = 15;
const HEADER_BYTES = 12;
const RAM_IOVA = 0x1_0000_0000;
const BUFFER_BYTES = 256;

/** A network that sends back whatever it gets. */
class EchoBackend implements NetBackend {
  readonly description = "echo";
  readonly hasVnetHeader = false;
  readonly #memory: GuestMemory;
  readonly #frames: Uint8Array[] = [];
  #peer: NetPeer | null = null;
  #receiving = true;

  constructor(memory: GuestMemory) {
    this.#memory = memory;
  }

  start(peer: NetPeer): void {
    this.#peer = peer;
  }

  stop(): void {
    this.#peer = null;
    this.#frames.length = 0;
  }

  send(frame: ScatterGather): number {
    const bytes = new Uint8Array(frame.lengthBytes);
    this.#memory.gather(frame, bytes, bytes.length);
    this.#frames.push(bytes);
    return bytes.length;
  }

  receive(into: ScatterGather): number {
    const frame = this.#frames.shift();
    if (frame === undefined) return -Errno.EAGAIN;
    return this.#memory.scatter(into, frame, frame.length);
  }

  setReceiving(on: boolean): void {
    this.#receiving = on;
  }

  close(): void {}

  /** Calls the card while it takes frames. */
  pump(): boolean {
    if (this.#peer === null || !this.#receiving) return false;
    if (this.#frames.length === 0) return false;
    this.#peer.onReadable();
    return true;
  }
}

/** A card on an echo, and a driver that uses whatever rings were agreed upon. */
class Bench {
  readonly #ram: DriverMemory;
  readonly #backend: EchoBackend;
  readonly #settle: () => void;
  readonly #memory = memoryUnderTest();
  readonly device: VirtioPci;
  readonly driver: VirtioDriver;
  readonly pci: LocalPci;
  #rx!: DriverQueue<DriverRing>;
  #tx!: DriverQueue<DriverRing>;
  readonly #rxBuffers = new Map<number, number>();

  constructor() {
    const memory = this.#memory;
    const buffer = memory.map({ iova: RAM_IOVA, lengthBytes: 4 << 20 });
    this.#ram = new DriverMemory(buffer, RAM_IOVA);
    const fake = fakeContext({ memory });
    reachWhenSettling(fake.loop, memory);
    const interrupts = new PciInterrupts();
    const context = { ...fake, interrupts };
    this.#backend = new EchoBackend(memory);
    this.#settle = () => {
      do fake.loop.settle(); while (this.#backend.pump());
    };
    this.device = new VirtioPci(
      context,
      (transport) =>
        new VirtioNet({
          context,
          transport,
          backend: this.#backend,
          options: {
            mac: Uint8Array.of(0x52, 0x54, 0, 1, 2, 3),
            mtu: 1500,
            linkUp: true,
            queueSize: 64,
          },
        }),
      {
        ringFeatures: ringFeatures(
          virtioOptions().parse({ "packed": "on", "notification-data": "on" }),
        ),
      },
    );
    const pci = new PciFunction(this.device, memory, interrupts, fake.log);
    this.pci = new LocalPci(pci, interrupts);
    this.driver = new VirtioDriver(this.pci, this.#ram, { vectors: 3 });
  }

  close(): void {
    this.device.close();
    checkReleased(this.#memory);
  }

  bringUp(features: readonly number[], size: number): void {
    const agreed = this.driver.negotiate([MRG_RXBUF, ...features]);
    for (const bit of features) assert(agreed.has(bit), `feature ${bit}`);
    const options = { size, indirect: 4 };
    this.#rx = this.driver.setupAnyQueue(0, { ...options, vector: 1 });
    this.#tx = this.driver.setupAnyQueue(1, { ...options, vector: 2 });
    this.driver.driverOk();
    this.#rxBuffers.clear();
    this.#fill();
    this.#settle();
  }

  #fill(): void {
    const { ring } = this.#rx;
    while (ring.begin(1)) {
      const iova = this.#ram.alloc(BUFFER_BYTES);
      ring.writable(iova, BUFFER_BYTES);
      this.#rxBuffers.set(ring.end(), iova);
    }
    this.#rx.flush();
  }

  /** Sends frames in two or three buffers each; returns what came back. */
  roundTrip(frames: readonly Uint8Array[]): Uint8Array[] {
    const sent: [number, number][] = [];
    for (const [i, frame] of frames.entries()) {
      const bytes = Uint8Array.from([
        ...new Uint8Array(HEADER_BYTES),
        ...frame,
      ]);
      const iova = this.#ram.alloc(bytes.length);
      this.#ram.write(iova, bytes);
      const cuts = [0, HEADER_BYTES, HEADER_BYTES + 14, bytes.length];
      if (i % 2 === 0) cuts.splice(2, 1);
      assert(this.#tx.ring.begin(cuts.length - 1));
      for (let k = 1; k < cuts.length; k++) {
        this.#tx.ring.readable(iova + cuts[k - 1]!, cuts[k]! - cuts[k - 1]!);
      }
      this.#tx.ring.end();
      sent.push([iova, bytes.length]);
    }
    this.#rx.ring.enableInterrupts();
    this.#tx.flush();
    this.#settle();
    const received = this.#receive();
    assert(this.pci.wait(1, 0) > 0, "no interrupt for received frames");
    for (const [iova, length] of sent) {
      assert(this.#tx.ring.take(), "a frame was not taken");
      assertEquals(this.#tx.ring.usedLength, 0);
      this.#ram.free(iova, length);
    }
    this.#fill();
    this.#settle();
    return received;
  }

  #receive(): Uint8Array[] {
    const { ring } = this.#rx;
    const frames: Uint8Array[] = [];
    while (ring.hasUsed) {
      const bytes: number[] = [];
      for (let left = 1; left > 0; left--) {
        assert(ring.take(), "a buffer of the frame is missing");
        const iova = this.#rxBuffers.get(ring.usedHead)!;
        const first = bytes.length === 0;
        bytes.push(...this.#ram.at(iova, ring.usedLength));
        this.#ram.free(iova, BUFFER_BYTES);
        if (first) left = bytes[10]! + bytes[11]! * 256;
      }
      frames.push(Uint8Array.from(bytes.slice(HEADER_BYTES)));
    }
    return frames;
  }
}

function frameOf(seed: number): Uint8Array {
  const lengthBytes = 60 + seed * 37 % 900;
  const frame = new Uint8Array(lengthBytes);
  for (let i = 0; i < lengthBytes; i++) frame[i] = seed * 31 + i * 7;
  frame.set([0x52, 0x54, 0, 1, 2, 3]);
  return frame;
}

const FORMATS: readonly [string, number[], number][] = [
  ["split", [], 32],
  ["split, in order", [F.IN_ORDER, F.RING_EVENT_IDX], 32],
  ["packed", [F.RING_PACKED], 33],
  ["packed, events", [F.RING_PACKED, F.RING_EVENT_IDX], 64],
  ["packed, indirect", [F.RING_PACKED, F.RING_INDIRECT_DESC], 23],
  [
    "packed, everything",
    [
      F.RING_PACKED,
      F.IN_ORDER,
      F.RING_EVENT_IDX,
      F.RING_INDIRECT_DESC,
      F.NOTIFICATION_DATA,
    ],
    31,
  ],
];

Deno.test("VirtioNet moves frames both ways over every format of queue", () => {
  // One after the other on one card, as drivers come and go.
  const bench = new Bench();
  let total = 0;
  for (const [name, features, size] of FORMATS) {
    bench.bringUp(features, size);
    for (let round = 0; round < 60; round++) {
      const frames = [1, 2, 3, 4].map((i) => frameOf(round * 4 + i));
      assertEquals(bench.roundTrip(frames), frames, name);
      total += frames.length;
    }
    assertEquals(bench.device.counters()["rxPackets"], total, name);
    assertEquals(bench.device.counters()["failures"], 0, name);
  }
  bench.driver.reset();
  bench.close();
});

Deno.test("VirtioDriver sets up the format of queue that was agreed upon, and no other", () => {
  const bench = new Bench();
  bench.driver.negotiate([F.RING_PACKED]);
  let message = "";
  try {
    bench.driver.setupQueue(0);
  } catch (error) {
    message = String(error);
  }
  assert(/packed rings were agreed upon/.test(message));
  bench.driver.negotiate([]);
  try {
    bench.driver.setupPackedQueue(0);
  } catch (error) {
    message = String(error);
  }
  assert(/packed rings were not agreed upon/.test(message));
  bench.close();
});
