/**
 * Ports for servers that are told where to listen.
 *
 * @module
 */

/** Below those that the kernel gives to whoever connects (32768 to 60999), above those of known services. */
const FIRST = 20_000;
const END = 32_768;

/**
 * A port that is likely to be free: at random, so that tests that run side by side do not meet, and of those that no
 * outgoing connection gets, neither another program's nor the one that looks for a server there.
 */
export function unusedPort(): number {
  return FIRST + Math.floor(Math.random() * (END - FIRST));
}

/** A port on which one can listen now. */
export function freeTcpPort(): number {
  for (;;) {
    const port = unusedPort();
    try {
      Deno.listen({ hostname: "127.0.0.1", port }).close();
      return port;
    } catch (error) {
      if (!(error instanceof Deno.errors.AddrInUse)) throw error;
    }
  }
}
