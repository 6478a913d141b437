import { assertEquals, assertThrows } from "@std/assert";
import {
  DriverMemory,
  F,
  listCapabilities,
  STATUS,
  VIRTIO_CAP,
  VirtioDriver,
} from "../../src/testing/mod.ts";
import { NaiveCard } from "./naive_card.ts";

function setUp(offered: number[] = [F.VERSION_1, F.RING_EVENT_IDX, 63]) {
  const memory = new DriverMemory(new ArrayBuffer(1 << 20), 0x1_0000_0000);
  const card = new NaiveCard(memory, offered);
  return { memory, card, driver: new VirtioDriver(card, memory) };
}

Deno.test("VirtioDriver finds the structures and enables memory and DMA", () => {
  const { card, driver } = setUp();
  assertEquals(driver.deviceType, 1);
  assertEquals([...driver.structures.keys()], [1, 2, 3, 4, 5]);
  assertEquals(driver.structure(VIRTIO_CAP.DEVICE_CFG), {
    bar: 4,
    offset: 0x300,
    lengthBytes: 64,
    capability: 0x40 + 3 * 24,
  });
  assertEquals(card.config.getUint16(4, true), 6);
});

Deno.test("VirtioDriver says which structure is missing", () => {
  const memory = new DriverMemory(new ArrayBuffer(4096), 0);
  const card = new NaiveCard(memory, []);
  card.config.setUint16(6, 0, true);
  assertThrows(() => new VirtioDriver(card, memory), Error, "structure 1");
});

Deno.test("listCapabilities stops at a list that loops or leaves its place", () => {
  const card = new NaiveCard(new DriverMemory(new ArrayBuffer(64), 0), []);
  card.config.setUint8(0x41, 0x40);
  assertThrows(() => listCapabilities(card), Error, "capability list");
  card.config.setUint8(0x41, 0x20);
  assertThrows(() => listCapabilities(card), Error, "comes to 32");
});

Deno.test("negotiate goes through the states of the standard with what is offered", () => {
  const { card, driver } = setUp();
  const agreed = driver.negotiate([F.RING_EVENT_IDX, F.RING_PACKED, 63, 5]);
  assertEquals([...agreed].sort((a, b) => a - b), [29, 32, 63]);
  assertEquals([...card.accepted].sort((a, b) => a - b), [29, 32, 63]);
  assertEquals(driver.has(F.RING_EVENT_IDX), true);
  assertEquals(driver.has(F.RING_PACKED), false);
  driver.driverOk();
  assertEquals(card.statuses, [0, 1, 3, 11, 15]);
  assertEquals(driver.status, 15);
  driver.reset();
  assertEquals(driver.has(F.RING_EVENT_IDX), false);
});

Deno.test("negotiate fails on a device without VERSION_1, one that refuses, one that does not reset", () => {
  const old = setUp([]);
  assertThrows(() => old.driver.negotiate([]), Error, "VERSION_1");
  const { card, driver } = setUp();
  card.refuseFeatures = true;
  assertThrows(() => driver.negotiate([]), Error, "refused the features");
  card.stuckStatus = STATUS.NEEDS_RESET;
  assertThrows(() => driver.reset(), Error, "status stays set");
});

Deno.test("setupQueue tells the device size, addresses and vector", () => {
  const { card, driver } = setUp();
  driver.negotiate([]);
  assertEquals([driver.numQueues, driver.queueMaxSize(2)], [3, 16]);
  const queue = driver.setupQueue(2, { size: 8, vector: 3 });
  const told = card.queues[2]!;
  assertEquals([told.size, told.vector, told.enabled], [8, 3, true]);
  assertEquals(
    [32, 36, 40, 44, 48, 52].map((at) => told.regs.get(at)),
    [queue.ring.descIova, queue.ring.availIova, queue.ring.usedIova]
      .flatMap((iova) => [iova % 2 ** 32, 1]),
  );
  assertThrows(() => driver.setupQueue(3), Error, "has none");
  assertEquals(driver.setConfigVector(1), 1);
  card.refuseVectors = true;
  assertThrows(() => driver.setupQueue(1, { vector: 2 }), Error, "65535");
});

Deno.test("reset gives the memory of all queues back", () => {
  const { memory, driver } = setUp();
  driver.negotiate([]);
  driver.setupQueue(0);
  driver.setupQueue(1);
  driver.reset();
  assertEquals([memory.usedBytes, driver.queues.length], [0, 0]);
});

Deno.test("a queue is reset by itself and goes on afterwards", () => {
  const { card, driver } = setUp();
  driver.negotiate([]);
  const queue = driver.setupQueue(1, { size: 4, vector: 2 });
  queue.ring.begin(1);
  queue.ring.readable(driver.memory.alloc(16), 16);
  queue.ring.end();
  driver.resetQueue(queue);
  assertEquals([queue.ring.free, card.queues[1]!.enabled], [4, false]);
  driver.reenableQueue(queue);
  const told = card.queues[1]!;
  assertEquals([told.size, told.vector, told.enabled], [4, 2, true]);
  assertEquals(told.regs.get(32), queue.ring.descIova % 2 ** 32);
});

Deno.test("readConfigBytes reads again when the generation changes", () => {
  const { card, driver } = setUp();
  card.generationChanges = 3;
  const [first] = driver.readConfigBytes(0, 1);
  assertEquals(first, driver.configGeneration);
});

Deno.test("device configuration, ISR and the window in configuration space", () => {
  const { card, driver } = setUp();
  card.device.setUint32(8, 0x0403_0201, true);
  assertEquals(driver.readConfig(8, 4), 0x0403_0201);
  driver.writeConfig(9, 1, 0xff);
  assertEquals(driver.readConfig(8, 2), 0xff01);
  assertEquals(driver.readThroughConfig(4, 0x308, 2), 0xff01);
  driver.writeThroughConfig(4, 0x308, 1, 0x55);
  assertEquals(driver.readConfig(8, 1), 0x55);
  assertEquals([driver.readIsr(), driver.readIsr()], [3, 0]);
});

Deno.test("waitUsed ends with the time when the device does nothing", () => {
  const { card, driver } = setUp();
  driver.negotiate([F.RING_EVENT_IDX]);
  const queue = driver.setupQueue(1);
  const iova = driver.memory.alloc(16);
  const send = () => {
    queue.ring.begin(1);
    queue.ring.readable(iova, 16);
    queue.ring.end();
    queue.flush();
  };
  card.deaf = true;
  send();
  assertEquals([queue.waitUsed(2), queue.kicks], [false, 1]);
  card.deaf = false;
  queue.kick();
  assertEquals([queue.waitUsed(2), queue.kicks], [true, 2]);
});
