/**
 * A card plugged into a TAP interface of the host.
 *
 * @module
 */

import type { Loop } from "../../../loop/event_loop.ts";
import {
  type ResourceBag,
  type Saved,
  setTapOffloads,
} from "../../../os/mod.ts";
import type { Log } from "../../../core/log.ts";
import type { ScatterGather } from "../../../memory/scatter_gather.ts";
import type {
  NetBackend,
  NetContext,
  NetOffloads,
  NetPeer,
} from "../contract.ts";
import type { OpenNet } from "../driver.ts";
import { Ownership } from "../ownership.ts";
import { isOfKind, type NetBackendState, takeState } from "../state.ts";
import type { TapCounters, TapNetOptions } from "./driver.ts";
import { InterfaceControl } from "./interface.ts";
import { openTapQueues, probeTapOffloads } from "./open.ts";
import { receiveErrors, TapQueue, type TapQueueListener } from "./queue.ts";
import { TapSender } from "./sender.ts";
import { type SharedTap, TAP_SHARE_KIND, TapTwin } from "./twin.ts";

const KIND = "tap";

/**
 * The interface is the descriptors', which are in a bag by pair: the kernel deletes one that was made here with the last
 * of them.
 */
interface TapState extends NetBackendState {
  readonly ifname: string;
  /** By pair. */
  readonly attached: readonly boolean[];
  /** What was found out at first; to ask anew would switch off what the driver has chosen. */
  readonly offloads: NetOffloads;
  readonly running: boolean;
  readonly gone: boolean;
  readonly counters: TapCounters;
}

/** Opens a TAP, or some pairs of one that is open already. */
export const openTapBackend: OpenNet<TapNetOptions> = (
  options,
  context,
  saved,
) =>
  saved !== undefined && isOfKind(saved.state, TAP_SHARE_KIND)
    ? new TapTwin(options, context, saved)
    : new TapBackend(options, context, saved);

/**
 * Frames between guest memory and the kernel, which cuts, joins and checksums them where the card leaves that to it.
 *
 * With several queue pairs the kernel chooses the pair of a received frame: the one that last sent frames of its flow.
 */
export class TapBackend implements NetBackend, TapQueueListener {
  readonly description: string;
  readonly hasVnetHeader = true;
  readonly offloads: NetOffloads;
  readonly queuePairs: number;
  /** The interface's name as the kernel gave it. */
  readonly ifname: string;
  readonly #queues: TapQueue[] = [];
  readonly #sender: TapSender;
  readonly #ownership: Ownership;
  /** Pairs that other threads serve. */
  readonly #lent = new Set<number>();
  readonly #log: Log;
  #peer: NetPeer | null = null;
  #gone = false;
  /** What waits is to be kept for the first start: a queue that was detached would drop it. */
  #keeping = false;
  #wantedPairs = 1;
  /** Receive errors of predecessors. */
  #rxErrorsBefore = 0;

  /**
   * @param saved What a predecessor was and had open, if there was one
   * @throws {ErrnoError} With the remedy, when the interface cannot be had
   */
  constructor(
    options: TapNetOptions,
    context: NetContext,
    saved?: Saved<unknown>,
  ) {
    this.#log = context.log;
    this.queuePairs = context.queuePairs ?? 1;
    this.#ownership = new Ownership(context.loop, saved === undefined);
    if (saved !== undefined) {
      const state = takeState<TapState>(saved.state, KIND);
      this.ifname = state.ifname;
      this.description = `tap ${this.ifname}`;
      this.offloads = state.offloads;
      this.#sender = this.#makeSender(options);
      this.#load(state, saved.bag, context.loop);
      return;
    }
    using control = new InterfaceControl();
    const existed = control.exists(options.ifname);
    const taps = openTapQueues(options.ifname, this.queuePairs);
    taps.forEach(({ fd }, pair) =>
      this.#queues.push(new TapQueue(pair, fd, context.loop, this))
    );
    this.ifname = taps[0]!.ifname;
    this.description = `tap ${this.ifname}`;
    this.#sender = this.#makeSender(options);
    try {
      this.offloads = probeTapOffloads(this.#queues[0]!.fd);
      if (existed) this.#inspect(control, context.mtu);
      else this.#setUp(control, context.mtu);
      this.setQueuePairs(1);
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
      if (this.#lent.has(queue.pair)) continue;
      if (queue.attached && !keeping) queue.discardWaiting();
      queue.start();
    }
  }

  stop(): void {
    for (const queue of this.#queues) queue.stop();
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
    for (let i = 0; i < count; i++) {
      const result = this.#queues[i]!.setAttached(true);
      if (result < 0) return result;
      if (this.#peer !== null && !this.#lent.has(i)) this.#queues[i]!.start();
    }
    return 0;
  }

  send(frame: ScatterGather, pair: number = 0, more: boolean = false): number {
    let queue = this.#queues[pair]!;
    // What a driver queued before it gave the pair up still leaves.
    if (!queue.attached) queue = this.#queues[0]!;
    return this.#sender.send(frame, queue, more);
  }

  flush(): number {
    return this.#sender.flush();
  }

  receive(into: ScatterGather, pair: number = 0): number {
    return this.#queues[pair]!.receive(into);
  }

  setReceiving(on: boolean, pair: number = 0): void {
    this.#queues[pair]!.setReceiving(on);
  }

  onQueueReadable(pair: number): void {
    this.#peer?.onReadable(pair);
  }

  onQueueWritable(pair: number): void {
    this.#peer?.onWritable(pair);
  }

  onGone(): void {
    if (this.#gone) return;
    this.#gone = true;
    const peer = this.#peer;
    this.stop();
    peer?.onLinkChange?.();
    this.#log.warn(
      `${this.ifname} was deleted: its card has no network any more, restart the device to attach anew`,
    );
  }

  counters(): TapCounters {
    const { dropped, batches } = this.#sender;
    return {
      txDropped: dropped,
      txBatches: batches,
      rxErrors: this.#rxErrorsBefore + receiveErrors(this.#queues),
    };
  }

  save(): TapState {
    return {
      version: 1,
      kind: KIND,
      ifname: this.ifname,
      attached: this.#queues.map(({ attached }) => attached),
      offloads: this.offloads,
      running: this.#peer !== null || this.#keeping,
      gone: this.#gone,
      counters: this.counters(),
    };
  }

  handOver(bag: ResourceBag): void {
    for (const { pair, fd } of this.#queues) bag.put(`${pair}`, fd);
    this.#ownership.giveAway();
  }

  share(pairs: readonly number[], bag: ResourceBag): SharedTap {
    for (const pair of pairs) bag.put(`${pair}`, this.#queues[pair]!.fd);
    for (const pair of pairs) this.#lent.add(pair);
    return {
      version: 1,
      kind: TAP_SHARE_KIND,
      ifname: this.ifname,
      offloads: this.offloads,
      queuePairs: this.queuePairs,
      activePairs: this.#wantedPairs,
      pairs,
    };
  }

  reclaim(): void {
    for (const pair of this.#lent) {
      if (this.#peer !== null) this.#queues[pair]!.start();
    }
    this.#lent.clear();
  }

  /** Detaches; an interface that was made on opening goes away. */
  close(): void {
    this.#peer = null;
    // A ring holds the descriptors beyond their end.
    this.#sender.close();
    // Whoever attaches to an interface that stays may not know of offloads; of one that is gone there is nothing to set.
    if (this.#ownership.end()) setTapOffloads(this.#queues[0]!.fd, 0);
    for (const queue of this.#queues) queue.close();
  }

  #makeSender({ engine }: TapNetOptions): TapSender {
    return new TapSender({
      queues: this.#queues,
      engine,
      description: this.description,
      log: this.#log,
    });
  }

  #load(state: TapState, bag: ResourceBag, loop: Loop): void {
    try {
      for (const [pair, attached] of state.attached.entries()) {
        const fd = bag.take(`${pair}`);
        this.#queues.push(new TapQueue(pair, fd, loop, this, { attached }));
      }
    } catch (error) {
      this.close();
      throw error;
    }
    this.#keeping = state.running;
    this.#gone = state.gone;
    this.#wantedPairs = state.attached.filter((on) => on).length;
    this.#sender.dropped = state.counters.txDropped;
    this.#sender.batches = state.counters.txBatches;
    this.#rxErrorsBefore = state.counters.rxErrors;
  }

  /** @returns 0 or −errno */
  #detachFrom(count: number): number {
    // From the end, so that the kernel's numbers of those that remain stay as they are.
    for (let i = this.#queues.length - 1; i >= count; i--) {
      this.#queues[i]!.stop();
      const result = this.#queues[i]!.setAttached(false);
      if (result < 0) return result;
    }
    return 0;
  }

  /** Someone else's interface is left as it is; say what will not work. */
  #inspect(control: InterfaceControl, mtu: number): void {
    const { ifname } = this;
    if (!control.isUp(ifname)) {
      this.#log.warn(
        `${ifname} is down and drops all frames: run "ip link set ${ifname} up"`,
      );
    }
    const theirs = control.mtu(ifname);
    if (theirs > mtu) {
      this.#log.warn(
        `${ifname} has an MTU of ${theirs}, the card of ${mtu}, longer packets will be cut: ` +
          `run "ip link set ${ifname} mtu ${mtu}"`,
      );
    }
  }

  /** An interface of our own works at once as far as it can: an address or a bridge is the user's to choose. */
  #setUp(control: InterfaceControl, mtu: number): void {
    const { ifname } = this;
    if (control.mtu(ifname) !== mtu) control.setMtu(ifname, mtu);
    control.bringUp(ifname);
    this.#log.info(
      `Made interface ${ifname} and brought it up: give it an address ("ip address add 192.168.76.1/24 dev ${ifname}") ` +
        `or a bridge ("ip link set ${ifname} master br0")`,
    );
  }
}
