/**
 * The half of a virtio device that no transport and no device type has a say in: status, features, queues and
 * who may touch them when.
 *
 * A transport talks to the session, and to nothing else in this folder. What a driver writes and reads goes to
 * `registers.ts`: the rules of the status byte, the choice of features, the generation of the configuration. Queues are
 * served by `queues.ts`, on this thread and on any other; whatever is done to all of them (reset, halt, pause, resume, hold)
 * is a message that the queues of every thread carry out alike, and a new one goes there. `threads.ts` is what is between
 * threads: who serves which queue, how a queue gets there and back, and the eventfds that drivers notify by. `state.ts` is
 * the form in which a session is saved; each part says itself what it saves.
 *
 * @module
 */

import { parseCounters } from "../../core/counters.ts";
import { isPowerOfTwo } from "../../core/bits.ts";
import type { DeviceState } from "../../core/state_form.ts";
import type { ResourceBag } from "../../os/resource_bag.ts";
import type { DeviceContext } from "../../pci/context.ts";
import type { DeviceCommand } from "../../pci/device.ts";
import type { QueueThreads } from "../../pci/queue_threads.ts";
import { VIRTIO_CONFIG_S } from "../defs.ts";
import type { VirtioDevice, VirtioTransport } from "../device.ts";
import { Features, VIRTIO_F } from "../features.ts";
import { ringFeatures, VIRTIO_DEFAULTS } from "../options.ts";
import type { Virtqueue } from "../queue/queue.ts";
import type { Ring } from "../queue/ring.ts";
import type { QueueAddresses } from "../queue/ring_parts.ts";
import {
  KickPath,
  type QueueMessage,
  SESSION_COUNTERS,
  SessionQueues,
} from "./queues.ts";
import { DeviceConfig, DeviceStatus, Negotiation } from "./registers.ts";
import {
  parseSessionState,
  refusedState,
  SESSION_FORM,
  type SessionState,
} from "./state.ts";
import { QueueKicks, RemoteQueues } from "./threads.ts";

/** Ways of a transport to reach the driver. */
export interface SessionSignals {
  /** Sends a used buffer notification for a queue. */
  notifyUsed(queueIndex: number): void;
  /** Sends a configuration change notification. */
  notifyConfig(): void;
  /** The device is being reset: the transport's registers are reset with it. */
  onReset(): void;
  /** Calls {@linkcode VirtioSession.setVector} for every queue. */
  tellVectors(): void;
  /** Interrupts for used buffers where that is not by vector. */
  notifyByLine(): void;
}

/** Options of a session. */
export interface SessionOptions {
  /** Features of the transport and the rings that are offered; VERSION_1 is added. RING_FEATURES unless told. */
  readonly ringFeatures?: Features;
  /** True when the event loop polls all the time, so that drivers need not notify. */
  readonly polled?: boolean;
}

/** Ring features that are offered unless someone chooses. */
export const RING_FEATURES: Features = ringFeatures(VIRTIO_DEFAULTS);

const NONE = new Features(0, 0);
const NO_QUEUES: ReadonlySet<number> = new Set();
const VERSION_1 = Features.of(VIRTIO_F.VERSION_1);

/**
 * Status, features and queues of one virtio device (virtio 1.3, sections 2.1, 2.2, 2.4, 2.6.1 and 3.1).
 *
 * ```text
 *   reset --FEATURES_OK--> negotiated --DRIVER_OK--> running --fail, FAILED--> halted
 *     ↑___________________________|__________________|__________________________|
 * ```
 * The queues are touched in `running` only, and there not while the session is stopped. While it holds, in any state,
 * they give nothing new, but what comes back is shown to the driver. Register writes change state and schedule bottom
 * halves; the device model is notified from those.
 */
export class VirtioSession implements VirtioTransport {
  /** The device model. */
  readonly device: VirtioDevice;
  readonly #context: DeviceContext;
  readonly #signals: SessionSignals;
  readonly #status = new DeviceStatus();
  readonly #negotiation: Negotiation;
  readonly #config: DeviceConfig;
  readonly #queues: SessionQueues;
  /** A configuration change notification waits until the session goes on. */
  #owesConfig = false;
  readonly #polled: boolean;
  readonly #kicks: QueueKicks;
  /** Null while every queue is served here. */
  #remote: RemoteQueues | null = null;

  /** @param create Makes the device model; it may keep the transport but use it only after it has returned */
  constructor(
    context: DeviceContext,
    create: (transport: VirtioTransport) => VirtioDevice,
    signals: SessionSignals,
    options: SessionOptions = {},
  ) {
    this.#context = context;
    this.#signals = signals;
    this.device = create(this);
    const rings = options.ringFeatures ?? RING_FEATURES;
    this.#negotiation = new Negotiation(
      this.device,
      (this.device.features ?? NONE).union(rings).union(VERSION_1),
      context.log,
    );
    this.#config = new DeviceConfig(this.device);
    this.#polled = options.polled ?? false;
    this.#kicks = new QueueKicks(context.loop, (index) => this.kick(index));
    this.#queues = new SessionQueues(context, {
      sizes: this.device.queueSizes,
      handler: this.device,
      polled: this.#polled,
      fail: (reason) => this.fail(reason),
      notifyUsed: (index) => signals.notifyUsed(index),
      forward: (index) => this.#kicks.signal(index),
    });
  }

  /** Features that the driver may choose from. */
  get offered(): Features {
    return this.#negotiation.offered;
  }

  /** Its queues. */
  get queues(): readonly Ring[] {
    return this.#queues.rings;
  }

  /** The device status as the driver reads it. */
  get status(): number {
    return this.#status.value;
  }

  /** The bits the driver has accepted, final once FEATURES_OK is set. */
  get accepted(): Features {
    return this.#negotiation.accepted;
  }

  /** True when the queues may be touched, apart from {@linkcode stop}. */
  get running(): boolean {
    return this.#status.running;
  }

  /** True when {@linkcode stop} was called last. */
  get stopped(): boolean {
    return this.#queues.stopped;
  }

  /** The configuration generation, which covers what {@linkcode readConfig} has returned. */
  get configGeneration(): number {
    return this.#config.generation;
  }

  /**
   * Has queue threads serve what the device model shares, and this thread the rest. On a device just made, or that holds
   * with nothing in flight.
   *
   * @param threads Null for none: this thread serves every queue
   * @param vectors How many MSI-X vectors there are
   * @throws {Error} When one of them cannot; this thread then serves every queue
   */
  place(threads: QueueThreads | null, vectors: number): void {
    const { sharing, queueSizes } = this.device;
    this.#gather();
    if (threads === null || sharing === undefined) return;
    this.#remote = new RemoteQueues({
      ...{ threads, sharing, queueSizes, vectors },
      kicks: this.#kicks,
      polled: this.#polled,
      offered: this.offered,
      notifyByLine: () => this.#signals.notifyByLine(),
      fail: (reason) => this.fail(reason),
    });
    if (this.stopped) this.#remote.handle({ op: "pause" });
    else threads.start();
    if (this.#queues.held) this.#remote.handle({ op: "hold" });
    this.#signals.tellVectors();
    if (!this.running) return;
    this.#leaveElsewhere();
    this.#remote.start(this.accepted, this.queues);
  }

  /** Groups of queues that belong together, as {@linkcode QueueSharing.groupOf} says; none for a device that shares none. */
  groups(): readonly number[] {
    const { sharing, queueSizes } = this.device;
    if (sharing === undefined) return [];
    return queueSizes.map((_, i) => sharing.groupOf(i, this.offered));
  }

  /** The eventfd that a client may signal to notify a queue, watched where that is served; undefined without. */
  kickFd(index: number): number | undefined {
    return this.#kicks.fd(index);
  }

  /** Serves every queue on this thread. */
  #gather(): void {
    const remote = this.#remote;
    if (remote === null) return;
    this.#collect();
    this.#remote = null;
    remote[Symbol.dispose]();
    this.#leaveElsewhere();
  }

  /** Brings back to this thread what queue threads know, where it may be saved. */
  #collect(): void {
    const owed = this.#remote?.collect(this.accepted, this.queues) ?? [];
    for (const queue of owed) this.#queues.owe(queue);
  }

  #leaveElsewhere(): void {
    const elsewhere = this.#remote?.place(this.accepted) ?? NO_QUEUES;
    this.#queues.leaveElsewhere(elsewhere);
    this.#kicks.watchAllBut(elsewhere);
  }

  /** The driver chooses the vector of a queue. */
  setVector(index: number, vector: number): void {
    this.#remote?.setVector(index, vector);
  }

  /** Replaces word `select` of the accepted features; too late once FEATURES_OK is set. */
  acceptFeatures(select: number, word: number): void {
    if (!this.#status.negotiated) this.#negotiation.accept(select, word);
  }

  /** The driver writes the device status (section 2.1): 0 resets, bits are set one after the other. */
  writeStatus(value: number): void {
    if (value === 0) return this.reset();
    const status = this.#status;
    const set = status.write(value, () => this.#negotiation.check());
    if ((set & VIRTIO_CONFIG_S.FAILED) !== 0) this.#tell({ op: "halt" });
    if ((set & VIRTIO_CONFIG_S.DRIVER_OK) === 0 || status.halted) return;
    this.#leaveElsewhere();
    this.#queues.start(this.accepted);
    if (this.running) this.#remote?.start(this.accepted, this.queues);
  }

  /** Has the queues of all threads do something. @returns The sum of what they answered */
  #tell(message: QueueMessage): number {
    let sum = 0;
    try {
      sum += this.#remote?.handle(message) ?? 0;
    } finally {
      sum += this.#queues.handle(message);
    }
    return sum;
  }

  /** True when a driver may give a queue this size: a power of two, unless it is a packed one (4.1.4.3). */
  acceptsQueueSize(index: number, size: number): boolean {
    const queue = this.queues[index];
    if (queue === undefined || size < 1 || size > queue.maxSize) return false;
    return isPowerOfTwo(size) ||
      (this.#status.negotiated && this.accepted.has(VIRTIO_F.RING_PACKED));
  }

  /**
   * The driver enables a queue.
   *
   * Before FEATURES_OK the layout of the ring is not known, so that is a violation (section 3.1.1, steps 5 to 7).
   */
  enableQueue(index: number, addresses: QueueAddresses): void {
    const queue = this.queues[index];
    if (queue === undefined || queue.enabled || this.#status.halted) return;
    if (!this.#status.negotiated) {
      this.fail(`queue ${index} is enabled before FEATURES_OK (3.1.1)`);
      return;
    }
    if (queue.enable(this.accepted, addresses) < 0) {
      this.fail(`queue ${index}: ${queue.lastError}`);
      return;
    }
    this.#queues.admit(index);
    if (this.running) this.#remote?.enable(queue);
  }

  /** The driver resets one queue (section 2.6.1); false when RING_RESET was not negotiated. */
  resetQueue(index: number): boolean {
    const queue = this.queues[index];
    if (queue === undefined || !this.accepted.has(VIRTIO_F.RING_RESET)) {
      return false;
    }
    if (!this.#status.negotiated) return false;
    this.#tell({ op: "resetQueue", index });
    return true;
  }

  /** The driver notifies a queue; the device model hears of it in a bottom half. */
  kick(index: number, path: KickPath = KickPath.EVENTFD): void {
    this.#queues.kick(index, path);
  }

  /**
   * The driver notifies a queue and says how far it has come. When the device has come as far there is nothing to look
   * at: it was faster than the notification. A driver that lies keeps its own chains waiting.
   *
   * @param next As {@linkcode Ring.hasTaken} wants it; does not count without NOTIFICATION_DATA
   */
  kickWithData(index: number, next: number, path: KickPath): void {
    if (this.accepted.has(VIRTIO_F.NOTIFICATION_DATA)) {
      this.#queues.kickUpTo(index, next, path);
    } else {
      this.#queues.kick(index, path);
    }
  }

  /**
   * Looks at every queue for new chains, without a notification.
   *
   * @returns Whether there were any
   */
  poll(): boolean {
    return this.#queues.poll();
  }

  /** The queues are polled from here on: drivers need not notify. */
  beginPolling(): void {
    this.#queues.beginPolling();
  }

  /**
   * The queues are not polled any more.
   *
   * @returns Whether there are new chains, which are then served soon
   */
  endPolling(): boolean {
    return this.#queues.endPolling();
  }

  /** Everything as it was when the device was made (section 2.4.1). */
  reset(): void {
    const began = this.status !== 0;
    this.#status.reset();
    this.#negotiation.reset();
    this.#owesConfig = false;
    if (began) {
      this.#queues.counters.resets++;
      this.#tell({ op: "reset" });
    }
    this.#kicks.watchAllBut(NO_QUEUES);
    this.#signals.onReset();
  }

  /** Stops touching guest memory and notifying the driver; what happens meanwhile is made up for. */
  stop(): void {
    if (!this.stopped) this.#tell({ op: "pause" });
  }

  /**
   * Finds nothing new in the queues until {@linkcode start}; what is in flight goes on to its end. Registers are served, so
   * that the driver may well reset and start the device meanwhile. To be called again until nothing is in flight.
   *
   * @returns How many chains the driver waits for, or how many requests the device model says are in flight if those are
   * more. Of a halted device only the latter count: it gives nothing back
   */
  hold(): number {
    return this.#tell({ op: "hold" });
  }

  /** See {@linkcode QueueHandler.unfinished}; those of all threads. */
  unfinished(iova?: number, lengthBytes?: number): number {
    return this.#tell({ op: "unfinished", iova, lengthBytes });
  }

  /**
   * Everything that a driver could tell the device by, and where it is in its queues. Changes nothing.
   *
   * @throws {Error} When the device model cannot tell, or {@linkcode hold} has not come to 0
   */
  save(): DeviceState<SessionState> {
    const { device } = this;
    if (device.save === undefined) {
      throw new Error("Cannot save the device: its model has no save");
    }
    this.#collect();
    const { queues } = this;
    const open = queues.find((queue) => queue.outstanding > 0);
    if (open !== undefined && !this.#status.halted) {
      throw new Error(
        `Cannot save the device: queue ${open.index} has ${open.outstanding} chains in flight, hold it until there are none`,
      );
    }
    return SESSION_FORM.write({
      status: this.status,
      ...this.#negotiation.save(),
      ...this.#config.save(),
      owedInterrupts: this.#queues.owed,
      owesConfigInterrupt: this.#owesConfig,
      queues: queues.map((queue) => queue.save()),
      device: device.save(),
    });
  }

  /**
   * Takes over what {@linkcode save} gave, on a device just made, which is then stopped and held until {@linkcode start}.
   *
   * @throws {Error} When it is not a state of such a device, which is then good for nothing but being closed
   */
  load(value: unknown): void {
    const { device } = this;
    const state = parseSessionState(value, this.queues.length);
    if (device.load === undefined) {
      throw refusedState("its model has no load");
    }
    this.stop();
    this.hold();
    this.#loadRegisters(state);
    this.#loadQueues(state);
    if (this.running) {
      this.#leaveElsewhere();
      this.#queues.start(this.accepted);
    }
    device.load(state.device);
    if (this.running) this.#remote?.start(this.accepted, this.queues);
  }

  #loadRegisters(state: SessionState): void {
    const status = this.#status;
    status.load(state.status);
    this.#negotiation.load(state);
    this.#config.load(state);
    this.#owesConfig = state.owesConfigInterrupt;
    if (status.negotiated && !this.#negotiation.check()) {
      throw refusedState(
        `the driver had accepted ${this.accepted}, of which only ${this.offered} are offered here`,
      );
    }
    if (status.negotiated) return;
    if (status.has(VIRTIO_CONFIG_S.DRIVER_OK)) {
      throw refusedState(`its status cannot be ${status.value}`);
    }
    if (state.queues.some((queue) => queue.enabled)) {
      throw refusedState("a queue is enabled before FEATURES_OK");
    }
  }

  #loadQueues({ queues, owedInterrupts }: SessionState): void {
    for (const queue of this.queues) {
      if (queue.load(this.accepted, queues[queue.index]!) < 0) {
        throw refusedState(queue.lastError);
      }
      queue.suspend();
    }
    for (const index of owedInterrupts) this.#queues.owe(index);
    if (this.#status.halted) this.#queues.handle({ op: "halt" });
  }

  /** Goes on after {@linkcode stop}, {@linkcode hold} or {@linkcode load}. */
  start(): void {
    if (!this.stopped && !this.#queues.held) return;
    this.#tell({ op: "resume" });
    if (this.#owesConfig) this.#notifyConfig();
  }

  /** Leaves guest memory alone for good, because the device is somewhere else now: only {@linkcode close} may follow. */
  leave(): void {
    this.#queues.leave();
    this.#remote?.[Symbol.dispose]();
    this.#remote = null;
  }

  /** Puts its eventfds into a bag. */
  saveKicks(bag: ResourceBag): void {
    this.#kicks.save(bag);
  }

  /** Takes over what {@linkcode saveKicks} put. */
  loadKicks(bag: ResourceBag): void {
    this.#kicks.load(bag, this.queues.length);
  }

  /** Ends everything; the device model is closed too. */
  close(): void {
    this.#remote?.[Symbol.dispose]();
    this.#remote = null;
    this.#kicks[Symbol.dispose]();
    // The device first: no back end may have buffers that are released.
    this.device.close?.();
    this.#queues.close();
  }

  /** Runs a command of the device, which may change what queue threads use. */
  command(
    command: DeviceCommand,
    args: readonly string[],
  ): ReturnType<DeviceCommand["run"]> {
    const run = () => command.run(args);
    if (this.#remote === null) return run();
    return this.#remote.whilePaused(run, !this.stopped);
  }

  /** Reads device configuration; what lies beyond it is 0. */
  readConfig(offset: number, width: 1 | 2 | 4): number {
    return this.#config.read(offset, width);
  }

  /** Writes device configuration; what lies beyond it is ignored. */
  writeConfig(offset: number, width: 1 | 2 | 4, value: number): void {
    this.#config.write(offset, width, value);
  }

  interrupt(queue: Virtqueue): void {
    this.#queues.interrupt(queue);
  }

  configChanged(): void {
    this.#config.markChanged();
    if (this.running) this.#notifyConfig();
  }

  settingsChanged(): void {
    this.#remote?.configure();
  }

  fail(reason: string): void {
    if (this.#status.has(VIRTIO_CONFIG_S.NEEDS_RESET)) return;
    this.#queues.counters.failures++;
    this.#context.log.warn(
      `The driver broke the rules and must reset the device: ${reason}`,
      { event: "DEVICE_FAILED", reason },
    );
    this.#status.requireReset();
    this.#tell({ op: "halt" });
    if (this.#status.has(VIRTIO_CONFIG_S.DRIVER_OK)) this.#notifyConfig();
  }

  /** Counts since the device was made, by name. */
  counters(): Record<string, number> {
    return this.#queues.collectCounters();
  }

  /** Goes on from what {@linkcode VirtioSession.counters} gave. @throws {ErrnoError} EINVAL */
  restoreCounters(saved: unknown): void {
    Object.assign(
      this.#queues.counters,
      parseCounters(SESSION_COUNTERS, saved),
    );
  }

  #notifyConfig(): void {
    this.#owesConfig = this.stopped;
    if (this.stopped) return;
    this.#queues.counters.configInterrupts++;
    this.#signals.notifyConfig();
  }
}
