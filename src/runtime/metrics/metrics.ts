/**
 * Metrics as data: what a process and its devices have counted, at one moment.
 *
 * @module
 */

import process from "node:process";
import denoJson from "../../../deno.json" with { type: "json" };
import type { CounterTable, MetricShape } from "../../core/counters.ts";
import { LOOP_COUNTERS, type LoopCounters } from "../../loop/counters.ts";
import { DMA_COUNTERS, type DmaStatistics } from "../../memory/dma_memory.ts";
import { METRIC_FAMILIES, shownAs } from "./table.ts";

/** One value. */
export interface MetricSample {
  /** In the order they are to be shown. */
  readonly labels: Readonly<Record<string, string>>;
  /** In base units: seconds, bytes; 1 for an info. */
  readonly value: number;
}

/** Values of one meaning, told apart by their labels. */
export interface MetricFamily extends MetricShape {
  /** No two have the same labels. */
  readonly samples: readonly MetricSample[];
}

/** Everything there was to count when it was asked for; plain data. */
export interface MetricsSnapshot {
  /** Families, each with all of its values. */
  readonly families: readonly MetricFamily[];
}

/** Metrics of a device; structured-clone-able. */
export interface DeviceMetrics {
  readonly id: string;
  readonly model: string;
  /** True if it has a client. */
  readonly connected: boolean;
  /** Settings of the device; see PciDevice.info. */
  readonly info: Readonly<Record<string, string>>;
  /** Counts of its server. */
  readonly connection: Readonly<Record<string, number>>;
  /** Counts of the model. */
  readonly device: Readonly<Record<string, number>>;
  /** Memory that its client lets it reach. */
  readonly memory: DmaStatistics;
}

/** Metrics of an IOThread and its devices; structured-clone-able. */
export interface ThreadMetrics {
  readonly loop: LoopCounters;
  readonly devices: readonly DeviceMetrics[];
}

type Labels = Record<string, string>;

/** Gathers samples by family. */
class Collector {
  readonly #families = new Map<MetricShape, Map<string, MetricSample>>();

  /** Adds a value; values with the same labels become their sum. */
  add(shape: MetricShape, labels: Labels, value: number): void {
    let samples = this.#families.get(shape);
    if (samples === undefined) {
      samples = new Map();
      this.#families.set(shape, samples);
    }
    const key = JSON.stringify(labels);
    const before = shape.type === "info" ? 0 : samples.get(key)?.value ?? 0;
    samples.set(key, { labels, value: before + value });
  }

  /** In order of name. */
  families(): MetricFamily[] {
    return [...this.#families]
      .map(([shape, samples]) => ({ ...shape, samples: [...samples.values()] }))
      .sort((a, b) => a.name < b.name ? -1 : 1);
  }
}

/** Adds all counters of one table, each of which has a family. */
function addTable(
  to: Collector,
  table: CounterTable,
  counters: Readonly<Record<string, number>>,
  labels: Labels,
): void {
  for (const [name, shown] of Object.entries(table)) {
    to.add(shown![0], labels, counters[name]!);
  }
}

function addCounters(
  to: Collector,
  scope: "connection" | "device",
  counters: Readonly<Record<string, number>>,
  device: Labels,
): void {
  for (const [name, value] of Object.entries(counters)) {
    // A model from outside may count in whatever it likes; one line that is no counter would cost all the others.
    if (typeof value !== "number" || !(value >= 0)) continue;
    const [family, labels] = shownAs(scope, name);
    to.add(family, { ...device, ...labels }, value);
  }
}

/** A name that a label may have; what else comes from outside is bent to it. Two underscores are Prometheus's own. */
export function labelName(name: string): string {
  return name.replace(/[^a-zA-Z0-9_]/g, "_").replace(/^(?=\d|$)/, "_")
    .replace(/^__+/, "_");
}

/** Adds what a model says of itself: no label twice, and none that is not its to say. */
function withInfo(labels: Labels, info: Readonly<Record<string, string>>) {
  const all = { ...labels };
  for (const [name, text] of Object.entries(info)) {
    const label = labelName(name);
    if (!Object.hasOwn(all, label)) all[label] = String(text);
  }
  return all;
}

function addDevice(
  to: Collector,
  device: DeviceMetrics,
  iothread: string,
): void {
  const labels = { device: device.id, model: device.model, iothread };
  to.add(METRIC_FAMILIES.device, withInfo(labels, device.info), 1);
  // A device keeps its counters when it moves, so they do not say where it is.
  const { iothread: _, ...own } = labels;
  to.add(METRIC_FAMILIES.connected, own, device.connected ? 1 : 0);
  addTable(to, DMA_COUNTERS, device.memory, own);
  addCounters(to, "connection", device.connection, own);
  addCounters(to, "device", device.device, own);
}

/** Open descriptors of the process; null without the permission to look, which only all permissions give. */
function openDescriptors(): number | null {
  try {
    return Array.from(Deno.readDirSync("/proc/self/fd")).length;
  } catch (error) {
    if (error instanceof Deno.errors.NotCapable) return null;
    throw error;
  }
}

function addProcess(to: Collector): void {
  const { user, system } = process.cpuUsage();
  const fds = openDescriptors();
  to.add(METRIC_FAMILIES.cpuSeconds, {}, (user + system) / 1e6);
  to.add(METRIC_FAMILIES.residentBytes, {}, Deno.memoryUsage().rss);
  if (fds !== null) to.add(METRIC_FAMILIES.openFds, {}, fds);
  to.add(METRIC_FAMILIES.startTime, {}, performance.timeOrigin / 1000);
}

/**
 * Makes a snapshot of what the IOThreads told.
 *
 * @param threads By number; null for one that does not answer
 */
export function takeSnapshot(
  threads: readonly (ThreadMetrics | null)[],
): MetricsSnapshot {
  const collector = new Collector();
  collector.add(METRIC_FAMILIES.build, { version: denoJson.version }, 1);
  addProcess(collector);
  threads.forEach((thread, i) => {
    const iothread = `${i}`;
    collector.add(METRIC_FAMILIES.up, { iothread }, thread === null ? 0 : 1);
    if (thread === null) return;
    const { loop, devices } = thread;
    addTable(collector, LOOP_COUNTERS, loop, { iothread });
    for (const device of devices) addDevice(collector, device, iothread);
  });
  return { families: collector.families() };
}
