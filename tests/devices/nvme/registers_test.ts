import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { NVME_REGISTERS } from "../../../devices/nvme/registers.ts";
import {
  PciFunction,
  PciInterrupts,
  validatePciSpec,
} from "../../../src/pci/mod.ts";
import { RAM_BYTES, RAM_IOVA, Rig, SC } from "./rig.ts";

Deno.test("NVME_REGISTERS lie where the standard says", () => {
  const wanted = {
    CAP: 0x00,
    VS: 0x08,
    INTMS: 0x0c,
    INTMC: 0x10,
    CC: 0x14,
    CSTS: 0x1c,
    NSSR: 0x20,
    AQA: 0x24,
    ASQ: 0x28,
    ACQ: 0x30,
    CMBLOC: 0x38,
    CMBSZ: 0x3c,
    BPINFO: 0x40,
    BPRSEL: 0x44,
    BPMBL: 0x48,
    CMBMSC: 0x50,
    CMBSTS: 0x58,
    PMRCAP: 0xe00,
    PMRMSCU: 0xe18,
  };
  for (const [name, offset] of Object.entries(wanted)) {
    assertEquals(
      NVME_REGISTERS.offsets[name as keyof typeof wanted],
      offset,
      name,
    );
  }
});

Deno.test("NvmeController is an NVM Express controller on the PCI bus", () => {
  using rig = new Rig({ disabled: true });
  const interrupts = new PciInterrupts();
  const pci = new PciFunction(
    rig.device,
    rig.memory,
    interrupts,
    rig.context.log,
  );
  const view = new DataView(new ArrayBuffer(4));
  assertEquals(pci.readRegion(7, 8, view, 0, 4), 0);
  assertEquals(view.getUint32(0, true) >>> 8, 0x010802);
  assertEquals(pci.regionSizeBytes(0), 0x4000);
  assertEquals(rig.device.spec.bars[0]!.kind, "memory64");
  const msix = rig.device.spec.capabilities.find((c) => c.kind === "msix")!;
  assertEquals(msix.vectors, 5);
});

Deno.test("NvmeController tells its capabilities", () => {
  using rig = new Rig({ disabled: true });
  const low = rig.driver.read(0);
  const high = rig.driver.read(4);
  assertEquals(low & 0xffff, 1023, "MQES");
  assertEquals(low >>> 16 & 1, 1, "CQR");
  assert(low >>> 24 >= 20, "TO");
  assertEquals(high & 0xf, 0, "DSTRD");
  assertEquals(high >>> 5 & 0xff, 1, "CSS");
  assertEquals(high >>> 16 & 0xf, 0, "MPSMIN");
  assertEquals(high >>> 20 & 0xf, 4, "MPSMAX");
  assertEquals(rig.driver.read(8), 0x10400);
  assertEquals(rig.device.readBar(0, 8, 2), 0x0400);
  assertEquals(rig.device.readBar(0, 10, 1), 1);
  // No register, doorbells, the upper half of the BAR, and another BAR.
  for (const at of [0x60, 0x1000, 0x2000, 0x3ffc]) {
    assertEquals(rig.driver.read(at), 0);
  }
  assertEquals(rig.device.readBar(4, 0x900, 4), 0);
});

Deno.test("NvmeController keeps what is written to the admin queue registers", () => {
  using rig = new Rig({ disabled: true });
  const { driver } = rig;
  driver.write(0x24, 0xffff_ffff);
  assertEquals(driver.read(0x24), 0x0fff_0fff);
  driver.write64(0x28, 0x1_2345_6fff);
  assertEquals([driver.read(0x28), driver.read(0x2c)], [0x2345_6000, 1]);
  driver.write64(0x30, 0x2_8765_4001);
  assertEquals([driver.read(0x30), driver.read(0x34)], [0x8765_4000, 2]);
  // Not a whole word.
  rig.device.writeBar(0, 0x24, 2, 0);
  assertEquals(driver.read(0x24), 0x0fff_0fff);
});

Deno.test("NvmeController is ready in a bottom half, not in the register write", () => {
  using rig = new Rig({ disabled: true });
  const { driver } = rig;
  driver.write(0x24, 0x001f_001f);
  driver.write64(0x28, driver.page());
  driver.write64(0x30, driver.page());
  driver.write(0x14, 0x0046_0001);
  assertEquals(driver.csts, 0);
  rig.loop.turn();
  assertEquals(driver.csts, 1);
  driver.write(0x14, 0x0046_0000);
  assertEquals(driver.csts, 1);
  rig.loop.turn();
  assertEquals(driver.csts, 0);
});

Deno.test("NvmeController fails when it cannot be enabled, and recovers by a reset", () => {
  const cases: [string, number, number, number, number][] = [
    ["AQA", 0x0046_0001, 0, RAM_IOVA, RAM_IOVA + 4096],
    ["ASQ", 0x0046_0001, 0x1f_001f, 0, RAM_IOVA],
    ["ACQ", 0x0046_0001, 0x1f_001f, RAM_IOVA, 2 ** 63],
    ["ACQ end", 0x0046_0001, 0x1f_001f, RAM_IOVA, RAM_IOVA + RAM_BYTES],
    ["CSS", 0x0046_0011, 0x1f_001f, RAM_IOVA, RAM_IOVA + 4096],
    ["AMS", 0x0046_0801, 0x1f_001f, RAM_IOVA, RAM_IOVA + 4096],
    ["MPS", 0x0046_0281, 0x1f_001f, RAM_IOVA, RAM_IOVA + 4096],
    ["alignment", 0x0046_0081, 0x1f_001f, RAM_IOVA + 4096, RAM_IOVA],
  ];
  using rig = new Rig({ disabled: true });
  const { driver } = rig;
  for (const [name, cc, aqa, asq, acq] of cases) {
    driver.write(0x24, aqa);
    driver.write64(0x28, asq);
    driver.write64(0x30, acq);
    driver.write(0x14, cc);
    rig.settle();
    assertEquals(driver.csts, 2, name);
    // Doorbells and more of the same change nothing.
    driver.write(0x1000, 1);
    driver.write(0x14, cc);
    rig.settle();
    assertEquals(driver.csts, 2, name);
    driver.write(0x14, cc & ~1);
    rig.settle();
    assertEquals(driver.csts, 0, name);
  }
  const warnings = rig.context.log.at("warn");
  assertEquals(warnings.length, cases.length);
  for (const line of warnings) assertStringIncludes(line, "cannot enable");
  assertEquals(rig.device.counters().fatalErrors, cases.length);
  driver.enable();
  assertEquals(driver.identify(1).getUint16(0, true), 0x1af4);
});

Deno.test("NvmeController forgets its queues when it is disabled and enabled in one go", () => {
  using rig = new Rig();
  const { driver } = rig;
  rig.io();
  driver.write(0x14, 0x0046_0000);
  driver.write(0x14, 0x0046_0001);
  rig.settle();
  assertEquals(driver.csts & 3, 1);
  driver.admin.sqTail = driver.admin.cqHead = 0;
  driver.admin.phase = 1;
  driver.ram.at(driver.admin.cq, 512).fill(0);
  // The number is free again.
  rig.io();
});

Deno.test("NvmeController shuts down: flushes every namespace, then says so", () => {
  using rig = new Rig({ disks: { 1: 65536, 3: 65536 } });
  const { driver } = rig;
  rig.disks[1]!.slow = true;
  driver.write(0x14, 0x0046_4001);
  assertEquals(driver.csts >>> 2 & 3, 1);
  rig.settle();
  assertEquals(driver.csts >>> 2 & 3, 1);
  assertEquals(rig.disks[3]!.log.length, 0);
  rig.disks[1]!.finish();
  rig.settle();
  assertEquals(driver.csts >>> 2 & 3, 2);
  assertEquals(rig.disks[1]!.log.map((r) => r.op), [2]);
  assertEquals(rig.disks[3]!.log.map((r) => r.op), [2]);
  driver.disable();
  assertEquals(driver.csts, 0);
  driver.enable();
});

Deno.test("NvmeController shuts down while it is disabled, and in the write that disables it", () => {
  using rig = new Rig({ disabled: true });
  const { driver } = rig;
  driver.write(0x14, 0x0000_4000);
  rig.settle();
  assertEquals(driver.csts, 2 << 2);
  driver.write(0x14, 0);
  driver.enable();
  driver.write(0x14, 0x0046_8000);
  rig.settle();
  assertEquals(driver.csts, 2 << 2);
});

Deno.test("NvmeController.reset goes back to power-on", () => {
  for (
    const reason of [
      "device_reset",
      "flr",
      "soft_reset",
      "client_gone",
    ] as const
  ) {
    using rig = new Rig();
    rig.io();
    rig.device.reset(reason);
    for (const at of [0x14, 0x1c, 0x24, 0x28, 0x2c, 0x30, 0x34, 0x0c]) {
      assertEquals(rig.driver.read(at), 0, `${reason} ${at}`);
    }
    rig.driver.enable();
    rig.io();
  }
});

Deno.test("NvmeController masks the pin and MSI by INTMS", () => {
  for (const mode of ["intx", "msi"] as const) {
    using rig = new Rig({ mode });
    const { driver, interrupts } = rig;
    const admin = driver.admin;
    driver.write(0x0c, 1);
    assertEquals([driver.read(0x0c), driver.read(0x10)], [1, 1]);
    interrupts.take();
    const before = interrupts.edges;
    driver.put(admin, { opcode: 6, cdw10: 1, prp1: driver.page() });
    driver.ring(admin);
    rig.settle();
    assertEquals([interrupts.level, interrupts.raised.length], [false, 0]);
    driver.write(0x10, 1);
    if (mode === "intx") {
      assertEquals([interrupts.level, interrupts.edges - before], [true, 1]);
    } else assertEquals(interrupts.take(), [0]);
    assertEquals(driver.reap(admin)[0]!.status, SC.OK);
    assertEquals(interrupts.level, false);
  }
});

Deno.test("NvmeController holds the pin up until all is consumed, also with shadow doorbells", () => {
  for (const shadow of [false, true]) {
    using rig = new Rig({ mode: "intx" });
    const { driver, interrupts } = rig;
    const pair = driver.createPair(1, 16, 0);
    if (shadow) driver.configureShadow();
    for (let round = 0; round < 20; round++) {
      driver.put(pair, { opcode: 0, nsid: 1 });
      driver.put(pair, { opcode: 0, nsid: 1 });
      driver.ring(pair);
      rig.settle();
      assertEquals(interrupts.level, true);
      assertEquals(driver.reap(pair).length, 2);
      assertEquals(interrupts.level, false, `round ${round}`);
    }
  }
});

Deno.test("NvmeController without MSI-X has one vector, which all queues share", () => {
  using rig = new Rig({ mode: "msi", controller: { msix: false } });
  const { driver, interrupts } = rig;
  validatePciSpec(rig.device.spec);
  assertEquals(rig.device.spec.bars.map((bar) => bar.index), [0]);
  assertEquals(rig.device.spec.capabilities.map((each) => each.kind), [
    "pm",
    "pcie",
    "msi",
  ]);
  const beyond = driver.run({
    opcode: 5,
    prp1: driver.page(),
    cdw10: 1 | 15 << 16,
    cdw11: 3 | 1 << 16,
  });
  assertEquals([beyond.status, beyond.dnr], [SC.VECTOR, true]);
  const pairs = [driver.createPair(1, 16, 0), driver.createPair(2, 16, 0)];
  for (const pair of pairs) {
    interrupts.take();
    driver.put(pair, { opcode: 0, nsid: 1 });
    driver.ring(pair);
    rig.settle();
    assertEquals(interrupts.take(), [0]);
    assertEquals(driver.reap(pair).length, 1);
  }
  // Interrupt Vector Configuration, of the only one and of one that there is not.
  assertEquals(driver.run({ opcode: 10, cdw10: 9, cdw11: 0 }).status, 0);
  assertEquals(
    driver.run({ opcode: 10, cdw10: 9, cdw11: 1 }).status,
    SC.FIELD,
  );
});

Deno.test("NvmeController takes vectors that it has, whether they are enabled or not", () => {
  for (const mode of ["intx", "msi", "msix"] as const) {
    using rig = new Rig({ mode });
    const { driver, interrupts } = rig;
    const pair = driver.createPair(1, 16, 3);
    interrupts.take();
    // The pin and MSI are one vector for all.
    driver.put(pair, { opcode: 0, nsid: 1 });
    driver.ring(pair);
    rig.settle();
    const raised = interrupts.take();
    assertEquals(
      [interrupts.level, raised],
      [mode === "intx", { intx: [], msi: [0], msix: [3] }[mode]],
    );
    driver.reap(pair);
    // Enabled afterwards, it is raised.
    interrupts.mode = "msix";
    driver.put(pair, { opcode: 0, nsid: 1 });
    driver.ring(pair);
    rig.settle();
    assertEquals(interrupts.take(), [3], mode);
    driver.reap(pair);
    const beyond = driver.run({
      opcode: 5,
      prp1: driver.page(),
      cdw10: 2 | 15 << 16,
      cdw11: 3 | 5 << 16,
    });
    assertEquals([beyond.status, beyond.dnr], [SC.VECTOR, true]);
  }
});

Deno.test("NvmeController tells what a reset would wait for, and which writes reset it or shut it down", () => {
  using rig = new Rig();
  const { driver, disk, device } = rig;
  const pair = rig.io();
  const prp1 = driver.page();
  disk.slow = true;
  driver.put(pair, { opcode: 2, nsid: 1, prp1 });
  driver.ring(pair);
  rig.settle();
  assertEquals(device.unfinished!(), 1);
  assertEquals(device.unfinished!(prp1, 4096), 1);
  assertEquals(device.unfinished!(prp1 + 8192, 4096), 0);
  const CC = NVME_REGISTERS.offsets.CC;
  const cc = device.readBar(0, CC, 4);
  const ends = (value: number, offset = CC) =>
    device.endsRequests!(0, offset, 4, value);
  assertEquals([ends(cc), ends(cc & ~1), ends(cc | 1 << 14)], [
    false,
    true,
    true,
  ]);
  assertEquals(ends(0, 0x1000), false);
  disk.finish();
  rig.settle();
  assertEquals(device.unfinished!(), 0);
  device.writeBar(0, CC, 4, cc & ~1);
  rig.settle();
  assertEquals(ends(cc & ~1), false, "it is down already");
});
