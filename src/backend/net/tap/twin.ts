/**
 * Some queue pairs of a TAP interface, served by another thread than the one that opened it.
 *
 * @module
 */

import { Errno } from "../../../core/errno.ts";
import type { Saved } from "../../../os/mod.ts";
import type { ScatterGather } from "../../../memory/scatter_gather.ts";
import type {
  NetBackend,
  NetContext,
  NetOffloads,
  NetPeer,
} from "../contract.ts";
import { type NetBackendState, takeState } from "../state.ts";
import type { TapCounters, TapNetOptions } from "./driver.ts";
import { receiveErrors, TapQueue, type TapQueueListener } from "./queue.ts";
import { TapSender } from "./sender.ts";

/** The kind of the state that {@linkcode TapBackend.share} gives. */
export const TAP_SHARE_KIND = "tap-share";

/** Some pairs, whose descriptors are in a bag by their numbers: the interface stays with whoever opened it. */
export interface SharedTap extends NetBackendState {
  readonly ifname: string;
  readonly offloads: NetOffloads;
  readonly queuePairs: number;
  /** How many pairs receive by now. */
  readonly activePairs: number;
  readonly pairs: readonly number[];
}

/**
 * The card of one thread. Which pairs the kernel serves, and what it offloads, is chosen where the interface was opened;
 * here it is only known.
 */
export class TapTwin implements NetBackend, TapQueueListener {
  readonly description: string;
  readonly hasVnetHeader = true;
  readonly offloads: NetOffloads;
  readonly queuePairs: number;
  /** By pair; none for those of other threads. */
  readonly #queues: (TapQueue | undefined)[] = [];
  readonly #sender: TapSender;
  #peer: NetPeer | null = null;

  /**
   * @param shared What {@linkcode TapBackend.share} gave
   * @throws {Error} When it is something else
   */
  constructor(
    options: TapNetOptions,
    { loop, log }: NetContext,
    { state, bag }: Saved<unknown>,
  ) {
    const shared = takeState<SharedTap>(state, TAP_SHARE_KIND);
    this.description = `tap ${shared.ifname}`;
    this.offloads = shared.offloads;
    this.queuePairs = shared.queuePairs;
    this.#sender = new TapSender({
      queues: this.#queues,
      engine: options.engine,
      description: this.description,
      log,
    });
    try {
      for (const pair of shared.pairs) {
        const attached = pair < shared.activePairs;
        this.#queues[pair] = new TapQueue(
          ...[pair, bag.take(`${pair}`), loop, this] as const,
          { attached, borrowed: true },
        );
      }
    } catch (error) {
      this.close();
      throw error;
    }
  }

  start(peer: NetPeer): void {
    this.stop();
    this.#peer = peer;
    for (const queue of this.#queues) {
      if (queue?.attached) queue.discardWaiting();
      queue?.start();
    }
  }

  stop(): void {
    for (const queue of this.#queues) queue?.stop();
    this.#peer = null;
  }

  follow(count: number): void {
    for (let pair = 0; pair < this.#queues.length; pair++) {
      const queue = this.#queues[pair];
      if (queue === undefined) continue;
      if (pair >= count) queue.stop();
      queue.setAttached(pair < count);
      if (this.#peer !== null) queue.start();
    }
  }

  send(frame: ScatterGather, pair: number = 0, more: boolean = false): number {
    const queue = this.#queues[pair];
    if (queue?.attached) return this.#sender.send(frame, queue, more);
    // The kernel takes no frames from a pair that was given up.
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

  onQueueReadable(pair: number): void {
    this.#peer?.onReadable(pair);
  }

  onQueueWritable(pair: number): void {
    this.#peer?.onWritable(pair);
  }

  onGone(): void {
    // The pair was given up, and word of that is on its way; or the interface was deleted, which is told elsewhere.
    for (const queue of this.#queues) queue?.stop();
  }

  counters(): TapCounters {
    const { dropped, batches } = this.#sender;
    return {
      txDropped: dropped,
      txBatches: batches,
      rxErrors: receiveErrors(this.#queues),
    };
  }

  close(): void {
    this.stop();
    this.#sender.close();
    for (const queue of this.#queues.splice(0)) queue?.close();
  }
}
