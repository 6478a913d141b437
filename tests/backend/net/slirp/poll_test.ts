import { assert, assertEquals } from "@std/assert";
import { EventLoop } from "../../../../src/loop/event_loop.ts";
import {
  createEventFd,
  drainEventFd,
  Epoll,
  type Fd,
  signalEventFd,
  socketPair,
} from "../../../../src/os/mod.ts";
import {
  epollToSlirp,
  SlirpPollTable,
  slirpToEpoll,
} from "../../../../src/backend/net/slirp/poll.ts";
import { SLIRP_POLL } from "../../../../src/backend/net/slirp/symbols.ts";
import { SlirpTimers } from "../../../../src/backend/net/slirp/timers.ts";

const { IN, OUT, ERR, HUP } = SLIRP_POLL;

/** A table on a loop, and how often something became ready. */
class Fixture implements Disposable {
  readonly loop = new EventLoop();
  calls = 0;
  readonly table = new SlirpPollTable(this.loop, () => this.calls++);

  /** One round that asks for these. */
  round(asked: readonly [number, number][], readable = true): number[] {
    this.table.begin(readable);
    const indices = asked.map(([fd, events]) => this.table.add(fd, events));
    this.table.apply();
    return indices;
  }

  [Symbol.dispose](): void {
    this.table.close();
    this.loop.close();
  }
}

Deno.test("slirpToEpoll and epollToSlirp are each other's inverse", () => {
  for (let events = 0; events < 32; events++) {
    assertEquals(epollToSlirp(slirpToEpoll(events)), events);
  }
  assertEquals(slirpToEpoll(OUT), Epoll.OUT);
  assertEquals(epollToSlirp(Epoll.RDHUP), 0);
});

Deno.test("SlirpPollTable tells what is ready at the index of the round", () => {
  using fixture = new Fixture();
  using idle = createEventFd();
  using ready = createEventFd(1);
  const [first, second] = fixture.round([
    [idle.number, IN | HUP | ERR],
    [ready.number, IN | HUP | ERR],
  ]);
  fixture.loop.turn(0);
  assertEquals(fixture.calls, 1);
  assertEquals(fixture.table.revents(first!), 0);
  assertEquals(fixture.table.revents(second!), IN);
  assertEquals(fixture.table.revents(7), 0);
  // The next round begins with nothing ready, and the event is told again.
  const [again] = fixture.round([[ready.number, IN]]);
  assertEquals(fixture.table.revents(again!), 0);
  fixture.loop.turn(0);
  assertEquals(fixture.table.revents(again!), IN);
});

Deno.test("SlirpPollTable follows changing events", () => {
  using fixture = new Fixture();
  using fd = createEventFd(1);
  fixture.round([[fd.number, OUT]]);
  fixture.loop.turn(0);
  assertEquals(fixture.table.revents(0), OUT);
  fixture.round([[fd.number, IN | OUT]]);
  fixture.loop.turn(0);
  assertEquals(fixture.table.revents(0), IN | OUT);
  drainEventFd(fd.number);
  fixture.round([[fd.number, IN]]);
  assertEquals(fixture.loop.turn(0), false);
});

Deno.test("SlirpPollTable leaves input out while it is not readable", () => {
  using fixture = new Fixture();
  using fd = createEventFd(1);
  fixture.round([[fd.number, IN | OUT]], false);
  fixture.loop.turn(0);
  assertEquals(fixture.table.revents(0), OUT);
  fixture.round([[fd.number, IN]], false);
  assertEquals(fixture.loop.turn(0), false);
});

Deno.test("SlirpPollTable is not woken again and again by a hang-up nobody asks about", () => {
  using fixture = new Fixture();
  const [ours, theirs] = socketPair();
  using _ours = ours;
  fixture.round([[ours.number, IN | HUP]]);
  theirs.close();
  fixture.round([]);
  for (let i = 0; i < 5; i++) fixture.loop.turn(0);
  assert(fixture.calls <= 1, `${fixture.calls} calls`);
  // Asked again, it is there.
  fixture.round([[ours.number, IN | HUP]]);
  fixture.loop.turn(0);
  assertEquals(fixture.table.revents(0), IN | HUP);
});

Deno.test("SlirpPollTable watches a number that is closed and opened again", () => {
  using fixture = new Fixture();
  const reopen = (fd: Fd): Fd => {
    const { number } = fd;
    fd.close();
    const fresh = createEventFd(1);
    assertEquals(fresh.number, number);
    return fresh;
  };
  let fd = createEventFd();
  fixture.round([[fd.number, IN]]);
  // As libslirp does: it says so first.
  fixture.table.drop(fd.number);
  fd = reopen(fd);
  fixture.round([[fd.number, IN]]);
  fixture.loop.turn(0);
  assertEquals(fixture.table.revents(0), IN);
  // And if it had not, but asks for something else now.
  fd = reopen(fd);
  fixture.round([[fd.number, IN | OUT]]);
  fixture.loop.turn(0);
  assertEquals(fixture.table.revents(0), IN | OUT);
  assertEquals(fixture.table.failures, 0);
  assertEquals(fixture.table.watchedCount, 1);
  fd.close();
});

Deno.test("SlirpPollTable counts what cannot be watched and goes on", () => {
  using fixture = new Fixture();
  using fd = createEventFd(1);
  const file = Deno.openSync("/proc/self/exe");
  const regular = [...Deno.readDirSync("/proc/self/fd")].map(({ name }) =>
    Number(name)
  ).find((number) => {
    try {
      return Deno.readLinkSync(`/proc/self/fd/${number}`) === Deno.execPath();
    } catch {
      return false;
    }
  })!;
  fixture.round([[regular, IN], [fd.number, IN]]);
  fixture.loop.turn(0);
  assertEquals(fixture.table.failures, 1);
  assertEquals(fixture.table.revents(0), 0);
  assertEquals(fixture.table.revents(1), IN);
  file.close();
});

Deno.test("SlirpPollTable.close takes everything off the loop", () => {
  using fixture = new Fixture();
  using first = createEventFd(1);
  using second = createEventFd(1);
  fixture.round([[first.number, IN], [second.number, IN]]);
  assertEquals(fixture.table.watchedCount, 2);
  fixture.table.close();
  assertEquals(fixture.table.watchedCount, 0);
  signalEventFd(first.number);
  assertEquals(fixture.loop.turn(0), false);
});

Deno.test("SlirpTimers fire once with what they were made with, unless freed", () => {
  using loop = new EventLoop();
  const fired: number[] = [];
  const timers = new SlirpTimers(loop, (id) => fired.push(id));
  const first = timers.create(3, null);
  const second = timers.create(4, null);
  assert(first !== 0 && second !== 0 && first !== second);
  timers.arm(first, timers.clockMs() + 2);
  timers.arm(second, timers.clockMs() + 1);
  timers.free(second);
  for (let i = 0; i < 100 && fired.length === 0; i++) loop.turn(20);
  assertEquals(fired, [3]);
  timers.arm(first, timers.clockMs() - 5);
  for (let i = 0; i < 100 && fired.length === 1; i++) loop.turn(20);
  assertEquals(fired, [3, 3]);
  timers.arm(first, timers.clockMs() + 1);
  timers.close();
  assertEquals(loop.turn(10), false);
});
