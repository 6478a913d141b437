/**
 * Waiting for what must come, where nothing tells of it.
 *
 * @module
 */

/** Longer than anything that a test waits for takes, on a machine however busy. */
export const PATIENCE_MS = 60_000;

/**
 * Looks again and again until something is so, and lets the rest of this thread work meanwhile.
 *
 * @param what For the message, such as `"the device moves"`
 * @throws {Error} When it is not so within {@linkcode PATIENCE_MS}
 */
export async function until(
  what: string,
  condition: () => boolean | Promise<boolean>,
): Promise<void> {
  const deadline = performance.now() + PATIENCE_MS;
  while (!await condition()) {
    if (performance.now() > deadline) {
      throw new Error(`${what}: not within ${PATIENCE_MS} ms`);
    }
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
}
