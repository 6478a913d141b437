/**
 * The header before every frame: checks what it asks for, and leaves nothing else in it.
 *
 * @module
 */

import { NetOffload } from "../../../src/backend/net/contract.ts";
import {
  ETH_HLEN,
  VIRTIO_NET_HDR,
  VIRTIO_NET_HDR_F_DATA_VALID,
  VIRTIO_NET_HDR_F_NEEDS_CSUM,
  VIRTIO_NET_HDR_GSO_ECN,
  VIRTIO_NET_HDR_GSO_NONE,
  VIRTIO_NET_HDR_GSO_TCPV4,
  VIRTIO_NET_HDR_GSO_TCPV6,
  VIRTIO_NET_HDR_GSO_UDP,
  VIRTIO_NET_HDR_GSO_UDP_L4,
} from "../defs.ts";

/** Kinds of headers. */
export const HeaderKind = {
  /** It asks for what is not allowed, or makes no sense. */
  BAD: -1,
  /** Of a frame as it goes over the wire, apart from its checksum. */
  PLAIN: 0,
  /** Of a frame that is to be cut. */
  GSO: 1,
} as const;

/** A kind of header. */
export type HeaderKind = typeof HeaderKind[keyof typeof HeaderKind];

const CHECKSUM_BYTES = 2;

function le16(bytes: Uint8Array, at: number): number {
  return bytes[at]! | (bytes[at + 1]! << 8);
}

/** The offloads of which one must be allowed for a gso_type (without its ECN bit); 0 for a type that does not exist. */
function offloadsFor(gsoType: number): number {
  switch (gsoType) {
    case VIRTIO_NET_HDR_GSO_TCPV4:
      return NetOffload.TSO4;
    case VIRTIO_NET_HDR_GSO_TCPV6:
      return NetOffload.TSO6;
    case VIRTIO_NET_HDR_GSO_UDP:
      return NetOffload.UFO;
    case VIRTIO_NET_HDR_GSO_UDP_L4:
      return NetOffload.USO4 | NetOffload.USO6;
    default:
      return 0;
  }
}

function isGsoTypeAllowed(gsoType: number, offloads: number): boolean {
  const type = gsoType & ~VIRTIO_NET_HDR_GSO_ECN;
  if ((offloadsFor(type) & offloads) === 0) return false;
  if (type === gsoType) return true;
  // ECN is of TCP.
  return (offloads & NetOffload.ECN) !== 0 &&
    (type === VIRTIO_NET_HDR_GSO_TCPV4 || type === VIRTIO_NET_HDR_GSO_TCPV6);
}

/** For a few bytes `fill` takes ten times as long. */
function clear(bytes: Uint8Array, start: number, end: number): void {
  for (let at = start; at < end; at++) bytes[at] = 0;
}

/**
 * Checks a header (virtio 1.3, sections 5.1.6.2 and 5.1.6.4) and clears what has no meaning: unknown flags, fields of
 * offloads that are not used, num_buffers.
 *
 * @param bytes A private copy of the header, from its first byte on
 * @param frameBytes Length of the frame behind it
 * @param offloads What is allowed, a set of {@linkcode NetOffload}
 * @param keepsValid Whether DATA_VALID is passed on, where CSUM is allowed
 */
export function sanitizeHeader(
  bytes: Uint8Array,
  frameBytes: number,
  offloads: number,
  keepsValid: boolean,
): HeaderKind {
  const H = VIRTIO_NET_HDR;
  const flags = bytes[H.FLAGS]!;
  const needsCsum = (flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) !== 0;
  if (needsCsum) {
    const start = le16(bytes, H.CSUM_START);
    const end = start + le16(bytes, H.CSUM_OFFSET) + CHECKSUM_BYTES;
    if (
      (offloads & NetOffload.CSUM) === 0 || start < ETH_HLEN || end > frameBytes
    ) {
      return HeaderKind.BAD;
    }
  } else {
    clear(bytes, H.CSUM_START, H.NUM_BUFFERS);
  }
  const kept = VIRTIO_NET_HDR_F_NEEDS_CSUM |
    (keepsValid && (offloads & NetOffload.CSUM) !== 0
      ? VIRTIO_NET_HDR_F_DATA_VALID
      : 0);
  bytes[H.FLAGS] = flags & kept;
  bytes[H.NUM_BUFFERS] = 0;
  bytes[H.NUM_BUFFERS + 1] = 0;
  const gsoType = bytes[H.GSO_TYPE]!;
  if (gsoType === VIRTIO_NET_HDR_GSO_NONE) {
    clear(bytes, H.HDR_LEN, H.CSUM_START);
    return HeaderKind.PLAIN;
  }
  // NEEDS_CSUM and a segment size MUST come with any other type. hdr_len is a hint that need not be true, but that a
  // header is longer than its frame nobody can mean.
  const good = needsCsum && isGsoTypeAllowed(gsoType, offloads) &&
    le16(bytes, H.GSO_SIZE) !== 0 && le16(bytes, H.HDR_LEN) <= frameBytes;
  return good ? HeaderKind.GSO : HeaderKind.BAD;
}
