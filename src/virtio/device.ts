/**
 * Seam 2: what a virtio device model is, to a virtio transport.
 *
 * @module
 */

import type { DeviceState } from "../core/state_form.ts";
import type { ResourceBag } from "../os/resource_bag.ts";
import type { AccessWidth, DeviceCommand } from "../pci/device.ts";
import type { Features } from "./features.ts";
import type { VirtioOptions } from "./options.ts";
import type { Virtqueue } from "./queue/queue.ts";

/** Transport as it is to what serves queues, on whichever thread it is. */
export interface QueueTransport {
  /** Tells the driver that `queue` has used buffers; call it when {@linkcode Virtqueue.publish} says so. */
  interrupt(queue: Virtqueue): void;
  /**
   * Gives up on a driver that broke the rules: DEVICE_NEEDS_RESET, counted and logged once. Nothing of the queues
   * is touched until the driver resets the device.
   */
  fail(reason: string): void;
}

/** Transport as it is to a device model. */
export interface VirtioTransport extends QueueTransport {
  /** Tells the driver that the device configuration changed, and bumps the generation. */
  configChanged(): void;
  /** Has queue handlers on other threads take over {@linkcode QueueSharing.settings} before this returns. */
  settingsChanged?(): void;
}

/**
 * Serves queues on one thread. A device model is one for the queues on its own thread; {@linkcode QueueSharing} is about
 * others.
 *
 * ```text
 *   idle --start--> running --reset--> idle …
 * ```
 */
export interface QueueHandler {
  /**
   * True when what is done with the chains of a queue depends on something that a driver may write to the device
   * configuration. They then wait for the register writes that were sent before them, which costs a system call for each
   * look that finds some; see src/pci/posted_writes.ts. Taken for granted without it. Where only some chains depend on it,
   * the answer is no, and the model asks {@linkcode Virtqueue.settled} about those.
   *
   * @param features The negotiated bits
   */
  dependsOnRegisters?(queue: number, features: Features): boolean;
  /**
   * The driver set DRIVER_OK.
   *
   * @param features The negotiated bits
   * @param queues All queues; only those with {@linkcode Virtqueue.enabled} may be used, and a queue may be enabled later.
   * Queues that another thread serves find nothing here
   */
  start?(features: Features, queues: readonly Virtqueue[]): void;
  /**
   * The driver notified a queue (or may have): look at it. Runs in a bottom half, only between start and reset, and only
   * for an enabled queue.
   */
  notify(queue: Virtqueue): void;
  /** The driver resets one queue (RING_RESET): drop what is in flight on it. */
  resetQueue?(queue: Virtqueue): void;
  /** Back to idle: drop what is in flight and forget the queues. */
  reset?(): void;
  /**
   * Stop touching guest memory, until {@linkcode QueueHandler.resume} or a reset: the queues find nothing and keep what
   * is pushed. Only where work goes on between calls, such as requests in flight.
   */
  pause?(): void;
  /**
   * Goes on after {@linkcode QueueHandler.pause}, {@linkcode QueueHandler.hold}, both, or (when it has no hold of its own)
   * neither; every queue is notified afterwards.
   */
  resume?(): void;
  /**
   * Take in nothing new, from queues or from outside, until {@linkcode QueueHandler.resume}; the queues find nothing in
   * any case, and what is pushed and published reaches the driver. Interrupts that are kept back go out. Called again
   * until everything in flight has come to its end; also while idle, and start and reset may come meanwhile.
   * Only where there is something to hold beside the queues.
   *
   * @returns How many requests are in flight, those included whose queue was reset
   */
  hold?(): number;
  /** See {@linkcode PciDevice.unfinished} of src/pci/device.ts. */
  unfinished?(iova?: number, lengthBytes?: number): number;
}

/** Serves the queues of a queue thread. */
export interface QueueThreadHandler extends QueueHandler {
  /** Takes over {@linkcode QueueSharing.settings}: at first, and whenever they change. */
  configure(settings: unknown): void;
  /** Counters by name, added to those of the device. */
  counters?(): Readonly<Record<string, number>>;
  /** Releases everything. */
  close(): void;
}

/** Offer of a device model whose queues other threads can serve; its {@linkcode DeviceModel} makes handlers there. */
export interface QueueSharing {
  /**
   * Queues that one thread must serve together.
   *
   * @param features What is negotiated, or offered as long as nothing is
   * @returns A number from 0 up, or CONTROL_GROUP of src/pci/queue_threads.ts for a queue that only the device itself
   * serves
   */
  groupOf(queue: number, features: Features): number;
  /**
   * Makes the parts of a handler for some groups, which the device then does not serve itself.
   *
   * @param bag For descriptors that go with it
   * @returns Plain data for {@linkcode DeviceModel.serve}
   * @throws {Error} When that cannot be had
   */
  grant(groups: readonly number[], bag: ResourceBag): unknown;
  /** Handlers on other threads have ended: the device serves all its queues itself again. */
  reclaim?(): void;
  /** Everything about its queues that a handler must know beyond features and queues. Plain data. */
  settings(): unknown;
}

/**
 * A virtio device model.
 *
 * ```text
 *   create → idle --start--> running --reset--> idle … → closed
 * ```
 * The transport calls, the model answers; all on one event loop, and nothing may block.
 */
export interface VirtioDevice extends QueueHandler {
  /** Device type (virtio 1.3, section 5). */
  readonly deviceId: number;
  /** PCI class code, 24 bits, for transports by way of PCI; that of a device of no class without it. */
  readonly pciClassCode?: number;
  /** Offer to drivers: kinds of rings, notifications, MSI-X; as by default where it says nothing. */
  readonly offer?: Partial<VirtioOptions>;
  /** Feature bits of the device type, none without it; the transport adds its own (VERSION_1, ring features). */
  readonly features?: Features;
  /**
   * True when the device can work with these bits, which are a subset of what is offered: false when one of them
   * requires another that is missing. Everything is accepted without it.
   */
  acceptsFeatures?(features: Features): boolean;
  /** The largest size of each queue; powers of two up to 32768. */
  readonly queueSizes: readonly number[];
  /** Length of the device configuration structure in bytes; 0 without it. */
  readonly configLengthBytes?: number;
  /** Reads device configuration; `offset + width` lies inside it. */
  readConfig?(offset: number, width: AccessWidth): number;
  /** Writes device configuration; read-only fields ignore it. */
  writeConfig?(offset: number, width: AccessWidth, value: number): void;
  /**
   * State of the device beyond status, features and queues. Called while the device holds and has no
   * chain in flight; changes nothing.
   */
  save?(): DeviceState;
  /**
   * Takes over what {@linkcode VirtioDevice.save} gave: on a device just made, after {@linkcode QueueHandler.start} if the
   * driver had set DRIVER_OK. It was told to pause and to hold before that, and is until
   * {@linkcode QueueHandler.resume}.
   *
   * @throws {Error} When it is not a state of this model
   */
  load?(state: unknown): void;
  /** See {@linkcode PciDevice.handOver}. */
  handOver?(bag: ResourceBag): void;
  /** For a device whose queues other threads can serve. */
  readonly sharing?: QueueSharing;
  /** Commands for a person at run time. */
  readonly commands?: Readonly<Record<string, DeviceCommand>>;
  /** Counters by name, for metrics. */
  counters?(): Readonly<Record<string, number>>;
  /** Releases everything. */
  close?(): void;
}

/** True when a model has made a virtio device, and not a PCI device. */
export function isVirtioDevice(device: unknown): device is VirtioDevice {
  return typeof device === "object" && device !== null &&
    "queueSizes" in device;
}

/** The transport of a device that a model is about to make; of use once the device is behind one. */
export class VirtioPort implements VirtioTransport {
  #transport: VirtioTransport | null = null;

  /** From here on the device has a transport. */
  connect(transport: VirtioTransport): void {
    this.#transport = transport;
  }

  interrupt(queue: Virtqueue): void {
    this.#transport!.interrupt(queue);
  }

  configChanged(): void {
    this.#transport?.configChanged();
  }

  settingsChanged(): void {
    this.#transport?.settingsChanged?.();
  }

  fail(reason: string): void {
    this.#transport!.fail(reason);
  }
}
