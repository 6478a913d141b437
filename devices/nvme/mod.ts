/**
 * The NVM Express controller: `--device nvme`.
 *
 * @module
 */

import { openBlockBackend } from "../../src/block/open.ts";
import { BlockKind } from "../../src/block/option_table.ts";
import type { Log } from "../../src/log.ts";
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
import type { NvmeHandOver } from "./state.ts";

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

function create(
  context: DeviceContext,
  options: NvmeOptions,
  inherited?: unknown,
): PciDevice {
  const storage: NamespaceStorage[] = [];
  try {
    for (const { nsid, block } of options.namespaces) {
      const given = inheritedStorage(inherited, nsid);
      const backend = openBlockBackend(block, context, given);
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
    if (inherited === undefined) announce(context.log, serial, storage);
    return device;
  } catch (error) {
    for (const { backend } of storage) {
      // Until this returns what was inherited is not ours: it stays open.
      if (inherited !== undefined) backend.handOver?.();
      backend.close();
    }
    throw error;
  }
}

/** What a predecessor gave for a namespace: undefined without a predecessor, null when it gave nothing. */
function inheritedStorage(inherited: unknown, nsid: number): unknown {
  if (inherited === undefined) return undefined;
  const given = inherited as NvmeHandOver | null;
  const its = given?.namespaces?.find((each) => each.nsid === nsid);
  return its?.backend ?? null;
}

function announce(
  log: Log,
  serial: string,
  storage: readonly NamespaceStorage[],
): void {
  const disks = storage.map(({ nsid, backend }) =>
    `namespace ${nsid} on ${backend.description}`
  );
  log.info(`NVMe controller ${serial}: ${disks.join(", ")}`, { serial });
}

/** The model behind `--device nvme`. */
export const nvmeModel: DeviceModel<NvmeOptions> = {
  name: "nvme",
  help: "NVM Express controller",
  options: NVME_OPTIONS,
  parse: parseNvmeOptions,
  // An NBD server promises what it does for one connection only.
  maxIOThreads: ({ namespaces, queues }) =>
    namespaces.some(({ block }) => block.kind === BlockKind.NBD) ? 1 : queues,
  create,
};
