/**
 * Knowledge of the kernel about a process.
 *
 * @module
 */

/** The resident set in MiB. */
export function residentMiB(pid: number): number {
  const status = Deno.readTextFileSync(`/proc/${pid}/status`);
  return Number(/VmRSS:\s+(\d+) kB/.exec(status)![1]) / 1024;
}

/** Time that a thread has used. */
export interface ThreadTime {
  /** Its name. */
  readonly name: string;
  /** Time on a CPU, in milliseconds. */
  readonly cpuMs: number;
  /** Number of times it was put on a CPU. */
  readonly runs: number;
}

/** Time that every thread of a process has used so far, by thread id. */
export function threadTimes(pid: number): Map<number, ThreadTime> {
  const times = new Map<number, ThreadTime>();
  for (const { name: id } of Deno.readDirSync(`/proc/${pid}/task`)) {
    const task = `/proc/${pid}/task/${id}`;
    try {
      // Documentation/scheduler/sched-stats: time on the CPU and on the run queue in ns, number of time slices.
      const [ns, , runs] = Deno.readTextFileSync(`${task}/schedstat`)
        .split(" ").map(Number);
      const name = Deno.readTextFileSync(`${task}/comm`).trim();
      times.set(Number(id), { name, cpuMs: ns! / 1e6, runs: runs! });
    } catch (error) {
      // The thread ended meanwhile.
      if (!(error instanceof Deno.errors.NotFound)) throw error;
    }
  }
  return times;
}

/** Time that each thread has used between two looks, the busiest first. */
export function threadTimesSince(
  before: ReadonlyMap<number, ThreadTime>,
  after: ReadonlyMap<number, ThreadTime>,
): ThreadTime[] {
  return [...after].map(([id, { name, cpuMs, runs }]) => {
    const old = before.get(id);
    return {
      name,
      cpuMs: cpuMs - (old?.cpuMs ?? 0),
      runs: runs - (old?.runs ?? 0),
    };
  }).sort((a, b) => b.cpuMs - a.cpuMs);
}

/** The numbers in a list of CPUs, such as `0-2,5`. */
export function parseCpuList(list: string): number[] {
  return list.split(",").flatMap((part) => {
    const [first, last] = part.split("-").map(Number);
    const length = (last ?? first!) - first! + 1;
    return Array.from({ length }, (_, i) => first! + i);
  });
}

/** The CPUs that this process may run on. */
export function allowedCpus(): number[] {
  const status = Deno.readTextFileSync("/proc/self/status");
  return parseCpuList(/Cpus_allowed_list:\s+(\S+)/.exec(status)![1]!);
}

/**
 * Confines all threads of a process to some CPUs, with taskset(1).
 *
 * @throws {Error} With what taskset says
 */
export async function confine(
  pid: number,
  cpus: readonly number[],
): Promise<void> {
  const { success, stderr } = await new Deno.Command("taskset", {
    args: ["--all-tasks", "--cpu-list", "--pid", cpus.join(), `${pid}`],
  }).output();
  if (!success) {
    throw new Error(
      `Cannot confine process ${pid}: ${new TextDecoder().decode(stderr)}`,
    );
  }
}
