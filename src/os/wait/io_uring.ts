/**
 * io_uring(7): requests and completions in rings that are shared with the kernel.
 *
 * @module
 */

import { Errno } from "../../core/errno.ts";
import { check, SyscallError } from "../errors.ts";
import { Fd } from "../fd.ts";
import { Mapping } from "../mapping.ts";
import { lastErrno, libc } from "../symbols.ts";

/** Opcodes of a submission, as in linux/io_uring.h. */
export const IoUringOp = {
  NOP: 0,
  READV: 1,
  WRITEV: 2,
  FSYNC: 3,
  FALLOCATE: 17,
  READ: 22,
  WRITE: 23,
  URING_CMD: 46,
} as const;

/** Flag of {@linkcode IoUringOp.FSYNC}: as fdatasync(2). */
export const IORING_FSYNC_DATASYNC = 1;

/**
 * Word offsets in a submission, of {@linkcode IoUring.sqes}.
 *
 * struct io_uring_sqe { u8 opcode; u8 flags; u16 ioprio; s32 fd; u64 off; u64 addr; u32 len; u32 op_flags; u64 user_data;
 * u16 buf_index; u16 personality; u32 file_index; u64 addr3; u64 pad; }
 */
export const Sqe = {
  /** opcode, flags, ioprio. */
  OPCODE: 0,
  FD: 1,
  OFF_LOW: 2,
  OFF_HIGH: 3,
  ADDR_LOW: 4,
  ADDR_HIGH: 5,
  LEN: 6,
  OP_FLAGS: 7,
  USER_DATA: 8,
  ADDR3_LOW: 12,
  ADDR3_HIGH: 13,
  SIZE: 16,
} as const;

/** IOSQE_FIXED_FILE where {@linkcode Sqe.OPCODE} has it: `fd` is an index of the registered files. */
export const SQE_FIXED_FILE = 1 << 8;

const SYS_IO_URING_SETUP = 425;
const SYS_IO_URING_ENTER = 426;
const SYS_IO_URING_REGISTER = 427;

const IORING_OFF_SQ_RING = 0;
const IORING_OFF_SQES = 0x1000_0000;
const IORING_ENTER_GETEVENTS = 1;
const IORING_FEAT_SINGLE_MMAP = 1;
const IORING_FEAT_NODROP = 2;
const IORING_REGISTER_FILES = 2;
const IORING_UNREGISTER_FILES = 3;
const IORING_REGISTER_PROBE = 8;
const IO_URING_OP_SUPPORTED = 1;
const PROBE_OPS = 256;

// struct io_uring_params, in 32-bit words
const PARAMS = {
  SQ_ENTRIES: 0,
  CQ_ENTRIES: 1,
  FEATURES: 5,
  SQ_OFF: 10,
  CQ_OFF: 20,
  SIZE: 30,
} as const;
// struct io_sqring_offsets and struct io_cqring_offsets, in words
const SQ_OFF = { HEAD: 0, TAIL: 1, RING_MASK: 2, ARRAY: 6 } as const;
const CQ_OFF = { HEAD: 0, TAIL: 1, RING_MASK: 2, CQES: 5 } as const;
// struct io_uring_cqe { u64 user_data; s32 res; u32 flags; } in words
const CQE = { USER_DATA: 0, RES: 2, SIZE: 4 } as const;
// struct io_uring_probe { u8 last_op; u8 ops_len; u16 resv; u32 resv2[3]; struct { u8 op; u8 resv; u16 flags; u32 resv2; } ops[]; }
const PROBE = { OPS: 16, OP_FLAGS: 2, OP_SIZE: 8 } as const;

/**
 * One ring, for one thread.
 *
 * ```text
 *   at = sqe(); fill sqes[at …]; … ; enter()      once per batch
 *   while (next()) { userData, result }           after the descriptor became readable
 * ```
 * Whoever submits sees to it that never more requests are in flight than there are entries: then neither ring is ever
 * full. Buffers belong to the kernel from {@linkcode IoUring.enter} to the completion.
 */
export class IoUring implements Disposable {
  /** Requests that may be in flight. */
  readonly entries: number;
  /** All submissions, {@linkcode Sqe.SIZE} words each. */
  readonly sqes: Uint32Array<ArrayBuffer>;
  /** After {@linkcode IoUring.next}: the low word of what the submission had as its user data. */
  userData = 0;
  /** After {@linkcode IoUring.next}: what the request returned, or −errno. */
  result = 0;
  readonly #fd: Fd;
  readonly #number: number;
  readonly #ring: Mapping;
  readonly #sqeMapping: Mapping;
  readonly #words: Uint32Array<ArrayBuffer>;
  readonly #results: Int32Array<ArrayBuffer>;
  readonly #sqHead: number;
  readonly #sqTail: number;
  readonly #sqMask: number;
  readonly #cqHead: number;
  readonly #cqTail: number;
  readonly #cqMask: number;
  readonly #cqes: number;
  /** Next submission; ahead of the ring's tail while a batch is being filled. */
  #tail = 0;
  #filesRegistered = false;

  /**
   * @param entries Requests in flight, a power of two
   * @throws {SyscallError} ENOSYS (kernel before 5.1, gVisor), EPERM (forbidden by seccomp or kernel.io_uring_disabled),
   * EOPNOTSUPP (kernel before 5.6), ENOMEM (RLIMIT_MEMLOCK, kernels before 5.12)
   */
  constructor(entries: number) {
    const params = new Uint32Array(PARAMS.SIZE);
    this.#fd = new Fd(
      check(
        libc.io_uring_setup(
          SYS_IO_URING_SETUP,
          entries,
          new Uint8Array(params.buffer),
        ),
        "io_uring_setup",
      ),
    );
    try {
      const wanted = IORING_FEAT_SINGLE_MMAP | IORING_FEAT_NODROP;
      if ((params[PARAMS.FEATURES]! & wanted) !== wanted) {
        throw new SyscallError("io_uring_setup", Errno.EOPNOTSUPP);
      }
      this.#number = this.#fd.number;
      this.entries = params[PARAMS.SQ_ENTRIES]!;
      const sq = (field: number) => params[PARAMS.SQ_OFF + field]!;
      const cq = (field: number) => params[PARAMS.CQ_OFF + field]!;
      const cqBytes = params[PARAMS.CQ_ENTRIES]! * CQE.SIZE * 4;
      this.#ring = new Mapping({
        fd: this.#number,
        offset: IORING_OFF_SQ_RING,
        lengthBytes: Math.max(
          sq(SQ_OFF.ARRAY) + this.entries * 4,
          cq(CQ_OFF.CQES) + cqBytes,
        ),
      });
      // SAFETY: the rings stay mapped until close(), and every index is masked by the ring's own mask.
      this.#words = new Uint32Array(this.#ring.buffer);
      this.#results = new Int32Array(this.#ring.buffer);
      this.#sqHead = sq(SQ_OFF.HEAD) >>> 2;
      this.#sqTail = sq(SQ_OFF.TAIL) >>> 2;
      this.#sqMask = this.#words[sq(SQ_OFF.RING_MASK) >>> 2]!;
      this.#cqHead = cq(CQ_OFF.HEAD) >>> 2;
      this.#cqTail = cq(CQ_OFF.TAIL) >>> 2;
      this.#cqMask = this.#words[cq(CQ_OFF.RING_MASK) >>> 2]!;
      this.#cqes = cq(CQ_OFF.CQES) >>> 2;
      // Submissions are taken in order, so the indirection is written once.
      const array = sq(SQ_OFF.ARRAY) >>> 2;
      for (let i = 0; i < this.entries; i++) this.#words[array + i] = i;
    } catch (error) {
      this.#fd.close();
      throw error;
    }
    try {
      this.#sqeMapping = new Mapping({
        fd: this.#number,
        offset: IORING_OFF_SQES,
        lengthBytes: this.entries * Sqe.SIZE * 4,
      });
    } catch (error) {
      this.#ring.close();
      this.#fd.close();
      throw error;
    }
    this.sqes = new Uint32Array(this.#sqeMapping.buffer);
  }

  /** The ring's descriptor, readable while completions wait. */
  get fd(): number {
    return this.#number;
  }

  /** True if the kernel knows all of these opcodes; false on kernels before 5.6, which cannot be asked. */
  supports(opcodes: readonly number[]): boolean {
    const probe = new Uint8Array(PROBE.OPS + PROBE_OPS * PROBE.OP_SIZE);
    const result = libc.io_uring_register(
      SYS_IO_URING_REGISTER,
      this.#number,
      IORING_REGISTER_PROBE,
      probe,
      PROBE_OPS,
    );
    return result >= 0 && opcodes.every((opcode) => {
      const at = PROBE.OPS + opcode * PROBE.OP_SIZE + PROBE.OP_FLAGS;
      return (probe[at]! & IO_URING_OP_SUPPORTED) !== 0;
    });
  }

  /**
   * Makes the kernel hold files, to be named by their index with {@linkcode SQE_FIXED_FILE}.
   *
   * @returns Whether it did; where not, descriptors serve
   */
  registerFiles(fds: readonly number[]): boolean {
    this.#filesRegistered = libc.io_uring_register(
      SYS_IO_URING_REGISTER,
      this.#number,
      IORING_REGISTER_FILES,
      new Uint8Array(Int32Array.from(fds).buffer),
      fds.length,
    ) >= 0;
    return this.#filesRegistered;
  }

  /**
   * Takes the next submission, cleared.
   *
   * @returns Its first word in {@linkcode IoUring.sqes}
   */
  sqe(): number {
    const at = (this.#tail & this.#sqMask) * Sqe.SIZE;
    this.#tail = (this.#tail + 1) | 0;
    const sqes = this.sqes;
    for (let i = 0; i < Sqe.SIZE; i++) sqes[at + i] = 0;
    return at;
  }

  /** Submissions that the kernel has not taken yet. */
  get unsubmitted(): number {
    return (this.#tail - Atomics.load(this.#words, this.#sqHead)) | 0;
  }

  /**
   * Hands all submissions to the kernel, and waits.
   *
   * @param minComplete How many completions to wait for
   * @returns 0; −EAGAIN, −EBUSY or −EINTR when it is to be tried again, after completions were taken
   */
  enter(minComplete = 0): number {
    Atomics.store(this.#words, this.#sqTail, this.#tail);
    for (;;) {
      const waiting = this.unsubmitted;
      if (waiting === 0 && minComplete === 0) return 0;
      const n = libc.io_uring_enter(
        SYS_IO_URING_ENTER,
        this.#number,
        waiting,
        minComplete,
        minComplete > 0 ? IORING_ENTER_GETEVENTS : 0,
        null,
        0,
      );
      if (n < 0) return -lastErrno();
      // A submission that is refused at once ends the batch: its error is a completion, the rest still waits.
      if (n >= waiting) return 0;
    }
  }

  /** True if a completion waits. */
  get ready(): boolean {
    const words = this.#words;
    return Atomics.load(words, this.#cqTail) !== words[this.#cqHead]!;
  }

  /**
   * Takes the next completion into {@linkcode IoUring.userData} and {@linkcode IoUring.result}.
   *
   * @returns Whether there was one
   */
  next(): boolean {
    const words = this.#words;
    const head = words[this.#cqHead]!;
    if (Atomics.load(words, this.#cqTail) === head) return false;
    const at = this.#cqes + (head & this.#cqMask) * CQE.SIZE;
    this.userData = words[at + CQE.USER_DATA]!;
    this.result = this.#results[at + CQE.RES]!;
    Atomics.store(words, this.#cqHead, (head + 1) | 0);
    return true;
  }

  /** Closes the ring; nothing may be in flight. */
  close(): void {
    if (this.#fd.number < 0) return;
    if (this.#filesRegistered) {
      libc.io_uring_register(
        SYS_IO_URING_REGISTER,
        this.#number,
        IORING_UNREGISTER_FILES,
        null,
        0,
      );
    }
    this.#fd.close();
    this.#sqeMapping.close();
    this.#ring.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}
