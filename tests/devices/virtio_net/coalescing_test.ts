import { assertEquals } from "@std/assert";
import { F } from "../../../src/testing/virtio_defs.ts";
import { frame, NF, OF, Rig, VECTOR } from "./harness.ts";

const FEATURES = [
  ...Object.values(NF),
  OF.VQ_NOTF_COAL,
  OF.NOTF_COAL,
  F.RING_RESET,
];
const TX_SET = 0;
const RX_SET = 1;
const VQ_SET = 2;
const VQ_GET = 3;

function le32(value: number): number[] {
  return [value & 0xff, (value >> 8) & 0xff, value >> 16 & 0xff, value >>> 24];
}

function limits(maxPackets: number, maxUsecs: number): number[] {
  return [...le32(maxPackets), ...le32(maxUsecs)];
}

function set(rig: Rig, command: number, packets: number, usecs: number) {
  return rig.command([6, command, ...limits(packets, usecs)]);
}

function get(rig: Rig, index: number): number[] {
  return rig.query([6, VQ_GET, index & 0xff, index >> 8, 0xaa, 0xbb], 9);
}

/** A driver that wants an interrupt for whatever happens. */
function makeRig(features = FEATURES): Rig {
  const rig = new Rig({ features });
  rig.postRx(...new Array(64).fill(2048));
  rig.interrupts(VECTOR.RX);
  rig.interrupts(VECTOR.TX);
  return rig;
}

function receive(rig: Rig, count: number): void {
  for (let i = 0; i < count; i++) rig.arrive(frame(60, i));
}

Deno.test("VirtioNet interrupts at once until it is told otherwise", () => {
  using rig = makeRig();
  receive(rig, 3);
  assertEquals(rig.interrupts(VECTOR.RX), 3);
  assertEquals(rig.loop.timerCount, 0);
});

Deno.test("VirtioNet interrupts after so many packets", () => {
  using rig = makeRig();
  assertEquals(set(rig, RX_SET, 4, 1000), 0);
  receive(rig, 3);
  assertEquals(rig.interrupts(VECTOR.RX), 0);
  // The driver can see them all the same.
  assertEquals(rig.received().length, 3);
  receive(rig, 1);
  assertEquals(rig.interrupts(VECTOR.RX), 1);
  assertEquals(rig.loop.timerCount, 0);
  receive(rig, 3);
  assertEquals(rig.interrupts(VECTOR.RX), 0);
});

Deno.test("VirtioNet interrupts after so much time since the first packet", () => {
  using rig = makeRig();
  set(rig, RX_SET, 100, 2000);
  receive(rig, 1);
  rig.loop.advance(1.5);
  receive(rig, 1);
  assertEquals(rig.interrupts(VECTOR.RX), 0);
  rig.loop.advance(0.5);
  assertEquals(rig.interrupts(VECTOR.RX), 1);
  rig.loop.advance(10);
  assertEquals(rig.interrupts(VECTOR.RX), 0);
  receive(rig, 1);
  rig.loop.advance(1.9);
  assertEquals(rig.interrupts(VECTOR.RX), 0);
  rig.loop.advance(0.1);
  assertEquals(rig.interrupts(VECTOR.RX), 1);
});

for (const [packets, usecs] of [[0, 1000], [10, 0], [1, 1000]] as const) {
  Deno.test(`VirtioNet does not wait with ${packets} packets and ${usecs} µs`, () => {
    using rig = makeRig();
    set(rig, RX_SET, packets, usecs);
    receive(rig, 2);
    assertEquals(rig.interrupts(VECTOR.RX), 2);
  });
}

Deno.test("VirtioNet coalesces transmission apart from reception", () => {
  using rig = makeRig();
  assertEquals(set(rig, TX_SET, 3, 1000), 0);
  rig.tx.ring.enableInterrupts();
  rig.transmit(frame(60), frame(60));
  assertEquals(rig.interrupts(VECTOR.TX), 0);
  receive(rig, 1);
  assertEquals(rig.interrupts(VECTOR.RX), 1);
  rig.transmit(frame(60));
  assertEquals(rig.interrupts(VECTOR.TX), 1);
});

Deno.test("VirtioNet makes no interrupt up for a driver that wants none", () => {
  using rig = makeRig();
  set(rig, RX_SET, 4, 1000);
  rig.rx.ring.disableInterrupts();
  receive(rig, 5);
  rig.loop.advance(5);
  assertEquals(rig.interrupts(VECTOR.RX), 0);
  rig.rx.ring.enableInterrupts();
  receive(rig, 1);
  rig.loop.advance(1);
  assertEquals(rig.interrupts(VECTOR.RX), 1);
});

Deno.test("VirtioNet looks at what waits when the limits change", () => {
  using rig = makeRig();
  set(rig, RX_SET, 15, 1_000_000);
  receive(rig, 10);
  assertEquals(rig.interrupts(VECTOR.RX), 0);
  set(rig, RX_SET, 8, 1_000_000);
  assertEquals(rig.interrupts(VECTOR.RX), 1);
  receive(rig, 1);
  set(rig, RX_SET, 8, 2000);
  rig.loop.advance(2);
  assertEquals(rig.interrupts(VECTOR.RX), 1);
  receive(rig, 1);
  set(rig, RX_SET, 0, 0);
  assertEquals(rig.interrupts(VECTOR.RX), 1);
  assertEquals(rig.loop.timerCount, 0);
});

Deno.test("control commands VQ_SET and VQ_GET are about one queue", () => {
  using rig = makeRig();
  assertEquals(get(rig, 0), [0, ...limits(0, 0)]);
  set(rig, RX_SET, 5, 50);
  assertEquals(rig.command([6, VQ_SET, 1, 0, 0, 0, ...limits(7, 70)]), 0);
  assertEquals(get(rig, 0), [0, ...limits(5, 50)]);
  assertEquals(get(rig, 1), [0, ...limits(7, 70)]);
  set(rig, TX_SET, 0xffff_ffff, 0xffff_fffe);
  assertEquals(get(rig, 1), [0, ...limits(0xffff_ffff, 0xffff_fffe)]);
});

Deno.test("control commands of coalescing refuse what is malformed or not negotiated", () => {
  using rig = makeRig();
  for (
    const data of [
      [RX_SET],
      [RX_SET, ...limits(1, 1).slice(1)],
      [TX_SET, ...limits(1, 1), 0],
      [VQ_SET, ...limits(1, 1)],
      [VQ_SET, 0, 0, 0, 0, ...limits(1, 1), 0],
      // The control queue, one that is none, one far away.
      [VQ_SET, 2, 0, 0, 0, ...limits(1, 1)],
      [VQ_SET, 3, 0, 0, 0, ...limits(1, 1)],
      [VQ_SET, 0xff, 0xff, 0, 0, ...limits(1, 1)],
      [4, ...limits(1, 1)],
      [255],
    ]
  ) {
    assertEquals(rig.command([6, ...data]), 1, data.join());
  }
  // No room for the result, too much data, too little, no such queue.
  assertEquals(rig.query([6, VQ_GET, 0, 0, 0, 0], 8), [1]);
  assertEquals(rig.query([6, VQ_GET, 0, 0, 0, 0, 0], 9), [1]);
  assertEquals(rig.query([6, VQ_GET, 0, 0, 0], 9), [1]);
  assertEquals(get(rig, 2), [1]);
  rig.bringUp(FEATURES.filter((bit) => bit !== OF.NOTF_COAL));
  assertEquals(set(rig, RX_SET, 1, 1), 1);
  assertEquals(get(rig, 0), [0, ...limits(0, 0)]);
  rig.bringUp(FEATURES.filter((bit) => bit !== OF.VQ_NOTF_COAL));
  assertEquals(set(rig, RX_SET, 1, 1), 0);
  assertEquals(get(rig, 0), [1]);
  assertEquals(rig.needsReset, false);
});

Deno.test("control commands VQ_SET and VQ_GET refuse a queue that is not enabled", () => {
  using rig = makeRig();
  rig.driver.resetQueue(rig.rx);
  assertEquals(get(rig, 0), [1]);
  assertEquals(rig.command([6, VQ_SET, 0, 0, 0, 0, ...limits(1, 1)]), 1);
});

Deno.test("VirtioNet gives a queue that begins anew what all of its kind have", () => {
  using rig = makeRig();
  set(rig, RX_SET, 5, 50);
  rig.command([6, VQ_SET, 0, 0, 0, 0, ...limits(7, 70)]);
  rig.driver.resetQueue(rig.rx);
  rig.driver.reenableQueue(rig.rx);
  assertEquals(get(rig, 0), [0, ...limits(5, 50)]);
});

Deno.test("VirtioNet owes nothing after a reset", () => {
  using rig = makeRig();
  set(rig, RX_SET, 10, 1000);
  receive(rig, 1);
  rig.driver.resetQueue(rig.rx);
  rig.loop.advance(5);
  assertEquals(rig.interrupts(VECTOR.RX), 0);
  rig.driver.reenableQueue(rig.rx);
  rig.postRx(2048);
  receive(rig, 1);
  rig.bringUp(FEATURES);
  rig.loop.advance(5);
  assertEquals(rig.interrupts(VECTOR.RX), 0);
  assertEquals(get(rig, 0), [0, ...limits(0, 0)]);
  assertEquals(rig.loop.timerCount, 0);
});
