/**
 * Which IOThread a device lives on.
 *
 * @module
 */

import { formatCpus } from "../../os/mod.ts";
import { IOTHREADS_MAX } from "./bounds.ts";

/** What is to be placed. */
export interface Placeable {
  /** The device's name, for messages. */
  readonly id: string;
  /** The IOThreads it is to use, its home first; empty or absent for any. */
  readonly iothreads?: readonly number[];
}

/** For messages: `only IOThread 0`, `IOThreads 0 to 3`. */
function describeIOThreads(count: number): string {
  if (count === 1) return "only IOThread 0";
  return count === 2 ? "IOThreads 0 and 1" : `IOThreads 0 to ${count - 1}`;
}

/**
 * Checks that there is such an IOThread.
 *
 * @param action For the message: "Cannot <action>"
 * @throws {Error} That says which there are
 */
export function checkIOThread(
  action: string,
  iothread: number,
  count: number,
): void {
  if (Number.isInteger(iothread) && iothread >= 0 && iothread < count) return;
  const more = Number.isInteger(iothread) && iothread < IOTHREADS_MAX &&
      iothread >= 0
    ? `, or start with --iothreads ${iothread + 1}`
    : "";
  throw new Error(
    `Cannot ${action}: there ${count === 1 ? "is" : "are"} ${
      describeIOThreads(count)
    }; choose ${count === 1 ? "that" : "one of them"}${more}`,
  );
}

/**
 * Finds every device a home. Those that say where they want to be are there; each of the others goes to the IOThread
 * that has the fewest devices so far, the lowest number first: round robin, when none says anything.
 *
 * @param count How many IOThreads there are
 * @returns The IOThreads of each device, its home first
 * @throws {Error} That says which IOThreads there are, when one is asked for that there is not
 */
export function placeDevices(
  devices: readonly Placeable[],
  count: number,
): readonly (readonly number[])[] {
  const load = new Array<number>(count).fill(0);
  for (const device of devices) {
    for (const iothread of device.iothreads ?? []) {
      checkIOThread(
        `put ${device.id} on IOThread ${iothread}`,
        iothread,
        count,
      );
    }
    const home = device.iothreads?.[0];
    if (home !== undefined) load[home]!++;
  }
  return devices.map(({ iothreads = [] }) => {
    if (iothreads.length > 0) return iothreads;
    const home = load.indexOf(Math.min(...load));
    load[home]!++;
    return [home];
  });
}

/**
 * Checks what IOThreads are asked for.
 *
 * @param count How many
 * @param cpus The CPUs of each, or null
 * @param allowed The CPUs that this process may use
 * @throws {Error} That says what is possible
 */
export function checkIOThreads(
  count: number,
  cpus: readonly (readonly number[])[] | null,
  allowed: readonly number[],
): void {
  if (!Number.isInteger(count) || count < 1 || count > IOTHREADS_MAX) {
    throw new Error(
      `Cannot start ${count} IOThreads: 1 to ${IOTHREADS_MAX} are possible`,
    );
  }
  if (cpus === null) return;
  if (cpus.length !== count) {
    throw new Error(
      `Cannot start ${count} IOThreads on ${cpus.length} sets of CPUs: give one set for each`,
    );
  }
  cpus.forEach((set, i) => {
    const wrong = set.filter((cpu) => !allowed.includes(cpu));
    if (wrong.length === 0 && set.length > 0) return;
    const on = `on CPU${wrong.length > 1 ? "s" : ""} ${formatCpus(wrong)}`;
    throw new Error(
      `Cannot run IOThread ${i} ${
        set.length === 0 ? "on no CPU" : on
      }: this process may use CPU${allowed.length > 1 ? "s" : ""} ${
        formatCpus(allowed)
      }`,
    );
  });
}

/**
 * What is to be said of IOThreads that have fewer CPUs than they are.
 *
 * @param cpus The CPUs of each
 * @returns One line; null when there are enough
 */
export function describeCrowding(
  cpus: readonly (readonly number[])[],
): string | null {
  const { size } = new Set(cpus.flat());
  if (size >= cpus.length) return null;
  return `${cpus.length} IOThreads share CPU${size > 1 ? "s" : ""} ${
    formatCpus(cpus.flat())
  }, so that some wait while others work: give each a CPU of its own, as in --iothreads 2,cpus=2:3`;
}
