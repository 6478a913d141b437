/** The disk's suites once more, on memory that is never in reach at once. */

import { runOnStrictMemory } from "../../memory_under_test.ts";

await runOnStrictMemory(import.meta.dirname!, [
  "config",
  "durability",
  "fuzz",
  "move",
  "request",
], { slow: true });
