/**
 * The half of a virtio device that no transport and no device type has a say in: status, features, queues and
 * who may touch them when.
 *
 * @module
 */

import { isPowerOfTwo } from "../bits.ts";
import type { BottomHalf } from "../event_loop.ts";
import type { DeviceContext } from "../pci/device.ts";
import { VIRTIO_CONFIG_S } from "./defs.ts";
import type { VirtioDevice, VirtioTransport } from "./device.ts";
import { Features, VIRTIO_F } from "./features.ts";
import { ringFeatures, VIRTIO_DEFAULTS } from "./options.ts";
import { PackedQueue } from "./packed_queue.ts";
import type { Virtqueue } from "./queue.ts";
import type { QueueAddresses, Ring } from "./ring.ts";
import {
  parseSessionState,
  refusedState,
  SESSION_STATE_VERSION,
  type SessionState,
} from "./session_state.ts";
import {
  KickPath,
  type SessionCounters,
  type SessionLimits,
  type SessionOptions,
  type SessionSignals,
} from "./session_types.ts";
import { SplitQueue } from "./split_queue.ts";

export {
  KickPath,
  type SessionCounters,
  type SessionLimits,
  type SessionOptions,
  type SessionSignals,
} from "./session_types.ts";

/** Ring features that are offered unless someone chooses. */
export const RING_FEATURES: Features = ringFeatures(VIRTIO_DEFAULTS);

const VERSION_1 = Features.of(VIRTIO_F.VERSION_1);
const NONE = new Features(0, 0);

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
  /** What the driver may choose from. */
  readonly offered: Features;
  /** Counts since the device was made. */
  readonly counters: SessionCounters = {
    kicks: 0,
    eventFdKicks: 0,
    messageKicks: 0,
    pageKicks: 0,
    polledKicks: 0,
    lateKicks: 0,
    interrupts: 0,
    suppressedInterrupts: 0,
    configInterrupts: 0,
    failures: 0,
    resets: 0,
  };
  readonly #context: DeviceContext;
  readonly #signals: SessionSignals;
  readonly #kicks: BottomHalf[] = [];
  readonly #split: readonly Ring[];
  #polled: boolean;
  /** Made when a driver first wants them: a process that never meets one keeps its calls monomorphic. */
  #packed: readonly Ring[] | null = null;
  #queues: readonly Ring[];
  readonly #unsubscribe: () => void;
  readonly #owedInterrupts: Uint8Array;
  #owesConfigInterrupt = false;
  #status = 0;
  #accepted = NONE;
  #acceptedBeyond = false;
  #started = false;
  #halted = false;
  #stopped = false;
  #held = false;
  #configDirty = false;
  #configGeneration = 0;
  #limits: SessionLimits | null = null;

  /** @param create Makes the device model; it may keep the transport but use it only after it has returned */
  constructor(
    context: DeviceContext,
    create: (transport: VirtioTransport) => VirtioDevice,
    signals: SessionSignals,
    options: SessionOptions = {},
  ) {
    this.#context = context;
    this.#signals = signals;
    Object.assign(this.counters, options.counters);
    this.device = create(this);
    this.offered = this.device.features.union(
      options.ringFeatures ?? RING_FEATURES,
    ).union(VERSION_1);
    this.#polled = options.polled ?? false;
    this.#queues = this.#split = this.device.queueSizes.map((size, i) =>
      new SplitQueue(context.memory, i, size, this.#polled)
    );
    this.#owedInterrupts = new Uint8Array(this.#queues.length);
    for (let i = 0; i < this.#queues.length; i++) {
      this.#kicks.push(context.loop.bottomHalf(() => this.#serve(i)));
    }
    this.#unsubscribe = context.memory.subscribe({
      onChange: () => this.#onMemoryChange(),
    });
  }

  /** Its queues, of the format that was negotiated; split until then. */
  get queues(): readonly Ring[] {
    return this.#queues;
  }

  /** The device status as the driver reads it. */
  get status(): number {
    return this.#status;
  }

  /** The bits the driver has accepted, final once FEATURES_OK is set. */
  get accepted(): Features {
    return this.#accepted;
  }

  /** Whether the queues may be touched, apart from {@linkcode stop}. */
  get running(): boolean {
    return (this.#status & VIRTIO_CONFIG_S.DRIVER_OK) !== 0 && !this.#halted;
  }

  /** Whether {@linkcode stop} was called last. */
  get stopped(): boolean {
    return this.#stopped;
  }

  /** The configuration generation, which covers what {@linkcode readConfig} has returned. */
  get configGeneration(): number {
    return this.#configGeneration;
  }

  /**
   * Serves some queues only: the others are known, and are touched by another session of the same device. Before anything
   * else is done.
   */
  limit(limits: SessionLimits): void {
    this.#limits = limits;
  }

  /** Replaces word `select` of the accepted features; too late once FEATURES_OK is set. */
  acceptFeatures(select: number, word: number): void {
    if (this.#has(VIRTIO_CONFIG_S.FEATURES_OK)) return;
    const old = this.#accepted;
    if (select === 0) this.#accepted = new Features(word, old.word(1));
    else if (select === 1) this.#accepted = new Features(old.word(0), word);
    // There are no features above 63: accepting one makes FEATURES_OK fail.
    else if (word !== 0) this.#acceptedBeyond = true;
  }

  /** The driver writes the device status (section 2.1): 0 resets, bits are set one after the other. */
  writeStatus(value: number): void {
    if (value === 0) return this.reset();
    // A driver must not clear a bit (2.1.1), and DEVICE_NEEDS_RESET is the device's.
    let set = value & ~this.#status & ~VIRTIO_CONFIG_S.NEEDS_RESET & 0xff;
    if ((set & VIRTIO_CONFIG_S.FEATURES_OK) !== 0 && !this.#featuresAreGood()) {
      set &= ~VIRTIO_CONFIG_S.FEATURES_OK;
    }
    const negotiated = ((this.#status | set) & VIRTIO_CONFIG_S.FEATURES_OK) !==
      0;
    if (!negotiated) set &= ~VIRTIO_CONFIG_S.DRIVER_OK;
    this.#status |= set;
    if ((set & VIRTIO_CONFIG_S.FEATURES_OK) !== 0) this.#chooseQueues();
    if ((set & VIRTIO_CONFIG_S.FAILED) !== 0) this.#halt();
    if ((set & VIRTIO_CONFIG_S.DRIVER_OK) !== 0 && !this.#halted) {
      this.#started = true;
      if (this.#limits !== null) this.#leaveForeignQueues();
      this.device.start(this.#accepted, this.#queues);
      // The driver may have made buffers available before, without a notification (3.1.1, step 7).
      this.#kickAll();
    }
  }

  /** Whether a driver may give a queue this size: a power of two, unless it is a packed one (4.1.4.3). */
  acceptsQueueSize(index: number, size: number): boolean {
    const queue = this.#queues[index];
    if (queue === undefined || size < 1 || size > queue.maxSize) return false;
    return isPowerOfTwo(size) || this.#isPacked();
  }

  /**
   * The driver enables a queue.
   *
   * Before FEATURES_OK the layout of the ring is not known, so that is a violation (section 3.1.1, steps 5 to 7).
   */
  enableQueue(index: number, addresses: QueueAddresses): void {
    const queue = this.#queues[index];
    if (queue === undefined || queue.enabled || this.#halted) return;
    if (!this.#has(VIRTIO_CONFIG_S.FEATURES_OK)) {
      this.fail(`queue ${index} is enabled before FEATURES_OK (3.1.1)`);
      return;
    }
    if (queue.enable(this.#accepted, addresses) < 0) {
      this.fail(`queue ${index}: ${queue.lastError}`);
      return;
    }
    if (this.#stopped || (this.running && this.#isForeign(index))) {
      queue.suspend();
    }
  }

  /** The driver resets one queue (section 2.6.1); false when RING_RESET was not negotiated. */
  resetQueue(index: number): boolean {
    const queue = this.#queues[index];
    if (queue === undefined || !this.#accepted.has(VIRTIO_F.RING_RESET)) {
      return false;
    }
    if (!this.#has(VIRTIO_CONFIG_S.FEATURES_OK)) return false;
    this.#kicks[index]!.cancel();
    this.#owedInterrupts[index] = 0;
    if (queue.enabled && this.#started) this.device.resetQueue(queue);
    queue.disable();
    return true;
  }

  /** The driver notifies a queue; the device model hears of it in a bottom half. */
  kick(index: number, path: KickPath = KickPath.EVENTFD): void {
    if (index >= this.#queues.length) return;
    if (this.#isForeign(index)) return this.#limits!.onForeignKick(index);
    this.#countKick(path);
    // Before DRIVER_OK nothing may be consumed (2.1.2); setting it looks at every queue.
    if (this.running) this.#kicks[index]!.schedule();
  }

  /**
   * The driver notifies a queue and says how far it has come. When the device has come as far there is nothing to look
   * at: it was faster than the notification. A driver that lies keeps its own chains waiting.
   *
   * @param next As {@linkcode Ring.hasTaken} wants it; does not count without NOTIFICATION_DATA
   */
  kickWithData(index: number, next: number, path: KickPath): void {
    const queue = this.#queues[index];
    if (
      queue !== undefined && this.#accepted.has(VIRTIO_F.NOTIFICATION_DATA) &&
      this.running && queue.hasTaken(next)
    ) {
      this.#countKick(path);
      this.counters.lateKicks++;
      return;
    }
    this.kick(index, path);
  }

  /**
   * Looks at every queue for new chains, without a notification.
   *
   * @returns Whether there were any
   */
  poll(): boolean {
    if (!this.running || this.#stopped || this.#held) return false;
    let found = false;
    for (let i = 0; i < this.#queues.length; i++) {
      const queue = this.#queues[i]!;
      if (!queue.poll()) continue;
      found = true;
      this.counters.polledKicks++;
      this.#serve(i);
    }
    return found;
  }

  /** The queues are polled from here on: drivers need not notify. */
  beginPolling(): void {
    this.#polled = true;
    for (let i = 0; i < this.#queues.length; i++) {
      this.#queues[i]!.beginPolling();
    }
  }

  /**
   * The queues are not polled any more.
   *
   * @returns Whether there are new chains, which are then served soon
   */
  endPolling(): boolean {
    this.#polled = false;
    let found = false;
    for (let i = 0; i < this.#queues.length; i++) {
      if (!this.#queues[i]!.endPolling()) continue;
      if (!this.running || this.#stopped) continue;
      this.#kicks[i]!.schedule();
      found = true;
    }
    return found;
  }

  /** Everything as it was when the device was made (section 2.4.1). */
  reset(): void {
    const began = this.#status !== 0;
    this.#status = 0;
    this.#accepted = NONE;
    this.#acceptedBeyond = false;
    this.#started = false;
    this.#halted = false;
    this.#owesConfigInterrupt = false;
    this.#owedInterrupts.fill(0);
    for (const kick of this.#kicks) kick.cancel();
    if (began) {
      this.counters.resets++;
      this.device.reset();
    }
    for (const queue of this.#queues) queue.disable();
    this.#useQueues(this.#split);
    this.#signals.onReset();
  }

  /** Stops touching guest memory and notifying the driver; what happens meanwhile is made up for. */
  stop(): void {
    if (this.#stopped) return;
    this.#stopped = true;
    this.device.pause?.();
    for (const queue of this.#queues) queue.suspend();
  }

  /**
   * Finds nothing new in the queues until {@linkcode start}; what is in flight goes on to its end. Registers are served, so
   * that the driver may well reset and start the device meanwhile. To be called again until nothing is in flight.
   *
   * @returns How many chains the driver waits for, or how many requests the device model says are in flight if those are
   * more. Of a halted device only the latter count: it gives nothing back
   */
  hold(): number {
    if (!this.#held) {
      this.#held = true;
      for (const queue of this.#queues) queue.hold();
    }
    const inFlight = this.device.hold?.() ?? 0;
    let chains = 0;
    for (const queue of this.#queues) {
      chains += this.#halted ? queue.inFlight : queue.outstanding;
    }
    return Math.max(inFlight, chains);
  }

  /**
   * Everything that a driver could tell the device by, and where it is in its queues. Changes nothing.
   *
   * @throws {Error} When the device model cannot tell, or {@linkcode hold} has not come to 0
   */
  save(): SessionState {
    const { device } = this;
    if (device.save === undefined) {
      throw new Error("Cannot save the device: its model has no save");
    }
    const open = this.#queues.find((queue) => queue.outstanding > 0);
    if (open !== undefined && !this.#halted) {
      throw new Error(
        `Cannot save the device: queue ${open.index} has ${open.outstanding} chains in flight, hold it until there are none`,
      );
    }
    const queues = this.#queues.map((queue) => queue.save());
    const owed = queues.map((_, i) => i).filter((i) =>
      this.#owedInterrupts[i] !== 0
    );
    return {
      version: SESSION_STATE_VERSION,
      status: this.#status,
      accepted: [this.#accepted.word(0), this.#accepted.word(1)],
      acceptedBeyond: this.#acceptedBeyond,
      configGeneration: this.#configGeneration,
      configDirty: this.#configDirty,
      owedInterrupts: owed,
      owesConfigInterrupt: this.#owesConfigInterrupt,
      queues,
      device: device.save(),
    };
  }

  /**
   * Takes over what {@linkcode save} gave, on a device just made, which is then stopped and held until {@linkcode start}.
   *
   * @throws {Error} When it is not a state of such a device, which is then good for nothing but being closed
   */
  load(value: unknown): void {
    const { device } = this;
    const state = parseSessionState(value, this.#split.length);
    if (device.load === undefined) {
      throw refusedState("its model has no load");
    }
    this.stop();
    this.hold();
    this.#loadStatus(state);
    this.#loadQueues(state);
    this.#configGeneration = state.configGeneration;
    this.#configDirty = state.configDirty;
    this.#owesConfigInterrupt = state.owesConfigInterrupt;
    for (const index of state.owedInterrupts) this.#owedInterrupts[index] = 1;
    if (this.running) {
      this.#started = true;
      device.start(this.#accepted, this.#queues);
    }
    device.load(state.device);
  }

  /** Goes on after {@linkcode stop}, {@linkcode hold} or {@linkcode load}. */
  start(): void {
    if (!this.#stopped && !this.#held) return;
    this.#stopped = this.#held = false;
    for (const queue of this.#queues) {
      queue.release();
      if (!this.#halted && !this.#isForeign(queue.index)) queue.resume();
    }
    this.device.resume?.();
    for (let i = 0; i < this.#owedInterrupts.length; i++) {
      if (this.#owedInterrupts[i] === 0) continue;
      this.#owedInterrupts[i] = 0;
      this.interrupt(this.#queues[i]!);
    }
    if (this.#owesConfigInterrupt) this.#notifyConfig();
    this.#kickAll();
  }

  /** Leaves guest memory alone for good, because the device is somewhere else now: only {@linkcode close} may follow. */
  leave(): void {
    this.#stopped = true;
    for (const queue of this.#queues) queue.suspend();
  }

  /** Ends everything; the device model is closed too. */
  close(): void {
    for (const kick of this.#kicks) kick.cancel();
    this.#unsubscribe();
    for (const queue of this.#queues) queue.disable();
    this.device.close();
  }

  /** Reads device configuration; what lies beyond it is 0. */
  readConfig(offset: number, width: 1 | 2 | 4): number {
    if (this.#configDirty) {
      // Counting changes could wrap between two reads; counting reads that saw a change cannot (4.1.4.3.1).
      this.#configDirty = false;
      this.#configGeneration = (this.#configGeneration + 1) & 0xff;
    }
    const length = this.device.configLengthBytes;
    if (offset + width <= length) return this.device.readConfig(offset, width);
    let value = 0;
    for (let i = 0; i < width && offset + i < length; i++) {
      value |= this.device.readConfig(offset + i, 1) << (i * 8);
    }
    return value >>> 0;
  }

  /** Writes device configuration; what lies beyond it is ignored. */
  writeConfig(offset: number, width: 1 | 2 | 4, value: number): void {
    if (offset + width > this.device.configLengthBytes) return;
    this.device.writeConfig(offset, width, value);
  }

  interrupt(queue: Virtqueue): void {
    if (!this.running) return;
    if (this.#stopped) {
      this.#owedInterrupts[queue.index] = 1;
      return;
    }
    this.counters.interrupts++;
    this.#signals.notifyUsed(queue.index);
  }

  configChanged(): void {
    this.#configDirty = true;
    if (this.running) this.#notifyConfig();
  }

  sharedStateChanged(): void {
    this.#limits?.onSharedState();
  }

  fail(reason: string): void {
    if (this.#has(VIRTIO_CONFIG_S.NEEDS_RESET)) return;
    const first = this.counters.failures++ === 0;
    const message =
      `The driver broke the rules and must reset the device: ${reason}`;
    // A hostile driver can fail and reset for ever; it shall not fill the disk.
    if (first) this.#context.log.warn(message);
    else this.#context.log.debug(message);
    this.#status |= VIRTIO_CONFIG_S.NEEDS_RESET;
    this.#halt();
    if (this.#has(VIRTIO_CONFIG_S.DRIVER_OK)) this.#notifyConfig();
    this.#limits?.onFailure(reason);
  }

  /** Adds what the queues have counted since to {@linkcode counters}. */
  collectCounters(): void {
    for (const queues of [this.#split, this.#packed ?? []]) {
      for (const queue of queues) {
        this.counters.suppressedInterrupts += queue.suppressed;
        queue.suppressed = 0;
      }
    }
  }

  #countKick(path: KickPath): void {
    this.counters.kicks++;
    if (path === KickPath.MESSAGE) this.counters.messageKicks++;
    else if (path === KickPath.PAGE) this.counters.pageKicks++;
    else this.counters.eventFdKicks++;
  }

  #isForeign(queue: number): boolean {
    return this.#limits !== null && !this.#limits.isMine(queue);
  }

  #leaveForeignQueues(): void {
    for (const queue of this.#queues) {
      if (this.#isForeign(queue.index)) queue.suspend();
    }
  }

  #has(bits: number): boolean {
    return (this.#status & bits) !== 0;
  }

  #isPacked(): boolean {
    return this.#has(VIRTIO_CONFIG_S.FEATURES_OK) &&
      this.#accepted.has(VIRTIO_F.RING_PACKED);
  }

  #loadStatus(state: SessionState): void {
    this.#status = state.status;
    this.#accepted = new Features(state.accepted[0]!, state.accepted[1]!);
    this.#acceptedBeyond = state.acceptedBeyond;
    const negotiated = this.#has(VIRTIO_CONFIG_S.FEATURES_OK);
    if (negotiated && !this.#featuresAreGood()) {
      throw refusedState(
        `the driver had accepted ${this.#accepted}, of which only ${this.offered} are offered here`,
      );
    }
    if (!negotiated && this.#has(VIRTIO_CONFIG_S.DRIVER_OK)) {
      throw refusedState(`its status cannot be ${this.#status}`);
    }
    this.#halted = this.#has(
      VIRTIO_CONFIG_S.NEEDS_RESET | VIRTIO_CONFIG_S.FAILED,
    );
  }

  #loadQueues(state: SessionState): void {
    if (this.#has(VIRTIO_CONFIG_S.FEATURES_OK)) this.#chooseQueues();
    else if (state.queues.some((queue) => queue.enabled)) {
      throw refusedState("a queue is enabled before FEATURES_OK");
    }
    for (let i = 0; i < this.#queues.length; i++) {
      const queue = this.#queues[i]!;
      if (queue.load(this.#accepted, state.queues[i]!) < 0) {
        throw refusedState(queue.lastError);
      }
      queue.suspend();
    }
  }

  #chooseQueues(): void {
    if (!this.#isPacked()) return;
    this.#packed ??= this.#split.map(({ index, maxSize }) =>
      new PackedQueue(this.#context.memory, index, maxSize, this.#polled)
    );
    this.#useQueues(this.#packed);
  }

  /** Takes the queues of one format into use, none of them enabled yet, polled and held like those before. */
  #useQueues(queues: readonly Ring[]): void {
    this.#queues = queues;
    for (const queue of queues) {
      if (this.#polled) queue.beginPolling();
      else queue.endPolling();
      if (this.#held) queue.hold();
      else queue.release();
    }
  }

  #featuresAreGood(): boolean {
    const accepted = this.#accepted;
    const good = !this.#acceptedBeyond && accepted.isSubsetOf(this.offered) &&
      accepted.has(VIRTIO_F.VERSION_1) &&
      (this.device.acceptsFeatures?.(accepted) ?? true);
    if (!good) {
      this.#context.log.debug(
        `Refused FEATURES_OK: the driver accepts ${accepted} of ${this.offered}`,
      );
    }
    return good;
  }

  #halt(): void {
    this.#halted = true;
    for (const kick of this.#kicks) kick.cancel();
    for (const queue of this.#queues) queue.suspend();
  }

  #notifyConfig(): void {
    this.#owesConfigInterrupt = this.#stopped;
    if (this.#stopped) return;
    this.counters.configInterrupts++;
    this.#signals.notifyConfig();
  }

  #serve(index: number): void {
    const queue = this.#queues[index]!;
    // After a stop, or while it holds: start() looks at every queue again.
    if (!this.running || this.#stopped || this.#held || !queue.enabled) return;
    this.device.notify(queue);
  }

  #kickAll(): void {
    if (!this.running) return;
    for (let i = 0; i < this.#queues.length; i++) {
      if (this.#queues[i]!.enabled) this.#kicks[i]!.schedule();
    }
  }

  /** A ring that could not be reached may be back, and a chain that was kept from the driver can be shown to it. */
  #onMemoryChange(): void {
    if (!this.running) return;
    for (let i = 0; i < this.#queues.length; i++) {
      const queue = this.#queues[i]!;
      if (queue.enabled && !queue.resolved) this.#kicks[i]!.schedule();
    }
  }
}
