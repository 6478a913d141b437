import { assertEquals } from "@std/assert";
import {
  ALL_OFFLOADS,
  frame,
  type HeadedFrame,
  NF,
  OF,
  Rig,
} from "./harness.ts";

const RELIEF = { rxReliefUsec: 5000, queueSize: 8 } as const;
/** Number of times buffers run out under small frames before the driver counts as overloaded. */
const PATIENCE = 4;

/** The driver has used frames for `busyMs`, adds as many buffers as fit, and gets what frames it gets at once. */
function refill(rig: Rig, busyMs: number): number {
  rig.loop.advance(busyMs);
  rig.received();
  rig.postRx(...new Array<number>(8).fill(1600));
  return delivered(rig);
}

/** Number of entries in the used ring. */
function delivered(rig: Rig): number {
  return rig.received().length;
}

/** As {@linkcode delivered}, after time has passed. */
function deliveredAfter(rig: Rig, ms: number): number {
  rig.loop.advance(ms);
  rig.settle();
  return delivered(rig);
}

function flood(rig: Rig, count = 500): void {
  rig.arrive(...Array.from({ length: count }, (_, i) => frame(60, i)));
}

/** An overloaded driver that has just added buffers, after 2 ms. */
function overload(rig: Rig): void {
  flood(rig);
  for (let i = 0; i < PATIENCE; i++) assertEquals(refill(rig, 2), 8);
  assertEquals(refill(rig, 2), 0);
}

Deno.test("Relief lets an overloaded driver rest in proportion to what it took", () => {
  using rig = new Rig(RELIEF);
  overload(rig);
  assertEquals(rig.backend.receiving, false);
  assertEquals(deliveredAfter(rig, 2.9), 0);
  assertEquals(deliveredAfter(rig, 0.2), 8);
  // When it is faster it rests less: this took 0.2 ms.
  assertEquals(refill(rig, 0.1), 0);
  assertEquals(deliveredAfter(rig, 0.28), 0);
  assertEquals(deliveredAfter(rig, 0.04), 8);
  assertEquals(rig.counter("rxRests"), 2);
});

Deno.test("Relief keeps frames from a stopped driver no longer than it may", () => {
  using rig = new Rig(RELIEF);
  overload(rig);
  assertEquals(deliveredAfter(rig, 3.1), 8);
  assertEquals(refill(rig, 60_000), 0);
  assertEquals(deliveredAfter(rig, 4.9), 0);
  assertEquals(deliveredAfter(rig, 0.2), 8);
});

Deno.test("Relief does not begin anew when more buffers are added meanwhile", () => {
  using rig = new Rig(RELIEF);
  flood(rig);
  for (let i = 0; i < PATIENCE; i++) assertEquals(refill(rig, 2), 8);
  rig.loop.advance(2);
  rig.postRx(1600, 1600);
  assertEquals(deliveredAfter(rig, 2), 0);
  rig.postRx(1600, 1600);
  rig.rx.kick();
  assertEquals(deliveredAfter(rig, 0.9), 0);
  assertEquals(deliveredAfter(rig, 0.2), 4);
});

Deno.test("Relief is for drivers of which frames do not run out", () => {
  using rig = new Rig(RELIEF);
  for (let round = 0; round < 20; round++) {
    // In each round both run out: the one frame that is left over is all there is for the next buffers.
    const leftOver = round === 0 ? 0 : 1;
    assertEquals(refill(rig, 2), leftOver);
    flood(rig, 9 - leftOver);
    assertEquals(delivered(rig), 8 - leftOver);
  }
  assertEquals(rig.counter("rxRests"), 0);
});

Deno.test("Relief ends when the driver keeps up again", () => {
  using rig = new Rig(RELIEF);
  overload(rig);
  rig.backend.incoming.length = 0;
  rig.loop.advance(3.1);
  rig.settle();
  // The buffers are there now, and frames come one by one.
  for (let i = 0; i < 8; i++) {
    flood(rig, 1);
    assertEquals(delivered(rig), 1);
  }
  flood(rig, 8);
  assertEquals(refill(rig, 2), 8);
});

Deno.test("Relief takes no quiet time for work", () => {
  using rig = new Rig(RELIEF);
  overload(rig);
  for (let i = 0; i < PATIENCE; i++) {
    rig.loop.advance(10);
    rig.settle();
    rig.received();
    rig.postRx(...new Array<number>(8).fill(1600));
  }
  rig.backend.incoming.length = 0;
  rig.loop.advance(10);
  rig.settle();
  // An hour later it is the same again.
  rig.loop.advance(3_600_000);
  flood(rig, 1);
  flood(rig);
  rig.received();
  assertEquals(refill(rig, 0.2), 0);
  assertEquals(deliveredAfter(rig, 0.28), 0);
  assertEquals(deliveredAfter(rig, 0.04), 8);
});

Deno.test("Relief is not for bulk transfers", () => {
  using rig = new Rig(RELIEF);
  rig.arrive(...Array.from({ length: 200 }, (_, i) => frame(1514, i)));
  for (let i = 0; i < 20; i++) assertEquals(refill(rig, 2), 8);
  assertEquals(rig.counter("rxRests"), 0);
});

Deno.test("Relief is not for frames of several segments", () => {
  using rig = new Rig({
    ...RELIEF,
    offloads: ALL_OFFLOADS,
    features: [
      NF.MRG_RXBUF,
      OF.GUEST_CSUM,
      OF.GUEST_TSO4,
    ],
  });
  const tso: HeadedFrame = {
    header: [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0],
    frame: frame(5000),
  };
  rig.arrive(...new Array<HeadedFrame>(30).fill(tso));
  for (let round = 0; round < 10; round++) {
    rig.loop.advance(2);
    rig.received();
    rig.postRx(...new Array<number>(8).fill(1600));
  }
  assertEquals(rig.counter("rxGsoPackets") > 10, true);
  assertEquals(rig.counter("rxStarved") > 10, true);
  assertEquals(rig.counter("rxRests"), 0);
});

Deno.test("Relief of 0 is none", () => {
  using rig = new Rig({ ...RELIEF, rxReliefUsec: 0 });
  flood(rig);
  for (let i = 0; i < 20; i++) assertEquals(refill(rig, 2), 8);
});

Deno.test("Relief ends with a reset, and leaves nothing behind", () => {
  using rig = new Rig(RELIEF);
  overload(rig);
  rig.device.reset("device_reset");
  assertEquals(rig.loop.timerCount, 0);
  rig.bringUp();
  flood(rig);
  for (let i = 0; i < PATIENCE; i++) assertEquals(refill(rig, 2), 8);
});

Deno.test("Relief gives way to a hold, and frames go on after it", () => {
  using rig = new Rig(RELIEF);
  overload(rig);
  assertEquals(rig.device.hold!(), 0);
  assertEquals(rig.loop.timerCount, 0);
  assertEquals(deliveredAfter(rig, 10), 0);
  rig.device.start();
  rig.settle();
  assertEquals(delivered(rig), 8);
});

Deno.test("Relief ends when the card moves", () => {
  using rig = new Rig(RELIEF);
  overload(rig);
  rig.move();
  rig.device.start();
  rig.settle();
  assertEquals(delivered(rig), 8);
});
