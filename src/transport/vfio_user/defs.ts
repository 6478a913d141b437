/**
 * The vfio-user protocol on the wire: commands, flags and layouts, and nothing else.
 *
 * Every offset table counts bytes from the start of its structure; a structure follows {@linkcode HEADER}
 * unless told otherwise. All fields are little-endian (the protocol says host order; both supported hosts are).
 *
 * Source: "vfio-user Protocol Specification" (QEMU, docs/interop/vfio-user.rst) and Linux `<linux/vfio.h>`.
 *
 * @module
 */

// Commands (section "Commands").

/** Proposes a version and capabilities; the first message of a connection. */
export const VFIO_USER_VERSION = 1;
/** Tells the server of memory it may reach. */
export const VFIO_USER_DMA_MAP = 2;
/** Takes such memory back. */
export const VFIO_USER_DMA_UNMAP = 3;
/** Asks how many regions and interrupt types there are. */
export const VFIO_USER_DEVICE_GET_INFO = 4;
/** Asks for one region's size, flags and mappable parts. */
export const VFIO_USER_DEVICE_GET_REGION_INFO = 5;
/** Asks for the eventfds that stand for registers of a region. */
export const VFIO_USER_DEVICE_GET_REGION_IO_FDS = 6;
/** Asks for one interrupt type's count and flags. */
export const VFIO_USER_DEVICE_GET_IRQ_INFO = 7;
/** Assigns, masks, unmasks or triggers interrupts. */
export const VFIO_USER_DEVICE_SET_IRQS = 8;
/** Reads from a region. */
export const VFIO_USER_REGION_READ = 9;
/** Writes to a region. */
export const VFIO_USER_REGION_WRITE = 10;
/** Server to client: reads guest memory. */
export const VFIO_USER_DMA_READ = 11;
/** Server to client: writes guest memory. */
export const VFIO_USER_DMA_WRITE = 12;
/** Resets the device. */
export const VFIO_USER_DEVICE_RESET = 13;
/** Several small region writes in one message. */
export const VFIO_USER_REGION_WRITE_MULTI = 15;
/** Probes, reads or sets a device feature (migration, dirty logging). */
export const VFIO_USER_DEVICE_FEATURE = 16;
/** Reads migration data. */
export const VFIO_USER_MIG_DATA_READ = 17;
/** Writes migration data. */
export const VFIO_USER_MIG_DATA_WRITE = 18;

const COMMAND_NAMES: readonly (string | undefined)[] = [
  undefined,
  "VERSION",
  "DMA_MAP",
  "DMA_UNMAP",
  "DEVICE_GET_INFO",
  "DEVICE_GET_REGION_INFO",
  "DEVICE_GET_REGION_IO_FDS",
  "DEVICE_GET_IRQ_INFO",
  "DEVICE_SET_IRQS",
  "REGION_READ",
  "REGION_WRITE",
  "DMA_READ",
  "DMA_WRITE",
  "DEVICE_RESET",
  undefined,
  "REGION_WRITE_MULTI",
  "DEVICE_FEATURE",
  "MIG_DATA_READ",
  "MIG_DATA_WRITE",
];

/** A command's name for people, such as `"DMA_MAP"`. */
export function commandName(command: number): string {
  return COMMAND_NAMES[command] ?? `command ${command}`;
}

// Header (section "Header").

/**
 * Fields that every message begins with.
 *
 * ```text
 * struct { u16 msg_id; u16 cmd; u32 msg_size (header included); u32 flags; u32 error_no }
 * ```
 */
export const HEADER = {
  MSG_ID: 0,
  CMD: 2,
  MSG_SIZE: 4,
  FLAGS: 8,
  ERROR_NO: 12,
  SIZE: 16,
} as const;

/** The bits of the flags that hold the message type. */
export const VFIO_USER_F_TYPE_MASK = 0xf;
/** Message type: a command. */
export const VFIO_USER_F_TYPE_COMMAND = 0x0;
/** Message type: the reply to a command. */
export const VFIO_USER_F_TYPE_REPLY = 0x1;
/** In a command: do not reply. */
export const VFIO_USER_F_NO_REPLY = 0x10;
/** In a reply: the command failed and `error_no` says why. */
export const VFIO_USER_F_ERROR = 0x20;

// VERSION.

/** Major version of the protocol. */
export const VFIO_USER_MAJOR = 0;
/** Highest minor version implemented here. */
export const VFIO_USER_MINOR = 1;

/**
 * VERSION, request and reply.
 *
 * ```text
 * struct { u16 major; u16 minor; char json[] (optional, ends in NUL) }
 * ```
 */
export const VERSION = { MAJOR: 0, MINOR: 2, DATA: 4, SIZE: 4 } as const;

/** The limits that hold where a peer's VERSION does not name one. */
export const VERSION_DEFAULTS = {
  max_msg_fds: 1,
  max_data_xfer_size: 1_048_576,
  max_dma_maps: 65_535,
  pgsizes: 4096,
} as const;

// DMA_MAP and DMA_UNMAP.

/**
 * DMA_MAP request; the reply has no payload.
 *
 * ```text
 * struct { u32 argsz; u32 flags; u64 offset (in the fd); u64 addr (iova); u64 size }
 * ```
 */
export const DMA_MAP = {
  ARGSZ: 0,
  FLAGS: 4,
  OFFSET: 8,
  ADDR: 16,
  LENGTH: 24,
  SIZE: 32,
} as const;

/** DMA_MAP flag: the device may read the range. */
export const VFIO_USER_F_DMA_REGION_READ = 1 << 0;
/** DMA_MAP flag: the device may write the range. */
export const VFIO_USER_F_DMA_REGION_WRITE = 1 << 1;
/** DMA_MAP flag: reach the range by mapping its descriptor (an extension of libvfio-user). */
export const VFIO_USER_F_DMA_REGION_MMAP = 1 << 2;
/** DMA_MAP flag: reach the range by reading and writing its descriptor (an extension of libvfio-user). */
export const VFIO_USER_F_DMA_REGION_FILE_IO = 1 << 3;

/**
 * DMA_UNMAP, request and reply.
 *
 * ```text
 * struct { u32 argsz; u32 flags; u64 addr (iova); u64 size }
 * ```
 */
export const DMA_UNMAP = {
  ARGSZ: 0,
  FLAGS: 4,
  ADDR: 8,
  LENGTH: 16,
  SIZE: 24,
} as const;

/** DMA_UNMAP flag: answer with the range's dirty bitmap. */
export const VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP = 1 << 0;
/** DMA_UNMAP flag: unmap everything; address and size are 0. */
export const VFIO_DMA_UNMAP_FLAG_ALL = 1 << 1;

// DEVICE_GET_INFO.

/**
 * DEVICE_GET_INFO, request and reply.
 *
 * ```text
 * struct { u32 argsz; u32 flags; u32 num_regions; u32 num_irqs }
 * ```
 */
export const DEVICE_INFO = {
  ARGSZ: 0,
  FLAGS: 4,
  NUM_REGIONS: 8,
  NUM_IRQS: 12,
  SIZE: 16,
} as const;

/** Device flag: DEVICE_RESET works. */
export const VFIO_DEVICE_FLAGS_RESET = 1 << 0;
/** Device flag: it is a PCI device. */
export const VFIO_DEVICE_FLAGS_PCI = 1 << 1;

/** Region index of the first base address register; five more follow. */
export const VFIO_PCI_BAR0_REGION_INDEX = 0;
/** Region index of the last base address register. */
export const VFIO_PCI_BAR5_REGION_INDEX = 5;
/** Region index of the expansion ROM. */
export const VFIO_PCI_ROM_REGION_INDEX = 6;
/** Region index of configuration space. */
export const VFIO_PCI_CONFIG_REGION_INDEX = 7;
/** Region index of the legacy VGA ranges. */
export const VFIO_PCI_VGA_REGION_INDEX = 8;
/** Number of regions a PCI device has. */
export const VFIO_PCI_NUM_REGIONS = 9;

/** Interrupt index of INTA#. */
export const VFIO_PCI_INTX_IRQ_INDEX = 0;
/** Interrupt index of MSI. */
export const VFIO_PCI_MSI_IRQ_INDEX = 1;
/** Interrupt index of MSI-X. */
export const VFIO_PCI_MSIX_IRQ_INDEX = 2;
/** Interrupt index of uncorrected errors. */
export const VFIO_PCI_ERR_IRQ_INDEX = 3;
/** Interrupt index of the request to give the device back. */
export const VFIO_PCI_REQ_IRQ_INDEX = 4;
/** Number of interrupt indices a PCI device has. */
export const VFIO_PCI_NUM_IRQS = 5;

// DEVICE_GET_REGION_INFO.

/**
 * DEVICE_GET_REGION_INFO, request and reply; capabilities follow in the reply.
 *
 * ```text
 * struct { u32 argsz; u32 flags; u32 index; u32 cap_offset; u64 size; u64 offset (in the fd) }
 * ```
 */
export const REGION_INFO = {
  ARGSZ: 0,
  FLAGS: 4,
  INDEX: 8,
  CAP_OFFSET: 12,
  LENGTH: 16,
  OFFSET: 24,
  SIZE: 32,
} as const;

/** Region flag: it can be read. */
export const VFIO_REGION_INFO_FLAG_READ = 1 << 0;
/** Region flag: it can be written. */
export const VFIO_REGION_INFO_FLAG_WRITE = 1 << 1;
/** Region flag: parts of it can be mapped. */
export const VFIO_REGION_INFO_FLAG_MMAP = 1 << 2;
/** Region flag: capabilities follow. */
export const VFIO_REGION_INFO_FLAG_CAPS = 1 << 3;

/**
 * Fields that every capability of a region info begins with.
 *
 * ```text
 * struct { u16 id; u16 version; u32 next (from the start of the region info; 0 ends the list) }
 * ```
 */
export const INFO_CAP_HEADER = { ID: 0, VERSION: 2, NEXT: 4, SIZE: 8 } as const;

/** Capability id: which parts of the region can be mapped. */
export const VFIO_REGION_INFO_CAP_SPARSE_MMAP = 1;

/**
 * The sparse mmap capability, version 1; {@linkcode SPARSE_MMAP_AREA} follows NR_AREAS times.
 *
 * ```text
 * struct { header; u32 nr_areas; u32 reserved; area areas[] }
 * ```
 */
export const CAP_SPARSE_MMAP = {
  HEADER: 0,
  NR_AREAS: 8,
  RESERVED: 12,
  AREAS: 16,
  SIZE: 16,
} as const;

/**
 * One mappable part of a region.
 *
 * ```text
 * struct { u64 offset (in the region); u64 size }
 * ```
 */
export const SPARSE_MMAP_AREA = { OFFSET: 0, LENGTH: 8, SIZE: 16 } as const;

// DEVICE_GET_REGION_IO_FDS.

/**
 * DEVICE_GET_REGION_IO_FDS, request and reply; {@linkcode SUB_REGION_IOEVENTFD} follows COUNT times in the reply.
 *
 * ```text
 * struct { u32 argsz; u32 flags; u32 index; u32 count }
 * ```
 */
export const REGION_IO_FDS = {
  ARGSZ: 0,
  FLAGS: 4,
  INDEX: 8,
  COUNT: 12,
  SUB_REGIONS: 16,
  SIZE: 16,
} as const;

/** Sub-region type: an eventfd that stands for a write. */
export const VFIO_USER_IO_FD_TYPE_IOEVENTFD = 0;
/** Sub-region type: a descriptor that carries reads and writes. */
export const VFIO_USER_IO_FD_TYPE_IOREGIONFD = 1;

/**
 * A register that an eventfd stands for.
 *
 * ```text
 * struct { u64 offset; u64 size (0: any); u32 fd_index; u32 type; u32 flags; u32 padding; u64 datamatch }
 * ```
 *
 * libvfio-user sends 48 bytes, with a shadow memory descriptor where the padding is, a shadow offset at 32 and
 * datamatch at 40. The protocol text is followed here: its reader finds entry i at `16 + i * (argsz - 16) / count`,
 * so a client that goes by argsz reads either.
 */
export const SUB_REGION_IOEVENTFD = {
  OFFSET: 0,
  LENGTH: 8,
  FD_INDEX: 16,
  TYPE: 20,
  FLAGS: 24,
  PADDING: 28,
  DATAMATCH: 32,
  SIZE: 40,
} as const;

/** Sub-region flag (of `<linux/kvm.h>`): only a write of `datamatch` signals. */
export const KVM_IOEVENTFD_FLAG_DATAMATCH = 1 << 0;
/** Sub-region flag (of `<linux/kvm.h>`): the register is in I/O space. */
export const KVM_IOEVENTFD_FLAG_PIO = 1 << 1;

// DEVICE_GET_IRQ_INFO and DEVICE_SET_IRQS.

/**
 * DEVICE_GET_IRQ_INFO, request and reply.
 *
 * ```text
 * struct { u32 argsz; u32 flags; u32 index; u32 count }
 * ```
 */
export const IRQ_INFO = {
  ARGSZ: 0,
  FLAGS: 4,
  INDEX: 8,
  COUNT: 12,
  SIZE: 16,
} as const;

/** Interrupt flag: an eventfd can be signalled. */
export const VFIO_IRQ_INFO_EVENTFD = 1 << 0;
/** Interrupt flag: it can be masked and unmasked. */
export const VFIO_IRQ_INFO_MASKABLE = 1 << 1;
/** Interrupt flag: it masks itself when delivered. */
export const VFIO_IRQ_INFO_AUTOMASKED = 1 << 2;
/** Interrupt flag: vectors are set up as one set. */
export const VFIO_IRQ_INFO_NORESIZE = 1 << 3;

/**
 * DEVICE_SET_IRQS request; the reply has no payload.
 *
 * ```text
 * struct { u32 argsz; u32 flags; u32 index; u32 start; u32 count; u8 data[] }
 * ```
 */
export const IRQ_SET = {
  ARGSZ: 0,
  FLAGS: 4,
  INDEX: 8,
  START: 12,
  COUNT: 16,
  DATA: 20,
  SIZE: 20,
} as const;

/** SET_IRQS data: none; the action applies to the whole range. */
export const VFIO_IRQ_SET_DATA_NONE = 1 << 0;
/** SET_IRQS data: one byte a vector says whether the action applies. */
export const VFIO_IRQ_SET_DATA_BOOL = 1 << 1;
/** SET_IRQS data: one eventfd a vector, in the ancillary data. */
export const VFIO_IRQ_SET_DATA_EVENTFD = 1 << 2;
/** SET_IRQS action: mask. */
export const VFIO_IRQ_SET_ACTION_MASK = 1 << 3;
/** SET_IRQS action: unmask. */
export const VFIO_IRQ_SET_ACTION_UNMASK = 1 << 4;
/** SET_IRQS action: trigger. */
export const VFIO_IRQ_SET_ACTION_TRIGGER = 1 << 5;
/** The data bits, of which one is set. */
export const VFIO_IRQ_SET_DATA_TYPE_MASK = 0x07;
/** The action bits, of which one is set. */
export const VFIO_IRQ_SET_ACTION_TYPE_MASK = 0x38;

// REGION_READ, REGION_WRITE, REGION_WRITE_MULTI.

/**
 * REGION_READ and REGION_WRITE, request and reply; data follows in the write request and the read reply.
 *
 * ```text
 * struct { u64 offset; u32 region; u32 count; u8 data[] }
 * ```
 */
export const REGION_ACCESS = {
  OFFSET: 0,
  REGION: 8,
  COUNT: 12,
  DATA: 16,
  SIZE: 16,
} as const;

/**
 * REGION_WRITE_MULTI request; {@linkcode WRITE_MULTI_ENTRY} follows WR_CNT times. The reply has only this part.
 *
 * ```text
 * struct { u64 wr_cnt; entry wrs[] }
 * ```
 */
export const WRITE_MULTI = { WR_CNT: 0, WRS: 8, SIZE: 8 } as const;

/**
 * One write of REGION_WRITE_MULTI; the first COUNT bytes of DATA count.
 *
 * ```text
 * struct { u64 offset; u32 region; u32 count (1–8); u8 data[8] }
 * ```
 */
export const WRITE_MULTI_ENTRY = {
  OFFSET: 0,
  REGION: 8,
  COUNT: 12,
  DATA: 16,
  SIZE: 24,
} as const;

/** The most bytes one write of REGION_WRITE_MULTI carries. */
export const WRITE_MULTI_DATA_MAX = 8;

// DMA_READ and DMA_WRITE (server to client).

/**
 * DMA_READ and DMA_WRITE, request and reply; data follows in the write request and the read reply.
 *
 * ```text
 * struct { u64 addr (iova); u64 count; u8 data[] }
 * ```
 *
 * QEMU 10.1 and 10.2 have a 32-bit count, so that their data is at 12.
 */
export const DMA_ACCESS = { ADDR: 0, COUNT: 8, DATA: 16, SIZE: 16 } as const;
