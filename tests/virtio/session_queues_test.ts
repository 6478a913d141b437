import { assert, assertEquals } from "@std/assert";
import { ArrayMemory } from "../../src/memory/array_memory.ts";
import { fakeContext } from "../../src/testing/fake_context.ts";
import type { VirtioDevice } from "../../src/virtio/device.ts";
import { Chain } from "../../src/virtio/queue/queue.ts";
import { Features, VIRTIO_F } from "../../src/virtio/features.ts";
import { SessionQueues } from "../../src/virtio/session/queues.ts";
import { KickPath } from "../../src/virtio/session/queues.ts";
import { EchoDevice } from "./echo_device.ts";
import { NaivePackedRing } from "./naive_packed_ring.ts";
import { NaiveRing } from "./naive_ring.ts";
import { BASE, DATA, LENGTH } from "./ring_fixture.ts";

const SIZE = 8;
const PLAIN = Features.of(VIRTIO_F.VERSION_1);
const PACKED = Features.of(VIRTIO_F.VERSION_1, VIRTIO_F.RING_PACKED);

/** Two queues of a device that keeps what it finds. */
class Rig {
  readonly context = fakeContext({ memory: new ArrayMemory([]) });
  readonly device: EchoDevice;
  readonly forwarded: number[] = [];
  readonly notified: number[] = [];
  readonly queues: SessionQueues;
  readonly #buffer: ArrayBuffer;

  constructor(polled = false) {
    this.#buffer = this.context.memory.map({ iova: BASE, lengthBytes: LENGTH });
    this.device = new EchoDevice(this.context, {
      interrupt() {},
      configChanged() {},
      fail: (reason) => {
        throw new Error(reason);
      },
    }, [SIZE, SIZE]);
    this.device.keeps = true;
    this.queues = new SessionQueues(this.context, {
      sizes: this.device.queueSizes,
      handler: this.device,
      forward: (index) => this.forwarded.push(index),
      polled,
      notifyUsed: (index) => this.notified.push(index),
      fail: (reason) => {
        throw new Error(reason);
      },
    });
  }

  /** Enables a queue, whose driver is returned. */
  enable(index: number): NaiveRing {
    const at = this.#enable(index, PLAIN);
    const places = { desc: at, avail: at + 0x4000, used: at + 0x8000 };
    return new NaiveRing(this.#buffer, BASE, SIZE, places, false);
  }

  /** As {@linkcode Rig.enable}, a packed one. */
  enablePacked(index: number): NaivePackedRing {
    const at = this.#enable(index, PACKED);
    const places = { desc: at, driver: at + 0x4000, device: at + 0x8000 };
    return new NaivePackedRing(this.#buffer, BASE, SIZE, places);
  }

  #enable(index: number, features: Features): number {
    const at = BASE + index * 0x1_0000;
    const result = this.queues.rings[index]!.enable(features, {
      size: SIZE,
      descIova: at,
      availIova: at + 0x4000,
      usedIova: at + 0x8000,
    });
    if (result < 0) throw new Error(this.queues.rings[index]!.lastError);
    this.queues.admit(index);
    return at;
  }

  run(features = PLAIN): void {
    this.queues.start(features);
    this.settle();
  }

  tell(op: "halt" | "pause" | "resume" | "hold" | "reset"): number {
    return this.queues.handle({ op });
  }

  /** Number of chains the driver waits for. */
  get inFlight(): number {
    return this.queues.rings.reduce((sum, ring) => sum + ring.outstanding, 0);
  }

  /** Messages to the device since the last call. */
  settle(): string[] {
    this.context.loop.settle();
    return this.device.events.splice(0).filter((it) => it.startsWith("notify"));
  }
}

function offer(ring: NaiveRing): void {
  ring.add([{ iova: DATA, length: 4 }]);
}

Deno.test("SessionQueues serves an enabled queue while the device runs", () => {
  const rig = new Rig();
  rig.enable(0);
  rig.queues.kick(0, KickPath.EVENTFD);
  assertEquals(rig.settle(), [], "the device does not run");
  rig.queues.start(PLAIN);
  assertEquals(rig.settle(), ["notify 0"]);
  rig.queues.kick(1, KickPath.MESSAGE);
  rig.queues.kick(2, KickPath.MESSAGE);
  assertEquals(rig.settle(), [], "not enabled, and not there");
  rig.queues.kick(0, KickPath.PAGE);
  rig.queues.kick(0, KickPath.PAGE);
  rig.tell("halt");
  assertEquals(rig.settle(), [], "the device has given up");
  const { kicks, eventFdKicks, messageKicks, pageKicks } = rig.queues.counters;
  assertEquals([kicks, eventFdKicks, messageKicks, pageKicks], [4, 1, 1, 2]);
});

Deno.test("SessionQueues serves nothing while stopped or held, and everything afterwards", () => {
  const rig = new Rig();
  const ring = rig.enable(0);
  rig.run();
  for (const pause of ["pause", "hold"] as const) {
    rig.tell(pause);
    offer(ring);
    rig.queues.kick(0, KickPath.EVENTFD);
    assert(!rig.queues.poll());
    assertEquals(rig.settle(), []);
    rig.tell("resume");
    assertEquals([rig.settle(), rig.inFlight], [["notify 0"], 1]);
    rig.device.complete(rig.queues.rings[0]!);
    assertEquals(rig.inFlight, 0);
  }
});

Deno.test("SessionQueues suspends what is enabled while it is stopped", () => {
  const rig = new Rig();
  rig.run();
  rig.tell("pause");
  const ring = rig.enable(0);
  offer(ring);
  const queue = rig.queues.rings[0]!;
  assert(!queue.poll());
  rig.tell("resume");
  assert(queue.poll());
});

Deno.test("SessionQueues leaves suspended what either side gave up", () => {
  const rig = new Rig();
  const ring = rig.enable(0);
  rig.run();
  rig.queues.kick(0, KickPath.EVENTFD);
  rig.tell("halt");
  offer(ring);
  rig.tell("pause");
  rig.tell("resume");
  assert(!rig.queues.rings[0]!.poll());
  assertEquals(rig.settle(), []);
});

Deno.test("SessionQueues counts what a driver waits for, or what a halted device has", () => {
  const rig = new Rig();
  const ring = rig.enable(0);
  rig.run();
  offer(ring);
  offer(ring);
  rig.queues.kick(0, KickPath.EVENTFD);
  rig.settle();
  const queue = rig.queues.rings[0]!;
  queue.push(rig.device.held.shift()!, 0);
  assertEquals(rig.tell("hold"), 2, "one is pushed, but not published");
  rig.tell("halt");
  assertEquals(rig.tell("hold"), 1);
});

Deno.test("SessionQueues goes from packed to split with the features, polled and held as before", () => {
  const rig = new Rig();
  const format = () => rig.queues.rings[0]!.save().format;
  rig.enablePacked(0);
  rig.run(PACKED);
  assertEquals(format(), "packed");
  rig.queues.rings[0]!.suppressed = 2;
  rig.queues.collectCounters();
  rig.queues.collectCounters();
  assertEquals(rig.queues.counters.suppressedInterrupts, 2);
  rig.queues.beginPolling();
  rig.tell("hold");
  rig.tell("reset");
  const ring = rig.enable(0);
  rig.run();
  assertEquals(format(), "split");
  offer(ring);
  assert(!rig.queues.rings[0]!.poll(), "the hold has lasted");
  rig.tell("resume");
  assert(rig.queues.poll());
  assertEquals(ring.usedFlags, 1, "no kick is wanted while polled");
});

Deno.test("SessionQueues owes interrupts while it is paused, once for each queue, and sends them when it goes on", () => {
  const rig = new Rig();
  const [first, second] = rig.queues.rings;
  rig.queues.interrupt(first!);
  assertEquals(rig.notified, [], "the device does not run");
  rig.run();
  rig.queues.interrupt(first!);
  assertEquals([rig.notified.splice(0), rig.queues.owed], [[0], []]);
  rig.tell("pause");
  rig.queues.interrupt(second!);
  rig.queues.interrupt(second!);
  rig.queues.owe(0);
  assertEquals([rig.notified, rig.queues.owed], [[], [0, 1]]);
  rig.tell("resume");
  assertEquals([rig.notified.splice(0), rig.queues.owed], [[0, 1], []]);
  assertEquals(rig.queues.counters.interrupts, 3);
  rig.tell("pause");
  rig.queues.owe(0);
  rig.queues.owe(1);
  rig.queues.handle({ op: "resetQueue", index: 0 });
  assertEquals(rig.queues.owed, [1]);
  rig.tell("halt");
  rig.tell("resume");
  assertEquals([rig.notified, rig.queues.owed], [[], []], "a halted device");
  rig.tell("pause");
  rig.queues.owe(1);
  rig.tell("reset");
  assertEquals(rig.queues.owed, []);
});

Deno.test("SessionQueues finds by polling what nobody told of", () => {
  const rig = new Rig(true);
  const ring = rig.enable(1);
  rig.run();
  assert(!rig.queues.poll());
  offer(ring);
  assert(rig.queues.poll());
  assertEquals(rig.device.events, ["notify 1"]);
  assert(!rig.queues.poll());
  assertEquals([rig.queues.counters.polledKicks, rig.queues.counters.kicks], [
    1,
    0,
  ]);
  offer(ring);
  assert(rig.queues.endPolling());
  assertEquals(rig.settle(), ["notify 1", "notify 1"]);
});

Deno.test("SessionQueues spares a notification of what it has taken", () => {
  const rig = new Rig();
  const ring = rig.enable(0);
  rig.run();
  offer(ring);
  rig.queues.kickUpTo(0, 1, KickPath.PAGE);
  assertEquals(rig.settle(), ["notify 0"]);
  rig.queues.kickUpTo(0, 1, KickPath.PAGE);
  assertEquals(rig.settle(), []);
  rig.queues.kickUpTo(0, 2, KickPath.PAGE);
  assertEquals(rig.settle(), ["notify 0"]);
  assertEquals([rig.queues.counters.lateKicks, rig.queues.counters.pageKicks], [
    1,
    3,
  ]);
});

Deno.test("SessionQueues leaves queues alone that are served elsewhere, and hands their kicks on", () => {
  const rig = new Rig();
  const rings = [rig.enable(0), rig.enable(1)];
  rig.run();
  rig.queues.leaveElsewhere(new Set([1]));
  rings.forEach(offer);
  assertEquals(rig.queues.rings.map((it) => it.poll()), [true, false]);
  rig.queues.kick(0, KickPath.EVENTFD);
  rig.queues.kick(1, KickPath.EVENTFD);
  assertEquals([rig.settle(), rig.forwarded], [["notify 0"], [1]]);
  rig.tell("pause");
  rig.tell("resume");
  offer(rings[1]!);
  assert(!rig.queues.rings[1]!.poll(), "nor after a stop");
  assertEquals(rig.queues.counters.kicks, 1);
});

Deno.test("SessionQueues looks again at a ring that was out of reach when memory changes", () => {
  const rig = new Rig();
  rig.enable(0);
  rig.run();
  rig.queues.rings[0]!.poll();
  const { memory } = rig.context;
  memory.map({ iova: 0, lengthBytes: 0x1000 });
  assertEquals(rig.settle(), [], "the ring was never out of reach");
  memory.unmap(0, 0x1000);
  assertEquals(rig.settle(), [], "another range than the ring's");
  memory.unmap(BASE, LENGTH);
  assertEquals(rig.settle(), []);
  memory.map({ iova: BASE, lengthBytes: LENGTH });
  assertEquals(rig.settle(), ["notify 0"]);
  memory.unmap(BASE, LENGTH);
  rig.queues.close();
  memory.map({ iova: BASE, lengthBytes: LENGTH });
  assertEquals(rig.settle(), []);
});

Deno.test("SessionQueues looks at a queue that was notified of before it was enabled", () => {
  const rig = new Rig();
  rig.run();
  // The notification may have come by another way, before the write that enables the queue.
  rig.queues.kick(0, KickPath.EVENTFD);
  assertEquals(rig.settle(), []);
  offer(rig.enable(0));
  assertEquals([rig.settle(), rig.inFlight], [["notify 0"], 1]);
});

const WAITING = ["split", "packed"].flatMap((format) =>
  ["notification", "poll"].flatMap((way) =>
    ["the queue", "the device"].map((who) => [format, way, who])
  )
);

/** A device that asks itself about each chain that it takes. */
const ASKING: Partial<VirtioDevice> = {
  dependsOnRegisters: () => false,
  notify(queue) {
    const chain = new Chain(new ArrayMemory([]), SIZE);
    do {
      while (queue.pop(chain) > 0) {
        if (queue.settled()) continue;
        queue.unpop(1);
        break;
      }
    } while (queue.enableNotifications());
  },
};

for (const [format, way, who] of WAITING) {
  Deno.test(`SessionQueues: chains of a ${format} ring found by ${way} wait for the register writes before them, for which ${who} asks`, () => {
    const rig = new Rig();
    if (who === "the device") Object.assign(rig.device, ASKING);
    const { posted } = rig.context;
    const isPacked = format === "packed";
    const features = isPacked ? PACKED : PLAIN;
    const ring = isPacked ? rig.enablePacked(0) : rig.enable(0);
    rig.run(features);
    const look = () => {
      if (way === "poll") return rig.queues.poll();
      rig.queues.kick(0, KickPath.EVENTFD);
      return rig.context.loop.turn();
    };
    ring.add([{ iova: DATA, length: 4 }]);
    posted.sent = 1;
    look();
    rig.context.loop.turn();
    assertEquals(rig.inFlight, 0, "the write is still in the socket");
    ring.add([{ iova: DATA, length: 4 }]);
    posted.sent = 2;
    posted.done = 1;
    rig.context.loop.turn();
    assertEquals(rig.inFlight, 1, "only the first is behind it");
    posted.done = 2;
    rig.context.loop.turn();
    assertEquals(rig.inFlight, 2);
    posted.sent = 3;
    look();
    rig.context.loop.settle();
    assertEquals(rig.inFlight, 2, "nothing new, nothing to wait for");
  });
}

Deno.test("SessionQueues lets a queue that depends on no register go on at once", () => {
  const rig = new Rig();
  Object.assign(rig.device, {
    dependsOnRegisters: (queue: number) => queue === 1,
  });
  const rings = [rig.enable(0), rig.enable(1)];
  rig.run();
  rig.context.posted.sent = 1;
  rings.forEach(offer);
  for (const index of [0, 1]) rig.queues.kick(index, KickPath.EVENTFD);
  rig.context.loop.turn();
  assertEquals(rig.queues.rings.map((queue) => queue.inFlight), [1, 0]);
});
