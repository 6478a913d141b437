import { assertEquals } from "@std/assert";
import fc from "fast-check";
import { NOWHERE, Region, UNREACHABLE } from "../../src/memory/region.ts";
import { SortedRegions } from "../../src/memory/sorted_regions.ts";

const PAGE = 4096;

function region(page: number, pages = 1): Region {
  const range = { iova: page * PAGE, lengthBytes: pages * PAGE, access: 3 };
  return new Region(range, UNREACHABLE, 0);
}

Deno.test("SortedRegions agrees with a sorted list, whatever comes and goes", () => {
  fc.assert(
    fc.property(
      fc.array(fc.integer({ min: 0, max: 400 }), { maxLength: 2000 }),
      (pages) => {
        const regions = new SortedRegions();
        const naive = new Map<number, Region>();
        for (const page of pages) {
          const there = naive.get(page);
          if (there === undefined) {
            const added = region(page);
            naive.set(page, added);
            regions.add(added);
          } else {
            naive.delete(page);
            regions.remove(there);
          }
          const around = [page - 1, page, page + 1];
          for (const each of around) {
            const address = Float64Array.of(each * PAGE + 7);
            assertEquals(
              regions.holding(address),
              naive.get(each) ?? NOWHERE,
            );
          }
        }
        const sorted = [...naive.keys()].sort((a, b) => a - b);
        assertEquals(
          regions.list().map(({ iova }) => iova / PAGE),
          sorted,
        );
        assertEquals(regions.count, sorted.length);
        for (const page of [0, 100, 399, 401]) {
          const next = sorted.find((each) => each >= page);
          assertEquals(
            regions.firstEndingAfter(page * PAGE),
            next === undefined ? undefined : naive.get(next),
          );
        }
      },
    ),
    { numRuns: 60 },
  );
});

Deno.test("SortedRegions takes sixty thousand, in and out in any order", () => {
  const regions = new SortedRegions();
  const all: Region[] = [];
  for (let i = 0; i < 60_000; i++) all.push(region((i * 7919) % 60_000 * 2));
  for (const each of all) regions.add(each);
  assertEquals(regions.count, 60_000);
  const list = regions.list();
  for (let i = 1; i < list.length; i++) {
    if (list[i]!.iova <= list[i - 1]!.iova) {
      throw new Error(`not sorted at ${i}`);
    }
  }
  for (const each of all.reverse()) regions.remove(each);
  assertEquals([regions.count, regions.list()], [0, []]);
  regions.add(region(3, 2));
  assertEquals(regions.holding(Float64Array.of(4 * PAGE)).iova, 3 * PAGE);
  regions.clear();
  assertEquals(regions.firstEndingAfter(0), undefined);
});
