/**
 * Log pages (NVM Express 1.4, section 5.14.1): what is remembered for them, and how they are built.
 *
 * @module
 */

import { setU64 } from "../../../src/core/bits.ts";
import type { StateReader } from "../../../src/core/state_reader.ts";
import { NvmeCounter } from "../counters.ts";
import { NvmeAdmin, NvmeCmd, NvmeLog } from "../defs.ts";
import { ERROR_LOG_ENTRIES, parseErrorEntry } from "../io/error_log.ts";
import type { NvmeQueues } from "../io/queues.ts";
import { type Features, TEMPERATURE_KELVIN } from "./features.ts";

/** `struct nvme_error_log_page`, an entry of the error information log (figure 193). */
const ERROR_LOG_ENTRY = {
  ERROR_COUNT: 0,
  SQID: 8,
  CMDID: 10,
  STATUS_FIELD: 12,
  PARM_ERROR_LOCATION: 14,
  LBA: 16,
  NSID: 24,
  SIZE: 64,
} as const;

/** `struct nvme_smart_log` (figure 194); counters are 16 bytes wide. */
const SMART_LOG = {
  CRITICAL_WARNING: 0,
  TEMPERATURE: 1,
  AVAIL_SPARE: 3,
  SPARE_THRESH: 4,
  PERCENT_USED: 5,
  DATA_UNITS_READ: 32,
  DATA_UNITS_WRITTEN: 48,
  HOST_READS: 64,
  HOST_WRITES: 80,
  CTRL_BUSY_TIME: 96,
  POWER_CYCLES: 112,
  POWER_ON_HOURS: 128,
  UNSAFE_SHUTDOWNS: 144,
  MEDIA_ERRORS: 160,
  NUM_ERR_LOG_ENTRIES: 176,
  SIZE: 512,
} as const;

/** `struct nvme_fw_slot_info_log` (figure 195). */
const FW_SLOT_LOG = { AFI: 0, FRS1: 8, SIZE: 512 } as const;

/** Changed Namespace List: namespace ids, or all-ones when there are more. */
const CHANGED_NS_LOG = { ENTRIES: 1024, SIZE: 4096 } as const;

/** Commands Supported and Effects: a word for each opcode (figure 198). */
const EFFECTS_LOG = { ACS: 0, IOCS: 1024, SIZE: 4096 } as const;
/** The command is supported. */
const NVME_CMD_EFFECTS_CSUPP = 1;
/** The command may change what blocks hold. */
const NVME_CMD_EFFECTS_LBCC = 2;

const HOUR_MS = 3_600_000;
/** Data units of the SMART log are thousands of 512 bytes. */
const DATA_UNIT_BYTES = 512_000;
/** Critical warning: the temperature is past a threshold. */
const SMART_CRIT_TEMPERATURE = 1 << 1;
const U32_MAX = 0xffff_ffff;

/** Commands that change the contents of blocks. */
const CHANGING: readonly number[] = [
  NvmeCmd.WRITE,
  NvmeCmd.WRITE_ZEROES,
  NvmeCmd.DSM,
];

/** Sources of {@linkcode LogPages}. */
export interface LogPagesOptions {
  /** Those of the control thread. */
  readonly queues: NvmeQueues;
  readonly features: Features;
  /** Firmware revision. */
  readonly firmware: string;
  /** Brings what other threads have found and counted into those. */
  readonly gather: () => void;
}

/**
 * Checks the state of log pages.
 *
 * @throws {import("../../../src/core/errno.ts").ErrnoError} EINVAL when it cannot be
 */
export function parseLogPagesState(reader: StateReader) {
  const errorCount = reader.integer("errorCount", U32_MAX);
  const kept = Math.min(errorCount, ERROR_LOG_ENTRIES);
  return {
    /** Number of errors so far. */
    errorCount,
    /** The last of them, the newest first. */
    errors: reader.parts("errors", parseErrorEntry, kept),
    /** Namespaces that changed since the page was read. */
    changed: reader.integers("changed", U32_MAX),
    /** True while a loss of power would count as an unsafe shutdown. */
    inUse: reader.flag("inUse"),
    powerCycles: reader.integer("powerCycles", Number.MAX_SAFE_INTEGER),
    unsafeShutdowns: reader.integer("unsafeShutdowns", Number.MAX_SAFE_INTEGER),
    /** Time since power-on, in milliseconds. */
    poweredMs: reader.integer("poweredMs", Number.MAX_SAFE_INTEGER),
  };
}

/** Log pages as they are saved. */
export type LogPagesState = ReturnType<typeof parseLogPagesState>;

/** The log pages of a controller. */
export class LogPages {
  readonly #options: LogPagesOptions;
  /** Time of power-on, on the loop's clock. */
  #poweredMs: number;
  readonly #changed: number[] = [];
  /** True from when the controller is enabled until the driver announces a shutdown (CC.SHN). */
  inUse = false;
  /** Times that the power came. */
  #powerCycles = 1;
  /** Times that it went while the controller was in use; a person who pulls the plug. */
  #unsafeShutdowns = 0;

  constructor(options: LogPagesOptions) {
    this.#options = options;
    this.#poweredMs = options.queues.parts.context.loop.now();
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

  /** Contents of the pages, counters apart. */
  save(): LogPagesState {
    const { parts: { context: { loop }, words }, errors } =
      this.#options.queues;
    return {
      errorCount: words.errors,
      errors: errors.newest(),
      changed: [...this.#changed],
      inUse: this.inUse,
      powerCycles: this.#powerCycles,
      unsafeShutdowns: this.#unsafeShutdowns,
      poweredMs: Math.floor(loop.now() - this.#poweredMs),
    };
  }

  /** Takes over what other pages were built from. */
  load(state: LogPagesState): void {
    const { parts: { context: { loop }, words }, errors } =
      this.#options.queues;
    words.errors = state.errorCount;
    errors.merge(state.errors);
    this.#changed.push(...state.changed);
    this.inUse = state.inUse;
    this.#powerCycles = state.powerCycles;
    this.#unsafeShutdowns = state.unsafeShutdowns;
    // The clock of another thread began at another time.
    this.#poweredMs = loop.now() - state.poweredMs;
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

  #error(): Uint8Array {
    this.#options.gather();
    const page = new Uint8Array(ERROR_LOG_ENTRIES * ERROR_LOG_ENTRY.SIZE);
    this.#options.queues.errors.newest().forEach((entry, i) => {
      const at = i * ERROR_LOG_ENTRY.SIZE;
      const view = new DataView(page.buffer, at, ERROR_LOG_ENTRY.SIZE);
      setU64(view, ERROR_LOG_ENTRY.ERROR_COUNT, entry.number);
      view.setUint16(ERROR_LOG_ENTRY.SQID, entry.sqid, true);
      view.setUint16(ERROR_LOG_ENTRY.CMDID, entry.cid, true);
      view.setUint16(ERROR_LOG_ENTRY.STATUS_FIELD, entry.status << 1, true);
      view.setUint16(ERROR_LOG_ENTRY.PARM_ERROR_LOCATION, entry.location, true);
      view.setUint32(ERROR_LOG_ENTRY.LBA, entry.lbaLow, true);
      view.setUint32(ERROR_LOG_ENTRY.LBA + 4, entry.lbaHigh, true);
      view.setUint32(ERROR_LOG_ENTRY.NSID, entry.nsid, true);
    });
    return page;
  }

  #smart(): Uint8Array {
    const { queues, features } = this.#options;
    const { context: { loop }, words } = queues.parts;
    const { values } = queues.counters;
    this.#options.gather();
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
    setU64(view, SMART_LOG.NUM_ERR_LOG_ENTRIES, words.errors);
    return page;
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
      view.setUint32(0, U32_MAX, true);
      return page;
    }
    for (const [i, nsid] of changed.entries()) {
      view.setUint32(i * 4, nsid, true);
    }
    return page;
  }
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
