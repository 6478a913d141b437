/** The controller's suites once more, on memory that loses what is not released. */

import { runOnStrictMemory } from "../../memory_under_test.ts";

await runOnStrictMemory(import.meta.dirname!, [
  "admin",
  "coalescing",
  "doorbells",
  "fuzz",
  "io",
  "move",
  "namespaces",
  "registers",
  "threads_commands",
  "threads_fuzz",
  "threads_load",
  "threads_move",
  "threads",
]);
