/**
 * DHCP messages by which a user-mode network learns what addresses were given before.
 *
 * @module
 */

import {
  ARPHRD_ETHER,
  BOOTP_OP,
  BOOTP_PORT,
  DHCP,
  DHCP_COOKIE,
  DHCP_OPTION,
  DHCP_TYPE,
  ETH,
  ETH_P_IP,
  IP,
  IPPROTO,
  putIpHeader,
  putUdpHeader,
  UDP,
  VERSION_4_IHL_5,
} from "../frame/packets.ts";
import type { SlirpLease, SlirpPage } from "./page.ts";

const IP_AT = ETH.SIZE;
const UDP_AT = IP_AT + IP.SIZE;
const DHCP_AT = UDP_AT + UDP.SIZE;
const OPTIONS_AT = DHCP_AT + DHCP.OPTIONS;
/** The message's type is the first option of what libslirp sends. */
const TYPE_OPTION_BYTES = 3;

/** Length in bytes of what {@linkcode putLeaseRequest} writes. */
export const LEASE_REQUEST_BYTES: number = DHCP_AT + DHCP.MIN_SIZE;

/**
 * Writes the frame by which a guest asks for the address it had.
 *
 * @param bytes {@linkcode LEASE_REQUEST_BYTES} at least
 */
export function putLeaseRequest(
  bytes: Uint8Array<ArrayBuffer>,
  { mac, address }: SlirpLease,
): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  bytes.fill(0, 0, LEASE_REQUEST_BYTES);
  bytes.fill(0xff, ETH.DST, ETH.DST + 6);
  bytes.set(mac, ETH.SRC);
  view.setUint16(ETH.TYPE, ETH_P_IP);
  view.setUint8(DHCP_AT + DHCP.OP, BOOTP_OP.REQUEST);
  view.setUint8(DHCP_AT + DHCP.HTYPE, ARPHRD_ETHER);
  view.setUint8(DHCP_AT + DHCP.HLEN, mac.length);
  bytes.set(mac, DHCP_AT + DHCP.CHADDR);
  view.setUint32(DHCP_AT + DHCP.COOKIE, DHCP_COOKIE);
  bytes.set(
    [DHCP_OPTION.MESSAGE_TYPE, 1, DHCP_TYPE.REQUEST],
    OPTIONS_AT,
  );
  const requested = OPTIONS_AT + TYPE_OPTION_BYTES;
  bytes.set([DHCP_OPTION.REQUESTED_ADDRESS, 4], requested);
  view.setUint32(requested + 2, address);
  view.setUint8(requested + 6, DHCP_OPTION.END);
  const ipBytes = LEASE_REQUEST_BYTES - IP_AT;
  putIpHeader(view, IP_AT, IPPROTO.UDP, [0, 0xffff_ffff], ipBytes);
  const { CLIENT, SERVER } = BOOTP_PORT;
  putUdpHeader(view, UDP_AT, [CLIENT, SERVER], ipBytes - IP.SIZE);
}

/**
 * Records the address that a frame for the guest gives it, if it does.
 *
 * @param at Offset of the frame's first byte
 */
export function recordLease(
  page: SlirpPage,
  view: DataView,
  at: number,
  lengthBytes: number,
): void {
  if (
    lengthBytes < OPTIONS_AT + TYPE_OPTION_BYTES ||
    view.getUint16(at + ETH.TYPE) !== ETH_P_IP ||
    view.getUint8(at + IP_AT + IP.PROTOCOL) !== IPPROTO.UDP ||
    view.getUint8(at + IP_AT + IP.VERSION_IHL) !== VERSION_4_IHL_5 ||
    view.getUint16(at + UDP_AT + UDP.SRC_PORT) !== BOOTP_PORT.SERVER ||
    view.getUint16(at + UDP_AT + UDP.DST_PORT) !== BOOTP_PORT.CLIENT ||
    view.getUint8(at + OPTIONS_AT) !== DHCP_OPTION.MESSAGE_TYPE ||
    view.getUint8(at + OPTIONS_AT + 2) !== DHCP_TYPE.ACK
  ) return;
  const message = at + DHCP_AT;
  page.recordLease(
    view.getUint16(message + DHCP.CHADDR),
    view.getUint32(message + DHCP.CHADDR + 2),
    view.getUint32(message + DHCP.YIADDR),
  );
}
