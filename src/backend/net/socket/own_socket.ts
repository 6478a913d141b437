/**
 * A socket at an address of this side, and its file where that is a path.
 *
 * @module
 */

import { Errno } from "../../../core/errno.ts";
import type { StateReader } from "../../../core/state_reader.ts";
import type { Fd, ResourceBag, Saved } from "../../../os/mod.ts";
import {
  parseSocketFile,
  removeSocketFile,
  type SocketFile,
} from "../../../os/socket/socket_file.ts";
import type { Ownership } from "../state.ts";

/** Says what to do where a port of this host cannot be had; null for other errors. */
export function explainBind(errno: number): string | null {
  switch (errno) {
    case Errno.EADDRINUSE:
      return "the port is in use, choose another or stop what listens there";
    case Errno.EACCES:
      return "ports this low need CAP_NET_BIND_SERVICE, choose one from 1024 up";
    case Errno.EADDRNOTAVAIL:
      return "this host does not have that address";
    default:
      return null;
  }
}

/** Name of the socket's descriptor. */
const SOCKET = "socket";

/** A socket that a successor may go on with; its file goes with whoever owns it last. */
export class OwnSocket {
  /** Of its address; null for one of the Internet. Plain data, which is to be saved as `file`. */
  readonly file: SocketFile | null;
  readonly #fd: Fd;
  readonly #ownership: Ownership;

  /**
   * @param make Makes it, where there was no predecessor
   * @param saved State that has its `file`, and the bag it was put into
   * @throws {import("../../../core/errno.ts").ErrnoError}
   */
  constructor(
    ownership: Ownership,
    make: () => { made: Fd; file: SocketFile | null },
    saved?: Saved<StateReader>,
  ) {
    this.#ownership = ownership;
    if (saved === undefined) {
      const { made, file } = make();
      this.#fd = made;
      this.file = file;
    } else {
      this.file = saved.state.partOrNull("file", parseSocketFile);
      this.#fd = saved.bag.take(SOCKET);
    }
  }

  /** The descriptor. */
  get fd(): number {
    return this.#fd.number;
  }

  /** Puts it into a bag. */
  handOver(bag: ResourceBag): void {
    bag.put(SOCKET, this.fd);
  }

  /** Closes it, and removes its file unless that is another's. */
  close(): void {
    this.#fd.close();
    const owned = this.#ownership.end();
    if (owned && this.file !== null) removeSocketFile(this.file);
  }
}
