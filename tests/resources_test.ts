import { assert, assertEquals, assertRejects } from "@std/assert";
import {
  heapGrowthPerOperation,
  openFds,
  sharedMappings,
  workersGone,
  workerThreads,
} from "./resources.ts";

Deno.test("heapGrowthPerOperation sees what is allocated, of every size, though it is collected meanwhile", () => {
  let last: unknown;
  for (const operations of [5_000, 35_000, 100_000, 200_000]) {
    for (const words of [1, 3, 5, 11, 15, 40]) {
      const grown = heapGrowthPerOperation(operations, (count) => {
        for (let i = 0; i < count; i++) last = new Array(words);
      }, 0);
      assert(
        grown >= 2 * words,
        `${grown} bytes of ${words} words in ${operations} operations`,
      );
    }
  }
  assert(Array.isArray(last));
});

Deno.test("heapGrowthPerOperation sees nothing where nothing is allocated", () => {
  let sum = 0;
  const quiet = heapGrowthPerOperation(100_000, (operations) => {
    for (let i = 0; i < operations; i++) sum = (sum + i) | 0;
  });
  assert(quiet < 1, `${quiet} bytes`);
});

Deno.test("workersGone waits for a Worker that was terminated, and for what it held", async () => {
  await workersGone();
  const start = async () => {
    const source = "self.onmessage = () => self.postMessage(1)";
    const url = URL.createObjectURL(
      new Blob([source], { type: "text/javascript" }),
    );
    const worker = new Worker(url, { type: "module" });
    await new Promise((resolve) => {
      worker.onmessage = resolve;
      worker.postMessage(null);
    });
    URL.revokeObjectURL(url);
    return worker;
  };
  const held = () => openFds() + sharedMappings();
  for (let i = 0; i < 5; i++) {
    const worker = await start();
    const before = held();
    worker.terminate();
    await workersGone();
    assertEquals(workerThreads().size, 0);
    assert(held() < before);
  }
  const worker = await start();
  const others = workerThreads();
  assertEquals(others.size, 1);
  (await start()).terminate();
  await workersGone(others);
  await assertRejects(() => workersGone(undefined, 0), Error, "1 Workers");
  worker.terminate();
  await workersGone();
});
