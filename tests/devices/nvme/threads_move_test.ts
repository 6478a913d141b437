import { assert, assertEquals } from "@std/assert";
import { SC } from "./rig.ts";
import { seededRandom, Workload } from "./workload.ts";
import { ThreadsRig } from "./threads_rig.ts";

const FLUSH = { opcode: 0, nsid: 1 };
const READ = { opcode: 2, nsid: 1 };
const PIECES = 64;

/** Places of queues 1, 2, … in turns: of all on one thread, of single ones elsewhere, and of none but the control thread. */
const PLACES: readonly (readonly number[] | null)[] = [
  [0, 1],
  [0, 2],
  [1],
  [2, 2, 0],
  null,
  [2, 1, 0],
  [0],
  [1, 0],
];

for (
  const [name, shadow, mapDoorbells] of [
    ["messages", false, false],
    ["shadow doorbells", true, false],
    ["a mapped page", false, true],
  ] as const
) {
  Deno.test(`queues move from thread to thread with commands under way and lose nothing (${name})`, () => {
    using rig = new ThreadsRig({ threads: 3, controller: { mapDoorbells } });
    const { driver, device } = rig;
    if (mapDoorbells) {
      const page = new Uint32Array(
        device.spec.bars[0]!.mmap![0]!.memory.bytes.buffer,
      );
      const { write } = driver;
      driver.write = (offset, value) => {
        if (offset < 0x1000) write.call(driver, offset, value);
        else page[(offset - 0x1000) / 4] = value;
      };
      // A timer looks, on each thread.
      driver.loop.settle = () => {
        rig.advance(1);
        rig.advance(1);
      };
    }
    if (shadow) driver.configureShadow();
    const random = seededRandom(4712);
    const loads = [1, 2, 3].map((qid) =>
      new Workload(
        driver,
        driver.createPair(qid, 16),
        random,
        (qid - 1) * PIECES,
        PIECES,
      )
    );
    for (let round = 0; round < 64; round++) {
      for (const { disk } of rig.members) disk.slow = random() < 0.5;
      for (let step = 0; step < 4; step++) {
        for (const load of loads) load.submit(Math.floor(random() * 6));
        rig.advance(1);
        for (const load of loads) if (random() < 0.7) load.reap();
      }
      rig.move(PLACES[round % PLACES.length]!);
    }
    for (const { disk } of rig.members) disk.slow = false, disk.drain();
    for (const load of loads) {
      load.reap();
      load.verify(() => driver.loop.settle());
    }
    const done = loads.reduce((sum, each) => sum + each.done, 0);
    assertEquals(rig.counter("reads") + rig.counter("writes"), done);
    assertEquals(rig.counter("invalidDoorbells"), 0);
    for (const { disk } of rig.members) assert(disk.log.length > 0);
  });
}

Deno.test("logs and counters of a queue go on where it has moved to", () => {
  using rig = new ThreadsRig({ threads: 3 });
  const { driver } = rig;
  const [, pair] = rig.pairs();
  for (const [i, place] of PLACES.entries()) {
    assertEquals(driver.run({ opcode: 0x55, nsid: i }, pair).status, SC.OPCODE);
    const read = { ...READ, prp1: driver.page() };
    assertEquals(driver.run(read, pair).status, 0);
    rig.move(place);
  }
  const count = PLACES.length;
  const errors = driver.logPage(1, count * 64);
  for (let i = 0; i < count; i++) {
    assertEquals(errors.getUint32(i * 64, true), count - i);
    assertEquals(errors.getUint32(i * 64 + 24, true), count - 1 - i, "nsid");
  }
  const health = driver.logPage(2, 512);
  assertEquals(health.getUint32(64, true), count, "host reads");
  assertEquals(health.getUint32(176, true), count, "errors");
  assertEquals(rig.counter("failedCommands"), count);
});

Deno.test("the line stays up with what a moved queue holds, and goes down when that is consumed", () => {
  using rig = new ThreadsRig({ mode: "intx" });
  const { driver } = rig;
  const [, pair] = rig.pairs();
  for (const place of [[0], [1], null, [0, 1]]) {
    rig.submit(pair, FLUSH);
    rig.settle();
    assertEquals(rig.level, true);
    rig.move(place);
    assertEquals(rig.level, true);
    rig.settle();
    assertEquals(rig.level, true);
    assertEquals(driver.reap(pair).length, 1);
    assertEquals(rig.level, false);
  }
});

Deno.test("completions that no interrupt has told about are told by the thread of before, or of now", () => {
  using rig = new ThreadsRig();
  const { driver } = rig;
  const [, pair] = rig.pairs();
  assertEquals(driver.setFeature(8, 7 | 255 << 8).status, 0);
  rig.interrupts();
  for (const place of [[0], [0, 1], null, [1, 1]]) {
    rig.submit(pair, FLUSH);
    rig.settle();
    assertEquals(rig.interrupts(), [[], []]);
    rig.move(place);
    rig.settle();
    assertEquals(rig.interrupts().flat(), [2]);
  }
});

Deno.test("a full completion queue is as full on another thread, and a refused doorbell stays refused", () => {
  using rig = new ThreadsRig();
  const { driver } = rig;
  const pair = driver.createPair(2, 16, 2, 4);
  for (let i = 0; i < 9; i++) driver.put(pair, FLUSH);
  driver.ring(pair);
  rig.settle();
  let done = 0;
  for (const place of [[0], [1], null, [0, 1]]) {
    rig.move(place);
    rig.settle();
    done += driver.reap(pair).length;
  }
  assertEquals(done, 9);
  driver.write(0x1000 + 8 * 2 + 4, 3);
  rig.settle();
  for (const place of [[0], [1], null]) {
    rig.move(place);
    rig.settle();
  }
  assertEquals(rig.counter("invalidDoorbells"), 1);
});

Deno.test("commands that wait for an event stay, and a shutdown and a reset reach queues where they are", () => {
  using rig = new ThreadsRig();
  const { driver } = rig;
  rig.submit(driver.admin, { opcode: 12 });
  rig.settle();
  const [, pair] = rig.pairs();
  rig.move([0]);
  rig.move([1, 0]);
  assertEquals(driver.run(FLUSH, pair).status, 0);
  driver.write(0x1000 + 8 * 5, 1);
  rig.settle();
  assertEquals(driver.reap(driver.admin).map(({ dw0 }) => dw0), [0x1_0000]);
  driver.write(0x14, 0x0046_4001);
  rig.settle();
  assertEquals(driver.csts >>> 2 & 3, 2, "complete");
  rig.move([1]);
  assertEquals(driver.csts >>> 2 & 3, 2, "complete");
  driver.disable();
  rig.move([0, 1]);
  driver.enable();
  for (const each of rig.pairs()) {
    assertEquals(driver.run(FLUSH, each).status, 0);
  }
});

Deno.test("a controller that fails has no commands any more, and may move", () => {
  using rig = new ThreadsRig();
  const { driver, memory, other } = rig;
  const ring = 0x9_0000_0000;
  memory.map({ iova: ring, lengthBytes: 4096 });
  const create = (opcode: number, cdw11: number) =>
    driver.run({ opcode, prp1: ring, cdw10: 2 | 15 << 16, cdw11 }).status;
  assertEquals([create(5, 3 | 2 << 16), create(1, 1 | 2 << 16)], [0, 0]);
  other.disk.slow = true;
  memory.unmap(ring, 4096);
  driver.write(0x1000 + 8 * 2, 1);
  rig.advance(1);
  assertEquals(driver.csts & 2, 0);
  rig.advance(10_000);
  assertEquals(driver.csts & 2, 2, "fatal");
  assertEquals(rig.counter("fatalErrors"), 1);
  rig.move([0]);
  driver.disable();
  driver.enable();
  assertEquals(driver.run(FLUSH, driver.createPair(2)).status, 0);
});
