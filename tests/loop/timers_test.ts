import { assert, assertEquals } from "@std/assert";
import { Timers } from "../../src/loop/timers.ts";
import { drainEventFd } from "../../src/os/mod.ts";
import { openFds } from "../resources.ts";

function rig() {
  const errors: unknown[] = [];
  return { errors, timers: new Timers((error) => errors.push(error)) };
}

/** Goes round until the descriptor has fired so often, running what is due; fails after two seconds. */
function fire(timers: Timers, times = 1): void {
  const until = performance.now() + 2000;
  while (times > 0) {
    assert(performance.now() < until, "the descriptor does not become ready");
    if (drainEventFd(timers.fd) <= 0) continue;
    timers.run();
    times--;
  }
}

Deno.test("Timers make their descriptor ready when the first is due, and run that alone", () => {
  const { timers } = rig();
  const order: string[] = [];
  timers.make(() => order.push("late")).arm(60_000);
  timers.make(() => order.push("early")).arm(1);
  fire(timers);
  assertEquals(order, ["early"]);
  timers.close();
});

Deno.test("Timers may arm themselves and each other while they run", () => {
  const { timers } = rig();
  const order: string[] = [];
  const other = timers.make(() => order.push("other"));
  const again = timers.make(() => {
    order.push("again");
    if (order.length < 3) again.arm(0);
    else other.arm(0);
  });
  again.arm(0);
  fire(timers, 4);
  assertEquals(order, ["again", "again", "again", "other"]);
  timers.close();
});

Deno.test("Timers do not run one that another of the same run cancels", () => {
  const { timers, errors } = rig();
  const order: string[] = [];
  const first = timers.make(() => {
    order.push("first");
    victim.cancel();
    throw new Error("mine");
  });
  const victim = timers.make(() => order.push("victim"));
  const last = timers.make(() => order.push("last"));
  for (const timer of [first, victim, last]) timer.arm(0);
  // All are due, whenever the descriptor says so.
  fire(timers);
  assertEquals([order, errors.length], [["first", "last"], 1]);
  timers.close();
});

Deno.test("Timers are disarmed with their descriptor", () => {
  const { timers } = rig();
  let calls = 0;
  const timer = timers.make(() => calls++);
  timer.arm(0);
  timer.close();
  const other = timers.make(() => {});
  other.arm(1);
  fire(timers);
  assertEquals(calls, 0);
  timers.close();
});

Deno.test("Timers.close closes their descriptor", () => {
  const before = openFds();
  rig().timers.close();
  assertEquals(openFds(), before);
});
