/**
 * The end of whoever started this process, for `--exit-with-parent`.
 *
 * @module
 */

import {
  check,
  NativeBuffer,
  openFd,
  Poll,
  pollApart,
  SyscallError,
} from "../os/mod.ts";
import { Errno } from "../core/errno.ts";
import { libc } from "../os/symbols.ts";

const SYS_PIDFD_OPEN = 434;
/** Longer than any command line that is looked at. */
const PROC_FILE_MAX = 256 * 1024;

/** Reads a file of /proc without a permission for it; null when its process is gone. */
function readProc(path: string): string | null {
  using buffer = new NativeBuffer(PROC_FILE_MAX);
  try {
    using file = openFd(path, 0);
    const length = libc.read(file.number, buffer.pointer(), PROC_FILE_MAX);
    return length <= 0
      ? null
      : new TextDecoder().decode(buffer.bytes.slice(0, length));
  } catch (error) {
    if (error instanceof SyscallError) return null;
    throw error;
  }
}

interface Stat {
  /** The parent; 0 when that is out of sight. */
  readonly parent: number;
  /** The session. */
  readonly session: number;
}

/** Null when the process is gone, or out of sight. */
function statOf(pid: number): Stat | null {
  // pid (name) state ppid pgrp session …; the name may hold anything.
  const stat = readProc(`/proc/${pid}/stat`) ?? "";
  const fields = /^.*\) \S+ (\d+) \d+ (\d+)/s.exec(stat);
  return fields === null
    ? null
    : { parent: Number(fields[1]), session: Number(fields[2]) };
}

/**
 * True if a process was started by another than its parent, which took it over when that had ended. Who is started is in
 * the session of its parent, or makes one of its own.
 */
function isAdopted(pid: number, { parent, session }: Stat): boolean {
  const theirs = statOf(parent)?.session ?? session;
  return session !== pid && session !== theirs;
}

/** Arguments without what tells them apart, which a shell's command line quotes and a kernel's does not. */
function bare(text: string): string {
  return text.replaceAll(/[\s\0'"\\]/g, "");
}

/** A process that ends when all that it was started for has; null when it has ended. */
function openPid(pid: number): number | null {
  const fd = libc.pidfd_open(SYS_PIDFD_OPEN, pid, 0);
  try {
    return check(fd, "pidfd_open");
  } catch (error) {
    if (error instanceof SyscallError && error.errno === Errno.ESRCH) {
      return null;
    }
    throw error;
  }
}

/**
 * Resolves when the parent of this process ends, at once when it has. A parent that merely runs our command line, as
 * npx and the shell between it and us do, is watched together with its own parent, so that it does not matter which of
 * them is killed. The watch ends with the process.
 *
 * @param args Our arguments, by which such a parent is known
 * @param first Our parent, as early as it was looked at
 * @throws {SyscallError} ENOSYS before Linux 5.3
 */
export function parentEnded(
  args: readonly string[],
  first: number,
): Promise<void> {
  const ours = bare(args.join(""));
  const watched: number[] = [];
  for (let child = Deno.pid;;) {
    const stat = statOf(child);
    const parent = stat?.parent ?? 0;
    // What started a process may have ended before we were there to see it.
    const isLost = child === Deno.pid && parent !== first ||
      stat !== null && isAdopted(child, stat);
    if (isLost) return Promise.resolve();
    // The parent of a namespace's first process is out of sight.
    if (parent === 0) break;
    const fd = openPid(parent);
    // Its number may have been given away before it was opened: whose parent has changed has lost it.
    if (fd === null || statOf(child)?.parent !== parent) {
      return Promise.resolve();
    }
    watched.push(fd);
    if (!bare(readProc(`/proc/${parent}/cmdline`) ?? "").includes(ours)) break;
    child = parent;
  }
  return watched.length === 0
    ? new Promise(() => {})
    : pollApart(watched, Poll.IN);
}
