/**
 * Cost of having Outboard: time from exec to listening, and memory.
 *
 * @module
 */

import { startOutboard } from "../src/testing/outboard_process.ts";
import { residentMiB } from "./proc.ts";
import { atMost, type Figure, percentile } from "./report.ts";
import { withFolder } from "./serving.ts";
import { type BenchSettings, count } from "./settings.ts";

const RUNS = 7;

/** From exec of deno to listening, and the resident set with one device that nobody uses. */
export async function benchStartup(
  settings: BenchSettings,
): Promise<Figure[]> {
  const runs = count(settings, RUNS, 3);
  const milliseconds = new Float64Array(runs);
  let resident = 0;
  await withFolder(async (folder) => {
    const args = ["--device", "virtio-net", "--socket", `${folder}/dev.sock`];
    for (let i = 0; i < runs; i++) {
      const start = performance.now();
      await using outboard = await startOutboard(args);
      milliseconds[i] = performance.now() - start;
      resident = Math.max(resident, residentMiB(outboard.pid));
    }
  });
  milliseconds.sort();
  return [
    atMost(
      `exec to listening, median of ${runs}`,
      percentile(milliseconds, 0.5),
      "ms",
      400,
    ),
    atMost("resident set, one device", resident, "MiB", 150),
  ];
}
