/**
 * Output of V8 with `--trace-gc`.
 *
 * @module
 */

/** One collection. */
export interface Collection {
  /** Isolate: the main thread or a Worker. */
  readonly isolate: string;
  /** Time in milliseconds since the isolate began. */
  readonly atMs: number;
  /** Such as `Scavenge` or `Mark-Compact (reduce)`. */
  readonly kind: string;
  /** Heap afterwards, in MB. */
  readonly heapMB: number;
  /** Time the isolate stood still at most at one time, in milliseconds: an incremental one does it in steps. */
  readonly pauseMs: number;
  /** True if it was a task of its thread's own event loop, as the main thread has one: an IOThread runs none. */
  readonly byTask: boolean;
  /** The line itself. */
  readonly line: string;
}

// [18181:0x55fb8149a000]  15 ms: Scavenge 3.4 (4.4) -> 3.0 (5.2) MB, pooled: 0.0 MB, 1.45 / 0.00 ms (average mu …
const LINE =
  /\[\d+:(0x[0-9a-f]+)\]\s+(\d+) ms: (\S.*?) [\d.]+ \([\d.]+\) -> ([\d.]+) \([\d.]+\) MB,(?: pooled: [\d.]+ MB,)? ([\d.]+) \/ [\d.]+ ms.*/g;
// … 63.88 / 0.00 ms (+ 57.9 ms in 193 steps since start of marking, biggest step 23.8 ms, walltime since start …
const BIGGEST_STEP = /biggest step ([\d.]+) ms/;

/** The collections in the output of a process, other lines among them left aside. */
export function parseGcTrace(output: string): Collection[] {
  return [...output.matchAll(LINE)].map((match) => ({
    isolate: match[1]!,
    atMs: Number(match[2]),
    kind: match[3]!,
    heapMB: Number(match[4]),
    pauseMs: Math.max(
      Number(match[5]),
      Number(BIGGEST_STEP.exec(match[0])?.[1] ?? 0),
    ),
    byTask: match[0].includes("via task"),
    line: match[0],
  }));
}
