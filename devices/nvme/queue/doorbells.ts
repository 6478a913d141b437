/**
 * Doorbell values from messages, a page that clients map, or shadow doorbells in guest memory.
 *
 * @module
 */

import { Access, type GuestMemory } from "../../../src/memory/guest_memory.ts";
import { NO_WINDOW, RangeWindow } from "../../../src/memory/range_window.ts";
import type { StateReader } from "../../../src/core/state_reader.ts";
import type { SharedWords } from "../threads/shared_words.ts";

const WORD = 4;
const U32_MAX = 0xffff_ffff;

/** No value can be had now. */
export const NO_DOORBELL = -1;

/** The buffers of Doorbell Buffer Config. */
export interface DoorbellBuffers {
  readonly shadowIova: number;
  readonly eventIova: number;
}

/**
 * Checks the state of doorbells, numbered as they lie in the BAR.
 *
 * @param count Number of doorbells
 * @param mapped Clients map them
 * @throws {import("../../../src/core/errno.ts").ErrnoError} EINVAL when it cannot be
 */
export function parseDoorbellsState(
  reader: StateReader,
  count: number,
  mapped: boolean,
) {
  const isMapped = mapped && reader.value("registers") === null;
  return {
    /** Values of the registers; null when clients map them: that page travels with its contents, which may be newer. */
    registers: isMapped ? null : reader.integers("registers", U32_MAX, count),
    /** Buffers of Doorbell Buffer Config; null before. */
    buffers: reader.partOrNull("buffers", (part): DoorbellBuffers => ({
      shadowIova: part.integer("shadowIova", Number.MAX_SAFE_INTEGER),
      eventIova: part.integer("eventIova", Number.MAX_SAFE_INTEGER),
    })),
    /** Value that each shadow doorbell was set to, 1 once it has had another, and value that EventIdx was set to. */
    initial: reader.integers("initial", U32_MAX, count),
    inUse: reader.integers("inUse", 1, count),
    armed: reader.integers("armed", U32_MAX, count),
  };
}

/** Doorbells as they are saved. */
export type DoorbellsState = ReturnType<typeof parseDoorbellsState>;

/** The doorbell of a submission queue's tail. */
export function tailDoorbell(qid: number): number {
  return qid * 2;
}

/** The doorbell of a completion queue's head. */
export function headDoorbell(qid: number): number {
  return qid * 2 + 1;
}

/**
 * The doorbells of a controller, numbered as they lie in the BAR, in the eyes of one thread: it looks at those of its queues.
 *
 * The registers hold what was written to them, by message or through a mapping. After Doorbell Buffer Config (NVM
 * Express 1.4, section 5.7 and annex B.5) a driver writes the shadow buffer instead, and rings a register only when
 * it passes the value in the EventIdx buffer. Not every driver uses the buffers for every queue (Linux leaves the
 * admin queue out), so a shadow doorbell counts from the moment that its value differs from what it was set to. Whoever
 * is told of a register looks at it then: the first time, a driver cannot have come around to that value again.
 *
 * Memory ordering: shadow values and EventIdx are accessed by Atomics, sequentially consistent. Loading a tail thus
 * comes before loading the entries it covers. {@linkcode Doorbells.arm} stores EventIdx, and a
 * {@linkcode Doorbells.read} behind it is ordered after that store for everyone; the driver stores its doorbell and
 * then loads EventIdx with a full barrier between. So either we see its value, or it sees that it has to ring.
 */
export class Doorbells {
  readonly #memory: GuestMemory;
  readonly #words: SharedWords;
  readonly #lengthBytes: number;
  /** The buffers of Doorbell Buffer Config. */
  #shadow: RangeWindow | null = null;
  #event: RangeWindow | null = null;
  /** True when the shadow buffer was not in reach at the last look. */
  awaitsReach = false;
  /** Window of the shadow buffer that was refreshed last. */
  #refreshed = NO_WINDOW;

  /** @param words With the registers, which may be written by others */
  constructor(memory: GuestMemory, words: SharedWords) {
    this.#memory = memory;
    this.#words = words;
    this.#lengthBytes = words.doorbells.length * WORD;
  }

  /** Those of Doorbell Buffer Config; null before. */
  get buffers(): DoorbellBuffers | null {
    return this.#shadow &&
      { shadowIova: this.#shadow.iova, eventIova: this.#event!.iova };
  }

  /** True after Doorbell Buffer Config. */
  get shadowed(): boolean {
    return this.#shadow !== null;
  }

  /** True while the buffers of Doorbell Buffer Config are in use and not mapped. */
  get missing(): boolean {
    return this.shadowed && !this.#ready();
  }

  /** All registers are 0, as after a reset of the controller. */
  clear(): void {
    const { doorbells } = this.#words;
    // One by one: clients may be looking.
    for (let i = 0; i < doorbells.length; i++) Atomics.store(doorbells, i, 0);
  }

  /** State of the doorbells; guest memory is not looked at. */
  save(): DoorbellsState {
    const { mapped, doorbells, initial, inUse, armed } = this.#words;
    return {
      registers: mapped ? null : [...doorbells],
      buffers: this.buffers,
      initial: [...initial],
      inUse: [...inUse],
      armed: [...armed],
    };
  }

  /** Goes on from where others were. */
  load({ registers, buffers, ...shadow }: DoorbellsState): void {
    const { doorbells, initial, inUse, armed } = this.#words;
    if (registers !== null) doorbells.set(registers);
    initial.set(shadow.initial);
    inUse.set(shadow.inUse);
    armed.set(shadow.armed);
    this.use(buffers);
  }

  /** Waits for the next {@linkcode Doorbells.refresh}: another thread may have seen newer values. */
  forget(): void {
    this.#refreshed = NO_WINDOW;
  }

  /** A doorbell register was written by message. */
  write(index: number, value: number): void {
    Atomics.store(this.#words.doorbells, index, value);
  }

  /**
   * Takes buffers into use, or none, and leaves what is in them; see {@linkcode Doorbells.set}.
   *
   * @returns True when they can be read and written
   */
  use(buffers: DoorbellBuffers | null): boolean {
    const both = Access.READ | Access.WRITE;
    const make = (old: RangeWindow | null, iova: number | undefined) => {
      if (iova === undefined) return null;
      if (iova === old?.iova) return old;
      return new RangeWindow(this.#memory, iova, this.#lengthBytes, both);
    };
    this.#shadow = make(this.#shadow, buffers?.shadowIova);
    this.#event = make(this.#event, buffers?.eventIova);
    return this.#ready();
  }

  /** A queue was created: its doorbell is 0, whatever the driver left in the buffers. */
  create(index: number): void {
    const { initial, inUse, armed } = this.#words;
    this.write(index, 0);
    initial[index] = inUse[index] = armed[index] = 0;
    if (this.#ready()) this.set(index, 0);
  }

  /** Looks at the shadow buffer, for {@linkcode Doorbells.read}. */
  refresh(): void {
    if (!this.#ready()) return;
    const { window } = this.#shadow!;
    // What is not in reach yet is looked at when it is; until then the values are those of before.
    this.awaitsReach = window.refresh(0, this.#lengthBytes) < 0;
    if (!this.awaitsReach) this.#refreshed = window;
  }

  /** The value of a doorbell, or {@linkcode NO_DOORBELL} while the shadow buffer cannot be reached. */
  read(index: number): number {
    const shadow = this.#shadow;
    if (shadow !== null) {
      const { window } = shadow;
      if (!shadow.ready() || window !== this.#refreshed) return NO_DOORBELL;
      const value = window.loadU32(index * WORD);
      if (this.#words.inUse[index] !== 0) return value;
      if (value !== this.#words.initial[index]) {
        this.#words.inUse[index] = 1;
        return value;
      }
    }
    return Atomics.load(this.#words.doorbells, index);
  }

  /**
   * Asks the driver to ring when it passes `value`; it need not be asked without shadow doorbells.
   *
   * @returns True when it was asked anew: then {@linkcode Doorbells.read} once more
   */
  arm(index: number, value: number): boolean {
    if (this.#words.armed[index] === value || !this.#ready()) return false;
    this.#words.armed[index] = value;
    this.#event!.window.storeU32(index * WORD, value);
    this.refresh();
    return true;
  }

  /** Has a shadow doorbell and its EventIdx hold a value, in buffers that can be written. */
  set(index: number, value: number): void {
    this.#words.initial[index] = value;
    this.#words.armed[index] = value;
    this.#words.inUse[index] = 0;
    this.#shadow!.window.storeU32(index * WORD, value);
    this.#event!.window.storeU32(index * WORD, value);
  }

  #ready(): boolean {
    return this.#shadow !== null && this.#shadow.ready() &&
      this.#event!.ready();
  }
}
