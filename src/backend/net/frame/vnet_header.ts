/**
 * The header before every frame of a network card, and of a back end that does a part of the work on it.
 *
 * @module
 */

/**
 * `struct virtio_net_hdr_v1 { u8 flags; u8 gso_type; le16 hdr_len; le16 gso_size; le16 csum_start; le16 csum_offset;
 * le16 num_buffers; }`: before every frame, whatever was negotiated besides VERSION_1 (section 5.1.6).
 */
export const VIRTIO_NET_HDR = {
  FLAGS: 0,
  GSO_TYPE: 1,
  HDR_LEN: 2,
  GSO_SIZE: 4,
  CSUM_START: 6,
  CSUM_OFFSET: 8,
  NUM_BUFFERS: 10,
  SIZE: 12,
} as const;

/** Header flag: the checksum is to be completed. */
export const VIRTIO_NET_HDR_F_NEEDS_CSUM = 1;
/** Header flag: the checksum has been checked. */
export const VIRTIO_NET_HDR_F_DATA_VALID = 2;
/** Header gso_type: one frame, as it goes over the wire. */
export const VIRTIO_NET_HDR_GSO_NONE = 0;
/** Header gso_type: TCP over IPv4, to be cut into segments. */
export const VIRTIO_NET_HDR_GSO_TCPV4 = 1;
/** Header gso_type: UDP, to be cut into IP fragments. */
export const VIRTIO_NET_HDR_GSO_UDP = 3;
/** Header gso_type: TCP over IPv6, to be cut into segments. */
export const VIRTIO_NET_HDR_GSO_TCPV6 = 4;
/** Header gso_type: UDP, to be cut into datagrams. */
export const VIRTIO_NET_HDR_GSO_UDP_L4 = 5;
/** Bit of the header's gso_type: the first segment has ECN's CWR. */
export const VIRTIO_NET_HDR_GSO_ECN = 0x80;
