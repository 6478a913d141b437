/**
 * Constants and layouts of NVM Express (base specification 1.4, and 2.0 where it says so; names as in
 * linux/include/linux/nvme.h), without logic.
 *
 * @module
 */

/** PCI class of an NVM Express I/O controller: 01h, 08h, programming interface 02h. */
export const PCI_CLASS_STORAGE_EXPRESS = 0x01_08_02;
/**
 * Device ID under Qumranet's vendor ID, from the range 10f0h–10ffh that is free for experiments. QEMU's own IDs
 * (1b36h:0010h) would make Linux ignore namespace identifiers and Write Zeroes.
 */
export const PCI_DEVICE_ID_EXPERIMENTAL_NVME = 0x10f0;
/** Vendor and subsystem vendor of virtio and QEMU's paravirtual devices. */
export const PCI_VENDOR_ID_REDHAT_QUMRANET = 0x1af4;
/** Subsystem ID of QEMU's devices. */
export const PCI_SUBDEVICE_ID_QEMU = 0x1100;

/** The version that VS and Identify tell: 1.4. */
export const NVME_VS_1_4 = 0x0001_0400;

/** Bytes of a submission queue entry. */
export const SQE_BYTES = 64;
/** Bytes of a completion queue entry. */
export const CQE_BYTES = 16;
/** CC.IOSQES: SQE_BYTES as a power of two. */
export const NVME_NVM_IOSQES = 6;
/** CC.IOCQES: CQE_BYTES as a power of two. */
export const NVME_NVM_IOCQES = 4;

/**
 * Submission queue entry as 32-bit words (figure 105): `cdw0 { opcode:8 fuse:2 rsvd:4 psdt:2 cid:16 } nsid cdw2 cdw3
 * mptr[2] dptr[4] cdw10 … cdw15`.
 */
export const SQE = {
  CDW0: 0,
  NSID: 1,
  CDW2: 2,
  CDW3: 3,
  MPTR: 4,
  /** PRP1: low and high word; also the first word of SGL1. */
  PRP1: 6,
  /** PRP2: low and high word. */
  PRP2: 8,
  CDW10: 10,
  CDW11: 11,
  CDW12: 12,
  CDW13: 13,
  CDW14: 14,
  CDW15: 15,
  /** Words in all. */
  WORDS: 16,
} as const;

/** Completion queue entry, in bytes: `result[2] sqhd:16 sqid:16 cid:16 phase:1 status:15` (figure 122). */
export const CQE = {
  DW0: 0,
  DW1: 4,
  SQHD_SQID: 8,
  CID_STATUS: 12,
  SIZE: 16,
} as const;

/** Admin commands (figure 139). */
export const NvmeAdmin = {
  DELETE_SQ: 0x00,
  CREATE_SQ: 0x01,
  GET_LOG_PAGE: 0x02,
  DELETE_CQ: 0x04,
  CREATE_CQ: 0x05,
  IDENTIFY: 0x06,
  ABORT_CMD: 0x08,
  SET_FEATURES: 0x09,
  GET_FEATURES: 0x0a,
  ASYNC_EVENT: 0x0c,
  DBBUF: 0x7c,
} as const;

/** NVM commands (figure 346). */
export const NvmeCmd = {
  FLUSH: 0x00,
  WRITE: 0x01,
  READ: 0x02,
  COMPARE: 0x05,
  WRITE_ZEROES: 0x08,
  DSM: 0x09,
} as const;

/**
 * Status of a completion as its 15 bits are laid out: SC in 7:0, SCT in 10:8 (section 4.6.1). The DNR bit is added
 * by {@linkcode withDnr}.
 */
export const NvmeSc = {
  SUCCESS: 0x000,
  INVALID_OPCODE: 0x001,
  INVALID_FIELD: 0x002,
  CMDID_CONFLICT: 0x003,
  DATA_XFER_ERROR: 0x004,
  INTERNAL: 0x006,
  ABORT_REQ: 0x007,
  INVALID_NS: 0x00b,
  CMD_SEQ_ERROR: 0x00c,
  SGL_INVALID_LAST: 0x00d,
  SGL_INVALID_COUNT: 0x00e,
  SGL_INVALID_DATA: 0x00f,
  SGL_INVALID_TYPE: 0x011,
  PRP_INVALID_OFFSET: 0x013,
  NS_WRITE_PROTECTED: 0x020,
  LBA_RANGE: 0x080,
  CAP_EXCEEDED: 0x081,
  CQ_INVALID: 0x100,
  QID_INVALID: 0x101,
  QUEUE_SIZE: 0x102,
  ASYNC_LIMIT: 0x105,
  INVALID_VECTOR: 0x108,
  INVALID_LOG_PAGE: 0x109,
  INVALID_QUEUE: 0x10c,
  FEATURE_NOT_SAVEABLE: 0x10d,
  FEATURE_NOT_CHANGEABLE: 0x10e,
  FEATURE_NOT_PER_NS: 0x10f,
  WRITE_FAULT: 0x280,
  READ_ERROR: 0x281,
  COMPARE_FAILED: 0x285,
} as const;

/** "Do not retry", in the 15 bits of a status. */
const NVME_SC_DNR = 0x4000;
/** "More": the error log has an entry about it. */
export const NVME_SC_MORE = 0x2000;

/** Statuses that {@linkcode withDnr} leaves alone: the command may succeed when it is tried again. */
const TRANSIENT: ReadonlySet<number> = new Set([
  NvmeSc.SUCCESS,
  NvmeSc.CMDID_CONFLICT,
  NvmeSc.DATA_XFER_ERROR,
  NvmeSc.INTERNAL,
  NvmeSc.ABORT_REQ,
  NvmeSc.CAP_EXCEEDED,
  NvmeSc.WRITE_FAULT,
  NvmeSc.READ_ERROR,
]);

/** The status with DNR where the same command would fail again. */
export function withDnr(status: number): number {
  return TRANSIENT.has(status) ? status : status | NVME_SC_DNR;
}

/** CNS of Identify (figure 244; 05h–08h as in 2.0). */
export const NvmeIdCns = {
  NS: 0x00,
  CTRL: 0x01,
  NS_ACTIVE_LIST: 0x02,
  NS_DESC_LIST: 0x03,
  CS_NS: 0x05,
  CS_CTRL: 0x06,
  NS_ACTIVE_LIST_CS: 0x07,
  NS_CS_INDEP: 0x08,
} as const;

/** Command set identifier of the NVM command set. */
export const NVME_CSI_NVM = 0;

/** Feature identifiers (figure 271). */
export const NvmeFeat = {
  ARBITRATION: 0x01,
  POWER_MGMT: 0x02,
  TEMP_THRESH: 0x04,
  ERR_RECOVERY: 0x05,
  VOLATILE_WC: 0x06,
  NUM_QUEUES: 0x07,
  IRQ_COALESCE: 0x08,
  IRQ_CONFIG: 0x09,
  WRITE_ATOMIC: 0x0a,
  ASYNC_EVENT: 0x0b,
  KATO: 0x0f,
  HOST_BEHAVIOR: 0x16,
} as const;

/** Log page identifiers (figure 191). */
export const NvmeLog = {
  ERROR: 0x01,
  SMART: 0x02,
  FW_SLOT: 0x03,
  CHANGED_NS: 0x04,
  CMD_EFFECTS: 0x05,
} as const;

/** Asynchronous event types (figure 145). */
export const NvmeAer = { ERROR: 0, SMART: 1, NOTICE: 2 } as const;
/** Error event: a doorbell of a queue that does not exist was written. */
export const NVME_AER_ERROR_INVALID_DB_REG = 0x00;
/** Error event: a doorbell was written with a value that cannot be. */
export const NVME_AER_ERROR_INVALID_DB_VALUE = 0x01;
/** SMART event: a temperature threshold was crossed. */
export const NVME_AER_SMART_TEMPERATURE = 0x01;
/** Notice: a namespace changed. */
export const NVME_AER_NOTICE_NS_CHANGED = 0x00;
/** Feature 0Bh: SMART event of the temperature. */
export const NVME_AEN_CFG_TEMPERATURE = 1;
/** Feature 0Bh, bit number: notice that a namespace changed. */
export const NVME_AEN_BIT_NS_ATTR = 8;

/** Controller configuration, CC (section 3.1.5): bit ranges as high and low bit. */
export const NVME_CC = {
  EN: 0,
  CSS: [6, 4],
  MPS: [10, 7],
  AMS: [13, 11],
  SHN: [15, 14],
  IOSQES: [19, 16],
  IOCQES: [23, 20],
  /** Bits that can be written. */
  WRITABLE: 0x00ff_fff1,
} as const;

/** Controller status, CSTS (section 3.1.6): bit numbers; SHST occupies two bits. */
export const NVME_CSTS = { RDY: 0, CFS: 1, SHST: 2 } as const;
/** CSTS.SHST values: normal, occurring, complete. */
export const NvmeShst = { NORMAL: 0, OCCUR: 1, CMPLT: 2 } as const;

/** Bits of cdw12 of Read and Write. */
export const NVME_RW_FUA = 30;
/** Bit of cdw12 of Write Zeroes: deallocate. */
export const NVME_WZ_DEAC = 25;
/** Bit of cdw11 of Dataset Management: attribute deallocate. */
export const NVME_DSMGMT_AD = 2;
/** `struct nvme_dsm_range { le32 cattr; le32 nlb; le64 slba; }` as words. */
export const NVME_DSM_RANGE = { CATTR: 0, NLB: 1, SLBA: 2, WORDS: 4 } as const;
/** Ranges of one Dataset Management command, at most. */
export const NVME_DSM_MAX_RANGES = 256;

/** Queue flags of Create I/O Completion Queue, cdw11: physically contiguous, interrupts enabled. */
export const NVME_QUEUE_PHYS_CONTIG = 0;
/** Bit of cdw11 of Create I/O Completion Queue. */
export const NVME_CQ_IRQ_ENABLED = 1;

/** Namespace id that means every namespace. */
export const NVME_NSID_ALL = 0xffff_ffff;

/** SGL descriptor types (figure 117). */
export const NvmeSgl = {
  DATA_DESC: 0,
  SEG_DESC: 2,
  LAST_SEG_DESC: 3,
} as const;
/** `struct nvme_sgl_desc { le64 addr; le32 length; u8 rsvd[3]; u8 type; }` as words; type and sub-type in 31:24 of the last. */
export const NVME_SGL_DESC = {
  ADDR: 0,
  LENGTH: 2,
  TYPE: 3,
  WORDS: 4,
  SIZE: 16,
} as const;

/** Offset of the doorbells in BAR 0 (section 3.1). */
export const NVME_REG_DBS = 0x1000;

/** The page size that CAP.MPSMIN tells, as a power of two. */
export const NVME_PAGE_SHIFT_MIN = 12;
/** CAP.MPSMAX: 64 KiB. */
export const NVME_MPS_MAX = 4;

/** The status of commands that are not done yet; no status of the standard is negative. */
export const IN_FLIGHT = -1;
