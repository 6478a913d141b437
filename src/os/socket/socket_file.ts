/**
 * UNIX sockets in the file system: made where a dead one may be left, for whom they are meant, and removed with their
 * owner.
 *
 * @module
 */

import type { StateReader } from "../../core/state_reader.ts";
import { dirname } from "node:path";
import { environmentVariable } from "../../core/environment.ts";
import { Errno } from "../../core/errno.ts";
import { groupId, probeUnix } from "../mod.ts";
import { libc } from "../symbols.ts";

/** Path of a socket, and who may connect to it. */
export interface SocketPath {
  /** Path of its file. */
  readonly path: string;
  /** Permission bits of its file; 0600 unless told, 0660 with a group. */
  readonly mode?: number;
  /** Name or number of the group that its file belongs to; the process's own unless told. */
  readonly group?: string;
}

/** A socket's file in the file system. */
export interface SocketFile {
  readonly path: string;
  /** Number of the file; null when it was gone at once. */
  readonly inode: number | null;
}

/** @throws {import("../../core/errno.ts").ErrnoError} EINVAL when a saved state has it wrong */
export function parseSocketFile(reader: StateReader): SocketFile {
  const { MAX_SAFE_INTEGER } = Number;
  return {
    path: reader.text("path"),
    inode: reader.value("inode") === null
      ? null
      : reader.integer("inode", MAX_SAFE_INTEGER),
  };
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

/** Fails without a folder; without the permission to look, making the socket does. */
function checkFolder(path: string): void {
  try {
    Deno.statSync(dirname(path));
  } catch (error) {
    if (!(error instanceof Deno.errors.NotCapable)) throw error;
  }
}

/** Fails without the permission to write, which removes the file at the end: too late to find that it is missing. */
function checkPermission(path: string): void {
  if (
    Deno.permissions.requestSync({ name: "write", path }).state === "granted"
  ) return;
  throw new Deno.errors.NotCapable(
    `Requires write access to "${path}", run again with the --allow-write flag`,
  );
}

function fileInfo(path: string): Deno.FileInfo | null {
  try {
    return Deno.lstatSync(path);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return null;
    throw error;
  }
}

/** True if somebody may be serving the path; who does will not notice. */
function isLive(path: string): boolean {
  const errno = probeUnix(path);
  // Nothing else says that nobody has it open: a backlog may be full (EAGAIN), the server another user's (EACCES) or
  // the socket of another type (EPROTOTYPE), and all of them alive.
  return errno !== Errno.ECONNREFUSED && errno !== Errno.ENOENT;
}

/**
 * Makes sure that a socket can be made, and removed, at the path.
 *
 * @returns Whether one is there that nobody serves any more
 * @throws {Error} With the remedy
 */
export function checkSocketPath({ path, group }: SocketPath): boolean {
  checkLength(path);
  let info: Deno.FileInfo | null;
  try {
    checkFolder(path);
    info = fileInfo(path);
  } catch (error) {
    throw explained(path, error);
  }
  checkPermission(path);
  if (group !== undefined) groupNumber(group);
  if (info === null) return false;
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

/** Removes the file, unless it is gone or somebody has put another in its place. */
export function removeSocketFile({ path, inode }: SocketFile): void {
  const found = fileInfo(path);
  if (found !== null && found.ino === inode) Deno.removeSync(path);
}

/** Reason why no socket can be made at the path, with the remedy. */
function explained(path: string, error: unknown): unknown {
  const why = explain((error as { readonly code?: unknown }).code);
  return why === null
    ? error
    : new Error(`Cannot listen on ${path}: ${why}`, { cause: error });
}

/** @param code The name of an error number, of ours or of the runtime's */
function explain(code: unknown): string | null {
  const another = () =>
    `choose a folder you may write to, such as ${
      environmentVariable("XDG_RUNTIME_DIR") ?? "/tmp"
    }`;
  switch (code) {
    case "EADDRINUSE":
      return "another process has just taken it; choose another path";
    case "ENOENT":
      return "its folder does not exist; make it first";
    case "ENOTDIR":
      return "what is to be its folder is a file; choose another path";
    case "EACCES":
    case "EPERM":
      return `permission denied; ${another()}`;
    case "EROFS":
      return `its file system is read-only; ${another()}`;
    default:
      return null;
  }
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
 * @returns What `bind` gave, and its file, to be removed with {@linkcode removeSocketFile}
 * @throws {Error} With the remedy; what `bind` gave is then closed, and there is no file
 */
export function makeSocketFile<T extends { close(): void }>(
  place: SocketPath,
  bind: (path: string) => T,
): { made: T; file: SocketFile } {
  const { path } = place;
  const isDead = checkSocketPath(place);
  let made: T;
  const mask = libc.umask(0o777 & ~OWNER_ONLY);
  try {
    if (isDead) Deno.removeSync(path);
    made = bind(path);
  } catch (error) {
    throw explained(path, error);
  } finally {
    libc.umask(mask);
  }
  const file = { path, inode: fileInfo(path)?.ino ?? null };
  try {
    setAccess(place);
  } catch (error) {
    made.close();
    removeSocketFile(file);
    throw error;
  }
  return { made, file };
}
