/**
 * From posted completions to interrupts: one per completion queue and batch (NVM Express 1.4, section 7.5).
 *
 * @module
 */

import { bit } from "../../src/bits.ts";
import type { Interrupts } from "../../src/pci/device.ts";
import { NvmeCounter, type NvmeCounters } from "./counters.ts";
import type { CompletionQueue } from "./queue.ts";
import type { QueueSet } from "./queue_set.ts";

/**
 * Raises interrupts.
 *
 * With MSI-X a batch is a message. INTMS masks vectors of the other kinds: with the pin the line is up while an
 * unmasked queue holds completions that the driver has not consumed; with MSI a message that was masked is sent when
 * the mask is lifted and there is still something to consume.
 */
export class InterruptLines {
  readonly #interrupts: Interrupts;
  readonly #queues: QueueSet;
  readonly #counters: NvmeCounters;

  constructor(
    interrupts: Interrupts,
    queues: QueueSet,
    counters: NvmeCounters,
  ) {
    this.#interrupts = interrupts;
    this.#queues = queues;
    this.#counters = counters;
  }

  /**
   * Tells about what was posted.
   *
   * @param mask INTMS
   */
  flush(mask: number): void {
    const { mode } = this.#interrupts;
    const queues = this.#queues.completion;
    if (mode === "intx") return this.#updateLine(queues, mask);
    for (let i = 0; i < queues.length; i++) {
      const cq = queues[i]!;
      if (!cq.untold) continue;
      if (mode === "msi" && isMasked(mask, cq)) continue;
      cq.untold = false;
      if (cq.interrupts) this.#raise(cq.vector);
    }
  }

  /** Whether the line follows what drivers consume, so that they must tell. */
  get usesPin(): boolean {
    return this.#interrupts.mode === "intx";
  }

  /** The driver has written INTMS or INTMC. */
  maskChanged(mask: number): void {
    // What is untold and no longer masked is told now; MSI-X knows no such mask.
    if (this.#interrupts.mode !== "msix") this.flush(mask);
  }

  /** Nothing is to be told any more. */
  reset(): void {
    this.#interrupts.setLevel(false);
  }

  #raise(vector: number): void {
    this.#counters.add(NvmeCounter.interrupts, 1);
    this.#interrupts.raise(vector);
  }

  #updateLine(queues: readonly CompletionQueue[], mask: number): void {
    let level = false;
    for (let i = 0; i < queues.length; i++) {
      const cq = queues[i]!;
      if (!cq.interrupts) continue;
      if (cq.occupied > 0) this.#queues.watchHead(cq);
      if (cq.untold && !isMasked(mask, cq)) {
        cq.untold = false;
        this.#counters.add(NvmeCounter.interrupts, 1);
      }
      if (cq.occupied > 0 && !isMasked(mask, cq)) level = true;
    }
    this.#interrupts.setLevel(level);
  }
}

/** Vectors from 32 on have no bit in the mask. */
function isMasked(mask: number, cq: CompletionQueue): boolean {
  return cq.vector < 32 && bit(mask, cq.vector);
}
