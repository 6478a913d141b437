/**
 * One PCI function: what a server of a device model talks to.
 *
 * @module
 */

import { hex } from "../core/bits.ts";
import { Errno } from "../core/errno.ts";
import type { Log } from "../core/log.ts";
import { ModelError } from "../core/model_fault.ts";
import { type DeviceState, StateForm } from "../core/state_form.ts";
import { accessWidth, loadWidth, storeWidth } from "./access.ts";
import { ConfigEffect, ConfigSpace, type ConfigState } from "./config_space.ts";
import {
  CONFIG_REGION,
  PCI_CFG_SPACE_EXP_SIZE,
  PCI_STD_NUM_BARS,
} from "./defs.ts";
import type {
  AccessWidth,
  BarSpec,
  PciDevice,
  ResetReason,
  SharedMemory,
} from "./device.ts";
import type { InterruptsState, PciInterrupts } from "./interrupts.ts";
import { type MsixState, MsixTable } from "./msix.ts";
import { msixPbaBytes, msixTableBytes } from "./validate.ts";

/** Part that answers for a piece of a BAR instead of the model. */
const Owner = {
  /** The MSI-X table. */
  TABLE: 0,
  /** The MSI-X pending bit array. */
  PENDING: 1,
  /** Memory that clients may map. */
  MEMORY: 2,
} as const;

/** A part of a BAR that the model never sees; bounds are multiples of 8, so no aligned access straddles them. */
interface Window {
  readonly start: number;
  readonly end: number;
  readonly owner: typeof Owner[keyof typeof Owner];
  /** The memory of a mappable area; of no meaning for the others. */
  readonly memory: DataView;
  /** Whom a write by message to a mappable area is told. */
  readonly onWrite: (() => void) | undefined;
}

/** Guest memory that can be taken away from a model and given back. */
export interface MasteredMemory {
  /** See {@linkcode GuestMemory.accessible} of src/memory/guest_memory.ts. */
  accessible: boolean;
}

/** State of a {@linkcode PciFunction} beside its model, as plain data. */
export interface PciFunctionState {
  readonly config: ConfigState;
  readonly interrupts: InterruptsState;
  /** Null for a function without MSI-X. */
  readonly msix: MsixState | null;
  /** Contents of mappable areas, in order of BAR and as its model lists them. */
  readonly areas: readonly Uint8Array[];
}

const FORM = new StateForm<PciFunctionState>("pci", "a PCI function");

/**
 * Routes accesses to configuration space, MSI-X structures, mappable memory and the model, and carries out what a
 * write to configuration space asks for.
 *
 * Region numbers are VFIO's: 0–5 for the BARs, 7 for configuration space. Accesses to a BAR are not refused while
 * the command register has memory or I/O decoding off: decoding belongs to the client, which may access a BAR
 * (to size, to poll, to map it) without the guest having enabled it.
 *
 * Bus mastering is another matter. While configuration space does not allow it, as after every reset, guest memory is
 * taken away from the model and messages wait; a model that can be stopped is stopped meanwhile, so that it does not even
 * notice. When the write that ends it is answered, nothing of the model's is in flight into guest memory any more.
 */
export class PciFunction {
  /** The model. */
  readonly device: PciDevice;
  /** Its configuration space. */
  readonly config: ConfigSpace;
  readonly #memory: MasteredMemory;
  readonly #interrupts: PciInterrupts;
  readonly #log: Log;
  readonly name: string;
  readonly #msix: MsixTable | null;
  /** Bus mastering as configuration space had it when it was last followed. */
  #isMaster = false;
  #holding = false;
  #settling = false;
  readonly #bars: (BarSpec | undefined)[] = [];
  readonly #sizes: number[] = [];
  readonly #windows: (readonly Window[])[] = [];

  /**
   * Builds the function around a model.
   *
   * @param memory What the model was handed as guest memory
   * @param interrupts What the model was handed as its interrupts
   * @param name What the model is called in messages
   * @throws {ErrnoError} EINVAL when the specification of the model is not sound
   */
  constructor(
    device: PciDevice,
    memory: MasteredMemory,
    interrupts: PciInterrupts,
    log: Log,
    name = "the model",
  ) {
    const spec = device.spec;
    this.device = device;
    this.config = new ConfigSpace(spec);
    this.#memory = memory;
    this.#interrupts = interrupts;
    this.#log = log;
    this.name = name;
    const msix = spec.capabilities.find((it) => it.kind === "msix");
    this.#msix = msix === undefined ? null : new MsixTable(msix.vectors);
    for (let region = 0; region < PCI_STD_NUM_BARS; region++) {
      const bar = spec.bars.find(({ index }) => index === region);
      this.#bars.push(bar);
      this.#sizes.push(bar?.sizeBytes ?? 0);
      this.#windows.push(bar === undefined ? [] : windowsOf(device, bar));
    }
    this.#sizes[CONFIG_REGION - 1] = 0;
    this.#sizes[CONFIG_REGION] = PCI_CFG_SPACE_EXP_SIZE;
    interrupts.attach(spec, this.config, this.#msix);
    this.#endMastering();
  }

  /** Length of a region; 0 for one that is absent, the upper half of a 64-bit BAR included. */
  regionSizeBytes(region: number): number {
    return this.#sizes[region] ?? 0;
  }

  /** The BAR behind a region; undefined when there is none. */
  bar(region: number): BarSpec | undefined {
    return this.#bars[region];
  }

  /**
   * Reads `count` bytes of a region to byte `at` of `into`. A BAR is read by aligned accesses of at most 4 bytes,
   * lowest address first.
   *
   * @returns 0, or −EINVAL when the range is not inside the region (nothing is then read)
   */
  readRegion(
    region: number,
    offset: number,
    into: DataView,
    at: number,
    count: number,
  ): number {
    if (!this.#isInside(region, offset, into, at, count)) return -Errno.EINVAL;
    if (region === CONFIG_REGION) {
      this.config.read(offset, into, at, count);
      return 0;
    }
    const windows = this.#windows[region]!;
    while (count > 0) {
      const width = accessWidth(offset, count);
      const window = find(windows, offset);
      const value = window === null
        ? this.device.readBar(region, offset, width)
        : this.#readWindow(window, offset - window.start, width);
      if (!Number.isInteger(value)) this.#refuseValue(value, region, offset);
      storeWidth(into, at, width, value);
      offset += width;
      at += width;
      count -= width;
    }
    return 0;
  }

  /**
   * Writes `count` bytes from byte `at` of `from` to a region; a BAR is written as
   * {@linkcode PciFunction.readRegion} reads it.
   *
   * @returns 0, or −EINVAL when the range is not inside the region (nothing is then written)
   */
  writeRegion(
    region: number,
    offset: number,
    from: DataView,
    at: number,
    count: number,
  ): number {
    if (!this.#isInside(region, offset, from, at, count)) return -Errno.EINVAL;
    if (region === CONFIG_REGION) {
      this.#writeConfig(offset, from, at, count);
      return 0;
    }
    const windows = this.#windows[region]!;
    while (count > 0) {
      const width = accessWidth(offset, count);
      const window = find(windows, offset);
      const value = loadWidth(from, at, width);
      if (window === null) this.device.writeBar(region, offset, width, value);
      else this.#writeWindow(window, offset - window.start, width, value);
      offset += width;
      at += width;
      count -= width;
    }
    return 0;
  }

  #refuseValue(value: unknown, region: number, offset: number): never {
    throw new ModelError(
      `${this.name}: readBar must return an integer, and gave ${
        typeof value === "number" ? value : typeof value
      } for BAR ${region}, offset ${hex(offset)}`,
    );
  }

  /**
   * Puts the function back to its state after power-on: configuration space, interrupts, MSI-X table, and at last
   * the model, which thus finds everything else reset. Where interrupts go (the sink) is the server's and stays.
   */
  reset(reason: ResetReason): void {
    if (this.#log.debugEnabled) this.#log.debug(`reset: ${reason}`);
    this.config.reset();
    this.#interrupts.reset();
    try {
      this.device.reset(reason);
    } finally {
      this.#followMastering();
    }
  }

  /**
   * Has the model hold, see {@linkcode PciDevice.hold}, which it must have.
   *
   * @returns How many requests are in flight
   */
  hold(): number {
    this.#holding = true;
    return this.device.hold!();
  }

  /** The model goes on after {@linkcode PciFunction.hold} or `load`, as soon as it may access guest memory. */
  release(): void {
    this.#holding = false;
    this.#goOn();
  }

  /**
   * Has the model take nothing new until {@linkcode PciFunction.endSettling}, so that {@linkcode PciFunction.unfinished}
   * comes to 0.
   */
  settle(): void {
    this.#settling = true;
    this.device.hold!();
  }

  /** The model goes on after {@linkcode PciFunction.settle}, unless it holds for another reason. */
  endSettling(): void {
    this.#settling = false;
    this.#goOn();
  }

  /** See {@linkcode PciDevice.unfinished}; 0 for a model that cannot hold. */
  unfinished(iova?: number, lengthBytes?: number): number {
    const { device } = this;
    if (device.hold === undefined) return 0;
    return device.unfinished?.(iova, lengthBytes) ?? 0;
  }

  /** True if what a write asks for ends requests that are in flight, and some are; the range lies inside the region. */
  mustSettle(
    region: number,
    offset: number,
    from: DataView,
    at: number,
    count: number,
  ): boolean {
    return this.#endsRequests(region, offset, from, at, count) &&
      this.unfinished() > 0;
  }

  #endsRequests(
    region: number,
    offset: number,
    from: DataView,
    at: number,
    count: number,
  ): boolean {
    if (region === CONFIG_REGION) {
      return this.config.mayEndRequests(offset, count);
    }
    const { device } = this;
    if (device.endsRequests === undefined) return false;
    for (let done = 0; done < count;) {
      const width = accessWidth(offset + done, count - done);
      const value = loadWidth(from, at + done, width);
      if (device.endsRequests(region, offset + done, width, value)) return true;
      done += width;
    }
    return false;
  }

  #goOn(): void {
    if (this.#holding || this.#settling || !this.#isMaster) return;
    this.device.start?.();
  }

  /** Configuration space, interrupts, MSI-X and mappable areas; the model's own state is apart. */
  save(): DeviceState<PciFunctionState> {
    return FORM.write({
      config: this.config.save(),
      interrupts: this.#interrupts.save(),
      msix: this.#msix?.save() ?? null,
      areas: this.#areas().map(({ bytes }) => bytes.slice()),
    });
  }

  /**
   * Takes over what {@linkcode PciFunction.save} gave, before the model takes over its own. Nothing is delivered, and
   * the model is told nothing.
   *
   * @throws {Error} When it is the state of another kind of function; this one is then not to be used
   */
  load(state: unknown): void {
    const reader = FORM.read(state);
    const msix = reader.value("msix");
    if ((msix === null) !== (this.#msix === null)) {
      throw reader.refused(
        this.#msix === null
          ? "its state has MSI-X, the function has not"
          : "its state has no MSI-X, the function has",
      );
    }
    const areas = this.#areas();
    const saved = reader.byteArrays("areas");
    const lengths = (all: readonly Uint8Array[]) =>
      all.map(({ length }) => length).join();
    if (lengths(saved) !== lengths(areas.map(({ bytes }) => bytes))) {
      throw reader.refused("its state has other mappable areas");
    }
    this.config.load(reader.value("config"));
    areas.forEach(({ bytes }, i) => bytes.set(saved[i]!));
    this.#msix?.load(msix);
    this.#interrupts.load(reader.value("interrupts"));
    this.#memory.accessible = this.#isMaster = this.config.mayMaster;
  }

  #areas(): readonly SharedMemory[] {
    return this.#bars.flatMap((bar) =>
      (bar?.mmap ?? []).map(({ memory }) => memory)
    );
  }

  #isInside(
    region: number,
    offset: number,
    view: DataView,
    at: number,
    count: number,
  ): boolean {
    const sizeBytes = this.#sizes[region];
    if (sizeBytes === undefined || sizeBytes === 0) return false;
    return offset >= 0 && count >= 0 && offset + count <= sizeBytes &&
      at >= 0 && at + count <= view.byteLength;
  }

  #writeConfig(
    offset: number,
    from: DataView,
    at: number,
    count: number,
  ): void {
    const effects = this.config.write(offset, from, at, count);
    if (this.#log.debugEnabled) this.#traceWrite(offset, from, at, count);
    if ((effects & ConfigEffect.FLR) !== 0) {
      // Whatever else was written in the same transfer is reset with the rest.
      this.reset("flr");
      return;
    }
    if ((effects & ConfigEffect.POWER) !== 0) {
      const { powerState } = this.config;
      if (this.#log.debugEnabled) this.#log.debug(`power state: ${powerState}`);
      // PCI PM 1.2, section 5.4: without No_Soft_Reset a function wakes up uninitialized.
      if (powerState === "D0") return this.reset("soft_reset");
    }
    if (effects === 0) return;
    this.#interrupts.configChanged();
    this.#followMastering();
  }

  #followMastering(): void {
    const isMaster = this.config.mayMaster;
    if (isMaster === this.#isMaster) return;
    this.#isMaster = isMaster;
    if (!isMaster) return this.#endMastering();
    this.#memory.accessible = true;
    this.device.start?.();
    // Starting ends that too.
    if (this.#holding || this.#settling) this.device.hold!();
  }

  /** In this order, so that what is in flight ends, or is put off, while guest memory is there. */
  #endMastering(): void {
    try {
      this.device.stop?.();
    } finally {
      this.#memory.accessible = false;
    }
  }

  // Apart, so that its closure costs the path without a trace nothing.
  #traceWrite(offset: number, from: DataView, at: number, count: number): void {
    this.#log.debug(`write ${this.config.registerName(offset)}`, {
      offset,
      bytes: Array.from({ length: count }, (_, i) => from.getUint8(at + i)),
    });
  }

  #readWindow(window: Window, offset: number, width: AccessWidth): number {
    switch (window.owner) {
      case Owner.TABLE:
        return this.#msix!.read(offset, width);
      case Owner.PENDING:
        return this.#msix!.readPending(offset, width);
      case Owner.MEMORY:
        return loadWidth(window.memory, offset, width);
      default:
        return window.owner satisfies never;
    }
  }

  #writeWindow(
    window: Window,
    offset: number,
    width: AccessWidth,
    value: number,
  ): void {
    switch (window.owner) {
      case Owner.TABLE:
        this.#interrupts.vectorUnmasked(
          this.#msix!.write(offset, width, value),
        );
        return;
      case Owner.PENDING:
        // Section 6.8.2.10: software should never write it, and the result is undefined; here, nothing.
        return;
      case Owner.MEMORY:
        storeWidth(window.memory, offset, width, value);
        window.onWrite?.();
        return;
      default:
        window.owner satisfies never;
    }
  }
}

function find(windows: readonly Window[], offset: number): Window | null {
  for (let i = 0; i < windows.length; i++) {
    const window = windows[i]!;
    if (offset >= window.start && offset < window.end) return window;
  }
  return null;
}

const NO_MEMORY = new DataView(new ArrayBuffer(0));

function windowsOf(device: PciDevice, bar: BarSpec): Window[] {
  const windows: Window[] = [];
  for (const capability of device.spec.capabilities) {
    if (capability.kind !== "msix") continue;
    const { vectors, tableBar, tableOffset, pbaBar, pbaOffset } = capability;
    if (tableBar === bar.index) {
      windows.push({
        start: tableOffset,
        end: tableOffset + msixTableBytes(vectors),
        owner: Owner.TABLE,
        memory: NO_MEMORY,
        onWrite: undefined,
      });
    }
    if (pbaBar === bar.index) {
      windows.push({
        start: pbaOffset,
        end: pbaOffset + msixPbaBytes(vectors),
        owner: Owner.PENDING,
        memory: NO_MEMORY,
        onWrite: undefined,
      });
    }
  }
  for (const { offset, memory: { bytes }, onWrite } of bar.mmap ?? []) {
    windows.push({
      start: offset,
      end: offset + bytes.length,
      owner: Owner.MEMORY,
      memory: new DataView(bytes.buffer, bytes.byteOffset, bytes.length),
      onWrite,
    });
  }
  return windows;
}
