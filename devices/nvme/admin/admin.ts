/**
 * Admin commands (NVM Express 1.4, section 5).
 *
 * @module
 */

import { bit, field, u64 } from "../../../src/core/bits.ts";
import { Access } from "../../../src/memory/guest_memory.ts";
import type { Command } from "../command/engine.ts";
import {
  NVME_NSID_ALL,
  NvmeAdmin,
  NvmeFeat,
  NvmeLog,
  NvmeSc,
  SQE,
} from "../defs.ts";
import type { NvmeQueues } from "../io/queues.ts";
import type { QueueTable } from "./queue_table.ts";
import { type AsyncEvents, NvmeEvent } from "./events.ts";
import { type Features, HOST_BEHAVIOR_BYTES } from "./features.ts";
import { type Identify, IDENTIFY_BYTES } from "./identify.ts";
import type { LogPages } from "./log_pages.ts";

/** Get Log Page, cdw10: retain asynchronous event. */
const RAE_BIT = 15;

/** Parts of {@linkcode AdminCommands}. */
export interface AdminOptions {
  /** Those of the control thread. */
  readonly queues: NvmeQueues;
  readonly table: QueueTable;
  readonly identify: Identify;
  readonly features: Features;
  readonly logs: LogPages;
  readonly events: AsyncEvents;
  /** Features have changed. */
  readonly onFeatures: () => void;
}

/** Executes admin commands. */
export class AdminCommands {
  readonly #options: AdminOptions;

  constructor(options: AdminOptions) {
    this.#options = options;
  }

  /** @returns A status, or IN_FLIGHT when the command is completed later */
  start(command: Command, sqe: Uint32Array): number {
    const { table, events } = this.#options;
    command.opcode = sqe[SQE.CDW0]! & 0xff;
    // No fused admin commands, and PRPs only.
    const wellFormed = field(sqe[SQE.CDW0]!, 9, 8) === 0 &&
      field(sqe[SQE.CDW0]!, 15, 14) === 0;
    if (!wellFormed) return NvmeSc.INVALID_FIELD;
    switch (command.opcode) {
      case NvmeAdmin.DELETE_SQ:
        return table.deleteSq(command, sqe);
      case NvmeAdmin.CREATE_SQ:
        return table.createSq(sqe);
      case NvmeAdmin.DELETE_CQ:
        return table.deleteCq(sqe);
      case NvmeAdmin.CREATE_CQ:
        return table.createCq(sqe);
      case NvmeAdmin.GET_LOG_PAGE:
        return this.#getLogPage(command, sqe);
      case NvmeAdmin.IDENTIFY:
        return this.#identify(command, sqe);
      case NvmeAdmin.ABORT_CMD:
        return this.#abort(command, sqe);
      case NvmeAdmin.SET_FEATURES:
        return this.#setFeatures(command, sqe);
      case NvmeAdmin.GET_FEATURES:
        return this.#getFeatures(command, sqe);
      case NvmeAdmin.ASYNC_EVENT:
        return events.hold(command);
      case NvmeAdmin.DBBUF:
        return this.#doorbellBufferConfig(sqe);
      default:
        return NvmeSc.INVALID_OPCODE;
    }
  }

  #identify(command: Command, sqe: Uint32Array): number {
    const { identify } = this.#options;
    const status = identify.build(sqe);
    return status === NvmeSc.SUCCESS
      ? this.#send(command, sqe, identify.bytes, IDENTIFY_BYTES)
      : status;
  }

  #getLogPage(command: Command, sqe: Uint32Array): number {
    const { logs, events, queues: { parts } } = this.#options;
    const cdw10 = sqe[SQE.CDW10]!;
    const lid = cdw10 & 0xff;
    const nsid = sqe[SQE.NSID]!;
    const dwords = (cdw10 >>> 16) + (sqe[SQE.CDW11]! & 0xffff) * 0x1_0000 + 1;
    const offset = u64(sqe[SQE.CDW12]!, sqe[SQE.CDW13]!);
    if (dwords * 4 > parts.maxTransferBytes) return NvmeSc.INVALID_FIELD;
    // Whole words only (figure 190).
    if (offset % 4 !== 0) return NvmeSc.INVALID_FIELD;
    // No page is about one namespace.
    if (lid === NvmeLog.SMART && nsid !== 0 && nsid !== NVME_NSID_ALL) {
      return NvmeSc.INVALID_FIELD;
    }
    const page = logs.build(lid);
    if (page === null) return NvmeSc.INVALID_LOG_PAGE;
    if (offset > page.length) return NvmeSc.INVALID_FIELD;
    const part = page.subarray(offset, offset + dwords * 4);
    const status = part.length === 0
      ? NvmeSc.SUCCESS
      : this.#send(command, sqe, part, part.length);
    // Only when the command succeeds (figure 190): a driver may read a page in parts, and all but the last retain.
    if (status === NvmeSc.SUCCESS && !bit(cdw10, RAE_BIT)) {
      logs.acknowledge(lid);
      events.acknowledge(lid);
    }
    return status;
  }

  #getFeatures(command: Command, sqe: Uint32Array): number {
    const { features } = this.#options;
    const status = features.get(sqe);
    command.dw0 = features.dw0;
    const data = status === NvmeSc.SUCCESS ? features.dataOf(sqe) : null;
    return data === null ? status : this.#send(command, sqe, data, data.length);
  }

  #setFeatures(command: Command, sqe: Uint32Array): number {
    const { features, events } = this.#options;
    const fid = sqe[SQE.CDW10]! & 0xff;
    let status = features.set(sqe);
    if (status === NvmeSc.SUCCESS && fid === NvmeFeat.HOST_BEHAVIOR) {
      status = this.#setHostBehavior(command, sqe);
    }
    command.dw0 = features.dw0;
    if (status === NvmeSc.SUCCESS) this.#options.onFeatures();
    const mayAlarm = fid === NvmeFeat.TEMP_THRESH ||
      fid === NvmeFeat.ASYNC_EVENT;
    if (
      status === NvmeSc.SUCCESS && mayAlarm && features.temperatureAlarm &&
      features.temperatureNotices
    ) events.raise(NvmeEvent.TEMPERATURE);
    return status;
  }

  #setHostBehavior(command: Command, sqe: Uint32Array): number {
    const { queues: { data, parts }, features } = this.#options;
    const list = command.request.buffers;
    const bytes = new Uint8Array(HOST_BEHAVIOR_BYTES);
    const status = data.map(sqe, bytes.length, Access.READ, list);
    if (status !== NvmeSc.SUCCESS) return status;
    const { memory } = parts.context;
    return memory.gather(list, bytes, bytes.length) < bytes.length
      ? NvmeSc.DATA_XFER_ERROR
      : features.setHostBehavior(bytes);
  }

  /** Bit 0 of the result tells that nothing was aborted. */
  #abort(command: Command, sqe: Uint32Array): number {
    const sqid = sqe[SQE.CDW10]! & 0xffff;
    const cid = sqe[SQE.CDW10]! >>> 16;
    command.dw0 = this.#options.table.abort(sqid, cid) ? 0 : 1;
    return NvmeSc.SUCCESS;
  }

  #doorbellBufferConfig(sqe: Uint32Array): number {
    const { queues, table } = this.#options;
    const mask = queues.data.pageBytes - 1;
    if (((sqe[SQE.PRP1]! | sqe[SQE.PRP2]!) & mask) !== 0) {
      return NvmeSc.PRP_INVALID_OFFSET;
    }
    const buffers = {
      shadowIova: u64(sqe[SQE.PRP1]!, sqe[SQE.PRP1 + 1]!),
      eventIova: u64(sqe[SQE.PRP2]!, sqe[SQE.PRP2 + 1]!),
    };
    const done = table.callAll({ op: "buffers", buffers });
    return done.every((it) => it === true)
      ? NvmeSc.SUCCESS
      : NvmeSc.INVALID_FIELD;
  }

  /** Copies bytes to where the command wants them. */
  #send(
    command: Command,
    sqe: Uint32Array,
    bytes: Uint8Array,
    lengthBytes: number,
  ): number {
    const { data, parts } = this.#options.queues;
    const list = command.request.buffers;
    const status = data.map(sqe, lengthBytes, Access.WRITE, list);
    if (status !== NvmeSc.SUCCESS) return status;
    parts.context.memory.scatter(list, bytes, lengthBytes);
    return NvmeSc.SUCCESS;
  }
}
