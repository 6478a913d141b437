/** The card's suites once more, on memory that is never in reach at once. */

import { runOnStrictMemory } from "../../memory_under_test.ts";

await runOnStrictMemory(import.meta.dirname!, [
  "config",
  "control",
  "device",
  "filter",
  "offload",
  "ring_formats",
], { slow: true });
