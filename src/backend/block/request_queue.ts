/**
 * A first-in, first-out queue that allocates only when it grows.
 *
 * @module
 */

/** A circular queue; doubles when it is full, and never shrinks. */
export class RequestQueue<T> {
  #items: (T | null)[] = [null, null, null, null];
  #head = 0;
  #length = 0;

  /** Number of those that wait. */
  get length(): number {
    return this.#length;
  }

  /** Appends. */
  push(item: T): void {
    if (this.#length === this.#items.length) this.#grow();
    const mask = this.#items.length - 1;
    this.#items[(this.#head + this.#length) & mask] = item;
    this.#length++;
  }

  /** The oldest but `i`; there are more than that. */
  at(i: number): T {
    return this.#items[(this.#head + i) & (this.#items.length - 1)]!;
  }

  /** Takes the oldest; null when there is none. */
  shift(): T | null {
    if (this.#length === 0) return null;
    const item = this.#items[this.#head]!;
    this.#items[this.#head] = null;
    this.#head = (this.#head + 1) & (this.#items.length - 1);
    this.#length--;
    return item;
  }

  #grow(): void {
    const old = this.#items;
    const items: (T | null)[] = [];
    for (let i = 0; i < old.length * 2; i++) {
      items.push(
        i < old.length ? old[(this.#head + i) & (old.length - 1)]! : null,
      );
    }
    this.#items = items;
    this.#head = 0;
  }
}
