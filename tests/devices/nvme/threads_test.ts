import { assert, assertEquals, assertThrows } from "@std/assert";
import { ThreadsRig } from "./threads_rig.ts";
import type { Pair } from "./naive_driver.ts";
import { SC } from "./rig.ts";

const FLUSH = { opcode: 0, nsid: 1 };
const READ = { opcode: 2, nsid: 1 };

/** Creates a submission queue that completes where another one does. */
function createSq(rig: ThreadsRig, qid: number, cqid: number, size = 16): Pair {
  const { driver } = rig;
  const pair = Object.assign(
    Object.create(Object.getPrototypeOf(driver.admin)),
    { ...driver.admin, qid, size, sq: driver.page(), sqTail: 0 },
  ) as Pair;
  const done = driver.run({
    opcode: 1,
    prp1: pair.sq,
    cdw10: qid | (size - 1) << 16,
    cdw11: 1 | cqid << 16,
  });
  assertEquals(done.status, 0, "create SQ");
  return pair;
}

Deno.test("a controller serves every queue, and raises its vector, on the thread of its completion queue", () => {
  using rig = new ThreadsRig({ threads: 3 });
  const { driver } = rig;
  for (let qid = 1; qid <= 6; qid++) {
    const pair = driver.createPair(qid);
    rig.interrupts();
    const before = rig.submissions();
    for (let i = 0; i < 20; i++) {
      assertEquals(driver.run(FLUSH, pair).status, 0);
    }
    const owner = (qid - 1) % 3;
    const done = rig.submissions().map((count, i) => count - before[i]!);
    assertEquals(done, [0, 1, 2].map((i) => i === owner ? 20 : 0));
    assertEquals(
      rig.interrupts(),
      [0, 1, 2].map((i) => i === owner ? new Array(20).fill(qid) : []),
    );
  }
  assertEquals(rig.counter("flushes"), 120);
});

Deno.test("submission queues that complete in one queue are served by its thread", () => {
  using rig = new ThreadsRig();
  const { driver } = rig;
  const cq = driver.createPair(2);
  // 1 and 3 would be the control thread's by their numbers.
  const others = [
    createSq(rig, 1, 2),
    createSq(rig, 3, 2),
    createSq(rig, 5, 2),
  ];
  rig.interrupts();
  const cids = [cq, ...others].map((pair) => rig.submit(pair, FLUSH));
  rig.settle();
  const found = driver.reap(cq);
  assertEquals(found.map(({ sqid }) => sqid).toSorted(), [1, 2, 3, 5]);
  assertEquals(found.map(({ cid }) => cid).toSorted(), cids.toSorted());
  assertEquals(rig.control.disk.log, []);
  assertEquals(rig.interrupts(), [[], [2]]);
  // In use until the last of them is gone, wherever they are.
  const remove = (opcode: number, qid: number) =>
    driver.run({ opcode, cdw10: qid }).status;
  assertEquals(remove(4, 2), SC.QUEUE_DELETION);
  for (const qid of [1, 2, 3]) assertEquals(remove(0, qid), 0);
  assertEquals(remove(4, 2), SC.QUEUE_DELETION);
  assertEquals(remove(0, 5), 0);
  assertEquals(remove(4, 2), 0);
  assertEquals(remove(4, 2), SC.QID);
  assertEquals(driver.run(FLUSH, driver.createPair(2)).status, 0);
});

Deno.test("a doorbell of a queue of another thread is a word and a wake-up, not a call", () => {
  using rig = new ThreadsRig({ threads: 3 });
  const { driver } = rig;
  const [, pair] = rig.pairs();
  rig.calls.length = 0;
  rig.wakes.fill(0);
  // The thread sleeps on: ten doorbells, of which it sees the last.
  for (let i = 0; i < 10; i++) rig.submit(pair, FLUSH);
  assertEquals(rig.submissions(), [0, 0, 0]);
  assertEquals(rig.wakes, [0, 10, 0]);
  rig.settle();
  assertEquals(driver.reap(pair).length, 10);
  assertEquals(rig.calls, []);
  assertEquals(rig.counter("doorbells") > 11, true);
  assertEquals(rig.counter("invalidDoorbells"), 0);
});

Deno.test("queues wrap and fill up on another thread as they do on the control thread", () => {
  using rig = new ThreadsRig();
  const { driver } = rig;
  const pair = driver.createPair(2, 16, 2, 4);
  let done = 0;
  for (let round = 0; round < 20; round++) {
    for (let i = 0; i < 10; i++) driver.put(pair, FLUSH);
    driver.ring(pair);
    rig.settle();
    for (let i = 0; i < 10 && done < (round + 1) * 10; i++) {
      done += driver.reap(pair).length;
    }
  }
  assertEquals(done, 200);
  assert(rig.counter("completionQueueFull") > 0);
});

Deno.test("deleting a queue of another thread waits there for its commands in flight", () => {
  using rig = new ThreadsRig();
  const { driver, other } = rig;
  const [, pair] = rig.pairs();
  other.disk.slow = true;
  const cids = [1, 2, 3].map(() =>
    rig.submit(pair, { ...READ, prp1: driver.page() })
  );
  rig.settle();
  assertEquals(other.disk.pending.length, 3);
  const deletion = rig.submit(driver.admin, { opcode: 0, cdw10: 2 });
  rig.settle();
  assertEquals(driver.reap(driver.admin), []);
  // Nothing more is fetched, and it cannot be deleted twice, nor its completion queue before it.
  rig.submit(pair, FLUSH);
  rig.settle();
  assertEquals(other.disk.pending.length, 3);
  assertEquals(driver.run({ opcode: 0, cdw10: 2 }).status, SC.QID);
  assertEquals(driver.run({ opcode: 4, cdw10: 2 }).status, SC.QUEUE_DELETION);
  other.disk.finish();
  other.disk.finish();
  rig.settle();
  assertEquals(driver.reap(driver.admin), []);
  other.disk.finish();
  rig.settle();
  const [told, ...more] = driver.reap(driver.admin);
  assertEquals([told!.cid, told!.status, more], [deletion, 0, []]);
  assertEquals(driver.reap(pair, false).map(({ cid }) => cid), cids);
  other.disk.slow = false;
  assertEquals(driver.run({ opcode: 4, cdw10: 2 }).status, 0);
  // What was not fetched is gone with it.
  assertEquals(driver.run(FLUSH, driver.createPair(2)).status, 0);
  assertEquals(rig.counter("flushes"), 1);
});

Deno.test("a deletion that waits is forgotten by a reset of the controller, and its end with it", () => {
  using rig = new ThreadsRig();
  const { driver, other } = rig;
  const [, pair] = rig.pairs();
  other.disk.slow = true;
  rig.submit(pair, { ...READ, prp1: driver.page() });
  rig.settle();
  rig.submit(driver.admin, { opcode: 0, cdw10: 2 });
  rig.settle();
  other.disk.finish();
  // The other thread comes to the end, and the control thread is reset before it has looked.
  rig.turn(other);
  assert(rig.threads!.reported);
  driver.disable();
  assert(!rig.threads!.reported);
  driver.enable();
  const again = driver.createPair(2);
  rig.submit(again, { ...READ, prp1: driver.page() });
  rig.settle();
  rig.submit(driver.admin, { opcode: 0, cdw10: 2 });
  rig.settle();
  // That of another life of the queue.
  rig.threads!.reported = true;
  rig.settle();
  assertEquals(driver.reap(driver.admin), []);
  other.disk.finish();
  rig.settle();
  assertEquals(driver.reap(driver.admin).length, 1);
});

Deno.test("CC.EN = 0 ends every thread before the write returns", () => {
  using rig = new ThreadsRig({ threads: 3 });
  const { driver } = rig;
  const pairs = [1, 2, 3].map((qid) => driver.createPair(qid));
  for (const { disk } of rig.members) disk.slow = true;
  for (const pair of pairs) {
    rig.submit(pair, { ...READ, prp1: driver.page() });
    rig.submit(pair, { ...READ, prp1: driver.page() });
  }
  rig.settle();
  // Done, and not posted; in flight; and rung, and not fetched.
  for (const { disk } of rig.members) disk.finish();
  for (const pair of pairs) rig.submit(pair, FLUSH);
  driver.write(0x14, 0x0046_0000);
  const rings = pairs.map(({ cq }) => driver.ram.at(cq, 256).slice());
  for (const member of rig.members.slice(1)) {
    for (let i = 0; i < 5; i++) rig.turn(member);
  }
  rig.settle();
  assertEquals(driver.csts & 1, 0);
  pairs.forEach(({ cq }, i) =>
    assertEquals(driver.ram.at(cq, 256), rings[i], `queue ${i + 1}`)
  );
  for (const { disk } of rig.members) {
    assertEquals(disk.pending.length, 0);
    disk.slow = false;
    disk.log.length = 0;
  }
  driver.enable();
  rig.settle();
  assertEquals(rig.submissions(), [0, 0, 0]);
  for (const qid of [1, 2, 3]) {
    assertEquals(driver.run(FLUSH, driver.createPair(qid)).status, 0);
  }
  assertEquals(rig.submissions(), [1, 1, 1]);
  assertEquals(rig.counter("controllerResets"), 1);
});

Deno.test("a thread that does not come to its reset keeps CSTS.RDY up, and the others are reset", () => {
  using rig = new ThreadsRig({ threads: 3 });
  const { driver } = rig;
  const pairs = [1, 2, 3].map((qid) => driver.createPair(qid));
  rig.other.broken = "reset";
  driver.write(0x14, 0x0046_0000);
  assertThrows(() => rig.settle(), Error, "broken at reset");
  rig.settle();
  assertEquals(driver.csts & 3, 3, "ready, fatal");
  for (const pair of pairs) rig.submit(pair, FLUSH);
  rig.settle();
  assertEquals(rig.submissions(), [0, 0, 0]);
  // It is there again.
  rig.other.broken = null;
  driver.write(0x14, 0x0046_0001);
  driver.disable();
  driver.enable();
  for (const qid of [1, 2, 3]) {
    assertEquals(driver.run(FLUSH, driver.createPair(qid)).status, 0);
  }
});

Deno.test("a reset of the device makes no thread fetch what lies in its ring", () => {
  using rig = new ThreadsRig({ threads: 3 });
  const { driver } = rig;
  const pairs = [1, 2, 3].map((qid) => driver.createPair(qid));
  for (const pair of pairs) {
    // Once around and some: what lies ahead is commands that were done.
    for (let i = 0; i < 21; i++) {
      assertEquals(driver.run(FLUSH, pair).status, 0);
    }
  }
  const before = rig.submissions();
  // One thread after the other; those that are still to come look at their doorbells meanwhile.
  rig.onCall = (thread, op) => {
    if (op !== "reset") return;
    for (const member of [rig.control, ...rig.members.slice(thread)]) {
      member.service?.wake();
      member.context.loop.settle();
      member.context.loop.pollOnce();
    }
  };
  rig.device.reset("device_reset");
  assertEquals(rig.calls.filter(([, op]) => op === "reset").length, 2);
  rig.settle();
  assertEquals(rig.submissions(), before);
  driver.enable();
  assertEquals(driver.run(FLUSH, driver.createPair(2)).status, 0);
});

Deno.test("a reset is over for every thread before what they said until then is void", () => {
  using rig = new ThreadsRig({ threads: 3 });
  rig.resets = 0;
  rig.driver.disable();
  assertEquals(rig.calls.filter(([, op]) => op === "reset").length, 2);
  assertEquals(rig.resets, 1);
  rig.device.reset("device_reset");
  assertEquals(rig.resets, 2);
});

Deno.test("hostile doorbells of queues of other threads are told as those of the control thread", () => {
  using rig = new ThreadsRig();
  const { driver } = rig;
  const [, pair] = rig.pairs();
  const event = () => {
    rig.submit(driver.admin, { opcode: 12 });
    rig.settle();
    const found = driver.reap(driver.admin).map(({ dw0 }) => dw0);
    driver.logPage(1, 64);
    return found;
  };
  const TAIL = 0x1000 + 8 * 2;
  const HEAD = TAIL + 4;
  const cases: [string, number, number, number][] = [
    ["no such queue", 0x1000 + 8 * 4, 1, 0x1_0000],
    ["tail beyond the queue", TAIL, 16, 0x1_0100],
    ["tail of 2^32 - 1", TAIL, 0xffff_ffff, 0x1_0100],
    ["head beyond the queue", HEAD, 16, 0x1_0100],
    ["head of an empty queue", HEAD, 1, 0x1_0100],
  ];
  for (const [name, at, value, dw0] of cases) {
    driver.write(at, value);
    rig.settle();
    assertEquals(event(), [dw0], name);
  }
  assertEquals(rig.counter("invalidDoorbells"), cases.length);
  // A tail that runs over the head: only its own thread knows.
  rig.other.disk.slow = true;
  const narrow = driver.createPair(4, 16, 4, 4);
  for (let i = 0; i < 5; i++) {
    driver.put(narrow, { ...READ, prp1: driver.page() });
  }
  driver.ring(narrow);
  rig.settle();
  assertEquals(rig.other.disk.pending.length, 3);
  driver.write(0x1000 + 8 * 4, 3);
  rig.settle();
  assertEquals(rig.counter("invalidDoorbells"), cases.length + 1);
  driver.write(0x1000 + 8 * 4, 2);
  rig.settle();
  assertEquals(rig.counter("invalidDoorbells"), cases.length + 1);
  rig.other.disk.slow = false;
  rig.other.disk.drain();
  rig.settle();
  assertEquals(driver.run(FLUSH, pair).status, 0);
});

for (const before of [true, false]) {
  Deno.test(`shadow doorbells are each thread's own, for queues made ${before ? "before" : "after"} they are`, () => {
    using rig = new ThreadsRig();
    const { driver } = rig;
    let pairs: Pair[] = [];
    if (before) {
      pairs = rig.pairs(64);
      // Where the queues are is known to their threads only.
      for (const pair of pairs) {
        for (let i = 0; i < 5; i++) driver.run(FLUSH, pair);
      }
    }
    driver.configureShadow();
    if (!before) pairs = rig.pairs(64);
    const rung = driver.doorbells;
    for (let batch = 0; batch < 100; batch++) {
      for (const pair of pairs) {
        for (let i = 0; i < 10; i++) rig.submit(pair, FLUSH);
      }
      rig.settle();
      for (const pair of pairs) assertEquals(driver.reap(pair).length, 10);
    }
    // Idle threads are rung once for a batch; what comes while they are awake does not ring.
    assert(driver.doorbells - rung <= 200 + 4 * Math.ceil(1000 / 64));
    assertEquals(rig.counter("invalidDoorbells"), 0);
    // Polled: no message at all.
    for (const [i, pair] of pairs.entries()) {
      driver.put(pair, FLUSH);
      const at = driver.ram.offset(driver.shadow!) + pair.qid * 8;
      driver.ram.view.setUint32(at, pair.sqTail, true);
      const { loop } = rig.members[i]!.context;
      assertEquals(rig.members[1 - i]!.context.loop.pollOnce(), false);
      assertEquals(loop.pollOnce(), true);
      assertEquals(driver.reap(pair, false).length, 1);
      assertEquals(loop.pollOnce(), false);
    }
    driver.disable();
    driver.shadow = null;
    driver.enable();
    for (const pair of rig.pairs()) {
      assertEquals(driver.run(FLUSH, pair).status, 0);
    }
  });
}

Deno.test("a thread that polls sees a doorbell message before it is woken up", () => {
  using rig = new ThreadsRig();
  const { driver, other } = rig;
  const [, pair] = rig.pairs();
  assertEquals(other.context.loop.pollOnce(), false);
  rig.submit(pair, FLUSH);
  assertEquals(other.context.loop.pollOnce(), true);
  assertEquals(driver.reap(pair, false).length, 1);
  assertEquals(other.service!.counters().polledKicks, 0);
  rig.settle();
  assertEquals(driver.reap(pair, false), []);
});

Deno.test("the line is up while any thread wants it, and down before the write of a head returns", () => {
  using rig = new ThreadsRig({ threads: 3, mode: "intx" });
  const { driver } = rig;
  const pairs = [1, 2, 3].map((qid) => driver.createPair(qid, 16, 0));
  for (const pair of pairs) rig.submit(pair, FLUSH);
  rig.settle();
  assertEquals(rig.level, true);
  for (const [i, pair] of pairs.entries()) {
    driver.reap(pair, false);
    driver.write(0x1004 + pair.qid * 8, pair.cqHead);
    assertEquals(rig.level, i < 2, `after queue ${pair.qid}`);
  }
  rig.settle();
  assertEquals(rig.level, false);
  // A vector that is masked holds the line of no thread up, until the mask is lifted.
  driver.write(0xc, 1);
  rig.submit(pairs[1]!, FLUSH);
  rig.settle();
  assertEquals(rig.level, false);
  driver.write(0x10, 1);
  rig.settle();
  assertEquals(rig.level, true);
  driver.write(0xc, 1);
  rig.settle();
  assertEquals(rig.level, false);
  driver.write(0x10, 1);
  rig.settle();
  assertEquals(rig.level, true);
  driver.disable();
  assertEquals(rig.level, false);
  driver.enable();
  assertEquals(rig.level, false);
  assertEquals(driver.run(FLUSH, driver.createPair(2, 16, 0)).status, 0);
  assertEquals(rig.level, false);
});

Deno.test("with MSI a message waits on its thread while it is masked", () => {
  using rig = new ThreadsRig({ mode: "msi" });
  const { driver } = rig;
  const pair = driver.createPair(2, 16, 0);
  rig.interrupts();
  rig.submit(pair, FLUSH);
  rig.settle();
  assertEquals(rig.interrupts(), [[], [0]]);
  driver.write(0xc, 1);
  rig.submit(pair, FLUSH);
  rig.settle();
  assertEquals(rig.interrupts(), [[], []]);
  driver.write(0x10, 1);
  rig.settle();
  assertEquals(rig.interrupts(), [[], [0]]);
});

Deno.test("memory that is unmapped is left alone by every thread", () => {
  using rig = new ThreadsRig();
  const { driver, memory, other } = rig;
  const [, pair] = rig.pairs();
  const buffer = 0x9_0000_0000;
  memory.map({ iova: buffer, lengthBytes: 4096 });
  other.disk.slow = true;
  rig.submit(pair, { ...READ, prp1: buffer });
  rig.settle();
  memory.unmap(buffer, 4096);
  assertEquals(other.disk.pending.length, 0);
  other.disk.slow = false;
  rig.settle();
  assertEquals(driver.reap(pair).map(({ status }) => status), [0]);
  const found = driver.run({ ...READ, prp1: buffer }, pair).status;
  assertEquals(found, SC.DATA);
});
