/**
 * TCP: from a name to addresses, and from an address to a connection.
 *
 * @module
 */

import { Errno, ErrnoError } from "../../core/errno.ts";
import { check, cString, SyscallError } from "../errors.ts";
import { Fd } from "../fd.ts";
import { lastErrno, libc } from "../symbols.ts";

const AF_UNSPEC = 0;
const AF_INET = 2;
const AF_INET6 = 10;
const SOCK_STREAM = 1;
const SOCK_NONBLOCK = 0o4000;
const SOCK_CLOEXEC = 0o2000000;
const SOL_SOCKET = 1;
const SO_KEEPALIVE = 9;
const IPPROTO_TCP = 6;
const TCP_NODELAY = 1;
const AI_NUMERICSERV = 0x400;

// struct addrinfo { int flags, family, socktype, protocol; socklen_t addrlen; struct sockaddr *addr; char *canonname;
// struct addrinfo *next; }
const ADDRINFO = {
  FLAGS: 0,
  FAMILY: 4,
  SOCKTYPE: 8,
  ADDRLEN: 16,
  ADDR: 24,
  NEXT: 40,
  SIZE: 48,
} as const;

/** A socket address of the Internet, as connect(2) takes it. */
export interface InternetAddress {
  /** AF_INET or AF_INET6. */
  readonly family: number;
  /** struct sockaddr_in or sockaddr_in6. */
  readonly bytes: Uint8Array<ArrayBuffer>;
}

/**
 * The addresses of a name, best first (getaddrinfo). Blocks: the name may have to be asked for over the network.
 *
 * @param host A name, or an address as text
 * @throws {ErrnoError} ENXIO when there is none
 */
export function resolveTcp(host: string, port: number): InternetAddress[] {
  const hints = new Uint8Array(ADDRINFO.SIZE);
  const view = new DataView(hints.buffer);
  view.setInt32(ADDRINFO.FLAGS, AI_NUMERICSERV, true);
  view.setInt32(ADDRINFO.FAMILY, AF_UNSPEC, true);
  view.setInt32(ADDRINFO.SOCKTYPE, SOCK_STREAM, true);
  const result = new BigUint64Array(1);
  const code = libc.getaddrinfo(
    cString(host),
    cString(`${port}`),
    hints,
    new Uint8Array(result.buffer),
  );
  if (code !== 0) {
    const text = libc.gai_strerror(code);
    const reason = text === null
      ? `error ${code}`
      : Deno.UnsafePointerView.getCString(text);
    throw new ErrnoError(
      Errno.ENXIO,
      `Cannot find the address of ${host}: ${reason}; give the address itself`,
    );
  }
  const list = Deno.UnsafePointer.create(result[0]!);
  try {
    return readAddresses(list);
  } finally {
    libc.freeaddrinfo(list);
  }
}

function readAddresses(list: Deno.PointerValue): InternetAddress[] {
  const addresses: InternetAddress[] = [];
  // SAFETY: the list belongs to us until freeaddrinfo; every address is copied.
  for (let at = list; at !== null;) {
    const info = new Deno.UnsafePointerView(at);
    const family = info.getInt32(ADDRINFO.FAMILY);
    const address = info.getPointer(ADDRINFO.ADDR);
    if (address !== null && (family === AF_INET || family === AF_INET6)) {
      const bytes = new Uint8Array(info.getUint32(ADDRINFO.ADDRLEN));
      new Deno.UnsafePointerView(address).copyInto(bytes);
      addresses.push({ family, bytes });
    }
    at = info.getPointer(ADDRINFO.NEXT);
  }
  return addresses;
}

/**
 * Begins to connect a nonblocking TCP socket, with small messages sent at once and dead peers noticed. Once it is
 * writable, {@linkcode import("./socket.ts").socketError} tells whether it is connected.
 *
 * @throws {SyscallError} ECONNREFUSED, ENETUNREACH and the like, when that is known at once
 */
export function startTcp(address: InternetAddress): Fd {
  const type = SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC;
  const fd = new Fd(check(libc.socket(address.family, type, 0), "socket"));
  try {
    setOption(fd.number, IPPROTO_TCP, TCP_NODELAY);
    setOption(fd.number, SOL_SOCKET, SO_KEEPALIVE);
    const { bytes } = address;
    if (libc.connect(fd.number, bytes, bytes.length) < 0) {
      const errno = lastErrno();
      if (errno !== Errno.EINPROGRESS) throw new SyscallError("connect", errno);
    }
  } catch (error) {
    fd.close();
    throw error;
  }
  return fd;
}

function setOption(fd: number, level: number, name: number): void {
  const on = new Uint8Array(4);
  on[0] = 1;
  check(libc.setsockopt(fd, level, name, on, on.length), "setsockopt");
}
