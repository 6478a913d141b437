/**
 * Status, features and configuration of a device, whatever its transport and its type.
 *
 * @module
 */

import type { Log } from "../../core/log.ts";
import { VIRTIO_CONFIG_S } from "../defs.ts";
import type { VirtioDevice } from "../device.ts";
import { Features, VIRTIO_F } from "../features.ts";
import type { SessionState } from "./state.ts";

const { DRIVER_OK, FAILED, FEATURES_OK, NEEDS_RESET } = VIRTIO_CONFIG_S;
const HALTED = NEEDS_RESET | FAILED;
const NONE = new Features(0, 0);

/** The status byte of one device, and its rules (virtio 1.3, sections 2.1 and 3.1). */
export class DeviceStatus {
  #value = 0;

  /** As the driver reads it. */
  get value(): number {
    return this.#value;
  }

  /** True when the features are final. */
  get negotiated(): boolean {
    return this.has(FEATURES_OK);
  }

  /** True when either side has given up, until the device is reset. */
  get halted(): boolean {
    return this.has(HALTED);
  }

  /** True when the driver may use the device, and nobody has given up. */
  get running(): boolean {
    return (this.#value & (DRIVER_OK | HALTED)) === DRIVER_OK;
  }

  /** True when any of these bits is set. */
  has(bits: number): boolean {
    return (this.#value & bits) !== 0;
  }

  /**
   * The driver writes anything but 0.
   *
   * @param acceptsFeatures Whether the device can work with the features; asked when the driver says that it has chosen
   * @returns Which bits are newly set
   */
  write(value: number, acceptsFeatures: () => boolean): number {
    // A driver must not clear a bit (2.1.1), and DEVICE_NEEDS_RESET is the device's.
    let set = value & ~this.#value & ~NEEDS_RESET & 0xff;
    if ((set & FEATURES_OK) !== 0 && !acceptsFeatures()) set &= ~FEATURES_OK;
    const negotiated = ((this.#value | set) & FEATURES_OK) !== 0;
    if (!negotiated) set &= ~DRIVER_OK;
    this.#value |= set;
    return set;
  }

  /** The device gives up. */
  requireReset(): void {
    this.#value |= NEEDS_RESET;
  }

  /** As when the device was made. */
  reset(): void {
    this.#value = 0;
  }

  /** Takes a saved value over; whether there can be such a one is for the caller to check. */
  load(value: number): void {
    this.#value = value;
  }
}

/** The features that a driver is offered, and those that it accepts (virtio 1.3, section 2.2). */
export class Negotiation {
  /** Features that the driver may choose from. */
  readonly offered: Features;
  readonly #device: VirtioDevice;
  readonly #log: Log;
  #accepted = NONE;
  #acceptedBeyond = false;

  /** @param device Has the last word on a choice */
  constructor(device: VirtioDevice, offered: Features, log: Log) {
    this.#device = device;
    this.#log = log;
    this.offered = offered;
  }

  /** Features that the driver has accepted by now. */
  get accepted(): Features {
    return this.#accepted;
  }

  /** The driver replaces word `select` of what it accepts. */
  accept(select: number, word: number): void {
    const old = this.#accepted;
    if (select === 0) this.#accepted = new Features(word, old.word(1));
    else if (select === 1) this.#accepted = new Features(old.word(0), word);
    // There are no features above 63: accepting one makes FEATURES_OK fail.
    else if (word !== 0) this.#acceptedBeyond = true;
  }

  /** True when the device can work with what is accepted. */
  check(): boolean {
    const { offered } = this;
    const accepted = this.#accepted;
    const good = !this.#acceptedBeyond && accepted.isSubsetOf(offered) &&
      accepted.has(VIRTIO_F.VERSION_1) &&
      (this.#device.acceptsFeatures?.(accepted) ?? true);
    if (!good) {
      this.#log.debug(
        `Refused FEATURES_OK: the driver accepts ${accepted} of ${offered}`,
      );
    }
    return good;
  }

  /** Nothing is accepted any more. */
  reset(): void {
    this.#accepted = NONE;
    this.#acceptedBeyond = false;
  }

  /** State of the choice. */
  save(): Pick<SessionState, "accepted" | "acceptedBeyond"> {
    const { accepted } = this;
    return {
      accepted: [accepted.word(0), accepted.word(1)],
      acceptedBeyond: this.#acceptedBeyond,
    };
  }

  /** Takes over what {@linkcode save} gave; {@linkcode check} may then fail. */
  load(state: Pick<SessionState, "accepted" | "acceptedBeyond">): void {
    this.#accepted = new Features(state.accepted[0]!, state.accepted[1]!);
    this.#acceptedBeyond = state.acceptedBeyond;
  }
}

/** Bounds and generation around the configuration of a device model (virtio 1.3, sections 2.5 and 4.1.4.3.1). */
export class DeviceConfig {
  readonly #device: VirtioDevice;
  #dirty = false;
  #generation = 0;

  constructor(device: VirtioDevice) {
    this.#device = device;
  }

  /** The configuration generation, which covers what {@linkcode read} has returned. */
  get generation(): number {
    return this.#generation;
  }

  /** The model has changed something. */
  markChanged(): void {
    this.#dirty = true;
  }

  /** Reads; what lies beyond the structure is 0. */
  read(offset: number, width: 1 | 2 | 4): number {
    if (this.#dirty) {
      // Counting changes could wrap between two reads; counting reads that saw a change cannot (4.1.4.3.1).
      this.#dirty = false;
      this.#generation = (this.#generation + 1) & 0xff;
    }
    const device = this.#device;
    const length = device.configLengthBytes ?? 0;
    if (offset + width <= length) return device.readConfig!(offset, width);
    let value = 0;
    for (let i = 0; i < width && offset + i < length; i++) {
      value |= device.readConfig!(offset + i, 1) << (i * 8);
    }
    return value >>> 0;
  }

  /** Writes; what lies beyond the structure is ignored. */
  write(offset: number, width: 1 | 2 | 4, value: number): void {
    if (offset + width > (this.#device.configLengthBytes ?? 0)) return;
    this.#device.writeConfig?.(offset, width, value);
  }

  /** State of the generation; the configuration itself is the model's. */
  save(): Pick<SessionState, "configGeneration" | "configDirty"> {
    return { configGeneration: this.#generation, configDirty: this.#dirty };
  }

  /** Takes over what {@linkcode save} gave. */
  load(state: Pick<SessionState, "configGeneration" | "configDirty">): void {
    this.#generation = state.configGeneration;
    this.#dirty = state.configDirty;
  }
}
