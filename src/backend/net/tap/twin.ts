/**
 * Some queue pairs of a TAP interface, served by another thread than the one that opened it.
 *
 * @module
 */

import { Errno } from "../../../core/errno.ts";
import type { Loop } from "../../../loop/event_loop.ts";
import { Fd } from "../../../os/mod.ts";
import type { ScatterGather } from "../../../memory/scatter_gather.ts";
import type {
  NetBackend,
  NetContext,
  NetOffloads,
  NetPeer,
} from "../contract.ts";
import { type Given, takeGiven } from "../given.ts";
import type { TapNetOptions } from "./driver.ts";
import { receiveErrors, TapQueue, type TapQueueListener } from "./queue.ts";
import { TapSender } from "./sender.ts";

/** The kind of what {@linkcode TapBackend.share} gives. */
export const TAP_SHARE_KIND = "tap-share";

/** Descriptors of some pairs, duplicated: the interface stays with whoever opened it. */
export interface SharedTap extends Given {
  readonly ifname: string;
  readonly offloads: NetOffloads;
  readonly queuePairs: number;
  /** How many pairs receive by now. */
  readonly activePairs: number;
  readonly pairs: readonly { readonly pair: number; readonly fd: number }[];
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
   * @param shared What {@linkcode TapBackend.share} gave; its descriptors are taken over
   * @throws {Error} When it is something else
   */
  constructor(options: TapNetOptions, context: NetContext, shared: unknown) {
    const given = takeGiven<SharedTap>(shared, TAP_SHARE_KIND);
    this.description = `tap ${given.ifname}`;
    this.offloads = given.offloads;
    this.queuePairs = given.queuePairs;
    for (const { pair, fd } of given.pairs) {
      this.#queues[pair] = this.#makeQueue(
        pair,
        fd,
        context.loop,
        pair < given.activePairs,
      );
    }
    this.#sender = new TapSender({
      queues: this.#queues,
      engine: options.engine,
      description: this.description,
      log: context.log,
    });
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

  counters(): Readonly<Record<string, number>> {
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

  #makeQueue(
    pair: number,
    fd: number,
    loop: Loop,
    attached: boolean,
  ): TapQueue {
    return new TapQueue(pair, new Fd(fd), loop, this, {
      attached,
      borrowed: true,
    });
  }
}
