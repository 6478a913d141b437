/**
 * Suites, run one after another, whatever becomes of each.
 *
 * @module
 */

import { type Figure, leftOut } from "./report.ts";
import type { BenchSettings } from "./settings.ts";

/** A suite and what it measures. */
export interface Suite {
  readonly run: (settings: BenchSettings) => Promise<Figure[]>;
  /** One line for people. */
  readonly help: string;
}

/**
 * Runs suites in turn. One that throws is reported, and the others run: what they measure is worth as much without it.
 *
 * @param onFigures Told after each suite; of one that failed, what became of it
 * @returns The names of those that failed
 */
export async function runSuites(
  suites: Readonly<Record<string, Suite>>,
  settings: BenchSettings,
  onFigures: (name: string, figures: Figure[]) => void,
): Promise<string[]> {
  const failed: string[] = [];
  for (const [name, suite] of Object.entries(suites)) {
    try {
      onFigures(name, await suite.run(settings));
    } catch (error) {
      failed.push(name);
      console.error(`${name} failed:`, error);
      const reason = error instanceof Error ? error.message : String(error);
      onFigures(name, [leftOut(name, `it failed: ${reason.split("\n")[0]}`)]);
    }
  }
  return failed;
}
