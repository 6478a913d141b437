/**
 * Counters, each declared once: its name, and the family and labels that metrics show it by.
 *
 * @module
 */

import { StateReader } from "./state_reader.ts";

/** A family of metrics without its values. */
export interface MetricShape {
  /** As OpenMetrics has it: without `_total` and `_info`, with the unit. */
  readonly name: string;
  /** One line for people. */
  readonly help: string;
  /** Only growing, going up and down, or nothing but its labels. */
  readonly type: "counter" | "gauge" | "info";
  /** `seconds` or `bytes`; empty for numbers of things. */
  readonly unit: "" | "seconds" | "bytes";
}

/** The family of a counter, and what tells it apart there; null for one that is shown by its own name. */
export type Shown =
  | readonly [MetricShape, Readonly<Record<string, string>>?]
  | null;

/** Counters by name, in the order in which they are shown. */
export type CounterTable<N extends string = string> = Readonly<
  Record<N, Shown>
>;

/** Values by the names of a table. */
export type CounterRecord<T extends CounterTable> = {
  readonly [K in keyof T]: number;
};

function shape(
  type: MetricShape["type"],
  name: string,
  help: string,
  unit: MetricShape["unit"] = "",
): MetricShape {
  return { name: `outboard_${name}`, help, type, unit };
}

/** A family of numbers that only grow. */
export function counter(
  name: string,
  help: string,
  unit?: MetricShape["unit"],
): MetricShape {
  return shape("counter", name, help, unit);
}

/** A family of numbers that go up and down. */
export function gauge(
  name: string,
  help: string,
  unit?: MetricShape["unit"],
): MetricShape {
  return shape("gauge", name, help, unit);
}

/** A family that has labels only. */
export function info(name: string, help: string): MetricShape {
  return shape("info", name, help);
}

function mapNames<T extends CounterTable>(
  table: T,
  value: (name: string, index: number) => number,
): CounterRecord<T> {
  const names = Object.keys(table);
  return Object.fromEntries(
    names.map((name, i) => [name, value(name, i)]),
  ) as CounterRecord<T>;
}

/** Indices of {@linkcode Counters.values} by name. */
export function indicesOf<T extends CounterTable>(table: T): CounterRecord<T> {
  return mapNames(table, (_, i) => i);
}

/** Counters that are fields of an object. */
export function countersFrom<T extends CounterTable>(
  table: T,
): { -readonly [K in keyof T]: number } {
  return mapNames(table, () => 0);
}

/** Counters of a table. */
export class Counters<out T extends CounterTable = CounterTable> {
  /** By index; doubles in place, so that counting allocates nothing. */
  readonly values: Float64Array<ArrayBuffer>;
  readonly #table: T;

  /** @param table What there is to count, from 0 */
  constructor(table: T) {
    this.#table = table;
    this.values = new Float64Array(Object.keys(table).length);
  }

  /** Adds to a counter. */
  add(index: number, amount: number): void {
    this.values[index]! += amount;
  }

  /** All of them by index, which are 0 then. */
  take(): number[] {
    const counts = [...this.values];
    this.values.fill(0);
    return counts;
  }

  /** Adds what {@linkcode Counters.take} of others of this table gave. */
  addAll(counts: readonly number[]): void {
    counts.forEach((count, i) => this.add(i, count));
  }

  /** All of them by name. */
  toRecord(): { -readonly [K in keyof T]: number } {
    return mapNames(this.#table, (_, i) => this.values[i]!);
  }

  /** Goes on from what {@linkcode Counters.toRecord} gave. @throws {ErrnoError} EINVAL, as {@linkcode parseCounters} */
  restore(saved: unknown): void {
    this.values.set(Object.values(parseCounters(this.#table, saved)));
  }
}

/**
 * Checks saved counters. One that another version did not have begins at 0.
 *
 * @throws {import("./errno.ts").ErrnoError} EINVAL when they are none
 */
export function parseCounters<T extends CounterTable>(
  table: T,
  saved: unknown,
): CounterRecord<T> {
  const reader = new StateReader(saved, "the counters");
  return mapNames(
    table,
    (name) =>
      Object.hasOwn(reader.fields, name)
        ? reader.integer(name, Number.MAX_SAFE_INTEGER)
        : 0,
  );
}

/** Counters of a part, with its name before theirs. */
export function countersOf(
  part: string,
  counters: Readonly<Record<string, number>> = {},
): Record<string, number> {
  return Object.fromEntries(
    Object.entries(counters).map(([name, value]) => [`${part}.${name}`, value]),
  );
}
