/**
 * Sockets of the Internet families: from a name to addresses, and from an address to a socket.
 *
 * @module
 */

import { Errno, ErrnoError } from "../../core/errno.ts";
import {
  formatInetAddress,
  type InetAddress,
} from "../../core/inet_address.ts";
import { check, cString, SyscallError } from "../errors.ts";
import { Fd } from "../fd.ts";
import { lastErrno, libc } from "../symbols.ts";

const AF_UNSPEC = 0;
const AF_INET = 2;
const AF_INET6 = 10;
const SOCK_STREAM = 1;
const SOCK_DGRAM = 2;
const NONBLOCK_CLOEXEC = 0o4000 | 0o2000000;
const SOL_SOCKET = 1;
const SO_REUSEADDR = 2;
const SO_KEEPALIVE = 9;
const IPPROTO_TCP = 6;
const TCP_NODELAY = 1;
const IPPROTO_IPV6 = 41;
const IPV6_V6ONLY = 26;
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
// struct sockaddr_in { sa_family_t family; in_port_t port; struct in_addr addr; char zero[8]; }
const SOCKADDR_IN = { FAMILY: 0, PORT: 2, ADDR: 4, SIZE: 16 } as const;
// struct sockaddr_in6 { sa_family_t family; in_port_t port; u32 flowinfo; struct in6_addr addr; u32 scope_id; }
const SOCKADDR_IN6 = { FAMILY: 0, PORT: 2, ADDR: 8, SIZE: 28 } as const;

/** A struct sockaddr_in or sockaddr_in6. */
export type InetSockaddr = Uint8Array<ArrayBuffer>;

/** The address as the kernel takes it. */
export function sockaddrInet(address: InetAddress): InetSockaddr {
  const isIpv6 = address.host.length === 16;
  const layout = isIpv6 ? SOCKADDR_IN6 : SOCKADDR_IN;
  const bytes = new Uint8Array(layout.SIZE);
  const view = new DataView(bytes.buffer);
  view.setUint16(layout.FAMILY, isIpv6 ? AF_INET6 : AF_INET, true);
  view.setUint16(layout.PORT, address.port, false);
  bytes.set(address.host, layout.ADDR);
  return bytes;
}

/**
 * The addresses of a name, best first (getaddrinfo). Blocks: the name may have to be asked for over the network.
 *
 * @param host A name, or an address as text
 * @throws {ErrnoError} ENXIO when there is none
 */
export function resolveTcp(host: string, port: number): InetSockaddr[] {
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

function readAddresses(list: Deno.PointerValue): InetSockaddr[] {
  const addresses: InetSockaddr[] = [];
  // SAFETY: the list belongs to us until freeaddrinfo; every address is copied.
  for (let at = list; at !== null;) {
    const info = new Deno.UnsafePointerView(at);
    const family = info.getInt32(ADDRINFO.FAMILY);
    const address = info.getPointer(ADDRINFO.ADDR);
    if (address !== null && (family === AF_INET || family === AF_INET6)) {
      const bytes = new Uint8Array(info.getUint32(ADDRINFO.ADDRLEN));
      new Deno.UnsafePointerView(address).copyInto(bytes);
      addresses.push(bytes);
    }
    at = info.getPointer(ADDRINFO.NEXT);
  }
  return addresses;
}

function setFlag(fd: number, level: number, name: number): void {
  const on = new Uint8Array(Int32Array.of(1).buffer);
  check(libc.setsockopt(fd, level, name, on, on.length), "setsockopt");
}

/** Runs `use` on a new nonblocking socket for an address, which is closed when that throws. */
function withSocket(
  address: InetSockaddr,
  type: number,
  use: (fd: number) => void,
): Fd {
  const family = new DataView(address.buffer).getUint16(0, true);
  const fd = new Fd(
    check(libc.socket(family, type | NONBLOCK_CLOEXEC, 0), "socket"),
  );
  try {
    use(fd.number);
    return fd;
  } catch (error) {
    fd.close();
    throw error;
  }
}

/**
 * Has a TCP connection send small writes at once and notice a peer that vanished.
 *
 * @throws {SyscallError}
 */
export function tuneTcp(fd: number): void {
  setFlag(fd, IPPROTO_TCP, TCP_NODELAY);
  setFlag(fd, SOL_SOCKET, SO_KEEPALIVE);
}

/**
 * Begins to connect a nonblocking TCP socket, as {@linkcode tuneTcp} has it. Once it is writable,
 * {@linkcode import("./socket.ts").socketError} tells whether it is connected.
 *
 * @throws {SyscallError} ECONNREFUSED, ENETUNREACH and the like, when that is known at once
 */
export function startTcp(address: InetSockaddr): Fd {
  return withSocket(address, SOCK_STREAM, (fd) => {
    tuneTcp(fd);
    if (libc.connect(fd, address, address.length) === 0) return;
    const errno = lastErrno();
    if (errno !== Errno.EINPROGRESS) throw new SyscallError("connect", errno);
  });
}

/**
 * A listening TCP socket; accept4(2) serves it as it does a UNIX socket.
 *
 * @throws {SyscallError} EADDRINUSE, EADDRNOTAVAIL, EACCES
 */
export function listenTcp(address: InetAddress, backlog = 8): Fd {
  const at = sockaddrInet(address);
  return withSocket(at, SOCK_STREAM, (fd) => {
    setFlag(fd, SOL_SOCKET, SO_REUSEADDR);
    if (address.host.length === 16) setFlag(fd, IPPROTO_IPV6, IPV6_V6ONLY);
    const where = `Cannot listen on ${formatInetAddress(address)}`;
    check(libc.bind(fd, at, at.length), "bind", where);
    check(libc.listen(fd, backlog), "listen", where);
  });
}

/**
 * A UDP socket between two addresses of one family: what comes from elsewhere is not received.
 *
 * @throws {SyscallError} EADDRINUSE, EADDRNOTAVAIL, ENETUNREACH
 */
export function openUdp(local: InetAddress, remote: InetAddress): Fd {
  const [from, to] = [sockaddrInet(local), sockaddrInet(remote)];
  return withSocket(from, SOCK_DGRAM, (fd) => {
    check(
      libc.bind(fd, from, from.length),
      "bind",
      `Cannot receive at ${formatInetAddress(local)}`,
    );
    check(
      libc.connect(fd, to, to.length),
      "connect",
      `Cannot send to ${formatInetAddress(remote)}`,
    );
  });
}
