/**
 * Descriptors by name, on their way from one owner to another.
 *
 * @module
 */

import { dupFd, Fd } from "./fd.ts";

/** A state, and the descriptors that go with it. */
export interface Saved<State> {
  /** Plain data. */
  readonly state: State;
  /** Descriptors that belong to it. */
  readonly bag: ResourceBag;
}

/**
 * Named descriptors of something that goes on elsewhere: on another thread or in another process.
 *
 * It holds duplicates of what is put, and gives duplicates of what it holds. So whoever put something closes it as ever,
 * and whoever took something in vain likewise, while what is in the bag is there for another attempt.
 */
export class ResourceBag implements Disposable {
  readonly #fds: Map<string, Fd>;
  readonly #prefix: string;

  private constructor(fds: Map<string, Fd>, prefix: string) {
    this.#fds = fds;
    this.#prefix = prefix;
  }

  /** A bag of descriptors by name, owned from here on. */
  static of(numbers: Readonly<Record<string, number>> = {}): ResourceBag {
    const fds = Object.entries(numbers)
      .map(([name, number]): [string, Fd] => [name, new Fd(number)]);
    return new ResourceBag(new Map(fds), "");
  }

  /** A part of the bag, in which names begin anew. */
  at(part: string): ResourceBag {
    return new ResourceBag(this.#fds, `${this.#prefix}${part}.`);
  }

  /**
   * Keeps a duplicate of a descriptor.
   *
   * @throws {import("./errors.ts").SyscallError} EMFILE and the like
   */
  put(name: string, fd: number): void {
    const key = this.#prefix + name;
    this.#fds.get(key)?.close();
    this.#fds.set(key, dupFd(fd));
  }

  /** True if there is a descriptor of that name. */
  has(name: string): boolean {
    return this.#fds.has(this.#prefix + name);
  }

  /**
   * A duplicate of a descriptor.
   *
   * @throws {Error} When there is none of that name
   * @throws {import("./errors.ts").SyscallError} EMFILE and the like
   */
  take(name: string): Fd {
    const fd = this.#fds.get(this.#prefix + name);
    if (fd === undefined) {
      throw new Error(
        `Cannot go on: ${this.#prefix}${name} was not handed over`,
      );
    }
    return dupFd(fd.number);
  }

  /** Names and numbers of all descriptors, which stay the bag's. */
  entries(): readonly (readonly [string, number])[] {
    return [...this.#fds].map(([name, fd]) => [name, fd.number]);
  }

  /** Gives the descriptors away, by name; the bag is empty afterwards. */
  release(): Record<string, number> {
    const numbers: Record<string, number> = {};
    for (const [name, fd] of this.#fds) numbers[name] = fd.release();
    this.#fds.clear();
    return numbers;
  }

  /** Closes what it holds. */
  [Symbol.dispose](): void {
    for (const fd of this.#fds.values()) fd.close();
    this.#fds.clear();
  }
}
