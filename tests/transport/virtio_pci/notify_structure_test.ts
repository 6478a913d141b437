import { assertEquals } from "@std/assert";
import { PciFunction } from "../../../src/pci/function.ts";
import { PciInterrupts } from "../../../src/pci/interrupts.ts";
import { validatePciSpec } from "../../../src/pci/mod.ts";
import { silentLog } from "../../../src/core/log.ts";
import { RING_FEATURES } from "../../../src/virtio/session/session.ts";
import { Features } from "../../../src/virtio/features.ts";
import { allowMastering } from "../../pci/sample.ts";
import { NOTIFY, PciDriver, REG } from "./pci_fixture.ts";
import { DATA } from "../../virtio/ring_fixture.ts";

const VERSION_1 = 32;
const NOTIFICATION_DATA = 38;
const RING_RESET = 40;
const IN = { iova: DATA, length: 4 };
const OUT = { iova: DATA + 64, length: 4, write: true };

/** Page of a device that a client has mapped and writes to. */
function mappedPage({ pci }: PciDriver): DataView {
  const [area] = pci.spec.bars[1]!.mmap!;
  assertEquals(area!.offset, NOTIFY);
  return new DataView(area!.memory.bytes.buffer);
}

Deno.test("VirtioPci maps the notify structure when told to, and offers no eventfds for it", () => {
  for (
    const [queues, pageBytes, barBytes] of [
      [2, 0x1000, 0x4000],
      [1024, 0x1000, 0x4000],
      [1025, 0x2000, 0x8000],
    ]
  ) {
    const sizes = new Array<number>(queues!).fill(8);
    const { pci } = new PciDriver({ mapNotify: true }, sizes);
    validatePciSpec(pci.spec);
    const bar = pci.spec.bars[1]!;
    assertEquals(bar.sizeBytes, barBytes);
    assertEquals(bar.doorbells, undefined);
    assertEquals(
      bar.mmap!.map(({ offset, memory }) => [offset, memory.bytes.length]),
      [[NOTIFY, pageBytes]],
    );
    assertEquals(pci.info(), { doorbells: "mmap" });
  }
  const { pci } = new PciDriver();
  assertEquals(pci.spec.bars[1]!.mmap, undefined);
  assertEquals(pci.info(), { doorbells: "message" });
});

Deno.test("VirtioPci finds a write to the page while the loop sleeps, and while it polls", () => {
  const driver = new PciDriver({ mapNotify: true });
  const page = mappedPage(driver);
  const [ring] = driver.start();
  const { loop } = driver.context;
  ring!.add([IN, OUT]);
  page.setUint16(0, 0, true);
  loop.settle();
  assertEquals(ring!.usedIdx, 0);
  loop.advance(1);
  assertEquals(ring!.usedIdx, 1);
  ring!.add([IN, OUT]);
  page.setUint16(0, 0, true);
  loop.pollOnce();
  loop.settle();
  assertEquals(ring!.usedIdx, 2);
  const { kicks, pageKicks, messageKicks } = driver.pci.session.counters();
  assertEquals([kicks, pageKicks, messageKicks], [2, 2, 0]);
  assertEquals(driver.context.interrupts.take(), [1, 1]);
});

Deno.test("VirtioPci looks by no timer while the loop polls", () => {
  const driver = new PciDriver({ mapNotify: true });
  const { loop } = driver.context;
  loop.beginPolling();
  driver.start();
  loop.advance(5);
  assertEquals(loop.timerCount, 0);
  loop.endPolling();
  assertEquals(loop.timerCount, 1);
});

Deno.test("VirtioPci looks at the rings too: a driver that polls never notifies", () => {
  const driver = new PciDriver({ mapNotify: true });
  const [ring] = driver.start();
  ring!.add([IN, OUT]);
  driver.context.loop.advance(1);
  assertEquals(ring!.usedIdx, 1);
  const { kicks, polledKicks } = driver.pci.session.counters();
  assertEquals([kicks, polledKicks], [0, 1]);
});

Deno.test("VirtioPci looks often while it finds something, and rests when the driver has gone", () => {
  const driver = new PciDriver({ mapNotify: true });
  const page = mappedPage(driver);
  const { loop } = driver.context;
  assertEquals(loop.timerCount, 0);
  const rings = driver.start();
  assertEquals(loop.timerCount, 1);
  page.setUint16(4, 1, true);
  loop.advance(1);
  rings[1]!.add([IN, OUT]);
  page.setUint16(4, 1, true);
  loop.advance(0.06);
  assertEquals(rings[1]!.usedIdx, 1);
  driver.w8(REG.status, 0);
  assertEquals(loop.timerCount, 0);
  driver.start();
  assertEquals(loop.timerCount, 1);
  driver.pci.close();
  assertEquals(loop.timerCount, 0);
});

Deno.test("VirtioPci takes a message to the page at once", () => {
  const driver = new PciDriver({ mapNotify: true });
  const pci = new PciFunction(
    driver.pci,
    driver.context.memory,
    new PciInterrupts(),
    silentLog,
  );
  allowMastering(pci);
  const [ring] = driver.start();
  const { loop } = driver.context;
  const message = new DataView(new ArrayBuffer(4));
  for (const width of [2, 4]) {
    ring!.add([IN, OUT]);
    assertEquals(pci.writeRegion(4, NOTIFY, message, 0, width), 0);
    loop.settle();
  }
  assertEquals(ring!.usedIdx, 2);
  const { messageKicks, pageKicks } = driver.pci.session.counters();
  assertEquals([messageKicks, pageKicks], [2, 0]);
  // Nothing is left for the timer.
  loop.advance(2);
  assertEquals(driver.pci.session.counters().kicks, 2);
});

Deno.test("VirtioPci reads NOTIFICATION_DATA from the page, and spares a late notification", () => {
  const driver = new PciDriver({
    mapNotify: true,
    ringFeatures: RING_FEATURES.union(Features.of(NOTIFICATION_DATA)),
  });
  const page = mappedPage(driver);
  const [ring] = driver.start([VERSION_1, RING_RESET, NOTIFICATION_DATA]);
  const { loop } = driver.context;
  const { events } = driver.device;
  ring!.add([IN, OUT]);
  page.setUint32(0, 1 << 16, true);
  loop.advance(1);
  assertEquals(ring!.usedIdx, 1);
  const before = events.length;
  page.setUint32(0, 1 << 16, true);
  loop.advance(1);
  assertEquals(driver.pci.session.counters().lateKicks, 1);
  assertEquals(events.length, before);
  // Written by a driver that forgot the data: looked at all the same.
  page.setUint16(0, 0, true);
  loop.advance(1);
  assertEquals(events.length, before + 1);
});

Deno.test("VirtioPci keeps what was noted while it was stopped, and forgets it at a reset", () => {
  const driver = new PciDriver({ mapNotify: true });
  const page = mappedPage(driver);
  const [ring] = driver.start();
  const { loop } = driver.context;
  driver.pci.stop();
  ring!.add([IN, OUT]);
  page.setUint16(0, 0, true);
  loop.advance(5);
  assertEquals(ring!.usedIdx, 0);
  driver.pci.start();
  loop.advance(1);
  assertEquals(ring!.usedIdx, 1);
  page.setUint32(0, 0xdead_0000, true);
  page.setUint32(4, 0xdead_beef, true);
  driver.pci.reset("client_gone");
  const { kicks } = driver.pci.session.counters();
  driver.start();
  loop.advance(5);
  loop.pollOnce();
  assertEquals(driver.pci.session.counters().kicks, kicks);
});

Deno.test("VirtioPci outlives a client that scribbles on the page", () => {
  const driver = new PciDriver({ mapNotify: true });
  const page = mappedPage(driver);
  const { loop } = driver.context;
  const scribble = (value: number) => {
    for (let at = 0; at < page.byteLength; at++) page.setUint8(at, value + at);
    loop.pollOnce();
    loop.advance(3);
  };
  for (const value of [0, 1, 0x7f, 0xff]) scribble(value);
  const [ring] = driver.start();
  for (const value of [0, 1, 0x7f, 0xff]) scribble(value);
  ring!.add([IN, OUT]);
  page.setUint16(0, 0, true);
  loop.advance(3);
  assertEquals(ring!.usedIdx, 1);
  assertEquals(driver.pci.session.counters().failures, 0);
});
