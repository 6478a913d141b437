import { assert, assertEquals } from "@std/assert";
import { Errno } from "../../../src/core/errno.ts";
import { entry, generator } from "./fuzz_entries.ts";
import { RAM_BYTES, RAM_IOVA, Rig } from "./rig.ts";

const SEED = Date.now() >>> 0;

for (const shadow of [false, true]) {
  Deno.test(`NvmeController survives any driver (shadow doorbells ${shadow}, seed ${SEED})`, () => {
    const random = generator(SEED);
    using rig = new Rig({ disks: { 1: 1 << 20, 2: 65536 } });
    const { driver } = rig;
    let resets = 0;
    let completions = 0;
    for (let round = 0; round < 150; round++) {
      if ((driver.csts & 3) !== 1) {
        driver.write(0x14, 0);
        rig.settle();
        driver.shadow = null;
        driver.enable();
        resets++;
      }
      const cq = driver.run({
        opcode: 5,
        prp1: RAM_IOVA + RAM_BYTES - 8192,
        cdw10: 1 | 15 << 16,
        cdw11: 3 | 1 << 16,
      });
      const sq = driver.run({
        opcode: 1,
        prp1: RAM_IOVA + RAM_BYTES - 4096,
        cdw10: 1 | 15 << 16,
        cdw11: 1 | 1 << 16,
      });
      assertEquals([cq.status, sq.status], [0, 0]);
      if (shadow && driver.shadow === null) {
        const done = driver.run({
          opcode: 0x7c,
          prp1: RAM_IOVA + RAM_BYTES - 12288,
          prp2: RAM_IOVA + RAM_BYTES - 16384,
        });
        assertEquals(done.status, 0);
      }
      for (const disk of [rig.disks[1]!, rig.disks[2]!]) {
        disk.slow = random.below(3) === 0;
        if (random.below(4) === 0) disk.results.push(-Errno.EIO);
      }
      for (let i = 0; i < 20; i++) {
        rig.ram.write(
          RAM_IOVA + RAM_BYTES - 4096 + random.below(16) * 64,
          entry(random, false),
        );
        rig.ram.write(
          driver.admin.sq + random.below(32) * 64,
          entry(random, true),
        );
        const tails = new DataView(rig.ram.bytes.buffer, RAM_BYTES - 12288, 32);
        for (const index of [0, 1, 2, 3]) {
          const value = random.below(20) === 0
            ? random.word()
            : random.below(16);
          if (shadow) tails.setUint32(index * 4, value, true);
          if (random.below(3) > 0) driver.write(0x1000 + index * 4, value);
        }
        if (random.below(10) === 0) {
          driver.write(random.below(1024) * 4, random.word());
          driver.write(0x14, 0x0046_0001);
        }
        rig.loop.turn();
        for (const disk of [rig.disks[1]!, rig.disks[2]!]) {
          while (disk.pending.length > random.below(8)) {
            disk.finish(random.below(disk.pending.length));
          }
        }
        rig.loop.turn();
      }
      completions += rig.device.counters().failedCommands!;
      if (random.below(3) === 0) rig.device.reset("device_reset");
      else driver.write(0x14, 0);
      rig.settle();
      assertEquals(rig.device.inFlight().length, 0);
    }
    assert(resets > 100);
    assert(completions > 100);
    // And it still works.
    rig.disks[1]!.slow = false;
    rig.disks[1]!.results.length = 0;
    driver.shadow = null;
    driver.enable();
    const io = rig.io();
    const prp1 = driver.page();
    assertEquals(driver.run({ opcode: 2, nsid: 1, prp1 }, io).status, 0);
  });
}
