/** The card's suites once more, on memory that loses what is not released. */

import { runOnStrictMemory } from "../../memory_under_test.ts";

await runOnStrictMemory(import.meta.dirname!, [
  "coalescing",
  "config",
  "control",
  "device",
  "filter",
  "multiqueue",
  "offload",
  "relief",
  "ring_formats",
  "rx",
  "state",
  "tx",
]);
