/**
 * The queues of a virtio device on one thread: who may touch them when, when they are served, and what is counted.
 *
 * @module
 */

import {
  counter,
  countersFrom,
  type CounterTable,
} from "../../core/counters.ts";
import {
  ERRORS,
  INTERRUPTS,
  KICKS,
  RESETS,
  SUPPRESSED,
} from "../../core/families.ts";
import type { BottomHalf, Timer } from "../../loop/event_loop.ts";
import { RING_ABSENCE_MS } from "../../memory/guest_memory.ts";
import type { DeviceContext } from "../../pci/context.ts";
import { WriteOrder } from "../../pci/posted_writes.ts";
import type { QueueHandler } from "../device.ts";
import type { Features } from "../features.ts";
import { createQueue } from "../queue/mod.ts";
import type { Virtqueue } from "../queue/queue.ts";
import type { Ring } from "../queue/ring.ts";

/** Counters of a session. */
export const SESSION_COUNTERS = {
  kicks: [counter(
    "device_notifications",
    "Notifications by the driver, in whatever way",
  )],
  /** Of those, by eventfd. */
  eventFdKicks: [KICKS, { path: "ioeventfd" }],
  /** Of those, by message. */
  messageKicks: [KICKS, { path: "message" }],
  /** Of those, by a store to a mapped page. */
  pageKicks: [KICKS, { path: "page" }],
  /** Times that polling found new chains, without a notification. */
  polledKicks: [KICKS, { path: "poll" }],
  /** Notifications of what the device had taken already, as their data say. */
  lateKicks: [counter(
    "device_late_kicks",
    "Notifications of what had been taken already",
  )],
  /** Used buffer notifications by the device. */
  interrupts: [INTERRUPTS, { kind: "queue" }],
  /** Used buffers that the driver did not want to be notified of, in batches. */
  suppressedInterrupts: [SUPPRESSED, { reason: "unwanted" }],
  /** Configuration change notifications. */
  configInterrupts: [INTERRUPTS, { kind: "config" }],
  /** Times that the driver broke a rule. */
  failures: [ERRORS, { kind: "driver" }],
  /** Times that the device was reset. */
  resets: [RESETS, { kind: "device" }],
} satisfies CounterTable;

/** Counts of a session on one thread. */
export type SessionCounters = {
  -readonly [K in keyof typeof SESSION_COUNTERS]: number;
};

/** Ways of notifications. */
export const KickPath = {
  /** By an eventfd. */
  EVENTFD: 0,
  /** By a register write in a message. */
  MESSAGE: 1,
  /** By a store to a page that the client maps. */
  PAGE: 2,
} as const;
/** One of {@linkcode KickPath}. */
export type KickPath = typeof KickPath[keyof typeof KickPath];

/** Message of a session to the queues of every thread. Plain data; answered with a number. */
export type QueueMessage =
  /** The driver resets a queue. */
  | { readonly op: "resetQueue"; readonly index: number }
  /** Everything is as it was at first. */
  | { readonly op: "reset" }
  /** Either side has given up: everything is left alone until the device is reset. */
  | { readonly op: "halt" }
  /** Guest memory is left alone. */
  | { readonly op: "pause" }
  /** They go on after `pause` and `hold`. */
  | { readonly op: "resume" }
  /** Nothing new is found; answered with how much is in flight. */
  | { readonly op: "hold" }
  /** Answered as {@linkcode QueueHandler.unfinished}. */
  | {
    readonly op: "unfinished";
    readonly iova: number | undefined;
    readonly lengthBytes: number | undefined;
  };

/** Parts of {@linkcode SessionQueues}. */
export interface SessionQueuesOptions {
  /** The largest size of each queue. */
  readonly sizes: readonly number[];
  /** Handler that serves them. */
  readonly handler: QueueHandler;
  /** True when the event loop polls from the start. */
  readonly polled: boolean;
  /** The driver broke a rule. */
  readonly fail: (reason: string) => void;
  /** Sends a used buffer notification for a queue. */
  readonly notifyUsed: (index: number) => void;
  /** A queue was notified here that another thread serves. */
  readonly forward?: (index: number) => void;
}

/** Every queue is served here. */
const NOT_SERVED_ELSEWHERE: ReadonlySet<number> = new Set();

/**
 * The queues of one device on one thread, one bottom half each.
 *
 * A queue is served, which means that its handler is notified of it, while the device runs and the queues are
 * neither paused nor held. What is noticed before that is not lost: all are looked at when they go on.
 */
export class SessionQueues {
  /** By number; a queue that another thread serves is suspended, and says where its driver has put it. */
  readonly rings: readonly Ring[];
  readonly counters: SessionCounters = countersFrom(SESSION_COUNTERS);
  readonly #options: SessionQueuesOptions;
  readonly #handler: QueueHandler;
  readonly #kicks: readonly BottomHalf[];
  readonly #orders: readonly WriteOrder[];
  /** 1 for a queue that was notified of and is not enabled. */
  readonly #early: Uint8Array<ArrayBuffer>;
  /** 1 for a queue whose driver is owed a notification, from when nothing could be sent. */
  readonly #owed: Uint8Array<ArrayBuffer>;
  /** Armed while a ring is wanted that is not mapped. */
  readonly #absence: Timer;
  #absent = false;
  readonly #unsubscribe: () => void;
  #elsewhere = NOT_SERVED_ELSEWHERE;
  #started = false;
  #halted = false;
  #stopped = false;
  #held = false;

  constructor(
    context: Pick<DeviceContext, "loop" | "memory" | "posted">,
    options: SessionQueuesOptions,
  ) {
    const { loop, memory } = context;
    this.#options = options;
    this.#handler = options.handler;
    this.rings = options.sizes.map((size, i) =>
      createQueue(memory, i, size, options.polled)
    );
    this.#kicks = this.rings.map((ring) =>
      loop.bottomHalf(() => this.#serve(ring))
    );
    this.#early = new Uint8Array(this.rings.length);
    this.#owed = new Uint8Array(this.rings.length);
    this.#orders = this.#kicks.map((kick) =>
      new WriteOrder(context.posted, () => kick.schedule())
    );
    this.#absence = loop.timer(() => {
      this.#absent = false;
      this.#failMissing();
    });
    this.#unsubscribe = memory.subscribe({
      onChange: () => this.#onMemoryChange(),
      onReach: () => this.#onReach(),
    });
  }

  /** True while the device runs here and nobody has given up. */
  get running(): boolean {
    return this.#started && !this.#halted;
  }

  /** True from when either side gave up until the device is reset. */
  get halted(): boolean {
    return this.#halted;
  }

  /** True while guest memory is left alone. */
  get stopped(): boolean {
    return this.#stopped;
  }

  /** True while nothing new is found. */
  get held(): boolean {
    return this.#held;
  }

  /** Numbers of the queues whose drivers are owed a notification. */
  get owed(): number[] {
    return [...this.#owed.keys()].filter((index) => this.#owed[index] !== 0);
  }

  /** Does what the session tells every thread. */
  handle(message: QueueMessage): number {
    switch (message.op) {
      case "resetQueue":
        this.#resetQueue(this.rings[message.index]!);
        return 0;
      case "reset":
        this.#reset();
        return 0;
      case "halt":
        this.#halted = true;
        this.#cancelAll();
        this.suspend();
        return 0;
      case "pause":
        this.#stopped = true;
        this.#handler.pause?.();
        this.suspend();
        return 0;
      case "resume":
        this.#resume();
        return 0;
      case "hold":
        return this.#hold();
      case "unfinished":
        return this.#handler.unfinished?.(message.iova, message.lengthBytes) ??
          0;
      default:
        return message satisfies never;
    }
  }

  /** The driver set DRIVER_OK, or had done so where the device comes from. */
  start(features: Features): void {
    this.#started = true;
    for (const ring of this.rings) {
      const depends =
        this.#handler.dependsOnRegisters?.(ring.index, features) ?? true;
      // Queues wait for register writes where the device depends on any.
      ring.keepOrder(this.#orders[ring.index]!, depends);
    }
    this.#handler.start?.(features, this.rings);
    this.#failMissing();
    // The driver may have made buffers available before, without a notification (3.1.1, step 7).
    this.#kickAll();
  }

  /** Other threads serve these queues while the device runs, and this one all others. */
  leaveElsewhere(queues: ReadonlySet<number>): void {
    this.#elsewhere = queues;
    for (const ring of this.rings) {
      if (queues.has(ring.index)) ring.suspend();
      else if (!this.#stopped && !this.#halted) ring.resume();
    }
  }

  /**
   * A queue was just enabled: leaves it alone as long as nothing is touched, or while it is served elsewhere. A
   * notification that came before the write is made up for.
   */
  admit(index: number): void {
    if (this.#stopped || this.#elsewhere.has(index)) {
      this.rings[index]!.suspend();
    } else if (this.#early[index] !== 0) this.#kicks[index]!.schedule();
    this.#failMissing();
  }

  /** Leaves guest memory alone for good. */
  leave(): void {
    this.#stopped = true;
    this.suspend();
  }

  /** Stops touching guest memory. */
  suspend(): void {
    for (const ring of this.rings) ring.suspend();
  }

  /** Ends everything. */
  close(): void {
    this.#cancelAll();
    this.#absence.close();
    this.#unsubscribe();
    for (const ring of this.rings) ring.disable();
  }

  /** Tells the driver of used buffers of a queue, now or when that is possible again. */
  interrupt(queue: Virtqueue): void {
    if (!this.running) return;
    if (this.#stopped) this.owe(queue.index);
    else this.#notifyUsed(queue.index);
  }

  /** Remembers to tell the driver of used buffers of a queue when the queues go on. */
  owe(index: number): void {
    this.#owed[index] = 1;
  }

  /** Somebody noticed that a queue may have new chains; it is served in a bottom half. */
  kick(index: number, path: KickPath): void {
    if (index >= this.rings.length) return;
    if (this.#elsewhere.has(index)) return this.#options.forward?.(index);
    this.#count(path);
    // Before DRIVER_OK nothing may be consumed (2.1.2); setting it looks at every queue.
    if (this.#started && !this.#halted) this.#kicks[index]!.schedule();
  }

  /** As {@linkcode kick}, of chains up to `next`: see {@linkcode VirtioSession.kickWithData}. */
  kickUpTo(index: number, next: number, path: KickPath): void {
    if (!this.running || !this.rings[index]?.hasTaken(next)) {
      return this.kick(index, path);
    }
    this.#count(path);
    this.counters.lateKicks++;
  }

  /** See {@linkcode VirtioSession.poll}. */
  poll(): boolean {
    if (!this.running || this.#stopped || this.#held) return false;
    let found = false;
    for (let i = 0; i < this.rings.length; i++) {
      const ring = this.rings[i]!;
      if (!ring.poll()) continue;
      found = true;
      this.counters.polledKicks++;
      this.#serve(ring);
    }
    return found;
  }

  /** See {@linkcode VirtioSession.beginPolling}. */
  beginPolling(): void {
    for (let i = 0; i < this.rings.length; i++) this.rings[i]!.beginPolling();
  }

  /** See {@linkcode VirtioSession.endPolling}. */
  endPolling(): boolean {
    let found = false;
    for (let i = 0; i < this.rings.length; i++) {
      if (!this.rings[i]!.endPolling()) continue;
      if (!this.running || this.#stopped) continue;
      this.#kicks[i]!.schedule();
      found = true;
    }
    return found;
  }

  /** Counts by name, those of the rings among them. */
  collectCounters(): SessionCounters {
    for (const ring of this.rings) {
      this.counters.suppressedInterrupts += ring.suppressed;
      ring.suppressed = 0;
    }
    return { ...this.counters };
  }

  #resetQueue(ring: Ring): void {
    const { index } = ring;
    this.#kicks[index]!.cancel();
    this.#early[index] = this.#owed[index] = 0;
    if (ring.enabled && this.#started) this.#handler.resetQueue?.(ring);
    ring.disable();
  }

  #reset(): void {
    this.#started = this.#halted = false;
    this.#owed.fill(0);
    this.#cancelAll();
    this.#handler.reset?.();
    this.#absence.cancel();
    this.#absent = false;
    this.#elsewhere = NOT_SERVED_ELSEWHERE;
    for (const ring of this.rings) ring.disable();
  }

  #resume(): void {
    this.#stopped = this.#held = false;
    for (const ring of this.rings) {
      ring.release();
      if (!this.#halted && !this.#elsewhere.has(ring.index)) ring.resume();
    }
    this.#handler.resume?.();
    for (const index of this.owed) {
      if (this.running) this.#notifyUsed(index);
    }
    this.#owed.fill(0);
    this.#kickAll();
  }

  /**
   * Finds nothing new any more.
   *
   * @returns How many chains a driver waits for, or how many requests the handler says are in flight if those are more. Of a
   * halted device, which gives nothing back, only what its handler has counts
   */
  #hold(): number {
    this.#held = true;
    for (const ring of this.rings) ring.hold();
    const inFlight = this.#handler.hold?.() ?? 0;
    let chains = 0;
    for (const ring of this.rings) {
      chains += this.#halted ? ring.inFlight : ring.outstanding;
    }
    return Math.max(inFlight, chains);
  }

  #cancelAll(): void {
    for (const kick of this.#kicks) kick.cancel();
    this.#early.fill(0);
  }

  /** Serves every enabled queue soon. */
  #kickAll(): void {
    if (!this.running) return;
    for (const ring of this.rings) {
      if (ring.enabled) this.#kicks[ring.index]!.schedule();
    }
  }

  #notifyUsed(index: number): void {
    this.counters.interrupts++;
    this.#options.notifyUsed(index);
  }

  #serve(ring: Ring): void {
    // Paused or held, it is looked at again when the queues go on.
    if (!this.#started || this.#halted || this.#stopped || this.#held) return;
    this.#early[ring.index] = ring.enabled ? 0 : 1;
    if (!ring.enabled) return;
    if (ring.missing() !== null) return this.#awaitMemory();
    if (ring.undecided && ring.publish()) this.interrupt(ring);
    this.#handler.notify(ring);
  }

  /** A ring is to be in memory that the device reaches from when it is to be used (section 2.7.13.1 and 2.8.21). */
  #failMissing(): void {
    if (!this.running || this.#stopped) return;
    for (const ring of this.rings) {
      const missing = ring.missing();
      if (missing !== null) return this.#options.fail(missing);
    }
  }

  /** A ring is wanted that is not mapped; it is served when it is. */
  #awaitMemory(): void {
    if (this.#absent) return;
    this.#absent = true;
    this.#absence.arm(RING_ABSENCE_MS);
  }

  #count(path: KickPath): void {
    const { counters } = this;
    counters.kicks++;
    if (path === KickPath.MESSAGE) counters.messageKicks++;
    else if (path === KickPath.PAGE) counters.pageKicks++;
    else counters.eventFdKicks++;
  }

  /** Looks again: what a queue was looking at is there. */
  #onReach(): void {
    for (let i = 0; i < this.rings.length; i++) {
      const { awaitsReach, undecided } = this.rings[i]!;
      if (awaitsReach || undecided) this.#kicks[i]!.schedule();
    }
  }

  /** A ring that could not be reached may be back, and a chain that was kept from the driver can be shown to it. */
  #onMemoryChange(): void {
    if (!this.running) return;
    for (let i = 0; i < this.rings.length; i++) {
      const ring = this.rings[i]!;
      if (!ring.enabled || ring.resolved) continue;
      if (ring.missing() === null) this.#kicks[i]!.schedule();
      else if (ring.outstanding > 0) this.#awaitMemory();
    }
  }
}
