import { assertEquals } from "@std/assert";
import {
  createEventFd,
  drainEventFd,
  Poll,
  pollFd,
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
