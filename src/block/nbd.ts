/**
 * A network block device: an NBD client.
 *
 * The connection may be lost at any time. What was not answered is then sent again to the next one: every request may be
 * done twice. What the server *had* answered is not: a write that was completed and not flushed is as durable as that
 * server made it. One that only restarts (or whose connection broke) still has it, or has handed it to its kernel; one
 * that lost it, because its machine went down, has lost it for the guest too, which learns nothing of it: a flush
 * that the new server answers covers what the new server knows. Such a loss is possible only while completed writes
 * wait for a flush; losing the connection then is a warning in the log and a number in the counters.
 *
 * @module
 */

import { bit } from "../bits.ts";
import { Errno, ErrnoError, errnoName } from "../errno.ts";
import type { FdWatch, Loop, Timer } from "../event_loop.ts";
import { Epoll, type Fd } from "../libc/mod.ts";
import type { Log } from "../log.ts";
import {
  type BlockBackend,
  type BlockClient,
  type BlockContext,
  type BlockInfo,
  BlockOp,
  type BlockRequest,
  PENDING,
} from "./backend.ts";
import {
  connectNbd,
  findNbdServer,
  type NbdConnection,
  NbdConnector,
} from "./nbd_connect.ts";
import { NbdCounter, NbdCounters } from "./nbd_counters.ts";
import type { NbdExport } from "./nbd_handshake.ts";
import { errnoOfNbd, nbdInfo } from "./nbd_info.ts";
import {
  NBD_CMD,
  NBD_CMD_FLAG,
  NBD_ERROR,
  NBD_FLAG_EXPORT,
} from "./nbd_protocol.ts";
import { NbdReceiver, type NbdReplySink } from "./nbd_receiver.ts";
import { BLOCKED, NbdSender } from "./nbd_sender.ts";
import {
  NbdPayload,
  type NbdSlot,
  NbdSlots,
  NbdSlotState,
} from "./nbd_slots.ts";
import { parseNbdUri } from "./nbd_uri.ts";
import type { NbdBlockOptions } from "./option_table.ts";
import { RequestQueue } from "./request_queue.ts";

/** Commands on the wire at once; more requests wait here. */
const SLOTS = 1024;
/** How much of a DISCARD or WRITE_ZEROES one command asks for, so that the server answers now and then. */
const RANGE_PART_BYTES = 0x800_0000;
/** As much as is sent where the server knows no WRITE_ZEROES. */
const ZEROES_PART_BYTES = 0x10_0000;
const RETRY_FIRST_MS = 50;
const RETRY_MAX_MS = 5000;
const TICK_MAX_MS = 250;
const TICKS_PER_TIMEOUT = 8;

/**
 * An NBD export.
 *
 * ```text
 *   connected --lost--> waiting --timer--> connecting --> connected
 *                          ↑───────failed──────┘
 * ```
 * Requests are taken in every state. One that waits for longer than the timeout fails with ETIMEDOUT.
 */
export class NbdBackend implements BlockBackend, NbdReplySink {
  readonly description: string;
  readonly #options: NbdBlockOptions;
  readonly #loop: Loop;
  readonly #log: Log;
  readonly #counters = new NbdCounters();
  readonly #slots = new NbdSlots(SLOTS);
  readonly #sender: NbdSender;
  readonly #receiver: NbdReceiver;
  readonly #connector: NbdConnector;
  readonly #overflow = new RequestQueue<BlockRequest>();
  readonly #retry: Timer;
  readonly #ticker: Timer;
  readonly #tickMs: number;
  /** Ticks that a request may take; 0 without a timeout. */
  readonly #timeoutTicks: number;
  #info: BlockInfo;
  #export: NbdExport;
  #client: BlockClient | null = null;
  #fd: Fd | null;
  #watch: FdWatch | null = null;
  #retryMs = RETRY_FIRST_MS;
  /** Whether the loss of the connection was told and its end was not. */
  #lost = false;
  #ticking = false;
  #tick = 0;
  #writeThrough = false;
  /** Writes that were given up and that the server may still do: nothing may overtake them. */
  #abandonedWrites = 0;
  /** Writes that were completed, and how many of them a flush has covered. */
  #completedWrites = 0;
  #flushedWrites = 0;

  /**
   * Connects; blocks until the server has answered.
   *
   * @throws {ErrnoError} With one line that says what is wrong, and the remedy
   */
  constructor(options: NbdBlockOptions, context: BlockContext) {
    this.#options = options;
    this.#loop = context.loop;
    this.#log = context.log;
    const target = findNbdServer(parseNbdUri(options.uri));
    this.description = `NBD server ${target.text}`;
    const { fd, found } = connectNbd(target);
    try {
      this.#info = nbdInfo(found, options, context.log);
    } catch (error) {
      fd.close();
      throw error;
    }
    this.#export = found;
    this.#fd = fd;
    this.#sender = new NbdSender(SLOTS);
    this.#receiver = new NbdReceiver(this.#slots, this);
    this.#receiver.restart(found.structuredReplies);
    this.#connector = new NbdConnector(target, this.#loop, {
      onConnected: (connection) => this.#onConnected(connection),
      onFailed: (error) => this.#onConnectFailed(error),
    });
    this.#retry = this.#loop.timer(() => this.#connector.start());
    this.#ticker = this.#loop.timer(() => this.#onTick());
    const { timeoutMs } = options;
    this.#tickMs = Math.min(TICK_MAX_MS, timeoutMs / TICKS_PER_TIMEOUT);
    this.#timeoutTicks = timeoutMs === 0
      ? 0
      : Math.ceil(timeoutMs / this.#tickMs) + 1;
  }

  get info(): BlockInfo {
    return this.#info;
  }

  start(client: BlockClient): void {
    this.#client = client;
    this.#watchSocket();
  }

  submit(request: BlockRequest): number {
    if (this.#info.readonly && request.op !== BlockOp.READ) {
      // There is nothing that a flush could make durable.
      return request.op === BlockOp.FLUSH ? 0 : -Errno.EROFS;
    }
    if (
      request.op === BlockOp.FLUSH && !this.#can(NBD_FLAG_EXPORT.SEND_FLUSH)
    ) {
      return 0;
    }
    if (
      request.op === BlockOp.DISCARD && !this.#can(NBD_FLAG_EXPORT.SEND_TRIM)
    ) {
      return -Errno.EOPNOTSUPP;
    }
    if (!this.#begin(request)) this.#overflow.push(request);
    this.#startTicking();
    return PENDING;
  }

  commit(): void {
    this.#flush();
  }

  drain(): void {
    const partial = this.#sender.detach();
    if (partial !== null) this.#abandon(partial);
    // Data that is still to come goes nowhere.
    for (const slot of this.#slots.all) {
      if (slot.state === NbdSlotState.SENT) this.#abandon(slot);
    }
    this.#receiver.forgetAbandoned();
    for (
      let slot = this.#sender.pop();
      slot !== null;
      slot = this.#sender.pop()
    ) {
      this.#end(slot, -Errno.ECANCELED);
    }
    // Those that were abandoned are told last: what a controller does then finds nothing in flight.
    this.#completeAbandoned();
    for (
      let request = this.#overflow.shift();
      request !== null;
      request = this.#overflow.shift()
    ) this.#client!.onComplete(request, -Errno.ECANCELED);
    this.#flush();
  }

  setWriteCache(on: boolean): number {
    this.#writeThrough = !on;
    return 0;
  }

  counters(): Readonly<Record<string, number>> {
    return {
      ...this.#counters.toRecord(),
      connected: this.#fd === null ? 0 : 1,
      inFlight: this.#slots.used + this.#overflow.length,
      unflushedWrites: this.#completedWrites - this.#flushedWrites,
    };
  }

  close(): void {
    this.drain();
    this.#retry.close();
    this.#ticker.close();
    this.#connector.close();
    this.#sayGoodbye();
    this.#closeSocket();
    this.#sender.close();
    this.#receiver.close();
  }

  onReply(slot: NbdSlot, error: number): void {
    this.#retryMs = RETRY_FIRST_MS;
    if (slot.state === NbdSlotState.ABANDONED) {
      if (writes(slot)) this.#abandonedWrites--;
      this.#slots.release(slot);
      this.#counters.add(NbdCounter.lateReplies, 1);
      this.#refill();
      this.#flush();
      return;
    }
    if (error === NBD_ERROR.ESHUTDOWN) {
      this.#lose("the server is shutting down");
      return;
    }
    if (error !== 0) {
      this.#end(slot, -errnoOfNbd(error));
    } else if (slot.flushing) {
      this.#flushedWrites = Math.max(this.#flushedWrites, slot.mark);
      this.#end(slot, 0);
    } else {
      this.#advance(slot);
    }
    this.#refill();
  }

  #can(flag: number): boolean {
    return bit(this.#export.flags, flag);
  }

  /** Puts a request into a slot and queues that; false when there is none. */
  #begin(request: BlockRequest): boolean {
    const slot = this.#slots.take();
    if (slot === null) return false;
    slot.request = request;
    request.slot = slot.index;
    this.#queue(slot);
    return true;
  }

  /** Queues a request from its beginning. */
  #queue(slot: NbdSlot): void {
    slot.doneBytes = 0;
    slot.flushing = slot.request!.op === BlockOp.FLUSH;
    slot.deadline = this.#tick + this.#timeoutTicks;
    this.#prepare(slot);
    this.#sender.push(slot);
  }

  #refill(): void {
    if (this.#overflow.length === 0) return;
    while (this.#slots.used < SLOTS) {
      const request = this.#overflow.shift();
      if (request === null) break;
      this.#begin(request);
    }
    this.#flush();
  }

  /** Writes the next command of a request into its slot. */
  #prepare(slot: NbdSlot): void {
    const request = slot.request!;
    const left = request.lengthBytes - slot.doneBytes;
    slot.offset = request.offset + slot.doneBytes;
    slot.lengthBytes = left;
    slot.flags = 0;
    slot.payload = NbdPayload.NONE;
    if (slot.flushing) {
      slot.command = NBD_CMD.FLUSH;
      slot.offset = 0;
      slot.lengthBytes = 0;
      slot.mark = this.#completedWrites;
      return;
    }
    switch (request.op) {
      case BlockOp.WRITE:
        slot.command = NBD_CMD.WRITE;
        slot.payload = NbdPayload.BUFFERS;
        slot.flags = this.#durableFlag(request);
        return;
      case BlockOp.DISCARD:
        slot.command = NBD_CMD.TRIM;
        slot.lengthBytes = Math.min(left, RANGE_PART_BYTES);
        return;
      case BlockOp.WRITE_ZEROES:
        this.#prepareZeroes(slot, request);
        return;
      default:
        slot.command = NBD_CMD.READ;
    }
  }

  #prepareZeroes(slot: NbdSlot, request: BlockRequest): void {
    slot.flags = this.#durableFlag(request);
    if (this.#can(NBD_FLAG_EXPORT.SEND_WRITE_ZEROES)) {
      slot.command = NBD_CMD.WRITE_ZEROES;
      slot.lengthBytes = Math.min(slot.lengthBytes, RANGE_PART_BYTES);
      if (!request.mayUnmap) slot.flags |= NBD_CMD_FLAG.NO_HOLE;
      return;
    }
    slot.command = NBD_CMD.WRITE;
    slot.payload = NbdPayload.ZEROES;
    slot.lengthBytes = Math.min(
      slot.lengthBytes,
      ZEROES_PART_BYTES,
      this.#info.maxTransferBytes,
    );
  }

  #isDurable(request: BlockRequest): boolean {
    return (request.op === BlockOp.WRITE ||
      request.op === BlockOp.WRITE_ZEROES) &&
      (request.durable || this.#writeThrough);
  }

  #durableFlag(request: BlockRequest): number {
    return this.#isDurable(request) && this.#can(NBD_FLAG_EXPORT.SEND_FUA)
      ? NBD_CMD_FLAG.FUA
      : 0;
  }

  /** A command of a request was done: the next one, or the end. */
  #advance(slot: NbdSlot): void {
    const request = slot.request!;
    slot.doneBytes += slot.lengthBytes;
    const more = slot.doneBytes < request.lengthBytes;
    if (!more) {
      slot.flushing = this.#isDurable(request) &&
        (slot.flags & NBD_CMD_FLAG.FUA) === 0 &&
        this.#can(NBD_FLAG_EXPORT.SEND_FLUSH);
      if (!slot.flushing) {
        this.#countWrite(slot);
        this.#end(slot, 0);
        return;
      }
    }
    slot.deadline = this.#tick + this.#timeoutTicks;
    this.#prepare(slot);
    this.#sender.push(slot);
    this.#flush();
  }

  #countWrite(slot: NbdSlot): void {
    if (!writes(slot) || !this.#can(NBD_FLAG_EXPORT.SEND_FLUSH)) return;
    const covered = this.#flushedWrites === this.#completedWrites &&
      (slot.flags & NBD_CMD_FLAG.FUA) !== 0;
    this.#completedWrites++;
    if (covered) this.#flushedWrites++;
  }

  /** Gives a slot back, and its request to the controller. */
  #end(slot: NbdSlot, result: number): void {
    const request = slot.request!;
    this.#slots.release(slot);
    this.#counters.count(request, result);
    this.#client!.onComplete(request, result);
  }

  #abandon(slot: NbdSlot): void {
    slot.state = NbdSlotState.ABANDONED;
    if (writes(slot)) this.#abandonedWrites++;
  }

  #completeAbandoned(): void {
    for (const slot of this.#slots.all) {
      const { request } = slot;
      if (slot.state !== NbdSlotState.ABANDONED || request === null) continue;
      slot.request = null;
      this.#counters.count(request, -Errno.ECANCELED);
      this.#client!.onComplete(request, -Errno.ECANCELED);
    }
  }

  #watchSocket(): void {
    this.#watch = this.#loop.watch(
      this.#fd!.number,
      Epoll.IN,
      (events) => this.#onEvents(events),
    );
  }

  #onEvents(events: number): void {
    if ((events & ~Epoll.OUT) !== 0) {
      const result = this.#receiver.receive(this.#fd!.number);
      if (result < 0) {
        this.#lose(
          result === -Errno.EPROTO
            ? this.#receiver.lastError
            : result === -Errno.EPIPE
            ? "the server closed it"
            : errnoName(-result),
        );
      }
    }
    if (this.#fd !== null) this.#flush();
  }

  #flush(): void {
    if (this.#fd === null) return;
    const result = this.#sender.flush(
      this.#fd.number,
      this.#abandonedWrites > 0,
    );
    if (result < 0) {
      this.#lose(errnoName(-result));
      return;
    }
    this.#watch?.setEvents(
      result === BLOCKED ? Epoll.IN | Epoll.OUT : Epoll.IN,
    );
  }

  /** The connection is of no use any more: what it has not answered goes to the next one. */
  #lose(reason: string): void {
    if (this.#fd === null) return;
    this.#closeSocket();
    this.#counters.add(NbdCounter.disconnects, 1);
    const unflushed = this.#completedWrites - this.#flushedWrites;
    const first = !this.#lost;
    this.#lost = true;
    if (first || unflushed > 0) this.#tellLoss(reason, unflushed);
    this.#counters.add(NbdCounter.unflushedAtLoss, unflushed);
    this.#flushedWrites = this.#completedWrites;
    this.#sender.restart();
    this.#receiver.restart(false);
    this.#abandonedWrites = 0;
    for (const slot of this.#slots.all) {
      if (slot.state === NbdSlotState.ABANDONED) this.#slots.release(slot);
      else if (slot.state === NbdSlotState.SENT) this.#sendAgain(slot);
    }
    this.#retry.arm(this.#nextRetryMs());
  }

  #sendAgain(slot: NbdSlot): void {
    this.#counters.add(NbdCounter.replays, 1);
    const { deadline } = slot;
    // From the beginning: what a lost server did for a part of it may be lost too.
    this.#queue(slot);
    slot.deadline = deadline;
  }

  #tellLoss(reason: string, unflushed: number): void {
    this.#log.warn(
      `Lost the connection to ${this.description}: ${reason}; trying again` +
        (unflushed === 0
          ? ""
          : `; ${unflushed} completed writes were not flushed: should that server have lost them, check the guest's file systems`),
      { reason, unflushedWrites: unflushed },
    );
  }

  #nextRetryMs(): number {
    const ms = this.#retryMs;
    this.#retryMs = Math.min(ms * 2, RETRY_MAX_MS);
    return ms;
  }

  #onConnectFailed(error: ErrnoError): void {
    this.#counters.add(NbdCounter.failedConnects, 1);
    if (this.#log.debugEnabled) this.#log.debug(error.message);
    this.#retry.arm(this.#nextRetryMs());
  }

  #onConnected(connection: NbdConnection): void {
    const { fd, found } = connection;
    let info: BlockInfo;
    try {
      info = nbdInfo(found, this.#options, this.#log);
    } catch (error) {
      fd.close();
      if (!(error instanceof ErrnoError)) throw error;
      this.#onConnectFailed(error);
      return;
    }
    this.#export = found;
    this.#fd = fd;
    this.#receiver.restart(found.structuredReplies);
    this.#requeue();
    this.#counters.add(NbdCounter.reconnects, 1);
    this.#lost = false;
    this.#log.info(`Connected to ${this.description} again`);
    this.#watchSocket();
    const resized = info.sizeBytes !== this.#info.sizeBytes;
    // What was told to the guest stays as it is, but for the size.
    this.#info = { ...this.#info, sizeBytes: info.sizeBytes };
    if (resized) this.#client!.onResize();
    this.#flush();
  }

  /** Makes the commands that wait anew: the next server may know others. */
  #requeue(): void {
    const count = this.#sender.waiting;
    for (let i = 0; i < count; i++) {
      const slot = this.#sender.pop()!;
      const { deadline } = slot;
      this.#queue(slot);
      slot.deadline = deadline;
    }
  }

  #closeSocket(): void {
    this.#watch?.close();
    this.#watch = null;
    this.#fd?.close();
    this.#fd = null;
  }

  /** NBD_CMD_DISC, if it can be sent at once. */
  #sayGoodbye(): void {
    const slot = this.#slots.take();
    if (slot === null || this.#fd === null || this.#abandonedWrites > 0) return;
    slot.command = NBD_CMD.DISC;
    slot.flags = 0;
    slot.offset = 0;
    slot.lengthBytes = 0;
    slot.payload = NbdPayload.NONE;
    this.#sender.push(slot);
    this.#sender.flush(this.#fd.number, false);
  }

  #startTicking(): void {
    if (this.#ticking || this.#timeoutTicks === 0) return;
    this.#ticking = true;
    this.#ticker.arm(this.#tickMs);
  }

  #onTick(): void {
    this.#ticking = false;
    this.#tick++;
    if (this.#slots.used === 0 && this.#overflow.length === 0) return;
    this.#startTicking();
    this.#giveUpLate();
  }

  #isAnyLate(): boolean {
    const { all } = this.#slots;
    // Not for-of: in code that runs too seldom to be compiled well, that allocates for each slot.
    for (let i = 0; i < all.length; i++) {
      const slot = all[i]!;
      if (slot.request !== null && slot.deadline <= this.#tick) return true;
    }
    return false;
  }

  #giveUpLate(): void {
    if (!this.#isAnyLate()) return;
    // A server that holds requests back for so long is as good as gone.
    this.#lose(
      `no answer for ${Math.round(this.#options.timeoutMs / 1000)} seconds`,
    );
    // By now all of them wait, in the queue; nobody touches their memory.
    const count = this.#sender.waiting;
    for (let i = 0; i < count; i++) {
      const slot = this.#sender.pop()!;
      if (slot.deadline > this.#tick) this.#sender.push(slot);
      else {
        this.#counters.add(NbdCounter.timeouts, 1);
        this.#end(slot, -Errno.ETIMEDOUT);
      }
    }
    this.#refill();
  }
}

/** Whether the command of a slot changes what the server holds. */
function writes(slot: NbdSlot): boolean {
  return slot.command === NBD_CMD.WRITE || slot.command === NBD_CMD.TRIM ||
    slot.command === NBD_CMD.WRITE_ZEROES;
}
