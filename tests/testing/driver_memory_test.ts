import { assert, assertEquals, assertThrows } from "@std/assert";
import fc from "fast-check";
import { DriverMemory } from "../../src/testing/mod.ts";

const SEED = 0xa110c;

function memory(lengthBytes = 4096, iova = 0x1_0000_0000): DriverMemory {
  return new DriverMemory(new ArrayBuffer(lengthBytes), iova);
}

Deno.test("alloc aligns the address, not the offset", () => {
  const ram = memory(4096, 0x1001);
  const at = ram.alloc(10, 64);
  assertEquals(at, 0x1040);
  assertEquals(ram.alloc(1, 1), 0x1001, "the gap before it is used");
});

Deno.test("alloc gives zeroed memory also when it was used before", () => {
  const ram = memory();
  const at = ram.alloc(16);
  ram.write(at, new Uint8Array(16).fill(9));
  ram.free(at, 16);
  assertEquals(ram.alloc(16), at);
  assertEquals(ram.at(at, 16), new Uint8Array(16));
});

Deno.test("alloc throws when there is no room, and free makes some", () => {
  const ram = memory(256);
  const first = ram.alloc(128);
  const second = ram.alloc(128);
  assertThrows(() => ram.alloc(1), RangeError, "Cannot allocate");
  ram.free(first, 128);
  ram.free(second, 128);
  assertEquals(ram.usedBytes, 0);
  assertEquals(ram.alloc(256), first, "free neighbours are one piece");
});

Deno.test("free refuses what is free already", () => {
  const ram = memory();
  const at = ram.alloc(64);
  ram.alloc(64);
  ram.free(at, 64);
  assertThrows(() => ram.free(at, 64), RangeError, "it is free");
  assertThrows(() => ram.free(at + 32, 64), RangeError, "it is free");
});

Deno.test("at stays inside the memory", () => {
  const ram = memory(64);
  assertThrows(() => ram.at(ram.iova + 60, 5), RangeError);
  assertThrows(() => ram.at(ram.iova - 1, 1), RangeError);
  ram.writeU64(ram.iova + 8, 2 ** 40 + 5);
  assertEquals([...ram.at(ram.iova + 8, 8)], [5, 0, 0, 0, 0, 1, 0, 0]);
});

Deno.test("live allocations never overlap and everything comes back", () => {
  fc.assert(
    fc.property(
      fc.array(
        fc.record({
          free: fc.boolean(),
          which: fc.nat(100),
          length: fc.integer({ min: 1, max: 300 }),
          alignment: fc.constantFrom(1, 2, 3, 4, 16, 64, 4096),
        }),
        { maxLength: 60 },
      ),
      (steps) => {
        const ram = memory(16_384, 0x12_3456);
        const live: { at: number; length: number }[] = [];
        for (const { free, which, length, alignment } of steps) {
          if (free && live.length > 0) {
            const [gone] = live.splice(which % live.length, 1);
            ram.free(gone!.at, gone!.length);
            continue;
          }
          let at: number;
          try {
            at = ram.alloc(length, alignment);
          } catch (error) {
            if (error instanceof RangeError) continue;
            throw error;
          }
          assertEquals(at % alignment, 0);
          assert(
            live.every((it) => at + length <= it.at || it.at + it.length <= at),
          );
          live.push({ at, length });
          const total = live.reduce((sum, it) => sum + it.length, 0);
          assertEquals(ram.usedBytes, total);
        }
        for (const { at, length } of live) ram.free(at, length);
        assertEquals(ram.usedBytes, 0);
      },
    ),
    { seed: SEED, numRuns: 300 },
  );
});
