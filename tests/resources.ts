/**
 * Counts of what this process holds, to show that nothing leaks.
 *
 * @module
 */

/** Number of descriptors that are open, the one that lists them not counted. */
export function openFds(): number {
  return [...Deno.readDirSync("/proc/self/fd")].length;
}

/** Number of shared mappings (memfds, files) of this process; anonymous memory comes and goes with the heap. */
export function sharedMappings(): number {
  return Deno.readTextFileSync("/proc/self/maps").split("\n")
    .filter((line) => /^\S+ ..?.s /.test(line)).length;
}

/**
 * Operations between two looks at the heap. A collection hides what its part allocated, and V8, whose new space begins
 * with 1 MiB, has one for every MiB or so: of parts this small most have none, up to several hundred bytes an
 * operation. In much fewer operations the 136 bytes that a look allocates by itself would count.
 */
const HEAP_PART = 1024;
/** The compiler works beside us: on a busy machine that takes seconds in which code allocates that later does not. */
const HEAP_ROUNDS_MIN = 10;
const HEAP_PATIENCE_MS = 30_000;

/**
 * Bytes the JavaScript heap grows by per operation, the least of several rounds: a compilation in one round is noise, an
 * allocation per operation is in all of them. Ends with the first round below one byte, and gives up after ten rounds
 * and half a minute.
 *
 * @param operations Enough for the compiler to have done its work: 100,000 and more
 * @param run Is called with 1024 of them at a time
 * @param patienceMs How long to go on after ten rounds, for the compiler's sake
 */
export function heapGrowthPerOperation(
  operations: number,
  run: (operations: number) => void,
  patienceMs = HEAP_PATIENCE_MS,
): number {
  const parts = Math.ceil(operations / HEAP_PART);
  const deadline = performance.now() + patienceMs;
  let least = Infinity;
  for (
    // The first round is for the compiler, and does not count.
    let round = -1;
    least >= 1 &&
    (round < HEAP_ROUNDS_MIN || performance.now() < deadline);
    round++
  ) {
    let grown = 0;
    for (let i = 0; i < parts; i++) {
      const before = Deno.memoryUsage().heapUsed;
      run(HEAP_PART);
      // A collection hides what its part allocated, and no more than that.
      grown += Math.max(0, Deno.memoryUsage().heapUsed - before);
    }
    if (round >= 0) least = Math.min(least, grown / (parts * HEAP_PART));
  }
  return least;
}

const WORKERS_PATIENCE_MS = 60_000;

/** Names of threads that run Workers: as the runtime names them, and as IOThreads name themselves. */
const WORKER_THREAD = /^(worker-|iothread)\d+$/;

/** Ids of the threads that run Workers of this process. */
export function workerThreads(): Set<string> {
  const threads = new Set<string>();
  for (const { name: thread } of Deno.readDirSync("/proc/self/task")) {
    try {
      const path = `/proc/self/task/${thread}/comm`;
      const name = Deno.readTextFileSync(path).trim();
      if (WORKER_THREAD.test(name)) threads.add(thread);
    } catch (error) {
      // Threads come and go: this one is gone.
      if (!isGone(error)) throw error;
    }
  }
  return threads;
}

/** True if a file of /proc could not be read because what it tells of has ended. */
export function isGone(error: unknown): boolean {
  return error instanceof Deno.errors.NotFound ||
    error instanceof Error && error.message.includes("os error 3");
}

/**
 * Waits until the threads of Workers are gone, which is some time after `terminate()`: until then they hold descriptors,
 * and the next test that counts those would see them go.
 *
 * @param others Threads that may stay, from {@linkcode workerThreads}
 * @throws {Error} When another one stays, because nobody has terminated it
 */
export async function workersGone(
  others: ReadonlySet<string> = new Set(),
  patienceMs = WORKERS_PATIENCE_MS,
): Promise<void> {
  const deadline = performance.now() + patienceMs;
  for (;;) {
    const { size } = workerThreads().difference(others);
    if (size === 0) return;
    if (performance.now() > deadline) {
      throw new Error(`Cannot go on: threads of ${size} Workers are left`);
    }
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
}

/**
 * True if a process runs. One that has ended and waits for its parent to hear of it does not: where a container's first
 * process is nobody who listens, it stays for ever.
 */
export function isRunning(pid: number): boolean {
  try {
    return !/^State:\s+[ZX]/m.test(
      Deno.readTextFileSync(`/proc/${pid}/status`),
    );
  } catch (error) {
    if (isGone(error)) return false;
    throw error;
  }
}
