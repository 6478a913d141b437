/** Cards that hold, are saved, and go on as another card. */

import { assert, assertEquals, assertThrows } from "@std/assert";
import fc from "fast-check";
import { Errno } from "../../../src/core/errno.ts";
import { F, STATUS } from "../../../src/testing/virtio_defs.ts";
import type { DriverQueue } from "../../../src/testing/virtio_driver.ts";
import { ringFeatures, VIRTIO_DEFAULTS } from "../../../src/virtio/options.ts";
import {
  ALL_OFFLOADS,
  frame,
  MAC,
  NF,
  OF,
  PEER_MAC,
  Rig,
  type RigOptions,
  taggedFrame,
  VECTOR,
} from "./harness.ts";

const SEED = 0x6e65;
const BUFFERS = 64;
const OTHER_MAC = [0x02, 0, 0, 0, 0, 7];
const MULTICAST = [0x01, 0, 0x5e, 1, 2, 3];
const FRAME_BYTES = 60;

function numbered(n: number): Uint8Array {
  const bytes = frame(FRAME_BYTES);
  new DataView(bytes.buffer).setUint32(40, n);
  return bytes;
}

function numberOf(bytes: Uint8Array): number {
  return new DataView(bytes.buffer, bytes.byteOffset).getUint32(40);
}

function deviceStatus(rig: Rig): number {
  return rig.driver.readConfig(6, 2);
}

function mac(rig: Rig): number[] {
  return MAC.map((_, i) => rig.driver.readConfig(i, 1));
}

/** Moves a card and lets it go on. */
function moveOn(rig: Rig): void {
  rig.move();
  rig.device.start();
  rig.settle();
}

type Step =
  | { kind: "arrive"; count: number; at: "once" | "later" }
  | { kind: "post"; count: number }
  | { kind: "transmit"; count: number; at: "once" | "later" }
  | { kind: "block" }
  | { kind: "writable" }
  | { kind: "collect" }
  | { kind: "hold" }
  | { kind: "start" }
  | { kind: "move" };

const count = fc.integer({ min: 1, max: 6 });
const at = fc.constantFrom("once" as const, "later" as const);
const steps: fc.Arbitrary<Step[]> = fc.array(
  fc.oneof(
    fc.record({ kind: fc.constant("arrive" as const), count, at }),
    fc.record({ kind: fc.constant("post" as const), count }),
    fc.record({ kind: fc.constant("transmit" as const), count, at }),
    fc.constantFrom(
      { kind: "block" as const },
      { kind: "writable" as const },
      { kind: "collect" as const },
      { kind: "hold" as const },
      { kind: "start" as const },
      { kind: "move" as const },
    ),
  ),
  { minLength: 20, maxLength: 80 },
);

/** Traffic both ways, numbered. */
class Traffic {
  readonly rig: Rig;
  readonly received: number[] = [];
  #arrived = 0;
  #transmitted = 0;
  #posted = 0;
  #queued = 0;
  #holds = false;
  #sentAtHold = 0;

  constructor(options: RigOptions) {
    this.rig = new Rig(options);
  }

  run(step: Step): void {
    const { rig } = this;
    switch (step.kind) {
      case "arrive":
        for (let i = 0; i < step.count; i++) {
          rig.backend.incoming.push(numbered(this.#arrived++));
        }
        if (step.at === "once") rig.settle();
        break;
      case "post":
        if (this.#posted + step.count > BUFFERS) break;
        this.#posted += step.count;
        rig.postRx(...new Array<number>(step.count).fill(2048));
        break;
      case "transmit":
        this.#transmit(step.count, step.at);
        break;
      case "block":
        rig.backend.sendResults.push(-Errno.EAGAIN);
        break;
      case "writable":
        rig.backend.peer?.onWritable();
        rig.settle();
        break;
      case "collect":
        this.#collect();
        break;
      case "hold":
        this.#collect();
        assertEquals(rig.device.hold!(), 0);
        this.#beginHold();
        break;
      case "start":
        this.#holds = false;
        rig.device.start();
        rig.settle();
        break;
      case "move":
        this.#collect();
        rig.move();
        this.#beginHold();
        break;
      default:
        step satisfies never;
    }
    if (this.#holds) {
      assertEquals(rig.backend.sent.length, this.#sentAtHold);
      assert(!rig.rx.ring.hasUsed, "a frame came in");
    }
  }

  /** Everything arrives in the end, with no more notifications than the card asked for. */
  finish(): void {
    const { rig } = this;
    rig.backend.sendResults.length = 0;
    this.run({ kind: "start" });
    this.run({ kind: "writable" });
    this.#collect();
    while (this.received.length < this.#arrived) {
      const before = this.received.length;
      this.run({ kind: "post", count: 8 });
      this.#collect();
      assert(this.received.length > before, "a frame was lost");
    }
    assertEquals(this.received, upTo(this.#arrived));
    assertEquals(rig.backend.sent.map(numberOf), upTo(this.#transmitted));
    assertEquals(this.#queued, 0);
    assertEquals(rig.counter("rxPackets"), this.#arrived);
    assertEquals(rig.counter("txPackets"), this.#transmitted);
    rig.close();
  }

  #beginHold(): void {
    this.#holds = true;
    this.#sentAtHold = this.rig.backend.sent.length;
  }

  #transmit(count: number, at: "once" | "later"): void {
    const { rig } = this;
    if (this.#queued + count > BUFFERS) return;
    this.#queued += count;
    for (let i = 0; i < count; i++) {
      rig.queueTx(
        Uint8Array.from([
          ...new Uint8Array(12),
          ...numbered(this.#transmitted++),
        ]),
      );
    }
    rig.tx.flush();
    if (at === "once") rig.settle();
  }

  #collect(): void {
    for (const { frame } of this.rig.received()) {
      this.received.push(numberOf(frame));
      this.#posted--;
    }
    this.#queued -= this.rig.reclaim();
  }
}

function upTo(count: number): number[] {
  return Array.from({ length: count }, (_, i) => i);
}

const FORMATS: readonly (readonly [name: string, features: number[]])[] = [
  ["split rings", [...Object.values(NF), F.RING_RESET]],
  ["EVENT_IDX and IN_ORDER", [
    ...Object.values(NF),
    F.RING_EVENT_IDX,
    F.IN_ORDER,
  ]],
  ["packed rings without MRG_RXBUF", [
    F.RING_PACKED,
    NF.MTU,
    NF.STATUS,
  ]],
  ["packed rings with EVENT_IDX", [
    ...Object.values(NF),
    F.RING_PACKED,
    F.RING_EVENT_IDX,
  ]],
];

for (const [name, features] of FORMATS) {
  Deno.test(`VirtioNet that moves passes every frame on once and in order: ${name}`, () => {
    fc.assert(
      fc.property(steps, (script) => {
        const traffic = new Traffic({
          features,
          queueSize: BUFFERS,
          ringFeatures: ringFeatures({ ...VIRTIO_DEFAULTS, packed: true }),
        });
        for (const step of script) traffic.run(step);
        traffic.finish();
      }),
      { seed: SEED, numRuns: 80 },
    );
  });
}

Deno.test("VirtioNet holds at once although its network takes nothing", () => {
  for (const moves of [false, true]) {
    using rig = new Rig();
    rig.backend.sendResults.push(-Errno.EAGAIN);
    rig.transmit(numbered(0), numbered(1));
    assertEquals(rig.counter("txBlocked"), 1);
    assertEquals(rig.device.hold!(), 0);
    rig.backend.peer!.onWritable();
    rig.settle();
    assertEquals(rig.backend.sent.length, 0);
    if (moves) rig.move();
    rig.device.start();
    rig.settle();
    assertEquals(rig.backend.sent.map(numberOf), [0, 1]);
    assertEquals(rig.reclaim(), 2);
  }
});

Deno.test("VirtioNet that held and goes on where it is does not start its network anew", () => {
  using rig = new Rig();
  rig.postRx(2048, 2048);
  assertEquals(rig.device.hold!(), 0);
  assertEquals(rig.backend.receiving, false);
  rig.arrive(numbered(7));
  assertEquals(rig.received(), []);
  rig.device.start();
  rig.settle();
  assertEquals(rig.received().map((it) => numberOf(it.frame)), [7]);
  assertEquals(rig.backend.starts, 1);
  assertEquals(rig.counter("rxStarved"), 0);
});

const MQ_FEATURES = [...Object.values(NF), OF.MQ, F.RING_RESET];

function post(rig: Rig, queue: DriverQueue, buffers: number): void {
  for (let i = 0; i < buffers; i++) {
    queue.ring.begin(1);
    queue.ring.writable(rig.ram.alloc(2048, 1), 2048);
    queue.ring.end();
  }
  queue.flush();
  rig.settle();
}

Deno.test("VirtioNet that moves keeps its queue pairs, and the frames that wait on each", () => {
  using rig = new Rig({ queuePairs: 4, features: MQ_FEATURES });
  assertEquals(rig.command([4, 0, 3, 0]), 0);
  for (const { rx } of rig.pairs) post(rig, rx, 8);
  const counts = [1, 2, 3];
  rig.device.hold!();
  counts.forEach((count, pair) => {
    for (let i = 0; i < count; i++) {
      rig.backend.incomingOn[pair]!.push(numbered(i));
    }
  });
  rig.settle();
  rig.move();
  assertEquals(rig.backend.activePairs, 3);
  rig.device.start();
  rig.settle();
  assertEquals(rig.backend.activePairs, 3);
  counts.forEach((count, pair) => {
    const { ring } = rig.pairs[pair]!.rx;
    for (let i = 0; i < count; i++) assert(ring.take());
    assert(!ring.take());
  });
  moveOn(rig);
  assertEquals(rig.counter("pair2.rxPackets"), 3);
  assertEquals(rig.counter("pair2.rxBytes"), 3 * FRAME_BYTES);
  rig.backend.incomingOn[3]!.push(numbered(0));
  assertEquals(rig.command([4, 0, 4, 0]), 0);
  rig.settle();
  assert(rig.pairs[3]!.rx.ring.take());
});

Deno.test("VirtioNet that opens its network anew makes the driver's choices there", () => {
  using rig = new Rig({
    queuePairs: 4,
    offloads: ALL_OFFLOADS,
    features: [...MQ_FEATURES, ...Object.values(OF)],
  });
  assertEquals(rig.command([4, 0, 3, 0]), 0);
  assertEquals(rig.command([5, 0, 2, 0, 0, 0, 0, 0, 0, 0]), 0);
  rig.move(true);
  assertEquals([rig.backend.activePairs, rig.backend.givenOffloads], [-1, -1]);
  rig.device.start();
  assertEquals([rig.backend.activePairs, rig.backend.givenOffloads], [3, 1]);
});

Deno.test("VirtioNet that moves keeps filters, VLANs and its address", () => {
  using rig = new Rig();
  rig.postRx(...new Array<number>(32).fill(2048));
  rig.command([0, 0, 0]);
  rig.command([1, 1, ...OTHER_MAC]);
  rig.command([1, 0, 1, 0, 0, 0, ...PEER_MAC, 1, 0, 0, 0, ...MULTICAST]);
  rig.command([2, 0, 5, 0]);
  rig.command([2, 0, 0xff, 0x0f]);
  const frames = [
    frame(60, 1, OTHER_MAC),
    frame(60, 2, MAC),
    frame(60, 3, PEER_MAC),
    frame(60, 4, MULTICAST),
    frame(60, 5, [0x01, 0, 0x5e, 1, 2, 4]),
    taggedFrame(60, 5, OTHER_MAC),
    taggedFrame(60, 6, OTHER_MAC),
    taggedFrame(60, 4095, OTHER_MAC),
    frame(60, 6, [0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
  ];
  rig.arrive(...frames);
  const before = rig.received().map((it) => it.frame);
  assertEquals(before.length, 6);
  moveOn(rig);
  assertEquals(mac(rig), OTHER_MAC);
  rig.arrive(...frames);
  assertEquals(rig.received().map((it) => it.frame), before);
  moveOn(rig);
  rig.driver.reset();
  assertEquals(mac(rig), [...MAC]);
});

Deno.test("VirtioNet that moves keeps an address table that overflowed, and each mode", () => {
  using rig = new Rig();
  const many = Array.from({ length: 65 }, (_, i) => [2, 0, 0, 0, 1, i]).flat();
  rig.command([0, 0, 0]);
  rig.command([1, 0, 65, 0, 0, 0, ...many, 0, 0, 0, 0]);
  rig.command([0, 5, 1]);
  rig.postRx(...new Array<number>(8).fill(2048));
  moveOn(rig);
  rig.arrive(frame(60, 1, [4, 4, 4, 4, 4, 4]));
  assertEquals(rig.received().length, 1);
  rig.arrive(frame(60, 1, new Array(6).fill(0xff)));
  assertEquals(rig.received().length, 0);
});

Deno.test("VirtioNet that moves keeps what is left to the driver", () => {
  const GSO = [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0];
  using rig = new Rig({
    offloads: ALL_OFFLOADS,
    features: [...Object.values(NF), ...Object.values(OF)],
  });
  rig.postRx(...new Array<number>(64).fill(2048));
  assertEquals(rig.backend.givenOffloads, 0x7f);
  moveOn(rig);
  assertEquals(rig.backend.givenOffloads, 0x7f);
  rig.arrive({ header: GSO, frame: frame(3000) });
  assertEquals(rig.received().map((it) => it.frame.length), [3000]);
  // GUEST_CSUM only.
  assertEquals(rig.command([5, 0, 2, 0, 0, 0, 0, 0, 0, 0]), 0);
  assertEquals(rig.backend.givenOffloads, 1);
  moveOn(rig);
  assertEquals(rig.backend.givenOffloads, 1);
  rig.arrive({ header: GSO, frame: frame(3000) });
  assertEquals(rig.received(), []);
  rig.queueTx(Uint8Array.from([...GSO, ...frame(3000)]));
  rig.tx.flush();
  rig.settle();
  assertEquals(rig.counter("txGsoPackets"), 1);
});

const COALESCING = [...Object.values(NF), OF.VQ_NOTF_COAL, OF.NOTF_COAL];
const LIMITS = [100, 0, 0, 0, 0x40, 0x42, 0x0f, 0];

Deno.test("VirtioNet sends an interrupt that it kept back when it holds, and keeps the limits", () => {
  using rig = new Rig({ features: COALESCING });
  rig.postRx(...new Array<number>(16).fill(2048));
  rig.command([6, 1, ...LIMITS]);
  rig.command([6, 2, 1, 0, 0, 0, 9, 0, 0, 0, 8, 0, 0, 0]);
  rig.interrupts(VECTOR.RX);
  rig.arrive(numbered(0), numbered(1));
  assertEquals(rig.interrupts(VECTOR.RX), 0);
  assertEquals(rig.device.hold!(), 0);
  assertEquals(rig.interrupts(VECTOR.RX), 1);
  assertEquals(rig.loop.timerCount, 0);
  moveOn(rig);
  assertEquals(rig.interrupts(VECTOR.RX), 0);
  assertEquals(rig.query([6, 3, 0, 0, 0, 0], 9), [0, ...LIMITS]);
  assertEquals(
    rig.query([6, 3, 1, 0, 0, 0], 9),
    [0, 9, 0, 0, 0, 8, 0, 0, 0],
  );
  rig.arrive(numbered(2));
  assertEquals(rig.interrupts(VECTOR.RX), 0);
  rig.loop.advance(1000);
  assertEquals(rig.interrupts(VECTOR.RX), 1);
});

Deno.test("VirtioNet that is stopped keeps the interrupt for where it goes on", () => {
  using rig = new Rig({ features: COALESCING });
  rig.postRx(...new Array<number>(16).fill(2048));
  rig.command([6, 1, ...LIMITS]);
  rig.arrive(numbered(0));
  rig.interrupts(VECTOR.RX);
  rig.device.stop();
  rig.move();
  assertEquals(rig.interrupts(VECTOR.RX), 0);
  rig.device.start();
  assertEquals(rig.interrupts(VECTOR.RX), 1);
});

Deno.test("VirtioNet that moves keeps its link", () => {
  using rig = new Rig();
  rig.device.commands!.link!.run(["down"]);
  rig.transmit(numbered(0));
  moveOn(rig);
  assertEquals(deviceStatus(rig) & 1, 0);
  assertEquals(rig.backend.peer, null);
  rig.transmit(numbered(1));
  assertEquals(rig.reclaim(), 2);
  assertEquals(rig.counter("txDroppedLinkDown"), 2);
  // The driver is told, and its network begins, when it goes on.
  rig.device.hold!();
  rig.interrupts(VECTOR.CONFIG);
  rig.device.commands!.link!.run(["up"]);
  assertEquals(rig.interrupts(VECTOR.CONFIG), 1);
  assertEquals(rig.backend.peer, null);
  rig.move();
  // Up, and to be announced.
  assertEquals(deviceStatus(rig), 3);
  rig.device.start();
  rig.settle();
  assertEquals(rig.backend.starts, 1);
  rig.postRx(2048, 2048);
  rig.arrive(numbered(3));
  assertEquals(rig.received().length, 1);
  assertEquals(rig.command([3, 0]), 0);
  moveOn(rig);
  assertEquals(deviceStatus(rig), 1);
});

Deno.test("VirtioNet whose link goes down while it holds drops what waits", () => {
  using rig = new Rig();
  rig.postRx(2048, 2048);
  rig.device.hold!();
  rig.arrive(numbered(0));
  rig.move();
  rig.device.commands!.link!.run(["down"]);
  rig.device.commands!.link!.run(["up"]);
  rig.device.start();
  rig.settle();
  assertEquals(rig.received().length, 0);
  rig.arrive(numbered(1));
  assertEquals(rig.received().length, 1);
});

Deno.test("VirtioNet that holds serves no command until it goes on", () => {
  using rig = new Rig();
  rig.device.hold!();
  assertThrows(() => rig.command([1, 1, ...OTHER_MAC]));
  assertEquals(mac(rig), [...MAC]);
  moveOn(rig);
  assertEquals(mac(rig), OTHER_MAC);
  assert(rig.ctrl!.ring.take());
});

Deno.test("VirtioNet that holds can be reset and started by its driver", () => {
  using rig = new Rig();
  rig.device.hold!();
  rig.arrive(numbered(0));
  rig.driver.reset();
  assertEquals(rig.backend.incoming.length, 0);
  rig.bringUp();
  assertEquals(rig.backend.peer, null);
  rig.backend.incoming.push(numbered(1));
  rig.postRx(2048, 2048);
  moveOn(rig);
  assertEquals(rig.received().map((it) => numberOf(it.frame)), [1]);
});

Deno.test("VirtioNet that failed moves, and its driver resets it there", () => {
  using rig = new Rig();
  rig.postRx(4);
  rig.arrive(numbered(0));
  assert(rig.needsReset);
  rig.move();
  assertEquals(rig.driver.status & STATUS.NEEDS_RESET, STATUS.NEEDS_RESET);
  rig.device.start();
  rig.settle();
  assertEquals(rig.backend.peer, null);
  rig.bringUp();
  rig.postRx(2048, 2048);
  rig.arrive(numbered(1));
  assertEquals(rig.received().length, 1);
});

Deno.test("VirtioNet without a driver moves", () => {
  using rig = new Rig({ bare: true });
  moveOn(rig);
  assertEquals(rig.backend.peer, null);
  rig.bringUp();
  rig.postRx(2048, 2048);
  rig.arrive(numbered(1));
  assertEquals(rig.received().length, 1);
});

Deno.test("VirtioNet counts on where it moves", () => {
  using rig = new Rig();
  rig.postRx(2048, 2048, 2048);
  rig.arrive(numbered(0));
  rig.transmit(numbered(0));
  rig.command([9, 9, 9]);
  const before = rig.device.counters();
  for (const name of ["rxPackets", "txBytes", "ctrlErrors", "kicks"]) {
    assert(before[name]! > 0, name);
  }
  rig.move();
  assertEquals(rig.device.counters(), before);
  rig.device.start();
  rig.arrive(numbered(1));
  assertEquals(rig.counter("rxPackets"), 2);
});

Deno.test("VirtioNet.load refuses what cannot be", () => {
  using rig = new Rig({ queuePairs: 2, features: MQ_FEATURES });
  rig.device.hold!();
  const good = rig.card.save();
  const { filter, coalescing } = good.body;
  const spoilt = (fields: object) => ({
    ...good,
    body: { ...good.body, ...fields },
  });
  const bad: [unknown, string][] = [
    [null, "it is no saved state"],
    [[], "it is no saved state"],
    [{ ...good, version: 2 }, "has version 2, 1 can be read"],
    [{ ...good, body: {} }, "has no permanentMac"],
    [spoilt({ mac: "52:54:00" }), "its mac is no address"],
    [spoilt({ mac: 3 }), "its mac cannot be"],
    [spoilt({ permanentMac: "" }), "its permanentMac is no address"],
    [spoilt({ linkUp: 1 }), "its linkUp cannot be"],
    [spoilt({ announce: null }), "its announce cannot be"],
    [spoilt({ activePairs: 3 }), "its activePairs cannot be"],
    [spoilt({ activePairs: 0 }), "0 queue pairs are in use"],
    [spoilt({ guestOffloads: -1 }), "its guestOffloads cannot be"],
    [spoilt({ filter: { ...filter, modes: [1] } }), "its modes cannot be"],
    [
      spoilt({ filter: { ...filter, unicast: ["x"] } }),
      "not all of unicast are addresses",
    ],
    [spoilt({ filter: { ...filter, vlans: [4096] } }), "its vlans cannot be"],
    [spoilt({ filter: 0 }), "it is no saved state"],
    [
      spoilt({ coalescing: { ...coalescing, queues: [] } }),
      "has 0 of queues, 4 are wanted",
    ],
    [
      spoilt({ coalescing: { ...coalescing, rx: { maxPackets: 1 } } }),
      "has no maxUsecs",
    ],
  ];
  for (const [state, message] of bad) {
    const error = assertThrows(() => rig.card.load(state), Error, message);
    assert(/^Cannot load .*the network card: /.test(error.message));
  }
  rig.card.load(good);
  assertEquals(rig.card.save(), good);
});
