/**
 * The NVM Express controller: `--device nvme`.
 *
 * @module
 */

import { openBlockBackend } from "../../src/block/open.ts";
import type { DeviceContext, PciDevice } from "../../src/pci/device.ts";
import type { DeviceModel } from "../model.ts";
import { type NamespaceStorage, NvmeController } from "./controller.ts";
import { deriveNqn, deriveSerial } from "./identity.ts";
import {
  NVME_OPTIONS,
  type NvmeOptions,
  parseNvmeOptions,
  storageName,
} from "./options.ts";

export {
  type NamespaceStorage,
  NvmeController,
  type NvmeControllerOptions,
} from "./controller.ts";
export { type NamespaceOptions, type NvmeOptions } from "./options.ts";

/** The serial number that was given, or one that lasts as long as the storage does. */
function chooseSerial(context: DeviceContext, options: NvmeOptions): string {
  if (options.serial !== null) return options.serial;
  const name = storageName(options.namespaces) ??
    context.random(8).join(".");
  return deriveSerial(name);
}

function create(context: DeviceContext, options: NvmeOptions): PciDevice {
  const { loop, log, memory } = context;
  const storage: NamespaceStorage[] = [];
  try {
    for (const { nsid, block } of options.namespaces) {
      const backend = openBlockBackend(block, { loop, log, memory });
      storage.push({ nsid, backend });
    }
    const serial = chooseSerial(context, options);
    const { model, firmware, queues, queueEntries, mapDoorbells } = options;
    const subnqn = deriveNqn(serial);
    const device = new NvmeController(context, {
      identity: { serial, model, firmware, subnqn },
      queues,
      queueEntries,
      mapDoorbells,
    }, storage);
    const disks = storage.map(({ nsid, backend }) =>
      `namespace ${nsid} on ${backend.description}`
    );
    log.info(`NVMe controller ${serial}: ${disks.join(", ")}`, { serial });
    return device;
  } catch (error) {
    for (const { backend } of storage) backend.close();
    throw error;
  }
}

/** The model behind `--device nvme`. */
export const nvmeModel: DeviceModel<NvmeOptions> = {
  name: "nvme",
  help: "NVM Express controller",
  options: NVME_OPTIONS,
  parse: parseNvmeOptions,
  create,
};
