import { assert, assertEquals } from "@std/assert";
import {
  createEventFd,
  drainEventFd,
  Poll,
  socketPair,
} from "../../../../src/os/mod.ts";
import {
  DESCRIPTORS_MAX,
  SlirpPoll,
  swapPollBits,
} from "../../../../src/backend/net/slirp/poll.ts";
import { SLIRP_POLL } from "../../../../src/backend/net/slirp/symbols.ts";

const { IN, OUT, ERR, HUP } = SLIRP_POLL;

/** Descriptors that are asked for beside a card that has nothing. */
class Fixture implements Disposable {
  readonly poll = new SlirpPoll();
  readonly #card = createEventFd();

  /** One turn that asks for these, and does not wait. @returns What is ready of each */
  turn(asked: readonly [number, number][], full = false): number[] {
    const indices = this.ask(asked, full);
    this.poll.wait(0);
    return indices.map((index) => this.poll.revents(index));
  }

  ask(asked: readonly [number, number][], full = false): number[] {
    this.poll.begin(this.#card.number, full);
    return asked.map(([fd, events]) => this.poll.add(fd, events));
  }

  [Symbol.dispose](): void {
    this.#card.close();
    this.poll.close();
  }
}

Deno.test("swapPollBits is its own inverse", () => {
  for (let events = 0; events < 32; events++) {
    assertEquals(swapPollBits(swapPollBits(events)), events);
  }
  assertEquals(swapPollBits(OUT), Poll.OUT);
  assertEquals(swapPollBits(IN | ERR | HUP), Poll.IN | Poll.ERR | Poll.HUP);
});

Deno.test("SlirpPoll tells what is ready at the index of the turn", () => {
  using fixture = new Fixture();
  using idle = createEventFd();
  using ready = createEventFd(1);
  const all = IN | HUP | ERR;
  assertEquals(
    fixture.turn([[idle.number, all], [ready.number, all]]),
    [0, IN],
  );
  // The next turn begins with nothing ready, and the event is told again.
  const [again] = fixture.ask([[ready.number, IN]]);
  assertEquals(fixture.poll.revents(again!), 0);
  assertEquals(fixture.poll.wait(0), true);
  assertEquals(fixture.poll.revents(again!), IN);
  assertEquals(fixture.poll.revents(0), 0);
});

Deno.test("SlirpPoll follows changing events", () => {
  using fixture = new Fixture();
  using fd = createEventFd(1);
  assertEquals(fixture.turn([[fd.number, OUT]]), [OUT]);
  assertEquals(fixture.turn([[fd.number, IN | OUT]]), [IN | OUT]);
  drainEventFd(fd.number);
  assertEquals(fixture.turn([[fd.number, IN]]), [0]);
});

Deno.test("SlirpPoll leaves input out while the card is full", () => {
  using fixture = new Fixture();
  using fd = createEventFd(1);
  assertEquals(fixture.turn([[fd.number, IN | OUT]], true), [OUT]);
  assertEquals(fixture.turn([[fd.number, IN]], true), [0]);
  // The card's own is writable.
  assertEquals(fixture.poll.revents(0), OUT);
});

Deno.test("SlirpPoll is not woken by a hang-up where nothing else is wanted", () => {
  using fixture = new Fixture();
  const [ours, theirs] = socketPair();
  using _ours = ours;
  theirs.close();
  assertEquals(fixture.turn([[ours.number, HUP | ERR]]), [0]);
  // Asked again, it is there.
  assertEquals(fixture.turn([[ours.number, IN | HUP]]), [IN | HUP]);
});

Deno.test("SlirpPoll counts what there is no room for and goes on", () => {
  using fixture = new Fixture();
  using fd = createEventFd(1);
  const asked = Array.from(
    { length: DESCRIPTORS_MAX },
    (): [number, number] => [fd.number, IN],
  );
  const indices = fixture.ask(asked);
  assertEquals(indices.at(-2), DESCRIPTORS_MAX - 1);
  assertEquals(indices.at(-1), -1);
  assertEquals(fixture.poll.failures, 1);
  assertEquals(fixture.turn([[fd.number, IN]]), [IN]);
});

Deno.test("SlirpPoll wakes for its timers once, unless they are freed", () => {
  using fixture = new Fixture();
  const { poll } = fixture;
  const first = poll.createTimer(3, null);
  const second = poll.createTimer(4, null);
  assert(first !== 0 && second !== 0 && first !== second);
  poll.armTimer(first, poll.clockMs() + 20);
  poll.armTimer(second, poll.clockMs() + 1);
  poll.freeTimer(second);
  fixture.ask([]);
  assertEquals(poll.takeDue(), null);
  while (poll.takeDue()?.id !== 3) assertEquals(poll.wait(Infinity), false);
  assertEquals(poll.takeDue(), null);
  poll.armTimer(first, poll.clockMs() - 5);
  assertEquals(poll.wait(Infinity), false);
  assertEquals(poll.takeDue()?.id, 3);
});
