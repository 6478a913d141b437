/**
 * Layouts of log pages (NVM Express 1.4, section 5.14.1).
 *
 * @module
 */

/** Entries of the error log; ELPE is one less. */
export const ERROR_LOG_ENTRIES = 16;

/** `struct nvme_error_log_page`, an entry of the error information log (figure 193). */
export const ERROR_LOG_ENTRY = {
  ERROR_COUNT: 0,
  SQID: 8,
  CMDID: 10,
  STATUS_FIELD: 12,
  PARM_ERROR_LOCATION: 14,
  LBA: 16,
  NSID: 24,
  SIZE: 64,
} as const;

/** `struct nvme_smart_log` (figure 194); counters are 16 bytes wide. */
export const SMART_LOG = {
  CRITICAL_WARNING: 0,
  TEMPERATURE: 1,
  AVAIL_SPARE: 3,
  SPARE_THRESH: 4,
  PERCENT_USED: 5,
  DATA_UNITS_READ: 32,
  DATA_UNITS_WRITTEN: 48,
  HOST_READS: 64,
  HOST_WRITES: 80,
  CTRL_BUSY_TIME: 96,
  POWER_CYCLES: 112,
  POWER_ON_HOURS: 128,
  UNSAFE_SHUTDOWNS: 144,
  MEDIA_ERRORS: 160,
  NUM_ERR_LOG_ENTRIES: 176,
  SIZE: 512,
} as const;

/** `struct nvme_fw_slot_info_log` (figure 195). */
export const FW_SLOT_LOG = { AFI: 0, FRS1: 8, SIZE: 512 } as const;

/** Changed Namespace List: namespace ids, or all-ones when there are more. */
export const CHANGED_NS_LOG = { ENTRIES: 1024, SIZE: 4096 } as const;

/** Commands Supported and Effects: a word for each opcode (figure 198). */
export const EFFECTS_LOG = { ACS: 0, IOCS: 1024, SIZE: 4096 } as const;
/** The command is supported. */
export const NVME_CMD_EFFECTS_CSUPP = 1;
/** The command may change what blocks hold. */
export const NVME_CMD_EFFECTS_LBCC = 2;
