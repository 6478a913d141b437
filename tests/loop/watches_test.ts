import { assertEquals, assertThrows } from "@std/assert";
import { Watches } from "../../src/loop/watches.ts";
import { createEventFd, Epoll, SyscallError } from "../../src/os/mod.ts";
import { openFds } from "../resources.ts";

Deno.test("Watches call the handlers of what is ready, whatever the others throw", () => {
  const before = openFds();
  {
    const errors: unknown[] = [];
    const watches = new Watches((error) => errors.push(error));
    using bad = createEventFd(1);
    using good = createEventFd(1);
    using quiet = createEventFd();
    const seen: number[] = [];
    watches.add(bad.number, Epoll.IN, () => {
      throw new Error("mine");
    });
    watches.add(good.number, Epoll.IN, (events) => seen.push(events));
    watches.add(quiet.number, Epoll.IN, (events) => seen.push(events));
    const ready = watches.wait(0);
    assertEquals([ready, seen], [2, []]);
    watches.dispatch(ready);
    assertEquals([seen, errors.length], [[Epoll.IN], 1]);
    watches.close();
  }
  assertEquals(openFds(), before);
});

Deno.test("Watches tell a watch from the one that had its descriptor before", () => {
  const watches = new Watches((error) => {
    throw error;
  });
  using event = createEventFd(1);
  const seen: string[] = [];
  const old = watches.add(event.number, Epoll.IN, () => seen.push("old"));
  const ready = watches.wait(0);
  old.close();
  const fresh = watches.add(event.number, Epoll.IN, () => seen.push("fresh"));
  watches.dispatch(ready);
  assertEquals(seen, [], "what was found belongs to neither");
  // Closing the old one again must not end the new.
  old.close();
  old.setEvents(0);
  watches.dispatch(watches.wait(0));
  assertEquals(seen, ["fresh"]);
  fresh.close();
  assertEquals(watches.wait(0), 0);
  watches.close();
});

Deno.test("Watches refuse a descriptor that is watched", () => {
  const watches = new Watches(() => {});
  using event = createEventFd();
  watches.add(event.number, Epoll.IN, () => {});
  assertThrows(
    () => watches.add(event.number, Epoll.IN, () => {}),
    SyscallError,
    `Cannot watch fd ${event.number}`,
  );
  watches.close();
});
