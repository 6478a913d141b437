/**
 * Ports of the host that lead to the guest, through libslirp.
 *
 * @module
 */

import { Errno, ErrnoError, errnoName } from "../../../core/errno.ts";
import { lastErrno } from "../../../os/symbols.ts";
import { formatIpv4 } from "../frame/ipv4.ts";
import type { HostForward } from "../user/driver.ts";
import type { SlirpSymbols } from "./symbols.ts";

/**
 * Forwards a port.
 *
 * @throws {ErrnoError} With the remedy
 */
export function addHostForward(
  symbols: SlirpSymbols,
  slirp: Deno.PointerValue,
  forward: HostForward,
): void {
  const { protocol, hostAddress, hostPort, guestAddress, guestPort } = forward;
  const result = symbols.slirp_add_hostfwd(
    slirp,
    protocol === "udp" ? 1 : 0,
    networkOrder(hostAddress),
    hostPort,
    networkOrder(guestAddress),
    guestPort,
  );
  if (result < 0) throw forwardError(forward, lastErrno());
}

/** An IPv4 address as the number a little-endian machine reads from its four bytes. */
function networkOrder(address: number): number {
  return ((address & 0xff) << 24 | (address & 0xff00) << 8 |
    (address >>> 8) & 0xff00 | address >>> 24) >>> 0;
}

function forwardError(forward: HostForward, errno: number): ErrnoError {
  const { protocol, hostAddress, hostPort } = forward;
  const where = `${protocol} ${formatIpv4(hostAddress)}:${hostPort}`;
  let why: string;
  switch (errno) {
    case Errno.EADDRINUSE:
      why = "the port is in use, choose another or stop what listens there";
      break;
    case Errno.EACCES:
      why = "ports this low need CAP_NET_BIND_SERVICE, choose one from 1024 up";
      break;
    case Errno.EADDRNOTAVAIL:
      why = "this host does not have that address";
      break;
    default:
      why = `libslirp fails with ${errnoName(errno)}`;
  }
  return new ErrnoError(errno, `Cannot forward ${where} to the guest: ${why}`);
}
