import { assertEquals } from "@std/assert";
import type { Pair } from "./naive_driver.ts";
import { Rig } from "./rig.ts";

const COALESCING = 8;
const VECTOR_CONFIG = 9;
const NO_COALESCING = 1 << 16;
const FLUSH = { opcode: 0, nsid: 1 };

/** A rig whose driver asked for so many completions (0's based, as in the standard) and so many units of 100 µs. */
function coalescing(
  threshold: number,
  time: number,
  mode?: "intx" | "msi" | "msix",
): { rig: Rig; pair: Pair } {
  const rig = new Rig(mode === undefined ? {} : { mode });
  const pair = rig.driver.createPair(
    1,
    64,
    mode === undefined || mode === "msix" ? 1 : 0,
  );
  const { driver } = rig;
  assertEquals(
    driver.setFeature(COALESCING, threshold | time << 8).status,
    0,
  );
  rig.interrupts.take();
  return { rig, pair };
}

/** Has commands completed, and leaves their completions where they are. */
function complete(rig: Rig, pair: Pair, count: number): void {
  for (let i = 0; i < count; i++) rig.driver.put(pair, FLUSH);
  rig.driver.ring(pair);
  rig.settle();
}

Deno.test("completions are told when there are as many as the threshold says, 0's based", () => {
  const { rig, pair } = coalescing(3, 255);
  using _ = rig;
  complete(rig, pair, 1);
  complete(rig, pair, 1);
  complete(rig, pair, 1);
  assertEquals(rig.interrupts.take(), []);
  complete(rig, pair, 1);
  assertEquals(rig.interrupts.take(), [1]);
  // One batch is one interrupt, however long.
  complete(rig, pair, 9);
  assertEquals(rig.interrupts.take(), [1]);
  assertEquals(rig.driver.reap(pair).length, 13);
});

Deno.test("completions are told when the time has passed", () => {
  const { rig, pair } = coalescing(7, 20);
  using _ = rig;
  complete(rig, pair, 2);
  rig.loop.advance(1.5);
  complete(rig, pair, 1);
  assertEquals(rig.interrupts.take(), []);
  rig.loop.advance(0.4);
  assertEquals(rig.interrupts.take(), []);
  rig.loop.advance(0.1);
  assertEquals(rig.interrupts.take(), [1]);
  assertEquals(rig.loop.timerCount, 0);
  // Nothing waits, nothing is told.
  rig.loop.advance(10);
  assertEquals(rig.interrupts.take(), []);
  complete(rig, pair, 1);
  rig.loop.advance(1.9);
  assertEquals(rig.interrupts.take(), []);
  rig.loop.advance(0.1);
  assertEquals(rig.interrupts.take(), [1]);
});

Deno.test("interrupt coalescing is off at first, and with a threshold or a time of 0", () => {
  using rig = new Rig();
  const pair = rig.io();
  rig.interrupts.take();
  assertEquals(rig.driver.getFeature(COALESCING).dw0, 0);
  rig.interrupts.take();
  for (const value of [0, 0x0007, 0x0a00]) {
    assertEquals(rig.driver.setFeature(COALESCING, value).status, 0);
    assertEquals(rig.driver.getFeature(COALESCING).dw0, value);
    rig.interrupts.take();
    complete(rig, pair, 1);
    assertEquals(rig.interrupts.take(), [1], `value ${value}`);
    assertEquals(rig.loop.timerCount, 0);
  }
});

Deno.test("what waits is told when the driver turns coalescing off", () => {
  const { rig, pair } = coalescing(7, 255);
  using _ = rig;
  complete(rig, pair, 2);
  assertEquals(rig.interrupts.take(), []);
  rig.driver.setFeature(COALESCING, 0);
  assertEquals(rig.interrupts.take().toSorted(), [0, 1]);
});

Deno.test("the admin completion queue is never coalesced, whatever its vector says", () => {
  const { rig } = coalescing(7, 255);
  using _ = rig;
  const { driver } = rig;
  assertEquals(driver.getFeature(VECTOR_CONFIG, 0).dw0, NO_COALESCING);
  assertEquals(driver.setFeature(VECTOR_CONFIG, 0).status, 0);
  assertEquals(driver.getFeature(VECTOR_CONFIG, 0).dw0, 0);
  rig.interrupts.take();
  driver.identify(1);
  assertEquals(rig.interrupts.take(), [0]);
});

Deno.test("a vector for which coalescing is disabled is told at once, others are not", () => {
  const { rig, pair } = coalescing(7, 255);
  using _ = rig;
  const { driver } = rig;
  const other = driver.createPair(2, 16);
  assertEquals(
    driver.setFeature(VECTOR_CONFIG, 1 | NO_COALESCING).status,
    0,
  );
  assertEquals(driver.getFeature(VECTOR_CONFIG, 1).dw0, 1 | NO_COALESCING);
  rig.interrupts.take();
  complete(rig, other, 1);
  complete(rig, pair, 1);
  assertEquals(rig.interrupts.take(), [1]);
  rig.loop.advance(25.5);
  assertEquals(rig.interrupts.take(), [2]);
});

Deno.test("queues that share a vector reach its threshold together", () => {
  const { rig, pair } = coalescing(3, 255);
  using _ = rig;
  const other = rig.driver.createPair(2, 16, 1);
  rig.interrupts.take();
  complete(rig, pair, 2);
  complete(rig, other, 1);
  assertEquals(rig.interrupts.take(), []);
  complete(rig, other, 1);
  // Both have something to tell.
  assertEquals(rig.interrupts.take(), [1, 1]);
});

Deno.test("a command that failed is told at once, and what waited with it", () => {
  const { rig, pair } = coalescing(7, 255);
  using _ = rig;
  complete(rig, pair, 2);
  assertEquals(rig.interrupts.take(), []);
  rig.driver.put(pair, { opcode: 2, nsid: 1, cdw11: 0xffff_ffff });
  rig.driver.ring(pair);
  rig.settle();
  assertEquals(rig.interrupts.take(), [1]);
  complete(rig, pair, 2);
  assertEquals(rig.interrupts.take(), []);
});

Deno.test("what the driver has consumed by itself needs no interrupt", () => {
  const { rig, pair } = coalescing(3, 10);
  using _ = rig;
  complete(rig, pair, 3);
  assertEquals(rig.driver.reap(pair).length, 3);
  complete(rig, pair, 1);
  assertEquals(rig.interrupts.take(), [], "not the fourth that waits");
  assertEquals(rig.driver.reap(pair).length, 1);
  rig.loop.advance(1);
  assertEquals(rig.interrupts.take(), []);
});

Deno.test("a queue without interrupts has no part in coalescing", () => {
  const { rig } = coalescing(1, 10);
  using _ = rig;
  const silent = rig.driver.createPair(2, 16, 2, 16, false);
  rig.interrupts.take();
  complete(rig, silent, 5);
  rig.loop.advance(100);
  assertEquals(rig.interrupts.take(), []);
  assertEquals(rig.driver.reap(silent).length, 5);
});

Deno.test("with the pin, the line goes up for what is told and down when that is consumed", () => {
  const { rig, pair } = coalescing(2, 10, "intx");
  using _ = rig;
  const { driver, interrupts } = rig;
  assertEquals(driver.setFeature(VECTOR_CONFIG, 0).status, 0);
  assertEquals(interrupts.level, false);
  complete(rig, pair, 2);
  assertEquals(interrupts.level, false);
  complete(rig, pair, 1);
  assertEquals(interrupts.level, true);
  // One more comes, and the driver consumes the first three: what is left was not told yet.
  complete(rig, pair, 1);
  assertEquals(interrupts.level, true);
  driver.write(0x1000 + 4 * 3, 3);
  rig.settle();
  assertEquals(interrupts.level, false);
  rig.loop.advance(1);
  assertEquals(interrupts.level, true);
  assertEquals(driver.reap(pair).length, 4);
  assertEquals(interrupts.level, false);
});

Deno.test("with MSI, what waits under a mask is told when it is lifted and the time has passed", () => {
  const { rig, pair } = coalescing(2, 10, "msi");
  using _ = rig;
  const { driver, interrupts } = rig;
  assertEquals(driver.setFeature(VECTOR_CONFIG, 0).status, 0);
  interrupts.take();
  driver.write(0xc, 1);
  complete(rig, pair, 5);
  rig.loop.advance(5);
  assertEquals(interrupts.take(), []);
  driver.write(0x10, 1);
  rig.settle();
  assertEquals(interrupts.take(), [0]);
});

Deno.test("a reset of the controller forgets what waits, and its timer", () => {
  const { rig, pair } = coalescing(7, 10);
  using _ = rig;
  complete(rig, pair, 2);
  assertEquals(rig.loop.timerCount, 1);
  rig.driver.disable();
  assertEquals(rig.loop.timerCount, 0);
  rig.driver.enable();
  rig.interrupts.take();
  assertEquals(rig.driver.getFeature(COALESCING).dw0, 0);
  rig.loop.advance(5);
  assertEquals(rig.interrupts.take(), [0]);
});

Deno.test("a controller that was stopped tells what waited once it goes on", () => {
  const { rig, pair } = coalescing(7, 10);
  using _ = rig;
  complete(rig, pair, 2);
  rig.device.stop();
  rig.loop.advance(5);
  assertEquals(rig.interrupts.take(), []);
  rig.device.start();
  rig.settle();
  assertEquals(rig.interrupts.take(), [1]);
});
