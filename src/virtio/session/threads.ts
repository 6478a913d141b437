/**
 * Queues of a virtio device that queue threads serve: what their session tells them, and what serves them there.
 *
 * @module
 */

import type { EventFd, FdWatch, Loop, Poller } from "../../loop/event_loop.ts";
import type { ResourceBag, Saved } from "../../os/resource_bag.ts";
import {
  CONTROL_THREAD,
  type QueueContext,
  type QueueService,
  type QueueThreads,
} from "../../pci/queue_threads.ts";
import { VIRTIO_MSI_NO_VECTOR } from "../defs.ts";
import type {
  QueueSharing,
  QueueThreadHandler,
  QueueTransport,
} from "../device.ts";
import { Features } from "../features.ts";
import type { Virtqueue } from "../queue/queue.ts";
import type { Ring } from "../queue/ring.ts";
import type { RingState } from "../queue/ring_state.ts";
import { KickPath, type QueueMessage, SessionQueues } from "./queues.ts";

/** Parts of a {@linkcode VirtioQueueService}. Plain data. */
interface QueueGrant {
  /** The largest size of each queue of the device. */
  readonly queueSizes: readonly number[];
  readonly polled: boolean;
  /** Grant of {@linkcode QueueSharing.grant}. */
  readonly device: unknown;
  /** Settings of {@linkcode QueueSharing.settings}. */
  readonly settings: unknown;
}

/** Place and position of a queue. Plain data. */
interface QueuePosition {
  readonly index: number;
  readonly ring: RingState;
}

/** Positions of the queues of a thread. Plain data. */
interface QueuePositions {
  readonly rings: readonly QueuePosition[];
  /** Numbers of the queues whose drivers are owed a used buffer notification. */
  readonly owed: readonly number[];
}

/** Message of a session to a queue thread. Plain data. */
type ThreadMessage =
  | QueueMessage
  /** The driver set DRIVER_OK, and these queues are the thread's, each with an eventfd that is signalled for it. */
  | {
    readonly op: "start";
    readonly features: readonly [number, number];
    readonly queues: readonly (QueuePosition & { readonly kick: number })[];
    readonly settings: unknown;
  }
  /** The driver enables a queue. */
  | { readonly op: "enable" } & QueuePosition
  /** Answered with {@linkcode QueuePositions}. */
  | { readonly op: "positions" }
  | { readonly op: "configure"; readonly settings: unknown }
  /** Answered with the rule that the driver broke, or null. */
  | { readonly op: "failure" };

/** Serves the queues that its control thread starts here. */
export class VirtioQueueService implements QueueService, QueueTransport {
  readonly #context: QueueContext;
  readonly #handler: QueueThreadHandler;
  readonly #queues: SessionQueues;
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
      polled,
      fail: (reason) => this.fail(reason),
      notifyUsed: (queue) => this.#notifyUsed(queue),
    });
    this.#poller = context.loop.poll(() => this.#queues.poll(), {
      begin: () => this.#queues.beginPolling(),
      end: () => this.#queues.endPolling(),
    });
  }

  interrupt(queue: Virtqueue): void {
    this.#queues.interrupt(queue);
  }

  fail(reason: string): void {
    if (this.#queues.halted) return;
    this.#queues.handle({ op: "halt" });
    this.#failure = reason;
    this.#context.report();
  }

  handle(value: unknown): unknown {
    const message = value as ThreadMessage;
    switch (message.op) {
      case "start":
        return this.#start(message);
      case "enable":
        return this.#load(message);
      case "positions":
        return this.#positions();
      case "configure":
        return this.#handler.configure(message.settings);
      case "failure":
        return this.#takeFailure();
      case "reset":
        this.#unwatch();
        this.#served = [];
        this.#failure = null;
        return this.#queues.handle(message);
      default:
        return this.#queues.handle(message);
    }
  }

  counters(): Readonly<Record<string, number>> {
    return { ...this.#handler.counters?.(), ...this.#queues.collectCounters() };
  }

  close(): void {
    this.#unwatch();
    this.#poller.close();
    this.#handler.close();
    this.#queues.close();
  }

  #start(
    { features, queues, settings }: Extract<ThreadMessage, { op: "start" }>,
  ): void {
    this.#features = new Features(...features);
    this.#served = queues.map(({ index }) => index);
    queues.forEach((queue) => this.#load(queue));
    this.#queues.start(this.#features);
    this.#handler.configure(settings);
    for (const { index, kick } of queues) {
      const onKick = () => this.#queues.kick(index, KickPath.EVENTFD);
      this.#watches.push(this.#context.loop.watchEventFd(kick, onKick));
    }
  }

  #load({ index, ring: state }: QueuePosition): void {
    const ring = this.#queues.rings[index]!;
    if (ring.load(this.#features, state) < 0) throw new Error(ring.lastError);
    this.#queues.admit(index);
  }

  #positions(): QueuePositions {
    const rings = this.#served.map((index) => {
      const ring = this.#queues.rings[index]!;
      if (ring.outstanding > 0 && !this.#queues.halted) {
        throw new Error(
          `Cannot tell where queue ${index} is: ${ring.outstanding} chains are in flight`,
        );
      }
      return { index, ring: ring.save() };
    });
    return { rings, owed: this.#queues.owed };
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

/**
 * One eventfd for each queue that another thread may serve. A client that knows it signals that thread past this one; it
 * lasts as long as the device, on whichever thread, since clients keep it.
 */
export class QueueKicks implements Disposable {
  readonly #loop: Loop;
  readonly #onKick: (index: number) => void;
  readonly #fds = new Map<number, EventFd>();
  readonly #watches = new Map<number, FdWatch>();

  /** @param onKick A queue was notified that this thread serves */
  constructor(loop: Loop, onKick: (index: number) => void) {
    this.#loop = loop;
    this.#onKick = onKick;
  }

  /** The eventfd of a queue; undefined when there is none. */
  fd(index: number): number | undefined {
    return this.#fds.get(index)?.number;
  }

  /** The eventfd of a queue, made if there is none. */
  make(index: number): number {
    const fd = this.#fds.get(index) ?? this.#loop.eventFd();
    this.#fds.set(index, fd);
    return fd.number;
  }

  /** Has the thread look that serves a queue. */
  signal(index: number): void {
    this.#fds.get(index)?.signal();
  }

  /** This thread serves all queues but these. */
  watchAllBut(elsewhere: ReadonlySet<number>): void {
    for (const [index, fd] of this.#fds) {
      if (elsewhere.has(index)) {
        this.#watches.get(index)?.close();
        this.#watches.delete(index);
      } else if (!this.#watches.has(index)) {
        this.#watches.set(
          index,
          this.#loop.watchEventFd(fd.number, () => this.#onKick(index)),
        );
      }
    }
  }

  /** Puts the eventfds into a bag, by number of the queue. */
  save(bag: ResourceBag): void {
    for (const [index, fd] of this.#fds) bag.put(`${index}`, fd.number);
  }

  /** Takes over what {@linkcode save} put, of as many queues. */
  load(bag: ResourceBag, queues: number): void {
    for (let index = 0; index < queues; index++) {
      const name = `${index}`;
      if (!bag.has(name)) continue;
      this.#fds.set(index, this.#loop.eventFd(bag.take(name).release()));
    }
    this.watchAllBut(new Set());
  }

  [Symbol.dispose](): void {
    for (const watch of this.#watches.values()) watch.close();
    this.#watches.clear();
    for (const fd of this.#fds.values()) fd.close();
    this.#fds.clear();
  }
}

/** Parts of {@linkcode RemoteQueues}. */
export interface RemoteQueuesParts {
  readonly threads: QueueThreads;
  readonly kicks: QueueKicks;
  readonly sharing: QueueSharing;
  readonly queueSizes: readonly number[];
  readonly polled: boolean;
  /** Features that the driver may choose from. */
  readonly offered: Features;
  /** Number of MSI-X vectors. */
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
    this.#vectors = threads.attach({
      vectors,
      words: queueSizes.length,
      onReport: () => this.#onReport(),
      onLine: parts.notifyByLine,
    });
    queueSizes.forEach((_, i) => this.setVector(i, VIRTIO_MSI_NO_VECTOR));
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

  /** Has all threads do what the session tells. @returns The sum of what they answered */
  handle(message: QueueMessage): number {
    const { threads } = this.#parts;
    if (message.op === "resetQueue") {
      this.#callOwner(message.index, message);
      // What it was interrupted for before counts.
      threads.deliver();
      return 0;
    }
    if (message.op === "resume") threads.start();
    const sum = this.#callAll(message)
      .reduce<number>((sum, count) => sum + (count as number), 0);
    if (message.op === "pause") threads.stop();
    if (message.op === "reset") {
      this.#threadOf = [];
      threads.forget();
    }
    return sum;
  }

  /** Brings the session's rings to where the threads have come. @returns Queues whose drivers are owed a notification */
  collect(features: Features, rings: readonly Ring[]): readonly number[] {
    const answers = this.#callAll({ op: "positions" }) as QueuePositions[];
    this.#parts.threads.deliver();
    for (const { index, ring: state } of answers.flatMap((it) => it.rings)) {
      const ring = rings[index]!;
      if (ring.load(features, state) < 0) throw new Error(ring.lastError);
      ring.suspend();
    }
    return answers.flatMap(({ owed }) => owed);
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

  #callOwner(index: number, message: ThreadMessage): void {
    const thread = this.#threadOf[index] ?? CONTROL_THREAD;
    if (thread !== CONTROL_THREAD) this.#call(thread, message);
  }

  #call(thread: number, message: ThreadMessage): unknown {
    return this.#parts.threads.call(thread, message);
  }

  #callAll(message: ThreadMessage): unknown[] {
    return this.#parts.threads.callAll(message);
  }
}
