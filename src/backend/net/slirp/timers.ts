/**
 * libslirp's timers and clock on the event loop.
 *
 * @module
 */

import type { Loop, Timer } from "../../../loop/event_loop.ts";

/** How far libslirp's clock is ahead of the loop's: it takes 0 for "never". */
const OFFSET_MS = 1000;

/** Timers by handle; a handle is a small number other than 0. */
export class SlirpTimers {
  readonly #loop: Loop;
  readonly #onExpire: (id: number, opaque: Deno.PointerValue) => void;
  readonly #timers = new Map<number, Timer>();
  #lastHandle = 0;

  /** @param onExpire Called with what the timer was made with */
  constructor(
    loop: Loop,
    onExpire: (id: number, opaque: Deno.PointerValue) => void,
  ) {
    this.#loop = loop;
    this.#onExpire = onExpire;
  }

  /** Whole milliseconds. */
  clockMs(): number {
    return Math.floor(OFFSET_MS + this.#loop.now());
  }

  /** Makes a timer. */
  create(id: number, opaque: Deno.PointerValue): number {
    const handle = ++this.#lastHandle;
    const timer = this.#loop.timer(() => this.#onExpire(id, opaque));
    this.#timers.set(handle, timer);
    return handle;
  }

  /** Arms a timer for a moment of the clock. */
  arm(handle: number, expireMs: number): void {
    this.#timers.get(handle)?.arm(expireMs - this.clockMs());
  }

  /** Frees a timer. */
  free(handle: number): void {
    this.#timers.get(handle)?.close();
    this.#timers.delete(handle);
  }

  /** Frees all. */
  close(): void {
    for (const handle of [...this.#timers.keys()]) this.free(handle);
  }
}
