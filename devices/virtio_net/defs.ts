/**
 * Constants and layouts of the virtio network device (virtio 1.3, section 5.1; names as in
 * linux/include/uapi/linux/virtio_net.h), and what it needs of Ethernet.
 *
 * @module
 */

export * from "../../src/backend/net/frame/vnet_header.ts";

/** Device type of a network card (virtio 1.3, section 5). */
export const VIRTIO_ID_NET = 1;

/** PCI class of an Ethernet controller: base class 02h, sub-class 00h. */
export const PCI_CLASS_NETWORK_ETHERNET = 0x02_00_00;

/** Feature bit numbers (section 5.1.3). */
export const VIRTIO_NET_F = {
  CSUM: 0,
  GUEST_CSUM: 1,
  CTRL_GUEST_OFFLOADS: 2,
  MTU: 3,
  MAC: 5,
  GUEST_TSO4: 7,
  GUEST_TSO6: 8,
  GUEST_ECN: 9,
  GUEST_UFO: 10,
  HOST_TSO4: 11,
  HOST_TSO6: 12,
  HOST_ECN: 13,
  HOST_UFO: 14,
  MRG_RXBUF: 15,
  STATUS: 16,
  CTRL_VQ: 17,
  CTRL_RX: 18,
  CTRL_VLAN: 19,
  CTRL_RX_EXTRA: 20,
  GUEST_ANNOUNCE: 21,
  MQ: 22,
  CTRL_MAC_ADDR: 23,
  VQ_NOTF_COAL: 52,
  NOTF_COAL: 53,
  GUEST_USO4: 54,
  GUEST_USO6: 55,
  HOST_USO: 56,
  SPEED_DUPLEX: 63,
} as const;

/** Queue numbers without multiqueue (section 5.1.2); with it, pair `i` is at 2i and the control queue behind all pairs. */
export const VIRTIO_NET_VQ = { RX: 0, TX: 1, CTRL: 2 } as const;

/** Bits of the configuration's status field. */
export const VIRTIO_NET_S_LINK_UP = 1;
/** The driver is asked to announce itself on the network. */
export const VIRTIO_NET_S_ANNOUNCE = 2;

/**
 * `struct virtio_net_config { u8 mac[6]; le16 status; le16 max_virtqueue_pairs; le16 mtu; … }` as far as the offered
 * features reach (section 5.1.4).
 */
export const VIRTIO_NET_CONFIG = {
  MAC: 0,
  STATUS: 6,
  MAX_VIRTQUEUE_PAIRS: 8,
  MTU: 10,
  SIZE: 12,
} as const;

/** `struct virtio_net_ctrl_hdr { u8 class; u8 cmd; }` before the command's data (section 5.1.6.5). */
export const VIRTIO_NET_CTRL_HDR = { CLASS: 0, CMD: 1, SIZE: 2 } as const;

/** Ack of a control command: done. */
export const VIRTIO_NET_OK = 0;
/** Ack of a control command: not done. */
export const VIRTIO_NET_ERR = 1;

/** Control class: receive modes (section 5.1.6.5.1). */
export const VIRTIO_NET_CTRL_RX = 0;
/** Commands of {@linkcode VIRTIO_NET_CTRL_RX}; each takes one byte, 0 for off. */
export const VIRTIO_NET_CTRL_RX_CMD = {
  PROMISC: 0,
  ALLMULTI: 1,
  ALLUNI: 2,
  NOMULTI: 3,
  NOUNI: 4,
  NOBCAST: 5,
} as const;

/** Control class: addresses (section 5.1.6.5.2). */
export const VIRTIO_NET_CTRL_MAC = 1;
/** Command: replaces the address filter by two tables, `{ le32 entries; u8 macs[entries][6]; }` each. */
export const VIRTIO_NET_CTRL_MAC_TABLE_SET = 0;
/** Command: sets the card's address, 6 bytes. */
export const VIRTIO_NET_CTRL_MAC_ADDR_SET = 1;

/** Control class: VLAN filter (section 5.1.6.5.3). */
export const VIRTIO_NET_CTRL_VLAN = 2;
/** Command: lets a VLAN in, le16. */
export const VIRTIO_NET_CTRL_VLAN_ADD = 0;
/** Command: keeps a VLAN out, le16. */
export const VIRTIO_NET_CTRL_VLAN_DEL = 1;

/** Control class: announcements (section 5.1.6.5.4). */
export const VIRTIO_NET_CTRL_ANNOUNCE = 3;
/** Command: the driver has seen {@linkcode VIRTIO_NET_S_ANNOUNCE}. */
export const VIRTIO_NET_CTRL_ANNOUNCE_ACK = 0;

/** Control class: multiqueue (section 5.1.6.5.5). */
export const VIRTIO_NET_CTRL_MQ = 4;
/** Command: sets how many queue pairs are used, le16. */
export const VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET = 0;

/** Control class: receive offloads (section 5.1.6.5.8). */
export const VIRTIO_NET_CTRL_GUEST_OFFLOADS = 5;
/** Command: sets which are on, le64 with the bits of the GUEST_* features. */
export const VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET = 0;

/** Control class: notification coalescing (section 5.1.6.5.9). */
export const VIRTIO_NET_CTRL_NOTF_COAL = 6;
/**
 * Commands of {@linkcode VIRTIO_NET_CTRL_NOTF_COAL}, on `struct virtio_net_ctrl_coal { le32 max_packets; le32 max_usecs; }`;
 * behind `{ le16 vq_index; le16 reserved; }` where they name a queue.
 */
export const VIRTIO_NET_CTRL_NOTF_COAL_CMD = {
  TX_SET: 0,
  RX_SET: 1,
  VQ_SET: 2,
  VQ_GET: 3,
} as const;
/** Layout of `struct virtio_net_ctrl_coal`. */
export const VIRTIO_NET_CTRL_COAL = {
  MAX_PACKETS: 0,
  MAX_USECS: 4,
  SIZE: 8,
} as const;

/** Length of an Ethernet address in bytes. */
export const ETH_ALEN = 6;
/** Length of an Ethernet header in bytes: destination, source, type. */
export const ETH_HLEN = 14;
/** The largest payload of a standard Ethernet frame in bytes. */
export const ETH_DATA_LEN = 1500;
/** Length of an 802.1Q tag in bytes. */
export const VLAN_HLEN = 4;
/** EtherType of an 802.1Q tag. */
export const ETH_P_8021Q = 0x8100;
/** Number of VLAN ids. */
export const VLAN_N_VID = 4096;

/** Smallest `mtu` that may be offered (section 5.1.4.1). */
export const MTU_MIN = 68;
/** Largest `mtu` we offer: with the Ethernet header, what 16 bits can count. */
export const MTU_MAX = 65521;
/** The `mtu` of standard Ethernet. */
export const MTU_DEFAULT = ETH_DATA_LEN;

/**
 * The longest frame that is cut before it goes over a wire: Ethernet header, IPv6 header, the most payload that has
 * (section 5.1.6.3).
 */
export const GSO_FRAME_BYTES = 65589;
