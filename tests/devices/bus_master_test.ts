/** Behaviour of devices while their function is no bus master, and afterwards. */

import { assert, assertEquals } from "@std/assert";
import { PciFunction, PciInterrupts } from "../../src/pci/mod.ts";
import { allowMastering, words } from "../pci/sample.ts";
import type { LocalPci } from "./local_pci.ts";
import { Rig as NvmeRig } from "./nvme/rig.ts";
import { pattern, Rig as BlkRig, S } from "./virtio_blk/harness.ts";
import { frame, Rig as NetRig, VECTOR } from "./virtio_net/harness.ts";

const COMMAND = 4;
const BUS_MASTER_ENABLE = 4;

function setMaster(pci: LocalPci, on: boolean): void {
  const command = pci.readConfig(COMMAND, 2);
  pci.writeConfig(
    COMMAND,
    2,
    on ? command | BUS_MASTER_ENABLE : command & ~BUS_MASTER_ENABLE,
  );
}

Deno.test("a disk that is no bus master finishes nothing late, takes nothing, and goes on with both", () => {
  for (const cancels of [false, true]) {
    using rig = new BlkRig({ cancels });
    rig.backend.bytes.set(pattern(512));
    const inFlight = rig.queueRead(0, 512);
    rig.flush();
    setMaster(rig.pci, false);
    // Before the write is answered: nothing is with the storage, and nothing comes later.
    assertEquals(rig.backend.waiting, []);
    const late = rig.queueRead(0, 512);
    rig.queues[0]!.ring.publish();
    rig.queues[0]!.kick();
    const before = rig.ram.bytes.slice();
    rig.loop.settle();
    assertEquals(rig.backend.waiting, []);
    assertEquals(rig.ram.bytes, before);
    assertEquals(rig.interrupts(1), 0);
    setMaster(rig.pci, true);
    rig.loop.settle();
    while (rig.backend.finishAll() > 0) rig.loop.settle();
    for (const pending of [inFlight, late]) {
      const reply = rig.take(pending);
      assertEquals(reply.status, S.OK);
      assertEquals(reply.data, pattern(512));
    }
    assert(rig.interrupts(1) > 0);
    assertEquals(rig.needsReset, false);
    assertEquals(rig.write(0, pattern(512)).status, S.OK);
  }
});

Deno.test("a driver may set a disk up and start it before it lets it access memory", () => {
  using rig = new BlkRig({ bare: true });
  const { driver } = rig;
  setMaster(rig.pci, false);
  rig.bringUp();
  const pending = rig.queueWrite(0, pattern(512));
  rig.flush();
  assertEquals(rig.backend.seen, []);
  assertEquals(driver.status & 64, 0);
  setMaster(rig.pci, true);
  rig.loop.settle();
  while (rig.backend.finishAll() > 0) rig.loop.settle();
  assertEquals(rig.take(pending).status, S.OK);
});

Deno.test("a card that is no bus master keeps frames, both ways, until it is", () => {
  using rig = new NetRig();
  rig.postRx(2048, 2048);
  rig.interrupts(VECTOR.RX);
  setMaster(rig.pci, false);
  const before = rig.ram.bytes.slice();
  rig.arrive(frame(60));
  assertEquals(rig.ram.bytes, before);
  const sent = rig.backend.sent.length;
  rig.transmit(frame(60, 2));
  assertEquals(rig.backend.sent.length, sent);
  assertEquals([rig.reclaim(), rig.received()], [0, []]);
  assertEquals(rig.interrupts(VECTOR.RX), 0);
  setMaster(rig.pci, true);
  rig.settle();
  assertEquals(rig.received().map((it) => it.frame), [frame(60)]);
  assertEquals(rig.reclaim(), 1);
  assertEquals(rig.backend.sent.length, sent + 1);
  assert(rig.interrupts(VECTOR.RX) > 0);
  assertEquals(rig.needsReset, false);
});

/** A controller behind its function, and what writes configuration space. */
function masteredNvme() {
  const rig = new NvmeRig({ disabled: true });
  const pci = new PciFunction(
    rig.device,
    rig.memory,
    new PciInterrupts(),
    rig.context.log,
  );
  const config = (offset: number, value: number) =>
    assertEquals(pci.writeRegion(7, offset, words(value), 0, 2), 0);
  return { rig, pci, config };
}

Deno.test("an NVMe controller that is no bus master fetches and completes nothing, and goes on", () => {
  const { rig, pci, config } = masteredNvme();
  using _ = rig;
  const { driver, disk } = rig;
  // Registers are registers: it is ready before it may fetch anything.
  driver.enable();
  allowMastering(pci);
  const pair = rig.io();
  disk.slow = true;
  driver.put(pair, { opcode: 0, nsid: 1 });
  driver.ring(pair);
  rig.settle();
  config(COMMAND, 0);
  assertEquals(disk.pending.length, 0);
  const log = disk.log.length;
  driver.put(pair, { opcode: 0, nsid: 1 });
  driver.ring(pair);
  const before = rig.ram.bytes.slice();
  rig.settle();
  assertEquals(rig.ram.bytes, before);
  assertEquals(disk.log.length, log);
  disk.slow = false;
  allowMastering(pci);
  rig.settle();
  assertEquals(driver.reap(pair).map((c) => c.status), [0, 0]);
  assertEquals(driver.csts & 2, 0, "CSTS.CFS");
});

Deno.test("an NVMe controller that is no bus master is reset and shut down by its registers", () => {
  const { rig, pci, config } = masteredNvme();
  using _ = rig;
  const { driver } = rig;
  allowMastering(pci);
  driver.enable();
  rig.io();
  config(COMMAND, 0);
  const CC = 0x14;
  driver.write(CC, driver.read(CC) & ~(3 << 14) | 1 << 14);
  rig.settle();
  assertEquals(driver.csts >>> 2 & 3, 2, "CSTS.SHST");
  driver.disable();
  driver.enable();
  allowMastering(pci);
  assertEquals(driver.identify(1).byteLength, 4096);
});
