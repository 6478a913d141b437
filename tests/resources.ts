/**
 * Counts of what this process holds, to show that nothing leaks.
 *
 * @module
 */

/** How many descriptors are open, the one that lists them not counted. */
export function openFds(): number {
  return [...Deno.readDirSync("/proc/self/fd")].length;
}

/** How many shared mappings (memfds, files) this process has; anonymous memory comes and goes with the heap. */
export function sharedMappings(): number {
  return Deno.readTextFileSync("/proc/self/maps").split("\n")
    .filter((line) => /^\S+ ..?.s /.test(line)).length;
}

/**
 * Bytes the JavaScript heap grows by per operation, the least of several rounds: a collection or a compilation in
 * one round is noise, an allocation per operation is in all of them. Ends with the first round below one byte.
 *
 * @param operations Enough for the compiler to have done its work: 100,000 and more
 */
export function heapGrowthPerOperation(
  operations: number,
  run: (operations: number) => void,
): number {
  run(operations);
  let least = Infinity;
  for (let round = 0; round < 10 && least >= 1; round++) {
    const before = Deno.memoryUsage().heapUsed;
    run(operations);
    const grown = Deno.memoryUsage().heapUsed - before;
    // A collection in the round hides what was allocated: that round says nothing.
    if (grown >= 0) least = Math.min(least, grown / operations);
  }
  return least;
}
