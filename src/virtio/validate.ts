/**
 * Checks of what the author of a virtio device wrote, with words that say what is wrong.
 *
 * @module
 */

import { isPowerOfTwo } from "../core/bits.ts";
import { deviceShapeProblem, ModelError } from "../core/model_fault.ts";
import type { VirtioDevice } from "./device.ts";
import { Features } from "./features.ts";

/** The largest size of a queue (virtio 1.3, section 2.7). */
const QUEUE_SIZE_MAX = 32_768;
/** No other ids fit into those of modern PCI devices (section 4.1.2). */
const DEVICE_ID_MAX = 0x3f;

const METHODS = ["notify"] as const;
const OPTIONAL_METHODS = [
  "acceptsFeatures",
  "readConfig",
  "writeConfig",
  "dependsOnRegisters",
  "start",
  "resetQueue",
  "reset",
  "pause",
  "resume",
  "hold",
  "save",
  "load",
  "handOver",
  "counters",
  "close",
] as const;

/**
 * Checks what a model's `create` has returned as a virtio device.
 *
 * @param name What the model is called in messages
 * @throws {ModelError} Naming the first thing that is wrong
 */
export function validateVirtioDevice(device: VirtioDevice, name: string): void {
  const problem = deviceShapeProblem(device, METHODS, OPTIONAL_METHODS) ??
    valueProblem(device);
  if (problem !== null) throw new ModelError(`${name}: ${problem}`);
}

function valueProblem(device: VirtioDevice): string | null {
  const { deviceId, queueSizes, features, configLengthBytes = 0 } = device;
  if (!Number.isInteger(deviceId) || deviceId < 1 || deviceId > DEVICE_ID_MAX) {
    return `the device's \`deviceId\` is ${deviceId} and must be a device type, 1 to ${DEVICE_ID_MAX}`;
  }
  if (!Array.isArray(queueSizes)) {
    return "the device's `queueSizes` must be an array";
  }
  for (const [i, size] of queueSizes.entries()) {
    if (!isPowerOfTwo(size) || size > QUEUE_SIZE_MAX) {
      return `the device's \`queueSizes[${i}]\` is ${size} and must be a power of two up to ${QUEUE_SIZE_MAX}`;
    }
  }
  if (features !== undefined && !(features instanceof Features)) {
    return "the device's `features` must be Features, as Features.of(…) makes them";
  }
  if (!Number.isInteger(configLengthBytes) || configLengthBytes < 0) {
    return `the device's \`configLengthBytes\` is ${configLengthBytes} and must be a length`;
  }
  if (configLengthBytes > 0 && device.readConfig === undefined) {
    return "the device has no `readConfig`, which one with a configuration must have";
  }
  return null;
}
