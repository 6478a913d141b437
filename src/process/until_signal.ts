/**
 * How a run ends: by a signal, or by the death of an IOThread.
 *
 * @module
 */

import type { Outboard } from "./run.ts";

/** Hears SIGINT and SIGTERM from its making until it is disposed of; a second one ends the process at once. */
export class StopSignal implements Disposable {
  readonly #heard = Promise.withResolvers<void>();
  readonly #onSignal = (): void => {
    if (this.received) Deno.exit(130);
    this.received = true;
    this.#heard.resolve();
  };
  /** Whether one has come. */
  received = false;

  constructor() {
    Deno.addSignalListener("SIGINT", this.#onSignal);
    Deno.addSignalListener("SIGTERM", this.#onSignal);
  }

  /** Resolves when one comes. */
  get heard(): Promise<void> {
    return this.#heard.promise;
  }

  [Symbol.dispose](): void {
    Deno.removeSignalListener("SIGINT", this.#onSignal);
    Deno.removeSignalListener("SIGTERM", this.#onSignal);
  }
}

/**
 * Waits for a signal or the death of an IOThread, then stops.
 *
 * @returns The exit status: 0 after a signal
 * @throws {Error} When an IOThread died
 */
export async function runUntilSignal(
  outboard: Outboard,
  signal: StopSignal,
): Promise<number> {
  try {
    await Promise.race([signal.heard, outboard.failed]);
    return 0;
  } finally {
    await outboard.stop();
  }
}
