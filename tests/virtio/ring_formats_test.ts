/** Ways of a device to its queues: formats, sizes, order and notification data over virtio-pci. */

import { assert, assertEquals } from "@std/assert";
import { validatePciSpec } from "../../src/pci/mod.ts";
import { ringFeatures, virtioOptions } from "../../src/virtio/options.ts";
import { NaivePackedRing } from "./naive_packed_ring.ts";
import { BASE, DATA } from "./ring_fixture.ts";
import {
  EVENT_IDX,
  NOTIFY,
  PciDriver,
  REG,
  RING_RESET,
  STATUS,
} from "../transport/virtio_pci/pci_fixture.ts";

const VERSION_1 = 32;
const RING_PACKED = 34;
const IN_ORDER = 35;
const NOTIFICATION_DATA = 38;
const IN = { iova: DATA, length: 4 };
const OUT = { iova: DATA + 64, length: 4, write: true };

const EVERYTHING = ringFeatures(
  virtioOptions().parse({ "packed": "on", "notification-data": "on" }),
);

function makeDriver(polled = false): PciDriver {
  return new PciDriver({ ringFeatures: EVERYTHING, polled });
}

/** Sets up a packed queue in a part of guest memory of its own. */
function setupPacked(
  driver: PciDriver,
  index: number,
  size: number,
  inOrder = false,
): NaivePackedRing {
  const at = BASE + index * 0x1_0000;
  const places = { desc: at, driver: at + 0x4000, device: at + 0x8000 };
  new Uint8Array(driver.buffer, at - BASE, 0x1_0000).fill(0);
  driver.w16(REG.queueSelect, index);
  driver.w16(REG.queueSize, size);
  assertEquals(driver.r16(REG.queueSize), size);
  driver.w32(REG.queueDesc, places.desc);
  driver.w32(REG.queueDriver, places.driver);
  driver.w32(REG.queueDevice, places.device);
  driver.w16(REG.queueVector, index + 1);
  driver.w16(REG.queueEnable, 1);
  assertEquals(driver.r16(REG.queueEnable), 1);
  return new NaivePackedRing(driver.buffer, BASE, size, places, inOrder);
}

function startPacked(
  driver: PciDriver,
  bits: readonly number[] = [VERSION_1, RING_PACKED, RING_RESET],
): [NaivePackedRing, NaivePackedRing] {
  assert(driver.negotiate(bits), "FEATURES_OK was refused");
  const inOrder = bits.includes(IN_ORDER);
  const rings = [
    setupPacked(driver, 0, 7, inOrder),
    setupPacked(driver, 1, 16, inOrder),
  ] as [NaivePackedRing, NaivePackedRing];
  driver.driverOk();
  driver.context.loop.settle();
  driver.context.interrupts.take();
  return rings;
}

Deno.test("VirtioPci serves packed queues of any size once RING_PACKED was accepted", () => {
  const driver = makeDriver();
  const [ring, other] = startPacked(driver, [
    VERSION_1,
    RING_PACKED,
    EVENT_IDX,
  ]);
  assertEquals(driver.pci.session.queues[0]!.save().format, "packed");
  driver.context.memory.write(DATA, Uint8Array.of(1, 2, 3, 4));
  for (let round = 0; round < 20; round++) {
    const id = ring.add([IN, OUT]);
    driver.kick(0);
    driver.context.loop.settle();
    assertEquals(ring.collect(), [{ id, len: 4, told: true }]);
    assertEquals(driver.context.interrupts.take(), [1]);
  }
  assertEquals(
    new Uint8Array(driver.buffer, DATA + 64 - BASE, 4),
    Uint8Array.of(1, 2, 3, 4),
  );
  const id = other.add([IN, OUT]);
  driver.kick(1);
  driver.context.loop.settle();
  assertEquals(other.collect().map((used) => used.id), [id]);
});

Deno.test("VirtioPci takes sizes that are no powers of two with RING_PACKED only, and from FEATURES_OK on", () => {
  const driver = makeDriver();
  const tryAll = () =>
    [7, 1, 0, 9, 8, 0xffff, 3, 4].map((size) => {
      driver.w16(REG.queueSize, size);
      return driver.r16(REG.queueSize);
    });
  driver.w16(REG.queueSelect, 0);
  assertEquals(tryAll(), [8, 1, 1, 1, 8, 8, 8, 4]);
  driver.negotiate([VERSION_1]);
  driver.w16(REG.queueSelect, 0);
  assertEquals(tryAll(), [8, 1, 1, 1, 8, 8, 8, 4]);
  driver.negotiate([VERSION_1, RING_PACKED]);
  driver.w16(REG.queueSelect, 0);
  assertEquals(driver.r16(REG.queueSize), 8, "as after power-on");
  assertEquals(tryAll(), [7, 1, 1, 1, 8, 8, 3, 4]);
});

Deno.test("VirtioPci goes from packed to split and back with the features", () => {
  const driver = makeDriver();
  for (let round = 0; round < 2; round++) {
    const [packed] = startPacked(driver);
    const id = packed.add([IN, OUT]);
    driver.kick(0);
    driver.context.loop.settle();
    assertEquals(packed.collect().map((used) => used.id), [id]);
    driver.w8(REG.status, 0);
    const [split] = driver.start([VERSION_1, RING_RESET]);
    assertEquals(driver.pci.session.queues[0]!.save().format, "split");
    split!.add([IN, OUT]);
    driver.kick(0);
    driver.context.loop.settle();
    assertEquals(split!.usedIdx, 1);
  }
});

Deno.test("VirtioPci resets and stops packed queues as it does split ones", () => {
  const driver = makeDriver();
  const { loop, interrupts, memory } = driver.context;
  const [ring, other] = startPacked(driver);
  driver.device.keeps = true;
  ring.add([IN, OUT]);
  driver.kick(0);
  loop.settle();
  driver.w16(REG.queueSelect, 0);
  driver.w16(REG.queueReset, 1);
  assertEquals(
    [driver.r16(REG.queueReset), driver.r16(REG.queueEnable)],
    [0, 0],
  );
  driver.device.complete(driver.pci.session.queues[0]!);
  assertEquals(ring.collect(), []);
  const small = setupPacked(driver, 0, 3);
  driver.device.keeps = false;
  small.add([IN, OUT]);
  driver.kick(0);
  loop.settle();
  assertEquals(small.collect().length, 1);
  interrupts.take();

  driver.pci.stop();
  other.add([IN, OUT]);
  driver.kick(1);
  loop.settle();
  assertEquals([other.collect(), interrupts.take()], [[], []]);
  driver.pci.start();
  loop.settle();
  assertEquals([other.collect().length, interrupts.take()], [1, [2]]);

  memory.unmapAll();
  other.add([IN, OUT]);
  driver.kick(1);
  loop.settle();
  assertEquals(other.collect(), []);
  memory.map({
    iova: BASE,
    lengthBytes: driver.buffer.byteLength,
    buffer: driver.buffer,
  });
  loop.settle();
  assertEquals(other.collect().length, 1);
});

Deno.test("VirtioPci fails a packed queue with impossible addresses, and a driver that breaks its rules", () => {
  const driver = makeDriver();
  driver.negotiate([VERSION_1, RING_PACKED]);
  driver.w16(REG.queueSelect, 0);
  driver.w32(REG.queueDriver, 2);
  driver.w16(REG.queueEnable, 1);
  assert((driver.status & STATUS.NEEDS_RESET) !== 0);
  assert(
    /driver event suppression at 0x2 is not aligned/.test(
      driver.context.log.at("warn")[0]!,
    ),
  );
  const [ring] = startPacked(driver);
  ring.offer([{ addr: DATA, len: 1, id: 7 }]);
  driver.kick(0);
  driver.context.loop.settle();
  assert((driver.status & STATUS.NEEDS_RESET) !== 0);
});

Deno.test("VirtioPci polls packed queues", () => {
  const driver = makeDriver(true);
  const { loop } = driver.context;
  const [ring] = startPacked(driver);
  assert(!loop.pollOnce());
  ring.add([IN, OUT]);
  assert(loop.pollOnce());
  assertEquals(ring.collect().length, 1);
  assertEquals(ring.deviceEvent, [1, 0], "the driver is not asked to kick");
  assert(!loop.pollOnce());
});

/** Lets the device take three chains of queue 1, and answer the second, the third and then the first. */
function completeOutOfOrder(driver: PciDriver, between: () => void): void {
  const queue = driver.pci.session.queues[1]!;
  const { held } = driver.device;
  driver.device.keeps = true;
  driver.kick(1);
  driver.context.loop.settle();
  const first = held.shift()!;
  driver.device.complete(queue);
  between();
  held.push(first);
  driver.device.complete(queue);
}

Deno.test("VirtioPci returns buffers in order with IN_ORDER, split", () => {
  const driver = makeDriver();
  const [, ring] = driver.start([VERSION_1, IN_ORDER]);
  const heads = [0, 1, 2].map(() => ring!.add([IN]));
  completeOutOfOrder(driver, () => assertEquals(ring!.usedIdx, 0));
  assertEquals(ring!.usedIdx, 3);
  // One entry, with the id of the last, stands for all three.
  const at = ring!.places.used + 4 - BASE;
  assertEquals(ring!.view.getUint32(at, true), heads[2]);
});

Deno.test("VirtioPci returns buffers in order with IN_ORDER, packed", () => {
  const driver = makeDriver();
  const [, ring] = startPacked(driver, [VERSION_1, IN_ORDER, RING_PACKED]);
  const ids = [0, 1, 2].map(() => ring.add([IN]));
  completeOutOfOrder(driver, () => assertEquals(ring.collect(), []));
  assertEquals(
    ring.collect().map(({ id, told }) => [id, told]),
    [[ids[0], false], [ids[1], false], [ids[2], true]],
  );
});

Deno.test("VirtioPci declares doorbells of any width when it offers NOTIFICATION_DATA", () => {
  const { pci } = makeDriver();
  validatePciSpec(pci.spec);
  assertEquals(pci.spec.bars[1]!.doorbells, [
    { offset: 0x3000, sizeBytes: 0 },
    { offset: 0x3004, sizeBytes: 0 },
  ]);
});

Deno.test("VirtioPci takes 32-bit notifications, and leaves those alone that come too late", () => {
  const driver = makeDriver();
  const { loop } = driver.context;
  const [ring, other] = startPacked(driver, [
    VERSION_1,
    RING_PACKED,
    NOTIFICATION_DATA,
  ]);
  const notify = (index: number, n: number, of = ring) => {
    driver.device.events.length = 0;
    driver.w32(NOTIFY + 4 * index, of.offWrap(n) * 0x1_0000 + index);
    loop.settle();
    return driver.device.events.join();
  };
  for (let n = 1; n <= 20; n++) {
    ring.add([IN]);
    assertEquals(notify(0, n), "notify 0");
    assertEquals(ring.collect().length, 1);
    assertEquals(notify(0, n), "", "the device was there already");
  }
  assertEquals(driver.pci.counters().kicks, 40);
  assertEquals(driver.pci.counters().lateKicks, 20);
  // A driver may say what it likes: it is served, or waits for itself.
  assertEquals(notify(0, 3), "notify 0");
  assertEquals(notify(1, 0, other), "");
  other.add([IN]);
  assertEquals(notify(1, 1, other), "notify 1");
  // The value names the queue too, but the address decides.
  driver.device.events.length = 0;
  driver.w32(NOTIFY + 4, other.offWrap(9) * 0x1_0000 + 77);
  driver.w16(NOTIFY, 0);
  loop.settle();
  assertEquals(driver.device.events, ["notify 1", "notify 0"]);
  driver.pci.ringDoorbell(4, 1);
  loop.settle();
  assertEquals(driver.device.events.length, 3, "an eventfd carries no data");
});

Deno.test("VirtioPci understands notification data of split queues, 65535 to 0 included", () => {
  const driver = makeDriver();
  const { loop } = driver.context;
  const [, ring] = driver.start([VERSION_1, NOTIFICATION_DATA]);
  for (let n = 1; n < 0x1_0003; n++) {
    ring!.add([IN]);
    driver.w32(NOTIFY + 4, (n & 0xffff) * 0x1_0000 + 1);
    loop.settle();
    ring!.collect();
  }
  assertEquals(ring!.usedIdx, 2);
  assertEquals(driver.pci.counters().lateKicks, 0);
  driver.w32(NOTIFY + 4, 2 * 0x1_0000 + 1);
  assertEquals(driver.pci.counters().lateKicks, 1);
});

Deno.test("VirtioPci makes nothing of notification data that were not negotiated, or before DRIVER_OK", () => {
  const driver = makeDriver();
  const [ring] = driver.start([VERSION_1]);
  driver.device.events.length = 0;
  driver.w32(NOTIFY, 0);
  driver.context.loop.settle();
  assertEquals(driver.device.events, ["notify 0"]);
  assertEquals(ring!.usedIdx, 0);
  driver.negotiate([VERSION_1, RING_PACKED, NOTIFICATION_DATA]);
  setupPacked(driver, 0, 7);
  driver.w32(NOTIFY, 0x8000_0000);
  driver.w32(NOTIFY + 8, 0x8000_0000);
  assertEquals(driver.pci.counters().lateKicks, 0);
});
