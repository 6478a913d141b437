/**
 * From a failed C call to an error that says which call, why, and on what.
 *
 * @module
 */

import { ErrnoError } from "../core/errno.ts";
import { lastErrno } from "./symbols.ts";

/** A C call that failed: an {@linkcode ErrnoError} that also names the call. */
export class SyscallError extends ErrnoError {
  override readonly name: string = "SyscallError";
  /** The C function, such as `"mmap"`. */
  readonly syscall: string;

  /** @param context What was being done, for the message: "Cannot <action>" */
  constructor(syscall: string, errno: number, context?: string) {
    super(errno, `${context ?? `Cannot ${syscall}`}: ${syscall} failed`);
    this.syscall = syscall;
  }
}

/**
 * Passes a C result through, or throws with errno when it is negative.
 *
 * @throws {SyscallError}
 */
export function check(
  result: number,
  syscall: string,
  context?: string,
): number {
  if (result < 0) throw new SyscallError(syscall, lastErrno(), context);
  return result;
}

const encoder = new TextEncoder();

/** A NUL-terminated C string. */
export function cString(text: string): Uint8Array<ArrayBuffer> {
  return encoder.encode(`${text}\0`);
}
