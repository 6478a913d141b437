/**
 * Messages about something that a peer can make happen as often as it likes.
 *
 * @module
 */

import type { Loop } from "../event_loop.ts";
import type { Log } from "../log.ts";

const QUIET_MS = 10_000;

/** Says each kind of message once in ten seconds at the most; the others are for whoever debugs. */
export class CalmLog {
  readonly #loop: Loop;
  readonly #log: Log;
  readonly #lastAt = new Map<string, number>();

  /** @param loop Whose clock counts */
  constructor(loop: Loop, log: Log) {
    this.#loop = loop;
    this.#log = log;
  }

  /** What an operator wants to know. */
  info(kind: string, message: string): void {
    if (this.#isDue(kind)) this.#log.info(message);
    else this.#log.debug(message);
  }

  /** Something is wrong. */
  warn(kind: string, message: string): void {
    if (this.#isDue(kind)) this.#log.warn(message);
    else this.#log.debug(message);
  }

  #isDue(kind: string): boolean {
    const now = this.#loop.now();
    if (now - (this.#lastAt.get(kind) ?? -Infinity) < QUIET_MS) return false;
    this.#lastAt.set(kind, now);
    return true;
  }
}
