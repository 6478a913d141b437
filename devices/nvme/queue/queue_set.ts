/**
 * The queues that one thread serves, and what their doorbells say.
 *
 * @module
 */

import type { GuestMemory } from "../../../src/memory/guest_memory.ts";
import {
  type PostedWrites,
  WriteOrder,
} from "../../../src/pci/posted_writes.ts";
import {
  type DoorbellBuffers,
  type Doorbells,
  headDoorbell,
  NO_DOORBELL,
  tailDoorbell,
} from "./doorbells.ts";
import { CompletionQueue, SubmissionQueue } from "./queue.ts";
import type { QueueSetState } from "./queue.ts";

/** Parts of a {@linkcode QueueSet}. */
export interface QueueSetOptions {
  readonly memory: GuestMemory;
  readonly doorbells: Doorbells;
  /** I/O queue pairs there can be. */
  readonly pairs: number;
  readonly posted: PostedWrites;
  /** Tells whether the pin, or a message that INTMS may mask, announces completions. */
  readonly maskable: () => boolean;
  /** Something is to be done in a bottom half. */
  readonly wake: () => void;
  /** A driver wrote a value that cannot be. */
  readonly onInvalidValue: () => void;
  /** A submission queue is gone that had commands in flight at {@linkcode QueueSet.endSq}. */
  readonly onEnded: (qid: number) => void;
}

/** Admin and I/O queues by number. */
export class QueueSet {
  readonly #options: QueueSetOptions;
  readonly #orders: readonly WriteOrder[];
  readonly #sqs: (SubmissionQueue | null)[];
  readonly #cqs: (CompletionQueue | null)[];
  #polled = false;
  #activeSqs: SubmissionQueue[] = [];
  #activeCqs: CompletionQueue[] = [];

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

  /** All submission queues. */
  get submission(): readonly SubmissionQueue[] {
    return this.#activeSqs;
  }

  /** All completion queues. */
  get completion(): readonly CompletionQueue[] {
    return this.#activeCqs;
  }

  /** A submission queue, or null. */
  sq(qid: number): SubmissionQueue | null {
    return this.#sqs[qid] ?? null;
  }

  /** A completion queue, or null. */
  cq(qid: number): CompletionQueue | null {
    return this.#cqs[qid] ?? null;
  }

  /** Begins to serve queues where they are, and where their doorbells are; a completion queue may be there already. */
  add({ completion, submission }: QueueSetState): void {
    const { memory, doorbells } = this.#options;
    doorbells.forget();
    for (const state of completion) {
      const cq = new CompletionQueue(memory, state);
      this.#cqs[cq.qid] = cq;
      this.#activeCqs = [...this.#activeCqs, cq];
    }
    for (const state of submission) {
      const sq = new SubmissionQueue(memory, state, this.#cqs[state.cqid]!);
      this.#sqs[sq.qid] = sq;
      this.#activeSqs = [...this.#activeSqs, sq];
    }
  }

  /** Ends a completion queue that no submission queue uses any more. */
  endCq(qid: number): void {
    this.#cqs[qid] = null;
    this.#activeCqs = this.#activeCqs.filter((each) => each.qid !== qid);
  }

  /**
   * Ends a submission queue: what was not fetched is dropped.
   *
   * @returns True when it is gone; if not, onEnded is called when the commands in flight are completed
   */
  endSq(qid: number): boolean {
    const sq = this.#sqs[qid]!;
    sq.ending = true;
    if (sq.inFlight === 0) this.#removeSq(qid);
    return sq.inFlight === 0;
  }

  /** The completion of a command was posted. */
  completed(sq: SubmissionQueue): void {
    sq.inFlight--;
    if (!sq.ending || sq.inFlight > 0) return;
    this.#removeSq(sq.qid);
    this.#options.onEnded(sq.qid);
  }

  /**
   * Does not serve a completion queue any more, nor those that complete there; nothing may be in flight on them.
   *
   * @returns Their positions, for another thread's {@linkcode QueueSet.add}
   */
  release(cqid: number): QueueSetState {
    const state = this.save(cqid);
    for (const { qid } of state.submission) this.#removeSq(qid);
    this.endCq(cqid);
    return state;
  }

  /** Forgets every queue. */
  reset(): void {
    for (const order of this.#orders) order.forget();
    this.#sqs.fill(null);
    this.#cqs.fill(null);
    this.#activeSqs = [];
    this.#activeCqs = [];
    this.#options.doorbells.use(null);
  }

  /** Positions of all queues, or of one with those that complete there. Only what waits for an event may be in flight. */
  save(cqid?: number): QueueSetState {
    const isWanted = (qid: number) => cqid === undefined || qid === cqid;
    return {
      completion: this.#activeCqs.filter(({ qid }) => isWanted(qid))
        .map((cq) => cq.save()),
      submission: this.#activeSqs.filter(({ cq }) => isWanted(cq.qid))
        .map((sq) => sq.save()),
    };
  }

  /**
   * Doorbell Buffer Config: the buffers hold whatever the queues are at from here on.
   *
   * @returns True when the buffers can be read and written
   */
  configureDoorbells(buffers: DoorbellBuffers): boolean {
    const { doorbells } = this.#options;
    if (!doorbells.use(buffers)) return doorbells.use(null);
    for (const sq of this.#activeSqs) {
      doorbells.set(tailDoorbell(sq.qid), sq.tail);
    }
    for (const cq of this.#activeCqs) {
      doorbells.set(headDoorbell(cq.qid), cq.head);
    }
    return true;
  }

  /** Looks at a doorbell that was written by message. @returns False when its queue is not here */
  ring(qid: number, isHead: boolean, value: number): boolean {
    const queue = isHead ? this.cq(qid) : this.sq(qid);
    if (queue === null) return false;
    // A value that was refused before is a mistake again.
    queue.rejected = null;
    const index = isHead ? headDoorbell(qid) : tailDoorbell(qid);
    this.#options.doorbells.write(index, value);
    if (queue instanceof CompletionQueue) this.updateHead(queue);
    else this.updateTail(queue);
    return true;
  }

  /** Looks at the doorbell of a submission queue. */
  updateTail(sq: SubmissionQueue): void {
    const found = this.#news(tailDoorbell(sq.qid), sq.tail, sq.rejected);
    if (found === NO_DOORBELL) return;
    const value = this.#admit(sq, found);
    if (value === NO_DOORBELL) return;
    if (sq.submitTo(value)) {
      sq.rejected = null;
      return;
    }
    sq.rejected = value;
    this.#options.onInvalidValue();
  }

  /**
   * A tail was found, maybe in memory: the register writes that were sent before it come first, where they matter.
   *
   * @returns Tail up to which the queue may be fetched from now: later entries do not keep earlier ones waiting
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
    const value = this.#news(headDoorbell(cq.qid), cq.head, cq.rejected);
    if (value === NO_DOORBELL) return;
    if (cq.consumeTo(value)) {
      cq.rejected = null;
      return;
    }
    cq.rejected = value;
    this.#options.onInvalidValue();
  }

  /** Looks at all doorbells. */
  update(): void {
    this.refreshDoorbells();
    for (let i = 0; i < this.#activeCqs.length; i++) {
      this.updateHead(this.#activeCqs[i]!);
    }
    for (let i = 0; i < this.#activeSqs.length; i++) {
      this.updateTail(this.#activeSqs[i]!);
    }
  }

  /** Describes a queue that is not mapped; null when all are. */
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

  /** Tells whether a submission queue has entries; when not, the driver is asked to ring for the next one. */
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
   * @param live Guest memory may be touched; nobody is asked otherwise
   * @returns True when a submission queue got entries meanwhile
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

  /** Tells whether a completion queue has room; when not, the driver is asked to ring when it makes some. */
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
   * Tells whether a doorbell has a new value, for polling.
   *
   * @param heads The heads of all completion queues matter, not just those of queues with commands to fetch
   */
  hasNews(heads: boolean): boolean {
    this.refreshDoorbells();
    for (let i = 0; i < this.#activeSqs.length; i++) {
      const sq = this.#activeSqs[i]!;
      const tail = this.#news(tailDoorbell(sq.qid), sq.tail, sq.rejected);
      if (tail !== NO_DOORBELL) return true;
      if (sq.empty && !heads) continue;
      const { cq } = sq;
      const head = this.#news(headDoorbell(cq.qid), cq.head, cq.rejected);
      if (head !== NO_DOORBELL) return true;
    }
    return false;
  }

  /** The value of a doorbell, or NO_DOORBELL when it is as known or was rejected before. */
  #news(index: number, known: number, rejected: number | null): number {
    const value = this.#options.doorbells.read(index);
    return value === known || value === rejected ? NO_DOORBELL : value;
  }

  /** Asks the driver to ring whenever it consumes entries, and looks whether it has; for pin interrupts. */
  watchHead(cq: CompletionQueue): void {
    this.updateHead(cq);
    if (this.#options.doorbells.arm(headDoorbell(cq.qid), cq.head)) {
      this.updateHead(cq);
    }
  }

  #removeSq(qid: number): void {
    this.#orders[qid]!.forget();
    this.#sqs[qid] = null;
    this.#activeSqs = this.#activeSqs.filter((each) => each.qid !== qid);
  }
}
