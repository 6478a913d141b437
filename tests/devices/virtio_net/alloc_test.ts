import { assert, assertEquals } from "@std/assert";
import { VirtioNet } from "../../../devices/virtio_net/device.ts";
import { Errno } from "../../../src/core/errno.ts";
import type { GuestMemory } from "../../../src/memory/guest_memory.ts";
import type { ScatterGather } from "../../../src/memory/scatter_gather.ts";
import type {
  NetBackend,
  NetOffloads,
  NetPeer,
} from "../../../src/backend/net/contract.ts";
import { DriverMemory } from "../../../src/testing/driver_memory.ts";
import { fakeContext } from "../../../src/testing/fake_context.ts";
import { ArrayMemory } from "../../../src/memory/array_memory.ts";
import { Features } from "../../../src/virtio/features.ts";
import { createQueue } from "../../../src/virtio/queue/mod.ts";
import { Vring } from "../../../src/testing/vring.ts";
import { heapGrowthPerOperation } from "../../resources.ts";
import { frame, MAC, NF, OF } from "./harness.ts";

const SIZE = 256;
const ROUND = 20_480;
const ROUNDS = 10;
const FRAME_BYTES = 60;
const LARGE_BYTES = 2900;
// NEEDS_CSUM, TCPV4, hdr_len, gso_size, csum_start, csum_offset, num_buffers
const TSO_HEADER = [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0];

type Kind = "bare" | "vnet header" | "offloads";

/** A network that has frames without end and takes any, allocating nothing. */
class EndlessBackend implements NetBackend {
  readonly description = "endless";
  readonly hasVnetHeader: boolean;
  readonly offloads: NetOffloads;
  readonly #memory: GuestMemory;
  readonly #frame: Uint8Array;
  left = 0;
  taken = 0;

  constructor(memory: GuestMemory, kind: Kind) {
    this.#memory = memory;
    this.hasVnetHeader = kind !== "bare";
    const offloads = kind === "offloads" ? 0x7f : 0;
    this.offloads = { take: offloads, give: offloads };
    switch (kind) {
      case "bare":
        this.#frame = frame(FRAME_BYTES);
        break;
      case "vnet header":
        this.#frame = Uint8Array.from([
          ...new Uint8Array(12),
          ...frame(FRAME_BYTES),
        ]);
        break;
      case "offloads":
        this.#frame = Uint8Array.from([...TSO_HEADER, ...frame(LARGE_BYTES)]);
        break;
    }
  }

  peer: NetPeer | null = null;

  start(peer: NetPeer): void {
    this.peer = peer;
  }
  stop(): void {}
  setReceiving(_on: boolean): void {}
  flush(): number {
    return 0;
  }
  close(): void {}

  send(list: ScatterGather): number {
    this.taken++;
    return list.lengthBytes;
  }

  receive(into: ScatterGather): number {
    if (this.left === 0) return -Errno.EAGAIN;
    this.left--;
    return this.#memory.scatter(into, this.#frame, this.#frame.length);
  }
}

/** A card between two bare queues, so that nothing else allocates. */
function makeCard(kind: Kind) {
  const memory = new ArrayMemory([]);
  const iova = 0x1_0000_0000;
  const buffer = memory.map({ iova, lengthBytes: 4 << 20 });
  const ram = new DriverMemory(buffer, iova);
  const backend = new EndlessBackend(memory, kind);
  const card = new VirtioNet({
    context: fakeContext({ memory }),
    transport: {
      interrupt: () => {},
      configChanged: () => {},
      fail: (reason) => {
        throw new Error(reason);
      },
    },
    backend,
    options: {
      mac: Uint8Array.from(MAC),
      mtu: 1500,
      linkUp: true,
      queueSize: SIZE,
    },
  });
  const features = Features.of(
    NF.MRG_RXBUF,
    NF.MTU,
    NF.CTRL_VQ,
    NF.CTRL_RX,
    29,
    32,
    ...(kind === "offloads"
      ? [OF.CSUM, OF.GUEST_CSUM, OF.GUEST_TSO4, OF.HOST_TSO4]
      : []),
  );
  const rings = [0, 1, 2].map(() =>
    new Vring(ram, { size: SIZE, eventIdx: true })
  );
  const queues = rings.map((ring, i) => {
    const queue = createQueue(memory, i, SIZE);
    const { descIova, availIova, usedIova } = ring;
    const result = queue.enable(features, {
      size: SIZE,
      descIova,
      availIova,
      usedIova,
    });
    assertEquals(result, 0);
    return queue;
  });
  card.start(features, queues);
  return { card, ram, backend, rings, queues };
}

function heapBytesPerPacket(round: () => void): number {
  return heapGrowthPerOperation(ROUND * ROUNDS, (packets) => {
    for (let done = 0; done < packets; done += ROUND) round();
  });
}

for (const kind of ["bare", "vnet header", "offloads"] as const) {
  Deno.test(`VirtioNet allocates nothing per received frame (${kind})`, () => {
    const { card, ram, backend, rings, queues } = makeCard(kind);
    const [ring, , ctrl] = rings as [Vring, Vring, Vring];
    // PROMISC off, so that every frame goes through the filter.
    const at = ram.alloc(4);
    ram.write(at, Uint8Array.of(0, 0, 0, 0xee));
    ctrl.begin(2);
    ctrl.readable(at, 3);
    ctrl.writable(at + 3, 1);
    ctrl.end();
    ctrl.publish();
    card.notify(queues[2]!);
    assertEquals(ram.at(at + 3, 1)[0], 0);
    // A small frame takes one buffer of two that are tried, a large one takes both of many.
    const bufferBytes = kind === "offloads" ? 1500 : 1024;
    const buffers = kind === "offloads" ? 2 : 1;
    const first = ram.alloc(bufferBytes);
    const second = ram.alloc(bufferBytes);
    let posted = 0;
    const post = () => {
      ring.begin(1);
      if (posted++ % buffers === 0) ring.writable(first, bufferBytes);
      else ring.writable(second, bufferBytes);
      ring.end();
    };
    while (ring.free > 0) post();
    ring.publish();
    let taken = 0;
    let frames = 0;
    const round = () => {
      frames += ROUND;
      for (let done = 0; done < ROUND; done += 64) {
        backend.left = 64;
        backend.peer!.onReadable();
        while (ring.take()) {
          taken++;
          post();
        }
        if (ring.publish()) card.notify(queues[0]!);
      }
    };
    const perPacket = heapBytesPerPacket(round);
    assertEquals(taken, frames * buffers);
    assertEquals(card.counters().rxPackets, frames);
    assert(perPacket < 1, `${perPacket} bytes per packet`);
  });

  Deno.test(`VirtioNet allocates nothing per transmitted frame (${kind})`, () => {
    const { card, ram, backend, rings, queues } = makeCard(kind);
    const ring = rings[1]!;
    const frameBytes = kind === "offloads" ? LARGE_BYTES : FRAME_BYTES;
    const buffer = ram.alloc(12 + frameBytes);
    if (kind === "offloads") ram.write(buffer, Uint8Array.from(TSO_HEADER));
    // Not computed below: an address above 2^31 is a heap number.
    const body = buffer + 12;
    let reclaimed = 0;
    let frames = 0;
    const round = () => {
      frames += ROUND;
      for (let done = 0; done < ROUND; done += 64) {
        for (let i = 0; i < 64; i++) {
          ring.begin(2);
          ring.readable(buffer, 12);
          ring.readable(body, frameBytes);
          ring.end();
        }
        ring.publish();
        card.notify(queues[1]!);
        while (ring.take()) reclaimed++;
      }
    };
    const perPacket = heapBytesPerPacket(round);
    assertEquals(reclaimed, frames);
    assertEquals(backend.taken, reclaimed);
    assert(perPacket < 1, `${perPacket} bytes per packet`);
  });
}
