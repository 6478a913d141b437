/**
 * Notification coalescing (virtio 1.3, section 5.1.6.5.9): fewer interrupts, later.
 *
 * @module
 */

import type { Counters } from "../../../src/core/counters.ts";
import type { BottomHalf, Loop, Timer } from "../../../src/loop/event_loop.ts";
import type { Virtqueue } from "../../../src/virtio/queue/queue.ts";
import { NetCounter } from "../counters.ts";

/** Limits at which a queue's driver is to be told. */
export interface CoalescingLimits {
  /** After so many packets; 0 after each. */
  readonly maxPackets: number;
  /** After so many microseconds; 0 at once. */
  readonly maxUsecs: number;
}

/** Every packet at once. */
export const NO_COALESCING: CoalescingLimits = { maxPackets: 0, maxUsecs: 0 };

/**
 * Passes the interrupts of one queue on, or holds them back for a while.
 *
 * ```text
 *   idle --packets--> counting --max_packets, max_usecs--> idle
 * ```
 * An interrupt that the driver asked for is delayed, never lost; one that it did not ask for is never made up.
 */
export class Notifier {
  readonly #loop: Loop;
  readonly #interrupt: (queue: Virtqueue) => void;
  readonly #counters: Counters | null;
  /** Made when it is first needed. */
  #timer: Timer | null = null;
  #limits = NO_COALESCING;
  #coalesces = false;
  #packets = 0;
  /** The queue whose driver waits for an interrupt. */
  #owed: Virtqueue | null = null;
  /** Interrupts in the loop's next turn; null when that is not wanted. */
  readonly #late: BottomHalf | null;

  /**
   * @param counters Where to count what is not raised, if anywhere
   * @param yields Whether interrupts let what the loop's next turn brings go first: for a queue of which the driver only
   * gets its buffers back, while the answer to what was in them may be there already
   */
  constructor(
    loop: Loop,
    interrupt: (queue: Virtqueue) => void,
    counters: Counters | null = null,
    yields: boolean = false,
  ) {
    this.#loop = loop;
    this.#late = yields ? loop.bottomHalf(() => this.#fire()) : null;
    this.#interrupt = interrupt;
    this.#counters = counters;
  }

  /** Limits in force. */
  get limits(): CoalescingLimits {
    return this.#limits;
  }

  /** Changes the limits; what has waited long enough by the new ones waits no longer. */
  setLimits(limits: CoalescingLimits): void {
    const { maxPackets, maxUsecs } = this.#limits;
    if (limits.maxPackets === maxPackets && limits.maxUsecs === maxUsecs) {
      return;
    }
    this.#limits = limits;
    this.#coalesces = limits.maxPackets > 0 && limits.maxUsecs > 0;
    if (this.#owed === null) return;
    if (!this.#coalesces || this.#packets >= limits.maxPackets) this.#fire();
    else this.#arm();
  }

  /**
   * Packets were published.
   *
   * @param wanted Whether the driver wants an interrupt for them, as Virtqueue.publish told
   */
  published(queue: Virtqueue, wanted: boolean, packets: number): void {
    if (!this.#coalesces) {
      if (wanted) this.#interruptSoon(queue);
      return;
    }
    const first = wanted && this.#owed === null;
    if (first) this.#owed = queue;
    else if (wanted) this.#counters?.add(NetCounter.coalescedInterrupts, 1);
    this.#packets += packets;
    if (this.#packets >= this.#limits.maxPackets) this.#fire();
    else if (first) this.#arm();
  }

  /** The interrupt that is held back, if there is one, goes out now. */
  flush(): void {
    this.#fire();
  }

  /**
   * The queue was taken away: nothing is owed any more.
   *
   * @param limits What is in force for the next one
   */
  reset(limits: CoalescingLimits): void {
    this.#timer?.cancel();
    this.#late?.cancel();
    this.#owed = null;
    this.#packets = 0;
    this.setLimits(limits);
  }

  /** Frees the timer. */
  close(): void {
    this.reset(NO_COALESCING);
    this.#timer?.close();
    this.#timer = null;
  }

  #interruptSoon(queue: Virtqueue): void {
    if (this.#late === null) return this.#interrupt(queue);
    if (this.#owed !== null) {
      this.#counters?.add(NetCounter.coalescedInterrupts, 1);
    }
    this.#owed = queue;
    this.#late.schedule();
  }

  #arm(): void {
    this.#timer ??= this.#loop.timer(() => this.#fire());
    this.#timer.arm(this.#limits.maxUsecs / 1000);
  }

  #fire(): void {
    this.#packets = 0;
    const queue = this.#owed;
    if (queue === null) return;
    this.#owed = null;
    this.#timer?.cancel();
    this.#late?.cancel();
    this.#interrupt(queue);
  }
}
