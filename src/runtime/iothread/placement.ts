/**
 * Placement of devices on IOThreads.
 *
 * @module
 */

import { formatCpus } from "../../os/mod.ts";
import { IOTHREADS_MAX } from "./bounds.ts";

/** Device to be placed. */
export interface Placeable {
  /** The device's name, for messages. */
  readonly id: string;
  /** The IOThreads it is to use, the one it lives on first; empty or absent for any. */
  readonly iothreads?: readonly number[];
}

/** Place of a device: of all there is of it but some queues, and of each group of those, in turns. */
export interface Place {
  /** Number of the IOThread it lives on. */
  readonly iothread: number;
  /** By group of its queues, in turns: numbers of the IOThreads that serve them. */
  readonly queues: readonly number[];
}

/** The IOThreads that serve queues of a device which lives on another. */
export function otherThreads({ iothread, queues }: Place): readonly number[] {
  return [...new Set(queues)].filter((other) => other !== iothread);
}

/** All IOThreads of a device, the one it lives on first. */
export function threadsOf(place: Place): readonly number[] {
  return [place.iothread, ...otherThreads(place)];
}

/** True if two places are the same. */
export function isSamePlace(one: Place, other: Place): boolean {
  const groups = Math.max(one.queues.length, other.queues.length);
  const at = ({ queues }: Place, group: number) =>
    queues[group % queues.length];
  if (one.iothread !== other.iothread) return false;
  for (let group = 0; group < groups; group++) {
    if (at(one, group) !== at(other, group)) return false;
  }
  return true;
}

/**
 * Place of a device after one of its queues, with those that stay with it, has moved.
 *
 * @param groups Of its queues by number, see {@linkcode PciDevice.queueGroups}; negative for those that stay with the
 * device
 * @throws {Error} When there is no such queue, or it stays with the device and others do not
 */
export function placeWithQueue(
  id: string,
  place: Place,
  groups: readonly number[],
  queue: number,
  iothread: number,
): Place {
  // With one group, all of it is the device.
  const count = Math.max(-1, ...groups) + 1;
  if (count === 0) return { iothread, queues: [iothread] };
  const group = groups[queue];
  if (group === undefined) {
    const movable = [...groups.keys()].filter((i) => groups[i]! >= 0);
    throw new Error(
      `Cannot move queue ${queue} of ${id}: queues that can be moved are ${
        movable[0]
      } to ${movable.at(-1)}`,
    );
  }
  if (group < 0) {
    throw new Error(
      `Cannot move queue ${queue} of ${id}: it stays with the device, move ${id} as a whole`,
    );
  }
  const { queues } = place;
  return {
    iothread: place.iothread,
    queues: Array.from(
      { length: count },
      (_, i) => i === group ? iothread : queues[i % queues.length]!,
    ),
  };
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
 * Finds every device a place. Those that say where they want to be are there; each of the others goes to the IOThread
 * that has the fewest devices so far, the lowest number first: round robin, when none says anything.
 *
 * @param count How many IOThreads there are
 * @returns The place of each device
 * @throws {Error} That says which IOThreads there are, when one is asked for that there is not
 */
export function placeDevices(
  devices: readonly Placeable[],
  count: number,
): readonly Place[] {
  const load = new Array<number>(count).fill(0);
  for (const device of devices) {
    for (const iothread of device.iothreads ?? []) {
      checkIOThread(
        `put ${device.id} on IOThread ${iothread}`,
        iothread,
        count,
      );
    }
    const iothread = device.iothreads?.[0];
    if (iothread !== undefined) load[iothread]!++;
  }
  return devices.map(({ iothreads = [] }) => {
    const [first] = iothreads;
    if (first !== undefined) return { iothread: first, queues: iothreads };
    const iothread = load.indexOf(Math.min(...load));
    load[iothread]!++;
    return { iothread, queues: [iothread] };
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
 * Text on IOThreads that have fewer CPUs than they are.
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
