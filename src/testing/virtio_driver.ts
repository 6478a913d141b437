/**
 * A virtio-pci driver: finds the device's structures, negotiates, sets up queues, kicks and waits.
 *
 * @module
 */

import type { DriverMemory } from "./driver_memory.ts";
import type { DriverRing } from "./driver_ring.ts";
import { PackedVring } from "./packed_vring.ts";
import {
  type Bell,
  type InterruptLines,
  listCapabilities,
  type PciAccess,
  type PciWidth,
} from "./pci_access.ts";
import {
  COMMON,
  F,
  NO_VECTOR,
  STATUS,
  VIRTIO_CAP,
  VIRTIO_PCI_CAP,
} from "./virtio_defs.ts";
import { Vring, type VringOptions } from "./vring.ts";

/** Place of a structure of the device. */
export interface VirtioStructure {
  /** Number of the BAR. */
  readonly bar: number;
  /** Offset in it. */
  readonly offset: number;
  /** Length. */
  readonly lengthBytes: number;
  /** Offset of its capability in configuration space. */
  readonly capability: number;
}

/** Time a reset may take, which waits for requests in flight, in milliseconds. */
const RESET_TIMEOUT_MS = 5000;

/** Settings of a queue. */
export interface QueueOptions {
  /** Entries; the device's maximum unless told. */
  readonly size?: number;
  /** MSI-X vector; none unless told. */
  readonly vector?: number;
  /** The most descriptors of an indirect table, where the feature was negotiated; 0 unless told. */
  readonly indirect?: number;
}

/** Settings of a driver. */
export interface VirtioDriverOptions {
  /** MSI-X vectors to enable; 0, the default, polls. */
  readonly vectors?: number;
}

/** A queue that is in use; its ring is a split one unless told. */
export class DriverQueue<R extends DriverRing = Vring> {
  /** Its number. */
  readonly index: number;
  /** Its rings. */
  readonly ring: R;
  /** Its MSI-X vector, or 0xffff. */
  readonly vector: number;
  readonly #bell: Bell;
  readonly #lines: InterruptLines | null;
  /** Number of times the device was notified. */
  kicks = 0;

  /**
   * Joins a ring with the ways to notify and to be interrupted.
   *
   * @param lines The interrupts; null where the device is polled
   */
  constructor(
    index: number,
    ring: R,
    vector: number,
    bell: Bell,
    lines: InterruptLines | null,
  ) {
    this.index = index;
    this.ring = ring;
    this.vector = vector;
    this.#bell = bell;
    this.#lines = lines;
  }

  /** Notifies the device whether it wants it or not. */
  kick(): void {
    this.kicks++;
    this.#bell.ring(this.index);
  }

  /** Publishes what was made available, and notifies the device if it wants that. */
  flush(): void {
    if (this.ring.publish()) this.kick();
  }

  /**
   * Waits until the device has used a chain: by interrupt where the queue has a vector, else by looking.
   *
   * @returns Whether it has, within the time
   */
  waitUsed(timeoutMs: number): boolean {
    const ring = this.ring;
    const deadline = performance.now() + timeoutMs;
    while (!ring.hasUsed) {
      const left = deadline - performance.now();
      if (left <= 0) return false;
      if (this.#lines === null || this.vector === NO_VECTOR) continue;
      if (!ring.enableInterrupts()) this.#lines.wait(this.vector, left);
    }
    return true;
  }

  /**
   * Waits for the queue's interrupt, whatever the rings say.
   *
   * @returns How often it was raised; 0 when the time is up
   */
  waitInterrupt(timeoutMs: number): number {
    return this.#lines?.wait(this.vector, timeoutMs) ?? 0;
  }
}

/**
 * A driver of a virtio-pci device, for tests and benches. It follows the standard's initialization (virtio 1.3,
 * section 3.1.1), with every step also callable on its own, so that a test can leave one out.
 *
 * ```ts ignore
 * const driver = new VirtioDriver(pci, ram.memory, { vectors: 3 });
 * driver.negotiate([F.RING_EVENT_IDX]);
 * const queue = driver.setupQueue(0, { vector: 1 });
 * driver.driverOk();
 * ```
 */
export class VirtioDriver {
  /** The device. */
  readonly pci: PciAccess;
  /** The memory that rings and buffers are in. */
  readonly memory: DriverMemory;
  /** The device's structures by VIRTIO_CAP type; the first of each type counts. */
  readonly structures: ReadonlyMap<number, VirtioStructure>;
  /** The queues that were set up. */
  readonly queues: DriverQueue<DriverRing>[] = [];
  /** The interrupts, when vectors were asked for. */
  readonly lines: InterruptLines | null;
  readonly #notifyMultiplier: number;
  readonly #common: VirtioStructure;
  #features = new Set<number>();

  /**
   * Finds the registers of a device, and enables it on the bus.
   *
   * @throws {Error} When the device is no modern virtio device
   */
  constructor(
    pci: PciAccess,
    memory: DriverMemory,
    options: VirtioDriverOptions = {},
  ) {
    this.pci = pci;
    this.memory = memory;
    const PCI_COMMAND = 4;
    const PCI_COMMAND_MEMORY_AND_MASTER = 6;
    pci.writeConfig(
      PCI_COMMAND,
      2,
      pci.readConfig(PCI_COMMAND, 2) | PCI_COMMAND_MEMORY_AND_MASTER,
    );
    this.structures = findStructures(pci);
    this.#common = this.structure(VIRTIO_CAP.COMMON_CFG);
    this.#notifyMultiplier = pci.readConfig(
      this.structure(VIRTIO_CAP.NOTIFY_CFG).capability + VIRTIO_PCI_CAP.EXTRA,
      4,
    );
    const vectors = options.vectors ?? 0;
    this.lines = vectors > 0 ? pci.enableMsix(vectors) : null;
  }

  /** The device type (virtio 1.3, section 5), from the PCI device id. */
  get deviceType(): number {
    return this.pci.readConfig(2, 2) - 0x1040;
  }

  /** Place of a structure. */
  structure(type: number): VirtioStructure {
    const found = this.structures.get(type);
    if (found === undefined) {
      throw new Error(
        `Cannot drive the device: it has no virtio structure ${type}`,
      );
    }
    return found;
  }

  /** Reads a field of the common configuration. */
  readCommon(offset: number, width: PciWidth): number {
    return this.pci.readBar(
      this.#common.bar,
      this.#common.offset + offset,
      width,
    );
  }

  /** Writes a field of the common configuration. */
  writeCommon(offset: number, width: PciWidth, value: number): void {
    this.pci.writeBar(
      this.#common.bar,
      this.#common.offset + offset,
      width,
      value,
    );
  }

  /** The device status. */
  get status(): number {
    return this.readCommon(COMMON.DEVICE_STATUS, 1);
  }

  set status(value: number) {
    this.writeCommon(COMMON.DEVICE_STATUS, 1, value);
  }

  /** Resets the device and waits until it says so. The queues are forgotten, their memory is given back. */
  reset(): void {
    this.status = 0;
    const deadline = performance.now() + RESET_TIMEOUT_MS;
    while (this.status !== 0) {
      if (performance.now() > deadline) {
        throw new Error("Cannot reset the device: its status stays set");
      }
    }
    for (const queue of this.queues) queue.ring.close();
    this.queues.length = 0;
    this.#features = new Set();
  }

  /** The feature bits the device offers. */
  offeredFeatures(): Set<number> {
    const offered = new Set<number>();
    for (let select = 0; select < 2; select++) {
      this.writeCommon(COMMON.DEVICE_FEATURE_SELECT, 4, select);
      const word = this.readCommon(COMMON.DEVICE_FEATURE, 4);
      for (let bit = 0; bit < 32; bit++) {
        if ((word >>> bit) & 1) offered.add(select * 32 + bit);
      }
    }
    return offered;
  }

  /** Writes the driver's feature bits, whatever they are. */
  writeFeatures(bits: Iterable<number>): void {
    const words = [0, 0];
    for (const bit of bits) words[bit >> 5]! |= 1 << (bit & 31);
    for (let select = 0; select < 2; select++) {
      this.writeCommon(COMMON.DRIVER_FEATURE_SELECT, 4, select);
      this.writeCommon(COMMON.DRIVER_FEATURE, 4, words[select]! >>> 0);
    }
  }

  /**
   * Resets the device and goes through the initialization up to FEATURES_OK with those of the wanted features that
   * are offered, and VERSION_1.
   *
   * @returns The features that were agreed upon
   * @throws {Error} When the device refuses
   */
  negotiate(wanted: Iterable<number>): ReadonlySet<number> {
    this.reset();
    this.status = STATUS.ACKNOWLEDGE;
    this.status = STATUS.ACKNOWLEDGE | STATUS.DRIVER;
    const offered = this.offeredFeatures();
    if (!offered.has(F.VERSION_1)) {
      throw new Error("Cannot drive the device: it does not offer VERSION_1");
    }
    const agreed = new Set<number>([F.VERSION_1]);
    for (const bit of wanted) if (offered.has(bit)) agreed.add(bit);
    this.writeFeatures(agreed);
    const status = STATUS.ACKNOWLEDGE | STATUS.DRIVER | STATUS.FEATURES_OK;
    this.status = status;
    if ((this.status & STATUS.FEATURES_OK) === 0) {
      throw new Error("Cannot drive the device: it refused the features");
    }
    return this.#features = agreed;
  }

  /** True if a feature was agreed upon. */
  has(feature: number): boolean {
    return this.#features.has(feature);
  }

  /** Number of queues the device has. */
  get numQueues(): number {
    return this.readCommon(COMMON.NUM_QUEUES, 2);
  }

  /** Assigns a vector to configuration changes; the answer is what the device took. */
  setConfigVector(vector: number): number {
    this.writeCommon(COMMON.CONFIG_MSIX_VECTOR, 2, vector);
    return this.readCommon(COMMON.CONFIG_MSIX_VECTOR, 2);
  }

  /** The largest size of a queue; 0 when it does not exist. */
  queueMaxSize(index: number): number {
    this.writeCommon(COMMON.QUEUE_SELECT, 2, index);
    return this.readCommon(COMMON.QUEUE_SIZE, 2);
  }

  /**
   * Sets up and enables a split queue.
   *
   * @throws {Error} When it does not exist, the device does not take the vector, or RING_PACKED was agreed upon
   */
  setupQueue(index: number, options: QueueOptions = {}): DriverQueue {
    if (this.has(F.RING_PACKED)) {
      throw new Error(
        `Cannot set up queue ${index}: packed rings were agreed upon`,
      );
    }
    const ring = new Vring(this.memory, this.#ringOptions(index, options));
    return this.#enableQueue(index, ring, options);
  }

  /**
   * Sets up and enables a packed queue.
   *
   * @throws {Error} When it does not exist, the device does not take the vector, or RING_PACKED was not agreed upon
   */
  setupPackedQueue(
    index: number,
    options: QueueOptions = {},
  ): DriverQueue<PackedVring> {
    if (!this.has(F.RING_PACKED)) {
      throw new Error(
        `Cannot set up queue ${index}: packed rings were not agreed upon`,
      );
    }
    const ring = new PackedVring(
      this.memory,
      this.#ringOptions(index, options),
    );
    return this.#enableQueue(index, ring, options);
  }

  /**
   * Sets up and enables a queue of the format that was agreed upon.
   *
   * @throws {Error} When it does not exist or the device does not take the vector
   */
  setupAnyQueue(
    index: number,
    options: QueueOptions = {},
  ): DriverQueue<DriverRing> {
    return this.has(F.RING_PACKED)
      ? this.setupPackedQueue(index, options)
      : this.setupQueue(index, options);
  }

  #ringOptions(index: number, options: QueueOptions): VringOptions {
    const most = this.queueMaxSize(index);
    if (most === 0) {
      throw new Error(`Cannot set up queue ${index}: the device has none`);
    }
    return {
      size: options.size ?? most,
      eventIdx: this.has(F.RING_EVENT_IDX),
      inOrder: this.has(F.IN_ORDER),
      indirect: this.has(F.RING_INDIRECT_DESC) ? options.indirect ?? 0 : 0,
    };
  }

  #enableQueue<R extends DriverRing>(
    index: number,
    ring: R,
    options: QueueOptions,
  ): DriverQueue<R> {
    const vector = options.vector ?? NO_VECTOR;
    this.writeCommon(COMMON.QUEUE_SIZE, 2, ring.size);
    this.writeQueueAddress(COMMON.QUEUE_DESC, ring.descIova);
    this.writeQueueAddress(COMMON.QUEUE_DRIVER, ring.availIova);
    this.writeQueueAddress(COMMON.QUEUE_DEVICE, ring.usedIova);
    this.writeCommon(COMMON.QUEUE_MSIX_VECTOR, 2, vector);
    const taken = this.readCommon(COMMON.QUEUE_MSIX_VECTOR, 2);
    if (taken !== vector) {
      throw new Error(
        `Cannot set up queue ${index}: the device took vector ${taken}`,
      );
    }
    const bell = this.#bell(ring);
    this.writeCommon(COMMON.QUEUE_ENABLE, 2, 1);
    const queue = new DriverQueue(index, ring, vector, bell, this.lines);
    this.queues.push(queue);
    return queue;
  }

  /** The doorbell of the selected queue. */
  #bell(ring: DriverRing): Bell {
    const { pci } = this;
    const { bar, offset } = this.structure(VIRTIO_CAP.NOTIFY_CFG);
    const at = offset +
      this.readCommon(COMMON.QUEUE_NOTIFY_OFF, 2) * this.#notifyMultiplier;
    if (!this.has(F.NOTIFICATION_DATA)) return pci.bell(bar, at, 2);
    // 32 bits (4.1.5.2), which an eventfd in place of the register could not tell.
    return {
      ring: (index) =>
        pci.writeBar(bar, at, 4, ((ring.notifyData << 16) | index) >>> 0),
    };
  }

  /** Writes an address of the selected queue, low half first. */
  writeQueueAddress(offset: number, iova: number): void {
    this.writeCommon(offset, 4, iova % 0x1_0000_0000);
    this.writeCommon(offset + 4, 4, Math.floor(iova / 0x1_0000_0000));
  }

  /** Tells the device that the driver is ready. */
  driverOk(): void {
    this.status = STATUS.ACKNOWLEDGE | STATUS.DRIVER | STATUS.FEATURES_OK |
      STATUS.DRIVER_OK;
  }

  /** Resets one queue (needs VIRTIO_F_RING_RESET) and waits until the device says so; its rings are cleared. */
  resetQueue(queue: DriverQueue<DriverRing>): void {
    this.writeCommon(COMMON.QUEUE_SELECT, 2, queue.index);
    this.writeCommon(COMMON.QUEUE_RESET, 2, 1);
    const deadline = performance.now() + RESET_TIMEOUT_MS;
    while (this.readCommon(COMMON.QUEUE_RESET, 2) !== 0) {
      if (performance.now() > deadline) {
        throw new Error(
          `Cannot reset queue ${queue.index}: the device does not finish`,
        );
      }
    }
    queue.ring.reset();
  }

  /** Enables a queue again after {@linkcode resetQueue}, where it was. */
  reenableQueue(queue: DriverQueue<DriverRing>): void {
    this.writeCommon(COMMON.QUEUE_SELECT, 2, queue.index);
    this.writeCommon(COMMON.QUEUE_SIZE, 2, queue.ring.size);
    this.writeQueueAddress(COMMON.QUEUE_DESC, queue.ring.descIova);
    this.writeQueueAddress(COMMON.QUEUE_DRIVER, queue.ring.availIova);
    this.writeQueueAddress(COMMON.QUEUE_DEVICE, queue.ring.usedIova);
    this.writeCommon(COMMON.QUEUE_MSIX_VECTOR, 2, queue.vector);
    this.writeCommon(COMMON.QUEUE_ENABLE, 2, 1);
  }

  /** Reads a field of the device configuration. */
  readConfig(offset: number, width: PciWidth): number {
    const { bar, offset: at } = this.structure(VIRTIO_CAP.DEVICE_CFG);
    return this.pci.readBar(bar, at + offset, width);
  }

  /** Writes a field of the device configuration. */
  writeConfig(offset: number, width: PciWidth, value: number): void {
    const { bar, offset: at } = this.structure(VIRTIO_CAP.DEVICE_CFG);
    this.pci.writeBar(bar, at + offset, width, value);
  }

  /** Reads bytes of the device configuration that belong together (virtio 1.3, section 2.5.1). */
  readConfigBytes(
    offset: number,
    lengthBytes: number,
  ): Uint8Array<ArrayBuffer> {
    const bytes = new Uint8Array(lengthBytes);
    let generation: number;
    do {
      generation = this.configGeneration;
      for (let i = 0; i < lengthBytes; i++) {
        bytes[i] = this.readConfig(offset + i, 1);
      }
    } while (generation !== this.configGeneration);
    return bytes;
  }

  /** The generation of the device configuration. */
  get configGeneration(): number {
    return this.readCommon(COMMON.CONFIG_GENERATION, 1);
  }

  /** Reads and clears the ISR status: bit 0 queues, bit 1 configuration. */
  readIsr(): number {
    const { bar, offset } = this.structure(VIRTIO_CAP.ISR_CFG);
    return this.pci.readBar(bar, offset, 1);
  }

  /** Reads a BAR through configuration space (the PCI configuration access capability, 4.1.4.9). */
  readThroughConfig(bar: number, offset: number, width: PciWidth): number {
    const at = this.#aim(bar, offset, width);
    return this.pci.readConfig(at + VIRTIO_PCI_CAP.EXTRA, width);
  }

  /** Writes a BAR through configuration space. */
  writeThroughConfig(
    bar: number,
    offset: number,
    width: PciWidth,
    value: number,
  ): void {
    const at = this.#aim(bar, offset, width);
    this.pci.writeConfig(at + VIRTIO_PCI_CAP.EXTRA, width, value);
  }

  #aim(bar: number, offset: number, width: PciWidth): number {
    const at = this.structure(VIRTIO_CAP.PCI_CFG).capability;
    this.pci.writeConfig(at + VIRTIO_PCI_CAP.BAR, 1, bar);
    this.pci.writeConfig(at + VIRTIO_PCI_CAP.OFFSET, 4, offset);
    this.pci.writeConfig(at + VIRTIO_PCI_CAP.LENGTH, 4, width);
    return at;
  }
}

function findStructures(pci: PciAccess): Map<number, VirtioStructure> {
  const PCI_CAP_ID_VNDR = 9;
  const structures = new Map<number, VirtioStructure>();
  for (const { id, offset: capability } of listCapabilities(pci)) {
    if (id !== PCI_CAP_ID_VNDR) continue;
    const type = pci.readConfig(capability + VIRTIO_PCI_CAP.CFG_TYPE, 1);
    if (structures.has(type)) continue;
    structures.set(type, {
      bar: pci.readConfig(capability + VIRTIO_PCI_CAP.BAR, 1),
      offset: pci.readConfig(capability + VIRTIO_PCI_CAP.OFFSET, 4),
      lengthBytes: pci.readConfig(capability + VIRTIO_PCI_CAP.LENGTH, 4),
      capability,
    });
  }
  return structures;
}
