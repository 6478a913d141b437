/**
 * What it costs to have Outboard: time from exec to listening, and memory.
 *
 * @module
 */

import { startOutboard } from "../src/testing/outboard_process.ts";
import { atMost, type Figure, percentile } from "./report.ts";

const RUNS = 7;

async function residentMiB(pid: number): Promise<number> {
  const status = await Deno.readTextFile(`/proc/${pid}/status`);
  return Number(/VmRSS:\s+(\d+) kB/.exec(status)![1]) / 1024;
}

/** From exec of deno to listening, and the resident set with one device that nobody uses. */
export async function benchStartup(): Promise<Figure[]> {
  const folder = Deno.makeTempDirSync({ prefix: "outboard-bench-" });
  const milliseconds = new Float64Array(RUNS);
  let resident = 0;
  try {
    const args = ["--device", "virtio-net", "--socket", `${folder}/dev.sock`];
    for (let i = 0; i < RUNS; i++) {
      const start = performance.now();
      await using outboard = await startOutboard(args);
      milliseconds[i] = performance.now() - start;
      resident = Math.max(resident, await residentMiB(outboard.pid));
    }
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
  milliseconds.sort();
  return [
    atMost(
      `exec to listening, median of ${RUNS}`,
      percentile(milliseconds, 0.5),
      "ms",
      400,
    ),
    atMost("resident set, one device", resident, "MiB", 150),
  ];
}
