/**
 * The lock on an image, in QEMU's terms: what one does to the image, and what one lets others do, are locks on bytes of
 * the file (QEMU, block/file-posix.c), so that QEMU, its tools and we keep out of one another's way.
 *
 * @module
 */

import { Errno } from "../../../core/errno.ts";
import { FileLock, isLocked, lockFile } from "../../../os/mod.ts";

/** A byte for each permission that somebody uses, and one for each that somebody does not leave to others. */
const RAW_LOCK_PERM_BASE = 100;
const RAW_LOCK_SHARED_BASE = 200;

/** Permissions: the bytes that stand for them, counted from a base. */
const BLK_PERM = { CONSISTENT_READ: 0, WRITE: 1, RESIZE: 3 } as const;

/** While we read nobody may change the image, and while we write nobody but us. */
const UNSHARED = [BLK_PERM.WRITE, BLK_PERM.RESIZE];
const READER = [BLK_PERM.CONSISTENT_READ];
const WRITER = [...READER, ...UNSHARED];

/**
 * Locks an image for as long as this opening of it lasts, or until {@linkcode unlockImage}.
 *
 * @returns 0, −EAGAIN when somebody else is in the way, or another −errno where there are no locks
 */
export function lockImage(fd: number, readonly: boolean): number {
  const perm = readonly ? READER : WRITER;
  const held = [
    ...perm.map((bit) => RAW_LOCK_PERM_BASE + bit),
    ...UNSHARED.map((bit) => RAW_LOCK_SHARED_BASE + bit),
  ];
  const against = [
    ...perm.map((bit) => RAW_LOCK_SHARED_BASE + bit),
    ...UNSHARED.map((bit) => RAW_LOCK_PERM_BASE + bit),
  ];
  // All locks are shared ones, which any opening may hold; who finds another's where it is against it gives way. We
  // hold ours before we look, so that of two who come at once one at least sees the other.
  for (const byte of held) {
    const result = lockFile(fd, FileLock.SHARED, byte, 1);
    if (result < 0) return undo(fd, result);
  }
  for (const byte of against) {
    const result = isLocked(fd, byte, 1);
    if (result < 0) return undo(fd, result);
    if (result > 0) return undo(fd, -Errno.EAGAIN);
  }
  return 0;
}

/** Gives the lock up, which is of all descriptors of this opening. */
export function unlockImage(fd: number): void {
  lockFile(fd, FileLock.NONE, RAW_LOCK_PERM_BASE, 2 * RAW_LOCK_PERM_BASE);
}

function undo(fd: number, result: number): number {
  unlockImage(fd);
  return result;
}
