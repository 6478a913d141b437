/** A model's device as a client sees it: a virtio device behind virtio-pci. */

import type { DeviceModel } from "../../devices/model.ts";
import type { DeviceContext, PciDevice } from "../../src/pci/device.ts";
import {
  offerVirtioDevice,
  type VirtioPciHandOver,
} from "../../src/transport/virtio_pci/virtio_pci.ts";
import { isVirtioDevice, VirtioPort } from "../../src/virtio/device.ts";

/** @param inherited What `handOver` of another such device gave */
export function createPciDevice<Options>(
  model: DeviceModel<Options>,
  context: DeviceContext,
  options: Options,
  inherited?: unknown,
): PciDevice {
  const virtio = new VirtioPort();
  const given = inherited as VirtioPciHandOver | undefined;
  const isWrapped = given !== undefined && given !== null &&
    "sessionCounters" in given;
  const device = model.create(
    { ...context, virtio },
    options,
    isWrapped ? given.device : inherited,
  );
  if (!isVirtioDevice(device)) return device;
  const its = isWrapped ? given : undefined;
  try {
    return offerVirtioDevice(device, context, virtio, its);
  } catch (error) {
    device.close?.();
    throw error;
  }
}
