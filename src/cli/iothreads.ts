/**
 * `--iothreads N,cpus=…` and the device option `iothread=`.
 *
 * @module
 */

import { option } from "../core/options.ts";
import { IOTHREADS_MAX } from "../runtime/iothread/bounds.ts";
import { UsageError } from "./usage_error.ts";

/** What `--iothreads` asks for. */
export interface IOThreadsArgument {
  /** How many. */
  readonly count: number;
  /** The CPUs of each; null leaves them to the scheduler. */
  readonly cpus: readonly (readonly number[])[] | null;
}

/** Without the option: one, wherever the scheduler likes. */
export const IOTHREADS_DEFAULT: IOThreadsArgument = { count: 1, cpus: null };

/** The largest number of a CPU that is looked for; Linux has none above 8191. */
const CPU_MAX = 9999;

/** `3`, `0-3`, `0+2` or `0-3+8` as ascending numbers. */
function parseCpuSet(text: string, argument: string): number[] {
  const cpus = new Set<number>();
  for (const part of text.split("+")) {
    const [, first, last = first] = /^(\d{1,4})(?:-(\d{1,4}))?$/.exec(part) ??
      [];
    if (first === undefined || Number(first) > Number(last)) {
      throw new UsageError(
        `Cannot use --iothreads ${argument}: "${text}" is no set of CPUs; write 3, 0-3 or 0+2, numbers up to ${CPU_MAX}`,
      );
    }
    for (let cpu = Number(first); cpu <= Number(last); cpu++) cpus.add(cpu);
  }
  return [...cpus].sort((a, b) => a - b);
}

function parseCpus(text: string, argument: string, count: number): number[][] {
  const sets = text.split(":").map((set) => parseCpuSet(set, argument));
  if (sets.length === 1) return Array.from({ length: count }, () => sets[0]!);
  if (sets.length !== count) {
    throw new UsageError(
      `Cannot use --iothreads ${argument}: ${sets.length} sets of CPUs for ${count} IOThread${
        count === 1 ? "" : "s"
      }; give one set for each, or one for all`,
    );
  }
  return sets;
}

/**
 * Takes `N[,cpus=SET:SET…]` apart.
 *
 * @throws {UsageError}
 */
export function parseIOThreads(text: string): IOThreadsArgument {
  const [number = "", ...options] = text.split(",");
  const count = Number(number);
  if (!/^\d{1,3}$/.test(number) || count < 1 || count > IOTHREADS_MAX) {
    throw new UsageError(
      `Cannot use --iothreads ${text}: give a number from 1 to ${IOTHREADS_MAX}, and then CPUs if they are to be fixed, such as 2,cpus=0:1`,
    );
  }
  let cpus: number[][] | null = null;
  for (const option of options) {
    if (!option.startsWith("cpus=")) {
      throw new UsageError(
        `Cannot use --iothreads ${text}: "${option}" is unknown; the only option is cpus=SET:SET..., where a set is 3, 0-3 or 0+2`,
      );
    }
    if (cpus !== null) {
      throw new UsageError(
        `Cannot use --iothreads ${text}: give cpus= once, with a colon between the sets`,
      );
    }
    cpus = parseCpus(option.slice("cpus=".length), text, count);
  }
  return { count, cpus };
}

/** A device's `iothread=`: `0`, or `0:1` for several, its home first. There may be fewer IOThreads than that. */
export const IOTHREAD_OPTION = option("iothread", {
  syntax: "N[:N...]",
  help:
    "which of the --iothreads it lives on, counted from 0; further ones share the queues of a model that can",
  otherwise: "the one with the fewest devices",
}, (text, refuse) => {
  const numbers = text.split(":").map((part) =>
    /^\d{1,3}$/.test(part)
      ? Number(part)
      : refuse("give the number of an IOThread, counted from 0")
  );
  if (new Set(numbers).size !== numbers.length) {
    refuse("name each IOThread once");
  }
  return numbers;
});
