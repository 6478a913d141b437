import { assertEquals } from "@std/assert";
import {
  createEventFd,
  drainEventFd,
  Poll,
  pollFd,
  PollSet,
  signalEventFd,
  socketPair,
} from "../../src/os/mod.ts";

Deno.test("pollFd says what is ready, and 0 when the time is up", () => {
  using event = createEventFd();
  assertEquals(pollFd(event.number, Poll.IN, 0), 0);
  const before = performance.now();
  assertEquals(pollFd(event.number, Poll.IN, 2.5), 0);
  assertEquals(performance.now() - before >= 2.5, true);
  signalEventFd(event.number);
  assertEquals(pollFd(event.number, Poll.IN | Poll.OUT, -1), 5);
  drainEventFd(event.number);
  assertEquals(pollFd(event.number, Poll.IN | Poll.OUT, -1), Poll.OUT);
});

Deno.test("pollFd tells that the peer hung up without being asked", () => {
  const [ours, theirs] = socketPair();
  using _ours = ours;
  theirs.close();
  assertEquals(pollFd(ours.number, 0, 1000) & Poll.HUP, Poll.HUP);
});

Deno.test("pollFd throws nothing for a closed descriptor: the answer is NVAL", () => {
  const event = createEventFd();
  const { number } = event;
  event.close();
  assertEquals(pollFd(number, Poll.IN, 0), 0x20);
});

Deno.test("PollSet waits for any of its descriptors, again and again, and blocks nobody", async () => {
  using one = createEventFd();
  using other = createEventFd();
  using set = new PollSet([one.number, other.number], Poll.IN);
  for (const { number } of [other, one, other]) {
    let ready = false;
    const waiting = set.ready().then(() => ready = true);
    await new Promise((go) => setTimeout(go, 5));
    assertEquals(ready, false);
    signalEventFd(number);
    await waiting;
    drainEventFd(number);
  }
});
