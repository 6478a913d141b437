/**
 * Listening sockets: made at a path, or inherited.
 *
 * @module
 */

import { dirname } from "node:path";
import { environmentVariable } from "../environment.ts";
import { Errno } from "../errno.ts";
import {
  bindUnix,
  connectUnix,
  createUnixSocket,
  groupId,
  isListeningSocket,
  isOpen,
  setCloseOnExec,
  setNonblocking,
  socketPath,
  startListening,
  SyscallError,
} from "../libc/mod.ts";
import { libc } from "../libc/symbols.ts";

/** Where a socket is made, and who may connect to it. */
export interface SocketPath {
  /** Path of its file. */
  readonly path: string;
  /** Permission bits of its file; 0600 unless told, 0660 with a group. */
  readonly mode?: number;
  /** Name or number of the group that its file belongs to; the process's own unless told. */
  readonly group?: string;
}

/** Where clients connect. */
export type Endpoint =
  | { readonly kind: "path" } & SocketPath
  | { readonly kind: "fd"; readonly fd: number };

/** A listening socket of this process, or one that is to listen. */
export interface Listening extends Disposable {
  /** Number of the descriptor. */
  readonly fd: number;
  /** Its path in the file system, if it has one. */
  readonly path: string | null;
  /**
   * Has clients find it: makes its file. An inherited one listens already.
   *
   * @throws {Error} With the remedy
   */
  listen(): void;
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
  const nothing = () => {};
  const path = socketPath(fd);
  return {
    fd,
    path,
    listen: nothing,
    close: nothing,
    [Symbol.dispose]: nothing,
  };
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

/** Where there is no folder this fails; without the permission to look, making the socket does. */
function checkFolder(path: string): void {
  try {
    Deno.statSync(dirname(path));
  } catch (error) {
    if (!(error instanceof Deno.errors.NotCapable)) throw error;
  }
}

/**
 * Makes sure that a socket can be made at the path.
 *
 * @returns Whether one is there that nobody serves any more
 * @throws {Error} With the remedy, when the path is taken or has no folder
 */
function checkSocketPath(path: string): boolean {
  checkLength(path);
  checkFolder(path);
  let info: Deno.FileInfo;
  try {
    info = Deno.lstatSync(path);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
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
  return true;
}

function removeIfThere(path: string): void {
  try {
    Deno.removeSync(path);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
}

/** Removes a socket file, unless somebody has removed it or put one of their own there meanwhile. */
function removeSocket(path: string, inode: number | null): void {
  try {
    if (Deno.lstatSync(path).ino === inode) Deno.removeSync(path);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
}

/** What keeps a socket from being made at the path, with the remedy. */
function explainListening(path: string, error: unknown): unknown {
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
        environmentVariable("XDG_RUNTIME_DIR") ?? "/tmp"
      }`,
    );
  }
  return error;
}

const OWNER_ONLY = 0o600;
const OWNER_AND_GROUP = 0o660;

/** @throws {Error} When there is no such group */
function groupNumber(group: string): number {
  const number = groupId(group);
  if (number === null) {
    throw new Error(
      `Cannot use group=${group}: there is no such group; "getent group" lists them`,
    );
  }
  return number;
}

/** The owner's socket becomes one for those it is meant for. */
function setAccess({ path, mode, group }: SocketPath): void {
  if (group !== undefined) {
    try {
      Deno.chownSync(path, null, groupNumber(group));
    } catch (error) {
      if (!(error instanceof Deno.errors.PermissionDenied)) throw error;
      throw new Error(
        `Cannot give ${path} to group ${group}: not permitted; run as a user who is in it, see "id"`,
      );
    }
  }
  const bits = mode ?? (group === undefined ? OWNER_ONLY : OWNER_AND_GROUP);
  if (bits !== OWNER_ONLY) Deno.chmodSync(path, bits);
}

/**
 * Makes a socket with a file: the owner's only at first, then for whom it is meant. One that nobody serves any more is
 * replaced.
 *
 * @param bind Makes the file
 * @returns What `bind` gave, and what removes the file
 * @throws {Error} With the remedy; what `bind` gave is then closed, and there is no file
 */
export function makeSocketFile<T extends { close(): void }>(
  place: SocketPath,
  bind: (path: string) => T,
): { made: T; remove: () => void } {
  const { path } = place;
  let made: T;
  const mask = libc.umask(0o777 & ~OWNER_ONLY);
  try {
    if (checkSocketPath(path)) removeIfThere(path);
    made = bind(path);
  } catch (error) {
    throw explainListening(path, error);
  } finally {
    libc.umask(mask);
  }
  const inode = Deno.lstatSync(path).ino;
  const remove = () => removeSocket(path, inode);
  try {
    setAccess(place);
  } catch (error) {
    made.close();
    remove();
    throw error;
  }
  return { made, remove };
}

/** A socket that is to listen at a path; what can be known to be in the way is said at once. */
function prepare(place: SocketPath): Listening {
  const { path, group } = place;
  try {
    checkSocketPath(path);
  } catch (error) {
    throw explainListening(path, error);
  }
  if (group !== undefined) groupNumber(group);
  const fd = createUnixSocket();
  let remove = () => {};
  const listen = () => {
    ({ remove } = makeSocketFile(place, () => {
      bindUnix(fd.number, path);
      return fd;
    }));
    startListening(fd.number, path);
  };
  const close = () => {
    if (fd.number < 0) return;
    fd.close();
    remove();
  };
  return { fd: fd.number, path, listen, close, [Symbol.dispose]: close };
}

/**
 * Gets an endpoint for clients ready; {@linkcode Listening.listen} opens it.
 *
 * @throws {Error} With the remedy
 */
export function openEndpoint(endpoint: Endpoint): Listening {
  return endpoint.kind === "fd" ? inherit(endpoint.fd) : prepare(endpoint);
}
