/**
 * Error of a wrong command line.
 *
 * @module
 */

/** A command line that makes no sense; the message says what would. Exit status 2. */
export class UsageError extends Error {
  override readonly name: string = "UsageError";
}
