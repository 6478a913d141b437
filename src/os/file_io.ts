/**
 * Files and block devices: what they are, and transfers at an offset.
 *
 * @module
 */

import { setU64 } from "../core/bits.ts";
import { Errno } from "../core/errno.ts";
import { check, cString } from "./errors.ts";
import { lastErrno, libc, type Words } from "./symbols.ts";

/** Flags of {@linkcode preadv2} and {@linkcode pwritev2}. */
export const Rwf = {
  /** Durable when it returns, as with O_DSYNC. */
  DSYNC: 0x02,
  /** −EAGAIN instead of waiting. */
  NOWAIT: 0x08,
} as const;

/** Modes of {@linkcode fallocate}. */
export const FallocateMode = {
  KEEP_SIZE: 0x01,
  PUNCH_HOLE: 0x02,
  ZERO_RANGE: 0x10,
} as const;

/** Result of {@linkcode statFile}. */
export interface FileStat {
  /** File type and permission bits, as st_mode. */
  readonly mode: number;
  /** Length in bytes; 0 for anything but a regular file. */
  readonly sizeBytes: number;
  /** The file system's preferred unit in bytes. */
  readonly blockBytes: number;
  /** Of a device file: its number as `major:minor`. */
  readonly device: string;
  /** Alignment of memory for O_DIRECT in bytes; 0 when the kernel does not tell, or there is no O_DIRECT. */
  readonly directMemoryAlign: number;
  /** Alignment of offsets and lengths for O_DIRECT in bytes; likewise 0. */
  readonly directOffsetAlign: number;
  /** True if the kernel told about O_DIRECT (Linux 6.1 and newer). */
  readonly directKnown: boolean;
}

const S_IFMT = 0o170000;

/** File types in st_mode. */
export const FileType = {
  FIFO: 0o010000,
  CHARACTER: 0o020000,
  DIRECTORY: 0o040000,
  BLOCK: 0o060000,
  REGULAR: 0o100000,
  SOCKET: 0o140000,
} as const;

/** The file type of a mode, one of {@linkcode FileType}. */
export function fileType(mode: number): number {
  return mode & S_IFMT;
}

// struct statx
const STX = {
  MASK: 0,
  BLKSIZE: 4,
  MODE: 28,
  SIZE: 40,
  RDEV_MAJOR: 128,
  RDEV_MINOR: 132,
  DIO_MEM_ALIGN: 152,
  DIO_OFFSET_ALIGN: 156,
  BYTES: 256,
} as const;

/**
 * Properties of an open file.
 *
 * @throws {import("./errors.ts").SyscallError}
 */
export function statFile(fd: number): FileStat {
  const AT_EMPTY_PATH = 0x1000;
  const STATX_BASIC_STATS = 0x7ff;
  const STATX_DIOALIGN = 0x2000;
  const bytes = new Uint8Array(STX.BYTES);
  const mask = STATX_BASIC_STATS | STATX_DIOALIGN;
  check(libc.statx(fd, cString(""), AT_EMPTY_PATH, mask, bytes), "statx");
  const view = new DataView(bytes.buffer);
  const word = (offset: number) => view.getUint32(offset, true);
  return {
    mode: view.getUint16(STX.MODE, true),
    sizeBytes: Number(view.getBigUint64(STX.SIZE, true)),
    blockBytes: word(STX.BLKSIZE),
    device: `${word(STX.RDEV_MAJOR)}:${word(STX.RDEV_MINOR)}`,
    directMemoryAlign: word(STX.DIO_MEM_ALIGN),
    directOffsetAlign: word(STX.DIO_OFFSET_ALIGN),
    directKnown: (word(STX.MASK) & STATX_DIOALIGN) !== 0,
  };
}

const TMPFS_MAGIC = 0x0102_1994;
const RAMFS_MAGIC = 0x8584_58f6;
const HUGETLBFS_MAGIC = 0x9584_58f6;

/** True if the file lives in memory only (tmpfs, memfd, ramfs, hugetlbfs), so that access to it never waits for a disk. */
export function isInMemory(fd: number): boolean {
  // struct statfs { long f_type; … } of 120 bytes
  const bytes = new Uint8Array(120);
  if (libc.fstatfs(fd, bytes) < 0) return false;
  const type = new DataView(bytes.buffer).getUint32(0, true);
  return type === TMPFS_MAGIC || type === RAMFS_MAGIC ||
    type === HUGETLBFS_MAGIC;
}

// From linux/fs.h, the same on x86_64 and aarch64.
const BLKSSZGET = 0x1268;
const BLKPBSZGET = 0x127b;
const BLKGETSIZE64 = 0x8008_1272;
const BLKDISCARD = 0x1277;

/** Sizes of a block device in bytes. */
export interface BlockDeviceSizes {
  /** Its length. */
  readonly sizeBytes: number;
  /** Its logical block. */
  readonly logicalBlockBytes: number;
  /** Its physical block. */
  readonly physicalBlockBytes: number;
}

/**
 * Sizes of an open block device.
 *
 * @throws {import("./errors.ts").SyscallError}
 */
export function blockDeviceSizes(fd: number): BlockDeviceSizes {
  const bytes = new Uint8Array(8);
  const view = new DataView(bytes.buffer);
  const ask = (request: number) => {
    bytes.fill(0);
    check(libc.ioctl(fd, request, bytes), "ioctl");
    return Number(view.getBigUint64(0, true));
  };
  return {
    sizeBytes: ask(BLKGETSIZE64),
    logicalBlockBytes: ask(BLKSSZGET),
    physicalBlockBytes: ask(BLKPBSZGET),
  };
}

const discardRange = new BigUint64Array(2);
const discardHalves = new Uint32Array(discardRange.buffer);
const discardBytes = new Uint8Array(discardRange.buffer);

/**
 * Tells a block device that a range is not needed; waits for it.
 *
 * @param range Offset and length
 * @returns 0 or −errno
 */
export function blockDeviceDiscard(fd: number, range: Words): number {
  discardHalves.set(range.halves.subarray(0, 4));
  return libc.ioctl(fd, BLKDISCARD, discardBytes) < 0 ? -lastErrno() : 0;
}

/**
 * Gathers at an offset, as preadv2(2).
 *
 * @param place The offset in the file is its first word, the address of the `count` struct iovec another: a `pointer` in
 * the same call as an offset would keep the compiler from passing either without a box
 * @param iovec Which word that is
 * @returns Bytes read, or −errno
 */
export function preadv2(
  fd: number,
  place: Words,
  iovec: number,
  count: number,
  flags: number,
): number {
  for (;;) {
    const { at } = place;
    const n = libc.preadv2(fd, at[iovec]!, count, at[0]!, flags);
    if (n >= 0) return n;
    const errno = lastErrno();
    if (errno !== Errno.EINTR) return -errno;
  }
}

/**
 * Scatters at an offset, as pwritev2(2).
 *
 * @param place The offset in the file is its first word, the address of the `count` struct iovec another: a `pointer` in
 * the same call as an offset would keep the compiler from passing either without a box
 * @param iovec Which word that is
 * @returns Bytes written, or −errno
 */
export function pwritev2(
  fd: number,
  place: Words,
  iovec: number,
  count: number,
  flags: number,
): number {
  for (;;) {
    const { at } = place;
    const n = libc.pwritev2(fd, at[iovec]!, count, at[0]!, flags);
    if (n >= 0) return n;
    const errno = lastErrno();
    if (errno !== Errno.EINTR) return -errno;
  }
}

/**
 * fdatasync(2); waits for the disk.
 *
 * @returns 0 or −errno
 */
export function fdatasync(fd: number): number {
  for (;;) {
    if (libc.fdatasync(fd) >= 0) return 0;
    const errno = lastErrno();
    if (errno !== Errno.EINTR) return -errno;
  }
}

/**
 * fallocate(2).
 *
 * @param mode Bits of {@linkcode FallocateMode}
 * @param range Offset and length
 * @returns 0 or −errno
 */
export function fallocate(fd: number, mode: number, range: Words): number {
  for (;;) {
    if (libc.fallocate(fd, mode, range.at[0]!, range.at[1]!) >= 0) return 0;
    const errno = lastErrno();
    if (errno !== Errno.EINTR) return -errno;
  }
}

/** Kinds of lock that {@linkcode lockFile} takes. */
export const FileLock = {
  /** With others that have the same. */
  SHARED: 0,
  /** No longer. */
  NONE: 2,
} as const;

/** A kind of lock. */
export type FileLock = typeof FileLock[keyof typeof FileLock];

const F_WRLCK = 1;
const F_UNLCK = 2;

/** struct flock { short l_type; short l_whence; off_t l_start; off_t l_len; pid_t l_pid; } */
function flockOf(type: number, start: number, lengthBytes: number): DataView {
  const flock = new DataView(new ArrayBuffer(32));
  flock.setInt16(0, type, true);
  setU64(flock, 8, start);
  setU64(flock, 16, lengthBytes);
  return flock;
}

/**
 * Locks bytes of a file for as long as this opening of it lasts (an open file description lock).
 *
 * @returns 0, −EAGAIN when another opening is in the way, or another −errno
 */
export function lockFile(
  fd: number,
  lock: FileLock,
  start: number,
  lengthBytes: number,
): number {
  const F_OFD_SETLK = 37;
  const flock = new Uint8Array(flockOf(lock, start, lengthBytes).buffer);
  return libc.fcntl_lock(fd, F_OFD_SETLK, flock) < 0 ? -lastErrno() : 0;
}

/**
 * True if another opening of a file has a lock, of whatever kind, on some of the bytes.
 *
 * @returns 1 or 0, or −errno
 */
export function isLocked(
  fd: number,
  start: number,
  lengthBytes: number,
): number {
  const F_OFD_GETLK = 36;
  const view = flockOf(F_WRLCK, start, lengthBytes);
  if (libc.fcntl_lock(fd, F_OFD_GETLK, new Uint8Array(view.buffer)) < 0) {
    return -lastErrno();
  }
  return view.getInt16(0, true) === F_UNLCK ? 0 : 1;
}

/**
 * Takes O_NONBLOCK off.
 *
 * @throws {import("./errors.ts").SyscallError}
 */
export function setBlocking(fd: number): void {
  const F_GETFL = 3;
  const F_SETFL = 4;
  const O_NONBLOCK = 0o4000;
  const flags = check(libc.fcntl(fd, F_GETFL, 0), "fcntl");
  check(libc.fcntl(fd, F_SETFL, flags & ~O_NONBLOCK), "fcntl");
}

/** Copies between addresses of this process: where to, where from, how much. */
export function copyWords(words: Words): void {
  libc.memcpy(words.at[0]!, words.at[1]!, words.at[2]!);
}

/** Clears memory of this process: where, and how much in the third word. */
export function clearWords(words: Words): void {
  libc.memset(words.at[0]!, 0, words.at[2]!);
}
