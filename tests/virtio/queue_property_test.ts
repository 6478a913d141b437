/** Queues against naive drivers, with chains that complete in any order, moved to another queue now and then. */

import { assert, assertEquals } from "@std/assert";
import fc from "fast-check";
import type { Features } from "../../src/virtio/features.ts";
import { createQueue } from "../../src/virtio/queue/mod.ts";
import { Chain } from "../../src/virtio/queue/queue.ts";
import type { Ring } from "../../src/virtio/queue/ring.ts";
import type { SplitRingState } from "../../src/virtio/queue/ring_state.ts";
import type { MappableMemory } from "../../src/memory/array_memory.ts";
import { checkReleased } from "../memory_under_test.ts";
import type { Buffer } from "./naive_ring.ts";
import {
  DATA,
  fixture,
  packedFixture,
  TABLES,
  turnPackedRing,
  turnRing,
} from "./ring_fixture.ts";

const SEED = 0x9acd;
const INDEX_WRAP = 0x1_0000;

type Step =
  | {
    kind: "add";
    readable: number[];
    writable: number[];
    table: boolean;
  }
  | { kind: "pop"; count: number }
  | { kind: "unpop" }
  | { kind: "push"; pick: number; whole: boolean }
  | { kind: "publish" }
  | { kind: "suspend" }
  | { kind: "move" };

const lengths: fc.Arbitrary<number[]> = fc.oneof(
  fc.constant<number[]>([]),
  fc.array(fc.integer({ min: 1, max: 100 }), { maxLength: 3 }),
);

const steps: fc.Arbitrary<Step[]> = fc.array(
  fc.oneof(
    {
      weight: 3,
      arbitrary: fc.record({
        kind: fc.constant("add" as const),
        readable: lengths,
        writable: lengths,
        table: fc.boolean(),
      }),
    },
    {
      weight: 3,
      arbitrary: fc.record({
        kind: fc.constant("pop" as const),
        count: fc.integer({ min: 1, max: 4 }),
      }),
    },
    fc.constant({ kind: "unpop" as const }),
    {
      weight: 4,
      arbitrary: fc.record({
        kind: fc.constant("push" as const),
        pick: fc.nat(7),
        whole: fc.boolean(),
      }),
    },
    { weight: 2, arbitrary: fc.constant({ kind: "publish" as const }) },
    fc.constant({ kind: "suspend" as const }),
    fc.constant({ kind: "move" as const }),
  ),
  { minLength: 40, maxLength: 160 },
);

interface Used {
  readonly id: number;
  readonly len: number;
  readonly told: boolean;
}

/** A queue and its driver, whatever the format. */
interface Bench {
  queue: Ring;
  /** Another queue for the same ring. */
  readonly fresh: () => Ring;
  readonly features: Features;
  readonly memory: MappableMemory;
  readonly inOrder: boolean;
  free(): number;
  add(buffers: Buffer[], table?: number): number;
  collect(): Used[];
}

interface Shape {
  readonly size: number;
  readonly turned: number;
  readonly eventIdx: boolean;
  readonly byPage: boolean;
}

function packedBench(shape: Shape, inOrder: boolean): Bench {
  const at = packedFixture({ ...shape, inOrder });
  turnPackedRing(at, shape.turned);
  return {
    queue: at.queue,
    fresh: () => createQueue(at.memory, 3, shape.size),
    features: at.features,
    memory: at.memory,
    inOrder,
    free: () => at.ring.free,
    add: (buffers, table) => at.ring.add(buffers, table),
    collect: () => at.ring.collect(),
  };
}

function splitBench(shape: Shape, inOrder: boolean): Bench {
  const at = fixture({ ...shape, inOrder });
  const bench: Bench = {
    queue: at.queue,
    fresh: () => createQueue(at.memory, 3, shape.size),
    features: at.features,
    memory: at.memory,
    inOrder,
    free: () => at.ring.freeDescriptors,
    add: (buffers, table) => at.ring.add(buffers, table),
    collect: () =>
      inOrder
        ? at.ring.collectInOrder()
        : at.ring.collect().map((used) => ({ ...used, told: true })),
  };
  // Just before both indices go from 65535 to 0, so that they do on the way.
  at.ring.startAt((INDEX_WRAP - shape.turned) % INDEX_WRAP);
  const state = at.queue.save() as SplitRingState;
  const idx = at.ring.availIdx;
  move(bench, { ...state, availIdx: idx, usedIdx: idx });
  return bench;
}

/** Goes on with another queue from what was saved, by way of text. */
function move(at: Bench, saved = at.queue.save()): void {
  const state = JSON.parse(JSON.stringify(saved));
  at.queue.disable();
  at.queue = at.fresh();
  assertEquals(at.queue.load(at.features, state), 0, at.queue.lastError);
  assertEquals(at.queue.save(), state);
  assertEquals([at.queue.inFlight, at.queue.outstanding], [0, 0]);
}

/** Every second byte, so that no two buffers touch and segments are never joined. */
function buffersOf(readable: number[], writable: number[]): Buffer[] {
  let iova = DATA;
  return [...readable, ...writable].map((length, i) => {
    const buffer = { iova, length, write: i >= readable.length };
    iova += length + 1;
    return buffer;
  });
}

interface Expected {
  readonly head: number;
  readonly buffers: Buffer[];
  readonly mixed: boolean;
  readonly room: number;
  written: number;
}

/** Model of what driver and device have done, in plain lists. */
class Model {
  readonly #at: Bench;
  readonly #size: number;
  /** Available, popped in that order, and pushed in that order. */
  readonly #offered: Expected[] = [];
  readonly #held: Expected[] = [];
  #popped: Expected[] = [];
  #pushed: Expected[] = [];
  #unpoppable = 0;
  #tables = 0;
  /** Used chains that the driver was not told of one by one. */
  skipped = 0;

  constructor(at: Bench, size: number) {
    this.#at = at;
    this.#size = size;
  }

  add({ readable, writable, table }: Step & { kind: "add" }): void {
    const buffers = buffersOf(readable, writable);
    if (buffers.length === 0 || buffers.length > this.#size) return;
    if (this.#at.free() < (table ? 1 : buffers.length)) return;
    const tableIova = TABLES + (this.#tables++ % 64) * 256;
    const head = this.#at.add(buffers, table ? tableIova : undefined);
    const room = writable.reduce((sum, length) => sum + length, 0);
    const mixed = readable.length > 0 && writable.length > 0;
    this.#offered.push({ head, buffers, mixed, room, written: -1 });
  }

  pop(): boolean {
    const { queue, memory } = this.#at;
    const chain = new Chain(memory, 16);
    const result = queue.pop(chain);
    assertEquals(result, this.#offered.length > 0 ? 1 : 0, queue.lastError);
    if (result === 0) return false;
    const expected = this.#offered.shift()!;
    assertEquals(chain.head, expected.head);
    const seen = [chain.readable, chain.writable].flatMap((list, which) =>
      Array.from({ length: list.count }, (_, s) => ({
        iova: list.iova(s),
        length: list.length(s),
        write: which === 1,
      }))
    );
    assertEquals(seen, expected.buffers);
    this.#held.push(expected);
    this.#popped.push(expected);
    this.#unpoppable++;
    return true;
  }

  unpop(): void {
    if (this.#unpoppable === 0) return;
    this.#at.queue.unpop(1);
    this.#offered.unshift(this.#held.pop()!);
    this.#popped.pop();
    this.#unpoppable--;
  }

  push(pick: number, whole: boolean): void {
    if (this.#held.length === 0) return;
    const [done] = this.#held.splice(pick % this.#held.length, 1);
    done!.written = whole ? done!.room : Math.floor(done!.room / 2);
    this.#at.queue.push(done!.head, done!.written);
    this.#pushed.push(done!);
    this.#unpoppable = 0;
  }

  publish(): void {
    this.#at.queue.publish();
    let due = this.#pushed;
    if (this.#at.inOrder) {
      const open = this.#popped.findIndex(({ written }) => written < 0);
      due = this.#popped.slice(0, open < 0 ? this.#popped.length : open);
    }
    this.#popped = this.#popped.filter((it) => !due.includes(it));
    this.#pushed = this.#pushed.filter((it) => !due.includes(it));
    const used = this.#at.collect();
    assertEquals(
      used.map(({ id, len }) => [id, len]),
      due.map(({ head, written }) => [head, written]),
    );
    due.forEach(({ mixed }, i) => assert(used[i]!.told || !mixed));
    this.skipped += used.filter(({ told }) => !told).length;
    if (used.length > 0) assert(used.at(-1)!.told);
  }

  /** Holds the queue until nothing is in flight, and goes on with another one. */
  move(): void {
    const { queue, memory } = this.#at;
    queue.hold();
    assertEquals(queue.pop(new Chain(memory, 16)), 0);
    assert(!queue.poll());
    assert(!queue.enableNotifications(), "there is nothing to look at");
    while (this.#held.length > 0) this.push(2, false);
    this.publish();
    assertEquals(queue.outstanding, 0);
    this.#unpoppable = 0;
    move(this.#at);
  }

  check(): void {
    assertEquals(this.#at.queue.inFlight, this.#held.length);
  }

  /** Nothing is lost: everything comes back in the end. */
  finish(): void {
    while (this.pop());
    while (this.#held.length > 0) this.push(1, true);
    this.publish();
    assertEquals(this.#at.free(), this.#size);
    checkReleased(this.#at.memory);
  }
}

function run(model: Model, at: Bench, script: readonly Step[]): void {
  for (const step of script) {
    switch (step.kind) {
      case "add":
        model.add(step);
        break;
      case "pop":
        for (let i = 0; i < step.count && model.pop(); i++);
        break;
      case "unpop":
        model.unpop();
        break;
      case "push":
        model.push(step.pick, step.whole);
        break;
      case "publish":
        model.publish();
        break;
      case "suspend":
        at.queue.suspend();
        assertEquals(at.queue.pop(new Chain(at.memory, 16)), 0);
        model.push(0, true);
        assert(!at.queue.publish());
        at.queue.resume();
        break;
      case "move":
        model.move();
        break;
      default:
        step satisfies never;
    }
    model.check();
  }
  model.finish();
}

const FORMATS = [
  {
    name: "PackedRing",
    sizes: [1, 3, 4, 5, 8, 13],
    make: (shape: Shape) => packedBench(shape, false),
  },
  {
    name: "PackedRing with IN_ORDER",
    sizes: [1, 3, 4, 5, 8, 13],
    make: (shape: Shape) => packedBench(shape, true),
  },
  {
    name: "SplitRing",
    sizes: [1, 4, 8, 16],
    make: (shape: Shape) => splitBench(shape, false),
  },
  {
    name: "SplitRing with IN_ORDER",
    sizes: [1, 4, 8, 16],
    make: (shape: Shape) => splitBench(shape, true),
  },
] as const;

for (const { name, sizes, make } of FORMATS) {
  Deno.test(`${name} agrees with an independent driver on every chain, its order and its length, wherever it is moved`, () => {
    let skipped = 0;
    fc.assert(
      fc.property(
        steps,
        fc.constantFrom(...sizes),
        fc.nat(30),
        fc.boolean(),
        fc.boolean(),
        (script, size, turned, eventIdx, byPage) => {
          const at = make({ size, turned, eventIdx, byPage });
          const model = new Model(at, size);
          run(model, at, script);
          skipped += model.skipped;
        },
      ),
      { seed: SEED, numRuns: 400 },
    );
    if (name.includes("IN_ORDER")) assert(skipped > 100, `${skipped} skipped`);
    else assertEquals(skipped, 0);
  });
}

Deno.test("SplitRing with IN_ORDER goes on from index 65535 to 0", () => {
  const at = fixture({ size: 4, inOrder: true, eventIdx: true });
  turnRing(at, 65533);
  const heads = [0, 1, 2, 3].map(() =>
    at.ring.add([{ iova: DATA, length: 1 }])
  );
  for (let i = 0; i < 4; i++) {
    assertEquals(at.queue.pop(new Chain(at.memory, 16)), 1);
  }
  for (const head of heads.toReversed()) {
    assertEquals(at.ring.usedIdx, 65533);
    at.queue.push(head, 0);
    at.queue.publish();
  }
  assertEquals(at.ring.usedIdx, 1);
});
