/**
 * How a run ends: by a signal, or by the death of an IOThread.
 *
 * @module
 */

import { isIgnored, SIGHUP } from "../libc/mod.ts";
import type { Outboard } from "./run.ts";

/**
 * Hears SIGINT, SIGTERM and SIGHUP from its making until it is disposed of; a second SIGINT or SIGTERM ends the process
 * at once. Where nohup has SIGHUP ignored it stays so.
 */
export class StopSignal implements Disposable {
  readonly #heard = Promise.withResolvers<void>();
  readonly #onSignal = (): void => {
    if (this.received) Deno.exit(130);
    this.#onHangUp();
  };
  /** Whoever closes a terminal may send it twice. */
  readonly #onHangUp = (): void => {
    this.received = true;
    this.#heard.resolve();
  };
  /** What is heard, and what is done then. */
  readonly #signals: ReadonlyMap<Deno.Signal, () => void> = new Map([
    ["SIGINT", this.#onSignal],
    ["SIGTERM", this.#onSignal],
    ...(isIgnored(SIGHUP) ? [] : [["SIGHUP", this.#onHangUp] as const]),
  ]);
  /** Whether one has come. */
  received = false;

  constructor() {
    for (const [signal, act] of this.#signals) {
      Deno.addSignalListener(signal, act);
    }
  }

  /** Acts as if one had come. */
  raise(): void {
    this.#onHangUp();
  }

  /** Resolves when one comes. */
  get heard(): Promise<void> {
    return this.#heard.promise;
  }

  /** Stops listening to signals. */
  [Symbol.dispose](): void {
    for (const [signal, act] of this.#signals) {
      Deno.removeSignalListener(signal, act);
    }
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
