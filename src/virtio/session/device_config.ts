/**
 * The device configuration structure as a driver accesses it (virtio 1.3, sections 2.5 and 4.1.4.3.1).
 *
 * @module
 */

import type { VirtioDevice } from "../device.ts";
import type { SessionState } from "./state.ts";

/** Bounds and generation around the configuration of a device model. */
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

  /** Where the generation is; the configuration itself is the model's. */
  save(): Pick<SessionState, "configGeneration" | "configDirty"> {
    return { configGeneration: this.#generation, configDirty: this.#dirty };
  }

  /** Takes over what {@linkcode save} gave. */
  load(state: Pick<SessionState, "configGeneration" | "configDirty">): void {
    this.#generation = state.configGeneration;
    this.#dirty = state.configDirty;
  }
}
