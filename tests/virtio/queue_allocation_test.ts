/** Packed queues and queues with IN_ORDER allocate nothing per chain. */

import { assert } from "@std/assert";
import { DriverMemory } from "../../src/testing/driver_memory.ts";
import type { DriverRing } from "../../src/testing/driver_ring.ts";
import { PackedVring } from "../../src/testing/packed_vring.ts";
import { Vring } from "../../src/testing/vring.ts";
import { ArrayMemory } from "../../src/memory/array_memory.ts";
import { socketPair } from "../../src/os/mod.ts";
import { WriteOrder } from "../../src/pci/posted_writes.ts";
import { SocketWrites } from "../../src/pci/socket_writes.ts";
import { Features, VIRTIO_F } from "../../src/virtio/features.ts";
import { createQueue } from "../../src/virtio/queue/mod.ts";
import { Chain } from "../../src/virtio/queue/queue.ts";
import type { Ring } from "../../src/virtio/queue/ring.ts";
import { heapGrowthPerOperation } from "../resources.ts";

const ROUNDS = 500_000;
const SIZE = 64;
const BATCH = 16;
const IOVA = 0x9_0000_0000;
// Not computed in the loop, nor in fields: an address above 2^31 is a number on the heap.
const READABLE = IOVA + 0x8000;
const WRITABLE = IOVA + 0x9000;

/** Chains of three buffers, 16 at a time, pushed in reverse. */
class Bench {
  readonly #ring: DriverRing;
  readonly #queue: Ring;
  readonly #chain: Chain;
  readonly #heads = new Uint16Array(BATCH);

  constructor(
    packed: boolean,
    inOrder: boolean,
    indirect: boolean,
    order: WriteOrder | null = null,
  ) {
    const memory = new ArrayMemory([]);
    const buffer = memory.map({ iova: IOVA, lengthBytes: 0x2_0000 });
    const ram = new DriverMemory(buffer, IOVA);
    const options = {
      size: SIZE,
      eventIdx: true,
      inOrder,
      indirect: indirect ? 4 : 0,
    };
    this.#ring = packed
      ? new PackedVring(ram, options)
      : new Vring(ram, options);
    this.#queue = createQueue(memory, 0, SIZE);
    this.#chain = new Chain(memory, 16);
    this.#queue.keepOrder(order, true);
    const bits: number[] = [
      VIRTIO_F.RING_EVENT_IDX,
      VIRTIO_F.RING_INDIRECT_DESC,
    ];
    if (inOrder) bits.push(VIRTIO_F.IN_ORDER);
    if (packed) bits.push(VIRTIO_F.RING_PACKED);
    const { size, descIova, availIova, usedIova } = this.#ring;
    const addresses = { size, descIova, availIova, usedIova };
    if (this.#queue.enable(Features.of(...bits), addresses) < 0) {
      throw new Error(this.#queue.lastError);
    }
  }

  run(rounds: number): void {
    const ring = this.#ring;
    for (let i = 0; i < rounds; i += BATCH) {
      for (let k = 0; k < BATCH; k++) {
        ring.begin(3);
        ring.readable(READABLE, 16);
        ring.writable(WRITABLE, 512);
        ring.writable(WRITABLE, 1);
        ring.end();
      }
      ring.publish();
      this.#serve();
      for (let k = 0; k < BATCH; k++) {
        if (!ring.take()) throw new Error("a chain was not used");
      }
      if (ring.enableInterrupts()) throw new Error("more than was offered");
    }
  }

  #serve(): void {
    const queue = this.#queue;
    const chain = this.#chain;
    queue.disableNotifications();
    let count = 0;
    while (queue.pop(chain) > 0) this.#heads[count++] = chain.head;
    // All but the last go back, to be popped again.
    queue.unpop(1);
    queue.pop(chain);
    while (count > 0) queue.push(this.#heads[--count]!, 513);
    queue.publish();
    queue.poll();
    if (queue.enableNotifications()) throw new Error("more than was offered");
  }
}

for (const [packed, inOrder] of [[true, false], [true, true], [false, true]]) {
  for (const indirect of [false, true]) {
    const name = `${packed ? "PackedRing" : "SplitRing"}${
      inOrder ? " with IN_ORDER" : ""
    }, ${indirect ? "indirect" : "direct"}`;
    Deno.test(`${name} allocates nothing per chain`, () => {
      const bench = new Bench(packed!, inOrder!, indirect);
      const bytes = heapGrowthPerOperation(ROUNDS, (n) => bench.run(n));
      assert(bytes < 1, `${bytes} bytes per chain`);
    });
  }
}

for (const packed of [false, true]) {
  const name = packed ? "PackedRing" : "SplitRing";
  Deno.test(`${name} allocates nothing to ask for register writes`, () => {
    const [ours, theirs] = socketPair();
    const posted = new SocketWrites();
    posted.begin(ours.number, 0);
    const order = new WriteOrder(posted, () => {
      throw new Error("nothing was sent");
    });
    const bench = new Bench(packed, false, true, order);
    const bytes = heapGrowthPerOperation(ROUNDS, (n) => bench.run(n));
    posted.end();
    ours.close();
    theirs.close();
    assert(bytes < 1, `${bytes} bytes per chain`);
  });
}
