/**
 * `--iothreads N,cpus=…` and the device option `iothread=`.
 *
 * @module
 */

import {
  option,
  options,
  parseOptionParts,
  type Refuse,
} from "../core/options.ts";
import { IOTHREADS_MAX } from "../runtime/iothread/bounds.ts";

/** Value of `--iothreads`. */
export interface IOThreadsArgument {
  /** Number of threads. */
  readonly count: number;
  /** The CPUs of each; null leaves them to the scheduler. */
  readonly cpus: readonly (readonly number[])[] | null;
}

/** The largest number of a CPU that is looked for; Linux has none above 8191. */
const CPU_MAX = 9999;

/** `3`, `0-3`, `0+2` or `0-3+8` as ascending numbers. */
function parseCpuSet(text: string, refuse: Refuse): number[] {
  const cpus = new Set<number>();
  for (const part of text.split("+")) {
    const [, first, last = first] = /^(\d{1,4})(?:-(\d{1,4}))?$/.exec(part) ??
      [];
    if (first === undefined || Number(first) > Number(last)) {
      refuse(
        `"${text}" is no set of CPUs; write 3, 0-3 or 0+2, numbers up to ${CPU_MAX}`,
      );
    }
    for (let cpu = Number(first); cpu <= Number(last); cpu++) cpus.add(cpu);
  }
  return [...cpus].sort((a, b) => a - b);
}

const CPUS = options({
  cpus: option("cpus", {
    syntax: "SET:SET...",
    help: "the CPUs of each",
  }, (text, refuse) => text.split(":").map((set) => parseCpuSet(set, refuse))),
});

/** `--iothreads N[,cpus=SET:SET…]`. */
export const IOTHREADS_OPTION = option("--iothreads", {
  syntax: "N[,cpus=SET:...]",
  help:
    "threads that devices are spread over, and the CPUs of each, 3, 0-3 or 0+2, or one set for all",
  default: "1",
}, (text, refuse): IOThreadsArgument => {
  const [number = "", ...parts] = text.split(",");
  const count = Number(number);
  if (!/^\d{1,3}$/.test(number) || count < 1 || count > IOTHREADS_MAX) {
    refuse(
      `give a number from 1 to ${IOTHREADS_MAX}, and then CPUs if they are to be fixed, such as 2,cpus=0:1`,
    );
  }
  const { cpus } = CPUS.parse(parseOptionParts(parts), "--iothreads");
  if (cpus?.length === 1) return { count, cpus: Array(count).fill(cpus[0]) };
  if (cpus !== null && cpus.length !== count) {
    refuse(
      `${cpus.length} sets of CPUs for ${count} IOThread${
        count === 1 ? "" : "s"
      }; give one set for each, or one for all`,
    );
  }
  return { count, cpus };
});

/** A device's `iothread=`: `0`, or `0:1` for several, the one it lives on first. There may be fewer IOThreads than that. */
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
