/**
 * The queues of a virtio device that other threads serve, as its session on the control thread sees them.
 *
 * @module
 */

import { CONTROL_THREAD, type QueueThreads } from "../../pci/queue_threads.ts";
import { VIRTIO_MSI_NO_VECTOR } from "../defs.ts";
import type { QueueSharing } from "../device.ts";
import type { Features } from "../features.ts";
import type { Ring } from "../queue/ring.ts";
import type { QueueKicks } from "./kicks.ts";
import type {
  QueueGrant,
  QueueMessage,
  QueuePositions,
} from "./queue_service.ts";

/** What {@linkcode RemoteQueues} need of their session. */
export interface RemoteQueuesParts {
  readonly threads: QueueThreads;
  readonly kicks: QueueKicks;
  readonly sharing: QueueSharing;
  readonly queueSizes: readonly number[];
  readonly polled: boolean;
  /** What the driver may choose from. */
  readonly offered: Features;
  /** How many MSI-X vectors there are. */
  readonly vectors: number;
  /** Interrupts for used buffers where that is not by vector. */
  readonly notifyByLine: () => void;
  /** The driver broke a rule. */
  readonly fail: (reason: string) => void;
}

/**
 * Starts queues on queue threads, and does there what is done to the device. The session keeps a ring for each of them,
 * suspended: where the driver has put it, and where it was when it last stopped.
 */
export class RemoteQueues implements Disposable {
  readonly #parts: RemoteQueuesParts;
  /** Word q: the vector of queue q. */
  readonly #vectors: Int32Array;
  /** By queue, while the device runs: the thread that serves it. */
  #threadOf: readonly number[] = [];

  /** @throws {Error} When a thread cannot make its service */
  constructor(parts: RemoteQueuesParts) {
    this.#parts = parts;
    const { threads, queueSizes, vectors } = parts;
    const words = threads.attach({
      vectors,
      words: queueSizes.length,
      onReport: () => this.#onReport(),
      onLine: parts.notifyByLine,
    });
    this.#vectors = words;
    for (let i = 0; i < queueSizes.length; i++) {
      this.setVector(i, VIRTIO_MSI_NO_VECTOR);
    }
    const places = this.#places(parts.offered);
    try {
      this.#open(places);
    } catch (error) {
      this[Symbol.dispose]();
      throw error;
    }
    places.forEach((thread, i) => {
      if (thread !== CONTROL_THREAD) parts.kicks.make(i);
    });
  }

  /** The driver chooses the vector of a queue. */
  setVector(index: number, vector: number): void {
    Atomics.store(this.#vectors, index, vector);
  }

  /** The queues that other threads are about to serve with these features. */
  place(features: Features): ReadonlySet<number> {
    this.#threadOf = this.#places(features);
    return new Set(
      this.#threadOf.flatMap((thread, i) => thread === CONTROL_THREAD ? [] : i),
    );
  }

  /** The driver set DRIVER_OK, or had done so where the device comes from: starts what {@linkcode place} told. */
  start(features: Features, rings: readonly Ring[]): void {
    const { threads, kicks, sharing } = this.#parts;
    const settings = sharing.settings();
    for (let thread = 1; thread <= threads.count; thread++) {
      const queues = rings.filter((_, i) => this.#threadOf[i] === thread)
        .map((ring) => ({
          index: ring.index,
          kick: kicks.make(ring.index),
          ring: ring.save(),
        }));
      if (queues.length === 0) continue;
      this.#call(thread, {
        op: "start",
        features: [features.word(0), features.word(1)],
        queues,
        settings,
      });
    }
  }

  /** The driver enables a queue while the device runs. */
  enable(ring: Ring): void {
    const { index } = ring;
    this.#callOwner(index, { op: "enable", index, ring: ring.save() });
  }

  /** The driver resets a queue. */
  resetQueue(index: number): void {
    this.#callOwner(index, { op: "resetQueue", index });
    // What it was interrupted for before counts.
    this.#parts.threads.deliver();
  }

  /** Back to idle. */
  reset(): void {
    this.#threadOf = [];
    this.#callAll({ op: "reset" });
    this.#parts.threads.forget();
  }

  /** Either side has given up. */
  halt(): void {
    this.#callAll({ op: "halt" });
  }

  /** Leaves guest memory alone. */
  stop(): void {
    this.#callAll({ op: "pause" });
    this.#parts.threads.stop();
  }

  /** Goes on after {@linkcode stop} and {@linkcode hold}. */
  resume(): void {
    this.#parts.threads.start();
    this.#callAll({ op: "resume" });
  }

  /** Takes nothing new. @returns How many chains are in flight */
  hold(): number {
    return this.#sum({ op: "hold" });
  }

  /** See {@linkcode QueueHandler.unfinished}. */
  unfinished(iova?: number, lengthBytes?: number): number {
    return this.#sum({ op: "unfinished", iova, lengthBytes });
  }

  /** Brings the session's rings to where the threads have come. @returns Queues whose drivers are owed a notification */
  collect(features: Features, rings: readonly Ring[]): readonly number[] {
    const owed: number[] = [];
    const answers = this.#callAll({ op: "positions" });
    this.#parts.threads.deliver();
    for (const answer of answers) {
      const positions = answer as QueuePositions;
      owed.push(...positions.owed);
      for (const { index, ring: state } of positions.rings) {
        const ring = rings[index]!;
        ring.disable();
        if (ring.load(features, state) < 0) throw new Error(ring.lastError);
        ring.suspend();
      }
    }
    return owed;
  }

  /** The settings have changed. */
  configure(): void {
    const settings = this.#parts.sharing.settings();
    this.#callAll({ op: "configure", settings });
  }

  /**
   * Does something that no thread may see the middle of.
   *
   * @param resume Whether the threads go on afterwards; not while the session is stopped
   */
  whilePaused<T>(action: () => T, resume: boolean): T {
    try {
      this.#callAll({ op: "pause" });
      return action();
    } finally {
      try {
        this.configure();
      } finally {
        if (resume) this.#callAll({ op: "resume" });
      }
    }
  }

  /** Ends the services. */
  [Symbol.dispose](): void {
    const { threads, sharing } = this.#parts;
    for (let thread = 1; thread <= threads.count; thread++) {
      threads.close(thread);
    }
    sharing.reclaim?.();
  }

  #places(features: Features): number[] {
    const { threads, sharing, queueSizes } = this.#parts;
    return queueSizes.map((_, index) =>
      threads.threadOf(sharing.groupOf(index, features))
    );
  }

  #open(places: readonly number[]): void {
    const { threads, sharing, queueSizes, polled, offered } = this.#parts;
    const settings = sharing.settings();
    for (let thread = 1; thread <= threads.count; thread++) {
      const groups = new Set(
        queueSizes.flatMap((_, i) =>
          places[i] === thread ? sharing.groupOf(i, offered) : []
        ),
      );
      if (groups.size === 0) continue;
      threads.open(thread, (bag): QueueGrant => {
        const device = sharing.grant([...groups], bag);
        return { queueSizes, polled, device, settings };
      });
    }
  }

  #onReport(): void {
    for (const failure of this.#callAll({ op: "failure" })) {
      if (failure !== null) this.#parts.fail(failure as string);
    }
  }

  #callOwner(index: number, message: QueueMessage): void {
    const thread = this.#threadOf[index] ?? CONTROL_THREAD;
    if (thread !== CONTROL_THREAD) this.#call(thread, message);
  }

  #sum(message: QueueMessage): number {
    return this.#callAll(message)
      .reduce<number>((sum, count) => sum + (count as number), 0);
  }

  #call(thread: number, message: QueueMessage): unknown {
    return this.#parts.threads.call(thread, message);
  }

  #callAll(message: QueueMessage): unknown[] {
    return this.#parts.threads.callAll(message);
  }
}
