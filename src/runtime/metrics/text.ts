/**
 * Metrics as the text that Prometheus and its kin read.
 *
 * Our own and not prom-client: that keeps counters of its own, one object for each label set, which would have to be
 * set to ours and forgotten again at every scrape, and it knows neither info families nor units. What is left is
 * this formatter.
 *
 * @module
 */

import {
  labelName,
  type MetricFamily,
  type MetricSample,
  type MetricsSnapshot,
} from "./metrics.ts";

/** Formats of a snapshot, by what they are called in HTTP. */
export const MetricsFormat = {
  /** OpenMetrics 1.0. */
  OPENMETRICS: "application/openmetrics-text; version=1.0.0; charset=utf-8",
  /** The text format of Prometheus before that. */
  PROMETHEUS: "text/plain; version=0.0.4; charset=utf-8",
} as const;
/** One of {@linkcode MetricsFormat}. */
export type MetricsFormat = typeof MetricsFormat[keyof typeof MetricsFormat];

const SUFFIX = { counter: "_total", info: "_info", gauge: "" } as const;

function escapeHelp(text: string): string {
  return text.replaceAll("\\", "\\\\").replaceAll("\n", "\\n");
}

function escapeLabel(text: string): string {
  return escapeHelp(text).replaceAll('"', '\\"');
}

function formatValue(value: number): string {
  if (value === Infinity) return "+Inf";
  if (value === -Infinity) return "-Inf";
  return `${value}`;
}

function formatSample(name: string, { labels, value }: MetricSample): string {
  const pairs = Object.entries(labels).map(([label, text]) =>
    `${labelName(label)}="${escapeLabel(text)}"`
  );
  const braces = pairs.length === 0 ? "" : `{${pairs.join(",")}}`;
  return `${name}${braces} ${formatValue(value)}`;
}

function formatFamily(family: MetricFamily, format: MetricsFormat): string[] {
  const { help, type, unit, samples } = family;
  const sampleName = family.name + SUFFIX[type];
  const open = format === MetricsFormat.OPENMETRICS;
  // In the older format the family is called as its samples are, and nothing is an info.
  const name = open ? family.name : sampleName;
  return [
    `# TYPE ${name} ${!open && type === "info" ? "gauge" : type}`,
    ...(open && unit !== "" ? [`# UNIT ${name} ${unit}`] : []),
    `# HELP ${name} ${open ? escapeLabel(help) : escapeHelp(help)}`,
    ...samples.map((sample) => formatSample(sampleName, sample)),
  ];
}

/** The text of a snapshot; every line ends in a line feed. */
export function formatMetrics(
  snapshot: MetricsSnapshot,
  format: MetricsFormat,
): string {
  const lines = snapshot.families.flatMap((it) => formatFamily(it, format));
  // A comment to the older format, by which a reader can tell that nothing is missing.
  lines.push("# EOF");
  return lines.map((line) => `${line}\n`).join("");
}
