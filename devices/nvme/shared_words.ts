/**
 * What the twins of a controller show each other without a call.
 *
 * @module
 */

/** Words after those of the queues. */
const Word = { LINES: 0, ERRORS: 1, INVALID_VALUE: 2, SIZE: 3 } as const;

/**
 * Words in memory that all threads of a controller see, after the doorbells: every word is changed by Atomics, and who
 * changes it then has the thread concerned look.
 */
export class SharedWords {
  /** The doorbell registers, numbered as they lie in the BAR: home stores what drivers write by message. */
  readonly doorbells: Uint32Array<ArrayBuffer>;
  /** Word q: submission queue q is gone, which home waits for. */
  readonly #ended: Int32Array<ArrayBuffer>;
  readonly #rest: Int32Array<ArrayBuffer>;

  /**
   * @param words As many as {@linkcode sharedWordCount} says
   * @param pairs Queue pairs, the admin queue's included
   */
  constructor(words: Int32Array<ArrayBuffer>, pairs: number) {
    const { buffer, byteOffset } = words;
    this.doorbells = new Uint32Array(buffer, byteOffset, pairs * 2);
    this.#ended = words.subarray(pairs * 2, pairs * 3);
    this.#rest = words.subarray(pairs * 3);
  }

  /** How many other threads want the INTA# line up. */
  get lines(): number {
    return Atomics.load(this.#rest, Word.LINES);
  }

  /** A thread wants the line up now, or does not any more. */
  changeLine(up: boolean): void {
    Atomics.add(this.#rest, Word.LINES, up ? 1 : -1);
  }

  /** How many commands have failed, on all threads. */
  get errors(): number {
    return Atomics.load(this.#rest, Word.ERRORS) >>> 0;
  }

  /** A command has failed. @returns Its number in the error log */
  nextError(): number {
    return (Atomics.add(this.#rest, Word.ERRORS, 1) + 1) >>> 0;
  }

  /** A driver wrote a doorbell value that cannot be. */
  reportInvalidValue(): void {
    Atomics.store(this.#rest, Word.INVALID_VALUE, 1);
  }

  /** Whether one did since the last call. */
  takeInvalidValue(): boolean {
    return Atomics.exchange(this.#rest, Word.INVALID_VALUE, 0) !== 0;
  }

  /** A submission queue that is being deleted has no command in flight any more. */
  reportEnded(qid: number): void {
    Atomics.store(this.#ended, qid, 1);
  }

  /** Whether that was reported since the last call. */
  takeEnded(qid: number): boolean {
    return Atomics.exchange(this.#ended, qid, 0) !== 0;
  }

  /** Nothing that was reported of queues counts any more. */
  forgetQueues(): void {
    this.#ended.fill(0);
    this.takeInvalidValue();
  }
}

/** How many words there are. @param pairs Queue pairs, the admin queue's included */
export function sharedWordCount(pairs: number): number {
  return pairs * 3 + Word.SIZE;
}
