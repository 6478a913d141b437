/**
 * Reads saved state: plain data that someone kept for a while and that must be what it was.
 *
 * @module
 */

import { Errno, ErrnoError } from "./errno.ts";

/** One structure of a saved state, read field by field; what is missing or cannot be is refused. */
export class StateReader {
  readonly #what: string;
  readonly #fields: Readonly<Record<string, unknown>>;

  /**
   * Begins to read a structure.
   *
   * @param what Whose state it is, for messages, such as `queue 3`
   * @throws {ErrnoError} EINVAL when it is no structure at all
   */
  constructor(state: unknown, what: string) {
    this.#what = what;
    if (typeof state !== "object" || state === null || Array.isArray(state)) {
      throw this.refused("it is no saved state");
    }
    this.#fields = state as Readonly<Record<string, unknown>>;
  }

  /** The structure itself. */
  get fields(): Readonly<Record<string, unknown>> {
    return this.#fields;
  }

  /** A field as it is. */
  value(name: string): unknown {
    if (!Object.hasOwn(this.#fields, name)) {
      throw this.refused(`its state has no ${name}`);
    }
    return this.#fields[name];
  }

  /** An integer from 0 to `max`. */
  integer(name: string, max: number): number {
    return this.#integer(name, this.value(name), max);
  }

  /** A number from 0 on, whole or not. */
  number(name: string): number {
    const value = this.value(name);
    if (typeof value !== "number" || !Number.isFinite(value) || value < 0) {
      throw this.#wrong(name);
    }
    return value;
  }

  /** A truth value. */
  flag(name: string): boolean {
    const value = this.value(name);
    if (typeof value !== "boolean") throw this.#wrong(name);
    return value;
  }

  /** A text. */
  text(name: string): string {
    const value = this.value(name);
    if (typeof value !== "string") throw this.#wrong(name);
    return value;
  }

  /** A text, or null. */
  textOrNull(name: string): string | null {
    return this.value(name) === null ? null : this.text(name);
  }

  /**
   * A list.
   *
   * @param length How many elements it must have; any number when left out
   */
  list(name: string, length?: number): readonly unknown[] {
    const value = this.value(name);
    if (!Array.isArray(value)) throw this.#wrong(name);
    if (length !== undefined && value.length !== length) {
      throw this.refused(
        `its state has ${value.length} of ${name}, ${length} are wanted`,
      );
    }
    return value;
  }

  /** A structure inside it. */
  part(name: string): StateReader {
    return new StateReader(this.value(name), `${name} of ${this.#what}`);
  }

  /** A structure inside it, read, or null. */
  partOrNull<T>(name: string, read: (part: StateReader) => T): T | null {
    return this.value(name) === null ? null : read(this.part(name));
  }

  /** A list of structures, read; see {@linkcode StateReader.list}. */
  parts<T>(
    name: string,
    read: (part: StateReader) => T,
    length?: number,
  ): readonly T[] {
    return this.list(name, length).map((item) =>
      read(new StateReader(item, `${name} of ${this.#what}`))
    );
  }

  /** A list of integers from 0 to `max`. */
  integers(name: string, max: number, length?: number): readonly number[] {
    return this.list(name, length).map((item) =>
      this.#integer(name, item, max)
    );
  }

  /** A list of texts. */
  texts(name: string): readonly string[] {
    return this.list(name).map((item) => {
      if (typeof item !== "string") throw this.#wrong(name);
      return item;
    });
  }

  /**
   * Bytes.
   *
   * @param lengthBytes How many there must be; any number when left out
   */
  bytes(name: string, lengthBytes?: number): Uint8Array<ArrayBuffer> {
    const value = this.value(name);
    if (!(value instanceof Uint8Array)) throw this.#wrong(name);
    if (lengthBytes !== undefined && value.length !== lengthBytes) {
      throw this.refused(
        `its ${name} has ${value.length} bytes, ${lengthBytes} belong there`,
      );
    }
    return value as Uint8Array<ArrayBuffer>;
  }

  /** A list of bytes, any number in each. */
  byteArrays(name: string): readonly Uint8Array<ArrayBuffer>[] {
    return this.list(name).map((item) => {
      if (!(item instanceof Uint8Array)) throw this.#wrong(name);
      return item as Uint8Array<ArrayBuffer>;
    });
  }

  /** The error for a state that is not to be loaded. */
  refused(reason: string): ErrnoError {
    return new ErrnoError(Errno.EINVAL, `Cannot load ${this.#what}: ${reason}`);
  }

  #integer(name: string, value: unknown, max: number): number {
    if (
      typeof value !== "number" || !Number.isInteger(value) || value < 0 ||
      value > max
    ) throw this.#wrong(name);
    return value;
  }

  #wrong(name: string): ErrnoError {
    return this.refused(`its ${name} cannot be`);
  }
}
