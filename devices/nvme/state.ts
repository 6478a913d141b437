/**
 * State of a controller.
 *
 * @module
 */

import { bit, field } from "../../src/core/bits.ts";
import { type DeviceState, StateForm } from "../../src/core/state_form.ts";
import type { BlockOptions } from "../../src/backend/block/options.ts";
import type { StateReader } from "../../src/core/state_reader.ts";
import { type CounterRecord, parseCounters } from "../../src/core/counters.ts";
import { NVME_COUNTERS } from "./counters.ts";
import { NVME_CC, NVME_CSTS, NVME_MPS_MAX } from "./defs.ts";
import { type DoorbellsState, parseDoorbellsState } from "./queue/doorbells.ts";
import { type EventsState, parseEventsState } from "./admin/events.ts";
import { type FeaturesState, parseFeaturesState } from "./admin/features.ts";
import { type LogPagesState, parseLogPagesState } from "./admin/log_pages.ts";
import {
  parseQueueSetState,
  type QueueLimits,
  type QueueSetState,
} from "./queue/queue.ts";
import { parseRegistersState, type RegistersState } from "./registers.ts";

/** A namespace as the driver knows it. */
export interface NamespaceState {
  readonly nsid: number;
  /** Bytes of a logical block, as a power of two. */
  readonly lbaShift: number;
  /** Logical blocks. */
  readonly blocks: number;
  /** What its storage was opened with; null for a storage that somebody else opened. */
  readonly block: BlockOptions | null;
  /** What its storage has saved; null for storage that stays where it is. */
  readonly backend: DeviceState | null;
}

/** Everything that a driver could tell a controller by; no command is in flight but those that wait for an event. */
export interface NvmeState {
  /** Serial number, and qualified name of the subsystem; those of the namespaces follow from the first. */
  readonly serial: string;
  readonly subnqn: string;
  /** True while commands are fetched: ready, and no reset asked for. */
  readonly running: boolean;
  /** True from when CC.EN was cleared until the controller is reset. */
  readonly resetAsked: boolean;
  readonly registers: RegistersState;
  readonly queues: QueueSetState;
  readonly doorbells: DoorbellsState;
  readonly features: FeaturesState;
  readonly events: EventsState;
  readonly logs: LogPagesState;
  readonly counters: CounterRecord<typeof NVME_COUNTERS>;
  readonly namespaces: readonly NamespaceState[];
}

/** Form of {@linkcode NvmeState}. */
export const NVME_FORM: StateForm<NvmeState> = new StateForm(
  "nvme",
  "the NVMe controller",
);

/** Limits of the controller that a state is loaded into. */
export interface NvmeStateLimits extends QueueLimits {
  /** True when clients map its doorbells. */
  readonly mapDoorbells: boolean;
  /** Its namespaces, in order. */
  readonly namespaces: readonly {
    readonly nsid: number;
    readonly lbaShift: number;
  }[];
}

/**
 * Checks a saved state, all of it.
 *
 * @throws {import("../../src/core/errno.ts").ErrnoError} EINVAL when it is none of such a controller
 */
export function parseNvmeState(
  value: unknown,
  limits: NvmeStateLimits,
): NvmeState {
  const reader = NVME_FORM.read(value);
  const pairs = limits.pairs + 1;
  const state: NvmeState = {
    serial: reader.text("serial"),
    subnqn: reader.text("subnqn"),
    running: reader.flag("running"),
    resetAsked: reader.flag("resetAsked"),
    registers: parseRegistersState(reader.value("registers")),
    queues: parseQueueSetState(reader.value("queues"), limits),
    doorbells: parseDoorbellsState(
      reader.value("doorbells"),
      pairs * 2,
      limits.mapDoorbells,
    ),
    features: parseFeaturesState(reader.value("features"), limits.vectors),
    events: parseEventsState(reader.value("events")),
    logs: parseLogPagesState(reader.value("logs")),
    counters: parseCounters(NVME_COUNTERS, reader.value("counters")),
    namespaces: checkNamespaces(reader, limits),
  };
  checkTogether(reader, state);
  return state;
}

/** The namespaces of a state, which are not compared with anything. */
export function parseNamespaces(
  reader: StateReader,
): readonly NamespaceState[] {
  return reader.parts("namespaces", (one) => ({
    nsid: one.integer("nsid", 0xffff_ffff),
    lbaShift: one.integer("lbaShift", 31),
    blocks: one.integer("blocks", Number.MAX_SAFE_INTEGER),
    block: one.value("block") as BlockOptions | null,
    backend: one.value("backend") as DeviceState | null,
  }));
}

function checkNamespaces(
  reader: StateReader,
  limits: NvmeStateLimits,
): readonly NamespaceState[] {
  const list = parseNamespaces(reader);
  const describe = (all: NvmeStateLimits["namespaces"]) =>
    all.map(({ nsid, lbaShift }) => `${nsid} in blocks of ${1 << lbaShift}`)
      .join(", ");
  const its = describe(list);
  const ours = describe(limits.namespaces);
  if (its === ours) return list;
  throw reader.refused(
    `its state has namespaces ${its}, and this one ${ours}`,
  );
}

/** Refuses what each part could be but not all of them together. */
function checkTogether(reader: StateReader, state: NvmeState): void {
  const { cc, csts } = state.registers;
  const { completion, submission } = state.queues;
  const hasAdmin = completion.some(({ qid }) => qid === 0) &&
    submission.some(({ qid, cqid }) => qid === 0 && cqid === 0);
  const ready = bit(cc, NVME_CC.EN) && bit(csts, NVME_CSTS.RDY) &&
    field(cc, ...NVME_CC.MPS) <= NVME_MPS_MAX;
  if (state.running && (!ready || !hasAdmin)) {
    throw reader.refused("its state is running without being ready");
  }
  if (state.events.held.length > 0 && !hasAdmin) {
    throw reader.refused("its state has commands of no queue");
  }
}
