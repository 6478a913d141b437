import { assert, assertEquals } from "@std/assert";
import { EventLoop } from "../../src/loop/event_loop.ts";
import {
  createEventFd,
  Epoll,
  signalEventFd,
  socketPair,
} from "../../src/os/mod.ts";
import { heapGrowthPerOperation, openFds } from "../resources.ts";

/** A budget of polling that no wait exceeds, however slow the machine is; the first stretch takes 4 µs all the same. */
const HOUR_US = 3_600_000_000;

Deno.test("EventLoop calls a watch while its descriptor is ready", () => {
  const before = openFds();
  {
    using loop = new EventLoop();
    const [a, b] = socketPair();
    using left = a;
    using _right = b;
    const seen: number[] = [];
    const watch = loop.watch(left.number, Epoll.IN, (events) => {
      seen.push(events);
    });
    assert(!loop.turn());
    watch.setEvents(Epoll.IN | Epoll.OUT);
    assert(loop.turn());
    assertEquals(seen, [Epoll.OUT]);
    watch.setEvents(0);
    assert(!loop.turn());
    watch.setEvents(Epoll.OUT);
    watch.close();
    assert(!loop.turn());
  }
  assertEquals(openFds(), before);
});

Deno.test("EventLoop drains an eventfd before its handler", () => {
  using loop = new EventLoop();
  using event = createEventFd();
  let calls = 0;
  loop.watchEventFd(event.number, () => calls++);
  signalEventFd(event.number);
  signalEventFd(event.number);
  loop.turn();
  loop.turn();
  assertEquals(calls, 1);
});

Deno.test("EventLoop does not call a watch that an earlier handler of the batch closed", () => {
  using loop = new EventLoop();
  using first = createEventFd(1);
  using second = createEventFd(1);
  let calls = 0;
  const watches = [first, second].map((fd) =>
    loop.watch(fd.number, Epoll.IN, () => {
      calls++;
      for (const watch of watches) watch.close();
    })
  );
  loop.turn();
  loop.turn();
  assertEquals(calls, 1);
});

Deno.test("EventLoop survives a descriptor number that is reused within a batch", () => {
  using loop = new EventLoop();
  const old = createEventFd(1);
  using trigger = createEventFd(1);
  let staleCalls = 0;
  const victim = loop.watch(old.number, Epoll.IN, () => staleCalls++);
  // Watched first or second: either way only one of the two handlers may see the old descriptor.
  victim.close();
  old.close();
  using reused = createEventFd();
  let freshCalls = 0;
  loop.watch(trigger.number, Epoll.IN, () => {});
  loop.watch(reused.number, Epoll.IN, () => freshCalls++);
  loop.turn();
  assertEquals([staleCalls, freshCalls], [0, 0]);
});

Deno.test("BottomHalf runs once per schedule, after the events, and may schedule itself", () => {
  using loop = new EventLoop();
  const order: string[] = [];
  const half = loop.bottomHalf(() => {
    order.push("half");
    if (order.length < 4) half.schedule();
  });
  using event = createEventFd(1);
  loop.watchEventFd(event.number, () => {
    half.schedule();
    half.schedule();
    order.push("event");
  });
  loop.turn();
  assertEquals(order, ["event", "half"]);
  loop.turn();
  loop.turn();
  loop.turn();
  assertEquals(order, ["event", "half", "half", "half"]);
  half.schedule();
  half.cancel();
  loop.turn();
  assertEquals(order.length, 4);
  half.schedule();
  half.cancel();
  half.schedule();
  loop.turn();
  assertEquals(order.length, 5);
});

Deno.test("Timer fires when its time has come, whichever was armed first, and not after cancel or close", () => {
  using loop = new EventLoop();
  const order: string[] = [];
  const late = loop.timer(() => order.push("late"));
  const early = loop.timer(() => order.push("early"));
  const never = loop.timer(() => order.push("never"));
  const closed = loop.timer(() => order.push("closed"));
  // In an hour: however slow the machine is, that is after the other.
  late.arm(3_600_000);
  early.arm(2);
  never.arm(1);
  closed.arm(1);
  never.cancel();
  closed.close();
  while (order.length < 1) loop.turn(-1);
  assertEquals(order, ["early"]);
  early.arm(3_600_000);
  late.arm(2);
  while (order.length < 2) loop.turn(-1);
  assertEquals(order, ["early", "late"]);
  early.arm(0);
  while (order.length < 3) loop.turn(-1);
  assertEquals(order[2], "early");
});

Deno.test("Poller is asked before the loop sleeps, and its work is all there is to wait for", () => {
  using loop = new EventLoop({ pollMaxUs: Infinity });
  let work = 3;
  const poller = loop.poll(() => work > 0 && work-- > 0);
  while (work > 0) assert(loop.turn(-1));
  poller.close();
  // Descriptors are seen by a loop that never sleeps.
  using event = createEventFd(1);
  let calls = 0;
  loop.poll(() => false);
  loop.watchEventFd(event.number, () => calls++);
  loop.turn(-1);
  assertEquals(calls, 1);
});

Deno.test("EventLoop.run returns with the number of wake-ups, from another thread too", () => {
  using loop = new EventLoop();
  signalEventFd(loop.wakeFd);
  signalEventFd(loop.wakeFd);
  assertEquals(loop.run(), 2);
  const half = loop.bottomHalf(() => loop.stop());
  half.schedule();
  assertEquals(loop.run(), 0);
});

Deno.test("EventLoop hands what a handler throws to onError and goes on", () => {
  const errors: unknown[] = [];
  using loop = new EventLoop({ onError: (error) => errors.push(error) });
  using event = createEventFd(1);
  loop.watchEventFd(event.number, () => {
    throw new Error("first");
  });
  loop.bottomHalf(() => {
    throw new Error("second");
  }).schedule();
  loop.turn();
  assertEquals(errors.map((e) => (e as Error).message), ["first", "second"]);
});

Deno.test("EventLoop turns without allocating", () => {
  using loop = new EventLoop();
  using event = createEventFd();
  const half = loop.bottomHalf(() => {});
  loop.watchEventFd(event.number, () => half.schedule());
  const grown = heapGrowthPerOperation(200_000, (n) => {
    for (let i = 0; i < n; i++) {
      signalEventFd(event.number);
      loop.turn();
    }
  });
  assert(grown < 1, `${grown} bytes per turn`);
});

Deno.test("PollHooks see each stretch of polling, and the loop does not sleep on late work", () => {
  using loop = new EventLoop({ pollMaxUs: HOUR_US });
  using event = createEventFd();
  const seen: string[] = [];
  let late = 0;
  loop.watchEventFd(event.number, () => seen.push("event"));
  loop.poll(() => {
    seen.push("poll");
    return false;
  }, {
    begin: () => seen.push("begin"),
    end: () => {
      seen.push("end");
      return late-- > 0;
    },
  });
  // An event that comes at once tells that polling would have caught it.
  signalEventFd(event.number);
  loop.turn(-1);
  assertEquals(seen, ["event"]);
  late = 1;
  assert(loop.turn(-1), "work that came in late keeps the loop awake");
  assertEquals([seen[1], seen.at(-1)], ["begin", "end"]);
  assert(seen.includes("poll"));
  // An event that takes longer than the loop may poll ends polling.
  loop.setPolling(1000);
  signalEventFd(event.number);
  loop.turn(-1);
  seen.length = 0;
  const timer = loop.timer(() => seen.push("timer"));
  timer.arm(100);
  while (!seen.includes("timer")) loop.turn(-1);
  seen.length = 0;
  timer.arm(100);
  while (!seen.includes("timer")) loop.turn(-1);
  assertEquals(seen, ["timer"]);
});

Deno.test("EventLoop.setPolling ends a stretch of polling when it is turned off", () => {
  using loop = new EventLoop({ pollMaxUs: Infinity });
  const seen: string[] = [];
  loop.poll(() => true, {
    begin: () => seen.push("begin"),
    end: () => seen.push("end") < 0,
  });
  loop.turn(-1);
  loop.setPolling(0);
  using event = createEventFd(1);
  loop.watchEventFd(event.number, () => seen.push("event"));
  loop.turn(-1);
  assertEquals(seen, ["begin", "end", "event"]);
});

Deno.test("EventLoop counts turns, events, sleeps and wake-ups", () => {
  using loop = new EventLoop();
  using event = createEventFd(1);
  loop.watchEventFd(event.number, () => loop.stop());
  const before = loop.counters();
  assertEquals([before.turns, before.events, before.sleeps], [0, 0, 0]);
  loop.turn();
  assertEquals(loop.counters().sleeps, 0);
  signalEventFd(loop.wakeFd);
  signalEventFd(loop.wakeFd);
  loop.run();
  const { turns, events, sleeps, wakeUps } = loop.counters();
  assertEquals([turns, events, sleeps, wakeUps], [2, 2, 1, 2]);
});

Deno.test("EventLoop counts the time it sleeps and the time it does not", () => {
  using loop = new EventLoop();
  const from = performance.now();
  loop.turn(20);
  const { sleptSeconds, awakeSeconds } = loop.counters();
  const wholeSeconds = (performance.now() - from) / 1000;
  assert(sleptSeconds >= 0.018 && sleptSeconds <= wholeSeconds + 0.001);
  assert(awakeSeconds >= 0 && awakeSeconds < 10);
});

Deno.test("EventLoop counts polling that found something and polling that did not", () => {
  using loop = new EventLoop({ pollMaxUs: Infinity });
  let looks = 0;
  loop.poll(() => ++looks === 5);
  loop.turn(-1);
  let { pollHits, pollMisses, pollRounds } = loop.counters();
  assertEquals([pollHits, pollMisses, pollRounds], [1, 0, 5]);
  loop.setPolling(HOUR_US);
  // Waiting for less than the budget makes it poll the next time.
  using event = createEventFd(1);
  loop.watchEventFd(event.number, () => {});
  loop.turn(-1);
  loop.turn(1);
  ({ pollHits, pollMisses, pollRounds } = loop.counters());
  assertEquals([pollHits, pollMisses], [1, 1]);
  assert(pollRounds > 5);
});

Deno.test("EventLoop tells all who are to know before it is closed, though one throws", () => {
  const errors: unknown[] = [];
  using loop = new EventLoop({ onError: (error) => errors.push(error) });
  const told: number[] = [];
  const failure = new Error("it cannot begin");
  const gone = loop.beforeClose(() => told.push(0));
  loop.beforeClose(() => {
    throw failure;
  });
  loop.beforeClose(() => told.push(1));
  gone[Symbol.dispose]();
  loop.beginClose();
  assertEquals([told, errors], [[1], [failure]]);
});
