/**
 * State of a controller.
 *
 * @module
 */

import { bit, field } from "../../src/core/bits.ts";
import { type DeviceState, StateForm } from "../../src/core/state_form.ts";
import { parseBlockOptions } from "../../src/backend/block/options.ts";
import type { StateReader } from "../../src/core/state_reader.ts";
import { parseCounters } from "../../src/core/counters.ts";
import { NVME_COUNTERS } from "./counters.ts";
import { NVME_CC, NVME_CSTS, NVME_MPS_MAX } from "./defs.ts";
import { parseDoorbellsState } from "./queue/doorbells.ts";
import { type EventsState, parseEventsState } from "./admin/events.ts";
import { parseFeaturesState } from "./admin/features.ts";
import { parseLogPagesState } from "./admin/log_pages.ts";
import {
  parseQueueSetState,
  type QueueLimits,
  type QueueSetState,
} from "./queue/queue.ts";
import { parseRegistersState, type RegistersState } from "./registers.ts";

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
 * Checks a saved state, all of it. No command is in flight but those that wait for an event.
 *
 * @throws {import("../../src/core/errno.ts").ErrnoError} EINVAL when it is none of such a controller
 */
export function parseNvmeState(reader: StateReader, limits: NvmeStateLimits) {
  const state = {
    /** Serial number, and qualified name of the subsystem; those of the namespaces follow from the first. */
    serial: reader.text("serial"),
    subnqn: reader.text("subnqn"),
    /** True while commands are fetched: ready, and no reset asked for. */
    running: reader.flag("running"),
    /** True from when CC.EN was cleared until the controller is reset. */
    resetAsked: reader.flag("resetAsked"),
    registers: parseRegistersState(reader.part("registers")),
    queues: parseQueueSetState(reader.part("queues"), limits),
    doorbells: parseDoorbellsState(
      reader.part("doorbells"),
      (limits.pairs + 1) * 2,
      limits.mapDoorbells,
    ),
    features: parseFeaturesState(reader.part("features"), limits.vectors),
    events: parseEventsState(reader.part("events")),
    logs: parseLogPagesState(reader.part("logs")),
    counters: parseCounters(NVME_COUNTERS, reader.value("counters")),
    namespaces: checkNamespaces(reader, limits),
  };
  checkTogether(reader, state);
  return state;
}

/** Everything that a driver could tell a controller by. */
export type NvmeState = ReturnType<typeof parseNvmeState>;

/** Form of {@linkcode NvmeState}. */
export const NVME_FORM: StateForm<NvmeState> = new StateForm(
  "nvme",
  "the NVMe controller",
);

/** The namespaces of a state, which are not compared with anything. */
export function parseNamespaces(reader: StateReader) {
  return reader.parts("namespaces", (one) => ({
    nsid: one.integer("nsid", 0xffff_ffff),
    /** Bytes of a logical block, as a power of two. */
    lbaShift: one.integer("lbaShift", 31),
    /** Logical blocks, as the driver knows them. */
    blocks: one.integer("blocks", Number.MAX_SAFE_INTEGER),
    /** Options that its storage was opened with; null for storage that somebody else opened. */
    block: one.partOrNull("block", parseBlockOptions),
    /** State of its storage; null for storage that stays where it is. */
    backend: one.value("backend") as DeviceState | null,
  }));
}

function checkNamespaces(reader: StateReader, limits: NvmeStateLimits) {
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
function checkTogether(
  reader: StateReader,
  { running, registers: { cc, csts }, queues, events }: {
    readonly running: boolean;
    readonly registers: RegistersState;
    readonly queues: QueueSetState;
    readonly events: EventsState;
  },
): void {
  const { completion, submission } = queues;
  const hasAdmin = completion.some(({ qid }) => qid === 0) &&
    submission.some(({ qid, cqid }) => qid === 0 && cqid === 0);
  const ready = bit(cc, NVME_CC.EN) && bit(csts, NVME_CSTS.RDY) &&
    field(cc, ...NVME_CC.MPS) <= NVME_MPS_MAX;
  if (running && (!ready || !hasAdmin)) {
    throw reader.refused("its state is running without being ready");
  }
  if (events.held.length > 0 && !hasAdmin) {
    throw reader.refused("its state has commands of no queue");
  }
}
