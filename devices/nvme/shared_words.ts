/**
 * Words in memory that all threads of a controller see.
 *
 * @module
 */

/** Words after the doorbell registers. */
const Word = { ERRORS: 0, LINES: 1, SIZE: 2 } as const;

/** How many words there are. @param pairs Queue pairs, the admin queue's included */
export function sharedWordCount(pairs: number): number {
  return pairs * 2 + Word.SIZE;
}

/** The words of a controller; every word is changed by Atomics. */
export class SharedWords {
  /** Whether clients write the doorbell registers without us. */
  readonly mapped: boolean;
  #doorbells: Uint32Array<ArrayBuffer>;
  #words: Int32Array<ArrayBuffer>;
  readonly #count: number;

  /**
   * @param pairs Queue pairs, the admin queue's included
   * @param page The doorbell registers where clients map them; null where they are among the words
   * @param words As many as {@linkcode sharedWordCount} says; memory of our own without
   */
  constructor(
    pairs: number,
    page: Uint8Array<ArrayBuffer> | null,
    words: Int32Array<ArrayBuffer> = new Int32Array(sharedWordCount(pairs)),
  ) {
    this.mapped = page !== null;
    this.#count = pairs * 2;
    this.#words = words;
    this.#doorbells = registersIn(page ?? words, this.#count);
  }

  /** The doorbell registers, numbered as they lie in the BAR. */
  get doorbells(): Uint32Array<ArrayBuffer> {
    return this.#doorbells;
  }

  /** How many threads want the INTA# line up. */
  get lines(): number {
    return Atomics.load(this.#words, this.#count + Word.LINES);
  }

  /** A thread wants the line up now, or does not any more. */
  changeLine(up: boolean): void {
    Atomics.add(this.#words, this.#count + Word.LINES, up ? 1 : -1);
  }

  /** How many errors there were, on all threads. */
  get errors(): number {
    return Atomics.load(this.#words, this.#count + Word.ERRORS) >>> 0;
  }

  set errors(count: number) {
    Atomics.store(this.#words, this.#count + Word.ERRORS, count);
  }

  /** There is one more. @returns Its number */
  nextError(): number {
    return (Atomics.add(this.#words, this.#count + Word.ERRORS, 1) + 1) >>> 0;
  }

  /** Goes on in other memory, of our own unless told, while no other thread uses either. */
  moveTo(
    words: Int32Array<ArrayBuffer> = new Int32Array(this.#words.length),
  ): void {
    words.set(this.#words);
    this.#words = words;
    if (!this.mapped) this.#doorbells = registersIn(words, this.#count);
  }
}

function registersIn(
  { buffer, byteOffset }: Uint8Array<ArrayBuffer> | Int32Array<ArrayBuffer>,
  count: number,
): Uint32Array<ArrayBuffer> {
  return new Uint32Array(buffer, byteOffset, count);
}
