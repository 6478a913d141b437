/**
 * Where doorbell values come from: messages, a page that clients map, or shadow doorbells in guest memory.
 *
 * @module
 */

import { Access, type GuestMemory } from "../../../src/memory/guest_memory.ts";
import { NO_WINDOW, RangeWindow } from "../../../src/memory/range_window.ts";
import { StateReader } from "../../../src/core/state_reader.ts";
import { DOORBELL_PAIR_BYTES } from "../defs.ts";

const WORD = 4;
const U32_MAX = 0xffff_ffff;

/** No value can be had now. */
export const NO_DOORBELL = -1;

/** Doorbells as they are saved, numbered as they lie in the BAR. */
export interface DoorbellsState {
  /** What the registers hold; null when clients map them: that page travels with what is in it, which may be newer. */
  readonly registers: readonly number[] | null;
  /** After Doorbell Buffer Config; null before. */
  readonly shadow: ShadowState | null;
}

/** The buffers of Doorbell Buffer Config. */
export interface ShadowState {
  readonly shadowIova: number;
  readonly eventIova: number;
  /** What each shadow doorbell was set to, and whether (1) it has another value since. */
  readonly initial: readonly number[];
  readonly inUse: readonly number[];
  /** What each EventIdx was set to. */
  readonly armed: readonly number[];
}

/**
 * Checks the state of doorbells.
 *
 * @param count How many there are
 * @param mapped Whether clients map them
 * @throws {import("../../../src/core/errno.ts").ErrnoError} EINVAL when it cannot be
 */
export function parseDoorbellsState(
  value: unknown,
  count: number,
  mapped: boolean,
): DoorbellsState {
  const reader = new StateReader(value, "the doorbells");
  return {
    registers: mapped && reader.value("registers") === null
      ? null
      : reader.integers("registers", U32_MAX, count),
    shadow: reader.value("shadow") === null
      ? null
      : parseShadowState(reader.value("shadow"), count),
  };
}

function parseShadowState(value: unknown, count: number): ShadowState {
  const reader = new StateReader(value, "the shadow doorbells");
  return {
    shadowIova: reader.integer("shadowIova", Number.MAX_SAFE_INTEGER),
    eventIova: reader.integer("eventIova", Number.MAX_SAFE_INTEGER),
    initial: reader.integers("initial", U32_MAX, count),
    inUse: reader.integers("inUse", 1, count),
    armed: reader.integers("armed", U32_MAX, count),
  };
}

/** The doorbell of a submission queue's tail. */
export function tailDoorbell(qid: number): number {
  return qid * 2;
}

/** The doorbell of a completion queue's head. */
export function headDoorbell(qid: number): number {
  return qid * 2 + 1;
}

/**
 * The doorbells of one controller, numbered as they lie in the BAR.
 *
 * The registers hold what was written to them, by message or through a mapping. After Doorbell Buffer Config (NVM
 * Express 1.4, section 5.7 and annex B.5) a driver writes the shadow buffer instead, and rings a register only when
 * it passes the value in the EventIdx buffer. Not every driver uses the buffers for every queue (Linux leaves the
 * admin queue out), so a shadow doorbell counts from the moment that its value differs from what it was set to.
 *
 * Memory ordering: shadow values and EventIdx are accessed by Atomics, sequentially consistent. Loading a tail thus
 * comes before loading the entries it covers. {@linkcode Doorbells.arm} stores EventIdx, and a
 * {@linkcode Doorbells.read} behind it is ordered after that store for everyone; the driver stores its doorbell and
 * then loads EventIdx with a full barrier between. So either we see its value, or it sees that it has to ring.
 */
export class Doorbells {
  readonly #memory: GuestMemory;
  #registers: Uint32Array<ArrayBuffer>;
  /** Whether a reset clears the registers of all queues. */
  #owner = true;
  /** Whether clients write them without us. */
  readonly #mapped: boolean;
  /** What each shadow doorbell was set to. */
  readonly #initial: Uint32Array<ArrayBuffer>;
  readonly #inUse: Uint8Array<ArrayBuffer>;
  /** What each EventIdx was set to. */
  readonly #armed: Uint32Array<ArrayBuffer>;
  readonly #lengthBytes: number;
  /** The buffers of Doorbell Buffer Config. */
  #shadow: RangeWindow | null = null;
  #event: RangeWindow | null = null;
  /** What of the shadow buffer was refreshed last. */
  #refreshed = NO_WINDOW;

  /**
   * @param pairs Queue pairs, the admin queue's included
   * @param page What clients map; null when doorbells are messages
   */
  constructor(memory: GuestMemory, pairs: number, page: Uint8Array | null) {
    this.#memory = memory;
    this.#lengthBytes = pairs * DOORBELL_PAIR_BYTES;
    const count = pairs * 2;
    this.#mapped = page !== null;
    this.#registers = page === null
      ? new Uint32Array(count)
      : new Uint32Array(page.buffer as ArrayBuffer, page.byteOffset, count);
    this.#initial = new Uint32Array(count);
    this.#armed = new Uint32Array(count);
    this.#inUse = new Uint8Array(count);
  }

  /** How many doorbells there are. */
  get count(): number {
    return this.#registers.length;
  }

  /** Whether Doorbell Buffer Config was done. */
  get shadowed(): boolean {
    return this.#shadow !== null;
  }

  /**
   * The registers are in memory that several threads see, from here on.
   *
   * @param owner Whether this is the thread that a driver's messages come to
   */
  share(registers: Uint32Array<ArrayBuffer>, owner: boolean): void {
    this.#registers = registers;
    this.#owner = owner;
  }

  /** Whether the buffers of Doorbell Buffer Config are in use and not mapped. */
  get missing(): boolean {
    return this.shadowed && !this.#ready();
  }

  /** Everything as after a reset of the controller. */
  reset(): void {
    this.#shadow = this.#event = null;
    this.#inUse.fill(0);
    // Another thread may not have come to its reset yet, and would take zeroes for what its driver wrote.
    if (!this.#owner) return;
    // One by one: clients may be looking.
    for (let i = 0; i < this.count; i++) Atomics.store(this.#registers, i, 0);
  }

  /** What is to be known of them elsewhere; guest memory is not looked at. */
  save(): DoorbellsState {
    return {
      registers: this.#mapped ? null : [...this.#registers],
      shadow: this.#shadow === null ? null : {
        shadowIova: this.#shadow.iova,
        eventIova: this.#event!.iova,
        initial: [...this.#initial],
        inUse: [...this.#inUse],
        armed: [...this.#armed],
      },
    };
  }

  /** Goes on from where others were. */
  load({ registers, shadow }: DoorbellsState): void {
    if (registers !== null) this.#registers.set(registers);
    if (shadow === null) return;
    this.#place(shadow.shadowIova, shadow.eventIova);
    this.#initial.set(shadow.initial);
    this.#inUse.set(shadow.inUse);
    this.#armed.set(shadow.armed);
  }

  /** A doorbell register was written by message. */
  write(index: number, value: number): void {
    Atomics.store(this.#registers, index, value);
  }

  /**
   * Takes the buffers of Doorbell Buffer Config into use; they hold whatever queues that exist are at.
   *
   * @param current The value of each doorbell now; {@linkcode NO_DOORBELL} for one that another thread sees to
   * @returns Whether both can be read and written
   */
  configure(
    shadowIova: number,
    eventIova: number,
    current: Int32Array,
  ): boolean {
    this.#place(shadowIova, eventIova);
    if (!this.#ready()) {
      this.#shadow = this.#event = null;
      return false;
    }
    for (let i = 0; i < this.count; i++) {
      if (current[i] !== NO_DOORBELL) this.#set(i, current[i]!);
    }
    return true;
  }

  /** A queue was created: its doorbell is 0, whatever the driver left in the buffers. */
  create(index: number): void {
    Atomics.store(this.#registers, index, 0);
    if (this.#ready()) this.#set(index, 0);
  }

  /** Looks at the shadow buffer, for {@linkcode Doorbells.read}. */
  refresh(): void {
    if (!this.#ready()) return;
    const { window } = this.#shadow!;
    // What is not in reach yet is looked at when it is; until then the values are those of before.
    if (window.refresh(0, this.#lengthBytes) === 0) this.#refreshed = window;
  }

  /** The value of a doorbell, or {@linkcode NO_DOORBELL} while the shadow buffer cannot be reached. */
  read(index: number): number {
    if (this.shadowed) {
      if (!this.#ready()) return NO_DOORBELL;
      const { window } = this.#shadow!;
      if (window !== this.#refreshed) return NO_DOORBELL;
      const value = window.loadU32(index * WORD);
      if (this.#inUse[index] !== 0) return value;
      if (value !== this.#initial[index]) {
        this.#inUse[index] = 1;
        return value;
      }
    }
    return Atomics.load(this.#registers, index);
  }

  /**
   * Asks the driver to ring when it passes `value`; it need not be asked without shadow doorbells.
   *
   * @returns Whether it was asked anew: then {@linkcode Doorbells.read} once more
   */
  arm(index: number, value: number): boolean {
    if (this.#armed[index] === value || !this.#ready()) return false;
    this.#armed[index] = value;
    this.#event!.window.storeU32(index * WORD, value);
    this.refresh();
    return true;
  }

  #set(index: number, value: number): void {
    this.#initial[index] = value;
    this.#armed[index] = value;
    this.#inUse[index] = 0;
    this.#shadow!.window.storeU32(index * WORD, value);
    this.#event!.window.storeU32(index * WORD, value);
  }

  #place(shadowIova: number, eventIova: number): void {
    const at = (iova: number) =>
      new RangeWindow(
        this.#memory,
        iova,
        this.#lengthBytes,
        Access.READ | Access.WRITE,
      );
    this.#shadow = at(shadowIova);
    this.#event = at(eventIova);
  }

  #ready(): boolean {
    return this.#shadow !== null && this.#shadow.ready() &&
      this.#event!.ready();
  }
}
