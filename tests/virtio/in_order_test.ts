import { assert, assertEquals } from "@std/assert";
import type { Chain } from "../../src/virtio/queue/queue.ts";
import type { Ring } from "../../src/virtio/queue/ring.ts";
import { AVAIL, USED, WRITE } from "./naive_packed_ring.ts";
import {
  DATA,
  fixture,
  packedFixture,
  turnPackedRing,
  turnRing,
} from "./ring_fixture.ts";

const IN = { iova: DATA, length: 8 };
const OUT = { iova: DATA + 64, length: 8, write: true };

function popAll(at: { queue: Ring; chain: Chain }): void {
  while (at.queue.pop(at.chain) === 1);
}

/** The used entries of a split ring as they lie in memory: id and length. */
function entry(
  at: ReturnType<typeof fixture>,
  slot: number,
): [number, number] {
  const offset = at.places.used + 4 + 8 * slot - 0x10_0000;
  return [
    at.ring.view.getUint32(offset, true),
    at.ring.view.getUint32(offset + 4, true),
  ];
}

Deno.test("SplitRing with IN_ORDER holds chains back until those before them are done", () => {
  const at = fixture({ inOrder: true });
  const heads = [0, 1, 2].map(() => at.ring.add([OUT]));
  popAll(at);
  at.queue.push(heads[2]!, 2);
  assert(!at.queue.publish(), "nothing to interrupt for");
  assertEquals(at.ring.usedIdx, 0);
  at.queue.push(heads[0]!, 0);
  assert(at.queue.publish());
  assertEquals(at.ring.usedIdx, 1);
  assertEquals(at.queue.inFlight, 1);
  at.queue.push(heads[1]!, 1);
  assert(at.queue.publish());
  assertEquals(
    at.ring.collectInOrder().map(({ id, len }) => [id, len]),
    [[heads[0], 0], [heads[1], 1], [heads[2], 2]],
  );
});

Deno.test("SplitRing with IN_ORDER writes one used entry for a batch, where its first would be", () => {
  const at = fixture({ inOrder: true });
  turnRing(at, 6);
  new Uint8Array(at.buffer, at.places.used + 4 - 0x10_0000, 64).fill(0xee);
  const heads = [0, 1, 2, 3].map(() => at.ring.add([IN]));
  popAll(at);
  for (const head of heads) at.queue.push(head, 0);
  assert(at.queue.publish());
  assertEquals(at.ring.usedIdx, 10);
  assertEquals(entry(at, 6), [heads[3]!, 0]);
  for (const slot of [7, 0, 1]) {
    assertEquals(entry(at, slot), [0xeeee_eeee, 0xeeee_eeee]);
  }
});

Deno.test("SplitRing with IN_ORDER tells of every chain that was not used completely, or has both kinds of buffers", () => {
  const at = fixture({ size: 16, inOrder: true });
  new Uint8Array(at.buffer, at.places.used + 4 - 0x10_0000, 128).fill(0xee);
  const full = at.ring.add([OUT]);
  const short = at.ring.add([OUT]);
  const both = at.ring.add([IN, OUT]);
  const read = at.ring.add([IN]);
  const last = at.ring.add([OUT, OUT]);
  popAll(at);
  at.queue.push(full, 8);
  at.queue.push(short, 7);
  at.queue.push(both, 8);
  at.queue.push(read, 0);
  at.queue.push(last, 16);
  at.queue.publish();
  assertEquals(entry(at, 0), [short, 7]);
  assertEquals(entry(at, 1), [0xeeee_eeee, 0xeeee_eeee]);
  assertEquals(entry(at, 2), [both, 8]);
  assertEquals(entry(at, 3), [last, 16]);
  assertEquals(entry(at, 4), [0xeeee_eeee, 0xeeee_eeee]);
});

Deno.test("SplitRing with IN_ORDER obeys used_event for the whole batch", () => {
  for (let event = -1; event < 5; event++) {
    const at = fixture({ inOrder: true, eventIdx: true });
    at.ring.usedEvent = event & 0xffff;
    const heads = [0, 1, 2, 3].map(() => at.ring.add([IN]));
    popAll(at);
    for (const head of heads) at.queue.push(head, 0);
    assertEquals(at.queue.publish(), event >= 0 && event < 4);
  }
});

Deno.test("SplitRing with IN_ORDER refuses more chains than the driver got back, held back ones included", () => {
  const at = fixture({ size: 4, inOrder: true });
  const heads = [0, 1, 2, 3].map(() => at.ring.add([IN]));
  popAll(at);
  for (const head of heads.slice(1)) at.queue.push(head, 0);
  at.queue.publish();
  assertEquals(at.queue.inFlight, 1);
  at.ring.offer(heads[1]!);
  assertEquals(at.queue.pop(at.chain), -22);
  assert(/more than 4 chains/.test(at.queue.lastError));
});

Deno.test("PackedRing with IN_ORDER writes one used descriptor for a batch, and skips the rest", () => {
  const at = packedFixture({ inOrder: true });
  turnPackedRing(at, 5);
  const before = [6, 7, 0, 1].map((index) => at.ring.read(index).flags);
  at.ring.add([IN, IN]);
  at.ring.add([IN]);
  const last = at.ring.add([OUT, OUT]);
  const marks = [6, 7, 0, 1].map((index) => at.ring.read(index).flags);
  assert(marks.some((flags, i) => flags !== before[i]));
  const heads: number[] = [];
  while (at.queue.pop(at.chain) === 1) heads.push(at.chain.head);
  for (const head of heads.toReversed()) {
    assertEquals(at.ring.collect(), []);
    at.queue.push(head, head === last ? 5 : 0);
    at.queue.publish();
  }
  const used = at.ring.read(5);
  assertEquals([used.id, used.len], [last, 5]);
  assertEquals(used.flags, AVAIL | USED | WRITE);
  assertEquals(
    [6, 7, 0, 1].map((index) => at.ring.read(index).flags),
    marks,
    "nothing else was touched",
  );
  assertEquals(
    at.ring.collect().map(({ id, len, told }) => [id, len, told]),
    [[heads[0], 0, false], [heads[1], 0, false], [last, 5, true]],
  );
  assertEquals(at.ring.free, 8);
});

Deno.test("PackedRing with IN_ORDER obeys the driver's event for the whole batch", () => {
  for (let event = 0; event < 6; event++) {
    const at = packedFixture({ inOrder: true, eventIdx: true });
    at.ring.driverEvent(2, at.ring.offWrap(event));
    at.ring.add([IN, IN]);
    at.ring.add([IN, IN]);
    const heads: number[] = [];
    while (at.queue.pop(at.chain) === 1) heads.push(at.chain.head);
    for (const head of heads) at.queue.push(head, 0);
    assertEquals(at.queue.publish(), event < 4);
  }
});
