/**
 * Memory that IOThreads and the Worker of a store share: who is there, and a ring of requests for each IOThread.
 *
 * ```text
 *   IOThread ── request n, submitted ──> Worker        n is a slot: fields of a request, and room for its data
 *            <── n, result: done ──────
 * ```
 * It is native memory, so that an address says where it is, on every thread. The Worker is never given guest memory: data
 * is copied to and from the slots by the IOThread.
 *
 * Only indices, states and wake-up words are read while others write them; those are accessed by Atomics. A request is its
 * IOThread's until it is submitted, and then the Worker's until it is done.
 *
 * @module
 */

import { alignUp, PAGE_SIZE } from "../../../core/bits.ts";
import { SLOT_BYTES } from "./driver.ts";
import { decodePlainData, encodePlainData } from "../../../core/plain_data.ts";
import {
  closeFd,
  createEventFd,
  drainEventFd,
  Mapping,
  Poll,
  pollFd,
  signalEventFd,
  threadExists,
  viewMemory,
} from "../../../os/mod.ts";

/** Requests of one IOThread in flight at once; a power of two. */
export const SLOTS = 128;

/** State of a store. */
export const StoreState = {
  /** Its module is being loaded, or it is being opened. */
  OPENING: 0,
  OPEN: 1,
  /** It is to be closed. */
  CLOSING: 2,
  /** It could not be opened, or has ended without being asked to. */
  ENDED: 3,
} as const;

/** 32-bit words of a {@linkcode StoreLink}. */
const LINK = {
  STATE: 0,
  /** Back ends that use it. */
  USERS: 1,
  /** True if the Worker waits for {@linkcode LINK.WORK_FD}. */
  ASLEEP: 2,
  WORK_FD: 3,
  /** Of the Worker, as the kernel knows it; 0 before it runs. */
  THREAD_ID: 4,
  /** True if somebody has told people of the end. */
  END_TOLD: 5,
  /** Bytes of the line for the log; 0 when there is none. */
  LINE_LENGTH: 6,
  /** Bytes of what was opened, or why it has ended. */
  OUTCOME_LENGTH: 7,
  RINGS: 8,
  /** Back ends that may ask for something still. */
  ASKING: 9,
  /** Address of each ring in two words, low and high. */
  RING: 16,
} as const;

/** As many as there can be IOThreads. */
const RINGS_MAX = 64;
const LINE_AT = PAGE_SIZE;
const OUTCOME_AT = 2 * PAGE_SIZE;
const LINK_BYTES = 3 * PAGE_SIZE;
/** UTF-16 units; far less than a page. */
const TEXT_MAX = 1000;

/** 32-bit words of a {@linkcode Ring}. */
export const RING = {
  /** Counts requests that were submitted; modulo 2^32, as all indices. */
  SUBMITTED: 0,
  /** Counts requests that are done. */
  DONE: 16,
  /** Counts those of them that the IOThread has taken. */
  TAKEN: 32,
  /** True if the IOThread wants its eventfd signalled when something is done. */
  WANTS_EVENT: 33,
  EVENT_FD: 34,
  /** Slots that the IOThread does not know to be done. */
  IN_USE: 35,
  /** True if no IOThread has it any more, and the next one may. */
  VACANT: 36,
  /** By index modulo {@linkcode SLOTS}: the slot that was submitted. */
  SUBMISSION: 48,
  /** By index modulo {@linkcode SLOTS}: the slot that is done, and its result. */
  COMPLETION: 48 + SLOTS,
  /** By slot: see {@linkcode REQUEST}. */
  REQUEST: 48 + 3 * SLOTS,
} as const;

/** 32-bit words of a request. */
export const REQUEST = {
  /** A BlockOp. */
  OP: 0,
  /** True if it is to be durable when it is done. */
  DURABLE: 1,
  OFFSET_LOW: 2,
  OFFSET_HIGH: 3,
  LENGTH_LOW: 4,
  LENGTH_HIGH: 5,
  SIZE: 6,
} as const;

const DATA_AT = alignUp((RING.REQUEST + SLOTS * REQUEST.SIZE) * 4, PAGE_SIZE);
const RING_BYTES = DATA_AT + SLOTS * SLOT_BYTES;

/** Index of the first field of a request. */
export function requestAt(slot: number): number {
  return RING.REQUEST + slot * REQUEST.SIZE;
}

/** A number below 2^53 from two words. */
export function numberAt(words: Int32Array, at: number): number {
  return words[at + 1]! * 2 ** 32 + (words[at]! >>> 0);
}

/** Writes a number below 2^53 as two words. */
export function putNumber(words: Int32Array, at: number, value: number): void {
  words[at] = value | 0;
  words[at + 1] = Math.floor(value / 2 ** 32);
}

/** Requests of one IOThread. */
export class Ring {
  /** Offset of the register. */
  readonly hva: number;
  /** See {@linkcode RING}. */
  readonly words: Int32Array<ArrayBuffer>;

  /** @param hva Of one that was made */
  constructor(hva: number) {
    this.hva = hva;
    // SAFETY: it stays mapped as long as its link, which all who use it have a share in.
    this.words = new Int32Array(viewMemory(hva, DATA_AT));
  }

  /** An eventfd, for the IOThread. */
  get eventFd(): number {
    return this.words[RING.EVENT_FD]!;
  }

  /** Address of a slot's data. */
  dataHva(slot: number): number {
    return this.hva + DATA_AT + slot * SLOT_BYTES;
  }

  /** No more requests come from this IOThread. @param inUse Slots that the store has not come to an end of */
  vacate(inUse: number): void {
    this.words[RING.IN_USE] = inUse;
    // What the store still has to do with it, the next one would take for answers to its own.
    if (inUse === 0) Atomics.store(this.words, RING.VACANT, 1);
  }

  /** Number of requests that are done and not taken. */
  get ready(): number {
    const { words } = this;
    return (Atomics.load(words, RING.DONE) - words[RING.TAKEN]!) | 0;
  }

  /** Tells the IOThread, unless it looks anyway. */
  notify(): void {
    const { words } = this;
    if (Atomics.exchange(words, RING.WANTS_EVENT, 0) === 0) return;
    signalEventFd(words[RING.EVENT_FD]!);
  }
}

/** Messages of a store while it is open. */
export interface StoreLine {
  readonly level: "debug" | "info" | "warn" | "error";
  readonly message: string;
}

/** The store as its IOThreads and its Worker know it. */
export class StoreLink {
  /** Offset of the register. */
  readonly hva: number;
  readonly #words: Int32Array<ArrayBuffer>;
  readonly #bytes: Uint8Array<ArrayBuffer>;

  /** @param hva Of one that was made */
  constructor(hva: number) {
    this.hva = hva;
    // SAFETY: it stays mapped until the last who has a share in it leaves.
    const memory = viewMemory(hva, LINK_BYTES);
    this.#words = new Int32Array(memory, 0, LINE_AT / 4);
    this.#bytes = new Uint8Array(memory);
  }

  /**
   * Makes one, with one user and no ring.
   *
   * @throws {import("../../../os/mod.ts").SyscallError}
   */
  static make(): StoreLink {
    using workFd = createEventFd();
    const memory = new Mapping({ lengthBytes: LINK_BYTES });
    const link = new StoreLink(memory.release());
    link.#words[LINK.WORK_FD] = workFd.release();
    link.#words[LINK.USERS] = link.#words[LINK.ASKING] = 1;
    return link;
  }

  /**
   * Gives a ring that no IOThread has; a new one is served by the Worker from then on.
   *
   * @throws {import("../../../os/mod.ts").SyscallError}
   */
  takeRing(): Ring {
    const words = this.#words;
    const count = Atomics.load(words, LINK.RINGS);
    for (let i = 0; i < count; i++) {
      const ring = new Ring(this.ringHva(i));
      if (Atomics.exchange(ring.words, RING.VACANT, 0) !== 0) return ring;
    }
    if (count === RINGS_MAX) {
      throw new Error(`Cannot use more than ${RINGS_MAX} IOThreads`);
    }
    using eventFd = createEventFd();
    const memory = new Mapping({ lengthBytes: RING_BYTES });
    const ring = new Ring(memory.release());
    ring.words[RING.EVENT_FD] = eventFd.release();
    ring.words[RING.WANTS_EVENT] = 1;
    putNumber(words, LINK.RING + 2 * count, ring.hva);
    Atomics.store(words, LINK.RINGS, count + 1);
    return ring;
  }

  /** Number of rings. */
  get ringCount(): number {
    return Atomics.load(this.#words, LINK.RINGS);
  }

  /** Address of a ring. */
  ringHva(i: number): number {
    return numberAt(this.#words, LINK.RING + 2 * i);
  }

  /** One of {@linkcode StoreState}. */
  get state(): number {
    return Atomics.load(this.#words, LINK.STATE);
  }

  /** A descriptor that is readable when there is something for the Worker. */
  get workFd(): number {
    return this.#words[LINK.WORK_FD]!;
  }

  /** Result of opening, or the reason why it has ended. */
  get outcome(): unknown {
    const length = Atomics.load(this.#words, LINK.OUTCOME_LENGTH);
    return decodePlainData(
      this.#bytes.slice(OUTCOME_AT, OUTCOME_AT + length),
    );
  }

  /** Another back end uses it. */
  join(): void {
    Atomics.add(this.#words, LINK.USERS, 1);
    Atomics.add(this.#words, LINK.ASKING, 1);
  }

  /** Wakes the Worker, if it waits. */
  kick(): void {
    if (Atomics.exchange(this.#words, LINK.ASLEEP, 0) === 0) return;
    signalEventFd(this.workFd);
  }

  /** The Worker is going to wait, or is awake again. */
  set asleep(asleep: boolean) {
    Atomics.store(this.#words, LINK.ASLEEP, asleep ? 1 : 0);
  }

  /** The Worker runs. @param threadId As the kernel knows it */
  begin(threadId: number): void {
    this.#words[LINK.THREAD_ID] = threadId;
  }

  /** The store is open. @param outcome Plain data, for who waits for it */
  opened(outcome: unknown): void {
    this.#leave(StoreState.OPENING, StoreState.OPEN, outcome);
  }

  /** The store is of no use any more. @param reason One line */
  end(reason: string): void {
    const text = reason.slice(0, TEXT_MAX);
    this.#leave(StoreState.OPENING, StoreState.ENDED, text);
    this.#leave(StoreState.OPEN, StoreState.ENDED, text);
    // It may be waiting for work, and keep its thread from ending.
    signalEventFd(this.workFd);
  }

  #leave(from: number, to: number, outcome: unknown): void {
    if (this.state !== from) return;
    const bytes = encodePlainData(outcome).subarray(0, PAGE_SIZE);
    this.#bytes.set(bytes, OUTCOME_AT);
    Atomics.store(this.#words, LINK.OUTCOME_LENGTH, bytes.length);
    Atomics.compareExchange(this.#words, LINK.STATE, from, to);
    for (let i = 0; i < this.ringCount; i++) {
      signalEventFd(new Ring(this.ringHva(i)).eventFd);
    }
  }

  /** True if the caller is the first who learns of the end. */
  claimEnd(): boolean {
    return Atomics.exchange(this.#words, LINK.END_TOLD, 1) === 0;
  }

  /** True if the thread of the Worker is gone. */
  get isDeserted(): boolean {
    const threadId = this.#words[LINK.THREAD_ID]!;
    return threadId !== 0 && !threadExists(threadId);
  }

  /** Puts a line where the IOThread takes it for the log. @returns Whether there was room: the last one may wait still */
  tryLog(line: StoreLine): boolean {
    if (Atomics.load(this.#words, LINK.LINE_LENGTH) !== 0) return false;
    const message = line.message.slice(0, TEXT_MAX);
    const bytes = encodePlainData({ ...line, message });
    this.#bytes.set(bytes, LINE_AT);
    Atomics.store(this.#words, LINK.LINE_LENGTH, bytes.length);
    // The first ring is that of the device's own thread.
    signalEventFd(new Ring(this.ringHva(0)).eventFd);
    return true;
  }

  /** Takes a line for the log; null when there is none. */
  takeLine(): StoreLine | null {
    const length = Atomics.load(this.#words, LINK.LINE_LENGTH);
    if (length === 0) return null;
    const bytes = this.#bytes.slice(LINE_AT, LINE_AT + length);
    Atomics.store(this.#words, LINK.LINE_LENGTH, 0);
    this.kick();
    return decodePlainData(bytes) as StoreLine;
  }

  /** A back end asks for nothing more. After the last one the store begins to close. */
  retire(): void {
    const words = this.#words;
    if (Atomics.sub(words, LINK.ASKING, 1) > 1) return;
    const { OPENING, OPEN, CLOSING } = StoreState;
    Atomics.compareExchange(words, LINK.STATE, OPENING, CLOSING);
    Atomics.compareExchange(words, LINK.STATE, OPEN, CLOSING);
    signalEventFd(this.workFd);
  }

  /**
   * A back end that has retired uses it no more. The last one waits until the Worker has ended. Memory that the store has
   * been given to fill, and may fill yet, is left to it.
   *
   * @param deadlineMs Time until which it waits, as `performance.now()` tells
   * @param onLine Told what the store says meanwhile
   * @returns Whether the Worker has ended, or others use the store still
   */
  leave(deadlineMs: number, onLine: (line: StoreLine) => void): boolean {
    const words = this.#words;
    if (Atomics.sub(words, LINK.USERS, 1) > 1) return true;
    const rings = Array.from(
      { length: this.ringCount },
      (_, i) => new Ring(this.ringHva(i)),
    );
    for (;;) {
      // In this order, the last line is not missed.
      const gone = this.isDeserted;
      const line = this.takeLine();
      if (line !== null) onLine(line);
      if (gone) break;
      if (performance.now() > deadlineMs) return false;
      pollFd(rings[0]!.eventFd, Poll.IN, LOOK_AGAIN_MS);
      drainEventFd(rings[0]!.eventFd);
    }
    // A call that never came to an end may be with the system, which then fills the slot when there is no Worker any more.
    if (rings.some(({ words }) => words[RING.IN_USE] !== 0)) return true;
    for (const { hva, eventFd } of rings) {
      closeFd(eventFd);
      new Mapping({ hva, lengthBytes: RING_BYTES }).close();
    }
    closeFd(this.workFd);
    new Mapping({ hva: this.hva, lengthBytes: LINK_BYTES }).close();
    return true;
  }
}

/** Time to wait before looking again whether a thread is gone, which nothing tells. */
const LOOK_AGAIN_MS = 2;
