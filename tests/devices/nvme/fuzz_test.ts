import { assert, assertEquals } from "@std/assert";
import { Errno } from "../../../src/errno.ts";
import { RAM_BYTES, RAM_IOVA, Rig } from "./rig.ts";

/** A small generator with a seed, so that a failure can be repeated. */
function generator(seed: number) {
  let state = seed >>> 0 || 1;
  const next = () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return state >>> 0;
  };
  return {
    word: next,
    below: (n: number) => next() % n,
    pick: <T>(list: readonly T[]): T => list[next() % list.length]!,
  };
}

const OPCODES_IO = [0, 1, 2, 5, 8, 9, 3, 0xc, 0xff];
const OPCODES_ADMIN = [0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 0x7c, 0x10, 0xff];

/** An entry that is partly sensible, so that it gets past the first check. */
function entry(random: ReturnType<typeof generator>, admin: boolean) {
  const bytes = new Uint8Array(64);
  const view = new DataView(bytes.buffer);
  for (let at = 0; at < 64; at += 4) {
    view.setUint32(at, random.below(3) === 0 ? random.word() : 0, true);
  }
  bytes[0] = random.pick(admin ? OPCODES_ADMIN : OPCODES_IO);
  bytes[1] = random.pick([0, 0, 0, 0, 0x40, 0x80, 0xc0, 1]);
  view.setUint16(2, random.below(40), true);
  view.setUint32(4, random.pick([1, 1, 1, 2, 0, 0xffff_ffff, 77]), true);
  const address = () =>
    BigInt(RAM_IOVA) +
    BigInt(random.below(RAM_BYTES) & ~random.pick([0xfff, 0xfff, 3, 0]));
  for (const at of [24, 32]) {
    view.setBigUint64(
      at,
      random.below(12) === 0 ? BigInt(random.word()) << 32n : address(),
      true,
    );
  }
  if ((bytes[1]! & 0xc0) !== 0) {
    view.setUint32(32, random.pick([512, 16, 32, 4096, random.word()]), true);
    bytes[39] = random.pick([0, 0x20, 0x30, 0x10, random.word() & 0xff]);
  }
  if (random.below(2) === 0) view.setUint32(40, random.below(64), true);
  if (random.below(2) === 0) view.setUint32(44, random.below(8), true);
  if (random.below(2) === 0) view.setUint32(48, random.below(300), true);
  return bytes;
}

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
