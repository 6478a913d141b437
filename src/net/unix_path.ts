/**
 * UNIX sockets in the file system: made where a dead one may be left, and removed with their owner.
 *
 * @module
 */

import { environmentVariable } from "../environment.ts";
import { Errno, ErrnoError } from "../errno.ts";
import { type Fd, probeUnix, SyscallError } from "../libc/mod.ts";

/** A socket and its file. */
export interface PathSocket {
  /** The socket; its owner closes it. */
  readonly fd: Fd;
  /** The file, to be removed with {@linkcode removeSocketFile}. */
  readonly file: SocketFile;
}

/** A socket's file in the file system. */
export interface SocketFile {
  readonly path: string;
  /** Which file it is; null when it was gone at once. */
  readonly inode: number | null;
}

/** Removes the file, unless it is gone or somebody has put another in its place. */
export function removeSocketFile(file: SocketFile): void {
  const found = inode(file.path);
  if (found !== null && found === file.inode) Deno.removeSync(file.path);
}

function inode(path: string): number | null {
  try {
    return Deno.lstatSync(path).ino;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return null;
    throw error;
  }
}

function explain(errno: number): string | null {
  switch (errno) {
    case Errno.EADDRINUSE:
      return "another process uses that path or a file is there, stop that process, remove the file or choose another path";
    case Errno.ENOENT:
    case Errno.ENOTDIR:
      return "its folder does not exist, make it first";
    case Errno.EACCES:
    case Errno.EPERM:
    case Errno.EROFS:
      return `not permitted, choose a folder you may write to, such as ${
        environmentVariable("XDG_RUNTIME_DIR") ?? "/tmp"
      }`;
    default:
      return null;
  }
}

/**
 * Makes a socket at a path; one that nobody serves any more is replaced.
 *
 * @param bind Makes the socket
 * @throws {ErrnoError} With the remedy
 */
export function bindPath(path: string, bind: (path: string) => Fd): PathSocket {
  let fd: Fd;
  try {
    fd = bindOver(path, bind);
  } catch (error) {
    if (!(error instanceof SyscallError)) throw error;
    const why = explain(error.errno);
    if (why === null) throw error;
    throw new ErrnoError(error.errno, `Cannot make socket ${path}: ${why}`, {
      cause: error,
    });
  }
  return { fd, file: { path, inode: inode(path) } };
}

function bindOver(path: string, bind: (path: string) => Fd): Fd {
  try {
    return bind(path);
  } catch (error) {
    if (
      !(error instanceof SyscallError) || error.errno !== Errno.EADDRINUSE ||
      !Deno.lstatSync(path).isSocket || probeUnix(path) !== Errno.ECONNREFUSED
    ) throw error;
    Deno.removeSync(path);
    return bind(path);
  }
}
