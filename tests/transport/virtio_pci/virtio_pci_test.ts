import { assert, assertEquals, assertMatch, assertThrows } from "@std/assert";
import { RING_ABSENCE_MS } from "../../../src/memory/guest_memory.ts";
import { validatePciSpec } from "../../../src/pci/mod.ts";
import type { VendorCapability } from "../../../src/pci/device.ts";
import { DEPENDENT_FEATURE, ECHO_FEATURE } from "../../virtio/echo_device.ts";
import { BASE, DATA, LENGTH } from "../../virtio/ring_fixture.ts";
import {
  DEVICE,
  EVENT_IDX,
  ISR,
  NOTIFY,
  PciDriver,
  REG,
  RING_RESET,
  STATUS,
} from "./pci_fixture.ts";

const VERSION_1 = 32;
const NO_VECTOR = 0xffff;
const IN = { iova: DATA, length: 4 };
const OUT = { iova: DATA + 64, length: 4, write: true };

Deno.test("VirtioPci.spec is that of a modern virtio device", () => {
  const { pci } = new PciDriver();
  validatePciSpec(pci.spec);
  const { spec } = pci;
  assertEquals(spec.vendorId, 0x1af4);
  assertEquals(spec.deviceId, 0x1040 + 42);
  assertEquals(spec.revision, 1);
  assertEquals(spec.classCode, 0x00ff00);
  assertEquals(spec.subsystemVendorId, 0x1af4);
  assertEquals(spec.subsystemId, 0x1100);
  assertEquals(
    spec.bars.map(({ index, sizeBytes, kind, prefetchable }) => [
      index,
      sizeBytes,
      kind,
      prefetchable ?? false,
    ]),
    [[1, 0x1000, "memory32", false], [4, 0x4000, "memory64", true]],
  );
  assertEquals(spec.bars[1]!.doorbells, [
    { offset: 0x3000, sizeBytes: 2 },
    { offset: 0x3004, sizeBytes: 2 },
  ]);
  assertEquals(spec.capabilities[2], {
    kind: "msix",
    vectors: 3,
    tableBar: 1,
    tableOffset: 0,
    pbaBar: 1,
    pbaOffset: 0x800,
  });
});

Deno.test("VirtioPci.spec says where the structures are", () => {
  const { pci } = new PciDriver();
  const bodies = pci.spec.capabilities.flatMap((it) =>
    it.kind === "vendor" ? [new DataView(it.body.buffer)] : []
  );
  // cfg_type, bar, offset, length, by the layout of 4.1.4 less the three generic bytes.
  assertEquals(
    bodies.map((body) => [
      body.getUint8(0),
      body.getUint8(1),
      body.getUint32(5, true),
      body.getUint32(9, true),
      body.byteLength + 3,
    ]),
    [
      [1, 4, 0x0000, 0x1000, 16],
      [3, 4, 0x1000, 0x1000, 16],
      [4, 4, 0x2000, 0x1000, 16],
      [2, 4, 0x3000, 0x1000, 20],
      [5, 0, 0, 0, 20],
    ],
  );
  assertEquals(bodies[3]!.getUint32(13, true), 4);
});

Deno.test("VirtioPci.spec grows with queues and vectors", () => {
  const queues = Array.from({ length: 1500 }, () => 2);
  const { pci } = new PciDriver({}, queues, 0);
  validatePciSpec(pci.spec);
  assertEquals(pci.spec.bars.map((bar) => bar.sizeBytes), [0x8000, 0x8000]);
  assertEquals(pci.spec.capabilities.length, 7, "no device configuration");
  const msix = pci.spec.capabilities.find((it) => it.kind === "msix");
  assertEquals([msix?.vectors, msix?.pbaOffset], [1501, 1501 * 16]);
  const few = new PciDriver({ vectors: 1 });
  validatePciSpec(few.pci.spec);
  for (const vectors of [0, 2049, 1.5]) {
    assertThrows(() => new PciDriver({ vectors }), RangeError, "vectors");
  }
  assertThrows(() => new PciDriver({}, [8], 0x1001), RangeError, "room for");
});

Deno.test("VirtioPci without MSI-X has no vectors to give, and interrupts by INTA#", () => {
  const driver = new PciDriver({ msix: false });
  const { spec } = driver.pci;
  validatePciSpec(spec);
  assertEquals(spec.bars.map((bar) => bar.index), [4]);
  assertEquals(spec.capabilities.some((it) => it.kind === "msix"), false);
  // config_msix_vector and queue_msix_vector read back as none.
  for (const offset of [0x10, 0x1a]) {
    driver.pci.writeBar(4, offset, 2, 0);
    assertEquals(driver.pci.readBar(4, offset, 2), 0xffff);
  }
  driver.context.interrupts.mode = "intx";
  const [ring] = driver.start();
  driver.context.memory.write(DATA, Uint8Array.of(1, 2, 3, 4));
  ring!.add([IN, OUT]);
  driver.kick(0);
  driver.context.loop.settle();
  assertEquals(driver.context.interrupts.level, true);
  assertEquals(driver.pci.readBar(4, 0x1000, 1), 1);
  assertEquals(driver.context.interrupts.level, false);
});

Deno.test("VirtioPci echoes over a queue, in a bottom half and never in the register write", () => {
  const driver = new PciDriver();
  const [ring] = driver.start();
  driver.context.memory.write(DATA, Uint8Array.of(1, 2, 3, 4));
  const head = ring!.add([IN, OUT]);
  driver.kick(0);
  assertEquals(ring!.usedIdx, 0);
  driver.context.loop.turn();
  assertEquals(ring!.collect(), [{ id: head, len: 4 }]);
  assertEquals(
    new Uint8Array(driver.buffer, DATA + 64 - BASE, 4),
    Uint8Array.of(1, 2, 3, 4),
  );
  assertEquals(driver.context.interrupts.take(), [1]);
  assertEquals(driver.pci.counters().kicks, 1);
  assertEquals(driver.pci.counters().interrupts, 1);
});

Deno.test("VirtioPci.ringDoorbell is a kick, and many kicks are one notification", () => {
  const driver = new PciDriver();
  const rings = driver.start();
  rings[1]!.add([IN, OUT]);
  driver.device.events.length = 0;
  driver.pci.ringDoorbell(4, 1);
  driver.pci.ringDoorbell(4, 1);
  driver.pci.ringDoorbell(4, 7);
  driver.kick(1000);
  driver.context.loop.settle();
  assertEquals(driver.device.events, ["notify 1"]);
  assertEquals(driver.context.interrupts.take(), [2]);
});

Deno.test("VirtioPci offers the device's features and its own", () => {
  const driver = new PciDriver();
  const words = [0, 1, 2, 3, 0xffff_ffff].map((select) => {
    driver.w32(REG.deviceFeatureSelect, select);
    assertEquals(driver.r32(REG.deviceFeatureSelect), select);
    return driver.r32(REG.deviceFeature);
  });
  assertEquals(words, [
    (1 << 3 | 1 << 5 | 1 << 28 | 1 << 29) >>> 0,
    1 << 0 | 1 << 1 | 1 << 3 | 1 << 8,
    0,
    0,
    0,
  ]);
});

Deno.test("VirtioPci refuses FEATURES_OK for a set it cannot work with", () => {
  const cases: [string, number[], boolean][] = [
    ["VERSION_1 alone", [VERSION_1], true],
    ["everything", [3, 5, 28, 29, VERSION_1, 35, RING_RESET], true],
    ["no VERSION_1", [ECHO_FEATURE], false],
    ["nothing", [], false],
    ["an unoffered bit of the device", [VERSION_1, 4], false],
    ["an unoffered bit of the ring", [VERSION_1, 34], false],
    ["bit 31", [VERSION_1, 31], false],
    ["bit 63", [VERSION_1, 63], false],
    ["bit 64", [VERSION_1, 64], false],
    ["bit 127", [VERSION_1, 127], false],
    [
      "a feature without what it requires",
      [VERSION_1, DEPENDENT_FEATURE],
      false,
    ],
  ];
  const driver = new PciDriver();
  for (const [name, bits, good] of cases) {
    assertEquals(driver.negotiate(bits), good, name);
    driver.w8(REG.status, 15);
    assertEquals((driver.status & STATUS.DRIVER_OK) !== 0, good, name);
    assertEquals(driver.device.started !== null, good, name);
  }
});

Deno.test("VirtioPci freezes the accepted features at FEATURES_OK", () => {
  const driver = new PciDriver();
  driver.negotiate([VERSION_1, ECHO_FEATURE]);
  driver.w32(REG.driverFeatureSelect, 0);
  driver.w32(REG.driverFeature, 0);
  assertEquals(driver.r32(REG.driverFeature), 1 << ECHO_FEATURE);
  driver.driverOk();
  assert(driver.device.started!.has(ECHO_FEATURE));
});

Deno.test("VirtioPci keeps status bits that a driver tries to clear, and its own from being set", () => {
  const driver = new PciDriver();
  driver.w8(REG.status, STATUS.ACKNOWLEDGE | STATUS.NEEDS_RESET);
  assertEquals(driver.status, STATUS.ACKNOWLEDGE);
  driver.negotiate([VERSION_1]);
  driver.w8(REG.status, STATUS.DRIVER_OK);
  assertEquals(driver.status, 15);
  driver.w8(REG.status, STATUS.ACKNOWLEDGE);
  assertEquals(driver.status, 15);
  driver.w8(REG.status, 0);
  assertEquals(driver.status, 0);
});

Deno.test("VirtioPci does not start without FEATURES_OK", () => {
  const driver = new PciDriver();
  driver.w8(REG.status, 7);
  assertEquals(driver.status, 3);
  assertEquals(driver.device.started, null);
});

Deno.test("VirtioPci starts with FEATURES_OK and DRIVER_OK in one write", () => {
  const driver = new PciDriver();
  driver.w32(REG.driverFeatureSelect, 1);
  driver.w32(REG.driverFeature, 1);
  driver.w8(REG.status, 15);
  assertEquals(driver.status, 15);
  assert(driver.device.started !== null);
});

Deno.test("VirtioPci stops serving a driver that set FAILED", () => {
  const driver = new PciDriver();
  const [ring] = driver.start();
  driver.w8(REG.status, 15 | STATUS.FAILED);
  ring!.add([IN, OUT]);
  driver.kick(0);
  driver.context.loop.settle();
  assertEquals(ring!.usedIdx, 0);
});

Deno.test("VirtioPci ignores kicks before DRIVER_OK and then looks at every queue", () => {
  const driver = new PciDriver();
  driver.negotiate([VERSION_1]);
  const ring = driver.setupQueue(0);
  ring.add([IN, OUT]);
  driver.kick(0);
  driver.context.loop.settle();
  assertEquals(driver.device.events.filter((it) => it !== "reset"), []);
  driver.driverOk();
  assertEquals(ring.usedIdx, 0);
  driver.context.loop.settle();
  assertEquals(ring.usedIdx, 1);
  assertEquals(driver.device.events.filter((it) => it !== "reset"), [
    "start 0",
    "notify 0",
  ]);
});

Deno.test("VirtioPci queue registers hold what is written until the queue is enabled", () => {
  const driver = new PciDriver();
  driver.negotiate([VERSION_1]);
  assertEquals(driver.r16(REG.numQueues), 2);
  driver.w16(REG.queueSelect, 1);
  assertEquals(driver.r16(REG.queueSelect), 1);
  assertEquals(driver.r16(REG.queueSize), 16);
  assertEquals(driver.r16(REG.queueNotifyOff), 1);
  assertEquals(driver.r16(REG.queueNotifyData), 1);
  for (const [written, read] of [[8, 8], [0, 8], [3, 8], [32, 8], [16, 16]]) {
    driver.w16(REG.queueSize, written!);
    assertEquals(driver.r16(REG.queueSize), read);
  }
  for (let i = 0; i < 6; i++) {
    driver.w32(REG.queueDesc + 4 * i, 0x8000_0000 + i);
  }
  for (let i = 0; i < 6; i++) {
    assertEquals(driver.r32(REG.queueDesc + 4 * i), 0x8000_0000 + i);
  }
  driver.setupQueue(1, { size: 4 });
  assertEquals(driver.r16(REG.queueEnable), 1);
  driver.w16(REG.queueSize, 8);
  driver.w32(REG.queueDesc, 0x1234_0000);
  driver.w16(REG.queueEnable, 0);
  assertEquals(driver.r16(REG.queueSize), 4);
  assertEquals(driver.r32(REG.queueDesc), BASE + 0x1_0000);
  assertEquals(driver.r16(REG.queueEnable), 1);
  assertEquals(driver.pci.session.queues[1]!.size, 4);
  driver.w16(REG.queueSelect, 0);
  assertEquals(driver.r16(REG.queueEnable), 0);
  assertEquals(driver.r16(REG.queueSize), 8);
});

Deno.test("VirtioPci shows a queue that does not exist as one of size 0", () => {
  const driver = new PciDriver();
  driver.negotiate([VERSION_1]);
  for (const select of [2, 0xffff]) {
    driver.w16(REG.queueSelect, select);
    for (
      const register of [
        REG.queueSize,
        REG.queueEnable,
        REG.queueNotifyOff,
        REG.queueReset,
      ]
    ) {
      driver.w16(register, 1);
      assertEquals(driver.r16(register), 0);
    }
    driver.w16(REG.queueVector, 0);
    assertEquals(driver.r16(REG.queueVector), NO_VECTOR);
    driver.w32(REG.queueDesc, 0x1000);
    assertEquals(driver.r32(REG.queueDesc), 0);
  }
  assertEquals(driver.status & STATUS.NEEDS_RESET, 0);
});

Deno.test("VirtioPci reads back no vector for one it does not have", () => {
  const driver = new PciDriver();
  for (const register of [REG.configVector, REG.queueVector]) {
    assertEquals(driver.r16(register), NO_VECTOR);
    driver.w16(register, 2);
    assertEquals(driver.r16(register), 2);
    driver.w16(register, 3);
    assertEquals(driver.r16(register), NO_VECTOR);
    driver.w16(register, 0);
    driver.w16(register, NO_VECTOR);
    assertEquals(driver.r16(register), NO_VECTOR);
  }
});

Deno.test("VirtioPci common configuration can be read in any width, and written by whole registers", () => {
  const driver = new PciDriver();
  driver.negotiate([VERSION_1]);
  driver.w16(REG.queueSelect, 1);
  // num_queues and config_msix_vector; device_status, config_generation and queue_select
  assertEquals(driver.r32(16), 2 * 0x1_0000 + NO_VECTOR);
  assertEquals(driver.r32(20), 1 * 0x1_0000 + 11);
  assertEquals([driver.r8(22), driver.r8(23), driver.r8(18)], [1, 0, 2]);
  driver.w32(REG.queueSize, 0x0002_0004);
  assertEquals([driver.r16(REG.queueSize), driver.r16(REG.queueVector)], [
    4,
    2,
  ]);
  driver.w8(REG.queueSize, 8);
  assertEquals(driver.r16(REG.queueSize), 4);
  driver.w16(REG.queueDesc, 0x1000);
  assertEquals(driver.r32(REG.queueDesc), 0);
  driver.w32(REG.queueDesc, 0x1234_5678);
  assertEquals(driver.r8(REG.queueDesc + 2), 0x34);
  assertEquals(driver.r32(REG.adminIndex), 0);
  assertEquals([driver.r32(64), driver.r16(0xffe)], [0, 0]);
  driver.w32(64, 1);
  driver.w32(REG.deviceFeature, 0);
  driver.w16(REG.numQueues, 9);
  assertEquals(driver.r16(REG.numQueues), 2);
});

Deno.test("VirtioPci raises nothing for a queue without a vector", () => {
  const driver = new PciDriver();
  driver.negotiate([VERSION_1]);
  const ring = driver.setupQueue(0, { vector: NO_VECTOR });
  driver.driverOk();
  ring.add([IN, OUT]);
  driver.kick(0);
  driver.context.loop.settle();
  assertEquals(ring.usedIdx, 1);
  assertEquals(driver.context.interrupts.take(), []);
  assertEquals(driver.r8(ISR), 0, "no queue bit while MSI-X is on");
});

Deno.test("VirtioPci drives INTA# and the ISR status without MSI-X", () => {
  const driver = new PciDriver();
  const [ring] = driver.start();
  const { interrupts, loop } = driver.context;
  interrupts.mode = "intx";
  ring!.add([IN, OUT]);
  driver.kick(0);
  loop.settle();
  assert(interrupts.level);
  driver.device.transport.configChanged();
  assertEquals(driver.r8(ISR), 3);
  assert(!interrupts.level);
  assertEquals(driver.r8(ISR), 0);
  driver.device.transport.configChanged();
  assert(interrupts.level);
  assertEquals(driver.r32(ISR), 2);
  assert(!interrupts.level);
  assertEquals(interrupts.edges, 2);
  driver.w8(ISR, 3);
  assertEquals(driver.r8(ISR), 0);
  assertEquals(interrupts.take(), []);
});

Deno.test("VirtioPci sends configuration changes to their vector and changes the generation once they are read", () => {
  const driver = new PciDriver();
  driver.device.transport.configChanged();
  assertEquals(driver.context.interrupts.take(), [], "not before DRIVER_OK");
  driver.start();
  driver.r8(DEVICE);
  const before = driver.r8(REG.configGeneration);
  driver.device.config[0] = 99;
  for (let i = 0; i < 256; i++) driver.device.transport.configChanged();
  assertEquals(driver.context.interrupts.take().length, 256);
  assertEquals(driver.r8(DEVICE), 99);
  assertEquals(driver.r8(REG.configGeneration), (before + 1) & 0xff);
  driver.r8(DEVICE);
  assertEquals(driver.r8(REG.configGeneration), (before + 1) & 0xff);
  assertEquals(driver.r8(ISR), 2, "the configuration bit is set in any mode");
});

Deno.test("VirtioPci device configuration ends where it ends", () => {
  const driver = new PciDriver();
  assertEquals(driver.r32(DEVICE), 0x0302_0100);
  assertEquals(driver.r32(DEVICE + 4), 0x0504);
  assertEquals(driver.r16(DEVICE + 6), 0);
  assertEquals(driver.r32(DEVICE + 0xffc), 0);
  driver.w32(DEVICE + 4, 0xffff_ffff);
  assertEquals(driver.r16(DEVICE + 4), 0x0504);
  driver.w16(DEVICE + 4, 0xabcd);
  assertEquals(driver.r16(DEVICE + 4), 0xabcd);
});

Deno.test("VirtioPci needs a reset after the driver broke a rule, says so, and touches nothing", () => {
  const driver = new PciDriver();
  const { interrupts, loop, log } = driver.context;
  for (let round = 0; round < 3; round++) {
    const [ring, other] = driver.start();
    ring!.offer(0xffff);
    driver.kick(0);
    loop.settle();
    assertEquals(driver.status, 15 | STATUS.NEEDS_RESET);
    assertEquals(interrupts.take(), [0]);
    other!.add([IN, OUT]);
    driver.kick(1);
    driver.kick(0);
    loop.settle();
    driver.device.transport.fail("again");
    assertEquals([ring!.usedIdx, other!.usedIdx], [0, 0]);
    assertEquals(interrupts.take(), []);
    assertEquals(driver.pci.counters().failures, round + 1);
  }
  // Once each time, however often it goes on; the log's limit is what bounds their number.
  assertEquals(log.at("warn").length, 3);
  for (const line of log.at("warn")) {
    assert(/must reset the device: queue 0: .*2\.7\.6/.test(line));
  }
  const [ring] = driver.start();
  ring!.add([IN, OUT]);
  driver.kick(0);
  loop.settle();
  assertEquals(ring!.usedIdx, 1);
});

Deno.test("VirtioPci fails a queue with impossible addresses, and one enabled before FEATURES_OK", () => {
  const driver = new PciDriver();
  driver.negotiate([VERSION_1]);
  driver.w16(REG.queueSelect, 0);
  driver.w32(REG.queueDesc, 8);
  driver.w16(REG.queueEnable, 1);
  assertEquals(driver.r16(REG.queueEnable), 0);
  assert((driver.status & STATUS.NEEDS_RESET) !== 0);
  assert(/not aligned to 16/.test(driver.context.log.at("warn")[0]!));
  driver.driverOk();
  assertEquals(driver.device.started, null);

  const early = new PciDriver();
  early.w8(REG.status, 3);
  early.setupQueue(0);
  assertEquals(early.r16(REG.queueEnable), 0);
  assert((early.status & STATUS.NEEDS_RESET) !== 0);
});

Deno.test("VirtioPci reset drops what is in flight, and late completions go nowhere", () => {
  for (const how of ["status", "pci"] as const) {
    const driver = new PciDriver();
    const [ring] = driver.start();
    driver.device.keeps = true;
    ring!.add([IN, OUT]);
    driver.kick(0);
    driver.context.loop.turn();
    assertEquals(driver.device.held.length, 1);
    driver.kick(0);
    if (how === "status") driver.w8(REG.status, 0);
    else driver.pci.reset("device_reset");
    assertEquals(driver.status, 0);
    driver.device.events.length = 0;
    driver.device.complete(driver.pci.session.queues[0]!);
    driver.context.loop.settle();
    assertEquals(driver.device.events, [], "the kick was forgotten");
    assertEquals(ring!.usedIdx, 0);
    assertEquals(driver.context.interrupts.take(), []);
    for (const select of [0, 1]) {
      driver.w16(REG.queueSelect, select);
      assertEquals(driver.r16(REG.queueEnable), 0);
      assertEquals(driver.r16(REG.queueVector), NO_VECTOR);
      assertEquals(driver.r32(REG.queueDesc), 0);
    }
    driver.device.keeps = false;
    const [again] = driver.start();
    again!.add([IN, OUT]);
    driver.kick(0);
    driver.context.loop.settle();
    assertEquals(again!.usedIdx, 1);
    assertEquals(driver.pci.counters().resets, 1);
  }
});

Deno.test("VirtioPci reset deasserts INTA#", () => {
  const driver = new PciDriver();
  driver.start();
  driver.context.interrupts.mode = "intx";
  driver.device.transport.configChanged();
  assert(driver.context.interrupts.level);
  driver.w8(REG.status, 0);
  assert(!driver.context.interrupts.level);
  assertEquals(driver.r8(ISR), 0);
});

Deno.test("VirtioPci resets one queue with RING_RESET, which then can have another size", () => {
  const driver = new PciDriver();
  const [ring, other] = driver.start();
  driver.device.keeps = true;
  ring!.add([IN, OUT]);
  driver.kick(0);
  driver.context.loop.turn();
  driver.kick(0);
  driver.device.events.length = 0;
  driver.w16(REG.queueSelect, 0);
  driver.w16(REG.queueReset, 1);
  assertEquals([driver.r16(REG.queueReset), driver.r16(REG.queueEnable)], [
    0,
    0,
  ]);
  assertEquals(driver.r16(REG.queueSize), 8);
  driver.device.complete(driver.pci.session.queues[0]!);
  driver.context.loop.settle();
  assertEquals(driver.device.events, ["resetQueue 0"]);
  assertEquals(ring!.usedIdx, 0);
  driver.device.keeps = false;
  other!.add([IN, OUT]);
  driver.kick(1);
  driver.context.loop.settle();
  assertEquals(other!.usedIdx, 1, "the other queue goes on");
  const small = driver.setupQueue(0, { size: 2 });
  assertEquals(driver.r16(REG.queueEnable), 1);
  small.add([IN, OUT]);
  driver.kick(0);
  driver.context.loop.settle();
  assertEquals(small.usedIdx, 1);
});

Deno.test("VirtioPci ignores queue_reset when RING_RESET was not negotiated", () => {
  const driver = new PciDriver();
  driver.start([VERSION_1]);
  driver.w16(REG.queueSelect, 0);
  driver.w16(REG.queueReset, 1);
  assertEquals(driver.r16(REG.queueEnable), 1);
  driver.start([VERSION_1, RING_RESET]);
  driver.w16(REG.queueSelect, 0);
  driver.w16(REG.queueReset, 2);
  assertEquals(driver.r16(REG.queueEnable), 1);
});

Deno.test("VirtioPci waits for a kick on a queue enabled after DRIVER_OK", () => {
  const driver = new PciDriver();
  driver.negotiate([VERSION_1]);
  driver.driverOk();
  const ring = driver.setupQueue(1);
  ring.add([IN, OUT]);
  driver.context.loop.settle();
  assertEquals(ring.usedIdx, 0);
  driver.kick(1);
  driver.context.loop.settle();
  assertEquals(ring.usedIdx, 1);
});

Deno.test("VirtioPci.stop keeps interrupts and completions until start", () => {
  const driver = new PciDriver();
  const [ring, other] = driver.start();
  const { interrupts, loop } = driver.context;
  driver.device.keeps = true;
  ring!.add([IN, OUT]);
  driver.kick(0);
  loop.settle();
  driver.pci.stop();
  driver.device.keeps = false;
  driver.device.complete(driver.pci.session.queues[0]!);
  driver.device.transport.configChanged();
  driver.device.transport.interrupt(driver.pci.session.queues[1]!);
  other!.add([IN, OUT]);
  driver.kick(1);
  loop.settle();
  assertEquals([ring!.usedIdx, other!.usedIdx], [0, 0]);
  assertEquals(interrupts.take(), []);
  driver.pci.start();
  assertEquals(interrupts.take().sort(), [0, 2]);
  loop.settle();
  assertEquals([ring!.usedIdx, other!.usedIdx], [1, 1]);
  assertEquals(interrupts.take().sort(), [1, 2]);
});

Deno.test("VirtioPci stopped can be reset and set up again", () => {
  const driver = new PciDriver();
  driver.start();
  driver.pci.stop();
  driver.pci.reset("device_reset");
  const [ring] = driver.start();
  ring!.add([IN, OUT]);
  driver.kick(0);
  driver.context.loop.settle();
  assertEquals(ring!.usedIdx, 0);
  driver.pci.start();
  driver.context.loop.settle();
  assertEquals(ring!.usedIdx, 1);
});

Deno.test("VirtioPci goes on when unmapped rings are mapped again", () => {
  const driver = new PciDriver();
  const [ring] = driver.start();
  const { memory, loop } = driver.context;
  memory.unmap(BASE, LENGTH);
  ring!.add([IN, OUT]);
  driver.kick(0);
  loop.settle();
  assertEquals(ring!.usedIdx, 0);
  assertEquals(driver.status, 15);
  memory.map({ iova: BASE, lengthBytes: LENGTH, buffer: driver.buffer });
  loop.settle();
  assertEquals(ring!.usedIdx, 1);
  loop.advance(10 * RING_ABSENCE_MS);
  assertEquals(driver.status, 15);
});

Deno.test("VirtioPci fails when a ring that is used stays unmapped", () => {
  const driver = new PciDriver();
  const [ring] = driver.start();
  const { memory, loop, log } = driver.context;
  memory.unmap(BASE, LENGTH);
  loop.advance(10 * RING_ABSENCE_MS);
  assertEquals(driver.status, 15, "nobody wanted it");
  ring!.add([IN, OUT]);
  driver.kick(0);
  loop.settle();
  loop.advance(RING_ABSENCE_MS - 1);
  driver.kick(0);
  loop.settle();
  assertEquals(driver.status, 15);
  loop.advance(1);
  assertEquals(driver.status & STATUS.NEEDS_RESET, STATUS.NEEDS_RESET);
  driver.kick(0);
  loop.advance(10 * RING_ABSENCE_MS);
  const warnings = log.records.filter(({ level }) => level === "warn");
  assertEquals(warnings.length, 1);
  assertMatch(
    warnings[0]!.message,
    /queue 0: the descriptor table at 0x[0-9a-f]+ is not guest memory that may be read/,
  );
});

Deno.test("VirtioPci fails at once when it is started, or a queue enabled, with a ring that is not mapped", () => {
  const driver = new PciDriver();
  const { memory } = driver.context;
  memory.unmap(BASE, LENGTH);
  driver.start();
  assertEquals(driver.status & STATUS.NEEDS_RESET, STATUS.NEEDS_RESET);
  memory.map({ iova: BASE, lengthBytes: LENGTH, buffer: driver.buffer });
  driver.w8(REG.status, 0);
  driver.start();
  assertEquals(driver.status, 15);
});

Deno.test("VirtioPci polls the queues of a driver that never kicks", () => {
  const driver = new PciDriver({ polled: true });
  const { loop } = driver.context;
  assertEquals(loop.pollerCount, 1);
  assert(!loop.pollOnce());
  const [ring] = driver.start([VERSION_1, EVENT_IDX]);
  assert(!loop.pollOnce());
  ring!.add([IN, OUT]);
  assert(loop.pollOnce());
  assertEquals(ring!.usedIdx, 1);
  assertEquals(ring!.availEvent, 0, "the driver is not asked to kick");
  assert(!loop.pollOnce());
  driver.pci.stop();
  ring!.add([IN, OUT]);
  assert(!loop.pollOnce());
  driver.pci.start();
  assert(loop.pollOnce());
  driver.pci.close();
  assertEquals(loop.pollerCount, 0);
});

Deno.test("VirtioPci.close ends everything", () => {
  const driver = new PciDriver();
  const [ring] = driver.start();
  ring!.add([IN, OUT]);
  driver.kick(0);
  driver.pci.close();
  driver.context.loop.settle();
  driver.context.memory.unmapAll();
  assertEquals(ring!.usedIdx, 0);
  assertEquals(driver.device.events.at(-1), "close");
  assert(!driver.context.loop.hasScheduled);
});

Deno.test("VirtioPci answers nothing where there are no registers", () => {
  const driver = new PciDriver();
  assertEquals(driver.pci.readBar(1, 0, 4), 0);
  assertEquals(driver.pci.readBar(0, 0, 4), 0);
  assertEquals(driver.r32(NOTIFY), 0);
  assertEquals(driver.r8(ISR + 1), 0);
  driver.pci.writeBar(1, 0, 4, 1);
  driver.pci.writeBar(0, REG.status, 1, 1);
  assertEquals(driver.status, 0);
});

/** The configuration access capability, as its `struct virtio_pci_cfg_cap` less the generic bytes. */
class CfgWindow {
  readonly capability: VendorCapability;
  readonly view: DataView;

  constructor(driver: PciDriver) {
    const found = driver.pci.spec.capabilities.at(-1)!;
    if (found.kind !== "vendor") throw new Error("it is the last capability");
    this.capability = found;
    this.view = new DataView(found.body.buffer);
  }

  select(bar: number, offset: number, length: number): void {
    this.view.setUint8(1, bar);
    this.view.setUint32(5, offset, true);
    this.view.setUint32(9, length, true);
    this.capability.onWrite!(this.view, 1, 12);
  }

  read(): number {
    this.capability.onRead!(this.view, 13, 4);
    return this.view.getUint32(13, true);
  }

  write(value: number): void {
    this.view.setUint32(13, value, true);
    this.capability.onWrite!(this.view, 13, 4);
  }
}

Deno.test("VirtioPci configuration access capability reaches the registers", () => {
  const driver = new PciDriver();
  const cfg = new CfgWindow(driver);
  const writable = cfg.capability.writable!;
  assertEquals(
    [...writable].map((it) => it === 0xff ? 1 : 0).join(""),
    "01000111111111111",
  );
  cfg.select(4, REG.numQueues, 2);
  assertEquals(cfg.read(), 2);
  cfg.select(4, DEVICE, 4);
  assertEquals(cfg.read(), 0x0302_0100);
  cfg.select(4, REG.status, 1);
  cfg.write(0xffff_ff03);
  assertEquals(driver.status, 3);
  driver.w8(REG.status, 0);
  const [ring] = driver.start();
  ring!.add([IN, OUT]);
  cfg.select(4, NOTIFY, 2);
  cfg.write(0);
  driver.context.loop.settle();
  assertEquals(ring!.usedIdx, 1);
});

Deno.test("VirtioPci configuration access capability has no effect where it must not be used", () => {
  const driver = new PciDriver();
  driver.start();
  driver.context.interrupts.mode = "intx";
  driver.device.transport.configChanged();
  const cfg = new CfgWindow(driver);
  cfg.view.setUint32(13, 0xdead_beef, true);
  const bad: [number, number, number][] = [
    [4, ISR, 0],
    [4, ISR, 3],
    [4, ISR, 8],
    [4, ISR - 1, 2],
    [4, ISR - 2, 4],
    [4, 0x4000, 1],
    [4, 0xffff_fffc, 4],
    [1, 0, 4],
    [0, 0, 4],
    [255, 0, 4],
  ];
  for (const [bar, offset, length] of bad) {
    cfg.select(bar, offset, length);
    assertEquals(cfg.read(), 0xdead_beef);
    cfg.write(0xdead_beef);
  }
  // Reading the rest of the capability does not read the window.
  cfg.select(4, ISR, 1);
  cfg.capability.onRead!(cfg.view, 0, 13);
  assert(driver.context.interrupts.level);
  assertEquals(cfg.read() & 0xff, 2);
  assert(!driver.context.interrupts.level);
});
