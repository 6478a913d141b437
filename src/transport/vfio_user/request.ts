/**
 * Request as a command handler sees it, and the means of answering.
 *
 * @module
 */

import { Errno, ErrnoError } from "../../core/errno.ts";
import type { FdList } from "./fd_list.ts";

/**
 * The command at hand. One object is reused for every command of a connection.
 *
 * A handler reads its payload, writes the reply's payload and returns the length of that in bytes. Handlers of the
 * control path throw {@linkcode ErrnoError}; those of the data path return −errno.
 */
export interface Request {
  /** Payload of the request. */
  in: DataView<ArrayBuffer>;
  /** Offset of the payload. */
  at: number;
  /** Length of the payload in bytes. */
  lengthBytes: number;
  /** Descriptors that came along; those not taken are closed afterwards. */
  fds: FdList;
  /** Payload of the reply. */
  readonly out: DataView<ArrayBuffer>;
  /** Offset of the reply's payload. */
  outAt: number;
  /** Descriptors to send with the reply; they stay the handler's, open until the connection ends. */
  outFds: readonly number[] | undefined;
  /** True if it is others' turn: a handler with more to do than a few steps then returns {@linkcode UNFINISHED}. */
  isTurnOver(): boolean;
}

/** In place of a length or −errno: the same command is to be handled again, in a later turn of the loop, to go on with it. */
export const UNFINISHED = -0x1_0000;

/** An EINVAL with the reason, for the client's author. */
export function invalid(message: string): ErrnoError {
  return new ErrnoError(Errno.EINVAL, message);
}

/**
 * Checks the payload of a command whose structure begins with `argsz`.
 *
 * @param sizeBytes Size of the structure, which both the payload and `argsz` must reach
 * @returns `argsz`
 * @throws {ErrnoError} EINVAL
 */
export function checkArgsz(
  request: Request,
  command: string,
  sizeBytes: number,
): number {
  if (request.lengthBytes < sizeBytes) {
    throw invalid(
      `Cannot ${command}: the payload has ${request.lengthBytes} bytes, ${sizeBytes} are needed`,
    );
  }
  const argsz = request.in.getUint32(request.at, true);
  if (argsz < sizeBytes) {
    throw invalid(
      `Cannot ${command}: argsz is ${argsz}, at least ${sizeBytes} is needed`,
    );
  }
  return argsz;
}
