/**
 * What the built-in gateway answers: a function from a frame to a frame.
 *
 * The frames come from a guest, so every length is checked before it is used, and what is malformed gets no answer.
 *
 * @module
 */

import { netmask } from "../frame/ipv4.ts";
import type { UserNetOptions } from "../user/driver.ts";
import {
  ARP,
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
  internetSum,
  IP,
  IP_FRAGMENT_MASK,
  IPPROTO,
  UDP,
} from "../frame/packets.ts";

/** The gateway's MAC address, the one libslirp derives from 10.0.2.2. */
function gatewayMac(host: number): Uint8Array {
  const mac = new Uint8Array([0x52, 0x55, 0, 0, 0, 0]);
  new DataView(mac.buffer).setUint32(2, host, false);
  return mac;
}

const ARPHRD_ETHER = 1;
const TTL = 64;
const LEASE_SECONDS = 86_400;
const BROADCAST = 0xffff_ffff;

/** What a DHCP client asks, as far as it matters here. */
interface DhcpRequest {
  readonly type: number;
  readonly requested: number | null;
  readonly serverId: number | null;
}

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
  reply(frame: Uint8Array<ArrayBuffer>): Uint8Array<ArrayBuffer> | null {
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

  #replyArp(frame: Uint8Array, view: DataView): Uint8Array<ArrayBuffer> | null {
    const at = ETH.SIZE;
    if (
      frame.length < at + ARP.SIZE ||
      view.getUint16(at + ARP.HRD) !== ARPHRD_ETHER ||
      view.getUint16(at + ARP.PRO) !== ETH_P_IP ||
      view.getUint8(at + ARP.HLN) !== 6 || view.getUint8(at + ARP.PLN) !== 4 ||
      view.getUint16(at + ARP.OP) !== ARPOP.REQUEST ||
      view.getUint32(at + ARP.TPA) !== this.#options.host
    ) return null;
    const reply = this.#frame(frame, ETH_P_ARP, ARP.SIZE);
    const out = new DataView(reply.buffer);
    out.setUint16(at + ARP.HRD, ARPHRD_ETHER);
    out.setUint16(at + ARP.PRO, ETH_P_IP);
    out.setUint8(at + ARP.HLN, 6);
    out.setUint8(at + ARP.PLN, 4);
    out.setUint16(at + ARP.OP, ARPOP.REPLY);
    reply.set(this.#mac, at + ARP.SHA);
    out.setUint32(at + ARP.SPA, this.#options.host);
    const sender = at + ARP.SHA;
    reply.set(frame.subarray(sender, sender + 10), at + ARP.THA);
    return reply;
  }

  /** An answer's Ethernet header, to whom the frame came from. */
  #frame(
    request: Uint8Array,
    type: number,
    payloadBytes: number,
  ): Uint8Array<ArrayBuffer> {
    const frame = new Uint8Array(ETH.SIZE + payloadBytes);
    frame.set(request.subarray(ETH.SRC, ETH.SRC + 6), ETH.DST);
    frame.set(this.#mac, ETH.SRC);
    new DataView(frame.buffer).setUint16(ETH.TYPE, type);
    return frame;
  }

  #replyIp(frame: Uint8Array, view: DataView): Uint8Array<ArrayBuffer> | null {
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
    const start = at + headerBytes;
    const end = at + totalBytes;
    switch (view.getUint8(at + IP.PROTOCOL)) {
      case IPPROTO.ICMP:
        return destination === this.#options.host
          ? this.#replyEcho(frame, view, start, end)
          : null;
      case IPPROTO.UDP:
        return destination === this.#options.host || destination === BROADCAST
          ? this.#replyUdp(frame, view, start, end)
          : null;
      default:
        return null;
    }
  }

  #ipFrame(
    request: Uint8Array,
    protocol: number,
    destination: number,
    payloadBytes: number,
  ): Uint8Array<ArrayBuffer> {
    const frame = this.#frame(request, ETH_P_IP, IP.SIZE + payloadBytes);
    const view = new DataView(frame.buffer, ETH.SIZE);
    view.setUint8(IP.VERSION_IHL, 0x45);
    view.setUint16(IP.TOTAL_LENGTH, IP.SIZE + payloadBytes);
    view.setUint8(IP.TTL, TTL);
    view.setUint8(IP.PROTOCOL, protocol);
    view.setUint32(IP.SRC, this.#options.host);
    view.setUint32(IP.DST, destination);
    view.setUint16(
      IP.CHECKSUM,
      internetChecksum(view, 0, IP.SIZE),
    );
    return frame;
  }

  #replyEcho(
    frame: Uint8Array,
    view: DataView,
    start: number,
    end: number,
  ): Uint8Array<ArrayBuffer> | null {
    if (
      end - start < ICMP.SIZE ||
      view.getUint8(start + ICMP.TYPE) !== ICMP_ECHO ||
      view.getUint8(start + ICMP.CODE) !== 0 ||
      internetChecksum(view, start, end) !== 0
    ) return null;
    const source = view.getUint32(ETH.SIZE + IP.SRC);
    const reply = this.#ipFrame(frame, IPPROTO.ICMP, source, end - start);
    const at = ETH.SIZE + IP.SIZE;
    reply.set(frame.subarray(start, end), at);
    const out = new DataView(reply.buffer, at);
    out.setUint8(ICMP.TYPE, ICMP_ECHOREPLY);
    out.setUint16(ICMP.CHECKSUM, 0);
    out.setUint16(ICMP.CHECKSUM, internetChecksum(out, 0, end - start));
    return reply;
  }

  #replyUdp(
    frame: Uint8Array,
    view: DataView,
    start: number,
    end: number,
  ): Uint8Array<ArrayBuffer> | null {
    if (end - start < UDP.SIZE) return null;
    const length = view.getUint16(start + UDP.LENGTH);
    if (
      length < UDP.SIZE + DHCP.OPTIONS || start + length > end ||
      view.getUint16(start + UDP.SRC_PORT) !== BOOTP_PORT.CLIENT ||
      view.getUint16(start + UDP.DST_PORT) !== BOOTP_PORT.SERVER
    ) return null;
    const message = start + UDP.SIZE;
    if (
      view.getUint8(message + DHCP.OP) !== BOOTP_OP.REQUEST ||
      view.getUint8(message + DHCP.HTYPE) !== ARPHRD_ETHER ||
      view.getUint8(message + DHCP.HLEN) !== 6 ||
      view.getUint32(message + DHCP.COOKIE) !== DHCP_COOKIE
    ) return null;
    const request = parseDhcp(view, message, start + length);
    return request === null
      ? null
      : this.#replyDhcp(frame, view, message, request);
  }

  #replyDhcp(
    frame: Uint8Array,
    view: DataView,
    message: number,
    request: DhcpRequest,
  ): Uint8Array<ArrayBuffer> | null {
    const { host, dhcpStart } = this.#options;
    // The client has chosen another server.
    if (request.serverId !== null && request.serverId !== host) return null;
    const current = view.getUint32(message + DHCP.CIADDR);
    let type: number;
    if (request.type === DHCP_TYPE.DISCOVER) type = DHCP_TYPE.OFFER;
    else if (request.type === DHCP_TYPE.INFORM) type = DHCP_TYPE.ACK;
    else if (request.type === DHCP_TYPE.REQUEST) {
      const wanted = request.requested ?? current;
      type = wanted === dhcpStart ? DHCP_TYPE.ACK : DHCP_TYPE.NAK;
    } else return null;
    const leases = type !== DHCP_TYPE.NAK && request.type !== DHCP_TYPE.INFORM;
    const options = this.#dhcpOptions(type, leases);
    const size = Math.max(DHCP.MIN_SIZE, DHCP.OPTIONS + options.length);
    const destination = leases ? dhcpStart : current || BROADCAST;
    // RFC 2131 section 4.1: broadcast where the client asks for it, and for a NAK.
    const broadcast = type === DHCP_TYPE.NAK ||
      (view.getUint16(message + DHCP.FLAGS) & 0x8000) !== 0;
    const reply = this.#ipFrame(
      frame,
      IPPROTO.UDP,
      broadcast ? BROADCAST : destination,
      UDP.SIZE + size,
    );
    if (broadcast) reply.fill(0xff, ETH.DST, ETH.DST + 6);
    const body = ETH.SIZE + IP.SIZE + UDP.SIZE;
    const out = new DataView(reply.buffer, body);
    // Hardware address type and length, xid, flags, addresses and client address are the request's.
    reply.set(
      frame.subarray(message + DHCP.OP, message + DHCP.SNAME),
      body + DHCP.OP,
    );
    out.setUint8(DHCP.OP, BOOTP_OP.REPLY);
    out.setUint8(DHCP.HOPS, 0);
    out.setUint16(DHCP.SECS, 0);
    out.setUint32(DHCP.YIADDR, leases ? dhcpStart : 0);
    out.setUint32(DHCP.SIADDR, type === DHCP_TYPE.NAK ? 0 : host);
    out.setUint32(DHCP.COOKIE, DHCP_COOKIE);
    reply.set(options, body + DHCP.OPTIONS);
    finishUdp(reply, BOOTP_PORT.SERVER, BOOTP_PORT.CLIENT);
    return reply;
  }

  #dhcpOptions(type: number, leases: boolean): Uint8Array {
    const { host, prefixLength, hostname, domainName, restrict } =
      this.#options;
    const options = new OptionWriter();
    options.u8(DHCP_OPTION.MESSAGE_TYPE, type);
    options.u32(DHCP_OPTION.SERVER_ID, host);
    if (type !== DHCP_TYPE.NAK) {
      options.u32(DHCP_OPTION.SUBNET_MASK, netmask(prefixLength));
      if (!restrict) options.u32(DHCP_OPTION.ROUTER, host);
      if (leases) options.u32(DHCP_OPTION.LEASE_TIME, LEASE_SECONDS);
      if (this.#mtu !== 1500) {
        options.u16(DHCP_OPTION.INTERFACE_MTU, Math.min(this.#mtu, 0xffff));
      }
      if (hostname !== null) options.text(DHCP_OPTION.HOST_NAME, hostname);
      if (domainName !== null) {
        options.text(DHCP_OPTION.DOMAIN_NAME, domainName);
      }
    }
    return options.end();
  }
}

/** Builds a list of DHCP options. */
class OptionWriter {
  readonly #bytes: number[] = [];

  u8(code: number, value: number): void {
    this.#bytes.push(code, 1, value);
  }

  u16(code: number, value: number): void {
    this.#bytes.push(code, 2, value >>> 8, value & 255);
  }

  u32(code: number, value: number): void {
    this.#bytes.push(code, 4);
    for (const shift of [24, 16, 8, 0]) {
      this.#bytes.push((value >>> shift) & 255);
    }
  }

  /** @param value At most 255 bytes, as the option parser checked */
  text(code: number, value: string): void {
    const text = new TextEncoder().encode(value);
    this.#bytes.push(code, text.length, ...text);
  }

  end(): Uint8Array {
    return new Uint8Array([...this.#bytes, DHCP_OPTION.END]);
  }
}

/** Walks the options (RFC 2132 section 2); null without a message type or when they run over the end. */
function parseDhcp(
  view: DataView,
  message: number,
  end: number,
): DhcpRequest | null {
  let type: number | null = null;
  let requested: number | null = null;
  let serverId: number | null = null;
  let at = message + DHCP.OPTIONS;
  while (at < end) {
    const code = view.getUint8(at++);
    if (code === DHCP_OPTION.PAD) continue;
    if (code === DHCP_OPTION.END) break;
    if (at >= end) return null;
    const length = view.getUint8(at++);
    if (at + length > end) return null;
    if (code === DHCP_OPTION.MESSAGE_TYPE && length === 1) {
      type = view.getUint8(at);
    } else if (code === DHCP_OPTION.REQUESTED_ADDRESS && length === 4) {
      requested = view.getUint32(at);
    } else if (code === DHCP_OPTION.SERVER_ID && length === 4) {
      serverId = view.getUint32(at);
    }
    at += length;
  }
  return type === null ? null : { type, requested, serverId };
}

/** Fills in the UDP header of a frame with a plain IP header and a finished body. */
function finishUdp(
  frame: Uint8Array<ArrayBuffer>,
  sourcePort: number,
  destinationPort: number,
): void {
  const ip = new DataView(frame.buffer, ETH.SIZE);
  const at = ETH.SIZE + IP.SIZE;
  const udp = new DataView(frame.buffer, at);
  const length = frame.length - at;
  udp.setUint16(UDP.SRC_PORT, sourcePort);
  udp.setUint16(UDP.DST_PORT, destinationPort);
  udp.setUint16(UDP.LENGTH, length);
  // The pseudo-header: addresses, protocol, length.
  const sum = internetSum(ip, IP.SRC, IP.SIZE, IPPROTO.UDP + length);
  // A sum of 0 means "none" on the wire and is sent as its other form.
  const checksum = internetChecksum(udp, 0, length, sum);
  udp.setUint16(UDP.CHECKSUM, checksum === 0 ? 0xffff : checksum);
}
