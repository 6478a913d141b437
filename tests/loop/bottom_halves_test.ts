import { assert, assertEquals } from "@std/assert";
import { BottomHalves } from "../../src/loop/bottom_halves.ts";

function rig() {
  const errors: unknown[] = [];
  return { errors, halves: new BottomHalves((error) => errors.push(error)) };
}

Deno.test("BottomHalves run in the order in which they were scheduled, each once", () => {
  const { halves } = rig();
  const order: string[] = [];
  const [a, b, c] = ["a", "b", "c"].map((name) =>
    halves.make(() => order.push(name))
  );
  assert(!halves.waiting);
  c!.schedule();
  a!.schedule();
  c!.schedule();
  b!.schedule();
  assert(halves.waiting);
  halves.run();
  assertEquals(order, ["c", "a", "b"]);
  halves.run();
  assertEquals([order.length, halves.waiting], [3, false]);
});

Deno.test("BottomHalves leave what one of them schedules to the next run", () => {
  const { halves } = rig();
  const order: string[] = [];
  const second = halves.make(() => order.push("second"));
  const first = halves.make(() => {
    order.push("first");
    first.schedule();
    second.schedule();
  });
  first.schedule();
  halves.run();
  assertEquals([order, halves.waiting], [["first"], true]);
  halves.run();
  assertEquals(order, ["first", "first", "second"]);
});

Deno.test("BottomHalves do not run what one of the same run cancels", () => {
  const { halves } = rig();
  let calls = 0;
  const victim = halves.make(() => calls++);
  const first = halves.make(() => victim.cancel());
  first.schedule();
  victim.schedule();
  halves.run();
  assertEquals(calls, 0);
  victim.schedule();
  halves.run();
  assertEquals(calls, 1);
});

Deno.test("BottomHalves run once, in the first place, what was cancelled and scheduled again", () => {
  const { halves } = rig();
  const order: string[] = [];
  const a = halves.make(() => order.push("a"));
  const b = halves.make(() => order.push("b"));
  a.schedule();
  b.schedule();
  a.cancel();
  assert(halves.waiting, "what is cancelled is forgotten by the run");
  a.schedule();
  halves.run();
  assertEquals(order, ["a", "b"]);
});

Deno.test("BottomHalves hand on what one throws and run the others", () => {
  const { halves, errors } = rig();
  let calls = 0;
  halves.make(() => {
    throw new Error("mine");
  }).schedule();
  halves.make(() => calls++).schedule();
  halves.run();
  assertEquals([errors.length, calls], [1, 1]);
});
