/**
 * The device status (virtio 1.3, sections 2.1 and 3.1): what the driver has set, and what follows from it.
 *
 * @module
 */

import { VIRTIO_CONFIG_S } from "../defs.ts";

const { DRIVER_OK, FAILED, FEATURES_OK, NEEDS_RESET } = VIRTIO_CONFIG_S;
const HALTED = NEEDS_RESET | FAILED;

/** The status byte of one device, and its rules. */
export class DeviceStatus {
  #value = 0;

  /** As the driver reads it. */
  get value(): number {
    return this.#value;
  }

  /** Whether the features are final. */
  get negotiated(): boolean {
    return this.has(FEATURES_OK);
  }

  /** Whether either side has given up, until the device is reset. */
  get halted(): boolean {
    return this.has(HALTED);
  }

  /** Whether the driver may use the device, and nobody has given up. */
  get running(): boolean {
    return (this.#value & (DRIVER_OK | HALTED)) === DRIVER_OK;
  }

  /** Whether any of these bits is set. */
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
