/**
 * The queue pairs of a card.
 *
 * @module
 */

import type { Loop } from "../../../src/loop/event_loop.ts";
import type { GuestMemory } from "../../../src/memory/guest_memory.ts";
import type { NetBackend } from "../../../src/backend/net/contract.ts";
import type { Features } from "../../../src/virtio/features.ts";
import type { Virtqueue } from "../../../src/virtio/queue/queue.ts";
import { Notifier } from "./coalescing.ts";
import type { NetCounters } from "../counters.ts";
import { VIRTIO_NET_F, VIRTIO_NET_VQ } from "../defs.ts";
import type { ReceiveFilter } from "../control/filter.ts";
import { takenOffloads } from "../offloads.ts";
import { Receiver } from "./rx.ts";
import type { PairCounts } from "../state.ts";
import { Transmitter } from "./tx.ts";

/** What {@linkcode QueuePairs} work with. */
export interface QueuePairsOptions {
  readonly memory: GuestMemory;
  readonly loop: Loop;
  readonly backend: NetBackend;
  readonly filter: ReceiveFilter;
  readonly counters: NetCounters;
  /** Largest IP packet in bytes. */
  readonly mtu: number;
  /** The most descriptors in a chain. */
  readonly chainSegments: number;
  /** As {@linkcode TransmitterOptions.delayMs}. */
  readonly delayMs: number;
  /** As {@linkcode ReceiverOptions.reliefMs}. */
  readonly reliefMs: number;
  /** Interrupts the driver of a queue. */
  readonly interrupt: (queue: Virtqueue) => void;
  /** The driver broke a rule. */
  readonly fail: (reason: string) => void;
}

/**
 * A receiver and a transmitter for each pair, with a notifier for each of its queues (virtio 1.3, section 5.1.2).
 *
 * The driver knows all of them with MQ, and the first without. What is done to the card is done to each.
 */
export class QueuePairs {
  /** How many there are. */
  readonly count: number;
  /** By pair. */
  readonly rx: readonly Receiver[];
  /** By pair. */
  readonly tx: readonly Transmitter[];
  /** By queue number. */
  readonly notifiers: readonly Notifier[];
  #known = 0;

  /** @param linkUp Whether frames can be sent at first */
  constructor(options: QueuePairsOptions, count: number, linkUp: boolean) {
    const { loop, counters, interrupt } = options;
    const rx: Receiver[] = [];
    const tx: Transmitter[] = [];
    const notifiers: Notifier[] = [];
    for (let pair = 0; pair < count; pair++) {
      const rxNotifier = new Notifier(loop, interrupt, counters);
      const txNotifier = new Notifier(loop, interrupt, counters, true);
      notifiers.push(rxNotifier, txNotifier);
      rx.push(new Receiver({ ...options, pair, notifier: rxNotifier }));
      tx.push(
        new Transmitter({ ...options, pair, notifier: txNotifier }, linkUp),
      );
    }
    this.count = count;
    this.rx = rx;
    this.tx = tx;
    this.notifiers = notifiers;
  }

  /** How many the driver knows of; 0 while it has not started the card. */
  get known(): number {
    return this.#known;
  }

  /** Whether the driver knows a receive or transmit queue of that number. */
  has(index: number): boolean {
    return index < this.#known * 2;
  }

  /** The driver has started the card. */
  start(features: Features, queues: readonly Virtqueue[]): void {
    const has = (feature: number) => features.has(feature);
    this.#known = has(VIRTIO_NET_F.MQ) ? this.count : 1;
    const taken = takenOffloads(features);
    for (let pair = 0; pair < this.#known; pair++) {
      this.rx[pair]!.start(
        queues[pair * 2]!,
        has(VIRTIO_NET_F.MRG_RXBUF),
        has(VIRTIO_NET_F.MTU),
      );
      this.tx[pair]!.start(queues[pair * 2 + 1]!, taken);
    }
  }

  /** A range of guest memory is about to be unmapped. */
  loseMemory(iova: number, lengthBytes: number): void {
    for (let pair = 0; pair < this.#known; pair++) {
      this.rx[pair]!.loseMemory(iova, lengthBytes);
    }
  }

  /** The driver has added buffers to a queue. */
  notify(index: number): void {
    if (!this.has(index)) return;
    if (isTransmitQueue(index)) this.tx[index >> 1]!.run();
    else this.rx[index >> 1]!.onBuffers();
  }

  /** The driver resets a queue that it knows. */
  resetQueue(index: number): void {
    if (isTransmitQueue(index)) this.tx[index >> 1]!.resetQueue();
    else this.rx[index >> 1]!.resetQueue();
  }

  /** Forgets the driver's queues. */
  stop(): void {
    for (const rx of this.rx) rx.stop();
    for (const tx of this.tx) tx.stop();
    this.#known = 0;
  }

  /** The back end begins anew. */
  resume(): void {
    for (const rx of this.rx) rx.resume();
  }

  /** See {@linkcode Receiver.hold}. */
  hold(): void {
    for (const rx of this.rx) rx.hold();
  }

  /** See {@linkcode Receiver.pause}. */
  pause(): void {
    for (const rx of this.rx) rx.pause();
  }

  /** Interrupts that are held back go out now. */
  flushInterrupts(): void {
    for (const notifier of this.notifiers) notifier.flush();
  }

  /** See {@linkcode Transmitter.setLink}. */
  setLink(up: boolean): void {
    for (const tx of this.tx) tx.setLink(up);
  }

  /** See {@linkcode Receiver.setOffloads}. */
  setOffloads(offloads: number): void {
    for (const rx of this.rx) rx.setOffloads(offloads);
  }

  /** What each pair has moved. */
  counts(): PairCounts[] {
    return this.rx.map((rx, pair) => ({
      rxPackets: rx.packets,
      rxBytes: rx.bytes,
      txPackets: this.tx[pair]!.packets,
      txBytes: this.tx[pair]!.bytes,
    }));
  }

  /** Goes on counting from what a predecessor had. */
  countFrom(counts: readonly PairCounts[]): void {
    for (const [pair, count] of counts.slice(0, this.count).entries()) {
      this.rx[pair]!.countFrom(count.rxPackets, count.rxBytes);
      this.tx[pair]!.countFrom(count.txPackets, count.txBytes);
    }
  }

  /** Adds what each pair has moved to counters by name, where there are several. */
  addCounters(counters: Record<string, number>): void {
    if (this.count === 1) return;
    for (const [pair, counts] of this.counts().entries()) {
      for (const [name, value] of Object.entries(counts)) {
        counters[`pair${pair}.${name}`] = value;
      }
    }
  }

  /** Frees the notifiers. */
  close(): void {
    for (const notifier of this.notifiers) notifier.close();
  }
}

function isTransmitQueue(index: number): boolean {
  return (index & 1) === VIRTIO_NET_VQ.TX;
}
