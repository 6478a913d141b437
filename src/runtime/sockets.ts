/**
 * Listening sockets: made at a path, or inherited.
 *
 * @module
 */

import {
  bindUnix,
  createUnixSocket,
  isListeningSocket,
  isOpen,
  setCloseOnExec,
  setNonblocking,
  socketPath,
  startListening,
} from "../os/mod.ts";
import {
  checkSocketPath,
  makeSocketFile,
  removeSocketFile,
  type SocketFile,
  type SocketPath,
} from "../os/socket/socket_file.ts";

/** Place where clients connect. */
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

/** A socket that is to listen at a path; what can be known to be in the way is said at once. */
function prepare(place: SocketPath): Listening {
  const { path } = place;
  checkSocketPath(place);
  const fd = createUnixSocket();
  let file: SocketFile | null = null;
  const listen = () => {
    ({ file } = makeSocketFile(place, () => {
      bindUnix(fd.number, path);
      return fd;
    }));
    startListening(fd.number, path);
  };
  const close = () => {
    if (fd.number < 0) return;
    fd.close();
    if (file !== null) removeSocketFile(file);
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
