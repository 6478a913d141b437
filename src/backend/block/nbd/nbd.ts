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

import { Counters } from "../../../core/counters.ts";
import { Errno, errnoName } from "../../../core/errno.ts";
import type { Timer } from "../../../loop/event_loop.ts";
import { Epoll, type ResourceBag, type Saved } from "../../../os/mod.ts";
import {
  type BlockBackend,
  type BlockClient,
  type BlockContext,
  type BlockInfo,
  BlockOp,
  type BlockRequest,
  PENDING,
} from "../contract.ts";
import type { OpenBlock } from "../driver.ts";
import type { DeviceState } from "../../../core/state_form.ts";
import { blockForm, refuseInFlight } from "../state.ts";
import { countRequest } from "../counters.ts";
import {
  errnoOfNbd,
  NbdCommands,
  type NbdSlot,
  NbdSlots,
  NbdSlotState,
  parseWriteState,
} from "./commands.ts";
import { NbdLink } from "./connection.ts";
import { NBD_COUNTERS, type NbdBlockOptions, NbdCounter } from "./driver.ts";
import { NBD_CMD, NBD_ERROR } from "./protocol.ts";
import { NbdReceiver, type NbdReplySink } from "./receiver.ts";
import { BLOCKED, NbdSender } from "./sender.ts";
import { RequestQueue } from "../request_queue.ts";

const FORM = blockForm("nbd");
/** Commands on the wire at once; more requests wait here. */
const SLOTS = 1024;
const TICK_MAX_MS = 250;
const TICKS_PER_TIMEOUT = 8;

/** Connects to the server. */
export const openNbd: OpenBlock<NbdBlockOptions> = (
  options,
  context,
  saved,
) => new NbdBackend(options, context, saved);

/**
 * An NBD export. Requests are taken while it is connected and while it is not. One that waits for longer than the
 * timeout fails with ETIMEDOUT.
 */
export class NbdBackend implements BlockBackend, NbdReplySink {
  readonly description: string;
  readonly #options: NbdBlockOptions;
  readonly #counters = new Counters(NBD_COUNTERS);
  readonly #slots = new NbdSlots(SLOTS);
  readonly #link: NbdLink;
  readonly #commands: NbdCommands;
  readonly #sender: NbdSender;
  readonly #receiver: NbdReceiver;
  readonly #overflow = new RequestQueue<BlockRequest>();
  readonly #ticker: Timer;
  readonly #tickMs: number;
  /** Ticks that a request may take; 0 without a timeout. */
  readonly #timeoutTicks: number;
  #client: BlockClient | null = null;
  #ticking = false;
  #tick = 0;
  /** Writes that were given up and that the server may still do: nothing may overtake them. */
  #abandonedWrites = 0;

  /**
   * Connects, blocking until the server has answered; or takes a predecessor's connection over.
   *
   * @throws {ErrnoError} With one line that says what is wrong, and the remedy
   */
  constructor(
    options: NbdBlockOptions,
    context: BlockContext,
    saved?: Saved<unknown>,
  ) {
    this.#options = options;
    const state = saved && FORM.read(saved.state);
    const writes = state === undefined ? null : parseWriteState(state);
    if (state !== undefined) {
      this.#counters.restore(state.value("counters"));
    }
    this.#link = new NbdLink(options, context, {
      counters: this.#counters,
      onEvents: (events) => this.#onEvents(events),
      onConnected: (resized) => this.#onConnected(resized),
    }, state && { state, bag: saved!.bag });
    this.description = this.#link.description;
    const { found, info } = this.#link;
    this.#commands = new NbdCommands(found, info.maxTransferBytes, writes);
    this.#sender = new NbdSender(SLOTS);
    this.#receiver = new NbdReceiver(this.#slots, this);
    this.#receiver.restart(found.structuredReplies);
    this.#ticker = context.loop.timer(() => this.#onTick());
    const { timeoutMs } = options;
    this.#tickMs = Math.min(TICK_MAX_MS, timeoutMs / TICKS_PER_TIMEOUT);
    this.#timeoutTicks = timeoutMs === 0
      ? 0
      : Math.ceil(timeoutMs / this.#tickMs) + 1;
  }

  get info(): BlockInfo {
    return this.#link.info;
  }

  start(client: BlockClient): void {
    this.#client = client;
    this.#link.start();
  }

  submit(request: BlockRequest): number {
    const { op } = request;
    if (this.info.readonly && op !== BlockOp.READ) {
      // There is nothing that a flush could make durable.
      return op === BlockOp.FLUSH ? 0 : -Errno.EROFS;
    }
    if (op === BlockOp.FLUSH && !this.#commands.canFlush) return 0;
    if (op === BlockOp.DISCARD && !this.#commands.canTrim) {
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
    this.#commands.writeThrough = !on;
    return 0;
  }

  counters(): Readonly<Record<string, number>> {
    return {
      ...this.#counters.toRecord(),
      connected: this.#link.connected ? 1 : 0,
      inFlight: this.#slots.used + this.#overflow.length,
      unflushedWrites: this.#commands.unflushed,
    };
  }

  save(): DeviceState {
    const requests = this.#slots.all.filter((it) => it.request !== null);
    refuseInFlight(this, requests.length + this.#overflow.length);
    if (this.#slots.used > 0 || !this.#receiver.idle || !this.#sender.idle) {
      // Whoever comes next could not tell what the rest of the stream is.
      this.#lose("it moves, and the server owes replies to what was given up");
    }
    return FORM.write({
      ...this.#link.save(),
      ...this.#commands.save(),
      counters: this.#counters.toRecord(),
    });
  }

  handOver(bag: ResourceBag): void {
    this.#link.handOver(bag);
  }

  close(): void {
    this.drain();
    this.#ticker.close();
    this.#sayGoodbye();
    this.#link.close();
    this.#sender.close();
    this.#receiver.close();
  }

  onReply(slot: NbdSlot, error: number): void {
    this.#link.answered();
    if (slot.state === NbdSlotState.ABANDONED) {
      if (slot.writes) this.#abandonedWrites--;
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
    } else if (slot.command === NBD_CMD.FLUSH) {
      this.#commands.flushed(slot);
      this.#end(slot, 0);
    } else {
      this.#advance(slot);
    }
    this.#refill();
  }

  /** Puts a request into a slot and queues that; false when there is none. */
  #begin(request: BlockRequest): boolean {
    const slot = this.#slots.take();
    if (slot === null) return false;
    slot.request = request;
    request.slot = slot.index;
    slot.deadline = this.#tick + this.#timeoutTicks;
    this.#queue(slot);
    return true;
  }

  /** Queues a request from its beginning. */
  #queue(slot: NbdSlot): void {
    slot.doneBytes = 0;
    this.#commands.prepare(slot);
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

  /** Goes on when a command of a request was done, to the next one or the end. */
  #advance(slot: NbdSlot): void {
    slot.doneBytes += slot.lengthBytes;
    if (slot.doneBytes < slot.request!.lengthBytes) {
      this.#commands.prepare(slot);
    } else if (this.#commands.needsFlush(slot)) {
      this.#commands.prepareFlush(slot);
    } else {
      this.#commands.written(slot);
      this.#end(slot, 0);
      return;
    }
    slot.deadline = this.#tick + this.#timeoutTicks;
    this.#sender.push(slot);
    this.#flush();
  }

  /** Gives a slot back, and its request to the controller. */
  #end(slot: NbdSlot, result: number): void {
    const request = slot.request!;
    this.#slots.release(slot);
    countRequest(this.#counters, request, result);
    this.#client!.onComplete(request, result);
  }

  #abandon(slot: NbdSlot): void {
    slot.state = NbdSlotState.ABANDONED;
    if (slot.writes) this.#abandonedWrites++;
  }

  #completeAbandoned(): void {
    for (const slot of this.#slots.all) {
      const { request } = slot;
      if (slot.state !== NbdSlotState.ABANDONED || request === null) continue;
      slot.request = null;
      countRequest(this.#counters, request, -Errno.ECANCELED);
      this.#client!.onComplete(request, -Errno.ECANCELED);
    }
  }

  #onEvents(events: number): void {
    if ((events & ~Epoll.OUT) !== 0) {
      const result = this.#receiver.receive(this.#link.fd);
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
    this.#flush();
  }

  #flush(): void {
    if (!this.#link.connected) return;
    const result = this.#sender.flush(this.#link.fd, this.#abandonedWrites > 0);
    if (result < 0) this.#lose(errnoName(-result));
    else this.#link.wait(result === BLOCKED);
  }

  /** The connection is of no use any more: what it has not answered goes to the next one. */
  #lose(reason: string): void {
    if (!this.#link.connected) return;
    const { unflushed } = this.#commands;
    this.#link.lose(reason, unflushed);
    this.#counters.add(NbdCounter.unflushedAtLoss, unflushed);
    this.#commands.forgetUnflushed();
    this.#sender.restart();
    this.#receiver.restart(false);
    this.#abandonedWrites = 0;
    for (const slot of this.#slots.all) {
      if (slot.state === NbdSlotState.ABANDONED) this.#slots.release(slot);
      if (slot.state !== NbdSlotState.SENT) continue;
      this.#counters.add(NbdCounter.replays, 1);
      // From the beginning: what a lost server did for a part of it may be lost too.
      this.#queue(slot);
    }
  }

  #onConnected(resized: boolean): void {
    this.#commands.use(this.#link.found);
    this.#receiver.restart(this.#link.found.structuredReplies);
    // The commands that wait are made anew: this server may know others.
    for (let left = this.#sender.waiting; left > 0; left--) {
      this.#queue(this.#sender.pop()!);
    }
    if (resized) this.#client!.onResize();
    this.#flush();
  }

  /** NBD_CMD_DISC, if it can be sent at once. */
  #sayGoodbye(): void {
    if (!this.#link.connected || this.#abandonedWrites > 0) return;
    const slot = this.#slots.take();
    if (slot === null) return;
    this.#commands.prepareFlush(slot);
    slot.command = NBD_CMD.DISC;
    this.#sender.push(slot);
    this.#sender.flush(this.#link.fd, false);
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
    for (let left = this.#sender.waiting; left > 0; left--) {
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
