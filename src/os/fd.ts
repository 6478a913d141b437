/**
 * File descriptors as owned values.
 *
 * @module
 */

import { Errno } from "../core/errno.ts";
import { check, cString } from "./errors.ts";
import { lastErrno, libc, Words } from "./symbols.ts";

const F_GETFL = 3;
const F_SETFL = 4;
const F_GETFD = 1;
const F_SETFD = 2;
const FD_CLOEXEC = 1;
const O_NONBLOCK = 0o4000;

/** Closes a descriptor number that has no owner yet; a failure cannot be acted upon and is ignored. */
export function closeFd(fd: number): void {
  libc.close(fd);
}

/** An open file descriptor with one owner. */
export class Fd implements Disposable {
  #fd: number;

  /** Takes ownership of an open descriptor. */
  constructor(fd: number) {
    this.#fd = fd;
  }

  /** The descriptor number, −1 once closed. */
  get number(): number {
    return this.#fd;
  }

  /** Gives the number away; this object no longer owns it. */
  release(): number {
    const fd = this.#fd;
    this.#fd = -1;
    return fd;
  }

  /** Closes the descriptor; further calls do nothing. */
  close(): void {
    if (this.#fd < 0) return;
    libc.close(this.release());
  }

  /** Closes it. */
  [Symbol.dispose](): void {
    this.close();
  }
}

/**
 * Opens a file.
 *
 * @param flags As in open(2); O_CLOEXEC is added
 * @throws {import("./errors.ts").SyscallError}
 */
export function openFd(path: string, flags: number, mode = 0): Fd {
  const O_CLOEXEC = 0o2000000;
  return new Fd(
    check(
      libc.open(cString(path), flags | O_CLOEXEC, mode),
      "open",
      `Cannot open ${path}`,
    ),
  );
}

/**
 * Removes a file, with no permission of the runtime's, as {@linkcode openFd} makes it.
 *
 * @throws {import("./errors.ts").SyscallError}
 */
export function removeFile(path: string): void {
  check(libc.unlink(cString(path)), "unlink", `Cannot remove ${path}`);
}

/**
 * Sets O_NONBLOCK.
 *
 * @throws {import("./errors.ts").SyscallError}
 */
export function setNonblocking(fd: number): void {
  const flags = check(libc.fcntl(fd, F_GETFL, 0), "fcntl");
  check(libc.fcntl(fd, F_SETFL, flags | O_NONBLOCK), "fcntl");
}

/** True if the number is an open descriptor of this process. */
export function isOpen(fd: number): boolean {
  return libc.fcntl(fd, F_GETFD, 0) >= 0;
}

/**
 * Another descriptor of the same open file.
 *
 * @throws {import("./errors.ts").SyscallError}
 */
export function dupFd(fd: number): Fd {
  const F_DUPFD_CLOEXEC = 1030;
  return new Fd(check(libc.fcntl(fd, F_DUPFD_CLOEXEC, 0), "fcntl"));
}

/**
 * Sets FD_CLOEXEC, so that children do not inherit the descriptor.
 *
 * @throws {import("./errors.ts").SyscallError}
 */
export function setCloseOnExec(fd: number): void {
  check(libc.fcntl(fd, F_SETFD, FD_CLOEXEC), "fcntl");
}

/** Result of {@linkcode statFd}. */
export interface FdStat {
  /** File type and permission bits, as st_mode. */
  readonly mode: number;
  /** Size in bytes; 0 for anything but a regular file. */
  readonly sizeBytes: number;
  /** Bytes that have storage: fewer than the size for a file with holes, as memory that was not touched yet. */
  readonly allocatedBytes: number;
  /** Device and inode: the same for every descriptor of one file. */
  readonly identity: string;
}

const S_IFMT = 0o170000;
const S_IFREG = 0o100000;

/** True if the mode is that of a regular file (memfd and hugetlbfs files included). */
export function isRegularFile(stat: Pick<FdStat, "mode">): boolean {
  return (stat.mode & S_IFMT) === S_IFREG;
}

/**
 * Type and size of an open file, by statx(2), whose layout is the same on every architecture.
 *
 * @throws {import("./errors.ts").SyscallError}
 */
export function statFd(fd: number): FdStat {
  const AT_EMPTY_PATH = 0x1000;
  const STATX_BASIC_STATS = 0x7ff;
  const STX_MODE = 28;
  const STX_INO = 32;
  const STX_SIZE = 40;
  const STX_BLOCKS = 48;
  const STX_DEV_MAJOR = 136;
  const STX_DEV_MINOR = 140;
  const buffer = new Uint8Array(256);
  check(
    libc.statx(fd, cString(""), AT_EMPTY_PATH, STATX_BASIC_STATS, buffer),
    "statx",
  );
  const view = new DataView(buffer.buffer);
  return {
    mode: view.getUint16(STX_MODE, true),
    sizeBytes: Number(view.getBigUint64(STX_SIZE, true)),
    allocatedBytes: Number(view.getBigUint64(STX_BLOCKS, true)) * 512,
    identity: [
      view.getUint32(STX_DEV_MAJOR, true),
      view.getUint32(STX_DEV_MINOR, true),
      view.getBigUint64(STX_INO, true),
    ].join(":"),
  };
}

/**
 * The page size of a file on hugetlbfs, whose mappings must be made of whole pages: munmap(2) fails for any other.
 *
 * @returns 0 for a file elsewhere
 * @throws {import("./errors.ts").SyscallError}
 */
export function hugePageBytes(fd: number): number {
  const HUGETLBFS_MAGIC = 0x9584_58f6;
  // struct statfs { long f_type; long f_bsize; … } of 120 bytes
  const buffer = new Uint8Array(120);
  check(libc.fstatfs(fd, buffer), "fstatfs");
  const view = new DataView(buffer.buffer);
  return view.getUint32(0, true) === HUGETLBFS_MAGIC
    ? view.getUint32(8, true)
    : 0;
}

/**
 * Bytes that the file system of a file has left for those who may not use its reserve.
 *
 * @returns Infinity where nothing limits it but memory itself, as for a memfd
 * @throws {import("./errors.ts").SyscallError}
 */
export function freeBytes(fd: number): number {
  // struct statfs { long f_type, f_bsize; u64 f_blocks, f_bfree, f_bavail; … } of 120 bytes
  const buffer = new Uint8Array(120);
  check(libc.fstatfs(fd, buffer), "fstatfs");
  const view = new DataView(buffer.buffer);
  if (view.getBigUint64(16, true) === 0n) return Infinity;
  return Number(view.getBigUint64(8, true) * view.getBigUint64(32, true));
}

/** True if the length of a file is sealed: nobody can cut it short. */
export function isLengthSealed(fd: number): boolean {
  const F_GET_SEALS = 1034;
  const F_SEAL_SHRINK = 2;
  const seals = libc.fcntl(fd, F_GET_SEALS, 0);
  return seals >= 0 && (seals & F_SEAL_SHRINK) !== 0;
}

/**
 * Sets a file's length.
 *
 * @throws {import("./errors.ts").SyscallError}
 */
export function truncateFd(fd: number, lengthBytes: number): void {
  check(libc.ftruncate(fd, lengthBytes), "ftruncate");
}

/**
 * readv(2) on a nonblocking descriptor.
 *
 * @param iovec `count` struct iovec
 * @returns Bytes read, or −errno
 */
export function readv(
  fd: number,
  iovec: Deno.PointerValue,
  count: number,
): number {
  for (;;) {
    const n = libc.readv(fd, iovec, count);
    if (n >= 0) return n;
    const errno = lastErrno();
    if (errno !== Errno.EINTR) return -errno;
  }
}

/**
 * writev(2) on a nonblocking descriptor.
 *
 * @param iovec `count` struct iovec
 * @returns Bytes written, or −errno
 */
export function writev(
  fd: number,
  iovec: Deno.PointerValue,
  count: number,
): number {
  for (;;) {
    const n = libc.writev(fd, iovec, count);
    if (n >= 0) return n;
    const errno = lastErrno();
    if (errno !== Errno.EINTR) return -errno;
  }
}

const copyArguments = new Words(3);

/** memcpy(3) between two addresses of this process that the caller has checked. */
export function copyHva(to: number, from: number, lengthBytes: number): void {
  copyArguments.set(0, to);
  copyArguments.set(1, from);
  copyArguments.set(2, lengthBytes);
  libc.memcpy(
    copyArguments.at[0]!,
    copyArguments.at[1]!,
    copyArguments.at[2]!,
  );
}
