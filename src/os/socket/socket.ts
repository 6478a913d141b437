/**
 * UNIX stream sockets that carry file descriptors (SCM_RIGHTS).
 *
 * @module
 */

import { Errno } from "../../core/errno.ts";
import { setU64 } from "../../core/bits.ts";
import { check, SyscallError } from "../errors.ts";
import { closeFd, Fd } from "../fd.ts";
import { NativeBuffer } from "../mapping.ts";
import { lastErrno, libc, Words } from "../symbols.ts";

const AF_UNIX = 1;
const SOCK_STREAM = 1;
const SOCK_NONBLOCK = 0o4000;
const SOCK_CLOEXEC = 0o2000000;
const SOL_SOCKET = 1;
const SO_TYPE = 3;
const SO_ERROR = 4;
const SO_PEERCRED = 17;
const SO_ACCEPTCONN = 30;
const SO_DOMAIN = 39;
const SCM_RIGHTS = 1;
const MSG_DONTWAIT = 0x40;
const MSG_CTRUNC = 0x08;
const MSG_NOSIGNAL = 0x4000;
const MSG_CMSG_CLOEXEC = 0x4000_0000;
const STREAM_FLAGS = SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC;

/** The most descriptors Linux passes in one message (SCM_MAX_FD). */
export const SCM_MAX_FD = 253;

// struct iovec { void *iov_base; size_t iov_len; }
const IOVEC = { BASE: 0, LEN: 8, SIZE: 16 } as const;

// struct msghdr { void *name; socklen_t namelen; iovec *iov; size_t iovlen; void *control; size_t controllen; int flags; }
const MSGHDR = {
  NAME: 0,
  NAMELEN: 8,
  IOV: 16,
  IOVLEN: 24,
  CONTROL: 32,
  CONTROLLEN: 40,
  FLAGS: 48,
  SIZE: 56,
} as const;

// struct cmsghdr { size_t cmsg_len; int cmsg_level; int cmsg_type; unsigned char data[]; }
const CMSGHDR = { LEN: 0, LEVEL: 8, TYPE: 12, SIZE: 16 } as const;

const AT = { MSGHDR: 0, IOVEC: 64, CONTROL: 128 } as const;
const CONTROL_BYTES = CMSGHDR.SIZE + SCM_MAX_FD * 4 + 4;

/**
 * The msghdr, iovec and control buffer of one connection, set up once and reused for every call.
 *
 * Addresses given to {@linkcode MessageHeader.send} and {@linkcode MessageHeader.receive} are hvas of the caller's
 * own native buffers.
 */
export class MessageHeader implements Disposable {
  readonly #buffer = new NativeBuffer(AT.CONTROL + CONTROL_BYTES);
  readonly #view = this.#buffer.view;
  readonly #pointer = this.#buffer.pointer(AT.MSGHDR);
  /** Descriptors received by the last {@linkcode MessageHeader.receive}; the first {@linkcode fdCount} are valid. */
  readonly fds = new Int32Array(SCM_MAX_FD);
  /** Number of descriptors that came with the last receive. */
  fdCount = 0;
  /** True if the kernel dropped descriptors of the last receive (this process is out of descriptors). */
  fdsTruncated = false;

  constructor() {
    setU64(this.#view, AT.MSGHDR + MSGHDR.IOV, this.#buffer.hva + AT.IOVEC);
    setU64(this.#view, AT.MSGHDR + MSGHDR.IOVLEN, 1);
  }

  #setIovec(buffer: NativeBuffer, offset: number, lengthBytes: number): void {
    buffer.putAddress(this.#view, AT.IOVEC + IOVEC.BASE, offset);
    setU64(this.#view, AT.IOVEC + IOVEC.LEN, lengthBytes);
  }

  #setControl(lengthBytes: number): void {
    const at = AT.MSGHDR + MSGHDR.CONTROL;
    if (lengthBytes === 0) setU64(this.#view, at, 0);
    else this.#buffer.putAddress(this.#view, at, AT.CONTROL);
    setU64(this.#view, AT.MSGHDR + MSGHDR.CONTROLLEN, lengthBytes);
  }

  /**
   * Receives once, without blocking. Every descriptor that arrives is the caller's, in {@linkcode fds}.
   *
   * @param offset Where in the buffer the bytes go
   * @returns Bytes received, 0 at end of file, or −errno (−EAGAIN when there is nothing)
   */
  receive(
    fd: number,
    buffer: NativeBuffer,
    offset: number,
    lengthBytes: number,
  ): number {
    this.#setIovec(buffer, offset, lengthBytes);
    this.#setControl(CONTROL_BYTES);
    this.fdCount = 0;
    this.fdsTruncated = false;
    let n: number;
    do {
      n = libc.recvmsg(fd, this.#pointer, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    } while (n < 0 && lastErrno() === Errno.EINTR);
    if (n < 0) return -lastErrno();
    if (this.#view.getUint32(AT.MSGHDR + MSGHDR.CONTROLLEN, true) !== 0) {
      this.#takeFds();
    }
    const flags = this.#view.getInt32(AT.MSGHDR + MSGHDR.FLAGS, true);
    this.fdsTruncated = (flags & MSG_CTRUNC) !== 0;
    return n;
  }

  #takeFds(): void {
    const view = this.#view;
    const end = AT.CONTROL +
      view.getUint32(AT.MSGHDR + MSGHDR.CONTROLLEN, true);
    let at: number = AT.CONTROL;
    while (at + CMSGHDR.SIZE <= end) {
      const length = view.getUint32(at + CMSGHDR.LEN, true);
      if (length < CMSGHDR.SIZE) return;
      const level = view.getInt32(at + CMSGHDR.LEVEL, true);
      const type = view.getInt32(at + CMSGHDR.TYPE, true);
      if (level === SOL_SOCKET && type === SCM_RIGHTS) {
        for (
          let p = at + CMSGHDR.SIZE;
          p + 4 <= at + length && p + 4 <= end;
          p += 4
        ) {
          this.fds[this.fdCount++] = view.getInt32(p, true);
        }
      }
      at += (length + 7) & ~7;
    }
  }

  /**
   * Sends once, without blocking.
   *
   * @param offset Where in the buffer the bytes are
   * @param fds Descriptors to pass along (they stay the caller's); none on most messages
   * @returns Bytes sent, possibly fewer than asked, or −errno
   */
  send(
    fd: number,
    buffer: NativeBuffer,
    offset: number,
    lengthBytes: number,
    fds?: ArrayLike<number>,
  ): number {
    this.#setIovec(buffer, offset, lengthBytes);
    if (fds === undefined || fds.length === 0) this.#setControl(0);
    else this.#putFds(fds);
    let n: number;
    do {
      n = libc.sendmsg(fd, this.#pointer, MSG_DONTWAIT | MSG_NOSIGNAL);
    } while (n < 0 && lastErrno() === Errno.EINTR);
    return n < 0 ? -lastErrno() : n;
  }

  #putFds(fds: ArrayLike<number>): void {
    const view = this.#view;
    view.setUint32(
      AT.CONTROL + CMSGHDR.LEN,
      CMSGHDR.SIZE + fds.length * 4,
      true,
    );
    view.setUint32(AT.CONTROL + CMSGHDR.LEN + 4, 0, true);
    view.setInt32(AT.CONTROL + CMSGHDR.LEVEL, SOL_SOCKET, true);
    view.setInt32(AT.CONTROL + CMSGHDR.TYPE, SCM_RIGHTS, true);
    for (let i = 0; i < fds.length; i++) {
      view.setInt32(AT.CONTROL + CMSGHDR.SIZE + i * 4, fds[i]!, true);
    }
    this.#setControl((CMSGHDR.SIZE + fds.length * 4 + 7) & ~7);
  }

  /** Closes the descriptors of the last receive that nobody took. */
  closeFds(): void {
    for (let i = 0; i < this.fdCount; i++) closeFd(this.fds[i]!);
    this.fdCount = 0;
  }

  /** Frees the native memory. */
  close(): void {
    this.#buffer.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/**
 * sendmsg(2), once, without blocking and without SIGPIPE.
 *
 * @param message A struct msghdr
 * @returns Bytes sent, or −errno
 */
export function sendMessage(fd: number, message: Deno.PointerObject): number {
  for (;;) {
    const n = libc.sendmsg(fd, message, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n >= 0) return n;
    const errno = lastErrno();
    if (errno !== Errno.EINTR) return -errno;
  }
}

/**
 * recvmsg(2), once and without blocking.
 *
 * @param message A struct msghdr
 * @param flags More than MSG_DONTWAIT
 * @returns Bytes received, 0 at the end of a stream, or −errno
 */
export function receiveMessage(
  fd: number,
  message: Deno.PointerObject,
  flags = 0,
): number {
  for (;;) {
    const n = libc.recvmsg(fd, message, MSG_DONTWAIT | flags);
    if (n >= 0) return n;
    const errno = lastErrno();
    if (errno !== Errno.EINTR) return -errno;
  }
}

/**
 * struct sockaddr_un { sa_family_t sun_family; char sun_path[108]; }
 *
 * @throws {SyscallError} ENAMETOOLONG
 */
export function sockaddrUn(path: string): Uint8Array<ArrayBuffer> {
  const bytes = new TextEncoder().encode(path);
  if (bytes.length > 107) {
    throw new SyscallError(
      "bind",
      Errno.ENAMETOOLONG,
      `Cannot use socket path ${path} of ${bytes.length} bytes, 107 are the most a UNIX socket takes`,
    );
  }
  const address = new Uint8Array(2 + 108);
  new DataView(address.buffer).setUint16(0, AF_UNIX, true);
  address.set(bytes, 2);
  return address;
}

/**
 * A UNIX stream socket that is nowhere yet.
 *
 * @throws {SyscallError} EMFILE and the like
 */
export function createUnixSocket(): Fd {
  return new Fd(check(libc.socket(AF_UNIX, STREAM_FLAGS, 0), "socket"));
}

/**
 * Gives a UNIX socket a file at `path`, readable and writable by its owner only.
 *
 * @throws {SyscallError} EADDRINUSE when the path exists
 */
export function bindUnix(fd: number, path: string): void {
  // The mode is set by umask before the file exists: a chmod afterwards would leave a moment for others.
  const previous = libc.umask(0o177);
  try {
    check(
      libc.bind(fd, sockaddrUn(path), 110),
      "bind",
      `Cannot create socket ${path}`,
    );
  } finally {
    libc.umask(previous);
  }
}

/**
 * Has a UNIX socket at `path` take connections.
 *
 * @throws {SyscallError}
 */
export function startListening(fd: number, path: string, backlog = 8): void {
  check(libc.listen(fd, backlog), "listen", `Cannot listen on ${path}`);
}

/**
 * A listening UNIX stream socket at `path`, readable and writable by its owner only.
 *
 * @throws {SyscallError} EADDRINUSE when the path exists
 */
export function listenUnix(path: string): Fd {
  const fd = createUnixSocket();
  try {
    bindUnix(fd.number, path);
    startListening(fd.number, path);
    return fd;
  } catch (error) {
    fd.close();
    throw error;
  }
}

/**
 * Connects to a UNIX stream socket.
 *
 * @throws {SyscallError} ENOENT, ECONNREFUSED (no one listens), EAGAIN (backlog full)
 */
export function connectUnix(path: string): Fd {
  const fd = new Fd(check(libc.socket(AF_UNIX, STREAM_FLAGS, 0), "socket"));
  try {
    check(
      libc.connect(fd.number, sockaddrUn(path), 110),
      "connect",
      `Cannot connect to ${path}`,
    );
  } catch (error) {
    fd.close();
    throw error;
  }
  return fd;
}

/**
 * A UNIX datagram socket at `path`, to which only its owner may send.
 *
 * @throws {SyscallError} EADDRINUSE when the path exists
 */
export function bindUnixDatagram(path: string): Fd {
  const SOCK_DGRAM = 2;
  const flags = SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC;
  const fd = new Fd(check(libc.socket(AF_UNIX, flags, 0), "socket"));
  try {
    bindUnix(fd.number, path);
    return fd;
  } catch (error) {
    fd.close();
    throw error;
  }
}

/**
 * Finds what becomes of connecting a datagram socket to a path, which its owner does not notice.
 *
 * @returns 0, or errno: ECONNREFUSED when a socket of whatever type is there that nobody has open
 */
export function probeUnix(path: string): number {
  const SOCK_DGRAM = 2;
  const flags = SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC;
  using fd = new Fd(check(libc.socket(AF_UNIX, flags, 0), "socket"));
  return libc.connect(fd.number, sockaddrUn(path), 110) < 0 ? lastErrno() : 0;
}

/**
 * Accepts one connection.
 *
 * @returns The connection, or null when nobody waits any more
 * @throws {SyscallError} EMFILE and the like
 */
export function acceptUnix(listener: number): Fd | null {
  const fd = libc.accept4(listener, 0, 0, SOCK_NONBLOCK | SOCK_CLOEXEC);
  if (fd >= 0) return new Fd(fd);
  const errno = lastErrno();
  if (
    errno === Errno.EAGAIN || errno === Errno.ECONNABORTED ||
    errno === Errno.EINTR
  ) return null;
  throw new SyscallError("accept4", errno);
}

/**
 * A connected pair of stream sockets.
 *
 * @throws {SyscallError}
 */
export function socketPair(): [Fd, Fd] {
  const pair = new Int32Array(2);
  check(
    libc.socketpair(AF_UNIX, STREAM_FLAGS, 0, new Uint8Array(pair.buffer)),
    "socketpair",
  );
  return [new Fd(pair[0]!), new Fd(pair[1]!)];
}

function socketOption(fd: number, name: number): number {
  const value = new Int32Array(3);
  const length = new Uint32Array([12]);
  check(
    libc.getsockopt(
      fd,
      SOL_SOCKET,
      name,
      new Uint8Array(value.buffer),
      new Uint8Array(length.buffer),
    ),
    "getsockopt",
  );
  return value[0]!;
}

// One page per thread.
const unread = new NativeBuffer(4);
const UNREAD = new Words(2);
const SIOCINQ = 0x541b;
UNREAD.set(0, SIOCINQ);
UNREAD.set(1, unread.hva);

/** Number of bytes that wait in a stream socket to be received; 0 for what is none. */
export function unreadBytes(fd: number): number {
  return libc.ioctl_value(fd, UNREAD.at[0]!, UNREAD.at[1]!) < 0
    ? 0
    : unread.view.getInt32(0, true);
}

/** True if the descriptor is a listening UNIX stream socket, as `--fd N` wants. */
export function isListeningSocket(fd: number): boolean {
  try {
    return socketOption(fd, SO_DOMAIN) === AF_UNIX &&
      socketOption(fd, SO_TYPE) === SOCK_STREAM &&
      socketOption(fd, SO_ACCEPTCONN) === 1;
  } catch (error) {
    if (error instanceof SyscallError) return false;
    throw error;
  }
}

/**
 * The pending error of a socket, cleared by reading it.
 *
 * @returns errno, 0 for none
 */
export function socketError(fd: number): number {
  return socketOption(fd, SO_ERROR);
}

/**
 * Process id of the peer at the time it connected.
 *
 * @throws {SyscallError}
 */
export function peerPid(fd: number): number {
  return socketOption(fd, SO_PEERCRED);
}

/**
 * The path a UNIX socket is bound to.
 *
 * @returns null for an unnamed or abstract socket, or one of another family
 */
export function socketPath(fd: number): string | null {
  const address = new Uint8Array(110);
  const length = new Uint8Array(4);
  new DataView(length.buffer).setUint32(0, address.length, true);
  if (libc.getsockname(fd, address, length) < 0) return null;
  const view = new DataView(address.buffer);
  if (view.getUint16(0, true) !== AF_UNIX || address[2] === 0) return null;
  const end = address.indexOf(0, 2);
  return new TextDecoder().decode(
    address.subarray(2, end < 0 ? address.length : end),
  );
}
