import { ResourceBag } from "../../../src/os/mod.ts";
import { createPciDevice } from "../pci_device.ts";
import { assertEquals, assertThrows } from "@std/assert";
import { nvmeModel } from "../../../devices/nvme/mod.ts";
import { BlockOp } from "../../../src/backend/block/contract.ts";
import type { QueueGrant } from "../../../devices/nvme/threads/queue_service.ts";
import type {
  QueueService,
  QueueThreads,
} from "../../../src/pci/queue_threads.ts";
import { fakeContext } from "../../../src/testing/fake_context.ts";
import { Folder } from "../../backend/block/rig.ts";
import { openFds, sharedMappings } from "../../resources.ts";
import { ThreadsRig } from "./threads_rig.ts";
import { SC } from "./rig.ts";

const FLUSH = { opcode: 0, nsid: 1 };
const READ = { opcode: 2, nsid: 1 };
const COALESCING = 8;
const WRITE_CACHE = 6;

Deno.test("the error log has the commands of all threads in the order in which they failed", () => {
  using rig = new ThreadsRig({ threads: 3 });
  const { driver } = rig;
  const pairs = [1, 2, 3].map((qid) => driver.createPair(qid));
  const failed: number[] = [];
  for (let i = 0; i < 25; i++) {
    const pair = pairs[(i * 2 + (i >> 2)) % 3]!;
    assertEquals(driver.run({ opcode: 0x55, nsid: 100 + i }, pair).status, 1);
    failed.push(pair.qid);
  }
  const page = driver.logPage(1, 1024);
  for (let i = 0; i < 16; i++) {
    const at = i * 64;
    assertEquals(page.getUint32(at, true), 25 - i, "error count");
    assertEquals(page.getUint16(at + 8, true), failed[24 - i], "sqid");
    assertEquals(page.getUint32(at + 24, true), 100 + 24 - i, "nsid");
  }
  assertEquals(rig.counter("failedCommands"), 25);
  // A reset of the controller keeps the log.
  driver.disable();
  driver.enable();
  assertEquals(driver.logPage(1, 1024).getUint32(0, true), 25);
});

Deno.test("the health log sums up what all threads did", () => {
  using rig = new ThreadsRig({ threads: 3 });
  const { driver } = rig;
  for (const qid of [1, 2, 3]) {
    const pair = driver.createPair(qid);
    const prp1 = driver.page();
    for (let i = 0; i < qid; i++) {
      assertEquals(driver.run({ ...READ, prp1 }, pair).status, 0);
      assertEquals(driver.run({ opcode: 1, nsid: 1, prp1 }, pair).status, 0);
    }
    rig.owner(qid).disk.results.push(-5);
    assertEquals(driver.run({ ...READ, prp1 }, pair).status, SC.READ_ERROR);
  }
  const page = driver.logPage(2, 512);
  assertEquals(page.getUint32(64, true), 6, "host reads");
  assertEquals(page.getUint32(80, true), 6, "host writes");
  assertEquals(page.getUint32(160, true), 3, "media errors");
  assertEquals(page.getUint32(176, true), 3, "error log entries");
});

Deno.test("Abort ends a command that waits on another thread", () => {
  using rig = new ThreadsRig();
  const { driver, other } = rig;
  const [, pair] = rig.pairs();
  other.disk.slow = true;
  const compare = () =>
    rig.submit(pair, { opcode: 5, nsid: 1, prp1: driver.page() });
  const first = compare();
  const second = compare();
  rig.settle();
  const abort = (sqid: number, cid: number) =>
    driver.run({ opcode: 8, cdw10: sqid | cid << 16 }).dw0;
  assertEquals(abort(2, first), 1, "with the storage");
  assertEquals(abort(1, second), 1, "another queue");
  assertEquals(abort(2, 999), 1, "no such command");
  assertEquals(abort(2, second), 0);
  assertEquals(
    driver.reap(pair).map(({ cid, status }) => [cid, status]),
    [[second, SC.ABORTED]],
  );
  other.disk.finish();
  rig.settle();
  assertEquals(driver.reap(pair).map(({ cid }) => cid), [first]);
});

Deno.test("features are known to every thread before the command is completed", () => {
  using rig = new ThreadsRig();
  const { driver, control, other } = rig;
  const [, pair] = rig.pairs();
  rig.submit(driver.admin, { opcode: 9, cdw10: WRITE_CACHE, cdw11: 0 });
  // The control thread alone has had its turn.
  rig.turn(control);
  assertEquals(driver.reap(driver.admin, false).length, 1);
  assertEquals([control.disk.writeCache, other.disk.writeCache], [
    false,
    false,
  ]);
  assertEquals(driver.setFeature(COALESCING, 3 | 20 << 8).status, 0);
  rig.interrupts();
  for (let i = 0; i < 3; i++) rig.submit(pair, FLUSH);
  rig.settle();
  assertEquals(rig.interrupts(), [[], []]);
  rig.submit(pair, FLUSH);
  rig.settle();
  assertEquals(rig.interrupts(), [[], [2]]);
  rig.submit(pair, FLUSH);
  rig.settle();
  assertEquals(rig.interrupts(), [[], []]);
  rig.advance(2);
  assertEquals(rig.interrupts(), [[], [2]]);
  // What waits is told when coalescing ends.
  rig.submit(pair, FLUSH);
  rig.settle();
  assertEquals(driver.setFeature(COALESCING, 0).status, 0);
  assertEquals(rig.interrupts()[1], [2]);
  driver.disable();
  assertEquals([control.disk.writeCache, other.disk.writeCache], [true, true]);
});

Deno.test("CC.MPS holds on every thread", () => {
  using rig = new ThreadsRig();
  const { driver } = rig;
  driver.disable();
  driver.page = () => rig.ram.alloc(8192, 8192);
  // Pages of 8 KiB.
  driver.enable(32, 0x0046_0081);
  const pair = driver.createPair(2);
  // 8 KiB in one PRP: with smaller pages it would take two.
  const prp1 = driver.page();
  driver.ram.at(prp1, 8192).fill(7);
  const write = { opcode: 1, nsid: 1, prp1, cdw12: 15 };
  assertEquals(driver.run(write, pair).status, 0);
  assertEquals(
    rig.control.disk.bytes.subarray(0, 8192).every((b) => b === 7),
    true,
  );
  assertEquals(rig.other.disk.log.length, 1);
});

Deno.test("CC.SHN has every thread finish what it has fetched, and then flushes", () => {
  using rig = new ThreadsRig();
  const { driver, control, other } = rig;
  const [, pair] = rig.pairs();
  other.disk.slow = true;
  rig.submit(pair, { opcode: 1, nsid: 1, prp1: driver.page() });
  rig.settle();
  assertEquals(other.disk.pending.length, 1);
  let pending = -1;
  const { submit: flush } = control.disk;
  control.disk.submit = (request) => {
    if (request.op === BlockOp.FLUSH) pending = other.disk.pending.length;
    return flush.call(control.disk, request);
  };
  driver.write(0x14, 0x0046_4001);
  rig.settle();
  assertEquals(pending, 0, "in flight while it is flushed");
  assertEquals(driver.csts >>> 2 & 3, 2, "complete");
  assertEquals(driver.reap(pair).length, 1);
});

Deno.test("threads that are stopped touch nothing, and find what was rung meanwhile", () => {
  using rig = new ThreadsRig();
  const { driver, other } = rig;
  const [, pair] = rig.pairs();
  other.disk.slow = true;
  rig.submit(pair, FLUSH);
  rig.settle();
  rig.device.stop();
  assertEquals(other.disk.pending.length, 0);
  rig.submit(pair, FLUSH);
  rig.settle();
  assertEquals(other.context.loop.pollOnce(), false);
  assertEquals(driver.reap(pair, false), []);
  other.disk.slow = false;
  rig.device.start();
  rig.settle();
  assertEquals(driver.reap(pair).length, 2);
});

Deno.test("a namespace that grows or shrinks does so for all threads, and is told once", () => {
  using rig = new ThreadsRig({ threads: 3 });
  const { driver } = rig;
  const pairs = [1, 2, 3].map((qid) => driver.createPair(qid));
  assertEquals(driver.setFeature(11, 1 << 8).status, 0);
  const read = (lba: number) =>
    pairs.map((pair) =>
      driver.run({ ...READ, prp1: driver.page(), cdw10: lba }, pair).status
    );
  assertEquals(read(3000), [SC.LBA, SC.LBA, SC.LBA]);
  for (const cid of [1, 2]) rig.submit(driver.admin, { opcode: 12, cid });
  const resize = (...words: string[]) => {
    rig.device.commands["resize"]!.run(words);
    rig.settle();
  };
  resize("2M");
  assertEquals(read(3000), [0, 0, 0]);
  assertEquals(driver.reap(driver.admin).map(({ dw0 }) => dw0), [0x4_0002]);
  resize("1M", "--shrink");
  assertEquals(read(3000), [SC.LBA, SC.LBA, SC.LBA]);
  assertEquals(driver.logPage(4, 4096).getUint32(0, true), 1);
});

Deno.test("every thread goes on after a command of a person that not all of them obeyed", () => {
  using rig = new ThreadsRig({ threads: 3 });
  const { driver } = rig;
  const pairs = [1, 2, 3].map((qid) => driver.createPair(qid));
  for (const op of ["stop", "configure"]) {
    rig.other.broken = op;
    const resize = () => rig.device.commands["resize"]!.run(["1M"]);
    assertThrows(resize, Error, `broken at ${op}`);
    rig.other.broken = null;
    for (const pair of pairs) assertEquals(driver.run(FLUSH, pair).status, 0);
  }
});

Deno.test("a controller has a group for each completion queue, unless its storage has one thread", () => {
  using rig = new ThreadsRig();
  assertEquals(rig.device.queueGroups(), [-1, 0, 1, 2, 3, 4, 5]);
  delete rig.control.disk.share;
  assertEquals(rig.device.queueGroups(), [-1, -1, -1, -1, -1, -1, -1]);
  rig.move([0, 1]);
  assertEquals(rig.other.service, null);
  const pair = rig.driver.createPair(2);
  assertEquals(rig.driver.run(FLUSH, pair).status, 0);
  assertEquals(rig.submissions()[0], 1);
});

Deno.test("nvmeModel serves what a controller shares of its storage, and leaves nothing behind", () => {
  using folder = new Folder();
  const options = nvmeModel.options!.parse({
    "ns1.file": folder.image("disk", 1 << 20),
    "ns3.memory": "1M",
  });
  const before = [openFds(), sharedMappings()];
  const context = fakeContext();
  const device = createPciDevice(nvmeModel, context, options);
  const alone = [openFds(), sharedMappings()];
  const services: QueueService[] = [];
  let refuse = false;
  const threads: QueueThreads = {
    count: 1,
    threadOf: (group) => group === 0 ? 1 : 0,
    attach: ({ words }) => shared = new Int32Array(words),
    open: (_thread, grant) => {
      using bag = ResourceBag.of();
      const state = structuredClone(grant(bag)) as QueueGrant;
      // Its first namespace is there by the time that the second turns out to be missing.
      if (refuse) (state.namespaces[1] as { state: unknown }).state = {};
      const more = { words: shared, sharedMemory: [], report: () => {} };
      services.push(
        nvmeModel.serve!({ ...context, ...more }, options, { state, bag }),
      );
    },
    call: (_thread, message) => services[0]!.handle(message),
    callAll: (message) => services.map((each) => each.handle(message)),
    wake: () => {},
    close: () => services.pop()?.close(),
    stop: () => {},
    start: () => {},
    deliver: () => {},
    forget: () => {},
    counters: () => ({}),
  };
  let shared = new Int32Array();
  for (let round = 0; round < 2; round++) {
    device.place!(threads);
    assertEquals(services.length, 1);
    device.place!(null);
    assertEquals([openFds(), sharedMappings()], alone);
  }
  refuse = true;
  assertThrows(() => device.place!(threads), Error, "Cannot ");
  assertEquals([openFds(), sharedMappings()], alone);
  device.close();
  assertEquals([openFds(), sharedMappings()], before);
});
