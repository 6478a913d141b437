/**
 * Devices that change threads all the time.
 *
 * @module
 */

import { assert } from "@std/assert";

/** Time a device stays where it is: long enough to be seen at work there. */
const STAY_MS = 50;
const MOVES_MIN = 10;
/** Number of times the load may run for that to be so. */
const RUNS_MAX = 5;

/**
 * Moves devices to and fro between IOThreads 0 and 1 while something runs, and wants that to have happened more than a few
 * times.
 *
 * @param control Says a line to the control socket of the process
 * @param devices By id
 */
export async function whileMoving(
  control: (line: string) => Promise<unknown>,
  devices: readonly string[],
  run: () => Promise<void>,
): Promise<void> {
  let over = false;
  let moves = 0;
  const moving = (async () => {
    while (!over) {
      // Each to where its neighbour was.
      for (const [i, id] of devices.entries()) {
        await control(`move ${id} ${(moves + i + 1) % 2}`);
      }
      moves++;
      await new Promise((resolve) => setTimeout(resolve, STAY_MS));
    }
  })();
  // Told at the end, and not as a rejection that nobody handles.
  moving.catch(() => {});
  try {
    // On a busy machine a move may take as long as many.
    for (let runs = 0; moves <= MOVES_MIN && runs < RUNS_MAX; runs++) {
      await run();
    }
  } finally {
    over = true;
    await moving;
  }
  assert(moves > MOVES_MIN, `${moves} moves`);
}
