import { assert, assertEquals } from "@std/assert";
import { LoopCounter, LoopCounts } from "../../src/loop/counters.ts";
import { heapGrowthPerOperation } from "../resources.ts";

Deno.test("LoopCounts adds up each count apart", () => {
  const counts = new LoopCounts();
  let times = 1;
  for (const what of Object.values(LoopCounter)) {
    counts.values[what]! += times++;
  }
  counts.values[LoopCounter.events]! += 10;
  const { turns, wakeUps, events, sleeps, ...polls } = counts.read();
  assertEquals([turns, wakeUps, events, sleeps], [1, 2, 13, 4]);
  const { pollHits, pollMisses, pollRounds } = polls;
  assertEquals([pollHits, pollMisses, pollRounds], [5, 6, 7]);
});

Deno.test("LoopCounts divides its life into sleep and the rest", () => {
  const counts = new LoopCounts();
  counts.beginSleep();
  counts.endSleep();
  const once = counts.read();
  counts.beginSleep();
  counts.endSleep();
  const twice = counts.read();
  assertEquals([once.sleeps, twice.sleeps], [1, 2]);
  assert(twice.sleptSeconds > once.sleptSeconds);
  assert(once.awakeSeconds > 0 && twice.awakeSeconds > once.awakeSeconds);
});

Deno.test("LoopCounts allocates nothing when it counts", () => {
  const counts = new LoopCounts();
  const grown = heapGrowthPerOperation(200_000, (n) => {
    for (let i = 0; i < n; i++) {
      counts.values[LoopCounter.turns]!++;
      counts.beginSleep();
      counts.endSleep();
    }
  });
  assert(grown < 1, `${grown} bytes per turn`);
});
