/**
 * Submission and completion queues (NVM Express 1.4, section 4.1), the controller's side: rings of entries, without
 * doorbells, commands or interrupts, and how they are saved.
 *
 * @module
 */

import { Errno } from "../../../src/core/errno.ts";
import { Access, type GuestMemory } from "../../../src/memory/guest_memory.ts";
import { RangeWindow } from "../../../src/memory/range_window.ts";
import type { StateReader } from "../../../src/core/state_reader.ts";
import { CQE, CQE_BYTES, NvmeSc, SQE, SQE_BYTES } from "../defs.ts";

const U32_MAX = 0xffff_ffff;
/** The most entries of an admin queue (AQA). */
const ADMIN_ENTRIES_MAX = 4096;
const CIDS = 0x1_0000;

/** Limits of a controller. */
export interface QueueLimits {
  /** I/O queue pairs. */
  readonly pairs: number;
  /** Interrupt vectors. */
  readonly vectors: number;
  /** The largest size of an I/O queue. */
  readonly maxEntries: number;
}

function readQueue(reader: StateReader, { pairs, maxEntries }: QueueLimits) {
  const qid = reader.integer("qid", pairs);
  const size = reader.integer(
    "size",
    qid === 0 ? ADMIN_ENTRIES_MAX : maxEntries,
  );
  if (size < 2) throw reader.refused("it has less than two entries");
  return {
    qid,
    /** Entries. */
    size,
    iova: reader.integer("iova", Number.MAX_SAFE_INTEGER),
    head: reader.integer("head", size - 1),
    tail: reader.integer("tail", size - 1),
    /** Doorbell value that was refused last. */
    rejected: reader.value("rejected") === null
      ? null
      : reader.integer("rejected", U32_MAX),
  };
}

function readCompletionQueue(reader: StateReader, limits: QueueLimits) {
  return {
    ...readQueue(reader, limits),
    vector: reader.integer("vector", limits.vectors - 1),
    /** True when completions interrupt. */
    interrupts: reader.flag("interrupts"),
    /** Phase of the next entry: 0 or 1. */
    phase: reader.integer("phase", 1),
    /** Number of entries that no interrupt has told about. */
    untold: reader.integer("untold", U32_MAX),
    /** True when one of them is of a command that failed. */
    urgent: reader.flag("urgent"),
  };
}

function readSubmissionQueue(reader: StateReader, limits: QueueLimits) {
  return {
    ...readQueue(reader, limits),
    /** Its completion queue. */
    cqid: reader.integer("cqid", limits.pairs),
  };
}

/** A completion queue, as it is saved. */
export type CompletionQueueState = Readonly<
  ReturnType<typeof readCompletionQueue>
>;

/** A submission queue, as it is saved. */
export type SubmissionQueueState = Readonly<
  ReturnType<typeof readSubmissionQueue>
>;

/** All queues of a controller, as they are saved. */
export interface QueueSetState {
  readonly completion: readonly CompletionQueueState[];
  readonly submission: readonly SubmissionQueueState[];
}

/**
 * Checks the state of queues.
 *
 * @throws {import("../../../src/core/errno.ts").ErrnoError} EINVAL when it cannot be
 */
export function parseQueueSetState(
  reader: StateReader,
  limits: QueueLimits,
): QueueSetState {
  const completion = reader.parts(
    "completion",
    (each) => readCompletionQueue(each, limits),
  );
  const submission = reader.parts(
    "submission",
    (each) => readSubmissionQueue(each, limits),
  );
  const cqids = new Set(completion.map(({ qid }) => qid));
  const sqids = new Set(submission.map(({ qid }) => qid));
  if (cqids.size < completion.length || sqids.size < submission.length) {
    throw reader.refused("its state has a queue twice");
  }
  if (submission.some(({ cqid }) => !cqids.has(cqid))) {
    throw reader.refused("its state has a queue that completes nowhere");
  }
  return { completion, submission };
}

/**
 * A completion queue.
 *
 * Entries from `head` to `tail` are the driver's to read. Room for a completion is reserved before its command is
 * fetched, so an entry that the driver has not consumed is never overwritten and {@linkcode CompletionQueue.post}
 * never finds the queue full.
 *
 * Memory ordering: a driver looks at the phase bit in the last word of an entry, and takes the entry as a whole when
 * that has turned. So the first three words are stored plainly and the last by Atomics.store, which is sequentially
 * consistent and thus a release: whoever sees the new phase sees the other words, the data that the command
 * transferred, and everything else stored before.
 */
export class CompletionQueue {
  readonly qid: number;
  readonly size: number;
  /** Interrupt vector. */
  readonly vector: number;
  /** True when completions interrupt. */
  readonly interrupts: boolean;
  /** Next entry for the driver to consume, as far as it has told. */
  head: number;
  /** Index of the next entry to post. */
  tail: number;
  /** Entries that commands in flight will need. */
  reserved = 0;
  /** Entries that were posted and that no interrupt has told about. */
  untold: number;
  /** True when one of those is of a command that failed. */
  urgent: boolean;
  /** The doorbell value that was refused last. */
  rejected: number | null;
  readonly #ring: RangeWindow;
  #phase: number;

  /** @param memory Holds the ring */
  constructor(memory: GuestMemory, state: CompletionQueueState) {
    this.qid = state.qid;
    this.size = state.size;
    this.#ring = new RangeWindow(
      memory,
      state.iova,
      state.size * CQE_BYTES,
      Access.WRITE,
    );
    this.vector = state.vector;
    this.interrupts = state.interrupts;
    this.head = state.head;
    this.tail = state.tail;
    this.#phase = state.phase;
    this.untold = state.untold;
    this.urgent = state.urgent;
    this.rejected = state.rejected;
  }

  /** Entries that the driver has not consumed, as far as it has told. */
  get occupied(): number {
    const used = this.tail - this.head;
    return used < 0 ? used + this.size : used;
  }

  /** Entries that could be reserved now. */
  get room(): number {
    return this.size - 1 - this.occupied - this.reserved;
  }

  /** Tells whether the ring is mapped. */
  ready(): boolean {
    return this.#ring.ready();
  }

  /**
   * The driver has consumed entries up to `head`.
   *
   * @returns False when that cannot be
   */
  consumeTo(head: number): boolean {
    if (head >= this.size) return false;
    const taken = head - this.head;
    if ((taken < 0 ? taken + this.size : taken) > this.occupied) return false;
    this.head = head;
    return true;
  }

  /**
   * Posts a completion, for which there must be room; see {@linkcode CompletionQueue.ready}.
   *
   * @param sqhdSqid Head of the submission queue, and its id in the upper half
   * @param status Its 15 bits
   */
  post(dw0: number, sqhdSqid: number, cid: number, status: number): void {
    const at = this.tail * CQE_BYTES;
    const { window } = this.#ring;
    window.setU32(at + CQE.DW0, dw0);
    window.setU32(at + CQE.DW1, 0);
    window.setU32(at + CQE.SQHD_SQID, sqhdSqid);
    window.storeU32(
      at + CQE.CID_STATUS,
      cid | this.#phase << 16 | status << 17,
    );
    this.untold++;
    if (status !== NvmeSc.SUCCESS) this.urgent = true;
    if (++this.tail === this.size) {
      this.tail = 0;
      this.#phase ^= 1;
    }
  }

  /** An interrupt tells about everything that was posted. */
  told(): void {
    this.untold = 0;
    this.urgent = false;
  }

  /** State of the queue; nothing may be reserved. */
  save(): CompletionQueueState {
    const { qid, size, vector, interrupts, head, tail } = this;
    const { untold, urgent, rejected } = this;
    return {
      ...{ qid, size, vector, interrupts, head, tail },
      ...{ untold, urgent, rejected },
      iova: this.#ring.iova,
      phase: this.#phase,
    };
  }
}

/** A submission queue. Entries from `head` to `tail` are the controller's to fetch. */
export class SubmissionQueue {
  readonly qid: number;
  readonly size: number;
  /** Queue of its completions. */
  readonly cq: CompletionQueue;
  /** The next entry to fetch. */
  head: number;
  /** The entry after the last that was submitted, as far as the driver has told. */
  tail: number;
  /** The tail that was found and waits for register writes, if one does. */
  waitingTail = 0;
  /** Commands that were fetched and are not completed. */
  inFlight = 0;
  /** True while it is being deleted: nothing is fetched any more. */
  ending = false;
  /** The doorbell value that was refused last. */
  rejected: number | null;
  readonly #ring: RangeWindow;
  /** Number of entries from `head` on that were refreshed since they were submitted. */
  #fresh = 0;
  /** A bit for each command identifier that is in use. */
  readonly #cids = new Uint32Array(CIDS / 32);

  /** @param memory Holds the ring */
  constructor(
    memory: GuestMemory,
    state: SubmissionQueueState,
    cq: CompletionQueue,
  ) {
    this.qid = state.qid;
    this.size = state.size;
    this.cq = cq;
    this.#ring = new RangeWindow(
      memory,
      state.iova,
      state.size * SQE_BYTES,
      Access.READ,
    );
    this.head = state.head;
    this.tail = state.tail;
    this.rejected = state.rejected;
  }

  /** True when nothing is to be fetched, as far as the driver has told. */
  get empty(): boolean {
    return this.head === this.tail;
  }

  /**
   * The driver has submitted entries up to `tail`.
   *
   * @returns False when that cannot be
   */
  submitTo(tail: number): boolean {
    if (tail >= this.size) return false;
    const added = tail - this.tail;
    const waiting = this.tail - this.head;
    const free = this.size - 1 - (waiting < 0 ? waiting + this.size : waiting);
    if ((added < 0 ? added + this.size : added) > free) return false;
    this.tail = tail;
    return true;
  }

  /**
   * Copies the next entry out and moves on; the queue must not be empty.
   *
   * @param sqe Sixteen words
   * @returns 0, −EFAULT when the ring cannot be reached, or MEMORY_PENDING (nothing is then taken)
   */
  fetch(sqe: Uint32Array): number {
    if (!this.ready()) return -Errno.EFAULT;
    const { window } = this.#ring;
    if (this.#fresh === 0) {
      // Up to the tail, or the end of the ring.
      const end = this.tail > this.head ? this.tail : this.size;
      const count = end - this.head;
      const result = window.refresh(this.head * SQE_BYTES, count * SQE_BYTES);
      if (result < 0) return result;
      this.#fresh = count;
    }
    const from = this.head * SQE_BYTES;
    for (let i = 0; i < SQE.WORDS; i++) sqe[i] = window.getU32(from + i * 4);
    this.#fresh--;
    if (++this.head === this.size) this.head = 0;
    return 0;
  }

  /** Puts the entry back that was fetched last. */
  unfetch(): void {
    this.#fresh++;
    this.head = (this.head === 0 ? this.size : this.head) - 1;
  }

  /**
   * Marks a command identifier as used.
   *
   * @returns True when it was free
   */
  takeCid(cid: number): boolean {
    const mask = 1 << (cid & 31);
    if ((this.#cids[cid >>> 5]! & mask) !== 0) return false;
    this.#cids[cid >>> 5]! |= mask;
    return true;
  }

  /** Marks a command identifier as free. */
  releaseCid(cid: number): void {
    this.#cids[cid >>> 5]! &= ~(1 << (cid & 31));
  }

  /** Tells whether the ring is mapped. */
  ready(): boolean {
    const { window } = this.#ring;
    const isThere = this.#ring.ready();
    if (this.#ring.window !== window) this.#fresh = 0;
    return isThere;
  }

  /** State of the queue, apart from commands that wait for an event. */
  save(): SubmissionQueueState {
    const { qid, size, cq, head, tail, rejected } = this;
    const { iova } = this.#ring;
    return { qid, size, iova, cqid: cq.qid, head, tail, rejected };
  }
}
