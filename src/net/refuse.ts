/**
 * What a wrong option gets.
 *
 * @module
 */

import { Errno, ErrnoError } from "../errno.ts";

/**
 * Throws with one line that says what is wrong and what would be right.
 *
 * @throws {ErrnoError} EINVAL, always
 */
export function refuse(what: string, right: string): never {
  throw new ErrnoError(Errno.EINVAL, `Cannot use ${what}: ${right}`);
}
