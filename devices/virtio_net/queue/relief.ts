/**
 * Time for a driver that cannot keep up with the frames that come.
 *
 * A guest that is offered more than it can handle spends all its time on taking frames in and none on the programs that
 * they are for, which lose them in the end (Mogul and Ramakrishnan, "Eliminating Receive Livelock in an Interrupt-driven
 * Kernel", 1997). What will be lost is better lost early, in the back end, where it costs the guest nothing.
 *
 * @module
 */

import type { Counters } from "../../../src/core/counters.ts";
import type { Loop, Timer } from "../../../src/loop/event_loop.ts";
import { NetCounter } from "../counters.ts";

/** So many times more must buffers have run out than frames for the driver to count as overloaded. */
const OVERLOADED = 4;
/** An overload is not forgotten faster than it was noticed. */
const SCORE_MAX = 2 * OVERLOADED;

/**
 * Frames longer than that on average are a bulk transfer, whose sender waits for answers: it would be slowed down, and
 * what a guest does with its bytes costs more than taking them in.
 */
const SMALL_FRAME_BYTES = 512;

/** Rest in proportion to the time before: what programs do with a frame costs a guest more than taking it in. */
const REST_RATIO = 1.5;

/** Parts of a {@linkcode Relief}. */
export interface ReliefOptions {
  readonly loop: Loop;
  readonly counters: Counters;
  /** The longest rest in milliseconds; 0 for none ever. */
  readonly longestMs: number;
  /** Called when a rest is over. */
  readonly resume: () => void;
}

/**
 * Tells when a driver is to be left alone, and for how long: in proportion to the time that it took to use up its
 * buffers and add others, so that a fast guest rests for microseconds and a slow one for milliseconds.
 *
 * ```text
 *   receiving --buffers run out--> dry --buffers are added--> receiving
 *                                   ╰─ overloaded: buffers are added ─> resting --a while--> receiving
 * ```
 */
export class Relief {
  readonly #options: ReliefOptions;
  /** Made when it is first needed. */
  #timer: Timer | null = null;
  #resting = false;
  #score = 0;
  /** Frames and bytes that the driver had been given when its buffers last ran out. */
  #packets = 0;
  #bytes = 0;
  /** Since when the driver has had frames without a break. */
  #sinceMs = 0;

  constructor(options: ReliefOptions) {
    this.#options = options;
  }

  /** Reception goes on. */
  begin(): void {
    this.cancel();
    this.#sinceMs = this.#options.loop.now();
  }

  /** There are no more frames: the driver keeps up. */
  keptUp(): void {
    if (this.#score === 0) return;
    this.#score--;
    this.#sinceMs = this.#options.loop.now();
  }

  /**
   * There are no more buffers, and frames that may be waiting.
   *
   * @param packets How many frames the driver has been given in all
   * @param bytes Their bytes
   */
  ranDry(packets: number, bytes: number): void {
    const count = packets - this.#packets;
    // Without any, the driver gives too few at a time.
    const small = count > 0 &&
      bytes - this.#bytes <= count * SMALL_FRAME_BYTES;
    this.#packets = packets;
    this.#bytes = bytes;
    if (!small) this.keptUp();
    else if (this.#score < SCORE_MAX) this.#score++;
  }

  /**
   * The driver has added buffers.
   *
   * @returns Whether it is left alone all the same, until `resume` is called
   */
  rests(): boolean {
    if (this.#resting) return true;
    const { loop, counters, longestMs, resume } = this.#options;
    if (longestMs === 0 || this.#score < OVERLOADED) return false;
    const busyMs = loop.now() - this.#sinceMs;
    this.#resting = true;
    this.#timer ??= loop.timer(resume);
    this.#timer.arm(Math.min(busyMs * REST_RATIO, longestMs));
    counters.add(NetCounter.rxRests, 1);
    return true;
  }

  /** Ends a rest without a call of `resume`. */
  cancel(): void {
    this.#resting = false;
    this.#timer?.cancel();
  }

  /** The queue was taken away. */
  reset(): void {
    this.cancel();
    this.#score = 0;
  }
}
