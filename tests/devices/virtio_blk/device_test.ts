import { assert, assertEquals, assertThrows } from "@std/assert";
import { textOf } from "../command_text.ts";
import { BlockOp } from "../../../src/backend/block/contract.ts";
import { Errno } from "../../../src/core/errno.ts";
import {
  BF,
  header,
  pattern,
  type Pending,
  RAM_BYTES,
  RAM_IOVA,
  ranges,
  Rig,
  S,
  T,
} from "./harness.ts";

const ALL_BUT_RO_AND_MQ = Object.values(BF).filter((bit) =>
  bit !== BF.RO && bit !== BF.MQ
);

/** The device-type bits that are offered. */
function offered(rig: Rig): number[] {
  return [...rig.driver.offeredFeatures()].filter((bit) => bit < 24).sort(
    (a, b) => a - b,
  );
}

Deno.test("VirtioBlk shows its storage in the configuration", () => {
  using rig = new Rig({
    info: { logicalBlockBytes: 512, maxTransferBytes: 1 << 20 },
  });
  assertEquals(offered(rig), ALL_BUT_RO_AND_MQ);
  const { driver } = rig;
  assertEquals(driver.deviceType, 2);
  assertEquals(driver.readConfig(0, 4), 2048);
  assertEquals(driver.readConfig(4, 4), 0);
  // 62 segments of 16 KiB are within 1 MiB.
  assertEquals(driver.readConfig(8, 4), 16384);
  assertEquals(driver.readConfig(12, 4), 62);
  assertEquals(driver.readConfig(20, 4), 512);
  assertEquals(driver.readConfig(24, 1), 3);
  assertEquals(driver.readConfig(25, 1), 0);
  assertEquals(driver.readConfig(26, 2), 8);
  assertEquals(driver.readConfig(28, 4), 128);
  assertEquals(driver.readConfig(32, 1), 1);
  assertEquals(driver.readConfig(33, 1), 0);
  assertEquals(driver.readConfig(34, 2), 1);
  assertEquals(driver.readConfig(40, 4), 32);
  assertEquals(driver.readConfig(44, 4), 8);
  assertEquals(driver.readConfig(48, 4), 0x20_0000);
  assertEquals(driver.readConfig(52, 4), 32);
  assertEquals(driver.readConfig(56, 4), 1);
});

Deno.test("VirtioBlk offers what its storage can do", () => {
  using readonly = new Rig({ info: { readonly: true } });
  assert(offered(readonly).includes(BF.RO));
  assert(!offered(readonly).includes(BF.DISCARD));
  assert(!offered(readonly).includes(BF.WRITE_ZEROES));
  using noDiscard = new Rig({ info: { discardGranularityBytes: 0 } });
  assert(!offered(noDiscard).includes(BF.DISCARD));
  assert(offered(noDiscard).includes(BF.WRITE_ZEROES));
  assertEquals(noDiscard.driver.readConfig(56, 1), 0);
  using many = new Rig({ disk: { queues: 4 } });
  assert(offered(many).includes(BF.MQ));
  assertEquals(many.driver.readConfig(34, 2), 4);
  assertEquals(many.driver.numQueues, 4);
});

Deno.test("VirtioBlk asks for fewer segments where the storage takes short requests only", () => {
  using rig = new Rig({ info: { maxTransferBytes: 65536 } });
  assertEquals(rig.driver.readConfig(12, 4), 16);
  assertEquals(rig.driver.readConfig(8, 4), 4096);
  using huge = new Rig({ info: { maxTransferBytes: 2 ** 50 } });
  assertEquals(huge.driver.readConfig(8, 4), 2 ** 30);
});

Deno.test("VirtioBlk takes as many segments as it says", () => {
  using rig = new Rig();
  const segments = rig.driver.readConfig(12, 4);
  const cuts = new Array(segments - 1).fill(512);
  const data = pattern(segments * 512);
  assertEquals(
    rig.write(0, data, { readable: [16, ...cuts] }).status,
    S.OK,
  );
  const reply = rig.read(0, data.length, { writable: [...cuts, 512] });
  assertEquals(reply.status, S.OK);
  assertEquals(reply.data, data);
});

for (
  const [what, pieces, status] of [
    ["serves a request as scattered as one call can take", 1022, S.OK],
    [
      "fails only the request whose memory is more scattered than that",
      1100,
      S.IOERR,
    ],
  ] as const
) {
  Deno.test(`VirtioBlk ${what}`, () => {
    using rig = new Rig();
    // Behind an IOMMU what is in one piece for the driver may be in many here.
    const base = 0x2_0000_0000;
    const at = (offset: number) => base + offset;
    for (let i = 0; i < pieces; i++) {
      rig.memory.map({ iova: at(i * 512), lengthBytes: 512 });
    }
    const data = pattern(pieces * 512);
    rig.memory.write(base, data);
    const sizeMax = rig.driver.readConfig(8, 4);
    const [queue] = rig.queues;
    const put = (type: number, isRead: boolean) => {
      const head = rig.ram.alloc(16);
      rig.ram.write(head, header(type));
      const state = rig.ram.alloc(1);
      rig.ram.at(state, 1).fill(0xee);
      const count = Math.ceil(data.length / sizeMax);
      assert(queue!.ring.begin(count + 2));
      queue!.ring.readable(head, 16);
      for (let from = 0; from < data.length; from += sizeMax) {
        const length = Math.min(sizeMax, data.length - from);
        if (isRead) queue!.ring.writable(at(from), length);
        else queue!.ring.readable(at(from), length);
      }
      queue!.ring.writable(state, 1);
      queue!.ring.end();
      rig.flush();
      rig.backend.finishAll();
      rig.loop.settle();
      assert(queue!.ring.take());
      return { status: rig.ram.at(state, 1)[0], used: queue!.ring.usedLength };
    };
    const isOk = status === S.OK;
    assertEquals(put(T.OUT, false), { status, used: isOk ? 1 : 0 });
    if (isOk) assertEquals(rig.backend.bytes.slice(0, data.length), data);
    rig.memory.write(base, new Uint8Array(data.length));
    const used = isOk ? data.length + 1 : 0;
    assertEquals(put(T.IN, true), { status, used });
    const read = new Uint8Array(data.length);
    rig.memory.read(base, read);
    assertEquals(read, isOk ? data : new Uint8Array(data.length));
    assertEquals(rig.needsReset, false);
    assertEquals(rig.write(0, pattern(512)).status, S.OK);
  });
}

Deno.test("VirtioBlk submits a batch, commits once, and interrupts once for what completes together", () => {
  using rig = new Rig({ features: [BF.FLUSH] });
  const pending = [0, 1, 2, 3].map((i) => rig.queueWrite(i, pattern(512, i)));
  rig.flush();
  assertEquals(rig.backend.commits, 1);
  assertEquals(rig.backend.waiting.length, 4);
  assertEquals(rig.disk.inFlight, 4);
  assertEquals(rig.interrupts(1), 0);
  rig.backend.finish(2);
  rig.backend.finish(0);
  rig.backend.finish(1);
  assertEquals(rig.queues[0]!.ring.hasUsed, false);
  rig.loop.settle();
  assertEquals(rig.interrupts(1), 1);
  assertEquals(
    rig.takeHeads(),
    [pending[2]!.head, pending[0]!.head, pending[3]!.head],
  );
  rig.backend.finish();
  rig.loop.settle();
  assertEquals(rig.interrupts(1), 1);
  assertEquals(rig.takeHeads(), [pending[1]!.head]);
});

Deno.test("VirtioBlk serves a full queue and lets others have the loop after 128 requests", () => {
  using rig = new Rig({
    immediate: true,
    disk: { queueSize: 512, segMax: 510 },
    features: [],
  });
  const count = 170;
  for (let i = 0; i < count; i++) rig.queueRead(i, 512);
  rig.queues[0]!.flush();
  rig.loop.turn();
  assertEquals(rig.takeHeads().length, 128);
  assertEquals(rig.interrupts(1), 1);
  rig.loop.turn();
  assertEquals(rig.takeHeads().length, count - 128);
  assertEquals(rig.interrupts(1), 1);
  rig.loop.settle();
  assertEquals(rig.interrupts(1), 0);
});

Deno.test("VirtioBlk uses slots again, in any order", () => {
  using rig = new Rig({ ringSize: 16, features: [] });
  for (let round = 0; round < 50; round++) {
    const pending = [0, 1, 2, 3, 4].map((i) =>
      rig.queueWrite(i, pattern(512, round + i))
    );
    rig.flush();
    for (const pick of [3, 0, 2, 0, 0]) rig.backend.finish(pick);
    rig.loop.settle();
    assertEquals(
      rig.takeHeads(),
      [3, 0, 4, 1, 2].map((i) => pending[i]!.head),
    );
    for (let i = 0; i < 5; i++) {
      assertEquals(
        rig.backend.bytes.slice(i * 512, i * 512 + 512),
        pattern(512, round + i),
      );
    }
  }
  assertEquals(rig.disk.inFlight, 0);
});

Deno.test("VirtioBlk serves each of its queues, and answers where it was asked", () => {
  using rig = new Rig({ disk: { queues: 3 } });
  const pending = rig.queues.map((queue, i) =>
    rig.queueWrite(i, pattern(512, i), queue)
  );
  for (const queue of rig.queues) rig.flush(queue);
  rig.backend.finish(2);
  rig.loop.settle();
  assertEquals([1, 2, 3].map((v) => rig.interrupts(v)), [0, 0, 1]);
  assertEquals(rig.take(pending[2]!).status, S.OK);
  rig.backend.finishAll();
  rig.loop.settle();
  assertEquals([1, 2, 3].map((v) => rig.interrupts(v)), [1, 1, 0]);
  assertEquals(rig.take(pending[0]!).status, S.OK);
  assertEquals(rig.take(pending[1]!).status, S.OK);
});

Deno.test("VirtioBlk lets the driver choose the cache mode", () => {
  using rig = new Rig();
  assertEquals(rig.driver.readConfig(32, 1), 1);
  assertEquals(rig.backend.writeCache, true);
  rig.driver.writeConfig(32, 1, 0);
  assertEquals(rig.driver.readConfig(32, 1), 0);
  assertEquals(rig.backend.writeCache, false);
  rig.write(0, pattern(512));
  rig.backend.powerCycle();
  assertEquals(rig.read(0, 512).data, pattern(512));
  rig.driver.writeConfig(32, 1, 7);
  assertEquals(rig.driver.readConfig(32, 1), 1);
  // Nothing else can be written.
  for (const offset of [0, 20, 33, 34, 56]) {
    rig.driver.writeConfig(offset, 1, 9);
  }
  rig.driver.writeConfig(30, 4, 0);
  assertEquals(rig.driver.readConfig(32, 4), 0x0001_0001);
  rig.driver.writeConfig(32, 1, 0);
  rig.bringUp();
  assertEquals(rig.driver.readConfig(32, 1), 1);
  assertEquals(rig.backend.writeCache, true);
});

Deno.test("VirtioBlk makes each write durable where the back end has no cache mode", () => {
  using rig = new Rig({ canSetCache: false });
  rig.write(0, pattern(512));
  rig.driver.writeConfig(32, 1, 0);
  rig.write(1, pattern(512));
  rig.ranged(T.WRITE_ZEROES, ranges({ sector: 2, count: 1 }));
  rig.ranged(T.DISCARD, ranges({ sector: 3, count: 1 }));
  rig.read(1, 512);
  rig.request(header(T.FLUSH), 1);
  assertEquals(
    rig.backend.seen.map(({ durable }) => durable),
    [false, true, true, false, false, false],
  );
});

Deno.test("VirtioBlk lets a write wait for a write of the cache mode before it, and nothing else", () => {
  using rig = new Rig();
  const { posted, backend } = rig;
  let asked = 0;
  const mark = posted.mark.bind(posted);
  posted.mark = () => (asked++, mark());
  const look = () => {
    rig.queues[0]!.flush();
    rig.loop.turn();
  };
  posted.sent = 1;
  rig.queueRead(0, 512);
  rig.queue(header(T.FLUSH), 1);
  rig.queue(header(T.GET_ID), 21);
  look();
  assertEquals([backend.waiting.length, asked], [2, 0]);
  rig.queueWrite(1, pattern(512));
  rig.queueRead(2, 512);
  look();
  assertEquals([backend.waiting.length, asked], [2, 1], "the write waits");
  rig.loop.turn();
  assertEquals([backend.waiting.length, asked], [2, 1]);
  // What comes later keeps nobody waiting that was there before.
  posted.sent = 2;
  posted.done = 1;
  rig.driver.writeConfig(32, 1, 0);
  rig.loop.turn();
  assertEquals([backend.waiting.length, asked], [4, 1]);
  assertEquals(backend.waiting[2]!.op, BlockOp.WRITE);
  assertEquals(backend.writeCache, false);
  while (backend.finishAll() > 0) rig.loop.settle();
  assertEquals(rig.takeHeads().length, 5);
  assertEquals(rig.write(3, pattern(512)).status, S.OK, "it is notified");
  assertEquals(asked, 1, "a write through needs not ask");
  rig.driver.writeConfig(32, 1, 1);
  posted.done = 2;
  assertEquals(rig.write(3, pattern(512)).status, S.OK);
  assertEquals(asked, 2);
  for (let i = 0; i < 3; i++) rig.queueWrite(i, pattern(512));
  look();
  assertEquals([backend.waiting.length, asked], [3, 3]);
  while (backend.finishAll() > 0) rig.loop.settle();
});

Deno.test("VirtioBlk never asks for register writes without CONFIG_WCE", () => {
  using rig = new Rig({ features: [BF.FLUSH] });
  rig.posted.sent = 1;
  assertEquals(rig.write(0, pattern(512)).status, S.OK);
});

for (
  const [name, features, writeCache, mode] of [
    ["that cannot flush", [], true, false],
    ["that cannot flush and wants to choose", [BF.CONFIG_WCE], true, false],
    ["that can flush", [BF.FLUSH], true, true],
    ["that can flush, with write-cache=off", [BF.FLUSH], false, false],
    [
      "that can do both, with write-cache=off",
      [BF.FLUSH, BF.CONFIG_WCE],
      false,
      false,
    ],
  ] as const
) {
  Deno.test(`VirtioBlk gives a driver ${name} a cache that is ${mode ? "write-back" : "write-through"}`, () => {
    using rig = new Rig({ features, disk: { writeCache } });
    assertEquals(rig.backend.writeCache, mode);
    assertEquals(rig.driver.readConfig(32, 1), mode ? 1 : 0);
    rig.write(0, pattern(512));
    rig.backend.powerCycle();
    assertEquals(rig.backend.bytes[0] === pattern(1)[0], !mode);
  });
}

Deno.test("VirtioBlk tells the driver of a new size", () => {
  using rig = new Rig();
  const { resize } = rig.device.commands!;
  assertEquals(textOf(resize), "the disk has 1M");
  assertEquals(resize!.run(["2M"]), {
    text: "the disk has 2M",
    data: { sizeBytes: 2 << 20 },
  });
  assertEquals(rig.interrupts(0), 1);
  const generation = rig.driver.configGeneration;
  assertEquals(rig.driver.readConfig(0, 4), 4096);
  assert(rig.driver.configGeneration !== generation);
  assertEquals(rig.write(4095, pattern(512)).status, S.OK);
  assertThrows(
    () => resize!.run(["512K"]),
    Error,
    "it has 2M, and what lies beyond would be lost; say 512K --shrink",
  );
  assertEquals(textOf(resize), "the disk has 2M");
  resize!.run(["512K", "--shrink"]);
  assertEquals(rig.read(1024, 512).status, S.IOERR);
  assertEquals(rig.read(1023, 512).status, S.OK);
  for (const bad of [["x"], ["1000"], ["0"], ["1M", "2M"], ["-1"], [""]]) {
    assertThrows(() => resize!.run(bad), Error, "Cannot resize");
  }
  Object.defineProperty(rig.backend, "resize", { value: undefined });
  assertThrows(() => resize!.run(["1M"]), Error, "a size of its own");
  assertEquals(rig.interrupts(0), 1);
});

Deno.test("VirtioBlk completes what is in flight before a reset, and shows none of it", () => {
  using rig = new Rig();
  const pending = rig.queueRead(0, 512);
  rig.flush();
  const [request] = rig.backend.waiting;
  rig.driver.status = 0;
  assertEquals(rig.backend.waiting, []);
  assertEquals(rig.disk.inFlight, 0);
  rig.loop.settle();
  assertEquals(rig.takeHeads(), []);
  assertEquals(rig.interrupts(1), 0);
  assertEquals(rig.counter("dropped"), 1);
  assertEquals(pending.head, 0);
  rig.bringUp();
  assertEquals(rig.write(0, pattern(512)).status, S.OK);
  // A back end that tells the end of a request twice has a bug, and hears of it.
  assertThrows(
    () => rig.backend.client.onComplete(request!, 0),
    Error,
    "not in flight",
  );
});

Deno.test("VirtioBlk forgets on a reset what the back end gave up on", () => {
  using rig = new Rig({ cancels: true });
  rig.queueRead(0, 512);
  rig.queueWrite(1, pattern(512));
  rig.flush();
  rig.driver.status = 0;
  assertEquals(rig.disk.inFlight, 0);
  assertEquals(rig.backend.waiting.length, 0);
  rig.bringUp();
  rig.loop.settle();
  assertEquals(rig.backend.seen.length, 2);
  assertEquals(rig.write(0, pattern(512)).status, S.OK);
});

Deno.test("VirtioBlk forgets a completion that a reset overtook", () => {
  using rig = new Rig();
  rig.queueWrite(0, pattern(512));
  rig.flush();
  rig.backend.finish();
  // Pushed, not yet published.
  rig.driver.status = 0;
  rig.bringUp();
  assertEquals(rig.takeHeads(), []);
  assertEquals(rig.interrupts(1), 0);
});

Deno.test("VirtioBlk resets one queue and keeps what is in flight on the others", () => {
  for (const cancels of [false, true]) {
    using rig = new Rig({ disk: { queues: 2 }, cancels });
    const [first, second] = rig.queues;
    rig.queueWrite(0, pattern(512, 1), first);
    const kept = rig.queueWrite(1, pattern(512, 2), second);
    rig.flush(first);
    rig.flush(second);
    rig.driver.resetQueue(first!);
    rig.loop.settle();
    rig.backend.finishAll();
    rig.loop.settle();
    assertEquals(rig.take(kept).status, S.OK);
    assertEquals(rig.backend.bytes.slice(512, 1024), pattern(512, 2));
    assertEquals(rig.takeHeads(first), []);
    rig.driver.reenableQueue(first!);
    const again = rig.queueWrite(0, pattern(512, 3), first);
    rig.flush(first);
    rig.backend.finishAll();
    rig.loop.settle();
    assertEquals(rig.take(again).status, S.OK);
    assertEquals(rig.counter("reissued"), cancels ? 1 : 0);
  }
});

Deno.test("VirtioBlk lets requests go on when memory is unmapped that they do not use", () => {
  for (const cancels of [false, true]) {
    using rig = new Rig({ cancels });
    rig.backend.bytes.set(pattern(1024));
    rig.memory.map({ iova: 0x10_0000, lengthBytes: 0x1000 });
    const pending = rig.queueRead(0, 1024);
    rig.flush();
    rig.memory.unmap(0x10_0000, 0x1000);
    assertEquals(rig.backend.waiting.length, 1);
    rig.backend.finishAll();
    rig.loop.settle();
    const reply = rig.take(pending);
    assertEquals([reply.status, reply.data], [S.OK, pattern(1024)]);
    assertEquals(rig.counter("reissued"), 0);
  }
});

Deno.test("VirtioBlk finishes a request before memory is unmapped that it uses", () => {
  using rig = new Rig();
  rig.backend.bytes.set(pattern(512));
  const buffer = rig.memory.map({ iova: 0x10_0000, lengthBytes: 0x1000 });
  const pending = readInto(rig, 0x10_0000);
  rig.memory.unmap(0x10_0000, 0x1000);
  assertEquals(rig.backend.waiting, []);
  assertEquals(new Uint8Array(buffer, 0, 512), pattern(512));
  rig.loop.settle();
  assertEquals(rig.take(pending).status, S.OK);
});

Deno.test("VirtioBlk goes on in the middle of a request that was taken out of flight", () => {
  for (const cancels of [false, true]) {
    using rig = new Rig({ cancels, disk: { queues: 2 } });
    const list = ranges(
      { sector: 0, count: 1 },
      { sector: 2, count: 1 },
      { sector: 4, count: 1 },
    );
    const pending = rig.queue(
      Uint8Array.from([...header(T.WRITE_ZEROES), ...list]),
      1,
    );
    rig.backend.bytes.fill(1);
    rig.flush();
    rig.backend.finish();
    rig.driver.resetQueue(rig.queues[1]!);
    while (rig.backend.finishAll() > 0) rig.loop.settle();
    rig.loop.settle();
    assertEquals(rig.take(pending).status, S.OK);
    const zeroed = [0, 1, 2, 3, 4, 5].map((i) => rig.backend.bytes[i * 512]);
    assertEquals(zeroed, [0, 1, 0, 1, 0, 1]);
  }
});

Deno.test("VirtioBlk fails when memory is unmapped that an unfinished request uses", () => {
  using rig = new Rig({ cancels: true });
  rig.memory.map({ iova: 0x10_0000, lengthBytes: 0x1000 });
  readInto(rig, 0x10_0000);
  rig.memory.unmap(0x10_0000, 0x1000);
  rig.loop.settle();
  assertEquals(rig.backend.waiting, []);
  assertEquals(rig.needsReset, true);
  rig.bringUp();
  assertEquals(rig.write(0, pattern(512)).status, S.OK);
});

Deno.test("VirtioBlk touches no guest memory while it is stopped", () => {
  for (const cancels of [false, true]) {
    using rig = new Rig({ cancels });
    const first = rig.queueRead(0, 512);
    rig.flush();
    rig.device.stop();
    assertEquals(rig.backend.waiting, []);
    const before = rig.ram.bytes.slice();
    rig.loop.settle();
    rig.device.stop();
    rig.queues[0]!.kick();
    rig.loop.settle();
    assertEquals(rig.ram.bytes, before);
    assertEquals(rig.interrupts(1), 0);
    rig.device.start();
    rig.loop.settle();
    rig.backend.finishAll();
    rig.loop.settle();
    assertEquals(rig.take(first).status, S.OK);
    assertEquals(rig.interrupts(1), 1);
    assertEquals(rig.write(0, pattern(512)).status, S.OK);
  }
});

Deno.test("VirtioBlk keeps requests out of a stopped device, and forgets them when it is reset", () => {
  using rig = new Rig({ cancels: true });
  rig.queueWrite(0, pattern(512));
  rig.flush();
  rig.device.stop();
  assertEquals(rig.disk.inFlight, 1);
  rig.memory.map({ iova: 0x10_0000, lengthBytes: 0x1000 });
  assertEquals(rig.backend.waiting, []);
  rig.device.reset("device_reset");
  assertEquals(rig.disk.inFlight, 0);
  rig.device.start();
  rig.bringUp();
  assertEquals(rig.backend.seen.length, 1);
  assertEquals(rig.write(0, pattern(512)).status, S.OK);
});

Deno.test("VirtioBlk tells what a reset would wait for, of all memory or of some", () => {
  for (const cancels of [false, true]) {
    using rig = new Rig({ cancels });
    rig.queueRead(0, 512);
    rig.queueRead(512, 512);
    rig.flush();
    const waits = cancels ? 0 : 2;
    assertEquals(rig.device.unfinished(), waits);
    assertEquals(rig.device.unfinished(RAM_IOVA, RAM_BYTES), waits);
    assertEquals(rig.device.unfinished(RAM_IOVA + RAM_BYTES, 0x1000), 0);
    rig.backend.finishAll();
    assertEquals(rig.device.unfinished(), 0);
  }
});

Deno.test("VirtioPci tells which writes end requests, however wide they are", () => {
  using rig = new Rig();
  const ends = (offset: number, width: 1 | 2 | 4, value: number) =>
    rig.device.endsRequests(4, offset, width, value);
  assertEquals([ends(20, 1, 0), ends(20, 1, 15)], [true, false]);
  assertEquals([ends(20, 4, 0xff00), ends(20, 2, 0xff)], [true, false]);
  assertEquals([ends(58, 2, 1), ends(58, 2, 0)], [true, false]);
  assertEquals([ends(56, 4, 0x1_0000), ends(56, 4, 1)], [true, false]);
  assertEquals([ends(22, 2, 0), ends(0x1014, 1, 0)], [false, false]);
});

Deno.test("VirtioBlk closes with requests in flight", () => {
  for (const cancels of [false, true]) {
    const rig = new Rig({ cancels });
    rig.queueWrite(0, pattern(512));
    rig.queueRead(0, 512);
    rig.flush();
    rig.close();
    assertEquals(rig.disk.inFlight, 0);
    rig.loop.settle();
    assertEquals(rig.takeHeads(), []);
  }
});

Deno.test("VirtioBlk fails once on a hostile ring, after the requests before it", () => {
  using rig = new Rig();
  const good = rig.queue(header(T.GET_ID), 21);
  rig.queues[0]!.ring.makeAvailable(0xffff);
  rig.flush();
  assertEquals(rig.needsReset, true);
  assertEquals(rig.take(good).status, S.OK);
  for (let i = 0; i < 3; i++) {
    rig.queues[0]!.kick();
    rig.loop.settle();
  }
  assertEquals(rig.counter("failures"), 1);
  assertEquals(rig.log.at("warn").length, 1);
  rig.bringUp();
  assertEquals(rig.write(0, pattern(512)).status, S.OK);
});

Deno.test("VirtioBlk refuses buffers outside guest memory", () => {
  using rig = new Rig();
  const { ring } = rig.queues[0]!;
  ring.begin(2);
  ring.readable(0xdead_0000, 16);
  ring.writable(rig.ram.alloc(1), 1);
  ring.end();
  rig.flush();
  assertEquals(rig.needsReset, true);
  assertEquals(rig.backend.seen, []);
  rig.bringUp();
  assertEquals(rig.write(0, pattern(512)).status, S.OK);
});

Deno.test("VirtioBlk hides errors of the back end from everyone but the driver", () => {
  using rig = new Rig({ immediate: true });
  rig.backend.results.push(-Errno.ECANCELED);
  // Nobody asked for a drain: it is an error like others.
  assertEquals(rig.write(0, pattern(512)).status, S.IOERR);
  assertEquals(rig.counter("backend.seen"), 1);
});

Deno.test("VirtioBlk fails what a smaller disk has no room for any more", () => {
  const beyond = 1536;
  for (const cancels of [false, true]) {
    using rig = new Rig({ cancels });
    const zeroes = ranges({ sector: 0, count: 8 }, {
      sector: beyond,
      count: 8,
    });
    const parked = rig.queue(
      new Uint8Array([...header(T.WRITE_ZEROES), ...zeroes]),
      1,
    );
    const kept = rig.queueRead(0, 512);
    rig.flush();
    rig.device.stop!();
    rig.device.commands!.resize!.run(["512K", "--shrink"]);
    rig.device.start!();
    rig.loop.settle();
    rig.backend.finishAll();
    rig.loop.settle();
    const replies = new Map<number, number>();
    while (parked.queue.ring.take()) {
      const { usedHead } = parked.queue.ring;
      const pending = usedHead === parked.head ? parked : kept;
      replies.set(usedHead, rig.reply(pending, 1).status);
    }
    assertEquals(replies.get(parked.head), S.IOERR);
    assertEquals(replies.get(kept.head), S.OK);
    assertEquals(rig.disk.inFlight, 0);
    assertEquals(rig.backend.bytes.length, 512 << 10);
  }
});

/** Has a sector read into memory of its own; the status comes into the rig's. */
function readInto(rig: Rig, iova: number): Pending {
  const queue = rig.queues[0]!;
  const at = rig.ram.alloc(17);
  rig.ram.write(at, header(T.IN, 0));
  queue.ring.begin(3);
  queue.ring.readable(at, 16);
  queue.ring.writable(iova, 512);
  queue.ring.writable(at + 16, 1);
  const head = queue.ring.end();
  rig.flush();
  return { queue, head, writable: [[at + 16, 1]] };
}
