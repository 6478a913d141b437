/** The queues' suites once more, on memory that loses what is not released. */

import { runOnStrictMemory } from "../memory_under_test.ts";

await runOnStrictMemory(import.meta.dirname!, [
  "queue_property",
  "ring_formats",
  "state",
]);
