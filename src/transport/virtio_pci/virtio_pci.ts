/**
 * Virtio over PCI (virtio 1.3, section 4.1): makes a virtio device model a PCI device model. Modern only.
 *
 * @module
 */

import type { DeviceContext } from "../../pci/context.ts";
import type {
  AccessWidth,
  DeviceCommand,
  PciDevice,
  PciSpec,
  ResetReason,
} from "../../pci/device.ts";
import type { QueueThreads } from "../../pci/queue_threads.ts";
import type { ResourceBag } from "../../os/resource_bag.ts";
import { type DeviceState, StateForm } from "../../core/state_form.ts";
import { CommonConfig, type CommonConfigState } from "./common_config.ts";
import { VIRTIO_PCI_COMMON, VIRTIO_PCI_ISR } from "../../virtio/defs.ts";
import type {
  VirtioDevice,
  VirtioPort,
  VirtioTransport,
} from "../../virtio/device.ts";
import {
  mapsNotify,
  ringFeatures,
  VIRTIO_DEFAULTS,
} from "../../virtio/options.ts";
import { IsrStatus } from "./isr_status.ts";
import { NotifyStructure } from "./notify.ts";
import {
  VIRTIO_PCI_MODERN_BAR,
  VIRTIO_PCI_MODERN_LAYOUT,
  virtioPciSpec,
} from "./pci_spec.ts";
import { VirtioSession } from "../../virtio/session/session.ts";
import { SESSION_FORM, type SessionState } from "../../virtio/session/state.ts";
import type { SessionOptions } from "../../virtio/session/session.ts";

export {
  VIRTIO_PCI_MODERN_BAR,
  VIRTIO_PCI_MODERN_LAYOUT,
  VIRTIO_PCI_MSIX_BAR,
} from "./pci_spec.ts";

/** Options of a virtio-pci device, where it differs from the usual. */
export interface VirtioPciOptions extends SessionOptions {
  /** True when it has MSI-X; it does unless told. */
  readonly msix?: boolean;
  /** Size of the MSI-X table, 1–2048; one vector for each queue and one for the configuration by default. */
  readonly vectors?: number;
  /** True when clients map the notify structure, which is then polled; there are no eventfds for it. */
  readonly mapNotify?: boolean;
  /** Descriptors that {@linkcode VirtioPci.handOver} put, to go on with. */
  readonly bag?: ResourceBag;
}

/** See {@linkcode VirtioPci.save}. */
export interface VirtioPciState {
  /** The ISR status register. */
  readonly isr: number;
  /** Registers of the common configuration. */
  readonly common: CommonConfigState;
  /** Status, features, queues, and the device model. */
  readonly session: DeviceState<SessionState>;
  /** Counters by name. */
  readonly counters: Readonly<Record<string, number>>;
}

const FORM = new StateForm<VirtioPciState>("virtio-pci", "the virtio device");
const LAYOUT = VIRTIO_PCI_MODERN_LAYOUT;
const MSIX_VECTORS_MAX = 2048;

/**
 * A virtio device on the PCI bus: registers, capabilities and interrupts around a {@linkcode VirtioSession}.
 *
 * Register writes return at once: whatever a driver's notification asks of the device model happens in a bottom half.
 */
export class VirtioPci implements PciDevice {
  readonly spec: PciSpec;
  /**
   * Status, features and queues.
   *
   * @internal
   */
  readonly session: VirtioSession;
  readonly commands?: Readonly<Record<string, DeviceCommand>>;
  /** See {@linkcode PciDevice.hold}. Absent, as the next two, when the device model has no save or no load. */
  readonly hold?: () => number;
  /** See {@linkcode PciDevice.save}. */
  readonly save?: () => DeviceState;
  /** See {@linkcode PciDevice.load}. */
  readonly load?: (state: unknown) => void;
  readonly #vectors: number;
  readonly #common: CommonConfig;
  readonly #isr: IsrStatus;
  readonly #notify: NotifyStructure;
  /**
   * Makes the device model and what surrounds it.
   *
   * @param create Makes the device model; it may keep the transport but use it only after it has returned
   * @throws {RangeError} When the model has more queues, or the options more vectors, than there can be
   */
  constructor(
    context: DeviceContext,
    create: (transport: VirtioTransport) => VirtioDevice,
    options: VirtioPciOptions = {},
  ) {
    this.session = new VirtioSession(context, create, {
      notifyUsed: (index) => this.#isr.notifyUsed(index),
      notifyConfig: () => this.#isr.notifyConfig(),
      notifyByLine: () => this.#isr.raiseLine(),
      tellVectors: () => this.#common.tellVectors(),
      onReset: () => this.#resetRegisters(),
    }, options);
    const { session } = this;
    const { device } = session;
    const vectors = checkedVectors(device, options);
    this.#vectors = vectors;
    if (options.bag !== undefined) session.loadKicks(options.bag.at("kicks"));
    this.#common = new CommonConfig(session, vectors);
    this.#isr = new IsrStatus(context.interrupts, this.#common);
    this.#notify = new NotifyStructure(
      context,
      session,
      LAYOUT.NOTIFY,
      options.mapNotify ?? false,
    );
    this.spec = virtioPciSpec({
      device,
      vectors,
      notify: this.#notify,
      read: (bar, offset, width) => this.readBar(bar, offset, width),
      write: (bar, offset, width, value) =>
        this.writeBar(bar, offset, width, value),
    });
    if (device.commands !== undefined) {
      this.commands = Object.fromEntries(
        Object.entries(device.commands).map(([name, command]) => [name, {
          help: command.help,
          run: (args: readonly string[]) => session.command(command, args),
        }]),
      );
    }
    if (device.save !== undefined && device.load !== undefined) {
      this.hold = () => session.hold();
      this.save = () => this.#save();
      this.load = (state) => this.#load(state);
    }
  }

  place(threads: QueueThreads | null): void {
    this.session.place(threads, this.#vectors);
  }

  queueGroups(): readonly number[] {
    return this.session.groups();
  }

  readBar(bar: number, offset: number, width: AccessWidth): number {
    if (bar !== VIRTIO_PCI_MODERN_BAR) return 0;
    if (offset < LAYOUT.ISR) return this.#common.read(offset, width);
    if (offset < LAYOUT.DEVICE) {
      return offset === LAYOUT.ISR ? this.#isr.read() : 0;
    }
    if (offset < LAYOUT.NOTIFY) {
      return this.session.readConfig(offset - LAYOUT.DEVICE, width);
    }
    return 0;
  }

  writeBar(
    bar: number,
    offset: number,
    width: AccessWidth,
    value: number,
  ): void {
    if (bar !== VIRTIO_PCI_MODERN_BAR) return;
    if (offset >= LAYOUT.NOTIFY) {
      this.#notify.write(offset, width, value);
    } else if (offset >= LAYOUT.DEVICE) {
      this.session.writeConfig(offset - LAYOUT.DEVICE, width, value);
    } else if (offset < LAYOUT.ISR) {
      this.#common.write(offset, width, value);
      // The status may have been written.
      this.#notify.lookIfRunning();
    }
  }

  unfinished(iova?: number, lengthBytes?: number): number {
    return this.session.unfinished(iova, lengthBytes);
  }

  endsRequests(
    bar: number,
    offset: number,
    width: AccessWidth,
    value: number,
  ): boolean {
    if (bar !== VIRTIO_PCI_MODERN_BAR || offset >= LAYOUT.ISR) return false;
    const { STATUS, Q_RESET } = VIRTIO_PCI_COMMON;
    const end = offset + width;
    return offset <= STATUS && STATUS < end &&
        ((value >>> ((STATUS - offset) * 8)) & 0xff) === 0 ||
      offset <= Q_RESET && Q_RESET < end &&
        ((value >>> ((Q_RESET - offset) * 8)) & 0xff) === 1;
  }

  ringDoorbell(bar: number, doorbell: number): void {
    if (bar === VIRTIO_PCI_MODERN_BAR) this.session.kick(doorbell);
  }

  doorbellEventFd(_bar: number, doorbell: number): number | undefined {
    return this.session.kickFd(doorbell);
  }

  reset(_reason: ResetReason): void {
    this.session.reset();
  }

  stop(): void {
    this.#notify.stop();
    this.session.stop();
  }

  start(): void {
    this.session.start();
    this.#notify.lookIfRunning();
  }

  handOver(bag: ResourceBag): void {
    this.session.saveKicks(bag.at("kicks"));
    this.session.device.handOver?.(bag);
    this.session.leave();
  }

  counters(): Readonly<Record<string, number>> {
    return { ...this.session.device.counters?.(), ...this.session.counters() };
  }

  info(): Readonly<Record<string, string>> {
    return { doorbells: this.#notify.mapped ? "mmap" : "message" };
  }

  close(): void {
    this.#notify.close();
    this.session.close();
  }

  #save(): DeviceState<VirtioPciState> {
    return FORM.write({
      isr: this.#isr.value,
      common: this.#common.save(),
      session: this.session.save(),
      counters: this.session.counters(),
    });
  }

  #load(value: unknown): void {
    const state = FORM.read(value);
    this.#isr.load(
      state.integer("isr", VIRTIO_PCI_ISR.QUEUE | VIRTIO_PCI_ISR.CONFIG),
    );
    this.#common.load(state.part("common"));
    this.session.load(state.value("session"));
    this.session.restoreCounters(state.value("counters"));
  }

  #resetRegisters(): void {
    this.#common.reset();
    this.#notify.reset();
    this.#isr.reset();
  }
}

/**
 * Puts a device that a model has made behind virtio-pci, offered as it wants to be.
 *
 * @param port What its model was handed as the transport
 * @param bag What {@linkcode VirtioPci.handOver} of its predecessor put
 * @throws {ModelError} When it is none
 * @throws {RangeError} As the constructor
 */
export function offerVirtioDevice(
  device: VirtioDevice,
  context: DeviceContext,
  port: VirtioPort,
  bag?: ResourceBag,
): VirtioPci {
  const offer = { ...VIRTIO_DEFAULTS, ...device.offer };
  return new VirtioPci(
    context,
    (transport) => {
      port.connect(transport);
      return device;
    },
    {
      ringFeatures: ringFeatures(offer),
      mapNotify: mapsNotify(offer),
      msix: offer.msix,
      ...(bag === undefined ? {} : { bag }),
    },
  );
}

/** The model's own part of a device's state, which is all of it for a PCI device. */
export function modelState(state: DeviceState): DeviceState {
  if (!FORM.matches(state)) return state;
  const session = SESSION_FORM.read(FORM.read(state).value("session"));
  return session.value("device") as DeviceState;
}

/** The size of the MSI-X table, 0 without one, once it is known that the device has its place. */
function checkedVectors(
  device: VirtioDevice,
  options: VirtioPciOptions,
): number {
  const queues = device.queueSizes.length;
  const vectors = options.vectors ?? Math.min(queues + 1, MSIX_VECTORS_MAX);
  if (
    !Number.isInteger(vectors) || vectors < 1 || vectors > MSIX_VECTORS_MAX
  ) {
    throw new RangeError(
      `Cannot make a device with ${vectors} MSI-X vectors: 1 to ${MSIX_VECTORS_MAX} are possible`,
    );
  }
  const { configLengthBytes = 0 } = device;
  if (configLengthBytes > LAYOUT.STRUCTURE_SIZE) {
    throw new RangeError(
      `Cannot place ${configLengthBytes} bytes of device configuration: there is room for ${LAYOUT.STRUCTURE_SIZE}`,
    );
  }
  return options.msix === false ? 0 : vectors;
}
