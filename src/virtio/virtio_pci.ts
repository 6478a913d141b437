/**
 * Virtio over PCI (virtio 1.3, section 4.1): makes a virtio device model a PCI device model. Modern only.
 *
 * @module
 */

import type { Poller } from "../event_loop.ts";
import type {
  AccessWidth,
  BarSpec,
  CapabilitySpec,
  DeviceCommand,
  DeviceContext,
  Doorbell,
  MmapArea,
  PciDevice,
  PciSpec,
  ResetReason,
} from "../pci/device.ts";
import {
  FOR_ALL,
  FOR_HOME,
  type RegisterWrite,
  type Spreading,
} from "../pci/spreading.ts";
import {
  configAccessCapability,
  notifyCapability,
  structureCapability,
} from "./capabilities.ts";
import { CommonConfig, type CommonConfigState } from "./common_config.ts";
import {
  PCI_SUBDEVICE_ID_QEMU,
  PCI_VENDOR_ID_REDHAT_QUMRANET,
  VIRTIO_MSI_NO_VECTOR,
  VIRTIO_PCI_CAP_CFG,
  VIRTIO_PCI_ISR,
  VIRTIO_PCI_MODERN_DEVICE_ID_BASE,
} from "./defs.ts";
import type { VirtioDevice, VirtioTransport } from "./device.ts";
import { VIRTIO_F } from "./features.ts";
import {
  LookTimer,
  NotifyPage,
  notifyPageBytes,
  type NotifyPageListener,
} from "./notify_page.ts";
import {
  KickPath,
  type SessionCounters,
  type SessionOptions,
  VirtioSession,
} from "./session.ts";
import type { SessionState } from "./session_state.ts";
import { isSpreadable, VirtioSpreading } from "./spreading.ts";
import { StateReader } from "../state_reader.ts";

/** The BAR of the MSI-X table and pending bits. */
export const VIRTIO_PCI_MSIX_BAR = 1;

/** The BAR of the virtio structures. */
export const VIRTIO_PCI_MODERN_BAR = 4;

/**
 * Where the virtio structures are in their BAR: QEMU's layout, which SPDK's driver takes for granted. The notify
 * structure reaches to the end of the BAR.
 */
export const VIRTIO_PCI_MODERN_LAYOUT = {
  COMMON: 0x0000,
  ISR: 0x1000,
  DEVICE: 0x2000,
  NOTIFY: 0x3000,
  STRUCTURE_SIZE: 0x1000,
  NOTIFY_OFF_MULTIPLIER: 4,
} as const;

/** How a virtio-pci device differs from the usual. */
export interface VirtioPciOptions extends SessionOptions {
  /** Size of the MSI-X table, 1–2048; one vector for each queue and one for the configuration by default. */
  readonly vectors?: number;
  /** Whether clients map the notify structure, which is then polled; there are no eventfds for it. */
  readonly mapNotify?: boolean;
}

/** See {@linkcode VirtioPci.save}. */
export interface VirtioPciState {
  readonly version: 1;
  /** The ISR status register. */
  readonly isr: number;
  /** Registers of the common configuration. */
  readonly common: CommonConfigState;
  /** Status, features, queues, and the device model. */
  readonly session: SessionState;
}

/** What {@linkcode VirtioPci.handOver} adds to what the device model gives. */
export interface VirtioPciHandOver {
  /** For {@linkcode SessionOptions.counters}. */
  readonly sessionCounters: SessionCounters;
}

const STATE_VERSION = 1;
const LAYOUT = VIRTIO_PCI_MODERN_LAYOUT;
const MSIX_VECTORS_MAX = 2048;
const MSIX_ENTRY_BYTES = 16;
const MSIX_BAR_BYTES = 0x1000;
const MSIX_PBA_OFFSET = 0x800;

/**
 * A virtio device on the PCI bus: registers, capabilities and interrupts around a {@linkcode VirtioSession}.
 *
 * Register writes return at once: whatever a driver's notification asks of the device model happens in a bottom half.
 */
export class VirtioPci implements PciDevice {
  readonly spec: PciSpec;
  /** Status, features and queues. */
  readonly session: VirtioSession;
  readonly spreading?: Spreading;
  readonly commands?: Readonly<Record<string, DeviceCommand>>;
  /** See {@linkcode PciDevice.hold}. Absent, as the next two, when the device model has no save or no load. */
  readonly hold?: () => number;
  /** See {@linkcode PciDevice.save}. */
  readonly save?: () => VirtioPciState;
  /** See {@linkcode PciDevice.load}. */
  readonly load?: (state: unknown) => void;
  readonly #context: DeviceContext;
  readonly #common: CommonConfig;
  readonly #poller: Poller;
  readonly #barBytes: number;
  readonly #notifyArea: MmapArea | null;
  readonly #page: NotifyPage | null;
  readonly #lookTimer: LookTimer | null;
  readonly #byPage: NotifyPageListener;
  #isr = 0;
  /** Where writes by way of configuration space go: to whoever stands before this device, if anyone does. */
  #writeIndirectly: RegisterWrite = (bar, offset, width, value) =>
    this.writeBar(bar, offset, width, value);

  /**
   * @param create Makes the device model; it may keep the transport but use it only after it has returned
   * @throws {RangeError} When the model has more queues, or the options more vectors, than there can be
   */
  constructor(
    context: DeviceContext,
    create: (transport: VirtioTransport) => VirtioDevice,
    options: VirtioPciOptions = {},
  ) {
    this.#context = context;
    this.session = new VirtioSession(context, create, {
      notifyUsed: (index) => this.#notifyUsed(index),
      notifyConfig: () => this.#notifyConfig(),
      onReset: () => this.#resetRegisters(),
    }, options);
    const queues = this.session.queues.length;
    const vectors = options.vectors ?? Math.min(queues + 1, MSIX_VECTORS_MAX);
    if (
      !Number.isInteger(vectors) || vectors < 1 || vectors > MSIX_VECTORS_MAX
    ) {
      throw new RangeError(
        `Cannot make a device with ${vectors} MSI-X vectors: 1 to ${MSIX_VECTORS_MAX} are possible`,
      );
    }
    const device = this.session.device;
    if (device.configLengthBytes > LAYOUT.STRUCTURE_SIZE) {
      throw new RangeError(
        `Cannot place ${device.configLengthBytes} bytes of device configuration: there is room for ${LAYOUT.STRUCTURE_SIZE}`,
      );
    }
    this.#common = new CommonConfig(this.session, vectors);
    this.#barBytes = powerOfTwoAtLeast(LAYOUT.NOTIFY + notifyPageBytes(queues));
    this.#byPage = this.#notifyPageListener(KickPath.PAGE);
    this.#notifyArea = options.mapNotify ? this.#makeNotifyArea() : null;
    this.#page = this.#notifyArea === null
      ? null
      : new NotifyPage(this.#notifyArea.memory, queues);
    this.#lookTimer = this.#page === null
      ? null
      : new LookTimer(context.loop, () => this.#onLookTimer());
    this.spec = this.#makeSpec(vectors);
    context.log.debug(
      this.#page === null
        ? "drivers notify by messages and eventfds"
        : "drivers notify by a page that the client maps",
    );
    if (device.commands !== undefined) this.commands = device.commands;
    if (isSpreadable(device)) {
      this.spreading = new VirtioSpreading(this.session, device, {
        targetOfWrite: (bar, offset) => this.#targetOfWrite(bar, offset),
        raiseLine: () => this.#raiseLine(),
        redirectWrites: (write) => this.#writeIndirectly = write,
      });
    }
    if (device.save !== undefined && device.load !== undefined) {
      this.hold = () => this.session.hold();
      this.save = () => this.#save();
      this.load = (state) => this.#load(state);
    }
    this.#poller = context.loop.poll(() => this.#poll(), {
      begin: () => this.session.beginPolling(),
      end: () => this.session.endPolling(),
    });
  }

  readBar(bar: number, offset: number, width: AccessWidth): number {
    if (bar !== VIRTIO_PCI_MODERN_BAR) return 0;
    if (offset < LAYOUT.ISR) return this.#common.read(offset, width);
    if (offset < LAYOUT.DEVICE) {
      return offset === LAYOUT.ISR ? this.#readIsr() : 0;
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
      // The address names the queue; the value does too, but need not be trusted (4.1.5.2).
      const queue = queueOfNotification(offset);
      // With NOTIFICATION_DATA the upper half says how far the driver has come.
      const path = KickPath.MESSAGE;
      if (width === 4) this.session.kickWithData(queue, value >>> 16, path);
      else this.session.kick(queue, path);
    } else if (offset >= LAYOUT.DEVICE) {
      this.session.writeConfig(offset - LAYOUT.DEVICE, width, value);
    } else if (offset < LAYOUT.ISR) {
      this.#common.write(offset, width, value);
      // The status may have been written.
      this.#lookIfRunning();
    }
  }

  ringDoorbell(bar: number, doorbell: number): void {
    if (bar === VIRTIO_PCI_MODERN_BAR) this.session.kick(doorbell);
  }

  reset(_reason: ResetReason): void {
    this.session.reset();
  }

  stop(): void {
    this.#lookTimer?.stop();
    this.session.stop();
  }

  start(): void {
    this.session.start();
    this.#lookIfRunning();
  }

  /** What the device model hands over, an object, and {@linkcode VirtioPciHandOver} with it. */
  handOver(): object & VirtioPciHandOver {
    const given = this.session.device.handOver?.();
    this.session.collectCounters();
    this.session.leave();
    return { ...given, sessionCounters: { ...this.session.counters } };
  }

  counters(): Readonly<Record<string, number>> {
    this.session.collectCounters();
    return { ...this.session.device.counters?.(), ...this.session.counters };
  }

  info(): Readonly<Record<string, string>> {
    return { doorbells: this.#page === null ? "message" : "mmap" };
  }

  close(): void {
    this.#poller.close();
    this.#lookTimer?.close();
    this.session.close();
  }

  #save(): VirtioPciState {
    return {
      version: STATE_VERSION,
      isr: this.#isr,
      common: this.#common.save(),
      session: this.session.save(),
    };
  }

  #load(value: unknown): void {
    const state = new StateReader(value, "the virtio device");
    state.version(STATE_VERSION);
    // The level of INTA#, as all interrupts, is kept by whoever hands them to us.
    this.#isr = state.integer(
      "isr",
      VIRTIO_PCI_ISR.QUEUE | VIRTIO_PCI_ISR.CONFIG,
    );
    this.#common.load(state.value("common"));
    this.session.load(state.value("session"));
  }

  #makeSpec(vectors: number): PciSpec {
    const device = this.session.device;
    const msixTableBytes = vectors * MSIX_ENTRY_BYTES;
    const pbaOffset = Math.max(MSIX_PBA_OFFSET, msixTableBytes);
    const msixBarBytes = powerOfTwoAtLeast(
      Math.max(MSIX_BAR_BYTES, pbaOffset + Math.ceil(vectors / 64) * 8),
    );
    return {
      vendorId: PCI_VENDOR_ID_REDHAT_QUMRANET,
      deviceId: VIRTIO_PCI_MODERN_DEVICE_ID_BASE + device.deviceId,
      // 1 or higher keeps legacy drivers away (4.1.2.1).
      revision: 1,
      classCode: device.pciClassCode,
      subsystemVendorId: PCI_VENDOR_ID_REDHAT_QUMRANET,
      subsystemId: PCI_SUBDEVICE_ID_QEMU,
      intx: true,
      bars: [
        {
          index: VIRTIO_PCI_MSIX_BAR,
          sizeBytes: msixBarBytes,
          kind: "memory32",
        },
        this.#modernBar(),
      ],
      capabilities: [
        { kind: "pm" },
        { kind: "pcie" },
        {
          kind: "msix",
          vectors,
          tableBar: VIRTIO_PCI_MSIX_BAR,
          tableOffset: 0,
          pbaBar: VIRTIO_PCI_MSIX_BAR,
          pbaOffset,
        },
        ...this.#virtioCapabilities(),
      ],
    };
  }

  #modernBar(): BarSpec {
    const bar: BarSpec = {
      index: VIRTIO_PCI_MODERN_BAR,
      sizeBytes: this.#barBytes,
      kind: "memory64",
      prefetchable: true,
    };
    return this.#notifyArea === null
      ? { ...bar, doorbells: this.#doorbells() }
      : { ...bar, mmap: [this.#notifyArea] };
  }

  #doorbells(): Doorbell[] {
    // A driver writes the 16-bit queue index, or 32 bits when it takes NOTIFICATION_DATA up (4.1.5.2), which is not
    // known yet. An eventfd carries no data, so it is a plain kick then; another width is a trapped write.
    const sizeBytes = this.session.offered.has(VIRTIO_F.NOTIFICATION_DATA)
      ? 0
      : 2;
    return this.session.queues.map((_, i) => ({
      offset: LAYOUT.NOTIFY + i * LAYOUT.NOTIFY_OFF_MULTIPLIER,
      sizeBytes,
    }));
  }

  #makeNotifyArea(): MmapArea {
    const byMessage = this.#notifyPageListener(KickPath.MESSAGE);
    return {
      offset: LAYOUT.NOTIFY,
      memory: this.#context.createSharedMemory(
        "virtio-notify",
        notifyPageBytes(this.session.queues.length),
      ),
      // A message that wrote there need not wait for the next look.
      onWrite: () => {
        this.#page!.look(byMessage);
      },
    };
  }

  #notifyPageListener(path: KickPath): NotifyPageListener {
    const { session } = this;
    return {
      kick: (queue) => session.kick(queue, path),
      kickWithData: (queue, data) => session.kickWithData(queue, data, path),
    };
  }

  #poll(): boolean {
    const noted = this.#page !== null && this.#page.look(this.#byPage);
    return this.session.poll() || noted;
  }

  /** A driver that polls (SPDK's) never notifies, so the rings are looked at too. */
  #onLookTimer(): boolean {
    if (this.session.running) return this.#poll();
    this.#lookTimer!.stop();
    return false;
  }

  #lookIfRunning(): void {
    if (this.#lookTimer !== null && this.session.running) {
      this.#lookTimer.start();
    }
  }

  #virtioCapabilities(): CapabilitySpec[] {
    const at = (cfgType: number, offset: number, lengthBytes: number) => ({
      cfgType,
      bar: VIRTIO_PCI_MODERN_BAR,
      offset,
      lengthBytes,
    });
    const size = LAYOUT.STRUCTURE_SIZE;
    const capabilities: CapabilitySpec[] = [
      structureCapability(at(VIRTIO_PCI_CAP_CFG.COMMON, LAYOUT.COMMON, size)),
      structureCapability(at(VIRTIO_PCI_CAP_CFG.ISR, LAYOUT.ISR, size)),
    ];
    if (this.session.device.configLengthBytes > 0) {
      capabilities.push(
        structureCapability(at(VIRTIO_PCI_CAP_CFG.DEVICE, LAYOUT.DEVICE, size)),
      );
    }
    capabilities.push(
      notifyCapability(
        at(
          VIRTIO_PCI_CAP_CFG.NOTIFY,
          LAYOUT.NOTIFY,
          this.#barBytes - LAYOUT.NOTIFY,
        ),
        LAYOUT.NOTIFY_OFF_MULTIPLIER,
      ),
      configAccessCapability(VIRTIO_PCI_CAP_CFG.PCI, {
        // The virtio structures, and nothing else, may be reached this way (4.1.4.9.2).
        allows: (bar, offset, width) =>
          bar === VIRTIO_PCI_MODERN_BAR && offset + width <= this.#barBytes,
        read: (bar, offset, width) => this.readBar(bar, offset, width),
        write: (bar, offset, width, value) =>
          this.#writeIndirectly(bar, offset, width, value),
      }),
    );
    return capabilities;
  }

  /** Reading the ISR status clears it and deasserts INTA# (section 4.1.4.5). */
  #readIsr(): number {
    const isr = this.#isr;
    if (isr !== 0) {
      this.#isr = 0;
      this.#context.interrupts.setLevel(false);
    }
    return isr;
  }

  #notifyUsed(index: number): void {
    const interrupts = this.#context.interrupts;
    if (interrupts.mode === "msix") {
      const vector = this.#common.queueVector(index);
      if (vector !== VIRTIO_MSI_NO_VECTOR) interrupts.raise(vector);
      return;
    }
    this.#raiseLine();
  }

  #raiseLine(): void {
    this.#isr |= VIRTIO_PCI_ISR.QUEUE;
    this.#context.interrupts.setLevel(true);
  }

  #targetOfWrite(bar: number, offset: number): number {
    if (bar !== VIRTIO_PCI_MODERN_BAR) return FOR_HOME;
    if (offset < LAYOUT.ISR) return FOR_ALL;
    if (offset < LAYOUT.DEVICE) return FOR_HOME;
    if (offset < LAYOUT.NOTIFY) return FOR_ALL;
    const queue = queueOfNotification(offset);
    return queue < this.session.queues.length ? queue : FOR_HOME;
  }

  #notifyConfig(): void {
    const interrupts = this.#context.interrupts;
    // Set whatever the kind of interrupt is (4.1.4.5.1).
    this.#isr |= VIRTIO_PCI_ISR.CONFIG;
    if (interrupts.mode !== "msix") return interrupts.setLevel(true);
    const vector = this.#common.configVector;
    if (vector !== VIRTIO_MSI_NO_VECTOR) interrupts.raise(vector);
  }

  #resetRegisters(): void {
    this.#common.reset();
    this.#lookTimer?.stop();
    this.#page?.clear();
    if (this.#isr === 0) return;
    this.#isr = 0;
    this.#context.interrupts.setLevel(false);
  }
}

function queueOfNotification(offset: number): number {
  return Math.floor((offset - LAYOUT.NOTIFY) / LAYOUT.NOTIFY_OFF_MULTIPLIER);
}

function powerOfTwoAtLeast(value: number): number {
  return 2 ** Math.ceil(Math.log2(value));
}
