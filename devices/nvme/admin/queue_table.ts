/**
 * Queues of a controller and the threads that serve them: the commands that create and delete queues and that find a
 * command in one (NVM Express 1.4, sections 5.1 and 5.3 to 5.6), and whatever else reaches all threads.
 *
 * @module
 */

import { bit, field, u64 } from "../../../src/core/bits.ts";
import { Access } from "../../../src/memory/guest_memory.ts";
import { ResourceBag } from "../../../src/os/resource_bag.ts";
import {
  CONTROL_THREAD,
  type QueueThreads,
} from "../../../src/pci/queue_threads.ts";
import type { Command } from "../command/engine.ts";
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
} from "../defs.ts";
import { headDoorbell, tailDoorbell } from "../queue/doorbells.ts";
import type { QueueSetState } from "../queue/queue.ts";
import type { NvmeQueues, QueueMessage } from "../io/queues.ts";
import type { NvmeRegisters } from "../registers.ts";
import type {
  NamespaceGrant,
  QueueGrant,
  ServiceMessage,
} from "../threads/queue_service.ts";
import { sharedWordCount } from "../threads/shared_words.ts";

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

/** Side of the controller that queue threads see. */
export interface ThreadsListener {
  /** Makes the grant of a thread's service, one for each. @throws {Error} When it cannot be made */
  grant(bag: ResourceBag): QueueGrant;
  /** A thread wants the INTA# line up, or does not any more. */
  onLine(): void;
  /** A thread has something to report. */
  onReport(): void;
}

/** The group of a completion queue: each is one of its own, with the submission queues that complete there. */
export function groupOf(cqid: number): number {
  // The admin queue is the control thread's: CONTROL_GROUP.
  return cqid - 1;
}

/**
 * The admin and I/O queues of a controller, on whichever thread. Whatever a command or a register changes has reached every
 * thread before it is answered. Doorbells are the exception: they are words that all threads see, and a thread that sleeps
 * is woken up.
 */
export class QueueTable {
  readonly #queues: NvmeQueues;
  readonly #registers: NvmeRegisters;
  readonly #maxEntries: number;
  readonly #sqs = new Map<number, SqEntry>();
  readonly #cqs = new Map<number, CqEntry>();
  /** Null where this thread serves all queues. */
  #threads: QueueThreads | null = null;
  /** Those of them that serve queues. */
  #serving: readonly number[] = [];

  /** @param queues Those of the control thread @param maxEntries The largest size of an I/O queue */
  constructor(
    queues: NvmeQueues,
    registers: NvmeRegisters,
    maxEntries: number,
  ) {
    this.#queues = queues;
    this.#registers = registers;
    this.#maxEntries = maxEntries;
  }

  /** True while I/O queues exist. */
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
   * @returns A reason for which they cannot be used, or null
   */
  createAdmin(): string | null {
    const { aqa, asq, acq, pageShift } = this.#registers;
    const { memory } = this.#queues.parts.context;
    const pageBytes = 2 ** pageShift;
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
    const { context: { memory }, pairs, vectors } = this.#queues.parts;
    const qid = sqe[SQE.CDW10]! & 0xffff;
    const size = (sqe[SQE.CDW10]! >>> 16) + 1;
    const flags = sqe[SQE.CDW11]!;
    const vector = flags >>> 16;
    if (qid === 0 || qid > pairs || this.#cqs.has(qid)) {
      return NvmeSc.QID_INVALID;
    }
    if (field(this.#registers.cc, ...NVME_CC.IOCQES) !== NVME_NVM_IOCQES) {
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
    const { context: { memory }, pairs } = this.#queues.parts;
    const qid = sqe[SQE.CDW10]! & 0xffff;
    const size = (sqe[SQE.CDW10]! >>> 16) + 1;
    const cqid = sqe[SQE.CDW11]! >>> 16;
    if (qid === 0 || qid > pairs || this.#sqs.has(qid)) {
      return NvmeSc.QID_INVALID;
    }
    if (field(this.#registers.cc, ...NVME_CC.IOSQES) !== NVME_NVM_IOSQES) {
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
    this.call(qid, { op: "endCq", qid });
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
    const gone = this.call(sq.cqid, { op: "endSq", qid }) === true;
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

  /** Abort (section 5.1) of a command that waits. @returns True when there was one */
  abort(sqid: number, cid: number): boolean {
    const cqid = this.#sqs.get(sqid)?.cqid;
    return cqid !== undefined &&
      this.call(cqid, { op: "abort", sqid, cid }) === true;
  }

  /** Has the thread of a completion queue do something. @returns Its answer */
  call(cqid: number, message: QueueMessage): unknown {
    const thread = this.#threadOf(cqid);
    return thread === CONTROL_THREAD
      ? this.#queues.handle(message)
      : this.#threads!.call(thread, message);
  }

  /**
   * Has every thread do something, though others fail; this one last.
   *
   * @returns The answers
   * @throws {Error} What failed first
   */
  callAll(message: QueueMessage): unknown[] {
    let own: unknown;
    let others: unknown[];
    try {
      others = this.callOthers(message);
    } finally {
      own = this.#queues.handle(message);
    }
    return [...others, own];
  }

  /** As {@linkcode QueueTable.callAll}. @returns The sum of the answers, which are numbers */
  sum(message: QueueMessage): number {
    return (this.callAll(message) as number[])
      .reduce((sum, count) => sum + count, 0);
  }

  /** As {@linkcode QueueTable.callAll}, of the other threads alone. */
  callOthers(message: ServiceMessage): unknown[] {
    return this.#threads?.callAll(message) ?? [];
  }

  /** Has the thread of a completion queue look at its doorbells. */
  wake(cqid: number): void {
    this.#threads!.wake(this.#threadOf(cqid));
  }

  /** Leaves guest memory alone. */
  stop(): void {
    this.callAll({ op: "stop" });
    this.#threads?.stop();
  }

  /** Goes on after {@linkcode QueueTable.stop} and hold. */
  start(): void {
    this.#threads?.start();
    this.callAll({ op: "start" });
  }

  /** Forgets every queue and command. @throws {Error} When a thread may go on touching guest memory */
  reset(): void {
    try {
      this.callAll({ op: "reset" });
    } finally {
      this.#threads?.forget();
      this.#queues.doorbells.clear();
      this.#sqs.clear();
      this.#cqs.clear();
    }
  }

  /**
   * Leaves queues to other threads from here on, while nothing is in flight.
   *
   * @throws {Error} When one of them cannot make its service; this thread then serves every queue
   */
  attach(threads: QueueThreads, listener: ThreadsListener): void {
    const queues = this.#queues;
    const { words, pairs, vectors } = queues.parts;
    const all = Array.from(
      { length: pairs },
      (_, i) => threads.threadOf(groupOf(i + 1)),
    );
    words.moveTo(
      threads.attach({
        ...{ vectors, words: sharedWordCount(pairs + 1) },
        onLine: () => listener.onLine(),
        onReport: () => listener.onReport(),
      }),
    );
    this.#threads = threads;
    this.#serving = [...new Set(all)].filter((it) => it !== CONTROL_THREAD);
    try {
      for (const thread of this.#serving) {
        threads.open(thread, (bag) => listener.grant(bag));
      }
    } catch (error) {
      this.close();
      throw error;
    }
    for (const { qid } of this.#cqs.values()) {
      if (this.#threadOf(qid) === CONTROL_THREAD) continue;
      this.call(qid, { op: "add", queues: queues.set.release(qid) });
    }
    if (!queues.stopped) {
      threads.start();
      threads.callAll({ op: "start" } satisfies QueueMessage);
    }
    if (queues.holding) threads.callAll({ op: "hold" } satisfies QueueMessage);
  }

  /** Serves all queues on this thread again, while nothing is in flight. */
  detach(): void {
    const { set, lines } = this.#queues;
    for (const positions of this.callOthers({ op: "positions" })) {
      set.add(positions as QueueSetState);
    }
    this.#threads?.deliver();
    this.close();
    lines.forget();
  }

  /** Ends what other threads do. */
  close(): void {
    for (const thread of this.#serving) this.#threads!.close(thread);
    if (this.#threads !== null) this.#queues.parts.words.moveTo();
    this.#threads = null;
    this.#serving = [];
  }

  /** True while other threads serve queues. */
  get isShared(): boolean {
    return this.#threads !== null;
  }

  /** There is a namespace more. @param share Gives what a thread needs of it @throws {Error} When one cannot have it */
  addNamespace(share: (bag: ResourceBag) => NamespaceGrant): void {
    for (const thread of this.#serving) {
      using bag = ResourceBag.of();
      const namespace = share(bag);
      const fds = bag.release();
      const message: ServiceMessage = { op: "addNamespace", namespace, fds };
      this.#threads!.call(thread, message);
    }
  }

  /** Every queue, on whichever thread, while nothing is in flight. */
  save(): QueueSetState {
    const all = this.callAll({ op: "positions" }) as QueueSetState[];
    return {
      completion: all.flatMap(({ completion }) => completion),
      submission: all.flatMap(({ submission }) => submission),
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
    this.#queues.set.add(state);
  }

  #checkRing(sqe: Uint32Array, size: number): number {
    if (size < 2 || size > this.#maxEntries) return NvmeSc.QUEUE_SIZE;
    // Queues are contiguous (CAP.CQR), so PRP1 is the ring's address and no list.
    if (!bit(sqe[SQE.CDW11]!, NVME_QUEUE_PHYS_CONTIG)) {
      return NvmeSc.INVALID_FIELD;
    }
    return sqe[SQE.PRP1]! % this.#queues.data.pageBytes !== 0
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
    this.#queues.doorbells.create(headDoorbell(qid));
    this.#cqs.set(qid, { qid, size });
    const cq = {
      ...{ qid, size, iova, vector, interrupts, rejected: null },
      ...{ head: 0, tail: 0, phase: 1, untold: 0, urgent: false },
    };
    const queues = { completion: [cq], submission: [] };
    this.call(qid, { op: "add", queues });
  }

  #addSq(qid: number, size: number, iova: number, cqid: number): void {
    this.#queues.doorbells.create(tailDoorbell(qid));
    this.#sqs.set(qid, { qid, size, cqid, deletion: null });
    const sq = { qid, size, iova, cqid, head: 0, tail: 0, rejected: null };
    const queues = { completion: [], submission: [sq] };
    this.call(cqid, { op: "add", queues });
  }

  #threadOf(cqid: number): number {
    return this.#threads?.threadOf(groupOf(cqid)) ?? CONTROL_THREAD;
  }
}
