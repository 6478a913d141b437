/**
 * Error numbers of Linux, and the one error type that carries them.
 *
 * Control paths throw {@linkcode ErrnoError}; data paths return `-Errno.X`.
 * Nothing here touches the system, so device models may import it.
 *
 * @module
 */

/** Linux error numbers (asm-generic; the same on x86_64 and aarch64). */
export const Errno = {
  EPERM: 1,
  ENOENT: 2,
  ESRCH: 3,
  EINTR: 4,
  EIO: 5,
  ENXIO: 6,
  E2BIG: 7,
  EBADF: 9,
  EAGAIN: 11,
  ENOMEM: 12,
  EACCES: 13,
  EFAULT: 14,
  EBUSY: 16,
  EEXIST: 17,
  ENODEV: 19,
  ENOTDIR: 20,
  EISDIR: 21,
  EINVAL: 22,
  ENFILE: 23,
  EMFILE: 24,
  ENOTTY: 25,
  ETXTBSY: 26,
  EFBIG: 27,
  ENOSPC: 28,
  EROFS: 30,
  EPIPE: 32,
  ERANGE: 34,
  ENAMETOOLONG: 36,
  ENOLCK: 37,
  ENOSYS: 38,
  ELOOP: 40,
  EPROTO: 71,
  EBADMSG: 74,
  EOVERFLOW: 75,
  ENOTSOCK: 88,
  EMSGSIZE: 90,
  EPROTONOSUPPORT: 93,
  EOPNOTSUPP: 95,
  EADDRINUSE: 98,
  EADDRNOTAVAIL: 99,
  ENETDOWN: 100,
  ENETUNREACH: 101,
  ECONNABORTED: 103,
  ECONNRESET: 104,
  ENOBUFS: 105,
  ENOTCONN: 107,
  ETIMEDOUT: 110,
  ECONNREFUSED: 111,
  EHOSTUNREACH: 113,
  EALREADY: 114,
  EINPROGRESS: 115,
  ECANCELED: 125,
} as const;

/** A Linux error number. */
export type Errno = typeof Errno[keyof typeof Errno];

const NAMES: ReadonlyMap<number, string> = new Map(
  Object.entries(Errno).map(([name, value]) => [value, name]),
);

/** The symbolic name of an error number, such as `"EINVAL"`. */
export function errnoName(errno: number): string {
  return NAMES.get(errno) ?? `errno ${errno}`;
}

/** A failure that has an error number; the server turns it into an error reply. */
export class ErrnoError extends Error {
  /** The name of the class. */
  override readonly name: string = "ErrnoError";
  /** The error number, positive. */
  readonly errno: number;
  /** Its symbolic name, such as `"EINVAL"`. */
  readonly code: string;

  /**
   * Makes the failure of one action.
   *
   * @param errno Positive error number
   * @param message What could not be done: "Cannot <action>: <state>"
   */
  constructor(errno: number, message: string, options?: ErrorOptions) {
    super(`${message} (${errnoName(errno)})`, options);
    this.errno = errno;
    this.code = errnoName(errno);
  }
}
