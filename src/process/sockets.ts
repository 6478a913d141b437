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
      `Cannot use --fd ${fd}: it is not a listening UNIX stream socket; bind it and call listen() before handing it over`,
    );
  }
  setNonblocking(fd);
  setCloseOnExec(fd);
  // Whoever handed it over owns the socket and its file.
  const close = () => {};
  return { fd, path: socketPath(fd), close, [Symbol.dispose]: close };
}

/** Whether somebody may be serving the path. */
function isLive(path: string): boolean {
  try {
    connectUnix(path).close();
    return true;
  } catch (error) {
    if (!(error instanceof SyscallError)) throw error;
    // Nothing else says that nobody listens: a backlog may be full (EAGAIN), the server another user's (EACCES) or
    // the socket of another type (EPROTOTYPE), and all of them alive.
    return error.errno !== Errno.ECONNREFUSED && error.errno !== Errno.ENOENT;
  }
}

/** The longest path of a UNIX socket, in bytes. */
const SOCKET_PATH_MAX = 107;

function checkLength(path: string): void {
  const lengthBytes = new TextEncoder().encode(path).length;
  if (lengthBytes > SOCKET_PATH_MAX) {
    throw new Error(
      `Cannot listen on ${path}: its path has ${lengthBytes} bytes and a UNIX socket takes ${SOCKET_PATH_MAX}; choose a shorter one`,
    );
  }
}

/**
 * Makes sure that a socket can be made at the path: removes one that nobody serves any more.
 *
 * @throws {Error} With the remedy, when the path is taken
 */
export function prepareSocketPath(path: string): void {
  checkLength(path);
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
  removeIfThere(path);
}

function removeIfThere(path: string): void {
  try {
    Deno.removeSync(path);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
}

/**
 * Makes the function that removes a socket file that was just made, unless somebody has removed it or put one of
 * their own there meanwhile.
 */
export function socketRemover(path: string): () => void {
  const inode = Deno.lstatSync(path).ino;
  return () => {
    try {
      if (Deno.lstatSync(path).ino === inode) Deno.removeSync(path);
    } catch (error) {
      if (!(error instanceof Deno.errors.NotFound)) throw error;
    }
  };
}

/** What keeps a socket from being made at the path, with the remedy. */
export function explainListening(path: string, error: unknown): unknown {
  const errno = error instanceof SyscallError ? error.errno : 0;
  if (errno === Errno.ENOENT || error instanceof Deno.errors.NotFound) {
    return new Error(
      `Cannot listen on ${path}: its folder does not exist; make it first`,
    );
  }
  if (
    errno === Errno.EACCES || error instanceof Deno.errors.PermissionDenied
  ) {
    return new Error(
      `Cannot listen on ${path}: permission denied; choose a folder you may write to, such as ${
        Deno.env.get("XDG_RUNTIME_DIR") ?? "/tmp"
      }`,
    );
  }
  return error;
}

function listenAt(path: string): Listening {
  let fd: Fd;
  try {
    prepareSocketPath(path);
    fd = listenUnix(path);
  } catch (error) {
    throw explainListening(path, error);
  }
  const remove = socketRemover(path);
  const close = () => {
    if (fd.number < 0) return;
    fd.close();
    remove();
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
