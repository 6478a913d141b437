/**
 * Work of a user-mode network for a driver that leaves it some: libslirp knows nothing of checksums that are yet to be
 * completed, and gives TCP segment by segment.
 *
 * @module
 */

import { NetOffload, type NetOffloads } from "../contract.ts";
import {
  ETH,
  ETH_P_IP,
  internetChecksum,
  internetSum,
  IP,
  IP_FRAGMENT_MASK,
  IPPROTO,
  TCP,
  TH,
  VERSION_4_IHL_5,
} from "../frame/packets.ts";
import {
  VIRTIO_NET_HDR as HDR,
  VIRTIO_NET_HDR_F_DATA_VALID,
  VIRTIO_NET_HDR_F_NEEDS_CSUM,
  VIRTIO_NET_HDR_GSO_TCPV4,
} from "../frame/vnet_header.ts";

/**
 * TCP over IPv4 may come uncut: libslirp takes segments of any length. Over IPv6 it refuses what is longer than the MTU.
 */
export const SLIRP_OFFLOADS: NetOffloads = {
  take: NetOffload.CSUM | NetOffload.TSO4,
  give: NetOffload.CSUM | NetOffload.TSO4,
};

const IP_AT = HDR.SIZE + ETH.SIZE;
const TCP_AT = IP_AT + IP.SIZE;
const HEADERS_BYTES = IP.SIZE + TCP.SIZE;
/** Offset of the payload of a segment without options, from its virtio-net header on. */
export const PAYLOAD_AT: number = TCP_AT + TCP.SIZE;
const DATA_OFFSET_5 = 0x50;
const PACKET_MAX = 0xffff;

/**
 * Completes the checksum of a frame that the driver left to us (virtio 1.3, section 5.1.6.2.1).
 *
 * @param at Offset of its virtio-net header, which the card has checked
 * @param lengthBytes Length with the header
 */
export function completeChecksum(
  view: DataView,
  at: number,
  lengthBytes: number,
): void {
  if ((view.getUint8(at + HDR.FLAGS) & VIRTIO_NET_HDR_F_NEEDS_CSUM) === 0) {
    return;
  }
  const end = at + lengthBytes;
  const start = at + HDR.SIZE + view.getUint16(at + HDR.CSUM_START, true);
  const field = start + view.getUint16(at + HDR.CSUM_OFFSET, true);
  if (field + 2 > end) return;
  const sum = internetChecksum(view, start, end);
  // In UDP 0 would mean that there is none.
  view.setUint16(field, sum === 0 ? 0xffff : sum);
}

/**
 * Writes the virtio-net header of a frame of libslirp's, whose checksums are right.
 *
 * @param at Offset to write it to
 * @param offloads Those that the driver takes, a set of {@linkcode NetOffload}
 */
export function writeHeader(
  view: DataView,
  at: number,
  offloads: number,
): void {
  view.setUint32(at, 0);
  view.setUint32(at + 4, 0);
  view.setUint32(at + 8, 0);
  if ((offloads & NetOffload.CSUM) !== 0) {
    view.setUint8(at + HDR.FLAGS, VIRTIO_NET_HDR_F_DATA_VALID);
  }
}

/**
 * Makes a segment of TCP over IPv4 the beginning of a longer one, if the frame after it goes on where it ends and they
 * differ in nothing else. The payload is left for the caller to move, from {@linkcode PAYLOAD_AT} on.
 *
 * @param first Offset of the virtio-net header of a frame, which may be such a longer one
 * @param next Of the frame after it
 * @param nextBytes Length of that with the header
 * @returns True when it does
 */
export function joinSegments(
  view: DataView,
  first: number,
  next: number,
  nextBytes: number,
): boolean {
  if (!isPlain(view, first) || !isPlain(view, next)) return false;
  const length = view.getUint16(first + IP_AT + IP.TOTAL_LENGTH);
  const nextLength = view.getUint16(next + IP_AT + IP.TOTAL_LENGTH);
  const payload = length - HEADERS_BYTES;
  const nextPayload = nextLength - HEADERS_BYTES;
  if (
    nextPayload <= 0 || IP_AT + nextLength !== nextBytes ||
    length + nextPayload > PACKET_MAX || !isSameFlow(view, first, next)
  ) return false;
  const isLonger = view.getUint8(first + HDR.GSO_TYPE) !== 0;
  const size = isLonger ? view.getUint16(first + HDR.GSO_SIZE, true) : payload;
  // One that is shorter than the others, or pushed, is the last.
  const flags = view.getUint8(next + TCP_AT + TCP.FLAGS);
  if (
    payload <= 0 || payload % size !== 0 || nextPayload > size ||
    view.getUint8(first + TCP_AT + TCP.FLAGS) !== TH.ACK ||
    (flags & ~TH.PUSH) !== TH.ACK ||
    (view.getUint32(first + TCP_AT + TCP.SEQ) + payload) >>> 0 !==
      view.getUint32(next + TCP_AT + TCP.SEQ)
  ) return false;
  view.setUint8(first + TCP_AT + TCP.FLAGS, flags);
  lengthen(view, first, length + nextPayload);
  if (!isLonger) writeSegmentation(view, first, size);
  return true;
}

/** True for a frame that is a whole TCP segment, over IPv4, without options of either. */
function isPlain(view: DataView, at: number): boolean {
  return view.getUint16(at + HDR.SIZE + ETH.TYPE) === ETH_P_IP &&
    view.getUint8(at + IP_AT + IP.VERSION_IHL) === VERSION_4_IHL_5 &&
    view.getUint8(at + IP_AT + IP.PROTOCOL) === IPPROTO.TCP &&
    (view.getUint16(at + IP_AT + IP.FRAGMENT) & IP_FRAGMENT_MASK) === 0 &&
    view.getUint8(at + TCP_AT + TCP.DATA_OFFSET) === DATA_OFFSET_5;
}

/** Offsets at which two headers must be equal, in words of 32 bits. */
const SAME_WORDS = [
  HDR.SIZE + ETH.DST,
  HDR.SIZE + ETH.DST + 4,
  HDR.SIZE + ETH.DST + 8,
  IP_AT + IP.SRC,
  IP_AT + IP.DST,
  TCP_AT + TCP.SRC_PORT,
  TCP_AT + TCP.ACK,
] as const;

function isSameFlow(view: DataView, first: number, next: number): boolean {
  for (let i = 0; i < SAME_WORDS.length; i++) {
    const at = SAME_WORDS[i]!;
    if (view.getUint32(first + at) !== view.getUint32(next + at)) return false;
  }
  return view.getUint8(first + IP_AT + IP.TOS) ===
      view.getUint8(next + IP_AT + IP.TOS) &&
    view.getUint8(first + IP_AT + IP.TTL) ===
      view.getUint8(next + IP_AT + IP.TTL) &&
    view.getUint16(first + TCP_AT + TCP.WINDOW) ===
      view.getUint16(next + TCP_AT + TCP.WINDOW) &&
    view.getUint16(next + TCP_AT + TCP.URGENT) === 0;
}

/** Sets the length of the packet, and the checksums that it is part of: TCP's up to where the driver would complete it. */
function lengthen(view: DataView, at: number, length: number): void {
  const ip = at + IP_AT;
  view.setUint16(ip + IP.TOTAL_LENGTH, length);
  view.setUint16(ip + IP.CHECKSUM, 0);
  view.setUint16(
    ip + IP.CHECKSUM,
    internetChecksum(view, ip, ip + IP.SIZE),
  );
  const rest = IPPROTO.TCP + length - IP.SIZE;
  view.setUint16(
    at + TCP_AT + TCP.CHECKSUM,
    internetSum(view, ip + IP.SRC, ip + IP.SIZE, rest),
  );
}

function writeSegmentation(view: DataView, at: number, size: number): void {
  view.setUint8(at + HDR.FLAGS, VIRTIO_NET_HDR_F_NEEDS_CSUM);
  view.setUint8(at + HDR.GSO_TYPE, VIRTIO_NET_HDR_GSO_TCPV4);
  view.setUint16(at + HDR.HDR_LEN, PAYLOAD_AT - HDR.SIZE, true);
  view.setUint16(at + HDR.GSO_SIZE, size, true);
  view.setUint16(at + HDR.CSUM_START, TCP_AT - HDR.SIZE, true);
  view.setUint16(at + HDR.CSUM_OFFSET, TCP.CHECKSUM, true);
}
