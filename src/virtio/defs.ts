/**
 * Numbers and layouts of virtqueues and of virtio over PCI. No logic.
 *
 * Names are those of Linux' uapi `virtio_ring.h`, `virtio_config.h` and `virtio_pci.h`; sections are those of the
 * Virtual I/O Device (VIRTIO) standard, version 1.3. Everything is little-endian.
 *
 * @module
 */

/** The largest queue of either format (sections 2.7 and 2.8). */
export const VIRTQUEUE_MAX_SIZE = 32768;

/** Flags of a descriptor (section 2.7.5). */
export const VRING_DESC_F = {
  /** The chain goes on at `next`. */
  NEXT: 1,
  /** The device writes the buffer; otherwise it reads it. */
  WRITE: 2,
  /** The buffer holds a table of descriptors. */
  INDIRECT: 4,
} as const;

/** Flag of the available ring: the device need not interrupt (section 2.7.6). */
export const VRING_AVAIL_F_NO_INTERRUPT = 1;

/** Flag of the used ring: the driver need not notify (section 2.7.8). */
export const VRING_USED_F_NO_NOTIFY = 1;

/**
 * A descriptor, `struct vring_desc` (section 2.7.5).
 *
 * ```c
 * __virtio64 addr; __virtio32 len; __virtio16 flags; __virtio16 next;
 * ```
 */
export const VRING_DESC = {
  ADDR: 0,
  LEN: 8,
  FLAGS: 12,
  NEXT: 14,
  SIZE: 16,
} as const;

/**
 * The available ring, `struct vring_avail` (section 2.7.6): `used_event` follows the last entry.
 *
 * ```c
 * __virtio16 flags; __virtio16 idx; __virtio16 ring[num]; __virtio16 used_event;
 * ```
 */
export const VRING_AVAIL = {
  FLAGS: 0,
  IDX: 2,
  RING: 4,
  ENTRY_SIZE: 2,
  EVENT_SIZE: 2,
} as const;

/**
 * The used ring, `struct vring_used` (section 2.7.8): `avail_event` follows the last entry.
 *
 * ```c
 * __virtio16 flags; __virtio16 idx; struct { __virtio32 id; __virtio32 len; } ring[num]; __virtio16 avail_event;
 * ```
 */
export const VRING_USED = {
  FLAGS: 0,
  IDX: 2,
  RING: 4,
  ENTRY_ID: 0,
  ENTRY_LEN: 4,
  ENTRY_SIZE: 8,
  EVENT_SIZE: 2,
} as const;

/** Alignment of the three parts of a queue in bytes (section 2.7). */
export const VRING_ALIGN = { DESC: 16, AVAIL: 2, USED: 4 } as const;

/**
 * A descriptor of a packed queue, `struct vring_packed_desc` (section 2.8.13); flags NEXT, WRITE and INDIRECT are
 * those of {@linkcode VRING_DESC_F}.
 *
 * ```c
 * __le64 addr; __le32 len; __le16 id; __le16 flags;
 * ```
 */
export const VRING_PACKED_DESC = {
  ADDR: 0,
  LEN: 8,
  ID: 12,
  FLAGS: 14,
  SIZE: 16,
} as const;

/** Bit numbers in the flags of a packed descriptor: which side it belongs to (section 2.8.1). */
export const VRING_PACKED_DESC_F_AVAIL = 7;
/** See {@linkcode VRING_PACKED_DESC_F_AVAIL}. */
export const VRING_PACKED_DESC_F_USED = 15;

/**
 * Event suppression of a packed queue, `struct vring_packed_desc_event` (section 2.8.14).
 *
 * ```c
 * __le16 off_wrap; __le16 flags;
 * ```
 */
export const VRING_PACKED_EVENT = {
  OFF_WRAP: 0,
  FLAGS: 2,
  SIZE: 4,
} as const;

/** Values of the flags of event suppression (section 2.8.10); 3 is reserved. */
export const VRING_PACKED_EVENT_FLAG = {
  /** Notify of everything. */
  ENABLE: 0,
  /** Notify of nothing. */
  DISABLE: 1,
  /** Notify of the descriptor that `off_wrap` names; with EVENT_IDX only. */
  DESC: 2,
} as const;

/** Bit number of the wrap counter in `off_wrap` (section 2.8.14). */
export const VRING_PACKED_EVENT_F_WRAP_CTR = 15;

/** Alignment of the three parts of a packed queue in bytes (section 2.8.10.1). */
export const VRING_PACKED_ALIGN = { DESC: 16, EVENT: 4 } as const;

/** Bits of the device status (section 2.1). */
export const VIRTIO_CONFIG_S = {
  ACKNOWLEDGE: 0x01,
  DRIVER: 0x02,
  DRIVER_OK: 0x04,
  FEATURES_OK: 0x08,
  NEEDS_RESET: 0x40,
  FAILED: 0x80,
} as const;

/** PCI vendor of every virtio device (section 4.1.2.1). */
export const PCI_VENDOR_ID_REDHAT_QUMRANET = 0x1af4;

/** Added to a device type, it makes the PCI device id (section 4.1.2.1). */
export const VIRTIO_PCI_MODERN_DEVICE_ID_BASE = 0x1040;

/** Subsystem id of QEMU's devices, which it also gives to modern-only virtio devices. */
export const PCI_SUBDEVICE_ID_QEMU = 0x1100;

/** A vector register without a vector (section 4.1.5.1.2). */
export const VIRTIO_MSI_NO_VECTOR = 0xffff;

/** Bits of the ISR status (section 4.1.4.5). */
export const VIRTIO_PCI_ISR = { QUEUE: 0x1, CONFIG: 0x2 } as const;

/** Structures that a capability describes (section 4.1.4). */
export const VIRTIO_PCI_CAP_CFG = {
  COMMON: 1,
  NOTIFY: 2,
  ISR: 3,
  DEVICE: 4,
  PCI: 5,
  SHARED_MEMORY: 8,
  VENDOR: 9,
} as const;

/**
 * A virtio structure capability, `struct virtio_pci_cap` (section 4.1.4), with what may follow it.
 *
 * ```c
 * u8 cap_vndr; u8 cap_next; u8 cap_len; u8 cfg_type; u8 bar; u8 id; u8 padding[2]; le32 offset; le32 length;
 * ```
 */
export const VIRTIO_PCI_CAP = {
  VNDR: 0,
  NEXT: 1,
  LEN: 2,
  CFG_TYPE: 3,
  BAR: 4,
  ID: 5,
  OFFSET: 8,
  LENGTH: 12,
  SIZE: 16,
  /** `notify_off_multiplier` of struct virtio_pci_notify_cap (section 4.1.4.4). */
  NOTIFY_MULT: 16,
  NOTIFY_SIZE: 20,
  /** `pci_cfg_data` of struct virtio_pci_cfg_cap (section 4.1.4.9). */
  PCI_CFG_DATA: 16,
  PCI_CFG_SIZE: 20,
} as const;

/** The common configuration, `struct virtio_pci_modern_common_cfg` (section 4.1.4.3). */
export const VIRTIO_PCI_COMMON = {
  DFSELECT: 0,
  DF: 4,
  GFSELECT: 8,
  GF: 12,
  MSIX: 16,
  NUMQ: 18,
  STATUS: 20,
  CFGGENERATION: 21,
  Q_SELECT: 22,
  Q_SIZE: 24,
  Q_MSIX: 26,
  Q_ENABLE: 28,
  Q_NOFF: 30,
  Q_DESCLO: 32,
  Q_DESCHI: 36,
  Q_AVAILLO: 40,
  Q_AVAILHI: 44,
  Q_USEDLO: 48,
  Q_USEDHI: 52,
  Q_NDATA: 56,
  Q_RESET: 58,
  ADM_Q_IDX: 60,
  ADM_Q_NUM: 62,
  SIZE: 64,
} as const;
