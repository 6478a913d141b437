import { assert, assertEquals } from "@std/assert";
import { ThreadsRig } from "./threads_rig.ts";
import { entry, generator } from "./fuzz_entries.ts";
import { RAM_BYTES, RAM_IOVA } from "./rig.ts";

const SEED = Date.now() >>> 0;
const THREADS = 3;
const END = RAM_IOVA + RAM_BYTES;
const SHADOW = END - 8192;
const EVENT_IDX = END - 4096;
/** Submission and completion queue n are n times two pages before these. */
const RINGS = END - 8192;

class Fuzz {
  readonly rig = new ThreadsRig({ threads: THREADS });
  readonly random = generator(SEED);
  readonly shadow: boolean;
  resets = 0;

  constructor(shadow: boolean) {
    this.shadow = shadow;
  }

  /** A queue for each thread, on a controller that is ready. */
  begin(): void {
    const { rig: { driver }, random } = this;
    if ((driver.csts & 3) !== 1) {
      driver.write(0x14, 0);
      this.rig.settle();
      driver.shadow = null;
      driver.enable();
      this.resets++;
    }
    const run = (sqe: Parameters<typeof driver.run>[0]) =>
      assertEquals(driver.run(sqe).status, 0);
    for (let qid = 1; qid <= THREADS; qid++) {
      const ring = RINGS - qid * 8192;
      const cdw10 = qid | 15 << 16;
      run({ opcode: 5, prp1: ring + 4096, cdw10, cdw11: 3 | qid << 16 });
      run({ opcode: 1, prp1: ring, cdw10, cdw11: 1 | qid << 16 });
    }
    if (this.shadow) run({ opcode: 0x7c, prp1: SHADOW, prp2: EVENT_IDX });
    for (const { disk } of this.rig.members) {
      disk.slow = random.below(3) === 0;
      if (random.below(4) === 0) disk.results.push(-5);
    }
  }

  step(): void {
    const { rig, random } = this;
    const { driver, ram } = rig;
    ram.write(driver.admin.sq + random.below(32) * 64, entry(random, true));
    for (let qid = 1; qid <= THREADS; qid++) {
      ram.write(
        RINGS - qid * 8192 + random.below(16) * 64,
        entry(random, false),
      );
    }
    for (let index = 0; index < 2 * (THREADS + 2); index++) {
      const value = random.below(20) === 0 ? random.word() : random.below(16);
      if (this.shadow) {
        ram.view.setUint32(ram.offset(SHADOW) + index * 4, value, true);
      }
      if (random.below(3) > 0) driver.write(0x1000 + index * 4, value);
    }
    if (random.below(10) === 0) {
      driver.write(random.below(1024) * 4, random.word());
      driver.write(0x14, 0x0046_0001);
    }
    this.#turns();
  }

  #turns(): void {
    const { rig, random } = this;
    for (let i = 0; i < 6; i++) {
      const member = random.pick(rig.members);
      const { disk, context } = member;
      if (random.below(4) === 0) context.loop.pollOnce();
      else rig.turn(member);
      while (disk.pending.length > random.below(8)) {
        disk.finish(random.below(disk.pending.length));
      }
    }
  }

  /** Its queues go to other threads. */
  move(): void {
    const { rig, random } = this;
    for (const { disk } of rig.members) disk.slow = false;
    rig.move(Array.from({ length: THREADS }, () => random.below(THREADS)));
  }

  /** Reset in one way or the other, after which no thread has anything left. */
  end(): void {
    const { rig, random } = this;
    if (random.below(3) === 0) rig.device.reset("device_reset");
    else rig.driver.write(0x14, 0);
    rig.settle();
    assertEquals(rig.device.hold(), 0);
    rig.device.start();
  }
}

for (const shadow of [false, true]) {
  Deno.test(`a controller on three threads survives any driver (shadow doorbells ${shadow}, seed ${SEED})`, () => {
    const fuzz = new Fuzz(shadow);
    using rig = fuzz.rig;
    for (let round = 0; round < 100; round++) {
      fuzz.begin();
      for (let i = 0; i < 20; i++) fuzz.step();
      if (round % 4 === 0) fuzz.move();
      for (let i = 0; i < 5; i++) fuzz.step();
      fuzz.end();
    }
    assert(fuzz.resets > 50);
    assert(rig.counter("failedCommands") > 100);
    for (const wakes of rig.wakes.slice(1)) assert(wakes > 0);
    for (const { disk } of rig.members) {
      disk.slow = false;
      disk.results.length = 0;
    }
    // And all of it still works.
    const { driver } = rig;
    driver.enable();
    for (let qid = 1; qid <= THREADS; qid++) {
      const pair = driver.createPair(qid);
      const read = { opcode: 2, nsid: 1, prp1: driver.page() };
      assertEquals(driver.run(read, pair).status, 0, `queue ${qid}`);
    }
  });
}
