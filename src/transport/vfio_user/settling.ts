/**
 * Waits until a function has no request in flight that must not be cut short, while its loop goes on.
 *
 * @module
 */

import type { Loop, Timer } from "../../loop/event_loop.ts";
import type { PciFunction } from "../../pci/function.ts";

/** Interval of the looks, in milliseconds. */
const LOOK_MS = 1;

/**
 * Holds a function until nothing is unfinished, and for as long as something is done then.
 *
 * ```text
 *   idle --begin--> held --nothing unfinished, or too late--> held, told --end--> idle
 * ```
 */
export class Settling {
  readonly #loop: Loop;
  readonly #pci: PciFunction;
  readonly #timer: Timer;
  #active = false;
  #then: () => void = () => {};
  #onLate: () => void = () => {};
  #deadline = Infinity;

  constructor(loop: Loop, pci: PciFunction) {
    this.#loop = loop;
    this.#pci = pci;
    this.#timer = loop.timer(() => this.#look());
  }

  /** True if it holds the function. */
  get active(): boolean {
    return this.#active;
  }

  /**
   * Holds the function until {@linkcode Settling.end}. What was begun before is dropped.
   *
   * @param then Called when nothing is unfinished
   * @param limitMs How long that may take
   * @param onLate Called once that is over, in place of `then`
   */
  begin(then: () => void, limitMs = Infinity, onLate = () => {}): void {
    this.#active = true;
    this.#then = then;
    this.#onLate = onLate;
    this.#deadline = this.#loop.now() + limitMs;
    this.#pci.settle();
    this.#timer.arm(LOOK_MS);
  }

  /** The function goes on. */
  end(): void {
    if (!this.#active) return;
    this.#active = false;
    this.#timer.cancel();
    this.#pci.endSettling();
  }

  /** Releases the timer. */
  close(): void {
    this.#timer.close();
  }

  #look(): void {
    if (this.#pci.unfinished() === 0) this.#then();
    else if (this.#loop.now() >= this.#deadline) this.#onLate();
    else this.#timer.arm(LOOK_MS);
  }
}
