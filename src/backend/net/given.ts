/**
 * What a back end gives to its successor on another thread.
 *
 * @module
 */

import { Epoll } from "../../os/mod.ts";

/** What all that is given has in common: plain data, good in this process only. */
export interface Given {
  readonly version: 1;
  /** Which back end gave it. */
  readonly kind: string;
}

/**
 * What a descriptor is watched for while frames are kept: errors and hang-ups cannot be masked, but with this they are
 * told once and not in every turn.
 */
export const PARKED_EVENTS: number = Epoll.ONESHOT;

/** Whether it was given by a back end of that kind. */
export function isGiven(given: unknown, kind: string): boolean {
  return typeof given === "object" && given !== null &&
    (given as Given).kind === kind;
}

/**
 * Takes what a predecessor gave.
 *
 * @throws {Error} When it is of another kind or version
 */
export function takeGiven<T extends Given>(
  given: unknown,
  kind: T["kind"],
): T {
  if (!isGiven(given, kind) || (given as Given).version !== 1) {
    throw new Error(
      `Cannot load a network of kind ${kind}: version 1 of that kind is wanted`,
    );
  }
  return given as T;
}
