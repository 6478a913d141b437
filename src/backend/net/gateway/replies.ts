/**
 * Answers of the built-in gateway: a function from a frame to a frame.
 *
 * The frames come from a guest, so every length is checked before it is used, and what is malformed gets no answer.
 *
 * @module
 */

import { netmask } from "../frame/ipv4.ts";
import type { UserNetOptions } from "../user/driver.ts";
import {
  ARP,
  ARPHRD_ETHER,
  ARPOP,
  BOOTP_OP,
  BOOTP_PORT,
  DHCP,
  DHCP_COOKIE,
  DHCP_OPTION,
  DHCP_TYPE,
  ETH,
  ETH_P_ARP,
  ETH_P_IP,
  ICMP,
  ICMP_ECHO,
  ICMP_ECHOREPLY,
  internetChecksum,
  IP,
  IP_FRAGMENT_MASK,
  IPPROTO,
  putIpHeader,
  putUdpHeader,
  UDP,
} from "../frame/packets.ts";

type Frame = Uint8Array<ArrayBuffer>;

/** The gateway's MAC address, the one libslirp derives from 10.0.2.2. */
function gatewayMac(host: number): Uint8Array {
  const mac = new Uint8Array([0x52, 0x55, 0, 0, 0, 0]);
  new DataView(mac.buffer).setUint32(2, host, false);
  return mac;
}

const LEASE_SECONDS = 86_400;
const BROADCAST = 0xffff_ffff;
/** Offset of the payload of what is sent here. */
const PAYLOAD_AT = ETH.SIZE + IP.SIZE;
const DHCP_AT = PAYLOAD_AT + UDP.SIZE;

/** Answers ARP, DHCP and ping for one guest. */
export class GatewayReplies {
  readonly #options: UserNetOptions;
  readonly #mac: Uint8Array;
  readonly #mtu: number;

  /** @param mtu The card's, told to the guest where it is not 1500 */
  constructor(options: UserNetOptions, mtu: number) {
    this.#options = options;
    this.#mac = gatewayMac(options.host);
    this.#mtu = mtu;
  }

  /**
   * The gateway's answer to a frame.
   *
   * @returns A new frame, or null for none; never throws
   */
  reply(frame: Frame): Frame | null {
    if (frame.length < ETH.SIZE) return null;
    const view = new DataView(
      frame.buffer,
      frame.byteOffset,
      frame.byteLength,
    );
    switch (view.getUint16(ETH.TYPE)) {
      case ETH_P_ARP:
        return this.#replyArp(frame, view);
      case ETH_P_IP:
        return this.#replyIp(frame, view);
      default:
        return null;
    }
  }

  #replyArp(frame: Frame, view: DataView): Frame | null {
    const at = ETH.SIZE;
    const { host } = this.#options;
    if (
      frame.length < at + ARP.SIZE ||
      view.getUint16(at + ARP.HRD) !== ARPHRD_ETHER ||
      view.getUint16(at + ARP.PRO) !== ETH_P_IP ||
      view.getUint8(at + ARP.HLN) !== 6 || view.getUint8(at + ARP.PLN) !== 4 ||
      view.getUint16(at + ARP.OP) !== ARPOP.REQUEST ||
      view.getUint32(at + ARP.TPA) !== host
    ) return null;
    const reply = frame.slice(0, at + ARP.SIZE);
    this.#address(reply, frame);
    // Who asked is the target now.
    reply.copyWithin(at + ARP.THA, at + ARP.SHA, at + ARP.THA);
    reply.set(this.#mac, at + ARP.SHA);
    const out = new DataView(reply.buffer);
    out.setUint16(at + ARP.OP, ARPOP.REPLY);
    out.setUint32(at + ARP.SPA, host);
    return reply;
  }

  /** Addresses a frame to whom the request came from. */
  #address(reply: Frame, request: Frame): void {
    reply.set(request.subarray(ETH.SRC, ETH.SRC + 6), ETH.DST);
    reply.set(this.#mac, ETH.SRC);
  }

  #replyIp(frame: Frame, view: DataView): Frame | null {
    const at = ETH.SIZE;
    if (frame.length < at + IP.SIZE) return null;
    const versionIhl = view.getUint8(at + IP.VERSION_IHL);
    const headerBytes = (versionIhl & 15) * 4;
    const totalBytes = view.getUint16(at + IP.TOTAL_LENGTH);
    if (
      versionIhl >>> 4 !== 4 || headerBytes < IP.SIZE ||
      totalBytes < headerBytes || at + totalBytes > frame.length ||
      internetChecksum(view, at, at + headerBytes) !== 0 ||
      (view.getUint16(at + IP.FRAGMENT) & IP_FRAGMENT_MASK) !== 0
    ) return null;
    const destination = view.getUint32(at + IP.DST);
    const isOurs = destination === this.#options.host;
    const start = at + headerBytes;
    const end = at + totalBytes;
    switch (view.getUint8(at + IP.PROTOCOL)) {
      case IPPROTO.ICMP:
        return isOurs ? this.#replyEcho(frame, view, start, end) : null;
      case IPPROTO.UDP:
        return isOurs || destination === BROADCAST
          ? this.#replyUdp(frame, view, start, end)
          : null;
      default:
        return null;
    }
  }

  #ipFrame(
    request: Frame,
    protocol: number,
    destination: number,
    payloadBytes: number,
  ): Frame {
    const frame = new Uint8Array(PAYLOAD_AT + payloadBytes);
    this.#address(frame, request);
    const view = new DataView(frame.buffer);
    view.setUint16(ETH.TYPE, ETH_P_IP);
    const addresses = [this.#options.host, destination] as const;
    const ipBytes = IP.SIZE + payloadBytes;
    putIpHeader(view, ETH.SIZE, protocol, addresses, ipBytes);
    return frame;
  }

  #replyEcho(
    frame: Frame,
    view: DataView,
    start: number,
    end: number,
  ): Frame | null {
    if (
      end - start < ICMP.SIZE ||
      view.getUint8(start + ICMP.TYPE) !== ICMP_ECHO ||
      view.getUint8(start + ICMP.CODE) !== 0 ||
      internetChecksum(view, start, end) !== 0
    ) return null;
    const source = view.getUint32(ETH.SIZE + IP.SRC);
    const reply = this.#ipFrame(frame, IPPROTO.ICMP, source, end - start);
    reply.set(frame.subarray(start, end), PAYLOAD_AT);
    const out = new DataView(reply.buffer, PAYLOAD_AT);
    out.setUint8(ICMP.TYPE, ICMP_ECHOREPLY);
    out.setUint16(ICMP.CHECKSUM, 0);
    out.setUint16(ICMP.CHECKSUM, internetChecksum(out, 0, end - start));
    return reply;
  }

  #replyUdp(
    frame: Frame,
    view: DataView,
    start: number,
    end: number,
  ): Frame | null {
    if (end - start < UDP.SIZE) return null;
    const length = view.getUint16(start + UDP.LENGTH);
    const message = start + UDP.SIZE;
    if (
      length < UDP.SIZE + DHCP.OPTIONS || start + length > end ||
      view.getUint16(start + UDP.SRC_PORT) !== BOOTP_PORT.CLIENT ||
      view.getUint16(start + UDP.DST_PORT) !== BOOTP_PORT.SERVER ||
      view.getUint8(message + DHCP.OP) !== BOOTP_OP.REQUEST ||
      view.getUint8(message + DHCP.HTYPE) !== ARPHRD_ETHER ||
      view.getUint8(message + DHCP.HLEN) !== 6 ||
      view.getUint32(message + DHCP.COOKIE) !== DHCP_COOKIE
    ) return null;
    const asked = parseOptions(view, message + DHCP.OPTIONS, start + length);
    return asked === null ? null : this.#replyDhcp(frame, view, message, asked);
  }

  /** @param asked Options of the request, by their code */
  #replyDhcp(
    frame: Frame,
    view: DataView,
    message: number,
    asked: ReadonlyMap<number, number>,
  ): Frame | null {
    const { host, dhcpStart } = this.#options;
    // The client has chosen another server.
    if ((asked.get(DHCP_OPTION.SERVER_ID) ?? host) !== host) return null;
    const current = view.getUint32(message + DHCP.CIADDR);
    const request = asked.get(DHCP_OPTION.MESSAGE_TYPE);
    let type: number;
    if (request === DHCP_TYPE.DISCOVER) type = DHCP_TYPE.OFFER;
    else if (request === DHCP_TYPE.INFORM) type = DHCP_TYPE.ACK;
    else if (request === DHCP_TYPE.REQUEST) {
      const wanted = asked.get(DHCP_OPTION.REQUESTED_ADDRESS) ?? current;
      type = wanted === dhcpStart ? DHCP_TYPE.ACK : DHCP_TYPE.NAK;
    } else return null;
    const isNak = type === DHCP_TYPE.NAK;
    const leases = !isNak && request !== DHCP_TYPE.INFORM;
    const options = this.#dhcpOptions(type, leases);
    const size = Math.max(DHCP.MIN_SIZE, DHCP.OPTIONS + options.length);
    const destination = leases ? dhcpStart : current || BROADCAST;
    // RFC 2131 section 4.1: broadcast where the client asks for it, and for a NAK.
    const broadcast = isNak ||
      (view.getUint16(message + DHCP.FLAGS) & 0x8000) !== 0;
    const reply = this.#ipFrame(
      frame,
      IPPROTO.UDP,
      broadcast ? BROADCAST : destination,
      UDP.SIZE + size,
    );
    if (broadcast) reply.fill(0xff, ETH.DST, ETH.DST + 6);
    // Hardware address type and length, xid, flags, addresses and client address are the request's.
    reply.set(frame.subarray(message, message + DHCP.SNAME), DHCP_AT);
    reply.set(options, DHCP_AT + DHCP.OPTIONS);
    const out = new DataView(reply.buffer);
    out.setUint8(DHCP_AT + DHCP.OP, BOOTP_OP.REPLY);
    out.setUint8(DHCP_AT + DHCP.HOPS, 0);
    out.setUint16(DHCP_AT + DHCP.SECS, 0);
    out.setUint32(DHCP_AT + DHCP.YIADDR, leases ? dhcpStart : 0);
    out.setUint32(DHCP_AT + DHCP.SIADDR, isNak ? 0 : host);
    out.setUint32(DHCP_AT + DHCP.COOKIE, DHCP_COOKIE);
    const { CLIENT, SERVER } = BOOTP_PORT;
    putUdpHeader(out, PAYLOAD_AT, [SERVER, CLIENT], UDP.SIZE + size);
    return reply;
  }

  #dhcpOptions(type: number, leases: boolean): readonly number[] {
    const { host, prefixLength, restrict } = this.#options;
    const encoder = new TextEncoder();
    const text = (code: number, value: string | null) =>
      value === null ? [] : option(code, ...encoder.encode(value));
    const more = () => [
      ...option32(DHCP_OPTION.SUBNET_MASK, netmask(prefixLength)),
      ...(restrict ? [] : option32(DHCP_OPTION.ROUTER, host)),
      ...(leases ? option32(DHCP_OPTION.LEASE_TIME, LEASE_SECONDS) : []),
      ...(this.#mtu === 1500
        ? []
        : option(DHCP_OPTION.INTERFACE_MTU, ...bytesOf(this.#mtu).slice(2))),
      ...text(DHCP_OPTION.HOST_NAME, this.#options.hostname),
      ...text(DHCP_OPTION.DOMAIN_NAME, this.#options.domainName),
    ];
    return [
      ...option(DHCP_OPTION.MESSAGE_TYPE, type),
      ...option32(DHCP_OPTION.SERVER_ID, host),
      ...(type === DHCP_TYPE.NAK ? [] : more()),
      DHCP_OPTION.END,
    ];
  }
}

/** @param value At most 255 bytes, as the option parser checked */
function option(code: number, ...value: number[]): number[] {
  return [code, value.length, ...value];
}

function option32(code: number, value: number): number[] {
  return option(code, ...bytesOf(value));
}

function bytesOf(value: number): number[] {
  return [24, 16, 8, 0].map((shift) => (value >>> shift) & 255);
}

/**
 * Walks the options of a message (RFC 2132 section 2).
 *
 * @returns The message's type and those that are an address, by their code; null when they run over the end
 */
function parseOptions(
  view: DataView,
  start: number,
  end: number,
): Map<number, number> | null {
  const options = new Map<number, number>();
  for (let at = start; at < end;) {
    const code = view.getUint8(at++);
    if (code === DHCP_OPTION.PAD) continue;
    if (code === DHCP_OPTION.END) break;
    if (at >= end) return null;
    const length = view.getUint8(at++);
    if (at + length > end) return null;
    if (code === DHCP_OPTION.MESSAGE_TYPE) {
      if (length === 1) options.set(code, view.getUint8(at));
    } else if (length === 4) options.set(code, view.getUint32(at));
    at += length;
  }
  return options;
}
