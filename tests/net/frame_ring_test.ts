import { assert, assertEquals, assertThrows } from "@std/assert";
import fc from "fast-check";
import { Errno } from "../../src/errno.ts";
import { NativeBuffer } from "../../src/libc/mod.ts";
import { ScatterGather } from "../../src/memory/scatter_gather.ts";
import { FrameRing } from "../../src/net/frame_ring.ts";
import { heapGrowthPerOperation } from "../resources.ts";

/** A list of segments in a buffer, of the given lengths, with gaps. */
function segments(buffer: NativeBuffer, lengths: number[]): ScatterGather {
  const list = new ScatterGather(new Uint32Array(4 * 16));
  let at = 1;
  for (const length of lengths) {
    list.push(buffer.hva + at, length);
    at += length + 3;
  }
  return list;
}

Deno.test("FrameRing gives frames back in order and whole, whatever the segments", () => {
  using from = new NativeBuffer(4096);
  using into = new NativeBuffer(8192);
  fc.assert(
    fc.property(
      fc.array(
        fc.record({
          frame: fc.uint8Array({ minLength: 1, maxLength: 300 }),
          pops: fc.nat(2),
        }),
        { maxLength: 40 },
      ),
      fc.array(fc.integer({ min: 1, max: 200 }), {
        minLength: 1,
        maxLength: 8,
      }),
      (steps, lengths) => {
        using ring = new FrameRing(256, 5);
        const model: number[][] = [];
        const room = lengths.reduce((sum, length) => sum + length, 0);
        for (const { frame, pops } of steps) {
          from.bytes.set(frame);
          const result = ring.push(from.hva, frame.length);
          if (frame.length > 256) assertEquals(result, -Errno.EMSGSIZE);
          else if (model.length === 5) assertEquals(result, -Errno.ENOBUFS);
          else {
            assertEquals(result, 0);
            model.push([...frame]);
          }
          for (let i = 0; i < pops; i++) {
            const list = segments(into, lengths);
            const expected = model.shift();
            const length = ring.pop(list);
            if (expected === undefined) assertEquals(length, -Errno.EAGAIN);
            else if (expected.length > room) {
              assertEquals(length, -Errno.EMSGSIZE);
            } else {
              assertEquals(length, expected.length);
              const got: number[] = [];
              let at = 1;
              for (const part of lengths) {
                got.push(...into.bytes.slice(at, at + part));
                at += part + 3;
              }
              assertEquals(got.slice(0, length), expected);
            }
          }
          assertEquals(ring.count, model.length);
        }
      },
    ),
    { numRuns: 300, verbose: true },
  );
});

Deno.test("FrameRing writes nothing beyond the frame", () => {
  using from = new NativeBuffer(4096);
  using into = new NativeBuffer(4096);
  using ring = new FrameRing(256, 2);
  from.bytes.fill(1);
  ring.push(from.hva, 100);
  assertEquals(ring.pop(segments(into, [60, 60])), 100);
  // 60 bytes at 1, then 40 of 60 at 64.
  assertEquals(into.bytes[60], 1);
  assertEquals([...into.bytes.slice(61, 64)], [0, 0, 0]);
  assertEquals(into.bytes[103], 1);
  assertEquals([...into.bytes.slice(104, 130)], new Array(26).fill(0));
});

Deno.test("FrameRing.clear drops all frames", () => {
  using from = new NativeBuffer(4096);
  using ring = new FrameRing(64, 2);
  ring.push(from.hva, 10);
  ring.clear();
  assertEquals(ring.count, 0);
  assertEquals(ring.pop(segments(from, [64])), -Errno.EAGAIN);
});

Deno.test("FrameRing moves frames without allocating", () => {
  using from = new NativeBuffer(4096);
  using into = new NativeBuffer(8192);
  using ring = new FrameRing(1518, 8);
  const list = segments(into, [12, 700, 1000]);
  const move = (operations: number) => {
    for (let i = 0; i < operations; i++) {
      ring.push(from.hva, 1514);
      ring.pop(list);
    }
  };
  // Until all of it is compiled, numbers this large are objects.
  move(1_000_000);
  const growth = heapGrowthPerOperation(100_000, move);
  assert(growth < 1, `${growth} bytes a frame`);
});

Deno.test("FrameRing goes on elsewhere with the frames it had", () => {
  using from = new NativeBuffer(4096);
  using into = new NativeBuffer(4096);
  const list = segments(into, [256]);
  let next = 0;
  const push = (ring: FrameRing) => {
    from.bytes.fill(++next, 0, next);
    assertEquals(ring.push(from.hva, next), 0);
  };
  let ring = new FrameRing(256, 5);
  let expected = 1;
  // Its head is at another place each time, and the frames go around its end.
  for (let i = 0; i < 12; i++) {
    while (ring.count < 5) push(ring);
    const frames = ring.snapshot();
    assertEquals(
      frames.map(({ length }) => length),
      [0, 1, 2, 3, 4].map((n) => expected + n),
    );
    assertEquals(ring.count, 5);
    ring.close();
    ring = new FrameRing(256, 5);
    ring.restore(frames);
    for (let n = 0; n < 3; n++) {
      assertEquals(ring.pop(list), expected);
      assertEquals(into.bytes[1], expected & 0xff);
      expected++;
    }
  }
  assertThrows(() => ring.restore([new Uint8Array(257)]), RangeError);
  assertThrows(
    () => ring.restore(new Array(6).fill(new Uint8Array(1))),
    RangeError,
  );
  assertEquals(ring.count, 2);
  ring.close();
});
