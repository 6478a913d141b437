/**
 * Figures, kept and shown: a table for people, JSON for machines.
 *
 * @module
 */

/** One figure. */
export interface Figure {
  /** Name of the measurement. */
  readonly name: string;
  readonly value: number;
  readonly unit: string;
  /** Value of the same run to compare with; the ratio is value / baseline. */
  readonly baseline?: { readonly name: string; readonly value: number };
  /** Target as text, and whether it is met. */
  readonly target?: { readonly text: string; readonly met: boolean };
  /** Reason why there is no value (it is NaN then, null in JSON). */
  readonly leftOut?: string;
}

/** Another side of the same run. */
export type Baseline = NonNullable<Figure["baseline"]>;

/** A figure that could not be taken. */
export function leftOut(name: string, why: string): Figure {
  return { name, value: NaN, unit: "", leftOut: why };
}

/** A figure that must be at most so many times another one of the same run. */
export function ratioAtMost(
  figure: Pick<Figure, "name" | "value" | "unit">,
  baseline: Baseline,
  limit: number,
): Figure {
  const met = figure.value <= limit * baseline.value;
  return { ...figure, baseline, target: { text: `≤ ${limit}×`, met } };
}

/** The middle one of the values, the higher of two. */
export function median(values: readonly number[]): number {
  return [...values].sort((a, b) => a - b)[values.length >> 1]!;
}

/** A figure that must stay below a limit. */
export function atMost(
  name: string,
  value: number,
  unit: string,
  limit: number,
): Figure {
  const target = { text: `≤ ${limit} ${unit}`, met: value <= limit };
  return { name, value, unit, target };
}

function format(value: number): string {
  if (value === 0) return "0";
  // From here on three digits would be shown as a power of ten.
  return Math.abs(value) >= 999.5
    ? Math.round(value).toLocaleString("en-US")
    : value.toPrecision(3);
}

/** A figure that must reach a limit. */
export function atLeast(
  name: string,
  value: number,
  unit: string,
  limit: number,
): Figure {
  const target = { text: `≥ ${limit} ${unit}`, met: value >= limit };
  return { name, value, unit, target };
}

/** The figures as an aligned table. */
export function table(title: string, figures: readonly Figure[]): string {
  const rows = figures.map((figure) => [
    figure.name,
    figure.leftOut === undefined ? format(figure.value) : "–",
    figure.leftOut === undefined ? figure.unit : `left out: ${figure.leftOut}`,
    figure.baseline === undefined
      ? ""
      : `${
        (figure.value / figure.baseline.value).toFixed(2)
      }× ${figure.baseline.name}`,
    figure.target === undefined
      ? ""
      : `${figure.target.met ? "met" : "MISSED"}: ${figure.target.text}`,
  ]);
  const widths = [0, 1, 2, 3].map((column) =>
    Math.max(...rows.map((row) => row[column]!.length))
  );
  const lines = rows.map((row) =>
    row.map((cell, column) =>
      column === 1
        ? cell.padStart(widths[column]!)
        : cell.padEnd(widths[column] ?? 0)
    ).join("  ").trimEnd()
  );
  return [title, ...lines.map((line) => `  ${line}`), ""].join("\n");
}

/** The value below which the given share of the sorted samples lies. */
export function percentile(sorted: Float64Array, share: number): number {
  return sorted[
    Math.min(sorted.length - 1, Math.floor(sorted.length * share))
  ]!;
}

/** Counts how often `step` (which returns how much it did) gets done per second, over about `seconds`. */
export function rate(seconds: number, step: () => number): number {
  const start = performance.now();
  const end = start + seconds * 1000;
  let done = 0;
  let now = start;
  while (now < end) {
    for (let i = 0; i < 16; i++) done += step();
    now = performance.now();
  }
  return done / ((now - start) / 1000);
}
