/**
 * Listening sockets: made at a path, or inherited.
 *
 * @module
 */

import { Errno } from "../errno.ts";
import {
  connectUnix,
  type Fd,
  isListeningSocket,
  isOpen,
  listenUnix,
  setCloseOnExec,
  setNonblocking,
  socketPath,
  SyscallError,
} from "../libc/mod.ts";

/** Where clients connect. */
export type Endpoint =
  | { readonly kind: "path"; readonly path: string }
  | { readonly kind: "fd"; readonly fd: number };

/** A listening socket of this process. */
export interface Listening extends Disposable {
  /** Number of the listening descriptor. */
  readonly fd: number;
  /** Its path in the file system, if it has one. */
  readonly path: string | null;
  /** Closes it, and removes the file if we made it. */
  close(): void;
}

function inherit(fd: number): Listening {
  if (!isOpen(fd)) {
    throw new Error(
      `Cannot use --fd ${fd}: it is not open; pass a listening UNIX stream socket, as systemd does with fd 3`,
    );
  }
  if (!isListeningSocket(fd)) {
    throw new Error(
      `Cannot use --fd ${fd}: it is not a listening stream socket; bind it and call listen() before handing it over`,
    );
  }
  setNonblocking(fd);
  setCloseOnExec(fd);
  // Whoever handed it over owns the socket and its file.
  const close = () => {};
  return { fd, path: socketPath(fd), close, [Symbol.dispose]: close };
}

/** Whether somebody accepts connections at the path. */
function isLive(path: string): boolean {
  try {
    connectUnix(path).close();
    return true;
  } catch (error) {
    if (!(error instanceof SyscallError)) throw error;
    // EAGAIN: a listener with a full backlog is alive all the same.
    return error.errno === Errno.EAGAIN;
  }
}

/**
 * Makes sure that a socket can be made at the path: removes one that nobody serves any more.
 *
 * @throws {Error} With the remedy, when the path is taken
 */
export function prepareSocketPath(path: string): void {
  let info: Deno.FileInfo;
  try {
    info = Deno.lstatSync(path);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return;
    throw error;
  }
  if (!info.isSocket) {
    throw new Error(
      `Cannot listen on ${path}: a file of that name exists and is not a socket; choose another path or remove it`,
    );
  }
  if (isLive(path)) {
    throw new Error(
      `Cannot listen on ${path}: another process is serving it; stop that process or choose another path`,
    );
  }
  Deno.removeSync(path);
}

function listenAt(path: string): Listening {
  let fd: Fd;
  try {
    prepareSocketPath(path);
    fd = listenUnix(path);
  } catch (error) {
    if (error instanceof SyscallError && error.errno === Errno.ENOENT) {
      throw new Error(
        `Cannot listen on ${path}: its folder does not exist; make it first`,
      );
    }
    if (
      (error instanceof SyscallError && error.errno === Errno.EACCES) ||
      error instanceof Deno.errors.PermissionDenied
    ) {
      throw new Error(
        `Cannot listen on ${path}: permission denied; choose a folder you may write to, such as ${
          Deno.env.get("XDG_RUNTIME_DIR") ?? "/tmp"
        }`,
      );
    }
    throw error;
  }
  const inode = Deno.lstatSync(path).ino;
  const close = () => {
    if (fd.number < 0) return;
    fd.close();
    try {
      // Somebody may have put a socket of their own there meanwhile.
      if (Deno.lstatSync(path).ino === inode) Deno.removeSync(path);
    } catch (error) {
      if (!(error instanceof Deno.errors.NotFound)) throw error;
    }
  };
  return { fd: fd.number, path, close, [Symbol.dispose]: close };
}

/**
 * Opens an endpoint for clients.
 *
 * A socket file is made readable and writable by its owner only; one that nobody serves any more is replaced.
 *
 * @throws {Error} With the remedy
 */
export function openEndpoint(endpoint: Endpoint): Listening {
  return endpoint.kind === "fd"
    ? inherit(endpoint.fd)
    : listenAt(endpoint.path);
}
