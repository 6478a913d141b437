/**
 * The queues of a controller: creating and deleting them, and what their doorbells say.
 *
 * @module
 */

import { bit, field, u64 } from "../../../src/core/bits.ts";
import type { GuestMemory } from "../../../src/memory/guest_memory.ts";
import {
  type PostedWrites,
  WriteOrder,
} from "../../../src/pci/posted_writes.ts";
import type { Command } from "../command/command.ts";
import {
  IN_FLIGHT,
  NVME_CC,
  NVME_CQ_IRQ_ENABLED,
  NVME_NVM_IOCQES,
  NVME_NVM_IOSQES,
  NVME_QUEUE_PHYS_CONTIG,
  NvmeSc,
  SQE,
} from "../defs.ts";
import {
  type Doorbells,
  headDoorbell,
  NO_DOORBELL,
  tailDoorbell,
} from "./doorbells.ts";
import { CompletionQueue, type RingSpec, SubmissionQueue } from "./queue.ts";
import type { QueueSetState } from "./queue_state.ts";

/** What a {@linkcode QueueSet} works with. */
export interface QueueSetOptions {
  readonly memory: GuestMemory;
  readonly doorbells: Doorbells;
  /** I/O queue pairs there can be. */
  readonly pairs: number;
  /** The largest size of an I/O queue. */
  readonly maxEntries: number;
  /** How many interrupt vectors the controller has. */
  readonly vectors: number;
  /** CC, whose IOSQES and IOCQES tell what the driver takes for the size of an entry. */
  readonly cc: () => number;
  readonly posted: PostedWrites;
  /** Whether the pin, or a message that INTMS may mask, tells about completions. */
  readonly maskable: () => boolean;
  /** Something is to be done in a bottom half. */
  readonly wake: () => void;
  /** A driver wrote a value that cannot be. */
  readonly onInvalidValue: () => void;
  /** A submission queue is gone whose deletion another thread has asked for. */
  readonly onEnded?: (qid: number) => void;
}

/** Queues that other threads serve, in the eyes of the thread that creates and deletes them. */
export interface ForeignQueues {
  /** Whether a completion queue, and what completes there, is another thread's. */
  isForeign(cqid: number): boolean;
  /** Has its thread make a queue that was checked. */
  createCq(ring: RingSpec, vector: number, interrupts: boolean): void;
  /** Has the thread of its completion queue make a queue that was checked. */
  createSq(ring: RingSpec, cqid: number): void;
  /** Has its thread forget a queue that nothing completes in any more. */
  deleteCq(qid: number): void;
  /** Has its thread end a queue. @returns Whether it is gone; if not, {@linkcode QueueSet.ended} is called when it is */
  deleteSq(qid: number, cqid: number): boolean;
}

/** Admin and I/O queues by number. */
export class QueueSet {
  readonly #options: QueueSetOptions;
  readonly #orders: readonly WriteOrder[];
  readonly #sqs: (SubmissionQueue | null)[];
  readonly #cqs: (CompletionQueue | null)[];
  /** Null where this thread serves all there are. */
  #foreign: ForeignQueues | null = null;
  /** Whether this is a twin, which has no queues but those that it was told to serve. */
  #isTwin = false;
  #polled = false;
  #activeSqs: SubmissionQueue[] = [];
  #activeCqs: CompletionQueue[] = [];
  #pageBytes = 4096;

  constructor(options: QueueSetOptions) {
    this.#options = options;
    const count = options.pairs + 1;
    this.#sqs = new Array(count).fill(null);
    this.#cqs = new Array(count).fill(null);
    this.#orders = Array.from(
      { length: count },
      () => new WriteOrder(options.posted, options.wake),
    );
  }

  /** Other threads serve some of the queues that this one makes. */
  spread(foreign: ForeignQueues): void {
    this.#foreign = foreign;
  }

  /** Another thread makes the queues: this one has but those it is told to serve. */
  becomeTwin(): void {
    this.#isTwin = true;
  }

  /** Submission queues that this thread serves. */
  get submission(): readonly SubmissionQueue[] {
    return this.#activeSqs;
  }

  /** Completion queues that this thread serves. */
  get completion(): readonly CompletionQueue[] {
    return this.#activeCqs;
  }

  /** Whether I/O queues exist. */
  get hasIoQueues(): boolean {
    const isIo = (queue: { qid: number } | null) =>
      queue !== null && queue.qid !== 0;
    return this.#cqs.some(isIo) || this.#sqs.some(isIo);
  }

  /** A submission queue, or null. */
  sq(qid: number): SubmissionQueue | null {
    return this.#sqs[qid] ?? null;
  }

  /** A completion queue, or null. */
  cq(qid: number): CompletionQueue | null {
    return this.#cqs[qid] ?? null;
  }

  /**
   * Makes the admin queues.
   *
   * @returns What is wrong with them, or null
   */
  createAdmin(
    pageBytes: number,
    aqa: number,
    asq: Uint32Array,
    acq: Uint32Array,
  ): string | null {
    const { memory } = this.#options;
    this.#pageBytes = pageBytes;
    const sqSize = field(aqa, 11, 0) + 1;
    const cqSize = field(aqa, 27, 16) + 1;
    if (sqSize < 2 || cqSize < 2) return "an admin queue has one entry (AQA)";
    const sqIova = u64(asq[0]!, asq[1]!);
    const cqIova = u64(acq[0]!, acq[1]!);
    if (sqIova % pageBytes !== 0 || cqIova % pageBytes !== 0) {
      return "an admin queue is not aligned to a page (ASQ, ACQ)";
    }
    const cq = new CompletionQueue(
      memory,
      { qid: 0, size: cqSize, iova: cqIova },
      0,
      true,
    );
    const sq = new SubmissionQueue(
      memory,
      { qid: 0, size: sqSize, iova: sqIova },
      cq,
    );
    // The driver may enable the controller before it lets it access memory.
    if (memory.accessible && !(cq.ready() && sq.ready())) {
      return "an admin queue is not in guest memory (ASQ, ACQ)";
    }
    this.#addCq(cq);
    this.#addSq(sq);
    return null;
  }

  /** Create I/O Completion Queue (section 5.3). @returns A status */
  createCq(sqe: Uint32Array): number {
    const { memory, pairs, vectors, cc } = this.#options;
    const qid = sqe[SQE.CDW10]! & 0xffff;
    const size = (sqe[SQE.CDW10]! >>> 16) + 1;
    const flags = sqe[SQE.CDW11]!;
    const vector = flags >>> 16;
    if (qid === 0 || qid > pairs || this.#cqs[qid] !== null) {
      return NvmeSc.QID_INVALID;
    }
    if (field(cc(), ...NVME_CC.IOCQES) !== NVME_NVM_IOCQES) {
      return NvmeSc.QUEUE_SIZE;
    }
    const status = this.#checkRing(sqe, size);
    if (status !== NvmeSc.SUCCESS) return status;
    // Which of them the driver has enabled by now does not matter: the error is about what there is (figure 151).
    if (vector >= vectors) return NvmeSc.INVALID_VECTOR;
    const ring = { qid, size, iova: u64(sqe[SQE.PRP1]!, sqe[SQE.PRP1 + 1]!) };
    const interrupts = bit(flags, NVME_CQ_IRQ_ENABLED);
    const cq = new CompletionQueue(memory, ring, vector, interrupts);
    if (!cq.ready()) return NvmeSc.INVALID_FIELD;
    if (this.#foreign?.isForeign(qid)) {
      cq.foreign = true;
      this.#foreign.createCq(ring, vector, interrupts);
      this.#putCq(cq);
    } else this.#addCq(cq);
    return NvmeSc.SUCCESS;
  }

  /** Create I/O Submission Queue (section 5.4). @returns A status */
  createSq(sqe: Uint32Array): number {
    const { memory, pairs, cc } = this.#options;
    const qid = sqe[SQE.CDW10]! & 0xffff;
    const size = (sqe[SQE.CDW10]! >>> 16) + 1;
    const cqid = sqe[SQE.CDW11]! >>> 16;
    if (qid === 0 || qid > pairs || this.#sqs[qid] !== null) {
      return NvmeSc.QID_INVALID;
    }
    if (field(cc(), ...NVME_CC.IOSQES) !== NVME_NVM_IOSQES) {
      return NvmeSc.QUEUE_SIZE;
    }
    const status = this.#checkRing(sqe, size);
    if (status !== NvmeSc.SUCCESS) return status;
    if (cqid === 0 || cqid > pairs) return NvmeSc.QID_INVALID;
    const cq = this.#cqs[cqid]!;
    if (cq === null) return NvmeSc.CQ_INVALID;
    const iova = u64(sqe[SQE.PRP1]!, sqe[SQE.PRP1 + 1]!);
    const ring = { qid, size, iova };
    const sq = new SubmissionQueue(memory, ring, cq);
    if (!sq.ready()) return NvmeSc.INVALID_FIELD;
    if (cq.foreign) {
      this.#foreign!.createSq(ring, cqid);
      this.#putSq(sq);
    } else this.#addSq(sq);
    return NvmeSc.SUCCESS;
  }

  /** Delete I/O Completion Queue (section 5.5). @returns A status */
  deleteCq(sqe: Uint32Array): number {
    const qid = sqe[SQE.CDW10]! & 0xffff;
    const cq = qid === 0 ? null : this.cq(qid);
    if (cq === null) return NvmeSc.QID_INVALID;
    if (cq.users > 0) return NvmeSc.INVALID_QUEUE;
    if (cq.foreign) this.#foreign!.deleteCq(qid);
    this.#removeCq(cq);
    return NvmeSc.SUCCESS;
  }

  /**
   * Delete I/O Submission Queue (section 5.6). What was not fetched is dropped; while commands are in flight the
   * deletion waits for them, see {@linkcode QueueSet.completed}.
   *
   * @returns A status, or IN_FLIGHT
   */
  deleteSq(command: Command, sqe: Uint32Array): number {
    const qid = sqe[SQE.CDW10]! & 0xffff;
    const sq = qid === 0 ? null : this.sq(qid);
    if (sq === null || sq.ending) return NvmeSc.QID_INVALID;
    sq.ending = true;
    const gone = sq.cq.foreign
      ? this.#foreign!.deleteSq(qid, sq.cq.qid)
      : sq.inFlight === 0;
    if (gone) {
      this.#removeSq(sq);
      return NvmeSc.SUCCESS;
    }
    sq.deleting = command;
    return IN_FLIGHT;
  }

  /**
   * The completion of a command was posted.
   *
   * @returns The Delete command that waited for it, now to be completed; or null
   */
  completed(sq: SubmissionQueue): Command | null {
    sq.inFlight--;
    if (!sq.ending || sq.inFlight > 0) return null;
    this.#removeSq(sq);
    if (sq.deleting === null) this.#options.onEnded?.(sq.qid);
    return sq.deleting;
  }

  /**
   * Another thread has come to the end of a submission queue.
   *
   * @returns The Delete command that waited for it; or null
   */
  ended(qid: number): Command | null {
    const sq = this.sq(qid);
    if (sq === null || !sq.ending || !sq.cq.foreign) return null;
    this.#removeSq(sq);
    return sq.deleting;
  }

  /** Makes a completion queue that another thread has checked. */
  serveCq(ring: RingSpec, vector: number, interrupts: boolean): void {
    const { memory } = this.#options;
    this.#addCq(new CompletionQueue(memory, ring, vector, interrupts));
  }

  /** Makes a submission queue that another thread has checked, for a completion queue that is there. */
  serveSq(ring: RingSpec, cqid: number): void {
    const { memory } = this.#options;
    this.#addSq(new SubmissionQueue(memory, ring, this.#cqs[cqid]!));
  }

  /** Ends a completion queue of {@linkcode QueueSet.serveCq}. */
  leaveCq(qid: number): void {
    this.#removeCq(this.#cqs[qid]!);
  }

  /** Ends a submission queue of {@linkcode QueueSet.serveSq}. @returns Whether it is gone; if not, it is told later */
  leaveSq(qid: number): boolean {
    const sq = this.#sqs[qid]!;
    sq.ending = true;
    if (sq.inFlight > 0) return false;
    this.#removeSq(sq);
    return true;
  }

  /** Forgets every queue. */
  reset(): void {
    for (const order of this.#orders) order.forget();
    this.#sqs.fill(null);
    this.#cqs.fill(null);
    this.#activeSqs = [];
    this.#activeCqs = [];
    this.#options.doorbells.reset();
  }

  /** Every queue; no command may be in flight but those that wait for an event. */
  save(): QueueSetState {
    return {
      completion: this.#activeCqs.map((cq) => cq.save()),
      submission: this.#activeSqs.map((sq) => sq.save()),
    };
  }

  /** Makes the queues that another set had; neither rings nor doorbells are touched. */
  load(state: QueueSetState, pageBytes: number): void {
    const { memory } = this.#options;
    this.#pageBytes = pageBytes;
    for (const each of state.completion) {
      const { vector, interrupts } = each;
      const cq = new CompletionQueue(memory, each, vector, interrupts);
      cq.load(each);
      this.#putCq(cq);
    }
    for (const each of state.submission) {
      const sq = new SubmissionQueue(memory, each, this.#cqs[each.cqid]!);
      sq.load(each);
      this.#putSq(sq);
    }
  }

  /** The value that each doorbell has, for Doorbell Buffer Config; NO_DOORBELL for one that another thread sees to. */
  doorbellValues(): Int32Array {
    const values = new Int32Array(this.#options.doorbells.count);
    if (this.#isTwin) values.fill(NO_DOORBELL);
    for (const sq of this.#sqs) {
      if (sq === null) continue;
      values[tailDoorbell(sq.qid)] = sq.cq.foreign ? NO_DOORBELL : sq.tail;
    }
    for (const cq of this.#cqs) {
      if (cq === null) continue;
      values[headDoorbell(cq.qid)] = cq.foreign ? NO_DOORBELL : cq.head;
    }
    return values;
  }

  /** Looks at the doorbell of a submission queue. */
  updateTail(sq: SubmissionQueue): void {
    let value = this.#options.doorbells.read(tailDoorbell(sq.qid));
    if (value === sq.tail || value === NO_DOORBELL || value === sq.rejected) {
      return;
    }
    value = this.#admit(sq, value);
    if (value === NO_DOORBELL) return;
    if (sq.submitTo(value)) {
      sq.rejected = NO_DOORBELL;
      return;
    }
    sq.rejected = value;
    this.#options.onInvalidValue();
  }

  /**
   * A tail was found, maybe in memory: the register writes that were sent before it come first, where they matter.
   *
   * @returns How far the queue may be fetched from now: what has come since does not keep waiting what was found before
   */
  #admit(sq: SubmissionQueue, tail: number): number {
    if (sq.qid !== 0 && !(sq.cq.interrupts && this.#options.maskable())) {
      return tail;
    }
    const order = this.#orders[sq.qid]!;
    const found = order.waiting ? sq.waitingTail : tail;
    sq.waitingTail = found;
    return order.admit() ? found : NO_DOORBELL;
  }

  /** Looks at the doorbell of a completion queue. */
  updateHead(cq: CompletionQueue): void {
    const value = this.#options.doorbells.read(headDoorbell(cq.qid));
    if (value === cq.head || value === NO_DOORBELL || value === cq.rejected) {
      return;
    }
    if (cq.consumeTo(value)) {
      cq.rejected = NO_DOORBELL;
      return;
    }
    cq.rejected = value;
    this.#options.onInvalidValue();
  }

  /** What of the queues that this thread serves is not mapped, for messages; null when all is. */
  missing(): string | null {
    // What a function may not access is there all the same.
    if (!this.#options.memory.accessible) return null;
    for (const cq of this.#activeCqs) {
      if (!cq.ready()) return `completion queue ${cq.qid} is not mapped`;
    }
    for (const sq of this.#activeSqs) {
      if (!sq.ready()) return `submission queue ${sq.qid} is not mapped`;
    }
    return this.#options.doorbells.missing
      ? "the buffers of Doorbell Buffer Config are not mapped"
      : null;
  }

  /** Looks at the doorbells of all queues, which may be in guest memory. */
  refreshDoorbells(): void {
    this.#options.doorbells.refresh();
  }

  /** Whether a submission queue has entries; when not, the driver is asked to ring for the next one. */
  hasEntries(sq: SubmissionQueue): boolean {
    if (!sq.empty) return true;
    this.updateTail(sq);
    if (!sq.empty) return true;
    // While the tails are polled EventIdx stays where it was, behind the driver, which then never rings.
    if (
      !this.#polled &&
      this.#options.doorbells.arm(tailDoorbell(sq.qid), sq.tail)
    ) {
      this.updateTail(sq);
    }
    return !sq.empty;
  }

  /** The tails are polled from here on, so that drivers with shadow doorbells need not ring. */
  beginPolling(): void {
    this.#polled = true;
  }

  /**
   * The tails are not polled any more: asks drivers to ring.
   *
   * @param live Whether guest memory may be touched; nobody is asked otherwise
   * @returns Whether a submission queue got entries meanwhile
   */
  endPolling(live: boolean): boolean {
    this.#polled = false;
    if (!live) return false;
    let found = false;
    for (let i = 0; i < this.#activeSqs.length; i++) {
      if (this.hasEntries(this.#activeSqs[i]!)) found = true;
    }
    return found;
  }

  /** Whether a completion queue has room; when not, the driver is asked to ring when it makes some. */
  hasRoom(cq: CompletionQueue): boolean {
    if (cq.room > 0) return true;
    const { doorbells } = this.#options;
    const index = headDoorbell(cq.qid);
    this.updateHead(cq);
    if (cq.room <= 0 && doorbells.arm(index, cq.head)) this.updateHead(cq);
    if (cq.room <= 0) return false;
    // Just behind the driver, where it does not come by before it has consumed all that fits.
    doorbells.arm(index, cq.head === 0 ? cq.size - 1 : cq.head - 1);
    return true;
  }

  /**
   * Whether doorbells tell something new, for polling.
   *
   * @param heads Whether the heads of all completion queues matter, not just of those that are full
   */
  hasNews(heads: boolean): boolean {
    const { doorbells } = this.#options;
    doorbells.refresh();
    for (let i = 0; i < this.#activeSqs.length; i++) {
      const sq = this.#activeSqs[i]!;
      const tail = doorbells.read(tailDoorbell(sq.qid));
      if (tail !== sq.tail && tail !== NO_DOORBELL && tail !== sq.rejected) {
        return true;
      }
      if (sq.empty && !heads) continue;
      const { cq } = sq;
      const head = doorbells.read(headDoorbell(cq.qid));
      if (head !== cq.head && head !== NO_DOORBELL && head !== cq.rejected) {
        return true;
      }
    }
    return false;
  }

  /** Asks the driver to ring whenever it consumes entries, and looks whether it has; for pin interrupts. */
  watchHead(cq: CompletionQueue): void {
    this.updateHead(cq);
    if (this.#options.doorbells.arm(headDoorbell(cq.qid), cq.head)) {
      this.updateHead(cq);
    }
  }

  #checkRing(sqe: Uint32Array, size: number): number {
    if (size < 2 || size > this.#options.maxEntries) return NvmeSc.QUEUE_SIZE;
    // Queues are contiguous (CAP.CQR), so PRP1 is the ring's address and no list.
    if (!bit(sqe[SQE.CDW11]!, NVME_QUEUE_PHYS_CONTIG)) {
      return NvmeSc.INVALID_FIELD;
    }
    return (sqe[SQE.PRP1]! & (this.#pageBytes - 1)) !== 0
      ? NvmeSc.PRP_INVALID_OFFSET
      : NvmeSc.SUCCESS;
  }

  #addCq(cq: CompletionQueue): void {
    this.#putCq(cq);
    this.#options.doorbells.create(headDoorbell(cq.qid));
  }

  #putCq(cq: CompletionQueue): void {
    this.#cqs[cq.qid] = cq;
    if (!cq.foreign) this.#activeCqs = [...this.#activeCqs, cq];
  }

  #addSq(sq: SubmissionQueue): void {
    this.#putSq(sq);
    this.#options.doorbells.create(tailDoorbell(sq.qid));
  }

  #putSq(sq: SubmissionQueue): void {
    this.#sqs[sq.qid] = sq;
    sq.cq.users++;
    if (!sq.cq.foreign) this.#activeSqs = [...this.#activeSqs, sq];
  }

  #removeCq(cq: CompletionQueue): void {
    this.#cqs[cq.qid] = null;
    this.#activeCqs = this.#activeCqs.filter((each) => each !== cq);
  }

  #removeSq(sq: SubmissionQueue): void {
    this.#orders[sq.qid]!.forget();
    this.#sqs[sq.qid] = null;
    sq.cq.users--;
    this.#activeSqs = this.#activeSqs.filter((each) => each !== sq);
  }
}
