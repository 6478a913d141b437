/**
 * Words in memory that all threads of a controller see.
 *
 * @module
 */

/** Words for each doorbell. */
const DOORBELL_WORDS = 4;
/** Words after those. */
const Word = { ERRORS: 0, LINES: 1, SIZE: 2 } as const;

/** Number of words. @param pairs Queue pairs, the admin queue's included */
export function sharedWordCount(pairs: number): number {
  return pairs * 2 * DOORBELL_WORDS + Word.SIZE;
}

/**
 * The words of a controller: the doorbells, numbered as they lie in the BAR, and what is counted together. Registers and
 * counts are changed by Atomics; the rest belongs to whichever thread serves the queue.
 */
export class SharedWords {
  /** True when clients write the doorbell registers through a mapping. */
  readonly mapped: boolean;
  /** The doorbell registers. */
  doorbells!: Uint32Array<ArrayBuffer>;
  /** Value that each shadow doorbell was set to. */
  initial!: Uint32Array<ArrayBuffer>;
  /** 1 once it has had another value. */
  inUse!: Uint32Array<ArrayBuffer>;
  /** Value that each EventIdx was set to. */
  armed!: Uint32Array<ArrayBuffer>;
  readonly #page: Uint8Array<ArrayBuffer> | null;
  readonly #count: number;
  #words!: Int32Array<ArrayBuffer>;
  #counts!: Int32Array<ArrayBuffer>;

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
    this.#page = page;
    this.#count = pairs * 2;
    this.#use(words);
  }

  /** Number of threads that want the INTA# line up. */
  get lines(): number {
    return Atomics.load(this.#counts, Word.LINES);
  }

  /** A thread wants the line up now, or does not any more. */
  changeLine(up: boolean): void {
    Atomics.add(this.#counts, Word.LINES, up ? 1 : -1);
  }

  /** Number of errors on all threads. */
  get errors(): number {
    return Atomics.load(this.#counts, Word.ERRORS) >>> 0;
  }

  set errors(count: number) {
    Atomics.store(this.#counts, Word.ERRORS, count);
  }

  /** There is one more. @returns Its number */
  nextError(): number {
    return (Atomics.add(this.#counts, Word.ERRORS, 1) + 1) >>> 0;
  }

  /** Goes on in other memory, of our own unless told, while no other thread uses either. */
  moveTo(
    words: Int32Array<ArrayBuffer> = new Int32Array(this.#words.length),
  ): void {
    words.set(this.#words);
    this.#use(words);
  }

  #use(words: Int32Array<ArrayBuffer>): void {
    const { buffer, byteOffset } = words;
    const part = (index: number) =>
      new Uint32Array(
        buffer,
        byteOffset + index * this.#count * 4,
        this.#count,
      );
    this.#words = words;
    this.doorbells = this.#page === null
      ? part(0)
      : new Uint32Array(this.#page.buffer, this.#page.byteOffset, this.#count);
    this.initial = part(1);
    this.inUse = part(2);
    this.armed = part(3);
    this.#counts = words.subarray(this.#count * DOORBELL_WORDS);
  }
}
