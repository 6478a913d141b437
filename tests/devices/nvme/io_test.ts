import { assert, assertEquals, assertMatch } from "@std/assert";
import { BlockOp } from "../../../src/backend/block/contract.ts";
import { Errno } from "../../../src/core/errno.ts";
import { RING_ABSENCE_MS } from "../../../src/memory/guest_memory.ts";
import type { Pair, Sqe } from "./naive_driver.ts";
import { RAM_BYTES, RAM_IOVA, Rig, SC } from "./rig.ts";

/** Bytes that tell where they are. */
function pattern(length: number, seed = 1): Uint8Array {
  return Uint8Array.from(
    { length },
    (_, i) => (i * 7 + seed * 31 + (i >> 8)) & 0xff,
  );
}

function lba(slba: number, blocks: number): Partial<Sqe> {
  return {
    nsid: 1,
    cdw10: slba % 2 ** 32,
    cdw11: Math.floor(slba / 2 ** 32),
    cdw12: blocks - 1,
  };
}

Deno.test("Write and Read move blocks", () => {
  for (const blockBytes of [512, 4096] as const) {
    using rig = new Rig({ info: { logicalBlockBytes: blockBytes } });
    const { driver } = rig;
    const pair = rig.io();
    const bytes = blockBytes * 40;
    const data = pattern(bytes);
    const from = driver.page(41);
    driver.ram.write(from + 1024, data);
    const write = driver.run(
      { opcode: 1, ...lba(7, 40), ...driver.prps(from, 1024, bytes) },
      pair,
    );
    assertEquals([write.status, write.dw0], [0, 0]);
    const at = 7 * blockBytes;
    assertEquals(rig.disk.bytes.subarray(at, at + bytes), data);
    assertEquals(rig.disk.log[0], {
      op: BlockOp.WRITE,
      offset: at,
      lengthBytes: bytes,
      durable: false,
      mayUnmap: false,
    });
    const to = driver.page(41);
    const read = driver.run(
      { opcode: 2, ...lba(7, 40), ...driver.prps(to, 512, bytes) },
      pair,
    );
    assertEquals(read.status, 0);
    assertEquals(driver.ram.at(to + 512, bytes), data);
    assertEquals(driver.ram.at(to, 512), new Uint8Array(512));
    assertEquals(rig.interrupts.take().filter((v) => v === 1).length, 2);
    assert(rig.disk.commits >= 2);
  }
});

Deno.test("Read with FUA reads what is durable", () => {
  using rig = new Rig();
  const { driver, disk } = rig;
  const pair = rig.io();
  const prp1 = driver.page();
  disk.bytes.fill(0x5a, 1024, 1536);
  const read = (fua: boolean) =>
    driver.run({
      opcode: 2,
      nsid: 1,
      prp1,
      cdw10: 2,
      cdw12: fua ? 1 << 30 : 0,
    }, pair).status;
  const FLUSH = 2;
  const READ = 0;
  assertEquals(read(true), 0);
  assertEquals(disk.log.map(({ op }) => op), [FLUSH, READ]);
  assertEquals([disk.log[1]!.offset, disk.log[1]!.lengthBytes], [1024, 512]);
  assertEquals(driver.ram.at(prp1, 1)[0], 0x5a);
  assertEquals(read(false), 0);
  assertEquals(disk.log.map(({ op }) => op), [FLUSH, READ, READ]);
  disk.results.push(-5);
  assertEquals(read(true), SC.READ_ERROR);
  assertEquals(disk.log.length, 4, "nothing is read then");
});

Deno.test("Write with FUA is durable", () => {
  using rig = new Rig();
  const pair = rig.io();
  const prp1 = rig.driver.page();
  for (const fua of [false, true]) {
    const done = rig.driver.run(
      { opcode: 1, nsid: 1, prp1, cdw12: fua ? 1 << 30 : 0 },
      pair,
    );
    assertEquals(done.status, 0);
    assertEquals(rig.disk.log.at(-1)!.durable, fua);
  }
});

Deno.test("Flush reaches one namespace or all of them", () => {
  using rig = new Rig({ disks: { 1: 65536, 2: 65536, 5: 65536 } });
  const pair = rig.io();
  const count = () => [1, 2, 5].map((nsid) => rig.disks[nsid]!.log.length);
  assertEquals(rig.driver.run({ opcode: 0, nsid: 2 }, pair).status, 0);
  assertEquals(count(), [0, 1, 0]);
  assertEquals(
    rig.driver.run({ opcode: 0, nsid: 0xffff_ffff }, pair).status,
    0,
  );
  assertEquals(count(), [1, 2, 1]);
  assertEquals(rig.disks[2]!.log[0]!.op, BlockOp.FLUSH);
  // The first that fails ends it.
  rig.disks[2]!.results.push(-Errno.EIO);
  const failed = rig.driver.run({ opcode: 0, nsid: 0xffff_ffff }, pair);
  assertEquals(failed.status, SC.INTERNAL);
  assertEquals(count(), [2, 3, 1]);
});

Deno.test("Write Zeroes passes its attributes on", () => {
  using rig = new Rig();
  const pair = rig.io();
  rig.disk.bytes.fill(0xaa);
  const run = (bits: number) =>
    rig.driver.run({ opcode: 8, nsid: 1, cdw10: 3, cdw12: 4 | bits }, pair);
  assertEquals(run(0).status, 0);
  assertEquals(rig.disk.log.at(-1), {
    op: BlockOp.WRITE_ZEROES,
    offset: 1536,
    lengthBytes: 2560,
    durable: false,
    mayUnmap: false,
  });
  assertEquals(rig.disk.bytes.subarray(1536, 4096), new Uint8Array(2560));
  assertEquals([rig.disk.bytes[1535], rig.disk.bytes[4096]], [0xaa, 0xaa]);
  assertEquals(run((1 << 25) | (1 << 30)).status, 0);
  assertEquals(
    [rig.disk.log.at(-1)!.durable, rig.disk.log.at(-1)!.mayUnmap],
    [true, true],
  );
});

function ranges(
  rig: Rig,
  list: readonly (readonly [number, number])[],
): number {
  const at = rig.driver.page();
  list.forEach(([slba, blocks], i) => {
    const view = rig.ram.view;
    const offset = rig.ram.offset(at) + i * 16;
    view.setUint32(offset + 4, blocks, true);
    view.setBigUint64(offset + 8, BigInt(slba), true);
  });
  return at;
}

Deno.test("Dataset Management discards its ranges, at once and later", () => {
  for (const slow of [false, true]) {
    using rig = new Rig();
    const pair = rig.io();
    rig.disk.slow = slow;
    const prp1 = ranges(rig, [[0, 1], [100, 0], [5, 3], [2047, 1]]);
    rig.driver.put(pair, { opcode: 9, nsid: 1, prp1, cdw10: 3, cdw11: 4 });
    rig.driver.ring(pair);
    rig.settle();
    // What the driver does to the ranges now comes too late.
    rig.ram.at(prp1, 64).fill(0xff);
    while (rig.disk.pending.length > 0) {
      assertEquals(rig.driver.reap(pair), []);
      rig.disk.finish();
      rig.settle();
    }
    assertEquals(rig.driver.reap(pair)[0]!.status, 0);
    assertEquals(
      rig.disk.log.map((r) => [r.op, r.offset / 512, r.lengthBytes / 512]),
      [[BlockOp.DISCARD, 0, 1], [BlockOp.DISCARD, 5, 3], [
        BlockOp.DISCARD,
        2047,
        1,
      ]],
    );
  }
});

Deno.test("Dataset Management takes 256 ranges and refuses what is out of range", () => {
  using rig = new Rig();
  const pair = rig.io();
  const run = (
    list: readonly (readonly [number, number])[],
    ad = 4,
    count = list.length,
  ) =>
    rig.driver.run({
      opcode: 9,
      nsid: 1,
      prp1: ranges(rig, list),
      cdw10: count - 1,
      cdw11: ad,
    }, pair).status;
  const many = Array.from({ length: 256 }, (_, i) => [i * 2, 1] as const);
  assertEquals(run(many), 0);
  assertEquals(rig.disk.log.length, 256);
  rig.disk.log.length = 0;
  assertEquals(run([[0, 1], [2047, 2]]), SC.LBA);
  assertEquals(run([[2 ** 52, 1]]), SC.LBA);
  assertEquals(run([[0, 1]], 0), 0);
  assertEquals(run([[0, 0]]), 0);
  assertEquals(rig.disk.log, []);
  rig.disk.results.push(0, -Errno.EIO);
  assertEquals(run([[0, 1], [1, 1], [2, 1]]), SC.INTERNAL);
  assertEquals(rig.disk.log.length, 2);
});

Deno.test("Dataset Management does nothing where nothing can be discarded", () => {
  using rig = new Rig({ info: { discardGranularityBytes: 0 } });
  const pair = rig.io();
  const prp1 = ranges(rig, [[0, 1]]);
  const done = rig.driver.run({ opcode: 9, nsid: 1, prp1, cdw11: 4 }, pair);
  assertEquals([done.status, rig.disk.log.length], [0, 0]);
});

Deno.test("Compare tells equal from different, over several chunks", () => {
  using rig = new Rig({ disks: { 1: 1 << 20 } });
  const { driver, disk } = rig;
  const pair = rig.io();
  const bytes = 150 * 1024;
  disk.bytes.set(pattern(disk.bytes.length));
  const buffer = driver.page(40);
  driver.ram.write(buffer + 256, disk.bytes.subarray(512, 512 + bytes));
  const sqe = {
    opcode: 5,
    ...lba(1, bytes / 512),
    ...driver.prps(buffer, 256, bytes),
  };
  assertEquals(driver.run(sqe, pair).status, 0);
  assertEquals(disk.log.map((r) => [r.op, r.offset, r.lengthBytes]), [
    [BlockOp.READ, 512, 65536],
    [BlockOp.READ, 512 + 65536, 65536],
    [BlockOp.READ, 512 + 131072, bytes - 131072],
  ]);
  for (const at of [0, 65536, bytes - 1]) {
    disk.bytes[512 + at]! ^= 1;
    const done = driver.run(sqe, pair);
    assertEquals([done.status, done.dnr], [SC.COMPARE, true], `${at}`);
    disk.bytes[512 + at]! ^= 1;
  }
  disk.results.push(-Errno.EIO);
  assertEquals(driver.run(sqe, pair).status, SC.READ_ERROR);
  assertEquals(driver.run(sqe, pair).status, 0);
});

Deno.test("Compare commands take turns", () => {
  using rig = new Rig();
  const { driver, disk } = rig;
  const pair = rig.io();
  const prp1 = driver.page();
  disk.bytes.fill(9, 512, 1024);
  disk.slow = true;
  for (const slba of [0, 1, 0]) {
    driver.put(pair, { opcode: 5, ...lba(slba, 1), prp1 });
  }
  driver.ring(pair);
  rig.settle();
  const statuses: number[] = [];
  while (disk.pending.length > 0) {
    assertEquals(disk.pending.length, 1);
    disk.finish();
    rig.settle();
    statuses.push(...driver.reap(pair).map((c) => c.status));
  }
  assertEquals(statuses, [0, SC.COMPARE, 0]);
  // And those that wait when the disk turns fast.
  disk.slow = true;
  driver.put(pair, { opcode: 5, ...lba(0, 1), prp1 });
  driver.put(pair, { opcode: 5, ...lba(1, 1), prp1 });
  driver.put(pair, { opcode: 5, ...lba(0, 1), prp1 });
  driver.ring(pair);
  rig.settle();
  disk.slow = false;
  disk.finish();
  rig.settle();
  assertEquals(driver.reap(pair).map((c) => [c.cid, c.status]).sort(), [
    [4, 0],
    [5, SC.COMPARE],
    [6, 0],
  ]);
});

Deno.test("Compare gives up when memory was unmapped in between", () => {
  using rig = new Rig();
  const { driver, disk } = rig;
  rig.memory.map({ iova: 0x5000, lengthBytes: 4096 });
  const pair = rig.io();
  disk.slow = true;
  driver.put(pair, { opcode: 5, ...lba(0, 1), prp1: 0x5000 });
  driver.put(pair, { opcode: 5, ...lba(0, 1), prp1: 0x5000 });
  driver.ring(pair);
  rig.settle();
  rig.memory.unmap(0x5000, 4096);
  rig.settle();
  assertEquals(driver.reap(pair).map((c) => c.status), [SC.DATA, SC.DATA]);
  // What another uses, as behind an IOMMU, where memory is unmapped for each command.
  rig.memory.map({ iova: 0x5000, lengthBytes: 4096 });
  const prp1 = driver.page();
  driver.put(pair, { opcode: 5, ...lba(0, 1), prp1 });
  driver.put(pair, { opcode: 5, ...lba(0, 1), prp1 });
  driver.ring(pair);
  rig.settle();
  rig.memory.unmap(0x5000, 4096);
  assertEquals(disk.pending.length, 1, "nothing was hurried");
  while (disk.pending.length > 0) {
    disk.finish();
    rig.settle();
  }
  assertEquals(driver.reap(pair).map((c) => c.status), [0, 0]);
  disk.slow = false;
  assertEquals(
    driver.run({ opcode: 5, ...lba(0, 1), prp1 }, pair).status,
    0,
  );
});

Deno.test("a request that storage reports twice is completed once", () => {
  using rig = new Rig();
  const { driver, disk } = rig;
  const pair = rig.io();
  disk.slow = true;
  submitReads(rig, pair, 1);
  const request = disk.pending[0]!;
  disk.finish();
  disk.repeat(request);
  rig.settle();
  assertEquals(driver.reap(pair).length, 1);
  disk.repeat(request);
  rig.settle();
  assertEquals(driver.reap(pair), []);
});

Deno.test("I/O commands are refused with the status the standard names", () => {
  using rig = new Rig({ disks: { 1: 1 << 20, 3: 65536 } });
  const { driver } = rig;
  const pair = rig.io();
  const prp1 = driver.page();
  const last = (1 << 20) / 512;
  const cases: [string, Sqe, number][] = [
    ["reserved opcode", { opcode: 3, nsid: 1 }, SC.OPCODE],
    ["vendor opcode", { opcode: 0x80, nsid: 1 }, SC.OPCODE],
    ["fused", { opcode: 2, nsid: 1, prp1, flags: 1 }, SC.FIELD],
    ["reserved PSDT", { opcode: 2, nsid: 1, prp1, flags: 0xc0 }, SC.FIELD],
    ["nsid 0", { opcode: 2, nsid: 0, prp1 }, SC.NS],
    ["nsid beyond NN", { opcode: 2, nsid: 33, prp1 }, SC.NS],
    ["inactive nsid", { opcode: 2, nsid: 2, prp1 }, SC.FIELD],
    ["read of all", { opcode: 2, nsid: 0xffff_ffff, prp1 }, SC.NS],
    ["past the end", { opcode: 2, prp1, ...lba(last, 1) }, SC.LBA],
    ["across the end", { opcode: 1, prp1, ...lba(last - 1, 2) }, SC.LBA],
    ["zeroes across", { opcode: 8, ...lba(last - 1, 2) }, SC.LBA],
    ["compare across", { opcode: 5, prp1, ...lba(last - 1, 2) }, SC.LBA],
    [
      "wrap",
      { opcode: 2, nsid: 1, prp1, cdw10: 0xffff_ffff, cdw11: 0xffff_ffff },
      SC.LBA,
    ],
    [
      "wrap by two",
      {
        opcode: 2,
        nsid: 1,
        prp1,
        cdw10: 0xffff_ffff,
        cdw11: 0xffff_ffff,
        cdw12: 1,
      },
      SC.LBA,
    ],
    ["2^53", { opcode: 1, prp1, ...lba(2 ** 53, 1) }, SC.LBA],
    ["2^53 - 1", { opcode: 1, prp1, ...lba(2 ** 53 - 1, 8) }, SC.LBA],
  ];
  for (const [name, sqe, status] of cases) {
    const done = driver.run(sqe, pair);
    assertEquals([done.status, done.dnr], [status, true], name);
  }
  assertEquals(rig.disk.log, []);
  assertEquals(
    driver.run({ opcode: 2, prp1, ...lba(last - 1, 1) }, pair).status,
    0,
  );
  assertEquals(rig.device.counters().failedCommands, cases.length);
});

Deno.test("MDTS is the longest transfer", () => {
  using rig = new Rig({ info: { maxTransferBytes: 128 << 10 } });
  const { driver } = rig;
  const pair = rig.io();
  assertEquals(driver.identify(1).getUint8(77), 5);
  const buffer = driver.page(34);
  const run = (bytes: number) =>
    driver.run({
      opcode: 2,
      ...lba(0, bytes / 512),
      ...driver.prps(buffer, 0, bytes),
    }, pair).status;
  assertEquals(run(128 << 10), 0);
  assertEquals(run((128 << 10) + 512), SC.FIELD);
  // Write Zeroes transfers nothing.
  assertEquals(driver.run({ opcode: 8, ...lba(0, 2048) }, pair).status, 0);
});

Deno.test("a read-only namespace refuses writes", () => {
  using rig = new Rig({ info: { readonly: true } });
  const { driver } = rig;
  const pair = rig.io();
  const prp1 = ranges(rig, [[0, 1]]);
  assertEquals(driver.identify(0, 1).getUint8(99), 1);
  for (const sqe of [{ opcode: 1 }, { opcode: 8 }, { opcode: 9, cdw11: 4 }]) {
    const done = driver.run({ nsid: 1, prp1, ...sqe }, pair);
    assertEquals([done.status, done.dnr], [SC.WRITE_PROTECTED, true]);
  }
  assertEquals(driver.run({ opcode: 2, nsid: 1, prp1 }, pair).status, 0);
});

Deno.test("what storage cannot do becomes a status", () => {
  using rig = new Rig();
  const { driver, disk } = rig;
  const pair = rig.io();
  const prp1 = driver.page();
  const cases: [number, number, number, boolean][] = [
    [2, -Errno.EIO, SC.READ_ERROR, false],
    [1, -Errno.EIO, SC.WRITE_FAULT, false],
    [8, -Errno.EIO, SC.WRITE_FAULT, false],
    [0, -Errno.EIO, SC.INTERNAL, false],
    [1, -Errno.ENOSPC, SC.CAPACITY, false],
    [1, -Errno.EROFS, SC.WRITE_PROTECTED, true],
    [2, -Errno.ECANCELED, SC.ABORTED, false],
    [2, -Errno.EFAULT, SC.DATA, false],
    [2, -Errno.ENOMEM, SC.INTERNAL, false],
  ];
  for (const slow of [false, true]) {
    for (const [opcode, result, status, dnr] of cases) {
      disk.slow = slow;
      disk.results.push(result);
      driver.put(pair, { opcode, nsid: 1, prp1 });
      driver.ring(pair);
      rig.settle();
      if (slow) disk.finish();
      rig.settle();
      const [done] = driver.reap(pair);
      assertEquals([done!.status, done!.dnr], [status, dnr], `${opcode}`);
    }
  }
  assertEquals(rig.device.counters().mediaErrors, 8);
});

function submitReads(rig: Rig, pair: Pair, count: number): number[] {
  const buffer = rig.driver.page(count);
  const cids = Array.from(
    { length: count },
    (_, i) =>
      rig.driver.put(pair, {
        opcode: 2,
        ...lba(i * 8, 8),
        prp1: buffer + i * 4096,
      }),
  );
  rig.driver.ring(pair);
  rig.settle();
  return cids;
}

Deno.test("commands complete out of order, and an interrupt tells a batch", () => {
  using rig = new Rig();
  const { driver, disk } = rig;
  const pair = rig.io();
  disk.slow = true;
  rig.interrupts.take();
  const cids = submitReads(rig, pair, 5);
  assertEquals(rig.device.inFlight().length, 5);
  assertEquals(driver.reap(pair), []);
  for (const at of [4, 1, 2]) disk.finish(at);
  assertEquals(driver.reap(pair), []);
  rig.settle();
  assertEquals(rig.interrupts.take(), [1]);
  assertEquals(
    driver.reap(pair).map((c) => [c.cid, c.sqhd]),
    [[cids[4], 5], [cids[1], 5], [cids[3], 5]],
  );
  disk.finish();
  disk.finish();
  rig.settle();
  assertEquals(driver.reap(pair).map((c) => c.cid), [cids[0], cids[2]]);
  assertEquals(rig.device.inFlight().length, 0);
});

Deno.test("a register write never executes a command", () => {
  using rig = new Rig();
  const pair = rig.io();
  rig.driver.put(pair, { opcode: 0, nsid: 1 });
  rig.driver.ring(pair);
  assertEquals(rig.disk.log, []);
  rig.loop.turn();
  assertEquals(rig.disk.log.length, 1);
});

Deno.test("a full completion queue is never overwritten: fetching stops until there is room", () => {
  for (const shadow of [false, true]) {
    using rig = new Rig();
    const { driver } = rig;
    const pair = driver.createPair(1, 64, 1, 4);
    if (shadow) driver.configureShadow();
    const cids: number[] = [];
    for (let i = 0; i < 40; i++) {
      cids.push(driver.put(pair, { opcode: 0, nsid: 1 }));
    }
    driver.ring(pair);
    rig.settle();
    assertEquals(rig.disk.log.length, 3);
    assert(rig.device.counters().completionQueueFull! > 0);
    const seen: number[] = [];
    for (;;) {
      const found = driver.reap(pair);
      if (found.length === 0) break;
      assertEquals(found.length <= 3, true);
      seen.push(...found.map((c) => c.cid));
    }
    assertEquals(seen, cids);
  }
});

Deno.test("room in the completion queue is kept for commands in flight", () => {
  using rig = new Rig();
  const { driver, disk } = rig;
  const pair = driver.createPair(1, 64, 1, 4);
  disk.slow = true;
  submitReads(rig, pair, 10);
  assertEquals(disk.pending.length, 3);
  disk.finish(2);
  rig.settle();
  // One posted, two in flight: no room for another until it is consumed.
  assertEquals(disk.pending.length, 2);
  assertEquals(driver.reap(pair).length, 1);
  assertEquals(disk.pending.length, 3);
});

Deno.test("a command identifier in use is a conflict", () => {
  using rig = new Rig();
  const { driver, disk } = rig;
  const pair = rig.io();
  const other = driver.createPair(2);
  const prp1 = driver.page();
  disk.slow = true;
  for (const each of [pair, other]) {
    driver.put(each, { opcode: 2, nsid: 1, prp1, cid: 7 });
    driver.ring(each);
  }
  driver.put(pair, { opcode: 2, nsid: 1, prp1, cid: 7 });
  driver.ring(pair);
  rig.settle();
  assertEquals(driver.reap(pair).map((c) => [c.cid, c.status]), [[7, SC.CID]]);
  // The first one still has it.
  driver.put(pair, { opcode: 2, nsid: 1, prp1, cid: 7 });
  driver.ring(pair);
  rig.settle();
  assertEquals(driver.reap(pair).map((c) => c.status), [SC.CID]);
  disk.finish();
  disk.finish();
  rig.settle();
  assertEquals(driver.reap(pair).map((c) => c.status), [0]);
  assertEquals(driver.reap(other).map((c) => c.status), [0]);
  disk.slow = false;
  assertEquals(
    driver.run({ opcode: 2, nsid: 1, prp1, cid: 7 }, pair).status,
    0,
  );
});

Deno.test("queues get their turns: a busy one does not starve another", () => {
  using rig = new Rig();
  const { driver, disk } = rig;
  const busy = driver.createPair(1, 512);
  const quiet = driver.createPair(2, 16);
  for (let i = 0; i < 400; i++) driver.put(busy, { opcode: 0, nsid: 1 });
  driver.put(quiet, { opcode: 8, nsid: 1 });
  driver.ring(busy);
  driver.ring(quiet);
  rig.loop.turn();
  const at = disk.log.findIndex((r) => r.op === BlockOp.WRITE_ZEROES);
  assert(at >= 0 && at <= 8, `${at}`);
  // A turn of the loop has its limit.
  assert(disk.log.length < 200);
  rig.settle();
  assertEquals(disk.log.length, 401);
});

Deno.test("more commands than the controller keeps in flight wait, admin commands do not", () => {
  using rig = new Rig();
  const { driver, disk } = rig;
  const pair = driver.createPair(1, 512);
  disk.slow = true;
  const buffer = driver.page();
  for (let i = 0; i < 500; i++) {
    driver.put(pair, { opcode: 2, nsid: 1, prp1: buffer });
  }
  driver.ring(pair);
  rig.settle();
  assertEquals(disk.pending.length, 256);
  assertEquals(driver.identify(1).getUint8(111), 1);
  let done = 0;
  while (disk.pending.length > 0) {
    disk.finish(disk.pending.length >> 1);
    rig.settle();
    done += driver.reap(pair).length;
  }
  assertEquals(done, 500);
});

Deno.test("an unmapped ring is waited for, and the rest goes on when it is back", () => {
  using rig = new Rig();
  const { driver, disk } = rig;
  const pair = rig.io();
  disk.slow = true;
  submitReads(rig, pair, 2);
  const bytes = rig.ram.bytes.buffer;
  rig.memory.unmap(RAM_IOVA, RAM_BYTES);
  assertEquals([disk.drains, disk.pending.length], [1, 0]);
  rig.settle();
  rig.memory.map({ iova: RAM_IOVA, lengthBytes: RAM_BYTES, buffer: bytes });
  rig.settle();
  assertEquals(driver.reap(pair).map((c) => c.status), [0, 0]);
  disk.slow = false;
  assertEquals(driver.run({ opcode: 0, nsid: 1 }, pair).status, 0);
});

Deno.test("a ring that is used and stays unmapped fails the controller", () => {
  using rig = new Rig();
  const { driver, loop } = rig;
  const pair = rig.io();
  const bytes = rig.ram.bytes.buffer;
  rig.memory.unmap(RAM_IOVA, RAM_BYTES);
  loop.advance(10 * RING_ABSENCE_MS);
  assertEquals(driver.csts, 1, "nobody wanted it");
  driver.put(pair, { opcode: 0, nsid: 1 });
  driver.ring(pair);
  rig.settle();
  loop.advance(RING_ABSENCE_MS - 1);
  driver.ring(pair);
  rig.settle();
  assertEquals(driver.csts, 1);
  loop.advance(1);
  assertEquals(driver.csts & 2, 2);
  const warnings = rig.context.log.records.filter(({ level }) =>
    level === "warn"
  );
  assertEquals(warnings.length, 1);
  assertMatch(warnings[0]!.message, /completion queue 0 is not mapped/);
  rig.memory.map({ iova: RAM_IOVA, lengthBytes: RAM_BYTES, buffer: bytes });
  driver.disable();
  driver.enable();
  assertEquals(driver.run({ opcode: 0, nsid: 1 }, rig.io()).status, 0);
});

Deno.test("queues cannot be created in memory that is not mapped", () => {
  using rig = new Rig();
  const { driver } = rig;
  const end = RAM_IOVA + RAM_BYTES - 4096;
  const cq = { opcode: 5, cdw10: 1 | 511 << 16, cdw11: 3 | 1 << 16 };
  assertEquals(driver.run({ ...cq, prp1: end }).status, SC.FIELD);
  rig.memory.mapPages({ iova: RAM_IOVA + RAM_BYTES, lengthBytes: 8192 });
  assertEquals(driver.run({ ...cq, prp1: end }).status, 0);
  const sq = { opcode: 1, cdw10: 1 | 511 << 16, cdw11: 1 | 1 << 16 };
  assertEquals(driver.run({ ...sq, prp1: end }).status, SC.FIELD);
  rig.memory.mapPages({
    iova: RAM_IOVA + RAM_BYTES + 8192,
    lengthBytes: 7 * 4096,
  });
  assertEquals(driver.run({ ...sq, prp1: end }).status, 0);
});

Deno.test("queues, PRP lists and data may lie in any number of mappings", () => {
  using rig = new Rig({ byPage: true, disks: { 1: 1 << 20 } });
  const { driver, disk, ram } = rig;
  const pair = rig.io(600);
  const bytes = 64 * 4096;
  const data = driver.page(65);
  ram.write(data + 512, pattern(bytes));
  const write = {
    opcode: 1,
    ...lba(0, bytes / 512),
    ...driver.prps(data, 512, bytes),
  };
  assertEquals(driver.run(write, pair).status, 0);
  assertEquals(disk.bytes.subarray(0, bytes), pattern(bytes));
  // Once around both rings, across every page of them.
  for (let i = 0; i < 700; i++) {
    const read = { opcode: 2, ...lba(i, 1), prp1: data };
    assertEquals(driver.run(read, pair).status, 0);
    const block = disk.bytes.subarray(i * 512, i * 512 + 512);
    assertEquals(ram.at(data, 512), block);
  }
});

Deno.test("stop keeps completions back, start tells them", () => {
  using rig = new Rig();
  const { driver, disk } = rig;
  const pair = rig.io();
  disk.slow = true;
  submitReads(rig, pair, 3);
  rig.interrupts.take();
  rig.device.stop();
  assertEquals(disk.pending.length, 0);
  driver.put(pair, { opcode: 0, nsid: 1 });
  driver.ring(pair);
  rig.settle();
  assertEquals([driver.reap(pair), rig.interrupts.take()], [[], []]);
  assertEquals(disk.log.length, 3);
  disk.slow = false;
  rig.device.start();
  rig.settle();
  assertEquals(driver.reap(pair).map((c) => c.status), [0, 0, 0, 0]);
  assertEquals(rig.interrupts.take().length > 0, true);
});

Deno.test("a reset drops what is in flight and leaves memory alone", () => {
  for (
    const how of ["cc", "device", "cancelled"] as const
  ) {
    using rig = new Rig();
    const { driver, disk } = rig;
    const pair = rig.io();
    disk.slow = true;
    submitReads(rig, pair, 4);
    driver.put(pair, { opcode: 5, nsid: 1, prp1: driver.page() });
    driver.put(pair, { opcode: 5, nsid: 1, prp1: driver.page() });
    driver.put(driver.admin, { opcode: 12 });
    driver.ring(pair);
    driver.ring(driver.admin);
    rig.settle();
    disk.finish(1);
    if (how === "cancelled") disk.drainResult = -Errno.ECANCELED;
    rig.interrupts.take();
    const cq = driver.ram.at(pair.cq, 256).slice();
    if (how === "device") rig.device.reset("device_reset");
    else driver.write(0x14, 0x0046_0000);
    rig.settle();
    assertEquals(driver.csts, 0);
    assertEquals([disk.drains, disk.pending.length], [1, 0], how);
    assertEquals(rig.device.inFlight().length, 0);
    assertEquals(driver.ram.at(pair.cq, 256), cq);
    assertEquals(rig.interrupts.take(), []);
    disk.slow = false;
    driver.enable();
    const again = rig.io();
    assertEquals(driver.run({ opcode: 0, nsid: 1 }, again).status, 0);
    const prp1 = driver.page();
    assertEquals(driver.run({ opcode: 5, nsid: 1, prp1 }, again).status, 0);
  }
});

Deno.test("NvmeController.close closes its storage once and leaves the loop", () => {
  const rig = new Rig({ disks: { 1: 65536, 2: 65536 } });
  rig.disks[1]!.slow = true;
  const pair = rig.io();
  submitReads(rig, pair, 1);
  rig.device.close();
  assertEquals([rig.disks[1]!.closed, rig.disks[2]!.closed], [1, 1]);
  assertEquals(
    [rig.loop.pollerCount, rig.loop.timerCount, rig.loop.hasScheduled],
    [0, 0, false],
  );
});

Deno.test("the error log names the block at which the storage failed", () => {
  using rig = new Rig({ info: { sizeBytes: 2 ** 44 } });
  const { driver, disk } = rig;
  const pair = rig.io();
  const prp1 = driver.page();
  // Two ranges, of which the second fails.
  driver.ram.writeU64(prp1, 2 ** 32);
  driver.ram.writeU64(prp1 + 16, 2 ** 32);
  driver.ram.writeU64(prp1 + 24, 77);
  const far = 2 ** 33 + 5;
  const cases: [string, Partial<Sqe>, number[], number][] = [
    ["read", { opcode: 2, ...lba(far, 2) }, [-Errno.EIO], far],
    ["write", { opcode: 1, ...lba(far, 2) }, [-Errno.EIO], far],
    ["zeroes", { opcode: 8, ...lba(9, 2) }, [-Errno.EIO], 9],
    ["compare", { opcode: 5, ...lba(9, 1) }, [-Errno.EIO], 9],
    ["ranges", { opcode: 9, cdw10: 1, cdw11: 4 }, [0, -Errno.EIO], 77],
    ["flush", { opcode: 0 }, [-Errno.EIO], 0],
    [
      "read, at the flush before it",
      { opcode: 2, ...lba(9, 1), cdw12: 1 << 30 },
      [-Errno.EIO],
      9,
    ],
  ];
  for (const [name, sqe, results, block] of cases) {
    disk.results.push(...results);
    const done = driver.run({ opcode: 0, nsid: 1, prp1, ...sqe }, pair);
    assert(done.status !== 0, name);
    assertEquals([done.more, done.dnr], [true, false], name);
    const log = driver.logPage(1, 64);
    assertEquals(log.getUint16(10, true), done.cid, name);
    assertEquals(log.getBigUint64(16, true), BigInt(block), name);
    assertEquals(log.getUint32(24, true), 1, name);
  }
  const smart = driver.logPage(2, 512);
  assertEquals(smart.getBigUint64(160, true), BigInt(cases.length));
  // Blocks 3 and 4 are as those of the driver but for a byte in the second.
  driver.ram.at(prp1, 1024).fill(0);
  driver.ram.at(prp1 + 700, 1).fill(1);
  const differs = driver.run(
    { opcode: 5, nsid: 1, ...lba(3, 2), prp1 },
    pair,
  );
  assertEquals(differs.status, SC.COMPARE);
  assertEquals(driver.logPage(1, 64).getBigUint64(16, true), 4n);
});
