/**
 * Numbers and layouts of the NBD protocol. No logic.
 *
 * Names are those of the protocol's description (NetworkBlockDevice/nbd, doc/proto.md). Everything is big-endian.
 *
 * @module
 */

/** The port that IANA has assigned. */
export const NBD_DEFAULT_PORT = 10809;

/** "NBDMAGIC", the first 64 bits of a server's greeting. */
export const NBD_MAGIC = 0x4e42_444d_4147_4943n;
/** "IHAVEOPT": the server speaks the newstyle negotiation; also before every option. */
export const NBD_OPTS_MAGIC = 0x4948_4156_454f_5054n;
/** Before every reply to an option. */
export const NBD_REP_MAGIC = 0x0003_e889_0455_65a9n;
/** The server speaks the oldstyle negotiation. */
export const NBD_CLISERV_MAGIC = 0x0000_4202_8186_1253n;
/** Before every request. */
export const NBD_REQUEST_MAGIC = 0x2560_9513;
/** Before a simple reply. */
export const NBD_SIMPLE_REPLY_MAGIC = 0x6744_6698;
/** Before a chunk of a structured reply. */
export const NBD_STRUCTURED_REPLY_MAGIC = 0x668e_33ef;

/** Handshake flags, bit numbers; the client answers with those of its own. */
export const NBD_FLAG = { FIXED_NEWSTYLE: 0, NO_ZEROES: 1 } as const;

/** Transmission flags, bit numbers. */
export const NBD_FLAG_EXPORT = {
  HAS_FLAGS: 0,
  READ_ONLY: 1,
  SEND_FLUSH: 2,
  SEND_FUA: 3,
  SEND_TRIM: 5,
  SEND_WRITE_ZEROES: 6,
} as const;

/** Options of the negotiation. */
export const NBD_OPT = { EXPORT_NAME: 1, GO: 7, STRUCTURED_REPLY: 8 } as const;

/** Types of replies to options; errors have the top bit. */
export const NBD_REP = {
  ACK: 1,
  INFO: 3,
  ERR_UNSUP: 0x8000_0001,
  ERR_POLICY: 0x8000_0002,
  ERR_TLS_REQD: 0x8000_0005,
  ERR_UNKNOWN: 0x8000_0006,
  ERR_SHUTDOWN: 0x8000_0007,
} as const;

/** Kinds of information in NBD_REP_INFO. */
export const NBD_INFO = { EXPORT: 0, BLOCK_SIZE: 3 } as const;

/** The greeting: `u64 NBDMAGIC; u64 IHAVEOPT; u16 handshake_flags`. */
export const NBD_GREETING = {
  MAGIC: 0,
  STYLE: 8,
  FLAGS: 16,
  SIZE: 18,
} as const;

/** An option: `u64 IHAVEOPT; u32 option; u32 length; data`. */
export const NBD_OPTION = {
  MAGIC: 0,
  OPTION: 8,
  LENGTH: 12,
  SIZE: 16,
} as const;

/** A reply to an option: `u64 magic; u32 option; u32 type; u32 length; data`. */
export const NBD_OPTION_REPLY = {
  MAGIC: 0,
  OPTION: 8,
  TYPE: 12,
  LENGTH: 16,
  SIZE: 20,
} as const;

/** NBD_INFO_EXPORT: `u16 type; u64 size; u16 transmission_flags`. */
export const NBD_INFO_EXPORT = {
  TYPE: 0,
  EXPORT_SIZE: 2,
  FLAGS: 10,
  SIZE: 12,
} as const;

/** NBD_INFO_BLOCK_SIZE: `u16 type; u32 minimum; u32 preferred; u32 maximum_payload`. */
export const NBD_INFO_BLOCK_SIZE = {
  TYPE: 0,
  MINIMUM: 2,
  PREFERRED: 6,
  MAXIMUM: 10,
  SIZE: 14,
} as const;

/** The answer to NBD_OPT_EXPORT_NAME: `u64 size; u16 transmission_flags; u8 zeroes[124]`, the last without NO_ZEROES. */
export const NBD_EXPORT = {
  EXPORT_SIZE: 0,
  FLAGS: 8,
  SIZE: 10,
  ZEROES: 124,
} as const;

/** Commands. */
export const NBD_CMD = {
  READ: 0,
  WRITE: 1,
  DISC: 2,
  FLUSH: 3,
  TRIM: 4,
  WRITE_ZEROES: 6,
} as const;

/** Flags of a command, as bits. */
export const NBD_CMD_FLAG = { FUA: 1, NO_HOLE: 2 } as const;

/** A request: `u32 magic; u16 flags; u16 type; u64 cookie; u64 offset; u32 length; data`. */
export const NBD_REQUEST = {
  MAGIC: 0,
  FLAGS: 4,
  TYPE: 6,
  COOKIE: 8,
  OFFSET: 16,
  LENGTH: 24,
  SIZE: 28,
} as const;

/** A simple reply: `u32 magic; u32 error; u64 cookie; data`. */
export const NBD_SIMPLE_REPLY = {
  MAGIC: 0,
  ERROR: 4,
  COOKIE: 8,
  SIZE: 16,
} as const;

/** A chunk of a structured reply: `u32 magic; u16 flags; u16 type; u64 cookie; u32 length; data`. */
export const NBD_CHUNK = {
  MAGIC: 0,
  FLAGS: 4,
  TYPE: 6,
  COOKIE: 8,
  LENGTH: 16,
  SIZE: 20,
} as const;

/** Flag of a chunk: it is the last of its reply. */
export const NBD_REPLY_FLAG_DONE = 1;

/** Types of chunks; errors have bit 15. */
export const NBD_REPLY_TYPE = {
  NONE: 0,
  OFFSET_DATA: 1,
  OFFSET_HOLE: 2,
  ERROR_BIT: 0x8000,
} as const;

/** Data of NBD_REPLY_TYPE_OFFSET_DATA: `u64 offset; data`. */
export const NBD_OFFSET_DATA = { OFFSET: 0, SIZE: 8 } as const;
/** Data of NBD_REPLY_TYPE_OFFSET_HOLE: `u64 offset; u32 hole_size`. */
export const NBD_OFFSET_HOLE = { OFFSET: 0, LENGTH: 8, SIZE: 12 } as const;
/** The beginning of every error chunk: `u32 error; u16 message_length; message`. */
export const NBD_ERROR_CHUNK = {
  ERROR: 0,
  MESSAGE_LENGTH: 4,
  SIZE: 6,
} as const;

/** Error values of replies. */
export const NBD_ERROR = {
  EPERM: 1,
  EIO: 5,
  ENOMEM: 12,
  EINVAL: 22,
  ENOSPC: 28,
  EOVERFLOW: 75,
  ENOTSUP: 95,
  ESHUTDOWN: 108,
} as const;

/** Longest READ or WRITE of a server that says nothing of it: 32 MiB. */
export const NBD_DEFAULT_MAX_PAYLOAD = 0x200_0000;
/** The longest string of the protocol. */
export const NBD_MAX_STRING = 4096;
