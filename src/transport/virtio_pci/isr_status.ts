/**
 * Interrupts of a virtio device on PCI: MSI-X vectors, or the ISR status and INTA# (virtio 1.3, section 4.1.4.5).
 *
 * @module
 */

import type { Interrupts } from "../../pci/context.ts";
import type { CommonConfig } from "./common_config.ts";
import { VIRTIO_MSI_NO_VECTOR, VIRTIO_PCI_ISR } from "../../virtio/defs.ts";

/** Vectors that a driver has chosen. */
type Vectors = Pick<CommonConfig, "queueVector" | "configVector">;

/** The ISR status register, and the interrupts that are raised with it or instead of it. */
export class IsrStatus {
  readonly #interrupts: Interrupts;
  readonly #vectors: Vectors;
  #value = 0;

  constructor(interrupts: Interrupts, vectors: Vectors) {
    this.#interrupts = interrupts;
    this.#vectors = vectors;
  }

  /** Value of the register; looking at it changes nothing. */
  get value(): number {
    return this.#value;
  }

  /** Reading the ISR status clears it and deasserts INTA# (section 4.1.4.5). */
  read(): number {
    const value = this.#value;
    this.reset();
    return value;
  }

  /** Raises the interrupt of a queue. */
  notifyUsed(queue: number): void {
    const interrupts = this.#interrupts;
    if (interrupts.mode !== "msix") return this.raiseLine();
    const vector = this.#vectors.queueVector(queue);
    if (vector !== VIRTIO_MSI_NO_VECTOR) interrupts.raise(vector);
  }

  /** Raises the interrupt of the configuration. */
  notifyConfig(): void {
    const interrupts = this.#interrupts;
    // Set whatever the kind of interrupt is (4.1.4.5.1).
    this.#value |= VIRTIO_PCI_ISR.CONFIG;
    if (interrupts.mode !== "msix") return interrupts.setLevel(true);
    const vector = this.#vectors.configVector;
    if (vector !== VIRTIO_MSI_NO_VECTOR) interrupts.raise(vector);
  }

  /** Raises the interrupt of all queues, where it is not by vector. */
  raiseLine(): void {
    this.#value |= VIRTIO_PCI_ISR.QUEUE;
    this.#interrupts.setLevel(true);
  }

  /** Nothing is pending any more. */
  reset(): void {
    if (this.#value === 0) return;
    this.#value = 0;
    this.#interrupts.setLevel(false);
  }

  /** Takes a saved {@linkcode value} over. The level of INTA#, as all interrupts, is kept by whoever hands them to us. */
  load(value: number): void {
    this.#value = value;
  }
}
