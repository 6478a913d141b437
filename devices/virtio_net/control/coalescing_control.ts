/**
 * Notification coalescing as drivers set it (virtio 1.3, section 5.1.6.5.9).
 *
 * @module
 */

import { type CoalescingLimits, NO_COALESCING } from "../queue/coalescing.ts";
import type { CoalescingState } from "../state.ts";

/** Limits for all receive queues, all transmit queues, and queues by number. */
export class CoalescingControl {
  /** By queue number. */
  readonly #limits: CoalescingLimits[];
  /** Limits that all receive queues, and all transmit queues, were given last. */
  readonly #common: [CoalescingLimits, CoalescingLimits] = [
    NO_COALESCING,
    NO_COALESCING,
  ];

  /** @param queues How many there are: receive, transmit, receive, … */
  constructor(queues: number) {
    this.#limits = new Array(queues).fill(NO_COALESCING);
  }

  /** Back to none, everywhere. */
  reset(): void {
    this.#common.fill(NO_COALESCING);
    this.#limits.fill(NO_COALESCING);
  }

  /** A queue begins anew with what all of its kind have. */
  resetQueue(queueIndex: number): void {
    this.#limits[queueIndex] = this.#common[queueIndex & 1]!;
  }

  /** Limits of a queue. */
  of(queueIndex: number): CoalescingLimits {
    return this.#limits[queueIndex]!;
  }

  /** Sets those of a queue. */
  set(queueIndex: number, limits: CoalescingLimits): void {
    this.#limits[queueIndex] = limits;
  }

  /** Sets those of all receive queues (0) or all transmit queues (1). */
  setAll(kind: 0 | 1, limits: CoalescingLimits): void {
    this.#common[kind] = limits;
    for (let i = kind; i < this.#limits.length; i += 2) {
      this.#limits[i] = limits;
    }
  }

  /** All limits, to be saved. */
  save(): CoalescingState {
    return {
      rx: this.#common[0],
      tx: this.#common[1],
      queues: [...this.#limits],
    };
  }

  /** Takes over what {@linkcode save} gave, of as many queues. */
  load(state: CoalescingState): void {
    this.#common[0] = state.rx;
    this.#common[1] = state.tx;
    this.#limits.splice(0, Infinity, ...state.queues);
  }
}
