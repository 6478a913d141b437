import { assert, assertEquals } from "@std/assert";
import fc from "fast-check";
import { Chain } from "../../src/virtio/queue/queue.ts";
import { DATA, fixture, TABLES, turnRing } from "./ring_fixture.ts";
import type { Buffer } from "./naive_ring.ts";

type Step =
  | { kind: "add"; readable: number[]; writable: number[]; table: boolean }
  | { kind: "pop"; count: number }
  | { kind: "unpop" }
  | { kind: "push"; pick: number }
  | { kind: "publish" }
  | { kind: "suspend" };

const lengths = fc.array(fc.integer({ min: 1, max: 100 }), { maxLength: 4 });

const steps: fc.Arbitrary<Step[]> = fc.array(
  fc.oneof(
    fc.record({
      kind: fc.constant("add" as const),
      readable: lengths,
      writable: lengths,
      table: fc.boolean(),
    }),
    fc.record({
      kind: fc.constant("pop" as const),
      count: fc.integer({ min: 1, max: 4 }),
    }),
    fc.constant({ kind: "unpop" as const }),
    fc.record({ kind: fc.constant("push" as const), pick: fc.nat(7) }),
    fc.constant({ kind: "publish" as const }),
    fc.constant({ kind: "suspend" as const }),
  ),
  { maxLength: 60 },
);

/** Every second byte, so that no two buffers touch and segments are never joined. */
function buffersOf(readable: number[], writable: number[]): Buffer[] {
  let iova = DATA;
  return [...readable, ...writable].map((length, i) => {
    const buffer = { iova, length, write: i >= readable.length };
    iova += length + 1;
    return buffer;
  });
}

Deno.test("SplitRing agrees with an independent driver on every chain and its order", () => {
  fc.assert(
    fc.property(
      steps,
      fc.constantFrom(4, 8, 16),
      fc.constantFrom(0, 1, 13),
      fc.boolean(),
      (script, size, startBack, eventIdx) => {
        const at = fixture({ size, eventIdx });
        // Begin shortly before the wrap, in a ring of few entries so that it takes no time.
        if (startBack > 0 && size === 4) turnRing(at, 65536 - startBack);
        const { queue, ring } = at;
        const chain = new Chain(at.memory, 16);
        /** Chains that the driver offered and the device has not popped; those it has; those pushed, not published. */
        const offered: { head: number; buffers: Buffer[] }[] = [];
        const held: { head: number; buffers: Buffer[] }[] = [];
        let unpoppable = 0;
        let pushed: { id: number; len: number }[] = [];
        let tables = 0;
        for (const step of script) {
          switch (step.kind) {
            case "add": {
              const buffers = buffersOf(step.readable, step.writable);
              if (buffers.length === 0 || buffers.length > size) break;
              const need = step.table ? 1 : buffers.length;
              if (ring.freeDescriptors < need) break;
              const table = TABLES + (tables++ % 64) * 256;
              const head = ring.add(buffers, step.table ? table : undefined);
              offered.push({ head, buffers });
              break;
            }
            case "pop":
              for (let i = 0; i < step.count; i++) {
                const result = queue.pop(chain);
                assertEquals(result, offered.length > 0 ? 1 : 0);
                if (result === 0) break;
                const expected = offered.shift()!;
                assertEquals(chain.head, expected.head);
                const base = 0x7f00_0000_0000 - 0x10_0000;
                const seen = [chain.readable, chain.writable].flatMap((
                  list,
                  which,
                ) =>
                  Array.from({ length: list.count }, (_, s) => ({
                    iova: list.base(s) - base,
                    length: list.length(s),
                    write: which === 1,
                  }))
                );
                assertEquals(seen, expected.buffers);
                held.push(expected);
                unpoppable++;
              }
              break;
            case "unpop":
              if (unpoppable === 0) break;
              queue.unpop(1);
              offered.unshift(held.pop()!);
              unpoppable--;
              break;
            case "push": {
              if (held.length === 0) break;
              const [done] = held.splice(step.pick % held.length, 1);
              queue.push(done!.head, step.pick);
              pushed.push({ id: done!.head, len: step.pick });
              // What was popped before a push can no longer be given back in order.
              unpoppable = 0;
              break;
            }
            case "publish":
              queue.publish();
              assertEquals(ring.collect(), pushed);
              pushed = [];
              break;
            case "suspend":
              queue.suspend();
              assertEquals(queue.pop(chain), 0);
              if (held.length > 0) {
                const done = held.pop()!;
                queue.push(done.head, 77);
                pushed.push({ id: done.head, len: 77 });
                unpoppable = 0;
              }
              assert(!queue.publish());
              queue.resume();
              break;
            default:
              step satisfies never;
          }
          assertEquals(queue.inFlight, held.length);
        }
      },
    ),
    { numRuns: 300 },
  );
});
