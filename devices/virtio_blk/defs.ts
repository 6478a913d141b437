/**
 * Constants and layouts of the virtio block device (virtio 1.3, section 5.2; names as in
 * linux/include/uapi/linux/virtio_blk.h).
 *
 * @module
 */

/** Device type of a block device (virtio 1.3, section 5). */
export const VIRTIO_ID_BLOCK = 2;

/** PCI class of a SCSI storage controller, which is what virtio disks are called: base class 01h, sub-class 00h. */
export const PCI_CLASS_STORAGE_SCSI = 0x01_00_00;

/** Bytes of a sector: the unit of the protocol, whatever the logical block is (section 5.2.5). */
export const VIRTIO_BLK_SECTOR_SIZE = 512;

/** Feature bit numbers (section 5.2.3). */
export const VIRTIO_BLK_F = {
  SIZE_MAX: 1,
  SEG_MAX: 2,
  GEOMETRY: 4,
  RO: 5,
  BLK_SIZE: 6,
  FLUSH: 9,
  TOPOLOGY: 10,
  CONFIG_WCE: 11,
  MQ: 12,
  DISCARD: 13,
  WRITE_ZEROES: 14,
  LIFETIME: 15,
  SECURE_ERASE: 16,
  ZONED: 17,
} as const;

/**
 * The device configuration, `struct virtio_blk_config`, as far as the offered features reach (section 5.2.4).
 *
 * ```c
 * le64 capacity; le32 size_max; le32 seg_max; struct { le16 cylinders; u8 heads; u8 sectors; } geometry; le32 blk_size;
 * struct { u8 physical_block_exp; u8 alignment_offset; le16 min_io_size; le32 opt_io_size; } topology; u8 writeback;
 * u8 unused0; u16 num_queues; le32 max_discard_sectors; le32 max_discard_seg; le32 discard_sector_alignment;
 * le32 max_write_zeroes_sectors; le32 max_write_zeroes_seg; u8 write_zeroes_may_unmap; u8 unused1[3];
 * ```
 */
export const VIRTIO_BLK_CONFIG = {
  CAPACITY: 0,
  SIZE_MAX: 8,
  SEG_MAX: 12,
  GEOMETRY: 16,
  BLK_SIZE: 20,
  PHYSICAL_BLOCK_EXP: 24,
  ALIGNMENT_OFFSET: 25,
  MIN_IO_SIZE: 26,
  OPT_IO_SIZE: 28,
  WRITEBACK: 32,
  NUM_QUEUES: 34,
  MAX_DISCARD_SECTORS: 36,
  MAX_DISCARD_SEG: 40,
  DISCARD_SECTOR_ALIGNMENT: 44,
  MAX_WRITE_ZEROES_SECTORS: 48,
  MAX_WRITE_ZEROES_SEG: 52,
  WRITE_ZEROES_MAY_UNMAP: 56,
  SIZE: 60,
} as const;

/** Types of requests (section 5.2.6). */
export const VIRTIO_BLK_T = {
  IN: 0,
  OUT: 1,
  FLUSH: 4,
  GET_ID: 8,
  GET_LIFETIME: 10,
  DISCARD: 11,
  WRITE_ZEROES: 13,
  SECURE_ERASE: 14,
} as const;

/** Status of a request: its last device-writable byte (section 5.2.6). */
export const VIRTIO_BLK_S = { OK: 0, IOERR: 1, UNSUPP: 2 } as const;

/** The device-readable header of a request: `le32 type; le32 reserved; le64 sector;` (section 5.2.6). */
export const VIRTIO_BLK_OUTHDR = {
  TYPE: 0,
  RESERVED: 4,
  SECTOR: 8,
  SIZE: 16,
} as const;

/**
 * A range of DISCARD and WRITE_ZEROES, `struct virtio_blk_discard_write_zeroes { le64 sector; le32 num_sectors;
 * le32 flags; }` (section 5.2.6).
 */
export const VIRTIO_BLK_RANGE = {
  SECTOR: 0,
  NUM_SECTORS: 8,
  FLAGS: 12,
  SIZE: 16,
} as const;

/** Flag of a WRITE_ZEROES range: the space may be given back. */
export const VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP = 1;

/** Length of the string that GET_ID returns. */
export const VIRTIO_BLK_ID_BYTES = 20;
