import { CountedWrites } from "../../../src/testing/mod.ts";
import { assert, assertEquals } from "@std/assert";
import { Doorbells } from "../../../devices/nvme/queue/doorbells.ts";
import {
  QueueSet,
  type QueueSetOptions,
} from "../../../devices/nvme/queue/queue_set.ts";
import { SharedWords } from "../../../devices/nvme/threads/shared_words.ts";
import { ArrayMemory } from "../../../src/memory/array_memory.ts";
import { PciFunction, PciInterrupts } from "../../../src/pci/mod.ts";
import { allowMastering } from "../../pci/sample.ts";
import { Rig, SC } from "./rig.ts";

Deno.test("shadow doorbells keep doorbells out of the message channel", () => {
  using rig = new Rig();
  const { driver } = rig;
  const pair = rig.io(64);
  driver.configureShadow();
  const before = driver.doorbells;
  // The controller is idle, so each batch rings once; what comes while it is awake does not.
  for (let batch = 0; batch < 200; batch++) {
    for (let i = 0; i < 10; i++) {
      driver.put(pair, { opcode: 0, nsid: 1 });
      driver.ring(pair);
    }
    rig.settle();
    assertEquals(driver.reap(pair).map((c) => c.status), Array(10).fill(0));
  }
  const rung = driver.doorbells - before;
  assert(rung <= 200 + 2 * Math.ceil(2000 / 64), `${rung} rings`);
});

Deno.test("shadow doorbells work for drivers that leave the admin queue out and for those that do not", () => {
  using rig = new Rig();
  const { driver } = rig;
  driver.configureShadow();
  // As Linux: only the register.
  const { shadow } = driver;
  driver.shadow = null;
  for (let i = 0; i < 40; i++) driver.identify(1);
  const pair = rig.io();
  driver.shadow = shadow;
  // As the standard has it: both.
  driver.ram.view.setUint32(
    driver.ram.offset(driver.eventIdx),
    driver.admin.sqTail,
    true,
  );
  for (let i = 0; i < 40; i++) driver.identify(1);
  assertEquals(driver.run({ opcode: 0, nsid: 1 }, pair).status, 0);
});

Deno.test("a tail stored between the last look and the arming of EventIdx is seen", () => {
  using rig = new Rig();
  const { driver } = rig;
  const pair = rig.io();
  driver.configureShadow();
  assertEquals(driver.run({ opcode: 0, nsid: 1 }, pair).status, 0);
  // A driver on another CPU submits at each atomic access of the controller, one after the other.
  const { view } = driver.ram;
  const tailAt = driver.ram.offset(driver.shadow!) + 8;
  const eventAt = driver.ram.offset(driver.eventIdx) + 8;
  for (let moment = 0; moment < 12; moment++) {
    let accesses = 0;
    let fired = false;
    let rings = false;
    const submit = () => {
      fired = true;
      driver.put(pair, { opcode: 0, nsid: 1 });
      const old = view.getUint32(tailAt, true);
      view.setUint32(tailAt, pair.sqTail, true);
      const event = view.getUint32(eventAt, true);
      rings = ((pair.sqTail - event - 1) & 0xffff) <
        ((pair.sqTail - old) & 0xffff);
    };
    const { load, store } = Atomics;
    const step = () => {
      if (accesses++ === moment && !fired) submit();
    };
    Atomics.load = ((array: Uint32Array, at: number) => {
      const value = load(array, at);
      step();
      return value;
    }) as typeof Atomics.load;
    Atomics.store = ((array: Uint32Array, at: number, value: number) => {
      step();
      return store(array, at, value);
    }) as typeof Atomics.store;
    try {
      driver.put(pair, { opcode: 0, nsid: 1 });
      driver.ring(pair);
      rig.settle();
    } finally {
      Atomics.load = load;
      Atomics.store = store;
    }
    if (fired && rings) {
      rig.device.writeBar(0, 0x1008, 4, pair.sqTail);
      rig.settle();
    }
    assertEquals(
      driver.reap(pair).length,
      fired ? 2 : 1,
      `lost at access ${moment}, rings ${rings}`,
    );
  }
});

/** Queues 0 and, with or without interrupts, 1. */
function queueSet(
  memory: ArrayMemory,
  interrupts: boolean,
  options: Partial<QueueSetOptions> = {},
): { doorbells: Doorbells; queues: QueueSet } {
  const doorbells = new Doorbells(memory, new SharedWords(2, null));
  const queues = new QueueSet({
    memory,
    doorbells,
    pairs: 1,
    posted: new CountedWrites(),
    maskable: () => false,
    wake: () => {},
    onInvalidValue: () => {
      throw new Error("no value is invalid here");
    },
    onEnded: () => {},
    ...options,
  });
  const common = { size: 16, head: 0, tail: 0, rejected: null };
  queues.add({
    completion: [0, 1].map((qid) => ({
      ...{ ...common, qid, iova: 0x3000 + qid * 0x3000, vector: 0 },
      ...{ phase: 1, untold: 0, urgent: false },
      interrupts: qid === 0 || interrupts,
    })),
    submission: [0, 1].map((qid) => (
      { ...common, qid, iova: 0x2000 + qid * 0x5000, cqid: qid }
    )),
  });
  return { doorbells, queues };
}

Deno.test("QueueSet.hasEntries looks again after it has armed EventIdx", () => {
  const memory = new ArrayMemory([{ iova: 0, lengthBytes: 1 << 20 }]);
  const { queues } = queueSet(memory, true);
  const buffers = { shadowIova: 0x4000, eventIova: 0x5000 };
  assert(queues.configureDoorbells(buffers));
  const sq = queues.sq(0)!;
  const shadow = (tail: number) =>
    memory.write(0x4000, Uint8Array.of(tail, 0, 0, 0));
  shadow(1);
  queues.refreshDoorbells();
  assertEquals(queues.hasEntries(sq), true);
  sq.head = 1;
  const { store } = Atomics;
  Atomics.store = ((array: Uint32Array, at: number, value: number) => {
    // Another CPU, between the look that found nothing and this.
    shadow(2);
    return store(array, at, value);
  }) as typeof Atomics.store;
  try {
    assertEquals(queues.hasEntries(sq), true);
  } finally {
    Atomics.store = store;
  }
});

Deno.test("Doorbell Buffer Config refuses buffers that cannot be", () => {
  using rig = new Rig();
  const { driver } = rig;
  const good = driver.page();
  rig.memory.map({ iova: 0x8000, lengthBytes: 4096, access: 1 });
  const run = (prp1: number, prp2: number) =>
    driver.run({ opcode: 0x7c, prp1, prp2 }).status;
  assertEquals(run(good + 8, good), SC.PRP_OFFSET);
  assertEquals(run(good, good + 2048), SC.PRP_OFFSET);
  assertEquals(run(0x1000, good), SC.FIELD);
  assertEquals(run(good, 2 ** 60), SC.FIELD);
  assertEquals(run(good, 0x8000), SC.FIELD, "not writable");
  const pair = rig.io();
  assertEquals(driver.run({ opcode: 0, nsid: 1 }, pair).status, 0);
});

Deno.test("queues made after Doorbell Buffer Config begin at 0, whatever was left there", () => {
  using rig = new Rig();
  const { driver } = rig;
  driver.configureShadow();
  for (let at = 8; at < 40; at += 4) {
    driver.ram.view.setUint32(driver.ram.offset(driver.shadow! + at), 5, true);
    driver.ram.view.setUint32(driver.ram.offset(driver.eventIdx + at), 9, true);
  }
  const pair = rig.io();
  assertEquals(driver.run({ opcode: 0, nsid: 1 }, pair).status, 0);
  const counters = rig.device.counters();
  assertEquals([counters.failedCommands, counters.invalidDoorbells], [0, 0]);
});

Deno.test("a controller reset ends shadow doorbells", () => {
  using rig = new Rig();
  const { driver } = rig;
  driver.configureShadow();
  driver.disable();
  driver.shadow = null;
  driver.enable();
  const pair = rig.io();
  assertEquals(driver.run({ opcode: 0, nsid: 1 }, pair).status, 0);
});

Deno.test("shadow doorbells are polled where the loop polls", () => {
  using rig = new Rig();
  const { driver } = rig;
  const pair = rig.io();
  assertEquals(rig.loop.pollOnce(), false);
  driver.configureShadow();
  assertEquals(rig.loop.pollOnce(), false);
  driver.put(pair, { opcode: 0, nsid: 1 });
  driver.ram.view.setUint32(driver.ram.offset(driver.shadow!) + 8, 1, true);
  assertEquals(rig.loop.pollOnce(), true);
  assertEquals(driver.reap(pair).length, 1);
  assertEquals(rig.loop.pollOnce(), false);
});

Deno.test("a shadow buffer that is unmapped is waited for", () => {
  using rig = new Rig();
  const { driver } = rig;
  const buffer = rig.memory.map({ iova: 0x1_0000, lengthBytes: 8192 });
  const pair = rig.io();
  const done = driver.run({ opcode: 0x7c, prp1: 0x1_0000, prp2: 0x1_1000 });
  assertEquals(done.status, 0);
  const words = new Uint32Array(buffer);
  driver.put(pair, { opcode: 0, nsid: 1 });
  words[2] = 1;
  rig.memory.unmap(0x1_0000, 8192);
  driver.write(0x1008, 1);
  rig.settle();
  assertEquals(driver.reap(pair, false), []);
  rig.memory.map({ iova: 0x1_0000, lengthBytes: 8192, buffer });
  rig.settle();
  assertEquals(driver.reap(pair, false).length, 1);
});

Deno.test("doorbell mistakes are events, and change nothing", () => {
  using rig = new Rig();
  const { driver } = rig;
  const pair = rig.io();
  const event = () => {
    const found = driver.reap(driver.admin);
    driver.put(driver.admin, { opcode: 12 });
    driver.ring(driver.admin);
    rig.settle();
    driver.logPage(1, 64);
    return found.map((c) => c.dw0);
  };
  event();
  const cases: [string, number, number, number][] = [
    ["no such queue", 0x1000 + 3 * 8, 1, 0x1_0000],
    ["no such completion queue", 0x1004 + 60 * 8, 1, 0x1_0000],
    ["far outside", 0x3ffc, 1, 0x1_0000],
    ["tail beyond the queue", 0x1008, 16, 0x1_0100],
    ["tail of 2^32 - 1", 0x1008, 0xffff_ffff, 0x1_0100],
    ["head beyond the queue", 0x100c, 16, 0x1_0100],
    ["head of an empty queue", 0x100c, 1, 0x1_0100],
  ];
  for (const [name, at, value, dw0] of cases) {
    driver.write(at, value);
    rig.settle();
    assertEquals(event(), [dw0], name);
  }
  assertEquals(rig.device.counters().invalidDoorbells, cases.length);
  // Not a whole word: not a doorbell.
  rig.device.writeBar(0, 0x1008, 2, 1);
  rig.settle();
  assertEquals(event(), []);
  assertEquals(driver.run({ opcode: 0, nsid: 1 }, pair).status, 0);
});

Deno.test("a tail that runs over the head is refused", () => {
  using rig = new Rig();
  const { driver, disk } = rig;
  const pair = driver.createPair(1, 16, 1, 4);
  disk.slow = true;
  const prp1 = driver.page();
  for (let i = 0; i < 5; i++) driver.put(pair, { opcode: 2, nsid: 1, prp1 });
  driver.ring(pair);
  rig.settle();
  assertEquals(disk.pending.length, 3);
  // Entries 3 and 4 wait: 13 more fit, and tail 3 would be 14.
  driver.write(0x1008, 3);
  assertEquals(rig.device.counters().invalidDoorbells, 1);
  driver.write(0x1008, 2);
  assertEquals(rig.device.counters().invalidDoorbells, 1);
});

Deno.test("mapped doorbells are a page of BAR 0 that is polled", () => {
  using rig = new Rig({ controller: { mapDoorbells: true }, disabled: true });
  const { driver } = rig;
  const [area] = rig.device.spec.bars[0]!.mmap!;
  assertEquals([area!.offset, area!.memory.bytes.length], [0x1000, 4096]);
  const settle = rig.loop.settle.bind(rig.loop);
  allowMastering(behindFunction(rig));
  driver.enable();
  const pair = rig.io();
  for (let i = 0; i < 40; i++) {
    assertEquals(driver.run({ opcode: 0, nsid: 1 }, pair).status, 0);
  }
  // A full completion queue, whose head nobody tells about but the page.
  const narrow = driver.createPair(2, 16, 2, 2);
  for (let i = 0; i < 5; i++) driver.put(narrow, { opcode: 0, nsid: 1 });
  driver.ring(narrow);
  rig.loop.settle();
  let done = 0;
  for (let i = 0; i < 5; i++) done += driver.reap(narrow).length;
  assertEquals(done, 5);
  // Without a loop that polls, a timer looks.
  rig.loop.settle = settle;
  driver.put(pair, { opcode: 0, nsid: 1 });
  driver.ring(pair);
  settle();
  assertEquals(driver.reap(pair, false), []);
  rig.loop.advance(2);
  assertEquals(driver.reap(pair, false).length, 1);
  // And stops with the controller.
  rig.device.reset("device_reset");
  assertEquals(rig.loop.timerCount, 0);
  assertEquals(area!.memory.bytes.some((b) => b !== 0), false);
});

/** The controller of a rig as a client has it, who writes doorbells to the region that it could map. */
function behindFunction(rig: Rig): PciFunction {
  const pci = new PciFunction(
    rig.device,
    rig.memory,
    new PciInterrupts(),
    rig.context.log,
  );
  const scratch = new DataView(new ArrayBuffer(4));
  rig.driver.write = (offset, value) => {
    scratch.setUint32(0, value, true);
    assertEquals(pci.writeRegion(0, offset, scratch, 0, 4), 0);
  };
  const settle = rig.loop.settle.bind(rig.loop);
  rig.loop.settle = () => {
    settle();
    while (rig.loop.pollOnce()) settle();
  };
  return pci;
}

Deno.test("a state that is loaded onto a blank page of doorbells has the controller fetch no stale entry", () => {
  using rig = new Rig({ controller: { mapDoorbells: true }, disabled: true });
  const { driver } = rig;
  const pci = behindFunction(rig);
  allowMastering(pci);
  driver.enable();
  const pair = rig.io();
  for (let i = 0; i < 21; i++) {
    assertEquals(driver.run({ opcode: 0, nsid: 1 }, pair).status, 0);
  }
  assertEquals(rig.device.hold(), 0);
  const [ofFunction, ofDevice] = [pci.save(), rig.device.save()];

  using next = new Rig({ controller: { mapDoorbells: true }, disabled: true });
  next.ram.bytes.set(rig.ram.bytes);
  const nextPci = behindFunction(next);
  next.device.stop();
  nextPci.load(structuredClone(ofFunction));
  next.device.load(structuredClone(ofDevice));
  nextPci.release();
  next.loop.settle();
  assertEquals(next.ram.bytes, rig.ram.bytes, "nothing was done");
  Object.assign(next.driver, { admin: driver.admin });
  driver.ram.bytes.set(next.ram.bytes);
  assertEquals(next.driver.run({ opcode: 0, nsid: 1 }, pair).status, 0);
  assertEquals(next.device.counters().invalidDoorbells, 0);
});

Deno.test("mapped doorbells of a controller that is made while the loop polls are looked at by no timer until it sleeps", () => {
  using rig = new Rig({
    controller: { mapDoorbells: true },
    disabled: true,
    polled: true,
  });
  rig.driver.enable();
  rig.loop.advance(5);
  assertEquals(rig.loop.timerCount, 0);
  rig.loop.endPolling();
  assertEquals(rig.loop.timerCount, 1);
});

Deno.test("a controller that was shut down, disabled or stopped touches no guest memory when polling ends, or begins", () => {
  const ways: Record<string, (rig: Rig) => void> = {
    "shut down": ({ driver }) => driver.write(0x14, 0x0046_4001),
    "disabled": ({ driver }) => driver.write(0x14, 0x0046_0000),
    "stopped": ({ device }) => device.stop(),
  };
  for (const [name, end] of Object.entries(ways)) {
    using rig = new Rig({ mode: "msix" });
    const { driver } = rig;
    driver.configureShadow();
    const pair = rig.io();
    for (let i = 0; i < 5; i++) {
      assertEquals(driver.run({ opcode: 0, nsid: 1 }, pair).status, 0);
    }
    rig.loop.beginPolling();
    for (let i = 0; i < 5; i++) {
      driver.put(pair, { opcode: 0, nsid: 1 });
      driver.ring(pair);
      while (rig.loop.pollOnce()) rig.loop.settle();
      driver.reap(pair);
    }
    end(rig);
    rig.loop.settle();
    if (name === "shut down") assertEquals(driver.csts >>> 2 & 3, 2, name);
    // Whose memory is whose by now, the device cannot know.
    const bytes = new Uint8Array(rig.ram.view.buffer);
    bytes.fill(0xa5);
    rig.loop.endPolling();
    rig.loop.settle();
    rig.loop.beginPolling();
    rig.loop.pollOnce();
    rig.loop.endPolling();
    rig.loop.advance(5);
    assert(bytes.every((b) => b === 0xa5), name);
  }
});

Deno.test("Doorbells.arm asks only when something changes", () => {
  const memory = new ArrayMemory();
  const doorbells = new Doorbells(memory, new SharedWords(2, null));
  assertEquals(doorbells.arm(2, 1), false);
  assertEquals(doorbells.use({ shadowIova: 0, eventIova: 4096 }), true);
  doorbells.set(2, 5);
  assertEquals(doorbells.arm(2, 5), false);
  assertEquals(doorbells.arm(2, 6), true);
  assertEquals(doorbells.arm(2, 6), false);
  doorbells.write(2, 9);
  assertEquals(doorbells.read(2), 9);
  memory.write(8, Uint8Array.of(7, 0, 0, 0));
  assertEquals(doorbells.read(2), 7);
  memory.write(8, Uint8Array.of(5, 0, 0, 0));
  assertEquals(doorbells.read(2), 5);
});

Deno.test("QueueSet: a tail found in memory waits for the register writes before it, where they matter", () => {
  const cases = [[false, true], [true, false], [true, true]] as const;
  for (const [maskable, interrupts] of cases) {
    const matters = maskable && interrupts;
    const memory = new ArrayMemory([{ iova: 0, lengthBytes: 1 << 20 }]);
    const posted = new CountedWrites();
    let wakes = 0;
    const { doorbells, queues } = queueSet(memory, interrupts, {
      posted,
      maskable: () => maskable,
      wake: () => wakes++,
    });
    posted.sent = 1;
    const [admin, io] = [queues.sq(0)!, queues.sq(1)!];
    doorbells.write(0, 1);
    doorbells.write(2, 1);
    assertEquals(queues.hasEntries(admin), false);
    assertEquals(queues.hasEntries(io), !matters);
    assertEquals(wakes, matters ? 2 : 1);
    doorbells.write(0, 3);
    posted.sent = 2;
    posted.done = 1;
    assertEquals(queues.hasEntries(admin), true);
    assertEquals(admin.tail, 1, "what was found first");
    admin.head = 1;
    assertEquals(queues.hasEntries(admin), false);
    posted.done = 2;
    assertEquals(queues.hasEntries(admin), true);
    assertEquals([admin.tail, queues.hasEntries(io)], [3, true]);
  }
});
