/**
 * The data path of a controller: fetches commands, has them executed, posts their completions. Commands in flight are
 * objects made once, taken and given back.
 *
 * @module
 */

import { BlockOp, BlockRequest } from "../../../src/backend/block/contract.ts";
import { high32 } from "../../../src/core/bits.ts";
import type { Counters } from "../../../src/core/counters.ts";
import {
  type GuestMemory,
  MEMORY_PENDING,
} from "../../../src/memory/guest_memory.ts";
import { NvmeCounter } from "../counters.ts";
import {
  IN_FLIGHT,
  NVME_DSM_MAX_RANGES,
  NVME_DSM_RANGE,
  NvmeAdmin,
  NvmeSc,
  SQE,
  withDnr,
} from "../defs.ts";
import type { Namespace } from "../io/namespace.ts";
import type { SubmissionQueue } from "../queue/queue.ts";
import type { QueueSet } from "../queue/queue_set.ts";

/** Stages of a command. */
export const CommandState = {
  FREE: 0,
  /** Fetched; with the controller or a back end. */
  BUSY: 1,
  /** The back end has returned its request. */
  RETURNED: 2,
  /** It has a status, and its completion is to be posted. */
  DONE: 3,
} as const;

/** A state of {@linkcode CommandState}. */
export type CommandState = typeof CommandState[keyof typeof CommandState];

/**
 * One command.
 *
 * ```text
 *   free --fetch--> busy --status--> done --completion posted--> free
 *                    ↑ ↓ result       ↑
 *                  returned ──status──╯
 * ```
 * It keeps whatever it needs beyond its request, so that commands of several steps can go on from a completion.
 */
export class Command {
  /** Request for the back end; its tag is this command's index. */
  readonly request: BlockRequest;
  state: CommandState = CommandState.FREE;
  /** Submission queue that it came from; null for the controller's own command. */
  sq: SubmissionQueue | null = null;
  cid = 0;
  opcode = 0;
  /** Namespace that it works on. */
  namespace: Namespace | null = null;
  /** Namespace id of the entry, for the error log. */
  nsid = 0;
  /** First block that the error is about, for the error log: low and high word. */
  lbaLow = 0;
  lbaHigh = 0;
  /** Result of the back end, when returned. */
  result = 0;
  /** Of the completion, when done. */
  status = 0;
  /** Of the completion. */
  dw0 = 0;
  /** Bytes that its buffers receive when it succeeds, as long as they are not released; only of a Read. */
  readBytes = 0;
  /** True while it holds a reservation in its completion queue. */
  reserved = false;
  /** True when no other command in flight has its identifier. */
  ownsCid = false;
  /** Step and number of steps, for commands of several. */
  step = 0;
  steps = 0;
  #ranges: Uint32Array<ArrayBuffer> | null = null;
  #rangeBytes: Uint8Array<ArrayBuffer> | null = null;

  /** @param segments The most segments it may transfer */
  constructor(memory: GuestMemory, segments: number, tag: number) {
    this.request = new BlockRequest(memory, segments, tag);
  }

  /** Records the block of its namespace that an error at this byte is about. */
  blame(offset: number): void {
    const lba = Math.floor(offset / 2 ** this.namespace!.lbaShift);
    this.lbaLow = lba >>> 0;
    this.lbaHigh = high32(lba);
  }

  /** Room for the ranges of Dataset Management; made when it is first needed. */
  get ranges(): Uint32Array<ArrayBuffer> {
    return this.#ranges ??= new Uint32Array(
      NVME_DSM_MAX_RANGES * NVME_DSM_RANGE.WORDS,
    );
  }

  /** The same, as bytes. */
  get rangeBytes(): Uint8Array<ArrayBuffer> {
    return this.#rangeBytes ??= new Uint8Array(this.ranges.buffer);
  }
}

/** A fixed number of commands. */
class CommandPool {
  readonly #free: Command[];
  #count: number;

  /** @param commands All of it, free */
  constructor(commands: readonly Command[]) {
    this.#free = [...commands];
    this.#count = commands.length;
  }

  /** Number of free commands. */
  get available(): number {
    return this.#count;
  }

  /** Takes a command, or null when all are in flight. */
  take(): Command | null {
    if (this.#count === 0) return null;
    const command = this.#free[--this.#count]!;
    command.state = CommandState.BUSY;
    command.namespace = null;
    command.sq = null;
    command.dw0 = command.readBytes = 0;
    command.lbaLow = command.lbaHigh = 0;
    return command;
  }

  /** Gives a command back. */
  give(command: Command): void {
    command.state = CommandState.FREE;
    this.#free[this.#count++] = command;
  }
}

/** I/O commands in flight at once, of all queues together. */
const IO_COMMANDS = 256;
/** Admin commands in flight at once: a full house of I/O never keeps them waiting. */
const ADMIN_COMMANDS = 32;
/** Commands that are fetched before the loop gets its turn. */
const BUDGET = 128;

/** Parts of an {@linkcode Engine}. */
export interface EngineOptions {
  readonly memory: GuestMemory;
  readonly queues: QueueSet;
  readonly counters: Counters;
  /** The most segments of a command. */
  readonly segments: number;
  /** Begins a command. @returns A status, IN_FLIGHT, or MEMORY_PENDING when it has done nothing */
  readonly start: (command: Command, sqe: Uint32Array) => number;
  /** Goes on with one whose request is done. @returns A status or IN_FLIGHT */
  readonly resume: (command: Command, result: number) => number;
  /** A command failed. */
  readonly onError: (command: Command) => void;
  /** The controller's own command has ended. */
  readonly onInternal: (command: Command) => void;
  /** Something is to be done in a bottom half. */
  readonly wake: () => void;
}

/**
 * Commands from the submission queues to the completion queues.
 *
 * A result of the back end is only noted when it comes; going on with a command and posting completions happen in
 * {@linkcode Engine.settle}, which runs in a bottom half. So nothing touches guest memory while memory is unmapped
 * or the controller is stopped, and completions go out in batches.
 */
export class Engine {
  readonly #options: EngineOptions;
  readonly #sqe = new Uint32Array(SQE.WORDS);
  readonly #commands: readonly Command[];
  readonly #admin: CommandPool;
  readonly #io: CommandPool;
  /** For flushing at shutdown; never in a pool, so that it is always there. */
  readonly #internal: Command;
  /** A ring of the tags of commands that are returned or done, one longer than there can be. */
  readonly #ring: Uint16Array;
  #first = 0;
  #end = 0;
  /** Queue whose turn it is. */
  #turn = 0;
  /** Commands that a queue may have fetched before it is the next one's turn. */
  burst = 1;
  /** True once a queue that is wanted was found not to be mapped; the owner sets it to false. */
  awaitsMemory = false;
  /** True when something was not in reach at the last fetch. */
  awaitsReach = false;

  constructor(options: EngineOptions) {
    this.#options = options;
    const total = IO_COMMANDS + ADMIN_COMMANDS + 1;
    this.#commands = Array.from(
      { length: total },
      (_, tag) => new Command(options.memory, options.segments, tag),
    );
    this.#io = new CommandPool(this.#commands.slice(0, IO_COMMANDS));
    this.#admin = new CommandPool(this.#commands.slice(IO_COMMANDS, -1));
    this.#internal = this.#commands[total - 1]!;
    this.#ring = new Uint16Array(total + 1);
  }

  /** Commands that are not free. */
  inFlight(): Command[] {
    return this.#commands.filter(({ state }) => state !== CommandState.FREE);
  }

  /** The command that has this identifier in a submission queue, while its completion is not posted. */
  find(sqid: number, cid: number): Command | null {
    return this.#commands.find((command) =>
      command.state !== CommandState.FREE && command.sq?.qid === sqid &&
      command.cid === cid && command.ownsCid
    ) ?? null;
  }

  /** Number of commands that are not free. */
  get busy(): number {
    let count = 0;
    for (const { state } of this.#commands) {
      if (state !== CommandState.FREE) count++;
    }
    return count;
  }

  /** A command that was fetched elsewhere and waits for an event; it has no room in its completion queue. */
  restore(sq: SubmissionQueue, cid: number, nsid: number): Command {
    sq.takeCid(cid);
    const command = this.#admin.take()!;
    command.sq = sq;
    command.cid = cid;
    command.ownsCid = true;
    command.nsid = nsid;
    command.opcode = NvmeAdmin.ASYNC_EVENT;
    command.reserved = false;
    sq.inFlight++;
    return command;
  }

  /** Makes sure that there is room for the completion of a command, if its queue has any. */
  reserve(command: Command): void {
    if (!command.reserved) command.sq!.cq.reserved++;
    command.reserved = true;
  }

  /** The command that belongs to nobody, when it is free. */
  takeInternal(): Command | null {
    const command = this.#internal;
    if (command.state !== CommandState.FREE) return null;
    command.state = CommandState.BUSY;
    command.sq = null;
    return command;
  }

  /** A request is done; see {@linkcode Engine.settle}. */
  returned(request: BlockRequest, result: number): void {
    const command = this.#commands[request.tag]!;
    // After a reset nobody waits for it.
    if (command.state !== CommandState.BUSY) return;
    command.state = CommandState.RETURNED;
    command.result = result;
    // At once: what it has read may lie in memory that is about to be unmapped.
    if (result === 0 && request.op === BlockOp.READ && command.readBytes > 0) {
      command.result = this.#release(command, command.readBytes);
      command.readBytes = 0;
    }
    if (command !== this.#internal) this.#push(command);
    this.#options.wake();
  }

  /** A command has its status. */
  finish(command: Command, status: number): void {
    const isDone = status === NvmeSc.SUCCESS;
    const result = this.#release(command, isDone ? command.readBytes : 0);
    const final = result < 0 && isDone ? NvmeSc.DATA_XFER_ERROR : status;
    command.status = final === NvmeSc.SUCCESS ? final : withDnr(final);
    command.state = CommandState.DONE;
    if (command !== this.#internal) this.#push(command);
  }

  /**
   * Fetches and starts commands, queue by queue.
   *
   * @returns True when the budget ran out while there may be more
   */
  fetch(): boolean {
    this.awaitsReach = false;
    this.#options.queues.refreshDoorbells();
    const queues = this.#options.queues.submission;
    const { burst } = this;
    let left = BUDGET;
    let idle = 0;
    while (left > 0 && idle < queues.length) {
      if (this.#turn >= queues.length) this.#turn = 0;
      const got = this.#fetchFrom(
        queues[this.#turn]!,
        burst < left ? burst : left,
      );
      // A command may have created or deleted queues.
      if (this.#options.queues.submission !== queues) return true;
      this.#turn++;
      left -= got;
      idle = got === 0 ? idle + 1 : 0;
    }
    return left === 0;
  }

  /** Goes on with what was returned and posts what is done, in the order in which it came. */
  settle(): void {
    while (this.#first !== this.#end) {
      const command = this.#commands[this.#ring[this.#first]!]!;
      if (command.state === CommandState.DONE) {
        // A ring that cannot be reached holds up the others; it is back or gone with the next change of memory.
        if (!this.#complete(command)) {
          this.awaitsMemory = true;
          return;
        }
        this.#pop();
        continue;
      }
      this.#pop();
      this.#resume(command);
    }
  }

  /** Goes on with what the controller began on its own account, which takes no guest memory. */
  settleInternal(): void {
    const command = this.#internal;
    if (command.state === CommandState.RETURNED) this.#resume(command);
    if (command.state !== CommandState.DONE) return;
    this.#free(command);
    this.#options.onInternal(command);
  }

  /** Tells whether requests of the back ends use a part of a range of guest memory. */
  uses(iova: number, lengthBytes: number): boolean {
    for (const { state, request } of this.#commands) {
      if (
        state === CommandState.BUSY &&
        request.buffers.overlaps(iova, lengthBytes)
      ) return true;
    }
    return false;
  }

  /** Forgets every command; none may be with a back end. */
  reset(): void {
    this.#first = this.#end = 0;
    for (const command of this.#commands) {
      if (command.state === CommandState.FREE) continue;
      this.#release(command, 0);
      this.#free(command);
    }
  }

  #fetchFrom(sq: SubmissionQueue, most: number): number {
    const { queues, counters } = this.#options;
    const pool = sq.qid === 0 ? this.#admin : this.#io;
    let count = 0;
    while (count < most && !sq.ending && queues.hasEntries(sq)) {
      if (pool.available === 0) break;
      if (!queues.hasRoom(sq.cq)) {
        counters.add(NvmeCounter.completionQueueFull, 1);
        break;
      }
      const result = sq.fetch(this.#sqe);
      if (result < 0) {
        if (result === MEMORY_PENDING) this.awaitsReach = true;
        else this.awaitsMemory = true;
        break;
      }
      const command = pool.take()!;
      if (!this.#start(sq, command)) {
        this.awaitsReach = true;
        sq.unfetch();
        pool.give(command);
        break;
      }
      count++;
    }
    return count;
  }

  /** Starts a command. @returns False while memory is not in reach that it needs; nothing was done then */
  #start(sq: SubmissionQueue, command: Command): boolean {
    const sqe = this.#sqe;
    const cid = sqe[SQE.CDW0]! >>> 16;
    command.sq = sq;
    command.cid = cid;
    command.nsid = sqe[SQE.NSID]!;
    command.reserved = true;
    sq.cq.reserved++;
    sq.inFlight++;
    command.ownsCid = sq.takeCid(cid);
    const status = command.ownsCid
      ? this.#options.start(command, sqe)
      : NvmeSc.CMDID_CONFLICT;
    if (status === MEMORY_PENDING) {
      this.#release(command, MEMORY_PENDING);
      sq.cq.reserved--;
      sq.inFlight--;
      sq.releaseCid(cid);
      return false;
    }
    if (sq.qid === 0) {
      this.#options.counters.add(NvmeCounter.adminCommands, 1);
    }
    if (status !== IN_FLIGHT) this.finish(command, status);
    return true;
  }

  #resume(command: Command): void {
    command.state = CommandState.BUSY;
    const status = this.#options.resume(command, command.result);
    if (status !== IN_FLIGHT) this.finish(command, status);
  }

  /** Posts a completion. @returns False while the completion queue is not mapped */
  #complete(command: Command): boolean {
    const sq = command.sq!;
    const { cq } = sq;
    if (!cq.ready()) return false;
    // Before the driver sees it, and puts a command on a queue of another thread that fails too.
    if (command.status !== NvmeSc.SUCCESS) this.#options.onError(command);
    cq.post(command.dw0, sq.head | sq.qid << 16, command.cid, command.status);
    if (command.reserved) cq.reserved--;
    if (command.ownsCid) sq.releaseCid(command.cid);
    this.#free(command);
    this.#options.queues.completed(sq);
    return true;
  }

  /** Releases the buffers of a command. @returns 0 or −errno */
  #release({ request }: Command, writtenBytes: number): number {
    const { buffers } = request;
    const result = this.#options.memory.release(buffers, writtenBytes);
    buffers.clear();
    return result;
  }

  #free(command: Command): void {
    if (command === this.#internal) command.state = CommandState.FREE;
    else if (command.request.tag < IO_COMMANDS) this.#io.give(command);
    else this.#admin.give(command);
  }

  #push(command: Command): void {
    this.#ring[this.#end] = command.request.tag;
    if (++this.#end === this.#ring.length) this.#end = 0;
  }

  #pop(): void {
    if (++this.#first === this.#ring.length) this.#first = 0;
  }
}
