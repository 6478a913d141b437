/**
 * The controller registers in BAR 0 (NVM Express 1.4, section 3.1), and what reading and writing them does to
 * themselves; everything else is the controller's.
 *
 * @module
 */

import { bit, field, withBit } from "../../src/core/bits.ts";
import type { AccessWidth } from "../../src/pci/device.ts";
import { RegisterMap, type RegisterName } from "../../src/pci/register_map.ts";
import { StateReader } from "../../src/core/state_reader.ts";
import {
  NVME_CC,
  NVME_CSTS,
  NVME_MPS_MAX,
  NVME_PAGE_SHIFT_MIN,
  NVME_REG_DBS,
  NVME_VS_1_4,
} from "./defs.ts";

const ROWS = [
  ["CAP", 8, "ro"],
  ["VS", 4, "ro"],
  ["INTMS", 4, "mixed"],
  ["INTMC", 4, "mixed"],
  ["CC", 4],
  [null, 4],
  ["CSTS", 4, "mixed"],
  ["NSSR", 4],
  ["AQA", 4],
  ["ASQ", 8],
  ["ACQ", 8],
  ["CMBLOC", 4, "ro"],
  ["CMBSZ", 4, "ro"],
  ["BPINFO", 4, "ro"],
  ["BPRSEL", 4],
  ["BPMBL", 8],
  ["CMBMSC", 8],
  ["CMBSTS", 4, "ro"],
  [null, 0xda4],
  ["PMRCAP", 4, "ro"],
  ["PMRCTL", 4],
  ["PMRSTS", 4, "ro"],
  ["PMREBS", 4, "ro"],
  ["PMRSWTP", 4, "ro"],
  ["PMRMSCL", 4],
  ["PMRMSCU", 4],
  [null, 0x1e4],
] as const;

/** Registers before the doorbells. */
export const NVME_REGISTERS: RegisterMap<RegisterName<typeof ROWS>> =
  new RegisterMap("nvme", NVME_REG_DBS, ROWS);

const OFFSET = NVME_REGISTERS.offsets;
const HIGH = 4;
const U32_MAX = 0xffff_ffff;

/** CAP.TO in units of 500 ms: how long a driver waits for CSTS.RDY. */
const TIMEOUT_UNITS = 40;

/** What a write asks of the controller. */
export const RegisterEffect = {
  NONE: 0,
  /** CC changed. */
  CC: 1,
  /** The interrupt mask changed. */
  MASK: 2,
} as const;

/** An effect of {@linkcode RegisterEffect}. */
export type RegisterEffect = typeof RegisterEffect[keyof typeof RegisterEffect];

/** Registers as they are saved. */
export interface RegistersState {
  readonly cc: number;
  readonly csts: number;
  /** INTMS. */
  readonly interruptMask: number;
  readonly aqa: number;
  /** Low and high word. */
  readonly asq: readonly number[];
  /** Low and high word. */
  readonly acq: readonly number[];
}

/**
 * Checks the state of registers.
 *
 * @throws {import("../../src/core/errno.ts").ErrnoError} EINVAL when it cannot be
 */
export function parseRegistersState(value: unknown): RegistersState {
  const reader = new StateReader(value, "the registers");
  return {
    cc: reader.integer("cc", NVME_CC.WRITABLE),
    csts: reader.integer("csts", U32_MAX),
    interruptMask: reader.integer("interruptMask", U32_MAX),
    aqa: reader.integer("aqa", U32_MAX),
    asq: reader.integers("asq", U32_MAX, 2),
    acq: reader.integers("acq", U32_MAX, 2),
  };
}

/** The registers of one controller. */
export class NvmeRegisters {
  readonly #capLow: number;
  readonly #capHigh: number;
  /** Controller configuration. */
  cc = 0;
  /** Controller status. */
  csts = 0;
  /** Vectors that are masked. */
  interruptMask = 0;
  /** Admin queue attributes. */
  aqa = 0;
  /** Admin submission queue base: low and high word. */
  readonly asq: Uint32Array<ArrayBuffer> = new Uint32Array(2);
  /** Admin completion queue base: low and high word. */
  readonly acq: Uint32Array<ArrayBuffer> = new Uint32Array(2);

  /** @param maxEntries The largest size of an I/O queue, 2–65536 */
  constructor(maxEntries: number) {
    // MQES (0's based) in 15:0, CQR (queues are contiguous) in 16, AMS none, TO in 31:24.
    this.#capLow = ((maxEntries - 1) | (1 << 16) | (TIMEOUT_UNITS << 24)) >>> 0;
    // DSTRD 0, NSSRS 0, CSS bit 0 (NVM command set) in 37, MPSMIN 0, MPSMAX in 55:52.
    this.#capHigh = (1 << 5) | (NVME_MPS_MAX << 20);
  }

  /** CC.EN. */
  get enabled(): boolean {
    return bit(this.cc, NVME_CC.EN);
  }

  /** The memory page size that CC.MPS chose, as a power of two. */
  get pageShift(): number {
    return NVME_PAGE_SHIFT_MIN + field(this.cc, ...NVME_CC.MPS);
  }

  /** CC.SHN is a request to shut down. */
  get shutdownRequested(): boolean {
    const shn = field(this.cc, ...NVME_CC.SHN);
    return shn === 1 || shn === 2;
  }

  /** CSTS.RDY. */
  get ready(): boolean {
    return bit(this.csts, NVME_CSTS.RDY);
  }

  /** Sets or clears CSTS.RDY. */
  setReady(on: boolean): void {
    this.csts = withBit(this.csts, NVME_CSTS.RDY, on);
  }

  /** CSTS.CFS. */
  get fatal(): boolean {
    return bit(this.csts, NVME_CSTS.CFS);
  }

  /** Sets CSTS.CFS. */
  setFatal(): void {
    this.csts = withBit(this.csts, NVME_CSTS.CFS, true);
  }

  /** CSTS.SHST. */
  get shutdownStatus(): number {
    return field(this.csts, NVME_CSTS.SHST + 1, NVME_CSTS.SHST);
  }

  set shutdownStatus(shst: number) {
    this.csts = (this.csts & ~(3 << NVME_CSTS.SHST)) | shst << NVME_CSTS.SHST;
  }

  /** What a controller reset clears: everything but the admin queue's registers (section 7.3.2). */
  resetController(): void {
    this.csts = 0;
    this.interruptMask = 0;
  }

  /** Everything as after power-on. */
  reset(): void {
    this.resetController();
    this.cc = 0;
    this.aqa = 0;
    this.asq.fill(0);
    this.acq.fill(0);
  }

  /** What can change. */
  save(): RegistersState {
    return {
      cc: this.cc,
      csts: this.csts >>> 0,
      interruptMask: this.interruptMask,
      aqa: this.aqa,
      asq: [...this.asq],
      acq: [...this.acq],
    };
  }

  /** Takes over what others held. */
  load(state: RegistersState): void {
    this.cc = state.cc;
    this.csts = state.csts;
    this.interruptMask = state.interruptMask;
    this.aqa = state.aqa;
    this.asq.set(state.asq);
    this.acq.set(state.acq);
  }

  /** Reads a register, or a part of one; 0 where there is none. */
  read(offset: number, width: AccessWidth): number {
    const word = this.#readWord(offset & ~3);
    if (width === 4) return word;
    const shift = (offset & 3) * 8;
    return (word >>> shift) & (width === 2 ? 0xffff : 0xff);
  }

  /**
   * Writes a register. A driver writes whole words (section 3.1); anything narrower is ignored.
   *
   * @returns What is to be done now
   */
  write(offset: number, width: AccessWidth, value: number): RegisterEffect {
    if (width !== 4) return RegisterEffect.NONE;
    switch (offset) {
      case OFFSET.INTMS:
        this.interruptMask = (this.interruptMask | value) >>> 0;
        return RegisterEffect.MASK;
      case OFFSET.INTMC:
        this.interruptMask = (this.interruptMask & ~value) >>> 0;
        return RegisterEffect.MASK;
      case OFFSET.CC:
        this.cc = (value & NVME_CC.WRITABLE) >>> 0;
        return RegisterEffect.CC;
      case OFFSET.AQA:
        this.aqa = value & 0x0fff_0fff;
        break;
      case OFFSET.ASQ:
        this.asq[0] = value & ~0xfff;
        break;
      case OFFSET.ASQ + HIGH:
        this.asq[1] = value;
        break;
      case OFFSET.ACQ:
        this.acq[0] = value & ~0xfff;
        break;
      case OFFSET.ACQ + HIGH:
        this.acq[1] = value;
        break;
    }
    return RegisterEffect.NONE;
  }

  #readWord(offset: number): number {
    switch (offset) {
      case OFFSET.CAP:
        return this.#capLow;
      case OFFSET.CAP + HIGH:
        return this.#capHigh;
      case OFFSET.VS:
        return NVME_VS_1_4;
      case OFFSET.INTMS:
      case OFFSET.INTMC:
        return this.interruptMask;
      case OFFSET.CC:
        return this.cc;
      case OFFSET.CSTS:
        return this.csts;
      case OFFSET.AQA:
        return this.aqa;
      case OFFSET.ASQ:
        return this.asq[0]!;
      case OFFSET.ASQ + HIGH:
        return this.asq[1]!;
      case OFFSET.ACQ:
        return this.acq[0]!;
      case OFFSET.ACQ + HIGH:
        return this.acq[1]!;
      default:
        return 0;
    }
  }
}
