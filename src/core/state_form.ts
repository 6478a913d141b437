/**
 * Saved states, and how those of older versions are read.
 *
 * @module
 */

import { StateReader } from "./state_reader.ts";

/** State of a device, or of a part of one that others may replace. Plain data. */
export interface DeviceState<Body = unknown> {
  /** Name of its {@linkcode StateForm}. */
  readonly kind: string;
  /** Version of the body, from 1. */
  readonly version: number;
  /** All there is to know, by the schema of that version. */
  readonly body: Body;
}

/** Makes a body of the next version of one; plain data both. */
export type StateUpgrade = (
  body: Readonly<Record<string, unknown>>,
) => Readonly<Record<string, unknown>>;

/** Form of the states of one kind: written in its last version, and read in every one. */
export class StateForm<Body extends object> {
  /** Name that its states are labelled with. */
  readonly kind: string;
  readonly #what: string;
  readonly #upgrades: readonly StateUpgrade[];

  /**
   * A form, of version 1 without upgrades.
   *
   * @param what Whose state it is, for messages
   * @param upgrades From version 1 to 2, from 2 to 3, and so on
   */
  constructor(
    kind: string,
    what: string,
    upgrades: readonly StateUpgrade[] = [],
  ) {
    this.kind = kind;
    this.#what = what;
    this.#upgrades = upgrades;
  }

  /** Version that is written. */
  get version(): number {
    return this.#upgrades.length + 1;
  }

  /** Labels a body. */
  write(body: Body): DeviceState<Body> {
    return { kind: this.kind, version: this.version, body };
  }

  /** True for a state of this kind, whatever its version. */
  matches(state: unknown): boolean {
    return typeof state === "object" && state !== null &&
      (state as Partial<DeviceState>).kind === this.kind;
  }

  /**
   * Begins to read a state.
   *
   * @returns Its body, in the last version
   * @throws {import("./errno.ts").ErrnoError} EINVAL when it is of another kind, or of a version that is not known
   */
  read(state: unknown): StateReader {
    const label = new StateReader(state, this.#what);
    const kind = label.text("kind");
    if (kind !== this.kind) {
      throw label.refused(`its state is of ${kind}, not of ${this.kind}`);
    }
    const version = label.integer("version", Number.MAX_SAFE_INTEGER);
    if (version < 1 || version > this.version) {
      const known = this.version === 1 ? "1" : `1 to ${this.version}`;
      throw label.refused(
        `its state has version ${version}, ${known} can be read`,
      );
    }
    let body = label.value("body");
    for (const upgrade of this.#upgrades.slice(version - 1)) {
      body = upgrade(new StateReader(body, this.#what).fields);
    }
    return new StateReader(body, this.#what);
  }
}
