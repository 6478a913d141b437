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
  "spreading_commands",
  "spreading_fuzz",
  "spreading",
  "spreading_load",
]);
