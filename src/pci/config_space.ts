/**
 * The configuration space of one function: bytes, and masks that say what software may change.
 *
 * @module
 */

import { StateReader } from "../core/state_reader.ts";
import { hex, high32, low32 } from "../core/bits.ts";
import {
  type ConfigImage,
  placeCapabilities,
  type PlacedCapability,
} from "./capabilities.ts";
import {
  PCI_BASE_ADDRESS_MEM_PREFETCH,
  PCI_BASE_ADDRESS_MEM_TYPE_64,
  PCI_BASE_ADDRESS_SPACE_IO,
  PCI_CFG_SPACE_EXP_SIZE,
  PCI_COMMAND_INTX_DISABLE,
  PCI_COMMAND_IO,
  PCI_COMMAND_MASTER,
  PCI_COMMAND_MEMORY,
  PCI_COMMAND_PARITY,
  PCI_COMMAND_SERR,
  PCI_EXP_DEVCTL_BCR_FLR,
  PCI_MSI_FLAGS_ENABLE,
  PCI_MSI_FLAGS_QMASK,
  PCI_MSI_FLAGS_QSIZE,
  PCI_MSIX_FLAGS_ENABLE,
  PCI_MSIX_FLAGS_MASKALL,
  PCI_PM_CTRL_STATE_MASK,
  PCI_STATUS_DETECTED_PARITY,
  PCI_STATUS_INTERRUPT,
  PCI_STATUS_PARITY,
  PCI_STATUS_REC_MASTER_ABORT,
  PCI_STATUS_REC_TARGET_ABORT,
  PCI_STATUS_SIG_SYSTEM_ERROR,
  PCI_STATUS_SIG_TARGET_ABORT,
  PciExp,
  PciHeader,
  PciMsi,
  PciMsix,
  PciPm,
} from "./defs.ts";
import type { BarSpec, CapabilitySpec, PciSpec } from "./device.ts";
import type { RegisterMap } from "./register_map.ts";
import { validatePciSpec, VENDOR_PREFIX_BYTES } from "./validate.ts";

/** Consequences of a write to configuration space, beyond the bytes; a bit set. */
export const ConfigEffect = {
  /** Interrupts were enabled, disabled, masked or unmasked. */
  INTERRUPTS: 1,
  /** The power state has changed. */
  POWER: 2,
  /** Software asks for a function level reset. */
  FLR: 4,
} as const;

/** Contents of a {@linkcode ConfigSpace}, as plain data. */
export interface ConfigState {
  /** All 4096 bytes, as they are read. */
  readonly bytes: Uint8Array;
}

const WHAT = "configuration space";

/** A power state that this function can be in. */
export type PowerState = "D0" | "D3hot";

const HEADER = PciHeader.offsets;
const COMMAND = HEADER.PCI_COMMAND;
const STATUS = HEADER.PCI_STATUS;

/** A vendor-specific body and who wants to know about it. */
class VendorBody {
  readonly start: number;
  readonly end: number;
  readonly #view: DataView;
  readonly #spec: Extract<CapabilitySpec, { kind: "vendor" }>;

  constructor(
    spec: Extract<CapabilitySpec, { kind: "vendor" }>,
    offset: number,
    space: DataView,
  ) {
    this.start = offset + VENDOR_PREFIX_BYTES;
    this.end = this.start + spec.body.length;
    this.#view = new DataView(space.buffer, this.start, spec.body.length);
    this.#spec = spec;
  }

  /** Tells of an access to `[from, to)` of configuration space, if any of it is in the body. */
  touched(from: number, to: number, written: boolean): void {
    const start = Math.max(from, this.start);
    const lengthBytes = Math.min(to, this.end) - start;
    if (lengthBytes <= 0) return;
    // Called as a method, so that a class may be the specification.
    if (written) {
      this.#spec.onWrite?.(this.#view, start - this.start, lengthBytes);
    } else {
      this.#spec.onRead?.(this.#view, start - this.start, lengthBytes);
    }
  }
}

/** PCI Express configuration space, 4096 bytes; whoever calls has checked the range. */
export class ConfigSpace {
  /** Places of the capabilities, in the order in which they are linked. */
  readonly capabilities: readonly PlacedCapability[];
  readonly #bytes = new Uint8Array(PCI_CFG_SPACE_EXP_SIZE);
  readonly #view = new DataView(this.#bytes.buffer);
  readonly #initial = new Uint8Array(PCI_CFG_SPACE_EXP_SIZE);
  readonly #writeMask = new Uint8Array(PCI_CFG_SPACE_EXP_SIZE);
  readonly #w1cMask = new Uint8Array(PCI_CFG_SPACE_EXP_SIZE);
  readonly #vendors: readonly VendorBody[];
  // Offsets of the registers that have effects; 0 where the capability is absent.
  readonly #pmCtrl: number;
  readonly #devCtl: number;
  readonly #msiFlags: number;
  readonly #msiMask: number;
  readonly #msiPending: number;
  readonly #msixFlags: number;

  /**
   * Lays out header, BARs and capabilities.
   *
   * @throws {ErrnoError} EINVAL when the specification is not sound
   */
  constructor(spec: PciSpec) {
    validatePciSpec(spec);
    const image: ConfigImage = {
      values: new DataView(this.#initial.buffer),
      writeMask: new DataView(this.#writeMask.buffer),
      w1cMask: new DataView(this.#w1cMask.buffer),
    };
    fillHeader(spec, image);
    for (const bar of spec.bars) fillBar(bar, image);
    this.capabilities = placeCapabilities(spec, image);
    this.#pmCtrl = this.#register("pm", PciPm.offsets.PCI_PM_CTRL);
    this.#devCtl = this.#register("pcie", PciExp.offsets.PCI_EXP_DEVCTL);
    this.#msiFlags = this.#register("msi", PciMsi.offsets.PCI_MSI_FLAGS);
    this.#msiMask = this.#register("msi", PciMsi.offsets.PCI_MSI_MASK_64);
    this.#msiPending = this.#register("msi", PciMsi.offsets.PCI_MSI_PENDING_64);
    this.#msixFlags = this.#register("msix", PciMsix.offsets.PCI_MSIX_FLAGS);
    const vendors: VendorBody[] = [];
    for (const { spec: capability, offset } of this.capabilities) {
      if (capability.kind !== "vendor") continue;
      vendors.push(new VendorBody(capability, offset, this.#view));
    }
    this.#vendors = vendors;
    this.reset();
  }

  /** Puts every register back to its initial value, base addresses and vendor bodies too. */
  reset(): void {
    this.#bytes.set(this.#initial);
  }

  /** Everything in it. */
  save(): ConfigState {
    return { bytes: this.#bytes.slice() };
  }

  /**
   * Takes over what {@linkcode ConfigSpace.save} gave. Nothing follows from it: neither are vendor-specific capabilities
   * told nor interrupts looked at.
   *
   * @throws {Error} When it is not the state of a function of this identity, with these BARs and capabilities; nothing
   * has then changed
   */
  load(state: unknown): void {
    const reader = new StateReader(state, WHAT);
    const bytes = reader.bytes("bytes", this.#bytes.length);
    const own = this.#ownBits();
    for (let at = 0; at < bytes.length; at++) {
      if (((bytes[at]! ^ this.#initial[at]!) & ~own[at]!) === 0) continue;
      throw reader.refused(
        `its state is another function's: byte ${hex(at)} (${
          this.registerName(at)
        }) is ${hex(bytes[at]!)}, ${hex(this.#initial[at]!)} here`,
      );
    }
    this.#bytes.set(bytes);
  }

  /** The bits that can differ from their initial values: software's, and those the function itself changes. */
  #ownBits(): Uint8Array {
    const own = this.#writeMask.map((mask, at) => mask | this.#w1cMask[at]!);
    own[STATUS] = own[STATUS]! | PCI_STATUS_INTERRUPT;
    if (this.#msiPending !== 0) {
      own.fill(0xff, this.#msiPending, this.#msiPending + 4);
    }
    for (const { start, end } of this.#vendors) own.fill(0xff, start, end);
    return own;
  }

  /** Copies registers to `into`; the range lies inside both. */
  read(offset: number, into: DataView, at: number, count: number): void {
    for (let i = 0; i < this.#vendors.length; i++) {
      this.#vendors[i]!.touched(offset, offset + count, false);
    }
    for (let i = 0; i < count; i++) {
      into.setUint8(at + i, this.#bytes[offset + i]!);
    }
  }

  /**
   * Writes registers from `from`; the range lies inside both.
   *
   * @returns What is to be done about it: a set of {@linkcode ConfigEffect}
   */
  write(offset: number, from: DataView, at: number, count: number): number {
    const command = this.#read16(COMMAND);
    const msiFlags = this.#read16(this.#msiFlags);
    const msiMask = this.msiMask;
    const msixFlags = this.#read16(this.#msixFlags);
    const pmCtrl = this.#read16(this.#pmCtrl);
    for (let i = 0; i < count; i++) {
      this.#writeByte(offset + i, from.getUint8(at + i));
    }
    let effects = 0;
    if (
      command !== this.#read16(COMMAND) ||
      msiFlags !== this.#read16(this.#msiFlags) ||
      msiMask !== this.msiMask ||
      msixFlags !== this.#read16(this.#msixFlags)
    ) {
      effects |= ConfigEffect.INTERRUPTS;
    }
    if (this.#settlePowerState(pmCtrl)) effects |= ConfigEffect.POWER;
    if (this.#takeResetRequest()) effects |= ConfigEffect.FLR;
    for (let i = 0; i < this.#vendors.length; i++) {
      this.#vendors[i]!.touched(offset, offset + count, true);
    }
    return effects;
  }

  /** True if a write may reset the function or end its bus mastering. */
  mayEndRequests(offset: number, count: number): boolean {
    const touches = (register: number) =>
      register !== 0 && offset < register + 2 && register < offset + count;
    return touches(COMMAND) || touches(this.#pmCtrl) ||
      touches(this.#devCtl) ||
      this.#vendors.some(({ start, end }) =>
        offset < end && start < offset + count
      );
  }

  /** True if software forbade INTx. */
  get intxDisabled(): boolean {
    return (this.#read16(COMMAND) & PCI_COMMAND_INTX_DISABLE) !== 0;
  }

  /** True if MSI is enabled. */
  get msiEnabled(): boolean {
    return (this.#read16(this.#msiFlags) & PCI_MSI_FLAGS_ENABLE) !== 0;
  }

  /** Number of MSI vectors software allocated, at most what the function asks for. */
  get msiAllocated(): number {
    const flags = this.#read16(this.#msiFlags);
    const asked = (flags & PCI_MSI_FLAGS_QMASK) >> 1;
    // More than was asked for is reserved; hardware may do anything but overrun.
    return 1 << Math.min((flags & PCI_MSI_FLAGS_QSIZE) >> 4, asked);
  }

  /** The MSI mask register, one bit per vector; signed, for bit operations. */
  get msiMask(): number {
    return this.#msiMask === 0 ? 0 : this.#view.getInt32(this.#msiMask, true);
  }

  /** True if MSI-X is enabled. */
  get msixEnabled(): boolean {
    return (this.#read16(this.#msixFlags) & PCI_MSIX_FLAGS_ENABLE) !== 0;
  }

  /** True if software masked all MSI-X vectors at once. */
  get msixMasked(): boolean {
    return (this.#read16(this.#msixFlags) & PCI_MSIX_FLAGS_MASKALL) !== 0;
  }

  /** The power state; D0 for a function without power management. */
  get powerState(): PowerState {
    const state = this.#read16(this.#pmCtrl) & PCI_PM_CTRL_STATE_MASK;
    return state === 0 ? "D0" : "D3hot";
  }

  /**
   * True if the function may issue memory requests, and so DMA and messages: Bus Master Enable is set (PCI Express 3.0,
   * section 7.5.1.1), and it is in D0 (section 5.3.1.4.1).
   */
  get mayMaster(): boolean {
    return (this.#read16(COMMAND) & PCI_COMMAND_MASTER) !== 0 &&
      this.powerState === "D0";
  }

  /** Shows in the status register whether the function wants INTx. */
  setInterruptStatus(asserted: boolean): void {
    const status = this.#read16(STATUS);
    this.setStatus(
      asserted ? status | PCI_STATUS_INTERRUPT : status & ~PCI_STATUS_INTERRUPT,
    );
  }

  /** Sets the status register as the function itself would: masks do not apply. */
  setStatus(value: number): void {
    this.#view.setUint16(STATUS, value, true);
  }

  /** Shows which MSI vectors are pending. */
  setMsiPending(vectors: number): void {
    if (this.#msiPending !== 0) {
      this.#view.setInt32(this.#msiPending, vectors, true);
    }
  }

  /** Name of the register at `offset`, for traces. */
  registerName(offset: number): string {
    if (offset < PciHeader.lengthBytes) {
      return PciHeader.at(offset)?.name ?? "reserved";
    }
    for (const { spec, offset: start, lengthBytes } of this.capabilities) {
      if (offset < start || offset >= start + lengthBytes) continue;
      if (spec.kind === "vendor") return `vendor+${offset - start}`;
      return CAPABILITY_MAPS[spec.kind].at(offset - start)?.name ?? "reserved";
    }
    return "reserved";
  }

  #register(kind: CapabilitySpec["kind"], register: number): number {
    const placed = this.capabilities.find(({ spec }) => spec.kind === kind);
    return placed === undefined ? 0 : placed.offset + register;
  }

  /** A 16-bit register; 0 when its capability is absent. */
  #read16(offset: number): number {
    return offset === 0 ? 0 : this.#view.getUint16(offset, true);
  }

  #writeByte(offset: number, value: number): void {
    const writable = this.#writeMask[offset]!;
    const cleared = value & this.#w1cMask[offset]!;
    const kept = this.#bytes[offset]! & ~writable & ~cleared;
    this.#bytes[offset] = kept | (value & writable);
  }

  /** PCI PM 1.2, section 3.2.4: a write of a state that is not supported changes nothing. */
  #settlePowerState(before: number): boolean {
    const offset = this.#pmCtrl;
    if (offset === 0) return false;
    const state = this.#read16(offset) & PCI_PM_CTRL_STATE_MASK;
    const was = before & PCI_PM_CTRL_STATE_MASK;
    const D3HOT = 3;
    if (state !== 0 && state !== D3HOT) {
      const kept = this.#read16(offset) & ~PCI_PM_CTRL_STATE_MASK;
      this.#view.setUint16(offset, kept | was, true);
      return false;
    }
    return state !== was;
  }

  /** The bit that starts a function level reset always reads as zero. */
  #takeResetRequest(): boolean {
    const control = this.#read16(this.#devCtl);
    if ((control & PCI_EXP_DEVCTL_BCR_FLR) === 0) return false;
    this.#view.setUint16(
      this.#devCtl,
      control & ~PCI_EXP_DEVCTL_BCR_FLR,
      true,
    );
    return true;
  }
}

const CAPABILITY_MAPS: Record<
  Exclude<CapabilitySpec["kind"], "vendor">,
  RegisterMap
> = { pm: PciPm, pcie: PciExp, msi: PciMsi, msix: PciMsix };

function fillHeader(spec: PciSpec, image: ConfigImage): void {
  const { values, writeMask, w1cMask } = image;
  for (const { offset, sizeBytes, access } of PciHeader.registers) {
    if (access !== "rw") continue;
    for (let i = 0; i < sizeBytes; i++) writeMask.setUint8(offset + i, 0xff);
  }
  values.setUint16(HEADER.PCI_VENDOR_ID, spec.vendorId, true);
  values.setUint16(HEADER.PCI_DEVICE_ID, spec.deviceId, true);
  values.setUint8(HEADER.PCI_REVISION_ID, spec.revision);
  values.setUint8(HEADER.PCI_CLASS_PROG, spec.classCode & 0xff);
  values.setUint16(HEADER.PCI_CLASS_DEVICE, spec.classCode >>> 8, true);
  values.setUint16(
    HEADER.PCI_SUBSYSTEM_VENDOR_ID,
    spec.subsystemVendorId,
    true,
  );
  values.setUint16(HEADER.PCI_SUBSYSTEM_ID, spec.subsystemId, true);
  const INTA = 1;
  values.setUint8(HEADER.PCI_INTERRUPT_PIN, spec.intx ? INTA : 0);
  writeMask.setUint16(
    COMMAND,
    PCI_COMMAND_IO | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER |
      PCI_COMMAND_PARITY | PCI_COMMAND_SERR | PCI_COMMAND_INTX_DISABLE,
    true,
  );
  w1cMask.setUint16(
    STATUS,
    PCI_STATUS_PARITY | PCI_STATUS_SIG_TARGET_ABORT |
      PCI_STATUS_REC_TARGET_ABORT | PCI_STATUS_REC_MASTER_ABORT |
      PCI_STATUS_SIG_SYSTEM_ERROR | PCI_STATUS_DETECTED_PARITY,
    true,
  );
}

/** Sizing needs no logic: only the bits at or above the size can be written, so all-ones reads back as the size. */
function fillBar(bar: BarSpec, { values, writeMask }: ConfigImage): void {
  const offset = HEADER.PCI_BASE_ADDRESS_0 + 4 * bar.index;
  // −size as 64 bits: every bit at or above the size.
  const low = low32(-low32(bar.sizeBytes));
  const high = bar.sizeBytes >= 2 ** 32
    ? low32(-high32(bar.sizeBytes))
    : 0xffff_ffff;
  values.setUint32(offset, barFlags(bar), true);
  writeMask.setUint32(offset, low, true);
  if (bar.kind === "memory64") writeMask.setUint32(offset + 4, high, true);
}

function barFlags(bar: BarSpec): number {
  if (bar.kind === "io") return PCI_BASE_ADDRESS_SPACE_IO;
  const width = bar.kind === "memory64" ? PCI_BASE_ADDRESS_MEM_TYPE_64 : 0;
  return width | (bar.prefetchable ? PCI_BASE_ADDRESS_MEM_PREFETCH : 0);
}
