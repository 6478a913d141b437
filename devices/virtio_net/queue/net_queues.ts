/**
 * The queue pairs of a card that one thread serves, and the network behind them.
 *
 * @module
 */

import type { CardOptions } from "../config.ts";
import { Counters, countersOf } from "../../../src/core/counters.ts";
import type { NetBackend, NetPeer } from "../../../src/backend/net/contract.ts";
import type { DeviceContext } from "../../../src/pci/context.ts";
import type {
  QueueThreadHandler,
  QueueTransport,
} from "../../../src/virtio/device.ts";
import type { Features } from "../../../src/virtio/features.ts";
import type { Virtqueue } from "../../../src/virtio/queue/queue.ts";
import { ReceiveFilter } from "../control/filter.ts";
import { NET_COUNTERS } from "../counters.ts";
import { VIRTIO_NET_F, VIRTIO_NET_VQ } from "../defs.ts";
import { takenOffloads } from "../features.ts";
import {
  type CoalescingState,
  macFromText,
  type NetSettings,
  type PairCounts,
} from "../state.ts";
import { NO_COALESCING, Notifier } from "./coalescing.ts";
import { SEGMENTS_MAX } from "./pair.ts";
import { Receiver } from "./rx.ts";
import { Transmitter } from "./tx.ts";

/** Parts of {@linkcode NetQueues}. */
export interface NetQueuesParts {
  readonly context: Pick<DeviceContext, "memory" | "loop">;
  readonly transport: QueueTransport;
  /** Network that they are plugged into; closed here. */
  readonly backend: NetBackend;
  readonly options: NetQueuesOptions;
  /** There is something else at the other end of the network. */
  readonly onLinkChange: () => void;
}

/** Options of queue pairs. */
export type NetQueuesOptions = Omit<CardOptions, "offloads">;

const NONE: CoalescingState = {
  rx: NO_COALESCING,
  tx: NO_COALESCING,
  queues: [],
};

/**
 * A receiver and a transmitter for each pair, with a notifier for each of its queues (virtio 1.3, section 5.1.2).
 *
 * The driver knows all of them with MQ, and the first without; those of other threads find nothing in their queues. The
 * back end runs while the device runs and the card is plugged in. Of the chains that are held between calls none has been
 * written to, so nothing needs to come to its end when the card holds: frames then wait in the ring and in the back
 * end, which is left as it is; what was chosen meanwhile is done when the card goes on.
 */
export class NetQueues implements QueueThreadHandler, NetPeer {
  /** Number of pairs. */
  readonly count: number;
  /** Received frames that the driver wants. */
  readonly filter = new ReceiveFilter();
  /** Counters of this thread. */
  readonly tally = new Counters(NET_COUNTERS);
  readonly #transport: QueueTransport;
  readonly #backend: NetBackend;
  readonly #onLinkChange: () => void;
  readonly #rx: readonly Receiver[];
  readonly #tx: readonly Transmitter[];
  /** By queue number. */
  readonly #notifiers: readonly Notifier[];
  readonly #unsubscribe: () => void;
  #linkUp: boolean;
  #coalescing = NONE;
  /** Number of pairs that the driver knows of; 0 while it has not started the card. */
  #known = 0;
  #activePairs = 1;
  #running = false;
  #held = false;
  /** True when the back end is started. */
  #plugged = false;

  constructor(parts: NetQueuesParts) {
    const { context, transport, backend, options } = parts;
    const { memory, loop } = context;
    const { queuePairs, queueSize, linkUp, mtu } = options;
    this.count = queuePairs;
    this.#transport = transport;
    this.#backend = backend;
    this.#onLinkChange = parts.onLinkChange;
    this.#linkUp = linkUp;
    this.filter.reset(options.mac, false);
    const common = {
      ...{ memory, loop, backend, mtu },
      filter: this.filter,
      counters: this.tally,
      chainSegments: Math.min(queueSize, SEGMENTS_MAX),
      delayMs: options.txDelayUsec / 1000,
      reliefMs: options.rxReliefUsec / 1000,
      fail: (reason: string) => this.#fail(reason),
    };
    const interrupt = (queue: Virtqueue) => transport.interrupt(queue);
    const rx: Receiver[] = [];
    const tx: Transmitter[] = [];
    const notifiers: Notifier[] = [];
    for (let pair = 0; pair < queuePairs; pair++) {
      const rxNotifier = new Notifier(loop, interrupt, this.tally);
      const txNotifier = new Notifier(loop, interrupt, this.tally, true);
      notifiers.push(rxNotifier, txNotifier);
      rx.push(new Receiver({ ...common, pair, notifier: rxNotifier }));
      tx.push(
        new Transmitter({ ...common, pair, notifier: txNotifier }, linkUp),
      );
    }
    this.#rx = rx;
    this.#tx = tx;
    this.#notifiers = notifiers;
    this.#unsubscribe = memory.subscribe({
      onUnmap: (iova, lengthBytes) => this.#loseMemory(iova, lengthBytes),
    });
  }

  /** Number of pairs that the driver knows of; 0 while it has not started the card. */
  get known(): number {
    return this.#known;
  }

  /** True when the driver knows a receive or transmit queue of that number. */
  has(index: number): boolean {
    return index < this.#known * 2;
  }

  /** The back end is started by the settings that follow. */
  start(features: Features, queues: readonly Virtqueue[]): void {
    const has = (feature: number) => features.has(feature);
    this.#running = true;
    this.#known = has(VIRTIO_NET_F.MQ) ? this.count : 1;
    this.#activePairs = 1;
    const taken = takenOffloads(features);
    for (let pair = 0; pair < this.#known; pair++) {
      this.#rx[pair]!.start(
        queues[pair * 2]!,
        has(VIRTIO_NET_F.MRG_RXBUF),
        has(VIRTIO_NET_F.MTU),
      );
      this.#tx[pair]!.start(queues[pair * 2 + 1]!, taken);
    }
    this.filter.managesVlans(has(VIRTIO_NET_F.CTRL_VLAN));
  }

  configure(value: unknown): void {
    const settings = value as NetSettings;
    const { linkUp, activePairs, guestOffloads, coalescing } = settings;
    this.filter.setMac(macFromText(settings.mac)!);
    this.filter.load(settings.filter);
    for (const rx of this.#rx) rx.setOffloads(guestOffloads);
    this.#coalescing = coalescing;
    this.#notifiers.forEach((notifier, i) =>
      notifier.setLimits(coalescing.queues[i] ?? NO_COALESCING)
    );
    this.#activePairs = activePairs;
    this.#backend.follow?.(activePairs);
    this.#setLink(linkUp);
  }

  notify(queue: Virtqueue): void {
    const { index } = queue;
    if (!this.#running || !this.has(index)) return;
    if (isTransmitQueue(index)) this.#tx[index >> 1]!.run();
    else this.#rx[index >> 1]!.onBuffers();
  }

  onReadable(pair: number = 0): void {
    if (!this.#running || !this.#linkUp || pair >= this.#activePairs) return;
    if (!this.#held) this.#rx[pair]!.run();
  }

  onWritable(pair: number = 0): void {
    this.#tx[pair]!.onWritable();
  }

  onLinkChange(): void {
    this.#onLinkChange();
  }

  resetQueue(queue: Virtqueue): void {
    const { index } = queue;
    if (!this.has(index)) return;
    const { rx, tx } = this.#coalescing;
    if (isTransmitQueue(index)) this.#tx[index >> 1]!.resetQueue();
    else this.#rx[index >> 1]!.resetQueue();
    this.#notifiers[index]!.reset(isTransmitQueue(index) ? tx : rx);
  }

  reset(): void {
    if (this.#running && this.#linkUp) this.#unplug();
    this.#running = false;
    for (const rx of this.#rx) rx.stop();
    for (const tx of this.#tx) tx.stop();
    this.#known = 0;
    this.#coalescing = NONE;
    for (const notifier of this.#notifiers) notifier.reset(NO_COALESCING);
  }

  hold(): number {
    if (!this.#held) {
      this.#held = true;
      for (const rx of this.#rx) rx.hold();
    }
    // Interrupts that are held back go out now.
    for (const notifier of this.#notifiers) notifier.flush();
    return 0;
  }

  pause(): void {
    for (const rx of this.#rx) rx.pause();
  }

  resume(): void {
    if (!this.#held) return;
    this.#held = false;
    if (this.#running && this.#linkUp) this.#plug();
  }

  counters(): Readonly<Record<string, number>> {
    const pairs = this.count > 1 ? this.pairCounts() : [];
    return Object.assign(
      this.tally.toRecord(),
      ...pairs.map((counts, pair) => countersOf(`pair${pair}`, counts)),
      countersOf("backend", this.#backend.counters?.()),
    );
  }

  /** Traffic of each pair. */
  pairCounts(): PairCounts[] {
    return this.#rx.map((rx, pair) => ({
      rxPackets: rx.traffic.packets,
      rxBytes: rx.traffic.bytes,
      txPackets: this.#tx[pair]!.traffic.packets,
      txBytes: this.#tx[pair]!.traffic.bytes,
    }));
  }

  /** Goes on counting from what a predecessor had. */
  countFrom(
    counters: Readonly<Record<string, number>>,
    pairs: readonly PairCounts[],
  ): void {
    this.tally.restore(counters);
    for (const [pair, count] of pairs.slice(0, this.count).entries()) {
      this.#rx[pair]!.traffic.load(count.rxPackets, count.rxBytes);
      this.#tx[pair]!.traffic.load(count.txPackets, count.txBytes);
    }
  }

  /** The back end was given away: nothing but to close it is left to do for its last owner. */
  leave(): void {
    this.#running = this.#plugged = false;
  }

  close(): void {
    this.reset();
    this.#unsubscribe();
    for (const notifier of this.#notifiers) notifier.close();
    this.#backend.close();
  }

  #setLink(up: boolean): void {
    const changed = up !== this.#linkUp;
    this.#linkUp = up;
    if (changed) { for (const tx of this.#tx) tx.setLink(up); }
    if (!this.#running) return;
    if (up && !this.#plugged) this.#plug();
    else if (!up && changed) this.#unplug();
  }

  #plug(): void {
    if (this.#held) return;
    if (!this.#plugged) {
      this.#plugged = true;
      this.#backend.start(this);
    }
    for (const rx of this.#rx) rx.resume();
  }

  /** Drops what waits, also of a back end that was handed over and not started yet. */
  #unplug(): void {
    this.#plugged = false;
    this.#backend.stop();
  }

  #fail(reason: string): void {
    if (!this.#running) return;
    this.reset();
    this.#transport.fail(reason);
  }

  #loseMemory(iova: number, lengthBytes: number): void {
    for (let pair = 0; pair < this.#known; pair++) {
      this.#rx[pair]!.loseMemory(iova, lengthBytes);
    }
  }
}

/** True when a queue that is no control queue transmits. */
function isTransmitQueue(index: number): boolean {
  return (index & 1) === VIRTIO_NET_VQ.TX;
}
