/**
 * Features (NVM Express 1.4, section 5.21).
 *
 * @module
 */

import { bit, field } from "../../../src/core/bits.ts";
import type { StateReader } from "../../../src/core/state_reader.ts";
import {
  NVME_AEN_BIT_NS_ATTR,
  NVME_AEN_CFG_TEMPERATURE,
  NVME_NSID_ALL,
  NvmeFeat,
  NvmeSc,
  SQE,
} from "../defs.ts";
import {
  type Namespace,
  type NamespaceSet,
  NSID_MAX,
} from "../io/namespace.ts";

/** The temperature, which is nothing to worry about, in kelvins. */
export const TEMPERATURE_KELVIN = 308;

/** Select field of Get Features. */
const Select = { CURRENT: 0, DEFAULT: 1, SAVED: 2, SUPPORTED: 3 } as const;

/** Get Features with Select 3: the feature can be changed; each namespace has a value of its own. */
const CHANGEABLE = 1 << 2;
const NAMESPACE_SPECIFIC = 1 << 1;
/** Error recovery: errors for blocks that are deallocated, which no namespace offers (NSFEAT). */
const DULBE_BIT = 16;
/** Bytes of `struct nvme_feat_host_behavior`, the data of Host Behavior Support. */
export const HOST_BEHAVIOR_BYTES = 512;
/** Its first byte: the driver knows what Command Retry Delay is. Everything else is reserved. */
const HOST_BEHAVIOR_ACRE = 0;
/** Set Features, cdw10: save. */
const SAVE_BIT = 31;
/** Arbitration burst that means no limit. */
const AB_UNLIMITED = 7;
const ARBITRATION_DEFAULT = 3;
const TEMPERATURE_OVER_DEFAULT = 343;
/** Temperature threshold: sensor "all". */
const TMPSEL_ALL = 0xf;
/** Queue count that is not allowed (section 5.21.1.7). */
const QUEUES_INVALID = 0xffff;
/** Vector configuration: no coalescing, which the admin vector starts with. */
const COALESCING_DISABLED = 1 << 16;
const COALESCING_DISABLED_BIT = 16;
/** Interrupt coalescing: the unit of the aggregation time, in milliseconds. */
const AGGREGATION_TIME_MS = 0.1;
const U32_MAX = 0xffff_ffff;

/** Values that are one word and merely kept, by the names of {@linkcode NvmeFeat}, as they are at first. */
const PLAIN = {
  ARBITRATION: ARBITRATION_DEFAULT,
  IRQ_COALESCE: 0,
  WRITE_ATOMIC: 0,
  ASYNC_EVENT: 0,
} as const;

type PlainName = keyof typeof PLAIN;
const PLAIN_NAMES = Object.keys(PLAIN) as PlainName[];

/**
 * Checks the state of features.
 *
 * @param vectors Interrupt vectors
 * @throws {import("../../../src/core/errno.ts").ErrnoError} EINVAL when it cannot be
 */
export function parseFeaturesState(reader: StateReader, vectors: number) {
  const values = reader.part("values");
  return {
    values: Object.fromEntries(
      PLAIN_NAMES.map((name) => [name, values.integer(name, U32_MAX)]),
    ) as Record<PlainName, number>,
    /** Interrupt vector configuration, by vector. */
    vectors: [...reader.integers("vectors", 0x1_ffff, vectors)],
    /** By namespace id. */
    errorRecovery: [
      ...reader.integers("errorRecovery", U32_MAX, NSID_MAX + 1),
    ],
    writeCache: reader.flag("writeCache"),
    /** Host Behavior Support: advanced command retry. */
    commandRetry: reader.flag("commandRetry"),
    /** Thresholds in kelvins. */
    temperatureOver: reader.integer("temperatureOver", 0xffff),
    temperatureUnder: reader.integer("temperatureUnder", 0xffff),
  };
}

/** Choices of the driver, also as they are saved. */
export type FeaturesState = ReturnType<typeof parseFeaturesState>;

/** Features as they concern whoever serves queues. Plain data. */
export interface QueueFeatures {
  /** Commands that are fetched from a queue before it is the next one's turn. */
  readonly burst: number;
  /**
   * Interrupt coalescing: how many completions of a vector are told at once; 0 when it is off. Threshold (0's based) and
   * time must both be given (section 5.21.1.8).
   */
  readonly coalescedEntries: number;
  /** Interrupt coalescing: how long a completion may wait to be told, in milliseconds. */
  readonly coalescingMs: number;
  /** By vector: whether completions may wait for others. */
  readonly coalesces: readonly boolean[];
  /** True while completed writes may wait for a Flush. */
  readonly writeCache: boolean;
}

/** The features of a controller. */
export class Features {
  readonly #namespaces: NamespaceSet;
  readonly #hasIoQueues: () => boolean;
  readonly #queues: number;
  /** As it is at first. */
  readonly #initial: FeaturesState;
  #state: FeaturesState;
  /** Result of the last {@linkcode Features.get} or {@linkcode Features.set}. */
  dw0 = 0;

  /** @param hasIoQueues Tells that I/O queues exist @param queues I/O queue pairs @param vectors Interrupt vectors */
  constructor(
    namespaces: NamespaceSet,
    hasIoQueues: () => boolean,
    queues: number,
    vectors: number,
  ) {
    this.#namespaces = namespaces;
    this.#hasIoQueues = hasIoQueues;
    this.#queues = queues;
    this.#initial = {
      values: { ...PLAIN },
      vectors: Array.from(
        { length: vectors },
        (_, i) => i === 0 ? COALESCING_DISABLED : i,
      ),
      errorRecovery: new Array(NSID_MAX + 1).fill(0),
      writeCache: true,
      commandRetry: false,
      temperatureOver: TEMPERATURE_OVER_DEFAULT,
      temperatureUnder: 0,
    };
    this.#state = structuredClone(this.#initial);
  }

  /** Returns what concerns whoever serves queues. */
  forQueues(): QueueFeatures {
    const { values, vectors, writeCache } = this.#state;
    const ab = values.ARBITRATION & 7;
    const coalescing = values.IRQ_COALESCE;
    const threshold = field(coalescing, 7, 0);
    const time = field(coalescing, 15, 8);
    return {
      burst: ab === AB_UNLIMITED ? Infinity : 1 << ab,
      coalescedEntries: threshold === 0 || time === 0 ? 0 : threshold + 1,
      coalescingMs: time * AGGREGATION_TIME_MS,
      coalesces: vectors.map((config) => !bit(config, COALESCING_DISABLED_BIT)),
      writeCache,
    };
  }

  /** True while completed writes may wait for a Flush. */
  get writeCache(): boolean {
    return this.#state.writeCache;
  }

  /** True when the driver wants to know that namespaces change. */
  get namespaceNotices(): boolean {
    return bit(this.#state.values.ASYNC_EVENT, NVME_AEN_BIT_NS_ATTR);
  }

  /** True when the driver wants to know of temperatures. */
  get temperatureNotices(): boolean {
    return bit(this.#state.values.ASYNC_EVENT, NVME_AEN_CFG_TEMPERATURE);
  }

  /** True while the temperature is past a threshold. */
  get temperatureAlarm(): boolean {
    const { temperatureOver, temperatureUnder } = this.#state;
    return TEMPERATURE_KELVIN >= temperatureOver ||
      TEMPERATURE_KELVIN <= temperatureUnder;
  }

  /** A controller reset: nothing is saved, so everything is as at first. */
  reset(): void {
    this.load(this.#initial);
  }

  /** Get Features. @returns A status; the value is {@linkcode Features.dw0} */
  get(sqe: Uint32Array): number {
    const cdw10 = sqe[SQE.CDW10]!;
    const fid = cdw10 & 0xff;
    const select = field(cdw10, 10, 8);
    if (select > Select.SUPPORTED) return NvmeSc.INVALID_FIELD;
    const isRecovery = fid === NvmeFeat.ERR_RECOVERY;
    const nsid = sqe[SQE.NSID]!;
    if (isRecovery && this.#named(nsid) === null) return this.#missing(nsid);
    const state = select === Select.CURRENT ? this.#state : this.#initial;
    const value = this.#valueIn(state, fid, sqe[SQE.CDW11]!, nsid);
    if (value === null) return NvmeSc.INVALID_FIELD;
    if (select !== Select.SUPPORTED) this.dw0 = value;
    else if (isRecovery) this.dw0 = CHANGEABLE | NAMESPACE_SPECIFIC;
    else this.dw0 = fid === NvmeFeat.KATO ? 0 : CHANGEABLE;
    return NvmeSc.SUCCESS;
  }

  /**
   * The data that goes with {@linkcode Features.get}: of Host Behavior Support, and null of what is told in the completion
   * alone.
   */
  dataOf(sqe: Uint32Array): Uint8Array | null {
    const cdw10 = sqe[SQE.CDW10]!;
    const select = field(cdw10, 10, 8);
    if ((cdw10 & 0xff) !== NvmeFeat.HOST_BEHAVIOR) return null;
    if (select === Select.SUPPORTED) return null;
    const bytes = new Uint8Array(HOST_BEHAVIOR_BYTES);
    const on = select === Select.CURRENT && this.#state.commandRetry;
    bytes[HOST_BEHAVIOR_ACRE] = on ? 1 : 0;
    return bytes;
  }

  /** Set Features of Host Behavior Support, after {@linkcode Features.set}. @returns A status */
  setHostBehavior(bytes: Uint8Array): number {
    const acre = bytes[HOST_BEHAVIOR_ACRE]!;
    if (acre > 1) return NvmeSc.INVALID_FIELD;
    this.#state.commandRetry = acre === 1;
    return NvmeSc.SUCCESS;
  }

  /** Set Features. @returns A status; the result is {@linkcode Features.dw0} */
  set(sqe: Uint32Array): number {
    const cdw10 = sqe[SQE.CDW10]!;
    const cdw11 = sqe[SQE.CDW11]!;
    const nsid = sqe[SQE.NSID]!;
    const fid = cdw10 & 0xff;
    this.dw0 = 0;
    if (this.#valueIn(this.#state, fid, cdw11, 0) === null) {
      return NvmeSc.INVALID_FIELD;
    }
    if (bit(cdw10, SAVE_BIT)) return NvmeSc.FEATURE_NOT_SAVEABLE;
    if (fid === NvmeFeat.ERR_RECOVERY) {
      return this.#setErrorRecovery(nsid, cdw11);
    }
    if (nsid !== 0 && nsid !== NVME_NSID_ALL) return NvmeSc.FEATURE_NOT_PER_NS;
    switch (fid) {
      case NvmeFeat.POWER_MGMT:
        // There is one power state, 0.
        return field(cdw11, 4, 0) === 0 ? NvmeSc.SUCCESS : NvmeSc.INVALID_FIELD;
      case NvmeFeat.TEMP_THRESH: {
        const kelvin = cdw11 & 0xffff;
        if (isOverThreshold(cdw11)) this.#state.temperatureOver = kelvin;
        else this.#state.temperatureUnder = kelvin;
        return NvmeSc.SUCCESS;
      }
      case NvmeFeat.VOLATILE_WC: {
        const on = bit(cdw11, 0);
        if (!this.#namespaces.setWriteCache(on)) {
          return NvmeSc.FEATURE_NOT_CHANGEABLE;
        }
        this.#state.writeCache = on;
        return NvmeSc.SUCCESS;
      }
      case NvmeFeat.NUM_QUEUES:
        return this.#setQueues(cdw11);
      case NvmeFeat.KATO:
        // There is no Keep Alive (KAS), so the timer is off for good.
        return cdw11 === 0 ? NvmeSc.SUCCESS : NvmeSc.FEATURE_NOT_CHANGEABLE;
      case NvmeFeat.HOST_BEHAVIOR:
        // Its value is data: see setHostBehavior.
        return NvmeSc.SUCCESS;
      case NvmeFeat.IRQ_CONFIG:
        this.#state.vectors[cdw11 & 0xffff] = cdw11 & 0x1_ffff;
        return NvmeSc.SUCCESS;
      default:
        this.#state.values[plainName(fid)!] = cdw11;
        return NvmeSc.SUCCESS;
    }
  }

  /** Choices of the driver. */
  save(): FeaturesState {
    return structuredClone(this.#state);
  }

  /** Takes over what a driver has chosen. */
  load(state: FeaturesState): void {
    this.#state = structuredClone(state);
    this.#namespaces.setWriteCache(state.writeCache);
  }

  /** The value of a feature in a state, or null for a feature or a part of one that there is not. */
  #valueIn(
    state: FeaturesState,
    fid: number,
    cdw11: number,
    nsid: number,
  ): number | null {
    switch (fid) {
      case NvmeFeat.POWER_MGMT:
      case NvmeFeat.KATO:
      case NvmeFeat.HOST_BEHAVIOR:
        return 0;
      case NvmeFeat.ERR_RECOVERY:
        return state.errorRecovery[this.#named(nsid)?.[0]?.nsid ?? 0]!;
      case NvmeFeat.TEMP_THRESH: {
        const sensor = field(cdw11, 19, 16);
        if (sensor !== 0 && sensor !== TMPSEL_ALL) return null;
        if (field(cdw11, 21, 20) > 1) return null;
        const { temperatureOver, temperatureUnder } = state;
        return isOverThreshold(cdw11) ? temperatureOver : temperatureUnder;
      }
      case NvmeFeat.VOLATILE_WC:
        if (!this.#namespaces.volatileCache) return null;
        return state.writeCache ? 1 : 0;
      case NvmeFeat.NUM_QUEUES:
        return this.#queueCounts();
      case NvmeFeat.IRQ_CONFIG:
        return state.vectors[cdw11 & 0xffff] ?? null;
      default: {
        const name = plainName(fid);
        return name === undefined ? null : state.values[name];
      }
    }
  }

  /** Error recovery is each namespace's; without one it is that of the first. */
  #setErrorRecovery(nsid: number, cdw11: number): number {
    if (bit(cdw11, DULBE_BIT)) return NvmeSc.INVALID_FIELD;
    const named = this.#named(nsid);
    if (named === null) return this.#missing(nsid);
    for (const { nsid } of named) this.#state.errorRecovery[nsid] = cdw11;
    return NvmeSc.SUCCESS;
  }

  /** The namespaces that a number names: one, or all; null when it names one that there is not. */
  #named(nsid: number): readonly Namespace[] | null {
    if (nsid === 0 || nsid === NVME_NSID_ALL) return this.#namespaces.all;
    const ns = this.#namespaces.get(nsid);
    return ns === null ? null : [ns];
  }

  #missing(nsid: number): number {
    return this.#namespaces.isValid(nsid)
      ? NvmeSc.INVALID_FIELD
      : NvmeSc.INVALID_NS;
  }

  /** The driver asks for so many queues, and is told how many it gets: all there are, whatever it asked for. */
  #setQueues(cdw11: number): number {
    if (this.#hasIoQueues()) return NvmeSc.CMD_SEQ_ERROR;
    if ((cdw11 & 0xffff) === QUEUES_INVALID) return NvmeSc.INVALID_FIELD;
    if (cdw11 >>> 16 === QUEUES_INVALID) return NvmeSc.INVALID_FIELD;
    this.dw0 = this.#queueCounts();
    return NvmeSc.SUCCESS;
  }

  #queueCounts(): number {
    return (this.#queues - 1) | (this.#queues - 1) << 16;
  }
}

function plainName(fid: number): PlainName | undefined {
  return PLAIN_NAMES.find((name) => NvmeFeat[name] === fid);
}

/** THSEL of a temperature threshold, the other being under it. */
function isOverThreshold(cdw11: number): boolean {
  return field(cdw11, 21, 20) === 0;
}
