/**
 * Queues of a virtio device that a queue thread serves.
 *
 * @module
 */

import { countersFrom } from "../../core/counters.ts";
import type { FdWatch, Poller } from "../../loop/event_loop.ts";
import type { Saved } from "../../os/resource_bag.ts";
import type { QueueContext, QueueService } from "../../pci/queue_threads.ts";
import type { QueueThreadHandler, QueueTransport } from "../device.ts";
import { Features } from "../features.ts";
import type { Virtqueue } from "../queue/queue.ts";
import type { RingState } from "../queue/ring_state.ts";
import { SessionInterrupts } from "./interrupts.ts";
import { SessionQueues } from "./queues.ts";
import { SESSION_COUNTERS, type SessionCounters } from "./counters.ts";
import { KickPath } from "./types.ts";

/** What a {@linkcode VirtioQueueService} is made of. Plain data. */
export interface QueueGrant {
  /** The largest size of each queue of the device. */
  readonly queueSizes: readonly number[];
  readonly polled: boolean;
  /** What {@linkcode QueueSharing.grant} gave. */
  readonly device: unknown;
  /** What {@linkcode QueueSharing.settings} gave. */
  readonly settings: unknown;
}

/** A queue that a thread is to serve. Plain data. */
export interface QueuePosition {
  readonly index: number;
  /** An eventfd that is signalled when the driver notifies the queue. */
  readonly kick: number;
  /** Where it is and how far it has come. */
  readonly ring: RingState;
}

/** How far the queues of a thread have come. Plain data. */
export interface QueuePositions {
  readonly rings: readonly Pick<QueuePosition, "index" | "ring">[];
  /** Numbers of the queues whose drivers are owed a used buffer notification. */
  readonly owed: readonly number[];
}

/** What a session tells a queue thread. Plain data. */
export type QueueMessage =
  /** The driver set DRIVER_OK, and these queues are the thread's. */
  | {
    readonly op: "start";
    readonly features: readonly [number, number];
    readonly queues: readonly QueuePosition[];
    readonly settings: unknown;
  }
  /** The driver enables a queue. */
  | { readonly op: "enable"; readonly index: number; readonly ring: RingState }
  | { readonly op: "resetQueue"; readonly index: number }
  | { readonly op: "reset" }
  /** Either side has given up. */
  | { readonly op: "halt" }
  /** Guest memory must be left alone. */
  | { readonly op: "pause" }
  /** After pause and hold. */
  | { readonly op: "resume" }
  /** Answered with how many chains are in flight. */
  | { readonly op: "hold" }
  /** Answered with how many requests are unfinished, see {@linkcode QueueHandler.unfinished}. */
  | {
    readonly op: "unfinished";
    readonly iova: number | undefined;
    readonly lengthBytes: number | undefined;
  }
  /** Answered with {@linkcode QueuePositions}. */
  | { readonly op: "positions" }
  | { readonly op: "configure"; readonly settings: unknown }
  /** Answered with the rule that the driver broke, or null. */
  | { readonly op: "failure" };

/** Whether the driver may use the device, as the control thread says. */
class Status {
  started = false;
  halted = false;

  get running(): boolean {
    return this.started && !this.halted;
  }
}

/** Serves the queues that its control thread starts here. */
export class VirtioQueueService implements QueueService, QueueTransport {
  readonly #context: QueueContext;
  readonly #handler: QueueThreadHandler;
  readonly #queues: SessionQueues;
  readonly #interrupts: SessionInterrupts;
  readonly #counters: SessionCounters = countersFrom(SESSION_COUNTERS);
  readonly #status = new Status();
  readonly #poller: Poller;
  readonly #watches: FdWatch[] = [];
  /** Numbers of the queues that are served here. */
  #served: readonly number[] = [];
  #features = new Features(0, 0);
  #failure: string | null = null;

  /**
   * Makes the handler, which serves nothing yet.
   *
   * @param grant As the model's `serve` was given it
   * @param create Makes the handler of what {@linkcode QueueSharing.grant} gave; it may keep the transport but use it only
   * after it has returned
   */
  constructor(
    context: QueueContext,
    { state, bag }: Saved<unknown>,
    create: (
      transport: QueueTransport,
      device: Saved<unknown>,
    ) => QueueThreadHandler,
  ) {
    const { queueSizes, polled, device, settings } = state as QueueGrant;
    this.#context = context;
    this.#handler = create(this, { state: device, bag });
    this.#handler.configure(settings);
    this.#queues = new SessionQueues(context, {
      sizes: queueSizes,
      handler: this.#handler,
      status: this.#status,
      counters: this.#counters,
      polled,
      fail: (reason) => this.fail(reason),
      interrupt: (queue) => this.interrupt(queue),
    });
    this.#interrupts = new SessionInterrupts(
      { notifyUsed: (queue) => this.#notifyUsed(queue), notifyConfig() {} },
      this.#counters,
      queueSizes.length,
    );
    this.#poller = context.loop.poll(() => this.#queues.poll(), {
      begin: () => this.#queues.beginPolling(),
      end: () => this.#queues.endPolling(),
    });
  }

  interrupt(queue: Virtqueue): void {
    if (!this.#status.running) return;
    if (this.#queues.stopped) this.#interrupts.owe(queue.index);
    else this.#interrupts.send(queue.index);
  }

  fail(reason: string): void {
    if (this.#status.halted) return;
    this.#halt();
    this.#failure = reason;
    this.#context.report();
  }

  handle(value: unknown): unknown {
    const message = value as QueueMessage;
    switch (message.op) {
      case "start":
        return this.#start(message);
      case "enable":
        this.#load(message.index, message.ring);
        this.#queues.admit(message.index);
        return this.#failMissing();
      case "resetQueue":
        return this.#resetQueue(message.index);
      case "reset":
        return this.#reset();
      case "halt":
        return this.#halt();
      case "pause":
        return this.#pause();
      case "resume":
        return this.#resume();
      case "hold":
        return this.#hold();
      case "unfinished":
        return this.#handler.unfinished?.(message.iova, message.lengthBytes) ??
          0;
      case "positions":
        return this.#positions();
      case "configure":
        return this.#handler.configure(message.settings);
      case "failure":
        return this.#takeFailure();
      default:
        return message satisfies never;
    }
  }

  counters(): Readonly<Record<string, number>> {
    this.#queues.collectCounters();
    return { ...this.#handler.counters?.(), ...this.#counters };
  }

  close(): void {
    this.#unwatch();
    this.#poller.close();
    this.#handler.close();
    this.#queues.close();
  }

  #start(
    { features, queues, settings }: Extract<QueueMessage, { op: "start" }>,
  ): void {
    this.#features = new Features(...features);
    this.#queues.choose(this.#features);
    this.#served = queues.map(({ index }) => index);
    for (const { index, ring } of queues) this.#load(index, ring);
    this.#status.started = true;
    this.#queues.keepOrder(this.#features);
    this.#handler.start?.(this.#features, this.#queues.rings);
    this.#handler.configure(settings);
    const { loop } = this.#context;
    for (const { index, kick } of queues) {
      this.#watches.push(
        loop.watchEventFd(
          kick,
          () => this.#queues.kick(index, KickPath.EVENTFD),
        ),
      );
    }
    this.#failMissing();
    this.#queues.kickAll();
  }

  /** A ring is to be in memory that the device reaches from when it is to be used (section 2.7.13.1 and 2.8.21). */
  #failMissing(): void {
    const missing = this.#queues.missing();
    if (missing !== null) this.fail(missing);
  }

  #load(index: number, state: RingState): void {
    const ring = this.#queues.rings[index]!;
    if (ring.load(this.#features, state) < 0) throw new Error(ring.lastError);
    if (this.#queues.stopped) ring.suspend();
  }

  #resetQueue(index: number): void {
    const ring = this.#queues.rings[index]!;
    this.#queues.cancel(index);
    this.#interrupts.forget(index);
    if (ring.enabled) this.#handler.resetQueue?.(ring);
    ring.disable();
  }

  #reset(): void {
    this.#unwatch();
    this.#status.started = this.#status.halted = false;
    this.#failure = null;
    this.#served = [];
    this.#interrupts.forgetAll();
    this.#queues.cancelAll();
    this.#handler.reset?.();
    this.#queues.reset();
  }

  #halt(): void {
    this.#status.halted = true;
    this.#queues.halt();
  }

  #pause(): void {
    this.#queues.stop();
    this.#handler.pause?.();
    this.#queues.suspend();
  }

  #resume(): void {
    this.#queues.start();
    this.#handler.resume?.();
    this.#interrupts.pay(this.#status.running);
    this.#queues.kickAll();
  }

  #hold(): number {
    this.#queues.hold();
    const inFlight = this.#handler.hold?.() ?? 0;
    return Math.max(inFlight, this.#queues.inFlight);
  }

  #positions(): QueuePositions {
    const rings = this.#served.map((index) => {
      const ring = this.#queues.rings[index]!;
      if (ring.outstanding > 0 && !this.#status.halted) {
        throw new Error(
          `Cannot tell where queue ${index} is: ${ring.outstanding} chains are in flight`,
        );
      }
      return { index, ring: ring.save() };
    });
    return { rings, owed: this.#interrupts.save().owedInterrupts };
  }

  #takeFailure(): string | null {
    const failure = this.#failure;
    this.#failure = null;
    return failure;
  }

  /** The vectors of the queues are in the shared words. */
  #notifyUsed(queue: number): void {
    const { interrupts, words } = this.#context;
    // A vector that is none is beyond the table, where nothing is raised.
    if (interrupts.mode === "msix") {
      interrupts.raise(Atomics.load(words, queue));
    } else interrupts.setLevel(true);
  }

  #unwatch(): void {
    for (const watch of this.#watches.splice(0)) watch.close();
  }
}
