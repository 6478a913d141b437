/**
 * What a wrong option of a back end gets.
 *
 * @module
 */

import { Errno, ErrnoError } from "./errno.ts";

/**
 * Throws with one line that says what is wrong and what would be right.
 *
 * @throws {ErrnoError} EINVAL, always
 */
export function refuse(what: string, right: string): never {
  throw new ErrnoError(Errno.EINVAL, `Cannot use ${what}: ${right}`);
}

/**
 * Checks a text that goes to the kernel, a library or a server.
 *
 * @param key The option, for the message
 * @param maxBytes The most it may have in UTF-8
 * @throws {ErrnoError} EINVAL for an empty one, a longer one, and one with control characters
 */
export function checkText(
  key: string,
  value: string,
  maxBytes: number,
): string {
  const length = new TextEncoder().encode(value).length;
  // deno-lint-ignore no-control-regex
  if (length === 0 || length > maxBytes || /[\0-\x1f\x7f]/.test(value)) {
    refuse(
      `${key}=${JSON.stringify(value)}`,
      `1 to ${maxBytes} bytes without control characters are allowed`,
    );
  }
  return value;
}
