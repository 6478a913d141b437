/**
 * Way of a model's interrupts to whoever can deliver them: INTx, MSI and MSI-X with their masks.
 *
 * @module
 */

import { StateReader } from "../core/state_reader.ts";
import type { ConfigSpace } from "./config_space.ts";
import { IrqIndex } from "./defs.ts";
import type { Interrupts } from "./context.ts";
import type { PciSpec } from "./device.ts";
import { type MsixTable, NO_VECTOR } from "./msix.ts";

/** Delivers interrupts: the side that holds the client's eventfds. */
export interface IrqSink {
  /**
   * Delivers one interrupt.
   *
   * @param index An {@linkcode IrqIndex}
   * @param vector 0 for INTx
   * @returns False when it could not: no eventfd is assigned, or the client masked it. The interrupt then waits
   * for {@linkcode PciInterrupts.retry}
   */
  deliver(index: number, vector: number): boolean;
  /** The eventfd that delivers an interrupt now, or {@linkcode NO_DIRECT} while {@linkcode IrqSink.deliver} would not. */
  eventFd?(index: number, vector: number): number;
}

/** There is no eventfd that may be signalled without asking. */
export const NO_DIRECT = -1;

/** Modes by the number in word 0 of a table of eventfds, see {@linkcode PciInterrupts.publishDirect}. */
export const DIRECT_MODES: readonly Interrupts["mode"][] = [
  "intx",
  "msix",
  "msi",
];

/** State of {@linkcode PciInterrupts} beyond configuration space and the MSI-X table, as plain data. */
export interface InterruptsState {
  /** True if INTA# is asserted. */
  readonly level: boolean;
  /** One bit for each MSI vector that waits to be sent; signed. */
  readonly msiPending: number;
}

const WHAT = "interrupts";

/**
 * The interrupts of one function.
 *
 * ```text
 *   unattached --attach--> attached      (by the PciFunction, once)
 *   disconnected ⇄ connected             (by the server, as clients come and go)
 * ```
 * What a driver enabled in configuration space decides which kind is used, MSI-X before MSI before INTx. A message
 * that is masked or cannot be delivered sets its pending bit and goes out later; a message raised while neither MSI
 * nor MSI-X is enabled is lost, as on a bus. A message is a memory write, so it also waits while the function is no bus
 * master. INTx is a level: it is delivered when it rises, and again whenever an obstacle goes away while it is still up;
 * it needs no bus master, but D0.
 */
export class PciInterrupts implements Interrupts {
  #config: ConfigSpace | null = null;
  #msix: MsixTable | null = null;
  #sink: IrqSink | null = null;
  #mode: Interrupts["mode"] = "intx";
  #hasIntx = false;
  #msiVectors = 0;
  #msiPending = 0;
  #level = false;
  /** Word 0: a mode of {@linkcode DIRECT_MODES}; word v + 1: what delivers vector v at once. */
  #direct: Int32Array | null = null;
  #fence: () => void = () => {};
  /** True if an eventfd was taken out of the table that another thread may be using. */
  #isLoose = false;

  /** Kind that the driver has enabled in configuration space. */
  get mode(): Interrupts["mode"] {
    return this.#mode;
  }

  /** Makes the function's registers known; {@linkcode PciFunction} does so. */
  attach(spec: PciSpec, config: ConfigSpace, msix: MsixTable | null): void {
    this.#config = config;
    this.#msix = msix;
    this.#hasIntx = spec.intx;
    this.#msiVectors = 0;
    for (const capability of spec.capabilities) {
      if (capability.kind === "msi") this.#msiVectors = capability.vectors;
    }
    config.setInterruptStatus(this.#level && this.#hasIntx);
  }

  /**
   * Says where interrupts go from now on; null for nowhere. What is pending stays so until
   * {@linkcode PciInterrupts.retry}.
   *
   * @throws {Error} When another thread may go on using eventfds of the sink before
   */
  connect(sink: IrqSink | null): void {
    this.#sink = sink;
    this.refreshDirect();
  }

  /**
   * Keeps a table up to date of what delivers an MSI-X vector at once, for threads that raise vectors themselves.
   *
   * @param direct Shared words, one more than there are vectors: the first is a mode of {@linkcode DIRECT_MODES}, the
   * others are an eventfd or {@linkcode NO_DIRECT}
   * @param fence Returns when no other thread uses an eventfd any more that was taken out of the table; throws when it
   * cannot say so
   * @returns Empties the table and leaves it alone: before its memory goes away
   */
  publishDirect(direct: Int32Array, fence: () => void): () => void {
    this.#direct = direct;
    this.#fence = fence;
    this.refreshDirect();
    return () => {
      this.withdrawDirect();
      this.#direct = null;
    };
  }

  /** Takes every eventfd out of the table, until {@linkcode refreshDirect}: before any of them is closed. */
  withdrawDirect(): void {
    const direct = this.#direct;
    if (direct === null) return;
    for (let word = 1; word < direct.length; word++) {
      if (Atomics.exchange(direct, word, NO_DIRECT) >= 0) this.#isLoose = true;
    }
    this.#awaitOthers();
  }

  /** Looks again at what delivers each vector. */
  refreshDirect(): void {
    const direct = this.#direct;
    if (direct === null) return;
    for (let word = 1; word < direct.length; word++) {
      const fd = Atomics.load(direct, word);
      if (fd < 0 || fd === this.#directFd(word - 1)) continue;
      Atomics.store(direct, word, NO_DIRECT);
      this.#isLoose = true;
    }
    this.#awaitOthers();
    for (let word = 1; word < direct.length; word++) {
      Atomics.store(direct, word, this.#directFd(word - 1));
    }
    Atomics.store(direct, 0, DIRECT_MODES.indexOf(this.#mode));
  }

  /** Number of interrupts an {@linkcode IrqIndex} has; 0 for an unknown one. */
  vectorCount(index: number): number {
    switch (index) {
      case IrqIndex.INTX:
        return this.#hasIntx ? 1 : 0;
      case IrqIndex.MSI:
        return this.#msiVectors;
      case IrqIndex.MSIX:
        return this.#msix?.vectors ?? 0;
      // Never raised, but there: without it QEMU warns that it cannot recover from errors.
      case IrqIndex.ERR:
        return 1;
      default:
        return 0;
    }
  }

  /** Sends the message of a vector, or leaves it pending; a vector that the function does not have is ignored. */
  raise(vector: number): void {
    if (this.#mode === "msix") {
      const table = this.#msix!;
      if (vector >= 0 && vector < table.vectors) {
        table.setPending(vector, true);
        this.#sendMsix(vector);
      }
    } else if (this.#mode === "msi") {
      if (vector < 0 || vector >= this.#msiVectors) return;
      // The vector replaces the low bits of the message data, as many as software allocated: the rest falls off.
      const sent = vector & (this.#config!.msiAllocated - 1);
      this.#setMsiPending(this.#msiPending | (1 << sent));
      this.#sendMsi(sent);
    }
  }

  /** Drives INTA#; raising it twice delivers it once. */
  setLevel(asserted: boolean): void {
    if (asserted === this.#level) return;
    this.#level = asserted;
    this.#config?.setInterruptStatus(asserted && this.#hasIntx);
    if (asserted) this.#sendIntx();
  }

  /**
   * Tries again what could not be delivered, after the client assigned an eventfd to some interrupts or unmasked
   * them.
   *
   * @param index An {@linkcode IrqIndex}
   * @param start First vector
   * @param count Number of vectors
   */
  retry(index: number, start: number, count: number): void {
    const end = Math.min(start + count, this.vectorCount(index));
    for (let vector = start; vector < end; vector++) {
      if (index === IrqIndex.INTX) this.#sendIntx();
      else if (index === IrqIndex.MSI) this.#sendMsi(vector);
      else if (index === IrqIndex.MSIX) this.#sendMsix(vector);
    }
  }

  /** Looks again at what configuration space enables and masks, and delivers what it held back. */
  configChanged(): void {
    this.#mode = modeOf(this.#config!);
    this.#sendIntx();
    if (this.#msiPending !== 0) this.retry(IrqIndex.MSI, 0, this.#msiVectors);
    if (this.#msix !== null) this.retry(IrqIndex.MSIX, 0, this.#msix.vectors);
    this.refreshDirect();
  }

  /**
   * The MSI-X table was written.
   *
   * @param vector Whose mask bit was cleared; {@linkcode NO_VECTOR} for none
   */
  vectorUnmasked(vector: number): void {
    if (vector !== NO_VECTOR) this.#sendMsix(vector);
    this.refreshDirect();
  }

  /** Tells what waits to be delivered; the mode follows from configuration space. */
  save(): InterruptsState {
    return { level: this.#level, msiPending: this.#msiPending };
  }

  /**
   * Takes over what {@linkcode PciInterrupts.save} gave, after configuration space and MSI-X table were loaded. Nothing is
   * delivered: what could have been was, and the rest waits as it did.
   *
   * @throws {Error} When it is no state of interrupts; nothing has then changed
   */
  load(state: unknown): void {
    const reader = new StateReader(state, WHAT);
    const level = reader.flag("level");
    const msiPending = reader.value("msiPending");
    if (typeof msiPending !== "number" || msiPending !== (msiPending | 0)) {
      throw reader.refused("its msiPending are not 32 bits");
    }
    this.#level = level;
    this.#msiPending = msiPending;
    this.#mode = modeOf(this.#config!);
    this.refreshDirect();
  }

  /** Forgets level and pending interrupts and, configuration space having been reset, goes back to INTx. */
  reset(): void {
    this.#mode = "intx";
    this.#level = false;
    this.#msiPending = 0;
    this.#msix?.reset();
    this.#config?.setMsiPending(0);
    this.#config?.setInterruptStatus(false);
    this.refreshDirect();
  }

  #awaitOthers(): void {
    if (!this.#isLoose) return;
    this.#fence();
    this.#isLoose = false;
  }

  #directFd(vector: number): number {
    const table = this.#msix;
    if (this.#mode !== "msix" || table === null || this.#sink === null) {
      return NO_DIRECT;
    }
    if (
      vector >= table.vectors || table.isMasked(vector) ||
      table.isPending(vector) || this.#config!.msixMasked ||
      !this.#config!.mayMaster
    ) return NO_DIRECT;
    return this.#sink.eventFd?.(IrqIndex.MSIX, vector) ?? NO_DIRECT;
  }

  #sendIntx(): void {
    if (!this.#level || !this.#hasIntx || this.#mode !== "intx") return;
    if (this.#config === null || this.#config.intxDisabled) return;
    if (this.#config.powerState !== "D0") return;
    // Not delivered: still asserted, so a retry finds it.
    this.#sink?.deliver(IrqIndex.INTX, 0);
  }

  #sendMsi(vector: number): void {
    const bit = 1 << vector;
    if (this.#mode !== "msi" || (this.#msiPending & bit) === 0) return;
    if ((this.#config!.msiMask & bit) !== 0 || this.#sink === null) return;
    if (!this.#config!.mayMaster) return;
    // Cleared first: delivering may lead back here.
    this.#setMsiPending(this.#msiPending & ~bit);
    if (!this.#sink.deliver(IrqIndex.MSI, vector)) {
      this.#setMsiPending(this.#msiPending | bit);
    }
  }

  #sendMsix(vector: number): void {
    const table = this.#msix;
    if (this.#mode !== "msix" || table === null) return;
    if (!table.isPending(vector) || table.isMasked(vector)) return;
    if (this.#config!.msixMasked || this.#sink === null) return;
    if (!this.#config!.mayMaster) return;
    table.setPending(vector, false);
    if (!this.#sink.deliver(IrqIndex.MSIX, vector)) {
      table.setPending(vector, true);
    }
  }

  #setMsiPending(vectors: number): void {
    this.#msiPending = vectors;
    this.#config!.setMsiPending(vectors);
  }
}

function modeOf(config: ConfigSpace): Interrupts["mode"] {
  if (config.msixEnabled) return "msix";
  return config.msiEnabled ? "msi" : "intx";
}
