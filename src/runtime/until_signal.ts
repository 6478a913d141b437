/**
 * End of a run: by a signal, or by the death of an IOThread.
 *
 * @module
 */

import { isIgnored, SIGHUP } from "../os/mod.ts";
import type { Outboard } from "./run.ts";

/** A second signal within this time belongs to the first: a launcher sends one to the process and one to its group. */
const FORCE_AFTER_MS = 500;

/** Numbers of the signals that end a process by force when they are repeated. */
const FORCING: Partial<Record<Deno.Signal, number>> = {
  SIGINT: 2,
  SIGTERM: 15,
};

/** Settings of a {@linkcode StopSignal}. */
export interface StopSignalOptions {
  /** Milliseconds on a clock that never goes back. */
  readonly nowMs?: () => number;
  /** Ends the process at once, with the exit status given. */
  readonly end?: (status: number) => void;
}

/**
 * Hears SIGINT, SIGTERM and SIGHUP from its making until it is disposed of. SIGINT or SIGTERM half a second or more
 * after the first ends the process at once, with 128 and the signal's number as its status. Where nohup has SIGHUP
 * ignored it stays so.
 */
export class StopSignal implements Disposable {
  readonly #heard = Promise.withResolvers<void>();
  readonly #nowMs: () => number;
  readonly #end: (status: number) => void;
  /** Signals that are heard, with their effect. */
  readonly #signals: ReadonlyMap<Deno.Signal, () => void> = new Map(
    ([
      "SIGINT",
      "SIGTERM",
      ...(isIgnored(SIGHUP) ? [] : ["SIGHUP" as const]),
    ] as const)
      .map((signal) => [signal, () => this.raise(signal)]),
  );
  #receivedMs = 0;
  /** True if one has come. */
  received = false;

  /** Hears signals from here on. */
  constructor(
    {
      nowMs = () => performance.now(),
      end = (status) => Deno.exit(status),
    }: StopSignalOptions = {},
  ) {
    this.#nowMs = nowMs;
    this.#end = end;
    for (const [signal, act] of this.#signals) {
      Deno.addSignalListener(signal, act);
    }
  }

  /** Acts as if the signal had come. SIGHUP never forces the end: whoever closes a terminal may send it twice. */
  raise(signal: Deno.Signal): void {
    if (!this.received) {
      this.received = true;
      this.#receivedMs = this.#nowMs();
      return this.#heard.resolve();
    }
    const number = FORCING[signal];
    if (number === undefined) return;
    if (this.#nowMs() - this.#receivedMs >= FORCE_AFTER_MS) {
      this.#end(128 + number);
    }
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
 * @param failed Rejects for any other reason to stop
 * @returns The exit status: 0 after a signal, 1 when something had to be ended by force then or told of an error
 * @throws {Error} When an IOThread died; or what `failed` gave
 */
export async function runUntilSignal(
  outboard: Outboard,
  signal: StopSignal,
  failed: Promise<never> = outboard.failed,
): Promise<number> {
  try {
    await Promise.race([signal.heard, outboard.failed, failed]);
  } catch (error) {
    await outboard.stop();
    throw error;
  }
  return await outboard.stop() ? 0 : 1;
}
