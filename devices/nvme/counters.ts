/**
 * What a controller counts.
 *
 * @module
 */

import { StateReader } from "../../src/core/state_reader.ts";

/** Counters of a controller, in the order they are shown; each is an index of {@linkcode NvmeCounters.values}. */
export const NvmeCounter = {
  /** Admin commands that were fetched. */
  adminCommands: 0,
  /** Read and Compare commands that have read what they wanted. */
  reads: 1,
  /** Their bytes. */
  readBytes: 2,
  /** Write commands that succeeded. */
  writes: 3,
  /** Their bytes. */
  writtenBytes: 4,
  /** Flush commands that succeeded. */
  flushes: 5,
  /** Write Zeroes and Dataset Management commands that succeeded. */
  others: 6,
  /** Commands that ended with an error. */
  failedCommands: 7,
  /** Of those, what the storage could not do. */
  mediaErrors: 8,
  /** Doorbells that were rung by message. */
  doorbells: 9,
  /** Doorbell values that cannot be. */
  invalidDoorbells: 10,
  /** Interrupts, batches of completions told. */
  interrupts: 11,
  /** How often fetching stopped because a completion queue was full. */
  completionQueueFull: 12,
  /** Resets by CC.EN. */
  controllerResets: 13,
  /** Errors that only a reset ends (CSTS.CFS). */
  fatalErrors: 14,
  /** Looks at mapped doorbells that found something. */
  pageKicks: 15,
  /** Looks at shadow doorbells that found something. */
  polledKicks: 16,
  /** Completions that were told by the interrupt of another. */
  coalescedInterrupts: 17,
} as const;

const NAMES = Object.keys(NvmeCounter) as (keyof typeof NvmeCounter)[];

/** Counters by name, as they are saved. */
export type CountersState = Readonly<Record<string, number>>;

/**
 * Checks saved counters.
 *
 * @throws {import("../../src/core/errno.ts").ErrnoError} EINVAL when they cannot be
 */
export function parseCountersState(value: unknown): CountersState {
  const reader = new StateReader(value, "the counters");
  return Object.fromEntries(
    NAMES.map((
      name,
    ) => [name, reader.integer(name, Number.MAX_SAFE_INTEGER)]),
  );
}

/** The counters of one controller. */
export class NvmeCounters {
  /** By {@linkcode NvmeCounter}; doubles in place, so that counting allocates nothing. */
  readonly values: Float64Array<ArrayBuffer> = new Float64Array(NAMES.length);

  /** Adds to a counter. */
  add(counter: number, amount: number): void {
    this.values[counter]! += amount;
  }

  /** All of them, which are 0 then. */
  take(): number[] {
    const counts = [...this.values];
    this.values.fill(0);
    return counts;
  }

  /** Adds what {@linkcode NvmeCounters.take} of others gave. */
  addAll(counts: readonly number[]): void {
    counts.forEach((count, i) => this.add(i, count));
  }

  /** All of them by name. */
  toRecord(): Record<string, number> {
    const record: Record<string, number> = {};
    for (const name of NAMES) record[name] = this.values[NvmeCounter[name]]!;
    return record;
  }

  /** Goes on from what {@linkcode NvmeCounters.toRecord} gave. */
  load(state: CountersState): void {
    for (const name of NAMES) this.values[NvmeCounter[name]] = state[name]!;
  }
}
