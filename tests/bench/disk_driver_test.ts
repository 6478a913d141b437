import { assertEquals } from "@std/assert";
import { PciFunction, PciInterrupts } from "../../src/pci/mod.ts";
import { DiskOp, NvmeDriver } from "../../bench/disk_driver.ts";
import type { ManualLoop } from "../../src/testing/manual_loop.ts";
import type { Bell, PciAccess } from "../../src/testing/pci_access.ts";
import { LocalPci } from "../devices/local_pci.ts";
import { Rig } from "../devices/nvme/rig.ts";

const PCI_COMMAND = 4;
const PCI_COMMAND_MEMORY_AND_MASTER = 6;
const SLOTS = 4;
const BLOCK = 4096;

/** A device that does what a register write asks for before the driver goes on, and nothing unasked. */
function obeying(pci: PciAccess, loop: ManualLoop): PciAccess {
  const then = (bell: Bell): Bell => ({
    ring: (value) => {
      bell.ring(value);
      loop.settle();
    },
  });
  return {
    readConfig: (offset, width) => pci.readConfig(offset, width),
    writeConfig: (offset, width, value) =>
      pci.writeConfig(offset, width, value),
    readBar: (bar, offset, width) => pci.readBar(bar, offset, width),
    writeBar: (bar, offset, width, value) => {
      pci.writeBar(bar, offset, width, value);
      loop.settle();
    },
    bell: (bar, offset, width) => then(pci.bell(bar, offset, width)),
    enableMsix: (vectors) => pci.enableMsix(vectors),
  };
}

Deno.test("NvmeDriver rings the doorbells of a controller that does not poll", () => {
  using rig = new Rig({ disabled: true });
  const interrupts = new PciInterrupts();
  const local = new LocalPci(
    new PciFunction(rig.device, rig.memory, interrupts, rig.context.log),
    interrupts,
  );
  local.writeConfig(PCI_COMMAND, 2, PCI_COMMAND_MEMORY_AND_MASTER);
  const driver = new NvmeDriver(obeying(local, rig.loop), rig.ram, {
    slots: SLOTS,
    transferBytes: BLOCK,
  });
  const run = (op: DiskOp) => {
    for (let slot = 0; slot < SLOTS; slot++) {
      driver.issue(slot, op, slot * BLOCK / 512);
    }
    driver.flush();
    assertEquals(driver.reap(), SLOTS);
    assertEquals([...driver.status], [0, 0, 0, 0]);
  };
  const buffer = (slot: number) => rig.ram.at(driver.bufferIova(slot), BLOCK);
  for (let slot = 0; slot < SLOTS; slot++) buffer(slot).fill(slot + 1);
  run(DiskOp.WRITE);
  for (let slot = 0; slot < SLOTS; slot++) buffer(slot).fill(0);
  // More than there are entries in the queue, so that the doorbells wrap.
  for (let i = 0; i < 300; i++) run(DiskOp.READ);
  for (let slot = 0; slot < SLOTS; slot++) {
    assertEquals(buffer(slot), new Uint8Array(BLOCK).fill(slot + 1));
  }
  driver.close();
});
