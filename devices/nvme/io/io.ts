/**
 * The NVM command set (NVM Express 1.4, section 6): from a submission queue entry to requests of the back end, and
 * from their results to a status.
 *
 * @module
 */

import type { Counters } from "../../../src/core/counters.ts";
import { BlockOp, PENDING } from "../../../src/backend/block/contract.ts";
import { bit, field } from "../../../src/core/bits.ts";
import { Errno } from "../../../src/core/errno.ts";
import {
  Access,
  type GuestMemory,
  type ScratchMemory,
} from "../../../src/memory/guest_memory.ts";
import type { ScatterGather } from "../../../src/memory/scatter_gather.ts";
import type { Command } from "../command/engine.ts";
import { NvmeCounter } from "../counters.ts";
import type { DataPointer } from "../command/data_pointer.ts";
import {
  IN_FLIGHT,
  NVME_DSM_RANGE,
  NVME_DSMGMT_AD,
  NVME_NSID_ALL,
  NVME_RW_FUA,
  NVME_WZ_DEAC,
  NvmeCmd,
  NvmeSc,
  SQE,
} from "../defs.ts";
import type { NamespaceSet } from "./namespace.ts";

/** Bytes that are read and compared at once. */
const CHUNK_BYTES = 0x1_0000;

/** The request of the command is to be submitted; no status of the standard is negative. */
const SUBMIT = -2;

/**
 * The Compare command: reads blocks into memory of our own and looks at both, one command at a time.
 *
 * ```text
 *   idle --begin--> reading --next--> (reading … ) --end--> idle
 * ```
 * In a command that is being compared `step` counts the bytes that are done and `steps` is how many there are.
 */
class Comparer {
  readonly #memory: GuestMemory;
  /** The driver's side, and what of it is not compared yet. */
  readonly #guest: ScatterGather;
  readonly #left: ScatterGather;
  #ours: ScratchMemory | null = null;
  #theirs = new Uint8Array(0);
  #active: Command | null = null;

  /** @param segments The most segments of a command */
  constructor(memory: GuestMemory, segments: number) {
    this.#memory = memory;
    this.#guest = memory.createScatterGather(segments);
    this.#left = memory.createScatterGather(segments);
  }

  /** True while a command is being compared. */
  get busy(): boolean {
    return this.#active !== null;
  }

  /**
   * Begins with a command: `request.offset` says where and `request.buffers` with what.
   *
   * @returns {@linkcode SUBMIT} or a status
   */
  begin(command: Command): number {
    this.#active = command;
    if (this.#ours === null) {
      this.#ours = this.#memory.createScratch(CHUNK_BYTES);
      this.#theirs = new Uint8Array(CHUNK_BYTES);
    }
    const { request } = command;
    this.#guest.clear();
    this.#guest.append(request.buffers);
    this.#left.clear();
    this.#left.append(request.buffers);
    command.step = 0;
    command.steps = this.#guest.lengthBytes;
    request.op = BlockOp.READ;
    request.durable = false;
    return this.#readChunk(command);
  }

  /**
   * A chunk was read.
   *
   * @returns {@linkcode SUBMIT} or a status
   */
  next(command: Command): number {
    // What was unmapped in the meantime is not the driver's any more.
    if (!this.#isMapped) return NvmeSc.DATA_XFER_ERROR;
    const length = command.request.lengthBytes;
    const theirs = this.#theirs;
    const ours = this.#ours!.bytes;
    if (this.#memory.gather(this.#left, theirs, length) !== length) {
      return NvmeSc.DATA_XFER_ERROR;
    }
    for (let i = 0; i < length; i++) {
      if (theirs[i] === ours[i]) continue;
      command.blame(command.request.offset + i);
      return NvmeSc.COMPARE_FAILED;
    }
    this.#left.consume(length);
    command.step += length;
    if (command.step === command.steps) return NvmeSc.SUCCESS;
    command.request.offset += length;
    return this.#readChunk(command);
  }

  /** The command has a status, and its buffers again. */
  end(): void {
    if (this.#active === null) return;
    const { buffers } = this.#active.request;
    buffers.clear();
    buffers.append(this.#guest);
    this.#active = null;
  }

  /** True while the driver's side is where it was. */
  get #isMapped(): boolean {
    return this.#memory.holds(this.#guest, Access.READ);
  }

  #readChunk(command: Command): number {
    if (!this.#isMapped) return NvmeSc.DATA_XFER_ERROR;
    const { request } = command;
    const length = Math.min(CHUNK_BYTES, command.steps - command.step);
    request.lengthBytes = length;
    request.buffers.clear();
    this.#ours!.append(length, request.buffers);
    return SUBMIT;
  }
}

/** Parts of {@linkcode IoCommands}. */
export interface IoOptions {
  readonly memory: GuestMemory;
  readonly namespaces: NamespaceSet;
  readonly data: DataPointer;
  readonly counters: Counters;
  /** The most bytes a command may transfer: MDTS. */
  readonly maxTransferBytes: number;
  /** The most segments of a command. */
  readonly segments: number;
  /** A command that waited for another has its status. */
  readonly finish: (command: Command, status: number) => void;
}

/**
 * Executes I/O commands.
 *
 * Both entry points return a status, or {@linkcode IN_FLIGHT} while the back end has the request; then
 * {@linkcode IoCommands.resume} is called with its result.
 */
export class IoCommands {
  readonly #options: IoOptions;
  readonly #compare: Comparer;
  /** Compare commands that wait for another. */
  readonly #waiting: Command[] = [];

  constructor(options: IoOptions) {
    this.#options = options;
    this.#compare = new Comparer(options.memory, options.segments);
  }

  /** Begins a command. */
  start(command: Command, sqe: Uint32Array): number {
    const opcode = sqe[SQE.CDW0]! & 0xff;
    command.opcode = opcode;
    switch (opcode) {
      case NvmeCmd.READ:
      case NvmeCmd.WRITE:
      case NvmeCmd.COMPARE:
      case NvmeCmd.WRITE_ZEROES:
      case NvmeCmd.DSM:
        break;
      case NvmeCmd.FLUSH:
        if (sqe[SQE.NSID] === NVME_NSID_ALL) {
          return this.flushAll(command);
        }
        break;
      default:
        return NvmeSc.INVALID_OPCODE;
    }
    // Fused operations are not offered (FUSES).
    if (field(sqe[SQE.CDW0]!, 9, 8) !== 0) return NvmeSc.INVALID_FIELD;
    const { namespaces } = this.#options;
    const nsid = sqe[SQE.NSID]!;
    if (!namespaces.isValid(nsid)) return NvmeSc.INVALID_NS;
    command.namespace = namespaces.get(nsid);
    if (command.namespace === null) return NvmeSc.INVALID_FIELD;
    return this.#begin(command, sqe);
  }

  /** The request of a command is done. */
  resume(command: Command, result: number): number {
    let status = this.#next(command, result);
    if (status === SUBMIT) status = this.#drive(command);
    return this.#settleCompare(command, status);
  }

  /** Begins to flush every namespace, as a command or on the controller's own account. */
  flushAll(command: Command): number {
    command.opcode = NvmeCmd.FLUSH;
    command.step = 0;
    command.steps = NVME_NSID_ALL;
    return this.#nextFlush(command) ? this.#drive(command) : NvmeSc.SUCCESS;
  }

  /**
   * Takes a command away that waits for another one.
   *
   * @returns True when it was here
   */
  cancel(command: Command): boolean {
    const at = this.#waiting.indexOf(command);
    if (at >= 0) this.#waiting.splice(at, 1);
    return at >= 0;
  }

  /** Forgets every command. */
  reset(): void {
    this.#waiting.length = 0;
    this.#compare.end();
  }

  #begin(command: Command, sqe: Uint32Array): number {
    switch (command.opcode) {
      case NvmeCmd.READ:
        return this.#transfer(command, sqe, BlockOp.READ, Access.WRITE);
      case NvmeCmd.WRITE:
        return this.#transfer(command, sqe, BlockOp.WRITE, Access.READ);
      case NvmeCmd.COMPARE:
        return this.#startCompare(command, sqe);
      case NvmeCmd.WRITE_ZEROES:
        return this.#writeZeroes(command, sqe);
      case NvmeCmd.DSM:
        return this.#datasetManagement(command, sqe);
      default:
        command.step = 0;
        command.steps = command.namespace!.nsid;
        this.#flush(command);
        return this.#drive(command);
    }
  }

  #transfer(
    command: Command,
    sqe: Uint32Array,
    op: BlockOp,
    access: Access,
  ): number {
    const { request } = command;
    const status = this.#locate(command, sqe, access);
    if (status !== NvmeSc.SUCCESS) return status;
    if (op === BlockOp.WRITE && command.namespace!.backend.info.readonly) {
      return NvmeSc.NS_WRITE_PROTECTED;
    }
    const isFua = bit(sqe[SQE.CDW12]!, NVME_RW_FUA);
    if (op === BlockOp.READ) command.readBytes = request.lengthBytes;
    request.op = op;
    request.durable = op === BlockOp.WRITE && isFua;
    if (op === BlockOp.READ && isFua) {
      // What it reads is to be durable: a flush comes first.
      command.step = request.offset;
      command.steps = request.lengthBytes;
      request.op = BlockOp.FLUSH;
      request.offset = request.lengthBytes = 0;
    }
    return this.#drive(command);
  }

  /** Goes on with a Read with FUA when what it reads is durable. */
  #readFlushed({ request, step, steps }: Command): number {
    request.op = BlockOp.READ;
    request.offset = step;
    request.lengthBytes = steps;
    return SUBMIT;
  }

  /** Checks blocks and buffers of a command that transfers data, and puts both into its request. */
  #locate(command: Command, sqe: Uint32Array, access: Access): number {
    const status = this.#range(command, sqe);
    if (status !== NvmeSc.SUCCESS) return status;
    const { request } = command;
    if (request.lengthBytes > this.#options.maxTransferBytes) {
      return NvmeSc.INVALID_FIELD;
    }
    return this.#options.data.map(
      sqe,
      request.lengthBytes,
      access,
      request.buffers,
    );
  }

  /** Checks SLBA and NLB, and puts both into the request. */
  #range(command: Command, sqe: Uint32Array): number {
    const namespace = command.namespace!;
    const { request } = command;
    const low = sqe[SQE.CDW10]!;
    const high = sqe[SQE.CDW11]!;
    const count = (sqe[SQE.CDW12]! & 0xffff) + 1;
    if (!namespace.contains(low, high, count)) {
      return this.#outOfRange(command, low, high);
    }
    const blockBytes = 1 << namespace.lbaShift;
    request.offset = (high * 0x1_0000_0000 + low) * blockBytes;
    request.lengthBytes = count * blockBytes;
    return NvmeSc.SUCCESS;
  }

  /** Blocks from `high:low` on do not all lie inside: the error log names the first that does not. */
  #outOfRange(command: Command, low: number, high: number): number {
    const { blocks } = command.namespace!;
    const isBeyond = high * 0x1_0000_0000 + low >= blocks;
    command.lbaLow = isBeyond ? low : blocks >>> 0;
    command.lbaHigh = isBeyond ? high : Math.floor(blocks / 0x1_0000_0000);
    return NvmeSc.LBA_RANGE;
  }

  #writeZeroes(command: Command, sqe: Uint32Array): number {
    const status = this.#range(command, sqe);
    if (status !== NvmeSc.SUCCESS) return status;
    if (command.namespace!.backend.info.readonly) {
      return NvmeSc.NS_WRITE_PROTECTED;
    }
    const { request } = command;
    request.op = BlockOp.WRITE_ZEROES;
    request.durable = bit(sqe[SQE.CDW12]!, NVME_RW_FUA);
    request.mayUnmap = bit(sqe[SQE.CDW12]!, NVME_WZ_DEAC);
    return this.#drive(command);
  }

  #datasetManagement(command: Command, sqe: Uint32Array): number {
    const { data, memory } = this.#options;
    const { request } = command;
    const count = (sqe[SQE.CDW10]! & 0xff) + 1;
    const lengthBytes = count * NVME_DSM_RANGE.WORDS * 4;
    const list = request.buffers;
    const status = data.map(sqe, lengthBytes, Access.READ, list);
    if (status !== NvmeSc.SUCCESS) return status;
    // The other attributes are hints.
    if (!bit(sqe[SQE.CDW11]!, NVME_DSMGMT_AD)) return NvmeSc.SUCCESS;
    const namespace = command.namespace!;
    const { info } = namespace.backend;
    if (info.readonly) return NvmeSc.NS_WRITE_PROTECTED;
    if (memory.gather(list, command.rangeBytes, lengthBytes) < lengthBytes) {
      return NvmeSc.DATA_XFER_ERROR;
    }
    memory.release(list, 0);
    list.clear();
    for (let i = 0; i < count; i++) {
      const at = i * NVME_DSM_RANGE.WORDS;
      const low = command.ranges[at + NVME_DSM_RANGE.SLBA]!;
      const high = command.ranges[at + NVME_DSM_RANGE.SLBA + 1]!;
      const blocks = command.ranges[at + NVME_DSM_RANGE.NLB]!;
      if (!namespace.contains(low, high, blocks)) {
        return this.#outOfRange(command, low, high);
      }
    }
    if (info.discardGranularityBytes === 0) return NvmeSc.SUCCESS;
    command.step = 0;
    command.steps = count;
    return this.#nextRange(command) === SUBMIT
      ? this.#drive(command)
      : NvmeSc.SUCCESS;
  }

  /** Puts the next range that is not empty into the request. */
  #nextRange(command: Command): number {
    const { request, ranges } = command;
    const shift = command.namespace!.lbaShift;
    while (command.step < command.steps) {
      const at = command.step++ * NVME_DSM_RANGE.WORDS;
      const blocks = ranges[at + NVME_DSM_RANGE.NLB]!;
      if (blocks === 0) continue;
      const low = ranges[at + NVME_DSM_RANGE.SLBA]!;
      const high = ranges[at + NVME_DSM_RANGE.SLBA + 1]!;
      request.op = BlockOp.DISCARD;
      request.durable = false;
      request.offset = (high * 0x1_0000_0000 + low) * 2 ** shift;
      request.lengthBytes = blocks * 2 ** shift;
      return SUBMIT;
    }
    return NvmeSc.SUCCESS;
  }

  #startCompare(command: Command, sqe: Uint32Array): number {
    const status = this.#locate(command, sqe, Access.READ);
    if (status !== NvmeSc.SUCCESS) return status;
    if (this.#compare.busy) {
      this.#waiting.push(command);
      return IN_FLIGHT;
    }
    const begun = this.#compare.begin(command);
    return this.#settleCompare(
      command,
      begun === SUBMIT ? this.#drive(command) : begun,
    );
  }

  /** Lets the Compare commands that wait have their turn when one has its status. */
  #settleCompare(command: Command, status: number): number {
    if (command.opcode !== NvmeCmd.COMPARE || status === IN_FLIGHT) {
      return status;
    }
    this.#compare.end();
    while (this.#waiting.length > 0 && !this.#compare.busy) {
      const next = this.#waiting.shift()!;
      const begun = this.#compare.begin(next);
      const its = begun === SUBMIT ? this.#drive(next) : begun;
      if (its === IN_FLIGHT) break;
      this.#compare.end();
      this.#options.finish(next, its);
    }
    return status;
  }

  /**
   * Puts the next namespace of Flush into the request: of one, or of all that are there by now. `step` is the number of the
   * one before, `steps` the last number.
   *
   * @returns False when there is none
   */
  #nextFlush(command: Command): boolean {
    const { all } = this.#options.namespaces;
    for (let i = 0; i < all.length; i++) {
      const { nsid } = all[i]!;
      if (nsid <= command.step || nsid > command.steps) continue;
      command.namespace = all[i]!;
      this.#flush(command);
      return true;
    }
    return false;
  }

  #flush(command: Command): void {
    const { request } = command;
    command.step = command.namespace!.nsid;
    request.op = BlockOp.FLUSH;
    request.durable = false;
    request.offset = 0;
    request.lengthBytes = 0;
  }

  /** Submits the request, and what follows it as long as the back end answers at once. */
  #drive(command: Command): number {
    for (;;) {
      if (command.namespace!.removed) return NvmeSc.INVALID_FIELD;
      const result = command.namespace!.submit(command.request);
      if (result === PENDING) return IN_FLIGHT;
      const status = this.#next(command, result);
      if (status !== SUBMIT) return status;
    }
  }

  /** @returns A status, or {@linkcode SUBMIT} when the request holds the command's next step */
  #next(command: Command, result: number): number {
    // What is not completed ends as on a number that no namespace has (section 8.12); Flush of all has no such number.
    const isOfAll = command.opcode === NvmeCmd.FLUSH &&
      command.steps === NVME_NSID_ALL;
    const { removed } = command.namespace!;
    if (removed && !isOfAll) return NvmeSc.INVALID_FIELD;
    if (result < 0 && !removed) return this.#failed(command, result);
    const { counters } = this.#options;
    switch (command.opcode) {
      case NvmeCmd.READ:
        if (command.request.op === BlockOp.FLUSH) {
          return this.#readFlushed(command);
        }
        counters.add(NvmeCounter.reads, 1);
        counters.add(NvmeCounter.readBytes, command.request.lengthBytes);
        return NvmeSc.SUCCESS;
      case NvmeCmd.WRITE:
        counters.add(NvmeCounter.writes, 1);
        counters.add(NvmeCounter.writtenBytes, command.request.lengthBytes);
        return NvmeSc.SUCCESS;
      case NvmeCmd.FLUSH:
        if (this.#nextFlush(command)) return SUBMIT;
        counters.add(NvmeCounter.flushes, 1);
        return NvmeSc.SUCCESS;
      case NvmeCmd.COMPARE:
        return this.#compared(command, this.#compare.next(command));
      case NvmeCmd.DSM:
        return this.#counted(this.#nextRange(command));
      default:
        return this.#counted(NvmeSc.SUCCESS);
    }
  }

  /** The health log has what Compare has read among what was read (figure 194). */
  #compared(command: Command, status: number): number {
    if (status === NvmeSc.SUCCESS || status === NvmeSc.COMPARE_FAILED) {
      const { counters } = this.#options;
      counters.add(NvmeCounter.reads, 1);
      counters.add(NvmeCounter.readBytes, command.steps);
    }
    return status;
  }

  #counted(status: number): number {
    if (status === NvmeSc.SUCCESS) {
      this.#options.counters.add(NvmeCounter.others, 1);
    }
    return status;
  }

  /** The status for what a back end could not do. */
  #failed(command: Command, result: number): number {
    switch (-result) {
      case Errno.ENOSPC:
        return NvmeSc.CAP_EXCEEDED;
      case Errno.EROFS:
        return NvmeSc.NS_WRITE_PROTECTED;
      case Errno.ECANCELED:
        return NvmeSc.ABORT_REQ;
      case Errno.EFAULT:
        return NvmeSc.DATA_XFER_ERROR;
      case Errno.ENOMEM:
      case Errno.EAGAIN:
        return NvmeSc.INTERNAL;
    }
    this.#options.counters.add(NvmeCounter.mediaErrors, 1);
    const { request } = command;
    // Of a part of it that failed, the back end tells no more than that.
    if (request.op !== BlockOp.FLUSH) command.blame(request.offset);
    else if (command.opcode === NvmeCmd.READ) command.blame(command.step);
    switch (command.opcode) {
      case NvmeCmd.READ:
      case NvmeCmd.COMPARE:
        return NvmeSc.READ_ERROR;
      case NvmeCmd.WRITE:
      case NvmeCmd.WRITE_ZEROES:
        return NvmeSc.WRITE_FAULT;
      default:
        return NvmeSc.INTERNAL;
    }
  }
}
