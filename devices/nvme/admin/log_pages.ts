/**
 * Log pages: what is remembered for them, and how they are built.
 *
 * @module
 */

import { setU64, u64 } from "../../../src/core/bits.ts";
import type { Loop } from "../../../src/loop/event_loop.ts";
import { StateReader } from "../../../src/core/state_reader.ts";
import type { Command } from "../command/command.ts";
import { NvmeCounter, type NvmeCounters } from "../counters.ts";
import { NvmeAdmin, NvmeCmd, NvmeLog, NvmeSc, SQE } from "../defs.ts";
import type { Features } from "./features.ts";
import type { SharedWords } from "../shared_words.ts";
import type { TwinLogs } from "../twin_message.ts";
import {
  CHANGED_NS_LOG,
  EFFECTS_LOG,
  ERROR_LOG_ENTRIES,
  ERROR_LOG_ENTRY,
  FW_SLOT_LOG,
  NVME_CMD_EFFECTS_CSUPP,
  NVME_CMD_EFFECTS_LBCC,
  SMART_LOG,
} from "./log_layout.ts";

/** A temperature that is nothing to worry about, in kelvins. */
export const TEMPERATURE_KELVIN = 308;

const HOUR_MS = 3_600_000;
/** Data units of the SMART log are thousands of 512 bytes. */
const DATA_UNIT_BYTES = 512_000;
/** Critical warning: the temperature is past a threshold. */
const SMART_CRIT_TEMPERATURE = 1 << 1;
const CHANGED_MANY = 0xffff_ffff;
/** SCT and SC of a status. */
const STATUS_CODE = 0x7ff;

/** Which commands change what blocks hold. */
const CHANGING: readonly number[] = [
  NvmeCmd.WRITE,
  NvmeCmd.WRITE_ZEROES,
  NvmeCmd.DSM,
];

/** What {@linkcode LogPages} are built from. */
export interface LogPagesOptions {
  readonly loop: Loop;
  readonly counters: NvmeCounters;
  readonly features: Features;
  /** Firmware revision. */
  readonly firmware: string;
}

/** An entry of the error log. */
export interface ErrorEntry {
  /** Its submission queue; {@linkcode NO_COMMAND} for an error of no command. */
  readonly sqid: number;
  /** The command; {@linkcode NO_COMMAND} for an error of none. */
  readonly cid: number;
  /** 15 bits. */
  readonly status: number;
  /** Where in the command the error is: byte in 7:0, bit in 10:8; {@linkcode NO_LOCATION} for no single place. */
  readonly location: number;
  /** The first block that it is about: low and high word. */
  readonly lbaLow: number;
  readonly lbaHigh: number;
  readonly nsid: number;
}

/** What an error is about that no command made (figure 193). */
export const NO_COMMAND = 0xffff;
/** An error that is not about one place in a command. */
export const NO_LOCATION = 0xffff;

/** Where in a command lies what a status is about, in bytes from its start. */
const LOCATIONS: ReadonlyMap<number, number> = new Map([
  [NvmeSc.INVALID_OPCODE, 0],
  [NvmeSc.CMDID_CONFLICT, 2],
  [NvmeSc.INVALID_NS, SQE.NSID * 4],
  [NvmeSc.LBA_RANGE, SQE.CDW10 * 4],
  [NvmeSc.QID_INVALID, SQE.CDW10 * 4],
  [NvmeSc.INVALID_LOG_PAGE, SQE.CDW10 * 4],
  [NvmeSc.QUEUE_SIZE, SQE.CDW10 * 4 + 2],
  [NvmeSc.CQ_INVALID, SQE.CDW11 * 4 + 2],
  [NvmeSc.INVALID_VECTOR, SQE.CDW11 * 4 + 2],
]);

/** Where in a command the error is that a status tells, as {@linkcode ErrorEntry.location} has it. */
export function errorLocation(opcode: number, status: number): number {
  const code = status & STATUS_CODE;
  // Its ranges are in memory, and not in the command.
  if (opcode === NvmeCmd.DSM && code === NvmeSc.LBA_RANGE) return NO_LOCATION;
  return LOCATIONS.get(code) ?? NO_LOCATION;
}

/** By which drivers ask what there is. */
const QUESTIONS: readonly number[] = [
  NvmeAdmin.IDENTIFY,
  NvmeAdmin.GET_FEATURES,
  NvmeAdmin.GET_LOG_PAGE,
];
/** By which they are told that it is not there. */
const REFUSALS: readonly number[] = [
  NvmeSc.INVALID_OPCODE,
  NvmeSc.INVALID_FIELD,
  NvmeSc.INVALID_NS,
  NvmeSc.INVALID_LOG_PAGE,
];

/**
 * Whether an admin command merely found that something optional is not there. That is no error to be looked into: drivers
 * ask at every start, and a log that fills with their questions alarms people (smartd mails each new entry).
 */
export function isUnmetQuestion(opcode: number, status: number): boolean {
  return QUESTIONS.includes(opcode) && REFUSALS.includes(status & STATUS_CODE);
}

/** Log pages as they are saved. */
export interface LogPagesState {
  /** Commands that failed, all of them. */
  readonly errorCount: number;
  /** The last ones, the oldest first. */
  readonly errors: readonly ErrorEntry[];
  /** Namespaces that changed since the page was read. */
  readonly changed: readonly number[];
  /** Whether a loss of power now would be one of those. */
  readonly inUse: boolean;
  readonly powerCycles: number;
  readonly unsafeShutdowns: number;
  /** How long there has been power, in milliseconds. */
  readonly poweredMs: number;
}

/**
 * Checks the state of log pages.
 *
 * @throws {import("../../../src/core/errno.ts").ErrnoError} EINVAL when it cannot be
 */
export function parseLogPagesState(value: unknown): LogPagesState {
  const reader = new StateReader(value, "the log pages");
  const errorCount = reader.integer("errorCount", Number.MAX_SAFE_INTEGER);
  return {
    errorCount,
    errors: reader.list("errors", Math.min(errorCount, ERROR_LOG_ENTRIES))
      .map(parseErrorEntry),
    changed: reader.integers("changed", 0xffff_ffff),
    inUse: reader.flag("inUse"),
    powerCycles: reader.integer("powerCycles", Number.MAX_SAFE_INTEGER),
    unsafeShutdowns: reader.integer("unsafeShutdowns", Number.MAX_SAFE_INTEGER),
    poweredMs: reader.integer("poweredMs", Number.MAX_SAFE_INTEGER),
  };
}

function parseErrorEntry(value: unknown): ErrorEntry {
  const reader = new StateReader(value, "an entry of the error log");
  return {
    sqid: reader.integer("sqid", 0xffff),
    cid: reader.integer("cid", 0xffff),
    status: reader.integer("status", 0x7fff),
    location: reader.integer("location", 0xffff),
    lbaLow: reader.integer("lbaLow", 0xffff_ffff),
    lbaHigh: reader.integer("lbaHigh", 0xffff_ffff),
    nsid: reader.integer("nsid", 0xffff_ffff),
  };
}

/** The log pages of a controller. */
export class LogPages {
  readonly #options: LogPagesOptions;
  /** When the power came, on the loop's clock. */
  #poweredMs: number;
  readonly #errors = new Uint8Array(ERROR_LOG_ENTRIES * ERROR_LOG_ENTRY.SIZE);
  readonly #errorView = new DataView(this.#errors.buffer);
  readonly #changed: number[] = [];
  /** Which entry the next error takes. */
  #nextError = 0;
  #errorCount = 0;
  /** Where errors are numbered when several threads have some. */
  #words: SharedWords | null = null;
  #twins: () => readonly TwinLogs[] = () => [];
  /** Whether the controller was enabled since the driver has last announced a shutdown (CC.SHN). */
  inUse = false;
  /** Times that the power came. */
  #powerCycles = 1;
  /** Times that it went while the controller was in use; a person who pulls the plug. */
  #unsafeShutdowns = 0;

  constructor(options: LogPagesOptions) {
    this.#options = options;
    this.#poweredMs = options.loop.now();
  }

  /** Remembers a command that failed; allocates nothing. */
  addCommandError(sqid: number, command: Command): void {
    const { cid, opcode, status, nsid, lbaLow, lbaHigh } = command;
    const location = errorLocation(opcode, status);
    this.#addError(sqid, cid, status, location, lbaLow, lbaHigh, nsid);
  }

  /** Remembers an error that no command made. */
  addError(status: number): void {
    this.#addError(NO_COMMAND, NO_COMMAND, status, NO_LOCATION, 0, 0, 0);
  }

  #addError(
    sqid: number,
    cid: number,
    status: number,
    location: number,
    lbaLow: number,
    lbaHigh: number,
    nsid: number,
  ): void {
    this.#errorCount = this.#words?.nextError() ?? this.#errorCount + 1;
    const at = this.#nextError * ERROR_LOG_ENTRY.SIZE;
    this.#nextError = (this.#nextError + 1) % ERROR_LOG_ENTRIES;
    const view = this.#errorView;
    setU64(view, at + ERROR_LOG_ENTRY.ERROR_COUNT, this.#errorCount);
    view.setUint16(at + ERROR_LOG_ENTRY.SQID, sqid, true);
    view.setUint16(at + ERROR_LOG_ENTRY.CMDID, cid, true);
    view.setUint16(at + ERROR_LOG_ENTRY.STATUS_FIELD, status << 1, true);
    view.setUint16(at + ERROR_LOG_ENTRY.PARM_ERROR_LOCATION, location, true);
    view.setUint32(at + ERROR_LOG_ENTRY.LBA, lbaLow, true);
    view.setUint32(at + ERROR_LOG_ENTRY.LBA + 4, lbaHigh, true);
    view.setUint32(at + ERROR_LOG_ENTRY.NSID, nsid, true);
  }

  /**
   * Several threads have what pages are made of, from here on.
   *
   * @param twins What the others have now
   */
  spread(words: SharedWords, twins: () => readonly TwinLogs[]): void {
    this.#words = words;
    this.#twins = twins;
  }

  /** What another thread's pages need of this one. */
  share(): TwinLogs {
    const { values } = this.#options.counters;
    return { errors: this.#errors.slice(), counters: [...values] };
  }

  /** The power goes, and comes again with whoever looks next; the SMART log tells whether the driver has announced it. */
  powerLost(): void {
    this.#powerCycles++;
    if (this.inUse) this.#unsafeShutdowns++;
    this.inUse = false;
  }

  /** A namespace changed. */
  addChanged(nsid: number): void {
    if (!this.#changed.includes(nsid)) this.#changed.push(nsid);
  }

  /** A controller reset: pages are kept, what waits to be told is not. */
  reset(): void {
    this.#changed.length = 0;
  }

  /** What the pages are built from, counters apart. */
  save(): LogPagesState {
    const errors = newestEntries([this.#errors]).map((bytes) => {
      const view = viewOf(bytes);
      return {
        sqid: view.getUint16(ERROR_LOG_ENTRY.SQID, true),
        cid: view.getUint16(ERROR_LOG_ENTRY.CMDID, true),
        status: view.getUint16(ERROR_LOG_ENTRY.STATUS_FIELD, true) >>> 1,
        location: view.getUint16(ERROR_LOG_ENTRY.PARM_ERROR_LOCATION, true),
        lbaLow: view.getUint32(ERROR_LOG_ENTRY.LBA, true),
        lbaHigh: view.getUint32(ERROR_LOG_ENTRY.LBA + 4, true),
        nsid: view.getUint32(ERROR_LOG_ENTRY.NSID, true),
      };
    });
    return {
      errorCount: this.#errorCount,
      errors: errors.reverse(),
      changed: [...this.#changed],
      inUse: this.inUse,
      powerCycles: this.#powerCycles,
      unsafeShutdowns: this.#unsafeShutdowns,
      poweredMs: Math.floor(this.#options.loop.now() - this.#poweredMs),
    };
  }

  /** Takes over what other pages were built from. */
  load(state: LogPagesState): void {
    this.#errorCount = state.errorCount - state.errors.length;
    for (const each of state.errors) {
      const { sqid, cid, status, location, lbaLow, lbaHigh, nsid } = each;
      this.#addError(sqid, cid, status, location, lbaLow, lbaHigh, nsid);
    }
    this.#changed.push(...state.changed);
    this.inUse = state.inUse;
    this.#powerCycles = state.powerCycles;
    this.#unsafeShutdowns = state.unsafeShutdowns;
    // The clock of another thread began at another time.
    this.#poweredMs = this.#options.loop.now() - state.poweredMs;
  }

  /** A page was read, and what it told is not to be told again. */
  acknowledge(lid: number): void {
    if (lid === NvmeLog.CHANGED_NS) this.#changed.length = 0;
  }

  /**
   * Builds a page.
   *
   * @returns The page, or null when there is none of that number
   */
  build(lid: number): Uint8Array | null {
    switch (lid) {
      case NvmeLog.ERROR:
        return this.#error();
      case NvmeLog.SMART:
        return this.#smart();
      case NvmeLog.FW_SLOT:
        return this.#firmware();
      case NvmeLog.CHANGED_NS:
        return this.#changedNamespaces();
      case NvmeLog.CMD_EFFECTS:
        return effects();
      default:
        return null;
    }
  }

  /** The newest entry comes first. */
  #error(): Uint8Array {
    const page = new Uint8Array(this.#errors.length);
    const theirs = this.#twins().map(({ errors }) => errors);
    newestEntries([this.#errors, ...theirs]).forEach((entry, i) =>
      page.set(entry, i * ERROR_LOG_ENTRY.SIZE)
    );
    return page;
  }

  #smart(): Uint8Array {
    const { loop, features } = this.#options;
    const values = this.#allCounters();
    const page = new Uint8Array(SMART_LOG.SIZE);
    const view = new DataView(page.buffer);
    if (features.temperatureAlarm) {
      page[SMART_LOG.CRITICAL_WARNING] = SMART_CRIT_TEMPERATURE;
    }
    view.setUint16(SMART_LOG.TEMPERATURE, TEMPERATURE_KELVIN, true);
    page[SMART_LOG.AVAIL_SPARE] = 100;
    page[SMART_LOG.SPARE_THRESH] = 10;
    const units = (bytes: number) => Math.ceil(bytes / DATA_UNIT_BYTES);
    const readBytes = values[NvmeCounter.readBytes]!;
    const writtenBytes = values[NvmeCounter.writtenBytes]!;
    setU64(view, SMART_LOG.DATA_UNITS_READ, units(readBytes));
    setU64(view, SMART_LOG.DATA_UNITS_WRITTEN, units(writtenBytes));
    setU64(view, SMART_LOG.HOST_READS, values[NvmeCounter.reads]!);
    setU64(view, SMART_LOG.HOST_WRITES, values[NvmeCounter.writes]!);
    setU64(view, SMART_LOG.POWER_CYCLES, this.#powerCycles);
    setU64(
      view,
      SMART_LOG.POWER_ON_HOURS,
      Math.floor((loop.now() - this.#poweredMs) / HOUR_MS),
    );
    setU64(view, SMART_LOG.UNSAFE_SHUTDOWNS, this.#unsafeShutdowns);
    setU64(view, SMART_LOG.MEDIA_ERRORS, values[NvmeCounter.mediaErrors]!);
    const errors = this.#words?.errors ?? this.#errorCount;
    setU64(view, SMART_LOG.NUM_ERR_LOG_ENTRIES, errors);
    return page;
  }

  /** The sums over all threads, by {@linkcode NvmeCounter}. */
  #allCounters(): readonly number[] {
    const sums = [...this.#options.counters.values];
    for (const { counters } of this.#twins()) {
      counters.forEach((value, i) => sums[i]! += value);
    }
    return sums;
  }

  #firmware(): Uint8Array {
    const page = new Uint8Array(FW_SLOT_LOG.SIZE);
    page[FW_SLOT_LOG.AFI] = 1;
    page.fill(0x20, FW_SLOT_LOG.FRS1, FW_SLOT_LOG.FRS1 + 8);
    page.set(
      new TextEncoder().encode(this.#options.firmware).subarray(0, 8),
      FW_SLOT_LOG.FRS1,
    );
    return page;
  }

  #changedNamespaces(): Uint8Array {
    const page = new Uint8Array(CHANGED_NS_LOG.SIZE);
    const view = new DataView(page.buffer);
    const changed = this.#changed.toSorted((a, b) => a - b);
    if (changed.length > CHANGED_NS_LOG.ENTRIES) {
      view.setUint32(0, CHANGED_MANY, true);
      return page;
    }
    for (const [i, nsid] of changed.entries()) {
      view.setUint32(i * 4, nsid, true);
    }
    return page;
  }
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
}

/** The entries with the highest numbers, those first, of logs that are each in no order and may have room left. */
function newestEntries(logs: readonly Uint8Array[]): Uint8Array[] {
  const entries: { readonly number: number; readonly bytes: Uint8Array }[] = [];
  for (const log of logs) {
    for (let at = 0; at < log.length; at += ERROR_LOG_ENTRY.SIZE) {
      const bytes = log.subarray(at, at + ERROR_LOG_ENTRY.SIZE);
      const view = viewOf(bytes);
      const number = u64(
        view.getUint32(ERROR_LOG_ENTRY.ERROR_COUNT, true),
        view.getUint32(ERROR_LOG_ENTRY.ERROR_COUNT + 4, true),
      );
      if (number > 0) entries.push({ number, bytes });
    }
  }
  return entries.sort((a, b) => b.number - a.number)
    .slice(0, ERROR_LOG_ENTRIES).map(({ bytes }) => bytes);
}

function effects(): Uint8Array {
  const page = new Uint8Array(EFFECTS_LOG.SIZE);
  const view = new DataView(page.buffer);
  for (const opcode of Object.values(NvmeAdmin)) {
    view.setUint32(EFFECTS_LOG.ACS + opcode * 4, NVME_CMD_EFFECTS_CSUPP, true);
  }
  for (const opcode of Object.values(NvmeCmd)) {
    const bits = CHANGING.includes(opcode) ? NVME_CMD_EFFECTS_LBCC : 0;
    view.setUint32(
      EFFECTS_LOG.IOCS + opcode * 4,
      NVME_CMD_EFFECTS_CSUPP | bits,
      true,
    );
  }
  return page;
}
