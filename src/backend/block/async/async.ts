/**
 * Blocks in a store: what an IOThread does of it.
 *
 * A store never gets guest memory. What a guest writes is copied into a slot of the ring when it is submitted, and what
 * it reads is copied out of one when the store has said so; a request that is given up leaves its slot to the store,
 * until that comes to an end of it. A write that was given up may be done at any time until then, so that nothing which
 * overlaps it is begun.
 *
 * @module
 */

import { Counters } from "../../../core/counters.ts";
import { Errno } from "../../../core/errno.ts";
import type { Log } from "../../../core/log.ts";
import { ModelError } from "../../../core/model_fault.ts";
import type { FdWatch, Loop, Poller, Timer } from "../../../loop/event_loop.ts";
import {
  drainEventFd,
  type Fd,
  Poll,
  pollFd,
  type ResourceBag,
  type Saved,
} from "../../../os/mod.ts";
import {
  type BlockBackend,
  type BlockClient,
  type BlockContext,
  type BlockInfo,
  BlockOp,
  type BlockRequest,
  PENDING,
} from "../contract.ts";
import type { BeginOpenBlock, OpenBlock } from "../driver.ts";
import type { DeviceState } from "../../../core/state_form.ts";
import { blockForm, readInfo, refuseInFlight } from "../state.ts";
import { RequestQueue } from "../request_queue.ts";
import { SegmentCopy } from "../../../memory/segments.ts";
import {
  numberAt,
  putNumber,
  REQUEST,
  requestAt,
  RING,
  Ring,
  SLOTS,
  type StoreLine,
  StoreLink,
  StoreState,
} from "./link.ts";
import { countRequest } from "../counters.ts";
import {
  SLOT_BYTES,
  STORE_COUNTERS,
  type StoreBlockOptions,
  StoreCounter,
} from "./driver.ts";

/** Time it may take until a store is open or has said that it is not: its file has 30 s to load, and then 10 to open. */
const START_TIMEOUT_MS = 45_000;
/** Time it may take until it is closed, all stores of a thread at once; less than the thread has for its stop. */
const CLOSE_TIMEOUT_MS = 4000;
/** Interval of the looks at requests in flight. */
const TICK_MS = 250;
/** Time that requests wait for nothing but such as were given up, until that is told. */
const HELD_UP_MS = 5000;
const REMEDY =
  "to open it anew restart this process, or remove and add the namespace of an NVMe controller";
const KIND = "backend";
const FORM = blockForm(KIND);
const { MAX_SAFE_INTEGER } = Number;
const INDEX_MASK = SLOTS - 1;

/** Use of a slot. */
const SlotState = {
  FREE: 0,
  /** By a request in flight. */
  SENT: 1,
  /** By the store alone. */
  ABANDONED: 2,
} as const;

/** Opens a store. */
export const openAsync: OpenBlock<StoreBlockOptions> = (
  options,
  context,
  saved,
) => new AsyncBackend(options, context, saved ?? openStore(options));

/** Message to the Worker when it starts. */
export interface StoreStart {
  readonly linkHva: number;
  readonly options: StoreBlockOptions;
}

/** Message of the Worker when the store is open. */
export interface StoreOpened {
  /** For people. */
  readonly description: string;
  readonly info: BlockInfo;
}

/** A store that is open, and by whom. */
interface OpenStore {
  readonly opening: StoreOpening;
  readonly opened: StoreOpened;
}

/** A store, served by a Worker that has a runtime. */
export class AsyncBackend implements BlockBackend {
  readonly description: string;
  readonly info: BlockInfo;
  readonly #loop: Loop;
  readonly #log: Log;
  readonly #link: StoreLink;
  readonly #ring: Ring;
  readonly #words: Int32Array<ArrayBuffer>;
  /** A duplicate of the ring's eventfd; null for whoever has made that. */
  readonly #ownEventFd: Fd | null;
  /** Worker of the store, which whoever has made it can end. */
  readonly #worker: Worker | null;
  readonly #ticker: Timer;
  /** Ticks that a request may take; 0 for ever. */
  readonly #timeoutTicks: number;
  readonly #timeoutMs: number;
  readonly #counts = new Counters(STORE_COUNTERS);
  readonly #states = new Uint8Array(SLOTS);
  readonly #requests: (BlockRequest | null)[] = Array.from(
    { length: SLOTS },
    () => null,
  );
  /** By slot: the tick at which it is given up. */
  readonly #deadlines = new Int32Array(SLOTS);
  readonly #free = new Int32Array(SLOTS);
  readonly #waiting = new RequestQueue<BlockRequest>();
  readonly #copy = new SegmentCopy();
  #freeCount = 0;
  #submitted: number;
  #abandoned = 0;
  #abandonedWrites = 0;
  /** The tick at which something that waited was begun last. */
  #begunAt = 0;
  #tick = 0;
  #ticking = false;
  #durable: boolean;
  #ended = false;
  #brokeRules = false;
  #toldHeldUp = false;
  /** True if it counts as one that uses the link, as it does from its start until it hands over or is closed. */
  #hasShare: boolean;
  /** True if it is one more when it starts, beside the one that has shared with it. */
  #joins: boolean;
  /** Asks for nothing more when everything on the loop is about to be closed. */
  readonly #beforeClose: Disposable;
  /** Time until which the store is waited for when it closes; Infinity as long as it is asked for something. */
  #closeByMs = Infinity;
  #client: BlockClient | null = null;
  #watch: FdWatch | null = null;
  #poller: Poller | null = null;

  /**
   * Begins with a store that is open, or goes on with what another thread gave.
   *
   * @throws {Error} When that is in another process, or makes no sense
   */
  constructor(
    options: StoreBlockOptions,
    context: BlockContext,
    from: OpenStore | Saved<unknown>,
  ) {
    const open = "opening" in from ? from : null;
    const saved = "opening" in from ? null : from;
    this.#loop = context.loop;
    this.#log = context.log;
    this.#timeoutMs = options.timeoutMs;
    this.#timeoutTicks = Math.ceil(options.timeoutMs / TICK_MS);
    const state = saved && FORM.read(saved.state);
    if (state === null) {
      const { opening, opened } = open!;
      this.#worker = opening.worker;
      this.#link = opening.link;
      this.#ring = opening.ring;
      ({ description: this.description, info: this.info } = opened);
    } else {
      // Addresses of another process would be anything here.
      if (state.integer("pid", MAX_SAFE_INTEGER) !== Deno.pid) {
        throw state.refused("its store is in another process, and stays there");
      }
      this.#worker = null;
      this.#link = new StoreLink(state.integer("linkHva", MAX_SAFE_INTEGER));
      this.#ring = new Ring(state.integer("ringHva", MAX_SAFE_INTEGER));
      this.description = state.text("description");
      this.info = readInfo(state.value("info"));
      this.#counts.restore(state.value("counters"));
    }
    this.#hasShare = saved === null;
    this.#joins = state?.flag("shared") ?? false;
    this.#durable = state?.flag("durable") ?? false;
    this.#words = this.#ring.words;
    this.#submitted = this.#words[RING.SUBMITTED]!;
    const abandoned = state?.integers("abandoned", SLOTS - 1) ?? [];
    for (let slot = SLOTS - 1; slot >= 0; slot--) {
      if (!abandoned.includes(slot)) this.#release(slot);
      else this.#abandon(slot);
    }
    this.#ownEventFd = saved?.bag.take(KIND) ?? null;
    this.#ticker = this.#loop.timer(() => this.#onTick());
    this.#beforeClose = this.#loop.beforeClose(() => this.#retire());
  }

  start(client: BlockClient): void {
    this.#client = client;
    if (this.#watch !== null) return;
    if (this.#joins) this.#link.join();
    this.#joins = false;
    this.#hasShare = true;
    const words = this.#words;
    this.#watch = this.#loop.watchEventFd(
      this.#eventFd,
      () => this.#onEvent(),
    );
    this.#poller = this.#loop.poll(() => this.#used > 0 && this.#reap(), {
      begin: () => Atomics.store(words, RING.WANTS_EVENT, 0),
      end: () => {
        Atomics.store(words, RING.WANTS_EVENT, 1);
        return this.#ring.ready !== 0;
      },
    });
    if (this.#used > 0) this.#startTicking();
    // Nobody has listened until now, and whoever polled here before wanted no events.
    this.#onEvent();
  }

  submit(request: BlockRequest): number {
    const result = this.#refusal(request);
    if (result !== PENDING) {
      if (result < 0) this.#counts.add(StoreCounter.failed, 1);
      return result;
    }
    if (!this.#begin(request)) {
      if (this.#waiting.length === 0) this.#begunAt = this.#tick;
      this.#waiting.push(request);
      this.#counts.add(StoreCounter.queued, 1);
    }
    this.#startTicking();
    return PENDING;
  }

  commit(): void {
    const words = this.#words;
    if (words[RING.SUBMITTED] === this.#submitted) return;
    Atomics.store(words, RING.SUBMITTED, this.#submitted);
    this.#link.kick();
  }

  drain(): void {
    this.#takeDone();
    for (let slot = 0; slot < SLOTS; slot++) {
      if (this.#states[slot] === SlotState.SENT) this.#abandon(slot);
    }
    // What a controller does when it is told finds nothing in flight.
    this.#endAbandoned(-Errno.ECANCELED);
    this.#endWaiting(-Errno.ECANCELED);
    this.commit();
  }

  setWriteCache(on: boolean): number {
    this.#durable = !on;
    return 0;
  }

  counters(): Readonly<Record<string, number>> {
    const counters = this.#counts.toRecord();
    counters.inFlight = this.#used + this.#waiting.length;
    return counters;
  }

  save(): DeviceState {
    const requests = this.#requests.filter((it) => it !== null);
    refuseInFlight(this, requests.length + this.#waiting.length);
    const abandoned = [...this.#states.keys()]
      .filter((slot) => this.#states[slot] !== SlotState.FREE);
    return this.#state(this.#ring, false, abandoned, this.#counts.toRecord());
  }

  handOver(bag: ResourceBag): void {
    bag.put(KIND, this.#eventFd);
    this.#hasShare = false;
  }

  share(bag: ResourceBag): DeviceState {
    const ring = this.#link.takeRing();
    bag.put(KIND, ring.eventFd);
    return this.#state(ring, true, [], new Counters(STORE_COUNTERS).toRecord());
  }

  close(): void {
    this.#beforeClose[Symbol.dispose]();
    this.#retire();
    if (this.#hasShare) this.drain();
    this.#watch?.close();
    this.#poller?.close();
    this.#ticker.close();
    this.#ownEventFd?.close();
    // Taken for nobody, when it never began.
    if (this.#hasShare || this.#joins) this.#ring.vacate(this.#used);
    if (!this.#hasShare) return;
    this.#hasShare = this.#joins = false;
    const onLine = (line: StoreLine) => this.#onLine(line);
    if (!this.#link.leave(this.#closeByMs, onLine)) {
      this.#log.error(
        `${this.description} has not closed within ${
          CLOSE_TIMEOUT_MS / 1000
        } s and is ended: what it has not written by now may be lost`,
      );
    }
    this.#worker?.terminate();
  }

  /** Has everything wait that is submitted from here on, until it is closed. */
  #retire(): void {
    if (!this.#hasShare || this.#closeByMs !== Infinity) return;
    this.#closeByMs = performance.now() + CLOSE_TIMEOUT_MS;
    this.#link.retire();
  }

  get #eventFd(): number {
    return this.#ownEventFd?.number ?? this.#ring.eventFd;
  }

  /** Slots that the store has something to do with. */
  get #used(): number {
    return SLOTS - this.#freeCount;
  }

  #state(
    ring: Ring,
    shared: boolean,
    abandoned: readonly number[],
    counters: Readonly<Record<string, number>>,
  ): DeviceState {
    return FORM.write({
      description: this.description,
      info: this.info,
      pid: Deno.pid,
      linkHva: this.#link.hva,
      ringHva: ring.hva,
      shared,
      durable: this.#durable,
      abandoned,
      counters,
    });
  }

  /** @returns {@linkcode PENDING} for a request that the store is to do, else its result */
  #refusal({ op, lengthBytes, buffers }: BlockRequest): number {
    const { readonly, volatileCache, discardGranularityBytes } = this.info;
    if (readonly && op !== BlockOp.READ) {
      return op === BlockOp.FLUSH ? 0 : -Errno.EROFS;
    }
    if (op === BlockOp.FLUSH && !volatileCache) return 0;
    if (op === BlockOp.DISCARD && discardGranularityBytes === 0) {
      return -Errno.EOPNOTSUPP;
    }
    // The controller checks that, but here a mistake would be a write to memory of somebody else.
    if (
      op <= BlockOp.WRITE &&
      (lengthBytes > SLOT_BYTES || buffers.lengthBytes !== lengthBytes)
    ) return -Errno.EINVAL;
    return this.#ended ? -Errno.EIO : PENDING;
  }

  /** Puts a request into a slot; false when that has to wait. */
  #begin(request: BlockRequest): boolean {
    if (
      this.#freeCount === 0 || this.#closeByMs !== Infinity ||
      this.#isOverlapped(request)
    ) return false;
    const slot = this.#free[--this.#freeCount]!;
    request.slot = slot;
    this.#requests[slot] = request;
    this.#states[slot] = SlotState.SENT;
    this.#deadlines[slot] = this.#tick + this.#timeoutTicks + 1;
    const words = this.#words;
    const at = requestAt(slot);
    words[at + REQUEST.OP] = request.op;
    words[at + REQUEST.DURABLE] = this.#durable || request.durable ? 1 : 0;
    putNumber(words, at + REQUEST.OFFSET_LOW, request.offset);
    putNumber(words, at + REQUEST.LENGTH_LOW, request.lengthBytes);
    if (request.op === BlockOp.WRITE) {
      this.#copy.hva[0] = this.#ring.dataHva(slot);
      this.#copy.read(request.buffers, 0, request.lengthBytes);
    }
    words[RING.SUBMISSION + (this.#submitted & INDEX_MASK)] = slot;
    this.#submitted = (this.#submitted + 1) | 0;
    return true;
  }

  /** True if a write that was given up may be done beneath a request. */
  #isOverlapped({ offset, lengthBytes }: BlockRequest): boolean {
    if (this.#abandonedWrites === 0) return false;
    for (let slot = 0; slot < SLOTS; slot++) {
      if (this.#states[slot] !== SlotState.ABANDONED || !this.#writes(slot)) {
        continue;
      }
      const at = requestAt(slot);
      const from = numberAt(this.#words, at + REQUEST.OFFSET_LOW);
      const length = numberAt(this.#words, at + REQUEST.LENGTH_LOW);
      if (from < offset + lengthBytes && offset < from + length) return true;
    }
    return false;
  }

  #writes(slot: number): boolean {
    const op = this.#words[requestAt(slot) + REQUEST.OP];
    return op !== BlockOp.READ && op !== BlockOp.FLUSH;
  }

  #release(slot: number): void {
    if (this.#states[slot] === SlotState.ABANDONED) {
      this.#abandoned--;
      if (this.#writes(slot)) this.#abandonedWrites--;
    }
    this.#states[slot] = SlotState.FREE;
    this.#requests[slot] = null;
    this.#free[this.#freeCount++] = slot;
  }

  #abandon(slot: number): void {
    this.#states[slot] = SlotState.ABANDONED;
    this.#abandoned++;
    if (this.#writes(slot)) this.#abandonedWrites++;
  }

  #endAbandoned(result: number): void {
    for (let slot = 0; slot < SLOTS; slot++) {
      const request = this.#requests[slot]!;
      if (
        request === null || this.#states[slot] !== SlotState.ABANDONED
      ) continue;
      this.#requests[slot] = null;
      this.#end(request, result);
    }
  }

  #endWaiting(result: number): void {
    // Not those that come back meanwhile.
    for (let left = this.#waiting.length; left > 0; left--) {
      this.#end(this.#waiting.shift()!, result);
    }
  }

  /** Gives a request back to the controller. */
  #end(request: BlockRequest, result: number): void {
    countRequest(this.#counts, request, result);
    this.#client!.onComplete(request, result);
  }

  #onEvent(): void {
    Atomics.store(this.#words, RING.WANTS_EVENT, 1);
    this.#reap();
    const line = this.#link.takeLine();
    if (line !== null) this.#onLine(line);
    if (this.#link.state === StoreState.ENDED) this.#onEnded();
  }

  #onLine({ level, message }: StoreLine): void {
    this.#log[level](message);
  }

  /** Takes what is done, and begins what waits. @returns Whether anything was done */
  #reap(): boolean {
    if (!this.#takeDone()) return false;
    this.#refill();
    return true;
  }

  #takeDone(): boolean {
    const words = this.#words;
    let left = this.#ring.ready;
    if (left === 0) return false;
    if (left < 0 || left > SLOTS) {
      this.#complain(`says that ${left} requests are done at once`);
      words[RING.TAKEN] = Atomics.load(words, RING.DONE);
      return true;
    }
    let taken = words[RING.TAKEN]!;
    for (; left > 0; left--) {
      const at = RING.COMPLETION + 2 * (taken & INDEX_MASK);
      taken = (taken + 1) | 0;
      // Before a controller is told: it may drain.
      words[RING.TAKEN] = taken;
      this.#onDone(words[at]!, words[at + 1]!);
    }
    return true;
  }

  #onDone(slot: number, result: number): void {
    const request = this.#requests[slot] ?? null;
    const state = this.#states[slot] ?? SlotState.FREE;
    if (state === SlotState.FREE) {
      this.#complain(`says that request ${slot} is done, which is none`);
      return;
    }
    this.#release(slot);
    if (request === null) {
      this.#counts.add(StoreCounter.lateReplies, 1);
      return;
    }
    if (result === 0 && request.op === BlockOp.READ) {
      this.#copy.hva[0] = this.#ring.dataHva(slot);
      this.#copy.write(request.buffers, 0, request.lengthBytes);
    }
    this.#end(request, result > 0 ? -Errno.EIO : result);
  }

  /** Once: whoever breaks the rules may do so a million times a second. */
  #complain(what: string): void {
    if (this.#brokeRules) return;
    this.#brokeRules = true;
    this.#log.error(
      `${this.description} ${what}; such answers are ignored from here on`,
    );
  }

  #refill(): void {
    for (let left = this.#waiting.length; left > 0; left--) {
      if (this.#freeCount === 0) break;
      const request = this.#waiting.shift()!;
      if (this.#begin(request)) this.#begunAt = this.#tick;
      else this.#waiting.push(request);
    }
    this.commit();
  }

  #onEnded(): void {
    if (this.#ended) return;
    this.#ended = true;
    if (this.#link.claimEnd()) {
      this.#log.error(
        `${this.description} has ended: ${this.#link.outcome}; the disk fails whatever is asked of it; ${REMEDY}`,
        { event: "STORE_ENDED", reason: this.#link.outcome },
      );
    }
    for (let slot = 0; slot < SLOTS; slot++) {
      if (this.#states[slot] === SlotState.SENT) this.#abandon(slot);
    }
    this.#endAbandoned(-Errno.EIO);
    this.#endWaiting(-Errno.EIO);
  }

  #startTicking(): void {
    if (this.#ticking) return;
    this.#ticking = true;
    this.#ticker.arm(TICK_MS);
  }

  #onTick(): void {
    this.#ticking = false;
    this.#tick++;
    if (this.#used === 0 && this.#waiting.length === 0) return;
    if (this.#ended || this.#closeByMs !== Infinity) return;
    this.#startTicking();
    if (this.#link.isDeserted) {
      this.#link.end("its Worker is gone, and nobody has said why");
      return this.#onEnded();
    }
    this.#tellIfHeldUp();
    if (this.#timeoutTicks > 0) this.#giveUpLate();
  }

  /** Tells once of requests that wait and find no place, or none to write to, until the store ends what was given up. */
  #tellIfHeldUp(): void {
    const sinceMs = (this.#tick - this.#begunAt) * TICK_MS;
    if (
      this.#toldHeldUp || this.#waiting.length === 0 ||
      this.#abandoned < this.#used ||
      sinceMs < Math.min(HELD_UP_MS, this.#timeoutMs || HELD_UP_MS)
    ) return;
    this.#toldHeldUp = true;
    this.#log.warn(
      `${this.description} has not ended ${this.#abandoned} requests that a guest gave up, by a reset or after timeout=; what is asked of the disk now waits for them. If the store ends none, ${REMEDY}`,
    );
  }

  #giveUpLate(): void {
    let late = 0;
    for (let slot = 0; slot < SLOTS; slot++) {
      if (
        this.#states[slot] !== SlotState.SENT ||
        this.#deadlines[slot]! > this.#tick
      ) continue;
      this.#abandon(slot);
      late++;
    }
    const stuck = this.#waiting.length > 0 &&
      this.#tick - this.#begunAt > this.#timeoutTicks;
    if (stuck) late += this.#waiting.length;
    if (late === 0) return;
    if (this.#counts.values[StoreCounter.timeouts] === 0) {
      this.#log.warn(
        `${this.description} has not answered for ${
          Math.round(this.#timeoutMs / 1000)
        } s: the guest is told of an I/O error`,
      );
    }
    this.#counts.add(StoreCounter.timeouts, late);
    this.#endAbandoned(-Errno.ETIMEDOUT);
    if (stuck) this.#endWaiting(-Errno.ETIMEDOUT);
  }
}

/** A store that a Worker opens. */
class StoreOpening {
  readonly link = StoreLink.make();
  readonly ring = this.link.takeRing();
  // From a Worker, as IOThreads are, that takes Deno 2.9 a second: but it needs nobody else, at whatever time.
  readonly worker = new Worker(
    new URL("./worker.ts", import.meta.url).href,
    { type: "module", name: "store" },
  );
  readonly #reference: string;
  readonly #deadlineMs = performance.now() + START_TIMEOUT_MS;

  /** Starts the Worker. */
  constructor(options: StoreBlockOptions) {
    this.#reference = options.reference;
    // It says in the link why it ends, and needs no one else to end for it.
    this.worker.onerror = (event) => event.preventDefault();
    const start: StoreStart = { linkHva: this.link.hva, options };
    this.worker.postMessage(start);
  }

  /** Time that is left, in milliseconds; not positive when it is over. */
  get leftMs(): number {
    return this.#deadlineMs - performance.now();
  }

  /** The end of the opening; null while it is not known. @throws {Error} With one line, and the remedy */
  look(): StoreOpened | null {
    const { link } = this;
    const { state } = link;
    if (state === StoreState.OPEN) return link.outcome as StoreOpened;
    const isLate = state === StoreState.OPENING;
    if (isLate && this.leftMs > 0) return null;
    const why = isLate
      ? `it has not returned for ${START_TIMEOUT_MS / 1000} s`
      : link.outcome as string;
    this.giveUp(isLate ? 0 : CLOSE_TIMEOUT_MS);
    // An author's own words come with their place before them.
    if (why.startsWith("Cannot ")) throw new ModelError(why);
    throw new Error(`Cannot open store ${this.#reference}: ${why}`);
  }

  /** @param timeoutMs Time that it has to end by itself */
  giveUp(timeoutMs: number): void {
    this.link.retire();
    this.link.leave(performance.now() + timeoutMs, () => {});
    this.worker.terminate();
  }
}

/** Waits, blocking, until a store is open. */
function openStore(options: StoreBlockOptions): OpenStore {
  const opening = new StoreOpening(options);
  for (;;) {
    const opened = opening.look();
    if (opened !== null) return { opening, opened };
    pollFd(opening.ring.eventFd, Poll.IN, Math.max(opening.leftMs, 0));
    drainEventFd(opening.ring.eventFd);
  }
}

/** Opens a store while the loop goes on. */
export const beginOpenAsync: BeginOpenBlock<StoreBlockOptions> = (
  options,
  context,
  tell,
) => {
  const { loop } = context;
  const opening = new StoreOpening(options);
  const end = () => {
    watch.close();
    timer.close();
  };
  const look = () => {
    let outcome: BlockBackend | Error;
    try {
      const opened = opening.look();
      if (opened === null) return;
      end();
      outcome = new AsyncBackend(options, context, { opening, opened });
    } catch (error) {
      end();
      outcome = error as Error;
    }
    tell(outcome);
  };
  const watch = loop.watchEventFd(opening.ring.eventFd, look);
  const timer = loop.timer(look);
  timer.arm(opening.leftMs + 1);
  return {
    [Symbol.dispose]: () => {
      end();
      opening.giveUp(0);
    },
  };
};
