/**
 * Packets for the tests, written independently of src/backend/net.
 *
 * @module
 */

/** The test card's address. */
export const GUEST_MAC = Uint8Array.of(0x52, 0x54, 0x00, 0x12, 0x34, 0x56);
/** All stations. */
export const BROADCAST_MAC = new Uint8Array(6).fill(0xff);

/** Bytes put one after the other; numbers are single bytes. */
export function bytes(
  ...parts: (number | Uint8Array | number[])[]
): Uint8Array<ArrayBuffer> {
  return Uint8Array.from(
    parts.flatMap((part) => typeof part === "number" ? [part] : [...part]),
  );
}

/** A 16-bit number in network order. */
export function be16(value: number): number[] {
  return [value >>> 8 & 255, value & 255];
}

/** A 32-bit number in network order. */
export function be32(value: number): number[] {
  return [...be16(value >>> 16), ...be16(value)];
}

/** Four bytes of a dotted quad. */
export function ip(text: string): number[] {
  return text.split(".").map(Number);
}

/** RFC 1071, one byte pair after the other. */
export function checksum(data: Uint8Array): number {
  let sum = 0;
  for (let i = 0; i < data.length; i++) {
    sum += i % 2 === 0 ? data[i]! << 8 : data[i]!;
    if (sum > 0xffff) sum -= 0xffff;
  }
  return sum ^ 0xffff;
}

/** An Ethernet frame. */
export function ethernet(
  dst: Uint8Array,
  type: number,
  payload: Uint8Array,
  src: Uint8Array = GUEST_MAC,
): Uint8Array<ArrayBuffer> {
  return bytes(dst, src, be16(type), payload);
}

/** An ARP request for `target`. */
export function arpRequest(
  sender: string,
  target: string,
  src: Uint8Array = GUEST_MAC,
): Uint8Array<ArrayBuffer> {
  const nobody = [0, 0, 0, 0, 0, 0];
  return ethernet(
    BROADCAST_MAC,
    0x0806,
    // deno-fmt-ignore
    bytes(be16(1), be16(0x0800), 6, 4, be16(1), src, ip(sender), nobody, ip(target)),
    src,
  );
}

/** An ARP reply to the one who asked in `request`. */
export function arpReply(
  request: Uint8Array,
  sender: string,
): Uint8Array<ArrayBuffer> {
  const asker = request.slice(22, 32);
  return ethernet(
    request.slice(6, 12),
    0x0806,
    // deno-fmt-ignore
    bytes(be16(1), be16(0x0800), 6, 4, be16(2), GUEST_MAC, ip(sender), asker),
  );
}

/** An IPv4 packet. */
export function ipv4(
  src: string,
  dst: string,
  protocol: number,
  payload: Uint8Array,
): Uint8Array<ArrayBuffer> {
  const header = bytes(
    [0x45, 0],
    be16(20 + payload.length),
    [0, 1, 0, 0, 64, protocol, 0, 0],
    ip(src),
    ip(dst),
  );
  header.set(be16(checksum(header)), 10);
  return bytes(header, payload);
}

function withPseudoChecksum(
  src: string,
  dst: string,
  protocol: number,
  segment: Uint8Array<ArrayBuffer>,
  offset: number,
): Uint8Array<ArrayBuffer> {
  const pseudo = bytes(
    ip(src),
    ip(dst),
    [0, protocol],
    be16(segment.length),
    segment,
  );
  segment.set(be16(checksum(pseudo)), offset);
  return segment;
}

/** An IPv4 packet with a UDP datagram. */
export function udp(
  src: string,
  srcPort: number,
  dst: string,
  dstPort: number,
  data: Uint8Array,
): Uint8Array<ArrayBuffer> {
  const datagram = bytes(
    be16(srcPort),
    be16(dstPort),
    be16(8 + data.length),
    [0, 0],
    data,
  );
  return ipv4(src, dst, 17, withPseudoChecksum(src, dst, 17, datagram, 6));
}

/** TCP flags. */
export const FIN = 1, SYN = 2, RST = 4, PSH = 8, ACK = 16;

/** The fields of a TCP segment. */
export interface TcpFields {
  readonly srcPort: number;
  readonly dstPort: number;
  readonly seq: number;
  readonly ack: number;
  readonly flags: number;
  readonly data?: Uint8Array;
}

/** An IPv4 packet with a TCP segment; a SYN tells an MSS of 1460. */
export function tcp(
  src: string,
  dst: string,
  fields: TcpFields,
): Uint8Array<ArrayBuffer> {
  const options = fields.flags & SYN ? [2, 4, ...be16(1460)] : [];
  const segment = bytes(
    be16(fields.srcPort),
    be16(fields.dstPort),
    be32(fields.seq),
    be32(fields.ack),
    [(5 + options.length / 4) << 4, fields.flags],
    be16(65535),
    [0, 0, 0, 0],
    options,
    fields.data ?? [],
  );
  return ipv4(src, dst, 6, withPseudoChecksum(src, dst, 6, segment, 16));
}

/** An IPv4 packet with an ICMP echo request. */
export function ping(
  src: string,
  dst: string,
  data: Uint8Array,
): Uint8Array<ArrayBuffer> {
  const message = bytes([8, 0, 0, 0], be16(0x1234), be16(7), data);
  message.set(be16(checksum(message)), 2);
  return ipv4(src, dst, 1, message);
}

/** A DHCP message from the guest; `options` without the cookie and the end. */
export function dhcp(
  options: number[],
  fields: { flags?: number; ciaddr?: string; mac?: Uint8Array } = {},
): Uint8Array<ArrayBuffer> {
  const mac = fields.mac ?? GUEST_MAC;
  const message = bytes(
    [1, 1, 6, 0],
    be32(0xcafe_f00d),
    be16(0),
    be16(fields.flags ?? 0),
    ip(fields.ciaddr ?? "0.0.0.0"),
    new Uint8Array(12),
    mac,
    new Uint8Array(10 + 64 + 128),
    [0x63, 0x82, 0x53, 0x63],
    options,
    255,
  );
  const source = fields.ciaddr ?? "0.0.0.0";
  return ethernet(
    BROADCAST_MAC,
    0x0800,
    udp(source, 68, "255.255.255.255", 67, message),
    mac,
  );
}

/** A received IPv4 packet. */
export interface Packet {
  readonly protocol: number;
  readonly src: string;
  readonly dst: string;
  /** Behind the IP header. */
  readonly payload: Uint8Array;
}

/** The IPv4 packet of a frame, its header checksum verified; null when it is none. */
export function parseIp(frame: Uint8Array): Packet | null {
  if (frame[12] !== 8 || frame[13] !== 0) return null;
  const header = (frame[14]! & 15) * 4;
  if (checksum(frame.slice(14, 14 + header)) !== 0) {
    throw new Error("bad IP checksum");
  }
  const total = frame[16]! * 256 + frame[17]!;
  return {
    protocol: frame[23]!,
    src: frame.slice(26, 30).join("."),
    dst: frame.slice(30, 34).join("."),
    payload: frame.slice(14 + header, 14 + total),
  };
}

/** The DHCP options of a frame by code; null when it carries no DHCP reply. The UDP checksum is verified. */
export function parseDhcp(
  frame: Uint8Array,
): { address: string; options: Map<number, number[]> } | null {
  const packet = parseIp(frame);
  if (packet === null || packet.protocol !== 17) return null;
  const { payload } = packet;
  if (payload[3] !== 68) return null;
  const pseudo = bytes(
    ip(packet.src),
    ip(packet.dst),
    [0, 17],
    be16(payload.length),
    payload,
  );
  if ((payload[6] !== 0 || payload[7] !== 0) && checksum(pseudo) !== 0) {
    throw new Error("bad UDP checksum");
  }
  const message = payload.slice(8);
  const options = new Map<number, number[]>();
  for (let at = 240; at < message.length && message[at] !== 255;) {
    if (message[at] === 0) at++;
    else {
      const length = message[at + 1]!;
      options.set(message[at]!, [...message.slice(at + 2, at + 2 + length)]);
      at += 2 + length;
    }
  }
  return { address: message.slice(16, 20).join("."), options };
}

/** A received TCP segment; null when the frame carries none. */
export function parseTcp(frame: Uint8Array): TcpFields | null {
  const packet = parseIp(frame);
  if (packet === null || packet.protocol !== 6) return null;
  const { payload } = packet;
  const view = new DataView(payload.buffer, payload.byteOffset);
  return {
    srcPort: view.getUint16(0),
    dstPort: view.getUint16(2),
    seq: view.getUint32(4),
    ack: view.getUint32(8),
    flags: payload[13]! & 63,
    data: payload.slice((payload[12]! >>> 4) * 4),
  };
}
