import { assert, assertEquals, assertThrows } from "@std/assert";
import { ManualLoop } from "../../src/testing/manual_loop.ts";

Deno.test("ManualLoop runs a bottom half once per schedule, in the next turn", () => {
  const loop = new ManualLoop();
  let runs = 0;
  const half = loop.bottomHalf(() => {
    if (++runs === 2) half.schedule();
  });
  assert(!loop.turn());
  half.schedule();
  half.schedule();
  assert(loop.hasScheduled);
  assert(loop.turn());
  assertEquals(runs, 1);
  half.schedule();
  half.cancel();
  assert(!loop.turn());
  half.schedule();
  loop.turn();
  assertEquals(runs, 2, "what it schedules itself waits");
  loop.turn();
  assertEquals(runs, 3);
});

Deno.test("ManualLoop lets one bottom half cancel another of the same turn", () => {
  const loop = new ManualLoop();
  const ran: string[] = [];
  const second = loop.bottomHalf(() => ran.push("second"));
  const first = loop.bottomHalf(() => {
    ran.push("first");
    second.cancel();
  });
  first.schedule();
  second.schedule();
  loop.settle();
  assertEquals(ran, ["first"]);
});

Deno.test("ManualLoop moves time only when told, and timers fire in order", () => {
  const loop = new ManualLoop();
  const fired: [string, number][] = [];
  const late = loop.timer(() => fired.push(["late", loop.now()]));
  const again = loop.timer(() => {
    fired.push(["again", loop.now()]);
    if (fired.length < 2) again.arm(2);
  });
  late.arm(5);
  again.arm(1.5);
  loop.turn();
  assertEquals(fired, []);
  loop.advance(10);
  assertEquals(fired, [["again", 1.5], ["again", 3.5], ["late", 5]]);
  assertEquals(loop.now(), 10);
  late.arm(1);
  late.close();
  again.arm(3);
  again.arm(1);
  loop.advance(1);
  assertEquals(fired.length, 4);
  assertEquals(loop.timerCount, 0);
});

Deno.test("ManualLoop reports events that are watched for, errors always", () => {
  const loop = new ManualLoop();
  const seen: number[] = [];
  const watch = loop.watch(7, 1, (events) => seen.push(events));
  assertThrows(() => loop.watch(7, 1, () => {}), Error, "watched already");
  loop.signal(7, 1 | 4);
  loop.signal(7, 4);
  loop.signal(7, 0x10);
  loop.signal(8);
  assert(loop.turn());
  assertEquals(seen, [1, 0x10]);
  watch.setEvents(4);
  assertEquals(loop.watchedEvents(7), 4);
  loop.signal(7, 4);
  loop.turn();
  assertEquals(seen, [1, 0x10, 4]);
  watch.close();
  loop.signal(7, 4);
  assert(!loop.turn());
  assertEquals(loop.watchCount, 0);
});

Deno.test("ManualLoop polls every handler until it is closed", () => {
  const loop = new ManualLoop();
  let work = true;
  const busy = loop.poll(() => work);
  const idle = loop.poll(() => false);
  assert(loop.pollOnce());
  work = false;
  assert(!loop.pollOnce());
  busy.close();
  busy.close();
  assertEquals(loop.pollerCount, 1);
  idle.close();
  assertEquals(loop.pollerCount, 0);
});

Deno.test("ManualLoop.settle gives up on a bottom half that never ends", () => {
  const loop = new ManualLoop();
  const half = loop.bottomHalf(() => half.schedule());
  half.schedule();
  assertThrows(() => loop.settle(), Error, "still busy");
});
