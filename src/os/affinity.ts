/**
 * Operating-system threads: their names, their ids, and the CPUs they may run on.
 *
 * @module
 */

import { check, cString } from "./errors.ts";
import { libc } from "./symbols.ts";

const PR_SET_NAME = 15;
const SYS_GETTID = Deno.build.arch === "x86_64" ? 186 : 178;

/** Most CPUs that a kernel can be built for (CONFIG_NR_CPUS). */
const CPUS_MAX = 8192;

/** The id of the calling thread, as `top -H`, `taskset -p` and /proc/PID/task know it. */
export function threadId(): number {
  return libc.gettid(SYS_GETTID);
}

/**
 * Names the calling thread for `top -H` and /proc/PID/task/TID/comm.
 *
 * @param name Cut after 15 bytes by the kernel
 */
export function setThreadName(name: string): void {
  check(libc.prctl_name(PR_SET_NAME, cString(name)), "prctl");
}

/**
 * The CPUs that a thread may run on, in ascending order.
 *
 * @param tid Id of a thread; the calling one's unless told
 * @throws {import("./errors.ts").SyscallError} ESRCH when there is no such thread
 */
export function threadCpus(tid = 0): number[] {
  const mask = new Uint8Array(CPUS_MAX / 8);
  check(
    libc.sched_getaffinity(tid, mask.length, mask),
    "sched_getaffinity",
  );
  const cpus: number[] = [];
  for (let cpu = 0; cpu < CPUS_MAX; cpu++) {
    if ((mask[cpu >> 3]! >> (cpu & 7) & 1) !== 0) cpus.push(cpu);
  }
  return cpus;
}

/** True if there is such a thread. @param tid Its id, not 0 */
export function threadExists(tid: number): boolean {
  const mask = new Uint8Array(CPUS_MAX / 8);
  return libc.sched_getaffinity(tid, mask.length, mask) >= 0;
}

/**
 * Keeps the calling thread on some CPUs. Of those that do not exist or are kept from this process the kernel says
 * nothing as long as one is left: compare with {@linkcode threadCpus} before.
 *
 * @throws {import("./errors.ts").SyscallError} EINVAL when none is left
 */
export function setThreadCpus(cpus: readonly number[]): void {
  const mask = new Uint8Array(CPUS_MAX / 8);
  for (const cpu of cpus) {
    if (cpu < CPUS_MAX) mask[cpu >> 3]! |= 1 << (cpu & 7);
  }
  check(
    libc.sched_setaffinity(0, mask.length, mask),
    "sched_setaffinity",
    `Cannot run on CPUs ${formatCpus(cpus)}`,
  );
}

/** CPUs as the kernel lists them: `0-3,8`. */
export function formatCpus(cpus: readonly number[]): string {
  const sorted = [...new Set(cpus)].sort((a, b) => a - b);
  const runs: string[] = [];
  for (let i = 0; i < sorted.length;) {
    let last = i;
    while (sorted[last + 1] === sorted[last]! + 1) last++;
    runs.push(
      last === i ? `${sorted[i]}` : `${sorted[i]}-${sorted[last]}`,
    );
    i = last + 1;
  }
  return runs.join(",");
}
