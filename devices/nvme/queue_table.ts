/**
 * Which queues a controller has, and which thread serves them: the commands that create and delete queues and that find a
 * command in one (NVM Express 1.4, sections 5.1 and 5.3 to 5.6).
 *
 * @module
 */

import { bit, field, u64 } from "../../src/core/bits.ts";
import { Access, type GuestMemory } from "../../src/memory/guest_memory.ts";
import { CONTROL_THREAD } from "../../src/pci/queue_threads.ts";
import type { Command } from "./command/command.ts";
import {
  CQE_BYTES,
  IN_FLIGHT,
  NVME_CC,
  NVME_CQ_IRQ_ENABLED,
  NVME_NVM_IOCQES,
  NVME_NVM_IOSQES,
  NVME_QUEUE_PHYS_CONTIG,
  NvmeSc,
  SQE,
  SQE_BYTES,
} from "./defs.ts";
import {
  FRESH_DOORBELL,
  headDoorbell,
  tailDoorbell,
} from "./queue/doorbells.ts";
import type { QueueSetState } from "./queue/queue_state.ts";
import type { NvmeQueues } from "./queues.ts";
import type { NvmeRegisters } from "./registers.ts";
import type { RemoteQueues } from "./remote_queues.ts";

/** What a {@linkcode QueueTable} works with. */
export interface QueueTableParts {
  readonly memory: GuestMemory;
  /** Those of the control thread. */
  readonly queues: NvmeQueues;
  readonly registers: NvmeRegisters;
  /** I/O queue pairs there can be. */
  readonly pairs: number;
  /** The largest size of an I/O queue. */
  readonly maxEntries: number;
  /** How many interrupt vectors the controller has. */
  readonly vectors: number;
  /** The memory page size in bytes. */
  readonly pageBytes: () => number;
}

/** A completion queue that there is. */
export interface CqEntry {
  readonly qid: number;
  readonly size: number;
}

/** A submission queue that there is. */
export interface SqEntry extends CqEntry {
  readonly cqid: number;
  /** The Delete command that waits for its commands in flight. */
  deletion: Command | null;
}

/** The admin and I/O queues of a controller. */
export class QueueTable {
  readonly #parts: QueueTableParts;
  readonly #sqs = new Map<number, SqEntry>();
  readonly #cqs = new Map<number, CqEntry>();
  /** Those that other threads serve; null where this one serves all. */
  #remote: RemoteQueues | null = null;

  constructor(parts: QueueTableParts) {
    this.#parts = parts;
  }

  /** Whether I/O queues exist. */
  get hasIoQueues(): boolean {
    return [...this.#cqs.keys(), ...this.#sqs.keys()].some((qid) => qid !== 0);
  }

  /** A completion queue that there is, if there is. */
  cq(qid: number): CqEntry | undefined {
    return this.#cqs.get(qid);
  }

  /** A submission queue that there is, if there is. */
  sq(qid: number): Readonly<SqEntry> | undefined {
    return this.#sqs.get(qid);
  }

  /**
   * Makes the admin queues.
   *
   * @returns What is wrong with them, or null
   */
  createAdmin(): string | null {
    const { memory, registers: { aqa, asq, acq } } = this.#parts;
    const pageBytes = this.#parts.pageBytes();
    const sqSize = field(aqa, 11, 0) + 1;
    const cqSize = field(aqa, 27, 16) + 1;
    if (sqSize < 2 || cqSize < 2) return "an admin queue has one entry (AQA)";
    if (asq % pageBytes !== 0 || acq % pageBytes !== 0) {
      return "an admin queue is not aligned to a page (ASQ, ACQ)";
    }
    // The driver may enable the controller before it lets it access memory.
    const isThere = !memory.accessible ||
      (memory.covers(acq, cqSize * CQE_BYTES, Access.WRITE) &&
        memory.covers(asq, sqSize * SQE_BYTES, Access.READ));
    if (!isThere) return "an admin queue is not in guest memory (ASQ, ACQ)";
    this.#addCq(0, cqSize, acq, 0, true);
    this.#addSq(0, sqSize, asq, 0);
    return null;
  }

  /** Create I/O Completion Queue (section 5.3). @returns A status */
  createCq(sqe: Uint32Array): number {
    const { memory, pairs, vectors, registers: { cc } } = this.#parts;
    const qid = sqe[SQE.CDW10]! & 0xffff;
    const size = (sqe[SQE.CDW10]! >>> 16) + 1;
    const flags = sqe[SQE.CDW11]!;
    const vector = flags >>> 16;
    if (qid === 0 || qid > pairs || this.#cqs.has(qid)) {
      return NvmeSc.QID_INVALID;
    }
    if (field(cc, ...NVME_CC.IOCQES) !== NVME_NVM_IOCQES) {
      return NvmeSc.QUEUE_SIZE;
    }
    const status = this.#checkRing(sqe, size);
    if (status !== NvmeSc.SUCCESS) return status;
    // Which of them the driver has enabled by now does not matter: the error is about what there is (figure 151).
    if (vector >= vectors) return NvmeSc.INVALID_VECTOR;
    const iova = u64(sqe[SQE.PRP1]!, sqe[SQE.PRP1 + 1]!);
    if (!memory.covers(iova, size * CQE_BYTES, Access.WRITE)) {
      return NvmeSc.INVALID_FIELD;
    }
    this.#addCq(qid, size, iova, vector, bit(flags, NVME_CQ_IRQ_ENABLED));
    return NvmeSc.SUCCESS;
  }

  /** Create I/O Submission Queue (section 5.4). @returns A status */
  createSq(sqe: Uint32Array): number {
    const { memory, pairs, registers: { cc } } = this.#parts;
    const qid = sqe[SQE.CDW10]! & 0xffff;
    const size = (sqe[SQE.CDW10]! >>> 16) + 1;
    const cqid = sqe[SQE.CDW11]! >>> 16;
    if (qid === 0 || qid > pairs || this.#sqs.has(qid)) {
      return NvmeSc.QID_INVALID;
    }
    if (field(cc, ...NVME_CC.IOSQES) !== NVME_NVM_IOSQES) {
      return NvmeSc.QUEUE_SIZE;
    }
    const status = this.#checkRing(sqe, size);
    if (status !== NvmeSc.SUCCESS) return status;
    if (cqid === 0 || cqid > pairs) return NvmeSc.QID_INVALID;
    if (!this.#cqs.has(cqid)) return NvmeSc.CQ_INVALID;
    const iova = u64(sqe[SQE.PRP1]!, sqe[SQE.PRP1 + 1]!);
    if (!memory.covers(iova, size * SQE_BYTES, Access.READ)) {
      return NvmeSc.INVALID_FIELD;
    }
    this.#addSq(qid, size, iova, cqid);
    return NvmeSc.SUCCESS;
  }

  /** Delete I/O Completion Queue (section 5.5). @returns A status */
  deleteCq(sqe: Uint32Array): number {
    const qid = sqe[SQE.CDW10]! & 0xffff;
    if (qid === 0 || !this.#cqs.has(qid)) return NvmeSc.QID_INVALID;
    if ([...this.#sqs.values()].some(({ cqid }) => cqid === qid)) {
      return NvmeSc.INVALID_QUEUE;
    }
    if (this.isRemote(qid)) this.#remote!.call(qid, { op: "endCq", qid });
    else this.#parts.queues.set.endCq(qid);
    this.#cqs.delete(qid);
    return NvmeSc.SUCCESS;
  }

  /**
   * Delete I/O Submission Queue (section 5.6). What was not fetched is dropped; while commands are in flight the
   * deletion waits for them, see {@linkcode QueueTable.ended}.
   *
   * @returns A status, or IN_FLIGHT
   */
  deleteSq(command: Command, sqe: Uint32Array): number {
    const qid = sqe[SQE.CDW10]! & 0xffff;
    const sq = this.#sqs.get(qid);
    if (qid === 0 || sq === undefined || sq.deletion !== null) {
      return NvmeSc.QID_INVALID;
    }
    const gone = this.isRemote(sq.cqid)
      ? this.#remote!.call(sq.cqid, { op: "endSq", qid }) === true
      : this.#parts.queues.set.endSq(qid);
    if (gone) this.#sqs.delete(qid);
    else sq.deletion = command;
    return gone ? NvmeSc.SUCCESS : IN_FLIGHT;
  }

  /**
   * The commands in flight of a submission queue that is to be deleted are completed.
   *
   * @returns The Delete command that waited for that
   */
  ended(qid: number): Command | null {
    const deletion = this.#sqs.get(qid)?.deletion ?? null;
    if (deletion !== null) this.#sqs.delete(qid);
    return deletion;
  }

  /**
   * Abort (section 5.1) of a command that waits.
   *
   * @param isCancelled As {@linkcode NvmeQueues.abort} has it
   * @returns Whether there was one
   */
  abort(
    sqid: number,
    cid: number,
    isCancelled: (command: Command) => boolean,
  ): boolean {
    const cqid = this.#sqs.get(sqid)?.cqid;
    if (cqid === undefined) return false;
    return this.isRemote(cqid)
      ? this.#remote!.call(cqid, { op: "abort", sqid, cid }) === true
      : this.#parts.queues.abort(sqid, cid, isCancelled);
  }

  /** Whether another thread serves a completion queue, and those that complete there. */
  isRemote(cqid: number): boolean {
    return this.#remote !== null &&
      this.#remote.threadOf(cqid) !== CONTROL_THREAD;
  }

  /** Leaves queues to other threads from here on, while nothing is in flight; null has them all here again. */
  share(remote: RemoteQueues | null): void {
    const { set } = this.#parts.queues;
    if (this.#remote !== null) set.add(this.#remote.positions());
    this.#remote = remote;
    for (const { qid } of this.#cqs.values()) {
      if (this.isRemote(qid)) remote!.add(qid, set.release(qid));
    }
  }

  /** Forgets every queue. */
  reset(): void {
    this.#sqs.clear();
    this.#cqs.clear();
  }

  /** Every queue, on whichever thread, while nothing is in flight. */
  save(): QueueSetState {
    const here = this.#parts.queues.set.save();
    const there = this.#remote?.positions();
    return {
      completion: [...here.completion, ...there?.completion ?? []],
      submission: [...here.submission, ...there?.submission ?? []],
    };
  }

  /** Goes on with what {@linkcode QueueTable.save} gave; neither rings nor doorbells are touched. */
  load(state: QueueSetState): void {
    for (const { qid, size } of state.completion) {
      this.#cqs.set(qid, { qid, size });
    }
    for (const { qid, size, cqid } of state.submission) {
      this.#sqs.set(qid, { qid, size, cqid, deletion: null });
    }
    this.#parts.queues.set.add(state);
  }

  #checkRing(sqe: Uint32Array, size: number): number {
    const { maxEntries, pageBytes } = this.#parts;
    if (size < 2 || size > maxEntries) return NvmeSc.QUEUE_SIZE;
    // Queues are contiguous (CAP.CQR), so PRP1 is the ring's address and no list.
    if (!bit(sqe[SQE.CDW11]!, NVME_QUEUE_PHYS_CONTIG)) {
      return NvmeSc.INVALID_FIELD;
    }
    return sqe[SQE.PRP1]! % pageBytes() !== 0
      ? NvmeSc.PRP_INVALID_OFFSET
      : NvmeSc.SUCCESS;
  }

  #addCq(
    qid: number,
    size: number,
    iova: number,
    vector: number,
    interrupts: boolean,
  ): void {
    this.#parts.queues.doorbells.create(headDoorbell(qid));
    this.#cqs.set(qid, { qid, size });
    this.#add(qid, {
      completion: [{
        ...{ qid, size, iova, vector, interrupts },
        ...{ head: 0, tail: 0, phase: 1, untold: 0, urgent: false },
        ...{ rejected: null, doorbell: FRESH_DOORBELL },
      }],
      submission: [],
    });
  }

  #addSq(qid: number, size: number, iova: number, cqid: number): void {
    this.#parts.queues.doorbells.create(tailDoorbell(qid));
    this.#sqs.set(qid, { qid, size, cqid, deletion: null });
    this.#add(cqid, {
      completion: [],
      submission: [{
        ...{ qid, size, iova, cqid, head: 0, tail: 0 },
        ...{ rejected: null, doorbell: FRESH_DOORBELL },
      }],
    });
  }

  /** Has the thread of a completion queue serve queues. */
  #add(cqid: number, state: QueueSetState): void {
    if (this.isRemote(cqid)) this.#remote!.add(cqid, state);
    else this.#parts.queues.set.add(state);
  }
}
