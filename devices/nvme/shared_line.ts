/**
 * The interrupts of a controller whose queues several threads serve: messages go out from each, the INTA# line is up
 * while any of them wants it up.
 *
 * @module
 */

import type { Interrupts } from "../../src/pci/device.ts";
import type { SharedWords } from "./shared_words.ts";

/** At home, where the line is. */
export class HomeLine implements Interrupts {
  readonly #interrupts: Interrupts;
  readonly #words: SharedWords;
  #wanted = false;

  constructor(interrupts: Interrupts, words: SharedWords) {
    this.#interrupts = interrupts;
    this.#words = words;
  }

  get mode(): Interrupts["mode"] {
    return this.#interrupts.mode;
  }

  raise(vector: number): void {
    this.#interrupts.raise(vector);
  }

  setLevel(asserted: boolean): void {
    this.#wanted = asserted;
    this.update();
  }

  /** Looks at what the other threads want. */
  update(): void {
    this.#interrupts.setLevel(this.#wanted || this.#words.lines > 0);
  }
}

/** On another thread. */
export class TwinLine implements Interrupts {
  readonly #interrupts: Interrupts;
  readonly #words: SharedWords;
  readonly #changed: () => void;
  #wanted = false;

  /** @param changed Has home look */
  constructor(
    interrupts: Interrupts,
    words: SharedWords,
    changed: () => void,
  ) {
    this.#interrupts = interrupts;
    this.#words = words;
    this.#changed = changed;
  }

  get mode(): Interrupts["mode"] {
    return this.#interrupts.mode;
  }

  raise(vector: number): void {
    this.#interrupts.raise(vector);
  }

  setLevel(asserted: boolean): void {
    if (asserted === this.#wanted) return;
    this.#wanted = asserted;
    this.#words.changeLine(asserted);
    this.#changed();
  }
}
