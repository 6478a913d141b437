/**
 * Those who are told before everything on a loop is closed.
 *
 * @module
 */

/** Callbacks of {@linkcode Loop.beforeClose}. */
export class Closing {
  readonly #begins = new Set<() => void>();
  readonly #onError: (error: unknown) => void;

  /** @param onError Called with what a callback threw */
  constructor(onError: (error: unknown) => void) {
    this.#onError = onError;
  }

  /** Registers one, until it is disposed of. */
  add(begin: () => void): Disposable {
    // A function of its own, so that two of one callback are two.
    const entry = () => begin();
    this.#begins.add(entry);
    return { [Symbol.dispose]: () => this.#begins.delete(entry) };
  }

  /** Calls all, though others throw. */
  tell(): void {
    for (const begin of this.#begins) {
      try {
        begin();
      } catch (error) {
        this.#onError(error);
      }
    }
  }
}
