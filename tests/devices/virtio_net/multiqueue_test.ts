import { assert, assertEquals, assertThrows } from "@std/assert";
import { Errno } from "../../../src/core/errno.ts";
import { F } from "../../../src/testing/virtio_defs.ts";
import type { DriverQueue } from "../../../src/testing/virtio_driver.ts";
import { frame, HDR_BYTES, NF, OF, Rig } from "./harness.ts";

const PAIRS = 4;
const FEATURES = [...Object.values(NF), OF.MQ, F.RING_RESET];

function makeRig(): Rig {
  return new Rig({ queuePairs: PAIRS, features: FEATURES });
}

function setPairs(rig: Rig, count: number): number {
  return rig.command([4, 0, count & 0xff, count >> 8]);
}

function post(rig: Rig, queue: DriverQueue, buffers: number): void {
  for (let i = 0; i < buffers; i++) {
    queue.ring.begin(1);
    queue.ring.writable(rig.ram.alloc(2048, 1), 2048);
    queue.ring.end();
  }
  queue.flush();
  rig.settle();
}

function transmitOn(rig: Rig, pair: number, ...frames: Uint8Array[]): void {
  const { tx } = rig.pairs[pair]!;
  for (const bytes of frames) {
    const at = rig.ram.alloc(HDR_BYTES + bytes.length, 1);
    rig.ram.at(at, HDR_BYTES).fill(0);
    rig.ram.write(at + HDR_BYTES, bytes);
    tx.ring.begin(1);
    tx.ring.readable(at, HDR_BYTES + bytes.length);
    tx.ring.end();
  }
  tx.flush();
  rig.settle();
}

function taken(queue: DriverQueue): number {
  let count = 0;
  while (queue.ring.take()) count++;
  return count;
}

Deno.test("VirtioNet has a pair of queues each and the control queue last", () => {
  using rig = makeRig();
  assertEquals(rig.driver.numQueues, 2 * PAIRS + 1);
  assertEquals(rig.driver.queueMaxSize(2 * PAIRS - 1), 256);
  assertEquals(rig.driver.queueMaxSize(2 * PAIRS), 64);
  assertEquals(rig.driver.readConfig(8, 2), PAIRS);
  assert(rig.driver.has(OF.MQ));
  assertEquals(rig.backend.activePairs, 1);
});

Deno.test("VirtioNet offers MQ only with several pairs", () => {
  using rig = new Rig();
  assertEquals([...rig.driver.offeredFeatures()].includes(OF.MQ), false);
});

Deno.test("VirtioNet cannot have more pairs than its back end", () => {
  assertThrows(
    () => new Rig({ queuePairs: 2, backendPairs: 1 }),
    RangeError,
    "Cannot have 2 queue pairs: scripted has 1",
  );
});

Deno.test("VirtioNet has the control queue at 2 for a driver without MQ", () => {
  using rig = new Rig({
    queuePairs: PAIRS,
    features: FEATURES.filter((bit) => bit !== OF.MQ),
  });
  assertEquals(rig.driver.queueMaxSize(2), 256);
  assertEquals(rig.command([0, 0, 1]), 0);
  assertEquals(setPairs(rig, 1), 1);
  // A driver may chain as much there as in any queue of that size.
  const at = rig.ram.alloc(512, 1);
  rig.ram.at(at, 512).fill(0);
  rig.ctrl!.ring.begin(201);
  for (let i = 0; i < 200; i++) rig.ctrl!.ring.readable(at + i * 2, 1);
  rig.ctrl!.ring.writable(at + 500, 1);
  rig.ctrl!.ring.end();
  rig.ctrl!.flush();
  rig.settle();
  assertEquals(rig.needsReset, false);
  assertEquals(taken(rig.ctrl!), 1);
  // The other queues are nobody's.
  const other = rig.driver.setupQueue(3);
  post(rig, other, 1);
  assertEquals(taken(other), 0);
});

Deno.test("control command VQ_PAIRS_SET takes 1 to the maximum", () => {
  using rig = makeRig();
  for (const count of [1, 2, PAIRS, 3, 1]) {
    assertEquals(setPairs(rig, count), 0);
    assertEquals(rig.backend.activePairs, count);
  }
  for (const count of [0, PAIRS + 1, 0x8000, 0xffff]) {
    assertEquals(setPairs(rig, count), 1);
  }
  assertEquals(rig.backend.activePairs, 1);
});

Deno.test("control command VQ_PAIRS_SET refuses what is malformed or cannot be", () => {
  using rig = makeRig();
  for (
    const data of [[4, 0], [4, 0, 2], [4, 0, 2, 0, 0], [4, 1, 2, 0], [
      4,
      2,
      2,
      0,
    ]]
  ) {
    assertEquals(rig.command(data), 1, data.join());
  }
  rig.backend.result = -Errno.EINVAL;
  assertEquals(setPairs(rig, 2), 1);
  rig.backend.result = 0;
  assertEquals(rig.backend.activePairs, 1);
});

Deno.test("VirtioNet begins with one pair again after a reset", () => {
  using rig = makeRig();
  setPairs(rig, PAIRS);
  rig.bringUp(FEATURES);
  assertEquals(rig.backend.activePairs, 1);
  post(rig, rig.pairs[1]!.rx, 2);
  // From a back end that does not know.
  rig.backend.incomingOn[1]!.push(frame(60));
  rig.backend.peer!.onReadable(1);
  assertEquals(taken(rig.pairs[1]!.rx), 0);
});

Deno.test("VirtioNet receives on the pair that the back end says", () => {
  using rig = makeRig();
  setPairs(rig, PAIRS);
  for (const { rx } of rig.pairs) post(rig, rx, 4);
  for (let pair = 0; pair < PAIRS; pair++) {
    for (let i = 0; i <= pair; i++) {
      rig.backend.incomingOn[pair]!.push(frame(60, pair));
    }
  }
  for (let v = 1; v <= 2 * PAIRS; v++) rig.interrupts(v);
  rig.settle();
  for (let pair = 0; pair < PAIRS; pair++) {
    assertEquals(taken(rig.pairs[pair]!.rx), pair + 1);
    // One interrupt for the batch of each queue.
    assertEquals(rig.interrupts(2 * pair + 1), 1);
    assertEquals(rig.counter(`pair${pair}.rxPackets`), pair + 1);
    assertEquals(rig.counter(`pair${pair}.rxBytes`), 60 * (pair + 1));
  }
  assertEquals(rig.counter("rxPackets"), 10);
});

Deno.test("VirtioNet waits for buffers on one pair while others go on", () => {
  using rig = makeRig();
  setPairs(rig, 2);
  post(rig, rig.pairs[0]!.rx, 4);
  rig.backend.incomingOn[1]!.push(frame(60, 1), frame(60, 2));
  rig.settle();
  assertEquals(rig.backend.receivingOn.slice(0, 2), [true, false]);
  rig.arrive(frame(60, 3));
  assertEquals(taken(rig.pairs[0]!.rx), 1);
  post(rig, rig.pairs[1]!.rx, 2);
  assertEquals(taken(rig.pairs[1]!.rx), 2);
  assertEquals(rig.backend.receivingOn.slice(0, 2), [true, false]);
});

Deno.test("VirtioNet sends on the pair that a frame came on, given up or not", () => {
  using rig = makeRig();
  setPairs(rig, PAIRS);
  transmitOn(rig, 2, frame(60, 1), frame(61, 2));
  transmitOn(rig, 0, frame(62, 3));
  transmitOn(rig, 3, frame(63, 4));
  setPairs(rig, 1);
  transmitOn(rig, 1, frame(64, 5));
  assertEquals(rig.backend.sentOn, [2, 2, 0, 3, 1]);
  assertEquals(
    Array.from({ length: PAIRS }, (_, i) => rig.counter(`pair${i}.txPackets`)),
    [1, 1, 2, 1],
  );
  assertEquals(rig.counter("pair2.txBytes"), 121);
  assertEquals(rig.pairs.map(({ tx }) => taken(tx)), [1, 1, 2, 1]);
});

Deno.test("VirtioNet waits for the back end on one pair while others go on", () => {
  using rig = makeRig();
  setPairs(rig, 2);
  rig.backend.sendResults.push(-Errno.EAGAIN);
  transmitOn(rig, 1, frame(60, 1));
  transmitOn(rig, 0, frame(60, 2));
  assertEquals(rig.backend.sentOn, [0]);
  rig.backend.peer!.onWritable(0);
  rig.settle();
  assertEquals(rig.backend.sentOn, [0]);
  rig.backend.peer!.onWritable(1);
  rig.settle();
  assertEquals(rig.backend.sentOn, [0, 1]);
});

Deno.test("VirtioNet drops frames of all pairs while the link is down", () => {
  using rig = makeRig();
  setPairs(rig, 2);
  rig.card.setLink(false);
  transmitOn(rig, 1, frame(60, 1));
  assertEquals(rig.counter("txDroppedLinkDown"), 1);
  rig.card.setLink(true);
  transmitOn(rig, 1, frame(60, 1));
  assertEquals(rig.backend.sentOn, [1]);
});

Deno.test("VirtioNet resets one queue of a pair", () => {
  using rig = makeRig();
  setPairs(rig, 2);
  const { rx, tx } = rig.pairs[1]!;
  post(rig, rx, 2);
  rig.driver.resetQueue(rx);
  rig.backend.incomingOn[1]!.push(frame(60));
  rig.settle();
  assertEquals(rig.backend.receivingOn.slice(0, 2), [true, false]);
  rig.driver.reenableQueue(rx);
  post(rig, rx, 2);
  assertEquals(taken(rx), 1);
  rig.backend.sendResults.push(-Errno.EAGAIN);
  transmitOn(rig, 1, frame(60));
  rig.driver.resetQueue(tx);
  rig.driver.reenableQueue(tx);
  transmitOn(rig, 1, frame(61));
  assertEquals(rig.backend.sent.map((it) => it.length), [61]);
});

Deno.test("VirtioNet fails once when a pair beyond the first is hostile", () => {
  using rig = makeRig();
  setPairs(rig, PAIRS);
  rig.pairs[3]!.tx.ring.publishRaw(5000);
  rig.pairs[3]!.tx.kick();
  rig.settle();
  assertEquals(rig.needsReset, true);
  assertEquals(rig.counter("failures"), 1);
  assertEquals(rig.backend.peer, null);
});
