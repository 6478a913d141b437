/** Measures what a piece of code allocates on the JavaScript heap. */

const CHUNKS = 50;

/**
 * Bytes allocated per round, the least of three measurements: the runtime allocates on its own account now and then,
 * the code under test every time. Growth is added up chunk by chunk, so that a collection in between hides at most one.
 */
export function bytesPerRound(
  run: (rounds: number) => void,
  rounds: number,
): number {
  const chunk = Math.ceil(rounds / CHUNKS);
  // Long enough for the optimizing compiler.
  run(100_000);
  run(100_000);
  let best = Infinity;
  for (let attempt = 0; attempt < 3; attempt++) {
    let grown = 0;
    for (let i = 0; i < CHUNKS; i++) {
      const before = Deno.memoryUsage().heapUsed;
      run(chunk);
      grown += Math.max(0, Deno.memoryUsage().heapUsed - before);
    }
    best = Math.min(best, grown / (chunk * CHUNKS));
  }
  return best;
}
