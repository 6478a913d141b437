/**
 * From posted completions to interrupts: one per completion queue and batch (NVM Express 1.4, section 7.5), or fewer
 * where the driver has asked for that (sections 5.21.1.8 and 5.21.1.9).
 *
 * @module
 */

import type { Counters } from "../../../src/core/counters.ts";
import { bit } from "../../../src/core/bits.ts";
import type { Loop, Timer } from "../../../src/loop/event_loop.ts";
import type { Interrupts } from "../../../src/pci/context.ts";
import { NvmeCounter } from "../counters.ts";
import type { QueueFeatures } from "../admin/features.ts";
import type { CompletionQueue } from "./queue.ts";
import type { SharedWords } from "../threads/shared_words.ts";
import type { QueueSet } from "./queue_set.ts";

/** The only vector of the pin and of MSI. */
const SHARED_VECTOR = 0;

/** Parts of {@linkcode InterruptLines}. */
export interface InterruptLinesOptions {
  readonly interrupts: Pick<Interrupts, "mode" | "raise">;
  readonly loop: Loop;
  readonly words: SharedWords;
  readonly queues: QueueSet;
  readonly counters: Counters;
  /** Number of vectors. */
  readonly vectors: number;
  /** Completions have waited long enough: {@linkcode InterruptLines.flush} is to be called. */
  readonly wake: () => void;
  /** The level of the INTA# line that this thread wants may have changed, in the words. */
  readonly onLine: () => void;
}

/**
 * Raises interrupts.
 *
 * With MSI-X a batch is a message. The pin and MSI are one vector for all queues, whatever vector a queue was created
 * with, and bit 0 of INTMS masks it: with the pin the line is up while a queue holds completions that it told about and
 * that the driver has not consumed; with MSI a message that was masked is sent when the mask is lifted and there is
 * still something to consume.
 *
 * With interrupt coalescing a completion waits until its vector has as many as the threshold says, or until the time is
 * over. The time is taken across all vectors, as the standard allows: one timer runs while anything waits, and is left
 * running when a threshold was reached meanwhile, since stopping it for each batch would cost more than it spares. So a
 * completion is never told later than it should be, but may be told sooner. Completions of the admin queue and of commands
 * that failed do not wait, and what the driver has consumed by itself needs no interrupt.
 */
export class InterruptLines {
  readonly #options: InterruptLinesOptions;
  /** To be set before anything is told. */
  features!: QueueFeatures;
  /** By vector: completions that wait to be told. */
  readonly #waiting: Uint32Array<ArrayBuffer>;
  readonly #timer: Timer;
  #armed = false;
  /** True when nothing may wait any longer. */
  #due = false;
  /** Level of the INTA# line that this thread wants; null when that is to be said anew. */
  #isUp: boolean | null = null;

  constructor(options: InterruptLinesOptions) {
    this.#options = options;
    this.#waiting = new Uint32Array(options.vectors);
    this.#timer = options.loop.timer(() => {
      this.#armed = false;
      this.hurry();
    });
  }

  /**
   * Tells about what was posted.
   *
   * @param mask INTMS
   */
  flush(mask: number): void {
    const { queues, interrupts: { mode } } = this.#options;
    if (this.features.coalescedEntries > 0) this.#countWaiting();
    const masked = mode !== "msix" && bit(mask, SHARED_VECTOR);
    const kept = mode === "intx"
      ? this.#updateLine(queues.completion, masked)
      : this.#sendMessages(queues.completion, masked);
    this.#due = false;
    if (!kept || this.#armed) return;
    this.#armed = true;
    this.#timer.arm(this.features.coalescingMs);
  }

  /** True with the INTA# line, which follows what drivers consume, so that they must tell. */
  get usesPin(): boolean {
    return this.#options.interrupts.mode === "intx";
  }

  /** The driver has written INTMS or INTMC. */
  maskChanged(mask: number): void {
    // What is untold and no longer masked is told now; MSI-X knows no such mask.
    if (this.#options.interrupts.mode !== "msix") this.flush(mask);
  }

  /** Has everything told soon that waits. */
  hurry(): void {
    this.#due = true;
    this.#options.wake();
  }

  /** Nothing is to be told any more. */
  reset(): void {
    this.#timer.cancel();
    this.#armed = this.#due = false;
    this.#setLevel(false);
  }

  /** Forgets the level of the INTA# line that this thread wanted. */
  forget(): void {
    if (this.#isUp === true) this.#options.words.changeLine(false);
    this.#isUp = null;
  }

  /** Wants nothing any more. */
  close(): void {
    this.#timer.close();
    this.forget();
  }

  /** @returns True when completions are kept for later */
  #sendMessages(
    queues: readonly CompletionQueue[],
    masked: boolean,
  ): boolean {
    if (masked) return false;
    let kept = false;
    for (let i = 0; i < queues.length; i++) {
      const cq = queues[i]!;
      if (cq.untold === 0) continue;
      if (this.#keeps(cq)) {
        kept = true;
        continue;
      }
      const told = cq.untold;
      cq.told();
      if (cq.interrupts) this.#raise(cq.vector, told);
    }
    return kept;
  }

  #raise(vector: number, completions: number): void {
    this.#count(completions);
    const { interrupts } = this.#options;
    interrupts.raise(interrupts.mode === "msi" ? SHARED_VECTOR : vector);
  }

  #setLevel(up: boolean): void {
    if (up === this.#isUp) return;
    if (up || this.#isUp === true) this.#options.words.changeLine(up);
    this.#isUp = up;
    this.#options.onLine();
  }

  #count(completions: number): void {
    const { counters } = this.#options;
    counters.add(NvmeCounter.interrupts, 1);
    counters.add(NvmeCounter.coalescedInterrupts, completions - 1);
  }

  /** @returns True when completions are kept for later */
  #updateLine(queues: readonly CompletionQueue[], masked: boolean): boolean {
    let level = false;
    let anyKept = false;
    for (let i = 0; i < queues.length; i++) {
      const cq = queues[i]!;
      if (!cq.interrupts) continue;
      if (cq.occupied > 0) this.#options.queues.watchHead(cq);
      if (masked) continue;
      const kept = cq.untold > 0 && this.#keeps(cq);
      if (kept) anyKept = true;
      else if (cq.untold > 0) {
        this.#count(cq.untold);
        cq.told();
      }
      if (cq.occupied > (kept ? cq.untold : 0)) level = true;
    }
    this.#setLevel(level);
    return anyKept;
  }

  /** Counts what waits, by vector: the threshold is about vectors, which queues may share. */
  #countWaiting(): void {
    const { queues } = this.#options;
    const { completion } = queues;
    this.#waiting.fill(0);
    for (let i = 0; i < completion.length; i++) {
      const cq = completion[i]!;
      if (cq.untold === 0 || !this.#coalesces(cq)) continue;
      queues.updateHead(cq);
      if (cq.occupied === 0) cq.told();
      else if (cq.untold > cq.occupied) cq.untold = cq.occupied;
      this.#waiting[cq.vector] = this.#waiting[cq.vector]! + cq.untold;
    }
  }

  #coalesces(cq: CompletionQueue): boolean {
    return cq.qid !== 0 && cq.interrupts &&
      this.features.coalesces[cq.vector]!;
  }

  /** Tells whether the completions of a queue wait for more, or for the time to pass. */
  #keeps(cq: CompletionQueue): boolean {
    const { coalescedEntries } = this.features;
    return coalescedEntries > 0 && !this.#due && !cq.urgent &&
      this.#coalesces(cq) && this.#waiting[cq.vector]! < coalescedEntries;
  }
}
