import { assert, assertEquals } from "@std/assert";
import fc from "fast-check";
import { Errno } from "../../src/core/errno.ts";
import { ScatterGather } from "../../src/memory/scatter_gather.ts";

function make(capacity: number): ScatterGather {
  return new ScatterGather(new Uint32Array(capacity * 4));
}

function segments(list: ScatterGather): [number, number][] {
  return Array.from(
    { length: list.count },
    (_, i) => [list.base(i), list.length(i)],
  );
}

Deno.test("ScatterGather.push lays segments out as struct iovec", () => {
  const list = make(2);
  assertEquals(list.push(0x7fff_1234_5678, 0x8000_0001), 0);
  assertEquals(list.push(0x10, 5), 0);
  const view = new DataView(list.words.buffer);
  assertEquals(view.getBigUint64(0, true), 0x7fff_1234_5678n);
  assertEquals(view.getBigUint64(8, true), 0x8000_0001n);
  assertEquals(view.getBigUint64(16, true), 0x10n);
  assertEquals(view.getBigUint64(24, true), 5n);
  assertEquals(list.lengthBytes, 0x8000_0006);
});

Deno.test("ScatterGather.push joins segments that touch, across a 32-bit boundary too", () => {
  const list = make(2);
  list.push(0x1_ffff_fff0, 16);
  assertEquals(list.push(0x2_0000_0000, 16), 0);
  assertEquals(segments(list), [[0x1_ffff_fff0, 32]]);
  // The low words touch, the high words do not.
  assertEquals(list.push(0x3_0000_0010, 1), 0);
  assertEquals(list.count, 2);
  assertEquals(list.push(0x3_0000_0010, 1), -Errno.E2BIG);
  assertEquals(list.push(0x3_0000_0011, 1), 0);
  assertEquals(list.lengthBytes, 34);
});

Deno.test("ScatterGather.push does not join beyond 4 GiB", () => {
  const list = make(2);
  list.push(0x1000, 0xffff_0000);
  assertEquals(list.push(0x1000 + 0xffff_0000, 0xffff), 0);
  assertEquals(list.count, 1);
  assertEquals(list.push(0x1000 + 0xffff_ffff, 1), 0);
  assertEquals(list.count, 2);
  assertEquals(list.lengthBytes, 0x1_0000_0000);
});

Deno.test("ScatterGather.pushWords is push with the address in two words", () => {
  const one = make(3);
  const other = make(3);
  for (
    const [hva, length] of [[0x7f00_ffff_f000, 0x1000], [0x7f01_0000_0000, 8], [
      5,
      1,
    ]]
  ) {
    one.push(hva!, length!);
    other.pushWords(Uint32Array.of(hva! % 2 ** 32, hva! / 2 ** 32), length!);
  }
  assertEquals(segments(other), segments(one));
  assertEquals(other.count, 2);
});

Deno.test("ScatterGather takes no empty segment", () => {
  const list = make(1);
  assertEquals(list.push(1, 0), 0);
  assertEquals(list.count, 0);
  list.push(1, 1);
  assertEquals(list.push(100, 0), 0, "even when full");
});

type Op =
  | { kind: "push"; hva: number; length: number }
  | { kind: "append"; hva: number; length: number }
  | { kind: "consume"; length: number }
  | { kind: "truncate"; length: number }
  | { kind: "clear" };

// Few addresses around a 4 GiB boundary, so that segments touch often.
const hva = fc.integer({ min: 0, max: 40 }).map((n) => 0xffff_ffec + n);
const length = fc.integer({ min: 0, max: 12 });
const op: fc.Arbitrary<Op> = fc.oneof(
  {
    weight: 6,
    arbitrary: fc.record({ kind: fc.constant("push"), hva, length }),
  },
  {
    weight: 2,
    arbitrary: fc.record({ kind: fc.constant("append"), hva, length }),
  },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant("consume"), length }) },
  {
    weight: 2,
    arbitrary: fc.record({ kind: fc.constant("truncate"), length }),
  },
  { weight: 1, arbitrary: fc.constant({ kind: "clear" }) },
) as fc.Arbitrary<Op>;

Deno.test("ScatterGather agrees with a list of single bytes", () => {
  let refused = 0;
  fc.assert(
    fc.property(fc.array(op, { maxLength: 40 }), (ops) => {
      const list = make(4);
      let model: number[] = [];
      for (const it of ops) {
        switch (it.kind) {
          case "push": {
            const before = segments(list);
            const result = list.push(it.hva, it.length);
            if (result < 0) {
              refused++;
              assertEquals(result, -Errno.E2BIG);
              assertEquals(segments(list), before);
              assertEquals(before.length, 4);
              const last = before.at(-1)!;
              assert(last[0] + last[1] !== it.hva, "it could have been joined");
              break;
            }
            for (let i = 0; i < it.length; i++) model.push(it.hva + i);
            break;
          }
          case "append": {
            const other = make(2);
            other.push(it.hva, it.length);
            const full = list.count + other.count > 4;
            assertEquals(list.append(other), full ? -Errno.E2BIG : 0);
            if (full) break;
            for (let i = 0; i < it.length; i++) model.push(it.hva + i);
            break;
          }
          case "consume":
            list.consume(it.length);
            model = model.slice(it.length);
            break;
          case "truncate":
            list.truncate(it.length);
            model = model.slice(0, it.length);
            break;
          case "clear":
            list.clear();
            model = [];
            break;
          default:
            it satisfies never;
        }
        const bytes = segments(list).flatMap(([base, n]) =>
          Array.from({ length: n }, (_, i) => base + i)
        );
        assertEquals(bytes, model);
        assertEquals(list.lengthBytes, model.length);
        assert(segments(list).every(([, n]) => n > 0));
      }
    }),
    { numRuns: 500 },
  );
  assert(refused > 0, "the list was full now and then");
});
