/** A model's device as a client sees it: a virtio device behind virtio-pci. */

import type { DeviceModel, SavedDevice } from "../../devices/model.ts";
import type { DeviceContext } from "../../src/pci/context.ts";
import type { PciDevice } from "../../src/pci/device.ts";
import {
  modelState,
  offerVirtioDevice,
} from "../../src/transport/virtio_pci/virtio_pci.ts";
import { isVirtioDevice, VirtioPort } from "../../src/virtio/device.ts";

/** @param saved What another such device was and had open */
export function createPciDevice<Options>(
  model: DeviceModel<Options>,
  context: DeviceContext,
  options: Options,
  saved?: SavedDevice,
): PciDevice {
  const virtio = new VirtioPort();
  const its = saved && { ...saved, state: modelState(saved.state) };
  const device = model.create({ ...context, virtio }, options, its);
  if (!isVirtioDevice(device)) return device;
  try {
    return offerVirtioDevice(device, context, virtio, saved?.bag);
  } catch (error) {
    device.close?.();
    throw error;
  }
}
