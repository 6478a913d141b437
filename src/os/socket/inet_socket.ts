/**
 * Sockets of the Internet families that listen or carry datagrams, by numeric address.
 *
 * @module
 */

import {
  formatInetAddress,
  type InetAddress,
} from "../../core/inet_address.ts";
import { check } from "../errors.ts";
import { Fd } from "../fd.ts";
import type { InternetAddress } from "./inet.ts";
import { libc } from "../symbols.ts";

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

// struct sockaddr_in { sa_family_t family; in_port_t port; struct in_addr addr; char zero[8]; }
const SOCKADDR_IN = { FAMILY: 0, PORT: 2, ADDR: 4, SIZE: 16 } as const;
// struct sockaddr_in6 { sa_family_t family; in_port_t port; u32 flowinfo; struct in6_addr addr; u32 scope_id; }
const SOCKADDR_IN6 = { FAMILY: 0, PORT: 2, ADDR: 8, SIZE: 28 } as const;

/** The address as the kernel takes it. */
export function sockaddrInet(address: InetAddress): InternetAddress {
  const isIpv6 = address.host.length === 16;
  const layout = isIpv6 ? SOCKADDR_IN6 : SOCKADDR_IN;
  const family = isIpv6 ? AF_INET6 : AF_INET;
  const bytes = new Uint8Array(layout.SIZE);
  const view = new DataView(bytes.buffer);
  view.setUint16(layout.FAMILY, family, true);
  view.setUint16(layout.PORT, address.port, false);
  bytes.set(address.host, layout.ADDR);
  return { family, bytes };
}

function setFlag(fd: number, level: number, name: number): void {
  const on = new Uint8Array(Int32Array.of(1).buffer);
  check(libc.setsockopt(fd, level, name, on, on.length), "setsockopt");
}

/** Runs `use` on a new socket, which is closed when that throws. */
function withSocket(
  address: InetAddress,
  type: number,
  use: (fd: number, bytes: Uint8Array<ArrayBuffer>) => void,
): Fd {
  const { family, bytes } = sockaddrInet(address);
  const fd = new Fd(
    check(libc.socket(family, type | NONBLOCK_CLOEXEC, 0), "socket"),
  );
  try {
    use(fd.number, bytes);
    return fd;
  } catch (error) {
    fd.close();
    throw error;
  }
}

/**
 * Has an accepted TCP connection send small writes at once and notice a peer that vanished.
 *
 * @throws {import("../errors.ts").SyscallError}
 */
export function tuneTcp(fd: number): void {
  setFlag(fd, IPPROTO_TCP, TCP_NODELAY);
  setFlag(fd, SOL_SOCKET, SO_KEEPALIVE);
}

/**
 * A listening TCP socket; accept4(2) serves it as it does a UNIX socket.
 *
 * @throws {import("../errors.ts").SyscallError} EADDRINUSE, EADDRNOTAVAIL, EACCES
 */
export function listenTcp(address: InetAddress, backlog = 8): Fd {
  return withSocket(address, SOCK_STREAM, (fd, bytes) => {
    setFlag(fd, SOL_SOCKET, SO_REUSEADDR);
    if (address.host.length === 16) setFlag(fd, IPPROTO_IPV6, IPV6_V6ONLY);
    const where = `Cannot listen on ${formatInetAddress(address)}`;
    check(libc.bind(fd, bytes, bytes.length), "bind", where);
    check(libc.listen(fd, backlog), "listen", where);
  });
}

/**
 * A UDP socket between two addresses of one family: what comes from elsewhere is not received.
 *
 * @throws {import("../errors.ts").SyscallError} EADDRINUSE, EADDRNOTAVAIL, ENETUNREACH
 */
export function openUdp(local: InetAddress, remote: InetAddress): Fd {
  return withSocket(local, SOCK_DGRAM, (fd, bytes) => {
    check(
      libc.bind(fd, bytes, bytes.length),
      "bind",
      `Cannot receive at ${formatInetAddress(local)}`,
    );
    const to = sockaddrInet(remote).bytes;
    check(
      libc.connect(fd, to, to.length),
      "connect",
      `Cannot send to ${formatInetAddress(remote)}`,
    );
  });
}
