/**
 * The common configuration structure of virtio over PCI (virtio 1.3, section 4.1.4.3).
 *
 * @module
 */

import { u64 } from "../../core/bits.ts";
import type { AccessWidth } from "../../pci/device.ts";
import { type Register, RegisterMap } from "../../pci/register_map.ts";
import { VIRTIO_MSI_NO_VECTOR, VIRTIO_PCI_COMMON } from "../../virtio/defs.ts";
import type { VirtioSession } from "../../virtio/session/session.ts";
import type { StateReader } from "../../core/state_reader.ts";

/** The registers, named as in the standard; 64-bit fields are two registers. */
export const COMMON_CONFIG_REGISTERS: RegisterMap = new RegisterMap(
  "virtio_pci_common_cfg",
  VIRTIO_PCI_COMMON.SIZE,
  [
    ["device_feature_select", 4],
    ["device_feature", 4, "ro"],
    ["driver_feature_select", 4],
    ["driver_feature", 4],
    ["config_msix_vector", 2],
    ["num_queues", 2, "ro"],
    ["device_status", 1],
    ["config_generation", 1, "ro"],
    ["queue_select", 2],
    ["queue_size", 2],
    ["queue_msix_vector", 2],
    ["queue_enable", 2],
    ["queue_notify_off", 2, "ro"],
    ["queue_desc_lo", 4],
    ["queue_desc_hi", 4],
    ["queue_driver_lo", 4],
    ["queue_driver_hi", 4],
    ["queue_device_lo", 4],
    ["queue_device_hi", 4],
    ["queue_notify_data", 2, "ro"],
    ["queue_reset", 2],
    ["admin_queue_index", 2, "ro"],
    ["admin_queue_num", 2, "ro"],
  ],
);

const U16_MAX = 0xffff;
const U32_MAX = 0xffff_ffff;
/** Words of the addresses of a queue: desc, driver and device area; low word, high word each. */
const ADDRESS_WORDS = 6;

/** Registers that the driver writes for one queue before it enables it. */
function freshQueue(maxSize: number) {
  return {
    size: maxSize,
    vector: VIRTIO_MSI_NO_VECTOR as number,
    addresses: new Array<number>(ADDRESS_WORDS).fill(0),
  };
}

function freshState(maxSizes: readonly number[]) {
  return {
    deviceFeatureSelect: 0,
    driverFeatureSelect: 0,
    configVector: VIRTIO_MSI_NO_VECTOR as number,
    queueSelect: 0,
    queues: maxSizes.map(freshQueue),
  };
}

type QueueSetup = ReturnType<typeof freshQueue>;

/** Values of the registers beyond the state of the device; see {@linkcode CommonConfig.save}. */
export type CommonConfigState = ReturnType<typeof freshState>;

function readState(
  state: StateReader,
  maxSizes: readonly number[],
): CommonConfigState {
  let index = 0;
  return {
    deviceFeatureSelect: state.integer("deviceFeatureSelect", U32_MAX),
    driverFeatureSelect: state.integer("driverFeatureSelect", U32_MAX),
    configVector: state.integer("configVector", U16_MAX),
    queueSelect: state.integer("queueSelect", U16_MAX),
    queues: [...state.parts("queues", (queue) => ({
      size: queue.integer("size", maxSizes[index++] ?? 0),
      vector: queue.integer("vector", U16_MAX),
      addresses: [...queue.integers("addresses", U32_MAX, ADDRESS_WORDS)],
    }), maxSizes.length)],
  };
}

/** The registers of the structure and what they hold; state of the device itself is the session's. */
export class CommonConfig {
  readonly #session: VirtioSession;
  readonly #vectors: number;
  readonly #maxSizes: readonly number[];
  #state: CommonConfigState;

  /** @param vectors Size of the MSI-X table; 0 without one */
  constructor(session: VirtioSession, vectors: number) {
    this.#session = session;
    this.#vectors = vectors;
    this.#maxSizes = session.queues.map((queue) => queue.maxSize);
    this.#state = freshState(this.#maxSizes);
  }

  /** The vector of configuration changes, or VIRTIO_MSI_NO_VECTOR. */
  get configVector(): number {
    return this.#state.configVector;
  }

  /** The vector of a queue, or VIRTIO_MSI_NO_VECTOR. */
  queueVector(index: number): number {
    return this.#state.queues[index]!.vector;
  }

  /** Everything as after power-on; the session is reset apart. */
  reset(): void {
    this.#state = freshState(this.#maxSizes);
    this.tellVectors();
  }

  /** Values of the registers. */
  save(): CommonConfigState {
    return structuredClone(this.#state);
  }

  /**
   * Takes over what {@linkcode save} gave; the session's state is loaded apart.
   *
   * @throws {ErrnoError} EINVAL when it is no such state, or has a vector that cannot be had
   */
  load(reader: StateReader): void {
    this.#state = readState(reader, this.#maxSizes);
    this.tellVectors();
    const { configVector, queues } = this.#state;
    for (const { vector } of [{ vector: configVector }, ...queues]) {
      if (this.#validVector(vector) === vector) continue;
      throw reader.refused(
        `it uses vector ${vector}, there are ${this.#vectors} here`,
      );
    }
  }

  /** Tells the session the vectors of all queues. */
  tellVectors(): void {
    this.#state.queues.forEach(({ vector }, i) =>
      this.#session.setVector(i, vector)
    );
  }

  /** Reads `width` bytes, which may be part of a register or several. */
  read(offset: number, width: AccessWidth): number {
    let value = 0;
    for (let done = 0; done < width;) {
      const register = COMMON_CONFIG_REGISTERS.at(offset + done);
      if (register === undefined) break;
      const skipped = offset + done - register.offset;
      const bits = this.#readRegister(register.offset) >>> (skipped * 8);
      value |= bits << (done * 8);
      done += register.sizeBytes - skipped;
    }
    return width === 4 ? value >>> 0 : value & ((1 << (width * 8)) - 1);
  }

  /** Writes `width` bytes: every register that they cover as a whole (section 4.1.3.1 asks for nothing less). */
  write(offset: number, width: AccessWidth, value: number): void {
    for (let done = 0; done < width;) {
      const register = COMMON_CONFIG_REGISTERS.at(offset + done);
      if (register === undefined) return;
      const skipped = offset + done - register.offset;
      if (skipped === 0 && register.sizeBytes <= width - done) {
        this.#writeRegister(register, fieldOf(value, done, register.sizeBytes));
      }
      done += register.sizeBytes - skipped;
    }
  }

  #readRegister(at: number): number {
    const session = this.#session;
    switch (at) {
      case VIRTIO_PCI_COMMON.DFSELECT:
        return this.#state.deviceFeatureSelect;
      case VIRTIO_PCI_COMMON.DF:
        return session.offered.word(this.#state.deviceFeatureSelect);
      case VIRTIO_PCI_COMMON.GFSELECT:
        return this.#state.driverFeatureSelect;
      case VIRTIO_PCI_COMMON.GF:
        return session.accepted.word(this.#state.driverFeatureSelect);
      case VIRTIO_PCI_COMMON.MSIX:
        return this.#state.configVector;
      case VIRTIO_PCI_COMMON.NUMQ:
        return this.#state.queues.length;
      case VIRTIO_PCI_COMMON.STATUS:
        return session.status;
      case VIRTIO_PCI_COMMON.CFGGENERATION:
        return session.configGeneration;
      case VIRTIO_PCI_COMMON.Q_SELECT:
        return this.#state.queueSelect;
      default:
        return this.#readQueueRegister(at);
    }
  }

  #readQueueRegister(at: number): number {
    const queue = this.#state.queues[this.#state.queueSelect];
    // Size 0 says that there is no such queue (4.1.4.3).
    if (queue === undefined) {
      return at === VIRTIO_PCI_COMMON.Q_MSIX ? VIRTIO_MSI_NO_VECTOR : 0;
    }
    switch (at) {
      case VIRTIO_PCI_COMMON.Q_SIZE:
        return queue.size;
      case VIRTIO_PCI_COMMON.Q_MSIX:
        return queue.vector;
      case VIRTIO_PCI_COMMON.Q_ENABLE:
        return this.#session.queues[this.#state.queueSelect]!.enabled ? 1 : 0;
      case VIRTIO_PCI_COMMON.Q_NOFF:
      case VIRTIO_PCI_COMMON.Q_NDATA:
        return this.#state.queueSelect;
      case VIRTIO_PCI_COMMON.Q_DESCLO:
      case VIRTIO_PCI_COMMON.Q_DESCHI:
      case VIRTIO_PCI_COMMON.Q_AVAILLO:
      case VIRTIO_PCI_COMMON.Q_AVAILHI:
      case VIRTIO_PCI_COMMON.Q_USEDLO:
      case VIRTIO_PCI_COMMON.Q_USEDHI:
        return queue.addresses[(at - VIRTIO_PCI_COMMON.Q_DESCLO) / 4]!;
      default:
        // queue_reset too: a reset is complete before the write of it returns. No administration queues.
        return 0;
    }
  }

  #writeRegister(register: Register, value: number): void {
    switch (register.offset) {
      case VIRTIO_PCI_COMMON.DFSELECT:
        this.#state.deviceFeatureSelect = value;
        return;
      case VIRTIO_PCI_COMMON.GFSELECT:
        this.#state.driverFeatureSelect = value;
        return;
      case VIRTIO_PCI_COMMON.GF:
        this.#session.acceptFeatures(this.#state.driverFeatureSelect, value);
        return;
      case VIRTIO_PCI_COMMON.MSIX:
        this.#state.configVector = this.#validVector(value);
        return;
      case VIRTIO_PCI_COMMON.STATUS:
        this.#session.writeStatus(value);
        return;
      case VIRTIO_PCI_COMMON.Q_SELECT:
        this.#state.queueSelect = value;
        return;
      default:
        this.#writeQueueRegister(register.offset, value);
    }
  }

  #writeQueueRegister(at: number, value: number): void {
    const setup = this.#state.queues[this.#state.queueSelect];
    if (setup === undefined) return;
    const queue = this.#session.queues[this.#state.queueSelect]!;
    switch (at) {
      case VIRTIO_PCI_COMMON.Q_MSIX:
        setup.vector = this.#validVector(value);
        this.#session.setVector(this.#state.queueSelect, setup.vector);
        return;
      case VIRTIO_PCI_COMMON.Q_ENABLE:
        // Writing 0 is forbidden (4.1.4.3.2) and does nothing; SPDK does it after a reset.
        if (value === 1) this.#enable(setup);
        return;
      case VIRTIO_PCI_COMMON.Q_RESET:
        if (value === 1 && this.#session.resetQueue(this.#state.queueSelect)) {
          Object.assign(setup, freshQueue(queue.maxSize));
          this.#session.setVector(this.#state.queueSelect, setup.vector);
        }
        return;
    }
    // All other fields are to be written before the queue is enabled (4.1.4.3.2).
    if (queue.enabled) return;
    if (at === VIRTIO_PCI_COMMON.Q_SIZE) {
      if (this.#session.acceptsQueueSize(this.#state.queueSelect, value)) {
        setup.size = value;
      }
    } else if (
      at >= VIRTIO_PCI_COMMON.Q_DESCLO && at <= VIRTIO_PCI_COMMON.Q_USEDHI
    ) {
      setup.addresses[(at - VIRTIO_PCI_COMMON.Q_DESCLO) / 4] = value;
    }
  }

  #enable(setup: QueueSetup): void {
    const { size, addresses } = setup;
    const address = (at: number) => u64(addresses[at]!, addresses[at + 1]!);
    this.#session.enableQueue(this.#state.queueSelect, {
      size,
      descIova: address(0),
      availIova: address(2),
      usedIova: address(4),
    });
  }

  /** A vector that cannot be had reads back as none (section 4.1.5.1.2.1). */
  #validVector(vector: number): number {
    return vector < this.#vectors ? vector : VIRTIO_MSI_NO_VECTOR;
  }
}

function fieldOf(value: number, byte: number, sizeBytes: number): number {
  const shifted = value >>> (byte * 8);
  return sizeBytes === 4 ? shifted : shifted & ((1 << (sizeBytes * 8)) - 1);
}
