/**
 * The queues of a virtio device: of which format they are, who may touch them when, and when they are served.
 *
 * @module
 */

import type { BottomHalf, Timer } from "../../loop/event_loop.ts";
import {
  type GuestMemory,
  RING_ABSENCE_MS,
} from "../../memory/guest_memory.ts";
import type { DeviceContext } from "../../pci/context.ts";
import { WriteOrder } from "../../pci/posted_writes.ts";
import type { QueueHandler } from "../device.ts";
import { type Features, VIRTIO_F } from "../features.ts";
import { PackedQueue } from "../queue/packed_queue.ts";
import type { Virtqueue } from "../queue/queue.ts";
import type { Ring } from "../queue/ring.ts";
import type { SessionCounters } from "./counters.ts";
import { KickPath } from "./types.ts";
import { SplitQueue } from "../queue/split_queue.ts";

/** Whether queues may be served. */
export interface QueueStatus {
  /** The driver may use the device, and nobody has given up. */
  readonly running: boolean;
  /** Either side has given up, until the device is reset. */
  readonly halted: boolean;
}

/** What {@linkcode SessionQueues} are made for. */
export interface SessionQueuesOptions {
  /** The largest size of each queue. */
  readonly sizes: readonly number[];
  /** What serves them. */
  readonly handler: QueueHandler;
  readonly status: QueueStatus;
  /** What is counted. */
  readonly counters: SessionCounters;
  /** Whether the event loop polls from the start. */
  readonly polled: boolean;
  /** The driver broke a rule. */
  readonly fail: (reason: string) => void;
  /** The driver wants to know of what was published. */
  readonly interrupt: (queue: Virtqueue) => void;
  /** A queue was notified here that another thread serves. */
  readonly forward?: (index: number) => void;
}

/** Every queue is served here. */
const NOT_SERVED_ELSEWHERE: ReadonlySet<number> = new Set();

/**
 * The queues of one device on one thread, one bottom half each.
 *
 * A queue is served, which means that its handler is notified of it, while the device runs and the queues are
 * neither stopped nor held. What is noticed before that is not lost: whoever lets the queues go on calls
 * {@linkcode kickAll}.
 */
export class SessionQueues {
  readonly #memory: GuestMemory;
  readonly #handler: QueueHandler;
  readonly #interrupt: (queue: Virtqueue) => void;
  readonly #status: QueueStatus;
  readonly #counters: SessionCounters;
  readonly #kicks: readonly BottomHalf[];
  readonly #orders: readonly WriteOrder[];
  /** 1 for a queue that was notified of and is not enabled. */
  readonly #early: Uint8Array<ArrayBuffer>;
  /** Armed while a ring is wanted that is not mapped. */
  readonly #absence: Timer;
  #absent = false;
  readonly #unsubscribe: () => void;
  readonly #split: readonly Ring[];
  /** Made when a driver first wants them: a process that never meets one keeps its calls monomorphic. */
  #packed: readonly Ring[] | null = null;
  #rings: readonly Ring[];
  #elsewhere = NOT_SERVED_ELSEWHERE;
  readonly #forward: (index: number) => void;
  #polled: boolean;
  #stopped = false;
  #held = false;

  constructor(
    context: Pick<DeviceContext, "loop" | "memory" | "posted">,
    options: SessionQueuesOptions,
  ) {
    const { loop, memory } = context;
    this.#memory = memory;
    this.#handler = options.handler;
    this.#interrupt = options.interrupt;
    this.#forward = options.forward ?? (() => {});
    this.#status = options.status;
    this.#counters = options.counters;
    this.#polled = options.polled;
    this.#rings = this.#split = options.sizes.map((size, i) =>
      new SplitQueue(memory, i, size, options.polled)
    );
    this.#kicks = this.#split.map((_, i) =>
      loop.bottomHalf(() => this.#serve(i))
    );
    this.#early = new Uint8Array(this.#kicks.length);
    this.#orders = this.#kicks.map((kick) =>
      new WriteOrder(context.posted, () => kick.schedule())
    );
    this.#absence = loop.timer(() => {
      this.#absent = false;
      const missing = this.missing();
      if (missing !== null) options.fail(missing);
    });
    this.#unsubscribe = memory.subscribe({
      onChange: () => this.#onMemoryChange(),
      onReach: () => this.#onReach(),
    });
  }

  /** The queues of the format that is in use. */
  get rings(): readonly Ring[] {
    return this.#rings;
  }

  /** Whether {@linkcode stop} was called last. */
  get stopped(): boolean {
    return this.#stopped;
  }

  /** Whether {@linkcode hold} was called last. */
  get held(): boolean {
    return this.#held;
  }

  /** How many chains a driver waits for; of a halted device, which gives nothing back, how many its model has. */
  get inFlight(): number {
    const { halted } = this.#status;
    let chains = 0;
    for (const queue of this.#rings) {
      chains += halted ? queue.inFlight : queue.outstanding;
    }
    return chains;
  }

  /** Which part of the ring of an enabled queue is not mapped, for messages; null when all are. */
  missing(): string | null {
    if (!this.#status.running || this.#stopped) return null;
    for (const queue of this.#rings) {
      const missing = queue.missing();
      if (missing !== null) return missing;
    }
    return null;
  }

  /** Other threads serve these queues while the device runs, and this one all others. */
  leaveElsewhere(queues: ReadonlySet<number>): void {
    this.#elsewhere = queues;
    for (const ring of this.#rings) {
      if (queues.has(ring.index)) ring.suspend();
      else if (!this.#stopped && !this.#status.halted) ring.resume();
    }
  }

  /** The features are final, and with them the format; none of the queues is enabled yet. */
  choose(features: Features): void {
    if (!features.has(VIRTIO_F.RING_PACKED)) return;
    this.#packed ??= this.#split.map(({ index, maxSize }) =>
      new PackedQueue(this.#memory, index, maxSize, this.#polled)
    );
    this.#use(this.#packed);
  }

  /** Split queues, none of them enabled, as at first. */
  reset(): void {
    this.#absence.cancel();
    this.#absent = false;
    this.#elsewhere = NOT_SERVED_ELSEWHERE;
    for (const queue of this.#rings) queue.disable();
    this.#use(this.#split);
  }

  /**
   * A queue was just enabled: leaves it alone as long as nothing is touched, or while it is served elsewhere. A
   * notification that came before the write is made up for.
   */
  admit(index: number): void {
    if (this.#stopped || this.#elsewhere.has(index)) {
      this.#rings[index]!.suspend();
    } else if (this.#early[index] !== 0) this.#kicks[index]!.schedule();
  }

  /** The device begins to run: its queues wait for register writes where it depends on any. */
  keepOrder(features: Features): void {
    for (const queue of this.#rings) {
      const { index } = queue;
      const depends = this.#handler.dependsOnRegisters?.(index, features) ??
        true;
      queue.keepOrder(this.#orders[index]!, depends);
    }
  }

  /** Serves nothing any more. */
  stop(): void {
    this.#stopped = true;
  }

  /** Stops touching guest memory. */
  suspend(): void {
    for (const queue of this.#rings) queue.suspend();
  }

  /** Either side has given up: leaves everything alone until the device is reset. */
  halt(): void {
    this.cancelAll();
    this.suspend();
  }

  /** Finds nothing new any more. */
  hold(): void {
    if (this.#held) return;
    this.#held = true;
    for (const queue of this.#rings) queue.hold();
  }

  /** Goes on after {@linkcode stop}, {@linkcode suspend} and {@linkcode hold}. */
  start(): void {
    this.#stopped = this.#held = false;
    const { halted } = this.#status;
    for (const queue of this.#rings) {
      queue.release();
      if (!halted && !this.#elsewhere.has(queue.index)) queue.resume();
    }
  }

  /** Ends everything. */
  close(): void {
    this.cancelAll();
    this.#absence.close();
    this.#unsubscribe();
    for (const queue of this.#rings) queue.disable();
  }

  /** Somebody noticed that a queue may have new chains; it is served in a bottom half. */
  kick(index: number, path: KickPath): void {
    if (index >= this.#rings.length) return;
    if (this.#elsewhere.has(index)) return this.#forward(index);
    this.#count(path);
    // Before DRIVER_OK nothing may be consumed (2.1.2); setting it looks at every queue.
    if (this.#status.running) this.#kicks[index]!.schedule();
  }

  /** As {@linkcode kick}, of chains up to `next`: see {@linkcode VirtioSession.kickWithData}. */
  kickUpTo(index: number, next: number, path: KickPath): void {
    const queue = this.#rings[index];
    if (queue !== undefined && this.#status.running && queue.hasTaken(next)) {
      this.#count(path);
      this.#counters.lateKicks++;
      return;
    }
    this.kick(index, path);
  }

  /** Serves every enabled queue soon. */
  kickAll(): void {
    if (!this.#status.running) return;
    for (let i = 0; i < this.#rings.length; i++) {
      if (this.#rings[i]!.enabled) this.#kicks[i]!.schedule();
    }
  }

  /** Takes back what was noticed of a queue. */
  cancel(index: number): void {
    this.#kicks[index]!.cancel();
    this.#early[index] = 0;
  }

  /** Takes back what was noticed of all of them. */
  cancelAll(): void {
    for (const kick of this.#kicks) kick.cancel();
    this.#early.fill(0);
  }

  /** See {@linkcode VirtioSession.poll}. */
  poll(): boolean {
    if (!this.#status.running || this.#stopped || this.#held) return false;
    let found = false;
    for (let i = 0; i < this.#rings.length; i++) {
      const queue = this.#rings[i]!;
      if (!queue.poll()) continue;
      found = true;
      this.#counters.polledKicks++;
      this.#serve(i);
    }
    return found;
  }

  /** See {@linkcode VirtioSession.beginPolling}. */
  beginPolling(): void {
    this.#polled = true;
    for (let i = 0; i < this.#rings.length; i++) {
      this.#rings[i]!.beginPolling();
    }
  }

  /** See {@linkcode VirtioSession.endPolling}. */
  endPolling(): boolean {
    this.#polled = false;
    let found = false;
    for (let i = 0; i < this.#rings.length; i++) {
      if (!this.#rings[i]!.endPolling()) continue;
      if (!this.#status.running || this.#stopped) continue;
      this.#kicks[i]!.schedule();
      found = true;
    }
    return found;
  }

  /** Adds what the queues have counted since to the session's counters. */
  collectCounters(): void {
    for (const queues of [this.#split, this.#packed ?? []]) {
      for (const queue of queues) {
        this.#counters.suppressedInterrupts += queue.suppressed;
        queue.suppressed = 0;
      }
    }
  }

  /** Takes the queues of one format into use, none of them enabled yet, polled and held like those before. */
  #use(queues: readonly Ring[]): void {
    this.#rings = queues;
    for (const queue of queues) {
      if (this.#polled) queue.beginPolling();
      else queue.endPolling();
      if (this.#held) queue.hold();
      else queue.release();
    }
  }

  #serve(index: number): void {
    const queue = this.#rings[index]!;
    // After a stop, or while it holds: start() looks at every queue again.
    if (!this.#status.running || this.#stopped || this.#held) return;
    this.#early[index] = queue.enabled ? 0 : 1;
    if (!queue.enabled) return;
    if (queue.missing() !== null) return this.#awaitMemory();
    if (queue.undecided && queue.publish()) this.#interrupt(queue);
    this.#handler.notify(queue);
  }

  /** A ring is wanted that is not mapped; it is served when it is. */
  #awaitMemory(): void {
    if (this.#absent) return;
    this.#absent = true;
    this.#absence.arm(RING_ABSENCE_MS);
  }

  #count(path: KickPath): void {
    const counters = this.#counters;
    counters.kicks++;
    if (path === KickPath.MESSAGE) counters.messageKicks++;
    else if (path === KickPath.PAGE) counters.pageKicks++;
    else counters.eventFdKicks++;
  }

  /** What a queue was looking at is there. */
  #onReach(): void {
    for (let i = 0; i < this.#rings.length; i++) {
      const { awaitsReach, undecided } = this.#rings[i]!;
      if (awaitsReach || undecided) this.#kicks[i]!.schedule();
    }
  }

  /** A ring that could not be reached may be back, and a chain that was kept from the driver can be shown to it. */
  #onMemoryChange(): void {
    if (!this.#status.running) return;
    for (let i = 0; i < this.#rings.length; i++) {
      const queue = this.#rings[i]!;
      if (!queue.enabled || queue.resolved) continue;
      if (queue.missing() === null) this.#kicks[i]!.schedule();
      else if (queue.outstanding > 0) this.#awaitMemory();
    }
  }
}
