/**
 * From the options to libslirp: its `struct SlirpConfig`, and ports of the host that lead to the guest.
 *
 * @module
 */

import { setU64 } from "../../../core/bits.ts";
import { ErrnoError, errnoName } from "../../../core/errno.ts";
import { NativeBuffer } from "../../../os/mod.ts";
import { lastErrno } from "../../../os/symbols.ts";
import { formatIpv4, netmask } from "../frame/ipv4.ts";
import { explainBind } from "../socket/own_socket.ts";
import type { HostForward, UserNetOptions } from "../user/driver.ts";
import {
  SLIRP_CONFIG,
  SLIRP_CONFIG_VERSION,
  type SlirpSymbols,
} from "./symbols.ts";

const AT = SLIRP_CONFIG;

/** fec0::`last`, of QEMU's site-local network. */
function writeIpv6(view: DataView, offset: number, last: number): void {
  view.setUint16(offset, 0xfec0, false);
  view.setUint16(offset + 14, last, false);
}

const IPV6_HOST = 2;
const IPV6_DNS = 3;
const IPV6_PREFIX_LENGTH = 64;

/**
 * Native memory with the structure at its start and the strings it points to behind it. libslirp copies what it
 * keeps, so it may be freed after slirp_new().
 *
 * @param mtu The card's, in bytes
 */
export function buildSlirpConfig(
  options: UserNetOptions,
  mtu: number,
): NativeBuffer {
  const encoder = new TextEncoder();
  const strings = new Map<number, Uint8Array>();
  const put = (field: number, text: string | null) => {
    if (text !== null) strings.set(field, encoder.encode(text));
  };
  put(AT.VHOSTNAME, options.hostname);
  put(AT.TFTP_PATH, options.tftp);
  put(AT.BOOTFILE, options.bootFile);
  put(AT.VDOMAINNAME, options.domainName);
  const search = options.dnsSearch.map((domain) => encoder.encode(domain));
  let size: number = AT.SIZE + (search.length + 1) * 8;
  for (const text of [...strings.values(), ...search]) size += text.length + 1;

  const buffer = new NativeBuffer(size);
  writeFixed(buffer.view, options, mtu);
  // Fresh anonymous memory is zero: every string is terminated, every absent pointer NULL.
  let next: number = AT.SIZE;
  const table = next;
  next += (search.length + 1) * 8;
  const place = (field: number, text: Uint8Array) => {
    buffer.bytes.set(text, next);
    setU64(buffer.view, field, buffer.hva + next);
    next += text.length + 1;
  };
  for (const [field, text] of strings) place(field, text);
  search.forEach((text, i) => place(table + i * 8, text));
  if (search.length > 0) {
    setU64(buffer.view, AT.VDNSSEARCH, buffer.hva + table);
  }
  return buffer;
}

function writeFixed(
  view: DataView,
  options: UserNetOptions,
  mtu: number,
): void {
  view.setUint32(AT.VERSION, SLIRP_CONFIG_VERSION, true);
  view.setInt32(AT.RESTRICTED, options.restrict ? 1 : 0, true);
  view.setUint8(AT.IN_ENABLED, 1);
  view.setUint32(AT.VNETWORK, options.network, false);
  view.setUint32(AT.VNETMASK, netmask(options.prefixLength), false);
  view.setUint32(AT.VHOST, options.host, false);
  view.setUint8(AT.IN6_ENABLED, options.ipv6 ? 1 : 0);
  writeIpv6(view, AT.VPREFIX_ADDR6, 0);
  view.setUint8(AT.VPREFIX_LEN, IPV6_PREFIX_LENGTH);
  writeIpv6(view, AT.VHOST6, IPV6_HOST);
  view.setUint32(AT.VDHCP_START, options.dhcpStart, false);
  view.setUint32(AT.VNAMESERVER, options.dns, false);
  writeIpv6(view, AT.VNAMESERVER6, IPV6_DNS);
  setU64(view, AT.IF_MTU, mtu);
  setU64(view, AT.IF_MRU, mtu);
}

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
  const why = explainBind(errno) ?? `libslirp fails with ${errnoName(errno)}`;
  return new ErrnoError(errno, `Cannot forward ${where} to the guest: ${why}`);
}
