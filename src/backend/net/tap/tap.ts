/**
 * A card plugged into a TAP interface of the host.
 *
 * @module
 */

import type { Loop } from "../../../loop/event_loop.ts";
import {
  type Fd,
  type ResourceBag,
  type Saved,
  setTapOffloads,
  setTapQueueAttached,
} from "../../../os/mod.ts";
import { Errno } from "../../../core/errno.ts";
import type { Log } from "../../../core/log.ts";
import type { ScatterGather } from "../../../memory/scatter_gather.ts";
import type {
  NetBackend,
  NetContext,
  NetOffloads,
  NetPeer,
} from "../contract.ts";
import type { OpenNet } from "../driver.ts";
import type { DeviceState } from "../../../core/state_form.ts";
import type { StateReader } from "../../../core/state_reader.ts";
import { parseCounters } from "../../../core/counters.ts";
import { netForm, Ownership } from "../state.ts";
import {
  TAP_COUNTERS,
  type TapCounters,
  type TapNetOptions,
} from "./driver.ts";
import { openInterface, probeTapOffloads } from "./interface.ts";
import { TapQueue } from "./queue.ts";
import { TapSender } from "./sender.ts";

/**
 * Form of its state. The interface is the descriptors', which are in a bag by pair: the kernel deletes one that was made
 * here with the last of them.
 */
const FORM = netForm("tap");

/** Opens a TAP, or goes on with one, or with some of its pairs. */
export const openTapBackend: OpenNet<TapNetOptions> = (
  options,
  context,
  saved,
) => new TapBackend(options, context, saved);

/**
 * Frames between guest memory and the kernel, which cuts, joins and checksums them where the card leaves that to it.
 *
 * With several queue pairs the kernel chooses the pair of a received frame: the one that last sent frames of its flow.
 * Pairs that {@linkcode share} has given away are served by a back end of this class on another thread. That has only
 * their queues, and knows what the first one chooses; it tells the kernel nothing.
 */
export class TapBackend implements NetBackend {
  readonly description: string;
  readonly hasVnetHeader = true;
  readonly offloads: NetOffloads;
  readonly queuePairs: number;
  /** The interface's name as the kernel gave it. */
  readonly ifname: string;
  /** By pair; none for those of which another back end alone has the descriptor. */
  readonly #queues: (TapQueue | undefined)[] = [];
  readonly #sender: TapSender;
  readonly #ownership: Ownership;
  /** True when another back end chooses for the interface. */
  readonly #isShared: boolean = false;
  /** Pairs that other threads serve. */
  readonly #shared = new Set<number>();
  readonly #loop: Loop;
  readonly #log: Log;
  #peer: NetPeer | null = null;
  #gone = false;
  /** True while what waits is kept for the first start: a queue that was detached would drop it. */
  #keeping = false;
  #wantedPairs = 1;

  /**
   * @param saved State and descriptors of a predecessor, or those that another back end shares
   * @throws {ErrnoError} With the remedy, when the interface cannot be had
   */
  constructor(
    options: TapNetOptions,
    context: NetContext,
    saved?: Saved<unknown>,
  ) {
    this.#loop = context.loop;
    this.#log = context.log;
    this.queuePairs = context.queuePairs ?? 1;
    this.#ownership = new Ownership(context.loop, saved === undefined);
    const state = saved && FORM.read(saved.state);
    const taps = state === undefined
      ? openInterface(
        options.ifname,
        this.queuePairs,
        context.mtu,
        context.log,
      )
      : [];
    this.ifname = state?.text("ifname") ?? taps[0]!.ifname;
    this.description = `tap ${this.ifname}`;
    this.#sender = new TapSender({
      queues: this.#queues,
      engine: options.engine,
      description: this.description,
      log: this.#log,
    });
    taps.forEach(({ fd }, pair) => {
      this.#queues[pair] = this.#makeQueue(pair, fd);
    });
    try {
      if (state === undefined) {
        this.offloads = probeTapOffloads(this.#queues[0]!.fd);
        this.setQueuePairs(1);
      } else {
        // To ask anew would switch off what the driver has chosen.
        const offloads = state.part("offloads");
        this.offloads = {
          take: offloads.integer("take", 0xffff_ffff),
          give: offloads.integer("give", 0xffff_ffff),
        };
        this.#isShared = state.flag("shared");
        this.#load(state, saved!.bag);
      }
    } catch (error) {
      this.close();
      throw error;
    }
  }

  get linkUp(): boolean {
    return !this.#gone;
  }

  start(peer: NetPeer): void {
    this.#ownership.take();
    const keeping = this.#keeping;
    this.stop();
    if (this.#gone) return;
    this.#peer = peer;
    for (const queue of this.#queues) {
      if (queue === undefined || this.#shared.has(queue.pair)) continue;
      if (queue.attached && !keeping) queue.discardWaiting();
      queue.start(peer);
    }
  }

  stop(): void {
    for (const queue of this.#queues) queue?.stop();
    this.#peer = null;
    if (!this.#keeping) return;
    this.#keeping = false;
    this.#detachFrom(this.#wantedPairs);
  }

  setOffloads(give: number): number {
    return setTapOffloads(this.#queues[0]!.fd, give);
  }

  setQueuePairs(count: number): number {
    this.#wantedPairs = count;
    if (!this.#keeping) {
      const result = this.#detachFrom(count);
      if (result < 0) return result;
    }
    for (let pair = 0; pair < count; pair++) {
      const queue = this.#queues[pair];
      if (queue === undefined) continue;
      const result = this.#setAttached(queue, true);
      if (result < 0) return result;
      if (this.#peer !== null && !this.#shared.has(pair)) {
        queue.start(this.#peer);
      }
    }
    return 0;
  }

  follow(count: number): void {
    if (this.#isShared) this.setQueuePairs(count);
  }

  send(frame: ScatterGather, pair: number = 0, more: boolean = false): number {
    let queue = this.#queues[pair];
    // What a driver queued before it gave the pair up still leaves.
    if (!queue?.attached) queue = this.#queues[0];
    if (queue?.attached) return this.#sender.send(frame, queue, more);
    this.#sender.dropped++;
    return -Errno.EIO;
  }

  flush(): number {
    return this.#sender.flush();
  }

  receive(into: ScatterGather, pair: number = 0): number {
    return this.#queues[pair]?.receive(into) ?? -Errno.EAGAIN;
  }

  setReceiving(on: boolean, pair: number = 0): void {
    this.#queues[pair]?.setReceiving(on);
  }

  counters(): TapCounters {
    const { dropped, batches } = this.#sender;
    return {
      txDropped: dropped,
      txBatches: batches,
      rxErrors: this.#queues.reduce(
        (sum, queue) => sum + (queue?.rxErrors ?? 0),
        0,
      ),
    };
  }

  save(): DeviceState<object> {
    return FORM.write({
      ifname: this.ifname,
      // By pair: true where the kernel gives and takes frames; null for a pair that is not in the bag.
      attached: this.#queues.map((queue) => queue!.attached),
      offloads: this.offloads,
      shared: false,
      running: this.#peer !== null || this.#keeping,
      gone: this.#gone,
      counters: this.counters(),
    });
  }

  handOver(bag: ResourceBag): void {
    this.#put([...this.#queues.keys()], bag);
    this.#ownership.giveAway();
  }

  share(pairs: readonly number[], bag: ResourceBag): DeviceState {
    this.#put(pairs, bag);
    for (const pair of pairs) this.#shared.add(pair);
    return FORM.write({
      ...this.save().body,
      attached: this.#queues.map((_, pair) =>
        pairs.includes(pair) ? pair < this.#wantedPairs : null
      ),
      shared: true,
      running: false,
      counters: { txDropped: 0, txBatches: 0, rxErrors: 0 },
    });
  }

  reclaim(): void {
    for (const pair of this.#shared) {
      if (this.#peer !== null) this.#queues[pair]!.start(this.#peer);
    }
    this.#shared.clear();
  }

  /** Detaches; an interface that was made on opening goes away. */
  close(): void {
    this.#peer = null;
    // A ring holds the descriptors beyond their end.
    this.#sender.close();
    // Whoever attaches to an interface that stays may not know of offloads; of one that is gone there is nothing to set.
    if (this.#ownership.end() && !this.#isShared) {
      setTapOffloads(this.#queues[0]!.fd, 0);
    }
    for (const queue of this.#queues) queue?.close();
  }

  #makeQueue(pair: number, fd: Fd, attached?: boolean): TapQueue {
    const onGone = () => this.#onGone();
    return new TapQueue(pair, fd, this.#loop, onGone, attached);
  }

  #load(state: StateReader, bag: ResourceBag): void {
    const counters = parseCounters(TAP_COUNTERS, state.value("counters"));
    for (const [pair, attached] of state.list("attached").entries()) {
      if (attached === null) continue;
      if (typeof attached !== "boolean") {
        throw state.refused("its attached cannot be");
      }
      const fd = bag.take(`${pair}`);
      this.#queues[pair] = this.#makeQueue(pair, fd, attached);
      if (attached) this.#wantedPairs = pair + 1;
    }
    this.#keeping = state.flag("running");
    this.#gone = state.flag("gone");
    this.#sender.dropped = counters.txDropped;
    this.#sender.batches = counters.txBatches;
    const first = this.#queues[0];
    if (first !== undefined) first.rxErrors = counters.rxErrors;
  }

  #put(pairs: readonly number[], bag: ResourceBag): void {
    for (const pair of pairs) bag.put(`${pair}`, this.#queues[pair]!.fd);
  }

  /** @returns 0 or −errno */
  #detachFrom(count: number): number {
    // From the end, so that the kernel's numbers of those that remain stay as they are.
    for (let pair = this.#queues.length - 1; pair >= count; pair--) {
      const queue = this.#queues[pair];
      if (queue === undefined) continue;
      queue.stop();
      const result = this.#setAttached(queue, false);
      if (result < 0) return result;
    }
    return 0;
  }

  /** @returns 0 or −errno */
  #setAttached(queue: TapQueue, on: boolean): number {
    if (queue.attached === on) return 0;
    const result = this.#isShared ? 0 : setTapQueueAttached(queue.fd, on);
    if (result === 0) queue.attached = on;
    return result;
  }

  #onGone(): void {
    if (this.#isShared) {
      // The pair was given up, and word of that is on its way; or the interface was deleted, which is told elsewhere.
      for (const queue of this.#queues) queue?.stop();
      return;
    }
    if (this.#gone) return;
    this.#gone = true;
    const peer = this.#peer;
    this.stop();
    peer?.onLinkChange?.();
    this.#log.warn(
      `${this.ifname} was deleted: its card has no network any more, restart the device to attach anew`,
    );
  }
}
