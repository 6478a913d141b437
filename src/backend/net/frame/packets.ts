/**
 * Layouts of the packets that are read and written here; all fields are big-endian.
 *
 * @module
 */

/** Ethernet II header (IEEE 802.3 clause 3): `{ u8 dst[6]; u8 src[6]; u16 type; }`. */
export const ETH = { DST: 0, SRC: 6, TYPE: 12, SIZE: 14 } as const;

/** EtherTypes. */
export const ETH_P_IP = 0x0800;
/** EtherType of ARP. */
export const ETH_P_ARP = 0x0806;

/**
 * ARP for IPv4 over Ethernet (RFC 826):
 * `{ u16 hrd, pro; u8 hln, pln; u16 op; u8 sha[6], spa[4], tha[6], tpa[4]; }`.
 */
export const ARP = {
  HRD: 0,
  PRO: 2,
  HLN: 4,
  PLN: 5,
  OP: 6,
  SHA: 8,
  SPA: 14,
  THA: 18,
  TPA: 24,
  SIZE: 28,
} as const;

/** Kind of hardware addresses: Ethernet's. */
export const ARPHRD_ETHER = 1;
/** ARP operations. */
export const ARPOP = { REQUEST: 1, REPLY: 2 } as const;

/** IPv4 header without options (RFC 791 section 3.1). */
export const IP = {
  VERSION_IHL: 0,
  TOS: 1,
  TOTAL_LENGTH: 2,
  ID: 4,
  FRAGMENT: 6,
  TTL: 8,
  PROTOCOL: 9,
  CHECKSUM: 10,
  SRC: 12,
  DST: 16,
  SIZE: 20,
} as const;

/** First byte of a header without options. */
export const VERSION_4_IHL_5 = 0x45;
const TTL = 64;

/** The "more fragments" bit and the fragment offset: zero in a whole packet. */
export const IP_FRAGMENT_MASK = 0x3fff;

/** IP protocol numbers. */
export const IPPROTO = { ICMP: 1, TCP: 6, UDP: 17 } as const;

/** TCP header without options (RFC 9293, section 3.1); DATA_OFFSET is in 32-bit words, in the upper four bits. */
export const TCP = {
  SRC_PORT: 0,
  DST_PORT: 2,
  SEQ: 4,
  ACK: 8,
  DATA_OFFSET: 12,
  FLAGS: 13,
  WINDOW: 14,
  CHECKSUM: 16,
  URGENT: 18,
  SIZE: 20,
} as const;

/** TCP flags. */
export const TH = { PUSH: 0x08, ACK: 0x10 } as const;

/** ICMP header (RFC 792). */
export const ICMP = { TYPE: 0, CODE: 1, CHECKSUM: 2, SIZE: 8 } as const;

/** ICMP echo. */
export const ICMP_ECHO = 8;
/** ICMP echo reply. */
export const ICMP_ECHOREPLY = 0;

/** UDP header (RFC 768). */
export const UDP = {
  SRC_PORT: 0,
  DST_PORT: 2,
  LENGTH: 4,
  CHECKSUM: 6,
  SIZE: 8,
} as const;

/** BOOTP ports (RFC 951). */
export const BOOTP_PORT = { SERVER: 67, CLIENT: 68 } as const;

/** DHCP message (RFC 2131 section 2); the options follow the magic cookie. */
export const DHCP = {
  OP: 0,
  HTYPE: 1,
  HLEN: 2,
  HOPS: 3,
  XID: 4,
  SECS: 8,
  FLAGS: 10,
  CIADDR: 12,
  YIADDR: 16,
  SIADDR: 20,
  GIADDR: 24,
  CHADDR: 28,
  SNAME: 44,
  FILE: 108,
  COOKIE: 236,
  OPTIONS: 240,
  /** The shortest message a client must take (a BOOTP message). */
  MIN_SIZE: 300,
} as const;

/** BOOTP operations. */
export const BOOTP_OP = { REQUEST: 1, REPLY: 2 } as const;

/** Magic number before DHCP options (RFC 2132 section 2). */
export const DHCP_COOKIE = 0x6382_5363;

/** DHCP message types (RFC 2132 section 9.6). */
export const DHCP_TYPE = {
  DISCOVER: 1,
  OFFER: 2,
  REQUEST: 3,
  ACK: 5,
  NAK: 6,
  INFORM: 8,
} as const;

/** DHCP options (RFC 2132). */
export const DHCP_OPTION = {
  PAD: 0,
  SUBNET_MASK: 1,
  ROUTER: 3,
  HOST_NAME: 12,
  DOMAIN_NAME: 15,
  INTERFACE_MTU: 26,
  REQUESTED_ADDRESS: 50,
  LEASE_TIME: 51,
  MESSAGE_TYPE: 53,
  SERVER_ID: 54,
  END: 255,
} as const;

/**
 * The sum of a range's words that {@linkcode internetChecksum} complements (RFC 1071).
 *
 * @param sum Sum of words before it
 */
export function internetSum(
  view: DataView,
  start: number,
  end: number,
  sum = 0,
): number {
  let at = start;
  // Two words at once: 2^16 is 1 in what follows.
  for (; at + 4 <= end; at += 4) sum += view.getUint32(at);
  if (at + 2 <= end) {
    sum += view.getUint16(at);
    at += 2;
  }
  if (at < end) sum += view.getUint8(at) * 256;
  while (sum > 0xffff) sum = sum % 0x1_0000 + Math.floor(sum / 0x1_0000);
  return sum;
}

/**
 * The Internet checksum (RFC 1071) of a range.
 *
 * @param sum Sum of words before it, as of a pseudo-header
 * @returns The checksum to be stored; 0 over a range that holds a right one
 */
export function internetChecksum(
  view: DataView,
  start: number,
  end: number,
  sum = 0,
): number {
  return ~internetSum(view, start, end, sum) & 0xffff;
}

/**
 * Writes an IPv4 header without options.
 *
 * @param at Offset of a header's worth of zeroes
 * @param lengthBytes Length of the packet
 */
export function putIpHeader(
  view: DataView,
  at: number,
  protocol: number,
  [source, destination]: readonly [number, number],
  lengthBytes: number,
): void {
  view.setUint8(at + IP.VERSION_IHL, VERSION_4_IHL_5);
  view.setUint16(at + IP.TOTAL_LENGTH, lengthBytes);
  view.setUint8(at + IP.TTL, TTL);
  view.setUint8(at + IP.PROTOCOL, protocol);
  view.setUint32(at + IP.SRC, source);
  view.setUint32(at + IP.DST, destination);
  view.setUint16(at + IP.CHECKSUM, internetChecksum(view, at, at + IP.SIZE));
}

/**
 * Writes a UDP header and the checksum of its datagram.
 *
 * @param at Offset of a header's worth of zeroes, behind an IPv4 header and before the payload
 * @param lengthBytes Length of the datagram
 */
export function putUdpHeader(
  view: DataView,
  at: number,
  [sourcePort, destinationPort]: readonly [number, number],
  lengthBytes: number,
): void {
  view.setUint16(at + UDP.SRC_PORT, sourcePort);
  view.setUint16(at + UDP.DST_PORT, destinationPort);
  view.setUint16(at + UDP.LENGTH, lengthBytes);
  // The pseudo-header: addresses, protocol, length.
  const addresses = at - IP.SIZE + IP.SRC;
  const sum = internetSum(view, addresses, at, IPPROTO.UDP + lengthBytes);
  const checksum = internetChecksum(view, at, at + lengthBytes, sum);
  // 0 would mean that there is none, and is sent as its other form.
  view.setUint16(at + UDP.CHECKSUM, checksum === 0 ? 0xffff : checksum);
}
