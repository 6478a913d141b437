import { assert, assertEquals, assertThrows } from "@std/assert";
import {
  counter,
  Counters,
  countersFrom,
  countersOf,
  type CounterTable,
  indicesOf,
  parseCounters,
} from "../../src/core/counters.ts";
import { ErrnoError } from "../../src/core/errno.ts";
import { heapGrowthPerOperation } from "../resources.ts";

const TABLE = {
  reads: [counter("requests", "Requests"), { op: "read" }],
  writes: [counter("requests", "Requests"), { op: "write" }],
  oddities: null,
} satisfies CounterTable;
const Count = indicesOf(TABLE);

Deno.test("Counters count by index and tell by name, in the order of their table", () => {
  const counters = new Counters(TABLE);
  counters.add(Count.writes, 2);
  counters.add(Count.writes, 1);
  assertEquals(Object.entries(counters.toRecord()), [
    ["reads", 0],
    ["writes", 3],
    ["oddities", 0],
  ]);
  const others = new Counters(TABLE);
  others.addAll(counters.take());
  assertEquals(others.toRecord(), { reads: 0, writes: 3, oddities: 0 });
  assertEquals(counters.toRecord(), { reads: 0, writes: 0, oddities: 0 });
  counters.restore({ reads: 5, writes: 0, oddities: 1, others: 9 });
  assertEquals(counters.toRecord(), { reads: 5, writes: 0, oddities: 1 });
});

Deno.test("countersFrom begins with nothing", () => {
  assertEquals(countersFrom(TABLE), { reads: 0, writes: 0, oddities: 0 });
});

Deno.test("countersOf puts the name of a part before those of its counters", () => {
  assertEquals(countersOf("backend", { reads: 1 }), { "backend.reads": 1 });
  assertEquals(countersOf("ns2"), {});
});

Deno.test("parseCounters takes saved counters of any version, and nothing that cannot be one", () => {
  const saved = { reads: 1, writes: 2, oddities: 0 };
  assertEquals(parseCounters(TABLE, { ...saved, others: "x" }), saved);
  assertEquals(
    parseCounters(TABLE, { writes: 2 }),
    { reads: 0, writes: 2, oddities: 0 },
  );
  for (const wrong of [null, 7, { ...saved, reads: 0.5 }, { reads: "1" }]) {
    assertThrows(() => parseCounters(TABLE, wrong), ErrnoError);
  }
});

Deno.test("Counters allocate nothing when they count", () => {
  const counters = new Counters(TABLE);
  const grown = heapGrowthPerOperation(200_000, (n) => {
    for (let i = 0; i < n; i++) counters.add(Count.reads, 2 ** 40);
  });
  assert(grown < 1, `${grown} bytes per count`);
});
