/**
 * The controller registers in BAR 0 (NVM Express 1.4, section 3.1), and what reading and writing them does to
 * themselves; everything else is the controller's.
 *
 * @module
 */

import { bit, field, u64, withBit } from "../../src/core/bits.ts";
import type { AccessWidth } from "../../src/pci/device.ts";
import { RegisterMap, type RegisterName } from "../../src/pci/register_map.ts";
import type { StateReader } from "../../src/core/state_reader.ts";
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

/** Words that hold what a driver writes: offset, and which bits. */
const WRITABLE: ReadonlyMap<number, number> = new Map([
  [OFFSET.CC, NVME_CC.WRITABLE],
  [OFFSET.AQA, 0x0fff_0fff],
  [OFFSET.ASQ, ~0xfff],
  [OFFSET.ASQ + HIGH, U32_MAX],
  [OFFSET.ACQ, ~0xfff],
  [OFFSET.ACQ + HIGH, U32_MAX],
]);

/** Words that can change, by their names when they are saved. */
const CHANGING = {
  cc: OFFSET.CC,
  csts: OFFSET.CSTS,
  interruptMask: OFFSET.INTMS,
  aqa: OFFSET.AQA,
  asqLow: OFFSET.ASQ,
  asqHigh: OFFSET.ASQ + HIGH,
  acqLow: OFFSET.ACQ,
  acqHigh: OFFSET.ACQ + HIGH,
} as const;

const NAMES = Object.keys(CHANGING) as (keyof typeof CHANGING)[];

/** Registers as they are saved, word by word. */
export type RegistersState = Readonly<Record<keyof typeof CHANGING, number>>;

/**
 * Checks the state of registers.
 *
 * @throws {import("../../src/core/errno.ts").ErrnoError} EINVAL when it cannot be
 */
export function parseRegistersState(reader: StateReader): RegistersState {
  return Object.fromEntries(NAMES.map((name) => [
    name,
    reader.integer(name, name === "cc" ? NVME_CC.WRITABLE : U32_MAX),
  ])) as RegistersState;
}

/** The registers of one controller. */
export class NvmeRegisters {
  readonly #words = new Uint32Array(NVME_REG_DBS / 4);

  /** @param maxEntries The largest size of an I/O queue, 2–65536 */
  constructor(maxEntries: number) {
    // MQES (0's based) in 15:0, CQR (queues are contiguous) in 16, AMS none, TO in 31:24.
    const low = (maxEntries - 1) | (1 << 16) | (TIMEOUT_UNITS << 24);
    this.#set(OFFSET.CAP, low);
    // DSTRD 0, NSSRS 0, CSS bit 0 (NVM command set) in 37, MPSMIN 0, MPSMAX in 55:52.
    this.#set(OFFSET.CAP + HIGH, (1 << 5) | (NVME_MPS_MAX << 20));
    this.#set(OFFSET.VS, NVME_VS_1_4);
  }

  /** Controller configuration. */
  get cc(): number {
    return this.#get(OFFSET.CC);
  }

  /** Vectors that are masked. */
  get interruptMask(): number {
    return this.#get(OFFSET.INTMS);
  }

  /** Admin queue attributes. */
  get aqa(): number {
    return this.#get(OFFSET.AQA);
  }

  /** Admin submission queue base. */
  get asq(): number {
    return u64(this.#get(OFFSET.ASQ), this.#get(OFFSET.ASQ + HIGH));
  }

  /** Admin completion queue base. */
  get acq(): number {
    return u64(this.#get(OFFSET.ACQ), this.#get(OFFSET.ACQ + HIGH));
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
    return bit(this.#get(OFFSET.CSTS), NVME_CSTS.RDY);
  }

  set ready(on: boolean) {
    const csts = this.#get(OFFSET.CSTS);
    this.#set(OFFSET.CSTS, withBit(csts, NVME_CSTS.RDY, on));
  }

  /** CSTS.CFS. */
  get fatal(): boolean {
    return bit(this.#get(OFFSET.CSTS), NVME_CSTS.CFS);
  }

  /** Sets CSTS.CFS. */
  setFatal(): void {
    const csts = this.#get(OFFSET.CSTS);
    this.#set(OFFSET.CSTS, withBit(csts, NVME_CSTS.CFS, true));
  }

  /** CSTS.SHST. */
  get shutdownStatus(): number {
    return field(this.#get(OFFSET.CSTS), NVME_CSTS.SHST + 1, NVME_CSTS.SHST);
  }

  set shutdownStatus(shst: number) {
    const others = this.#get(OFFSET.CSTS) & ~(3 << NVME_CSTS.SHST);
    this.#set(OFFSET.CSTS, others | shst << NVME_CSTS.SHST);
  }

  /** Clears what a controller reset clears: everything but the admin queue's registers (section 7.3.2). */
  resetController(): void {
    this.#set(OFFSET.CSTS, 0);
    this.#set(OFFSET.INTMS, 0);
  }

  /** Everything as after power-on. */
  reset(): void {
    for (const name of NAMES) this.#set(CHANGING[name], 0);
  }

  /** State of the registers. */
  save(): RegistersState {
    return Object.fromEntries(
      NAMES.map((name) => [name, this.#get(CHANGING[name])]),
    ) as RegistersState;
  }

  /** Takes over what others held. */
  load(state: RegistersState): void {
    for (const name of NAMES) this.#set(CHANGING[name], state[name]);
  }

  /** Reads a register, or a part of one; 0 where there is none. */
  read(offset: number, width: AccessWidth): number {
    const at = offset & ~3;
    // Both read as the mask.
    const word = this.#get(at === OFFSET.INTMC ? OFFSET.INTMS : at);
    if (width === 4) return word;
    const shift = (offset & 3) * 8;
    return (word >>> shift) & (width === 2 ? 0xffff : 0xff);
  }

  /** Writes a register. A driver writes whole words (section 3.1); anything narrower is ignored. */
  write(offset: number, width: AccessWidth, value: number): void {
    if (width !== 4) return;
    const mask = this.interruptMask;
    const bits = WRITABLE.get(offset);
    if (bits !== undefined) this.#set(offset, value & bits);
    else if (offset === OFFSET.INTMS) this.#set(OFFSET.INTMS, mask | value);
    else if (offset === OFFSET.INTMC) this.#set(OFFSET.INTMS, mask & ~value);
  }

  /** True for a write that takes an enabled controller down, by CC.EN or CC.SHN. */
  endsRequests(offset: number, width: AccessWidth, value: number): boolean {
    if (offset !== OFFSET.CC || width !== 4 || !this.enabled) return false;
    return !bit(value, NVME_CC.EN) || field(value, ...NVME_CC.SHN) !== 0;
  }

  #get(offset: number): number {
    return this.#words[offset >> 2] ?? 0;
  }

  #set(offset: number, value: number): void {
    this.#words[offset >> 2] = value;
  }
}
