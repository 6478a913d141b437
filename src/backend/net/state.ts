/**
 * Reading what back ends have saved.
 *
 * @module
 */

import { StateReader } from "../../core/state_reader.ts";

/** What all that is saved has in common; plain data. */
export interface NetBackendState {
  readonly version: 1;
  /** Which back end saved it. */
  readonly kind: string;
}

/** Whether a back end of that kind saved it. */
export function isOfKind(state: unknown, kind: string): boolean {
  return (state as NetBackendState | null)?.kind === kind;
}

/**
 * Takes what a back end has saved.
 *
 * @throws {ErrnoError} EINVAL when it is of another kind or version
 */
export function takeState<T extends NetBackendState>(
  state: unknown,
  kind: T["kind"],
): T {
  const reader = new StateReader(state, `a network of kind ${kind}`);
  reader.version(1);
  if (reader.text("kind") !== kind) throw reader.refused("it is of another");
  return state as T;
}
