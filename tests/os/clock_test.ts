import { assert } from "@std/assert";
import { monotonicUs } from "../../src/os/mod.ts";
import { heapGrowthPerOperation } from "../resources.ts";

Deno.test("monotonicUs goes as performance.now does", () => {
  const outer = performance.now();
  const from = monotonicUs();
  const inner = performance.now();
  while (performance.now() < inner + 5);
  const innerUs = (performance.now() - inner) * 1000;
  const elapsedUs = (monotonicUs() - from) | 0;
  const outerUs = (performance.now() - outer) * 1000;
  assert(elapsedUs >= innerUs - 2, `${elapsedUs} ${innerUs}`);
  assert(elapsedUs <= outerUs + 2, `${elapsedUs} ${outerUs}`);
});

Deno.test("monotonicUs allocates nothing", () => {
  let sum = 0;
  const growth = heapGrowthPerOperation(100_000, (operations) => {
    for (let i = 0; i < operations; i++) sum = (sum + monotonicUs()) | 0;
  });
  assert(growth < 1, `${growth} bytes`);
  assert(Number.isInteger(sum));
});
