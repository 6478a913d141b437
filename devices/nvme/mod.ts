/**
 * The NVM Express controller: `--device nvme` (base specification 1.4).
 *
 * ```text
 *   NvmeController        registers, CC and CSTS, state; one for each device, on its control thread
 *     admin/              commands of the admin queue: queues, Identify, features, log pages, events
 *       QueueTable        has the queues of each thread do the same messages
 *         ▼ QueueMessage
 *   NvmeQueues            io/queues.ts, on each thread that serves queues (threads/)
 *     queue/              rings, doorbells, interrupts
 *     command/            commands in flight, and their data pointers
 *     io/                 the NVM command set on namespaces, each of which is storage
 * ```
 * A command goes from `queue/queue_set.ts` (a doorbell) through `command/engine.ts` (fetched) to `admin/admin.ts` or
 * `io/io.ts` (executed), and back through the engine (completed) to `queue/interrupt_lines.ts`. A new I/O command belongs
 * into `io/io.ts`, a feature into `admin/features.ts`, a register into `registers.ts`; numbers and layouts are in `defs.ts`.
 * Whatever a driver could tell a controller by is also in `state.ts`, or it is lost in a move.
 *
 * @module
 */

import {
  beginOpenBlockBackend,
  openBlockBackend,
} from "../../src/backend/block/open.ts";
import { blockDriver } from "../../src/backend/block/options.ts";
import type { Log } from "../../src/core/log.ts";
import type { DeviceContext } from "../../src/pci/context.ts";
import type { PciDevice } from "../../src/pci/device.ts";
import type {
  QueueContext,
  QueueService,
} from "../../src/pci/queue_threads.ts";
import type { Saved } from "../../src/os/resource_bag.ts";
import type { DeviceModel, SavedDevice } from "../model.ts";
import { NvmeController } from "./controller.ts";
import { deriveNqn, deriveSerial } from "./admin/identity.ts";
import type { NamespaceStorage } from "./io/namespace.ts";
import {
  type NamespaceOptions,
  NVME_OPTIONS,
  type NvmeOptions,
  storageName,
} from "./options.ts";
import { NvmeQueueService, type QueueGrant } from "./threads/queue_service.ts";
import { NVME_FORM, parseNamespaces } from "./state.ts";

export { NvmeController, type NvmeControllerOptions } from "./controller.ts";
export type { NamespaceStorage } from "./io/namespace.ts";
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
  saved?: SavedDevice,
): PciDevice {
  const storage: NamespaceStorage[] = [];
  try {
    for (const { nsid, block, before } of wantedStorage(options, saved)) {
      const backend = openBlockBackend(block, context, before);
      storage.push({ nsid, block, backend });
    }
    const serial = chooseSerial(context, options);
    const { model, firmware } = options;
    const subnqn = deriveNqn(serial);
    const device = new NvmeController(context, {
      ...options,
      identity: { serial, model, firmware, subnqn },
      open: (block) => openBlockBackend(block, context),
      beginOpen: (block, tell) => beginOpenBlockBackend(block, context, tell),
    }, storage);
    if (saved === undefined) announce(context.log, serial, storage);
    return device;
  } catch (error) {
    for (const { backend } of storage) backend.close();
    throw error;
  }
}

/** A namespace to be opened, as it was before or anew. */
interface WantedStorage extends NamespaceOptions {
  readonly before?: Saved<unknown>;
}

/** Storage that the options ask for, or that a predecessor had in the end: namespaces come and go at run time. */
function wantedStorage(
  options: NvmeOptions,
  saved: SavedDevice | undefined,
): readonly WantedStorage[] {
  if (saved === undefined) return options.namespaces;
  const namespaces = parseNamespaces(NVME_FORM.read(saved.state));
  return namespaces.map(({ nsid, block, backend }) => {
    const bag = saved.bag.at(`ns${nsid}`);
    if (block !== null) return { nsid, block, before: { state: backend, bag } };
    throw new Error(
      `Cannot take namespace ${nsid} over: nothing tells how its storage was opened`,
    );
  });
}

function serve(
  context: QueueContext,
  _options: NvmeOptions,
  grant: Saved<unknown>,
): QueueService {
  return new NvmeQueueService(
    context,
    grant as Saved<QueueGrant>,
    (block, saved) =>
      openBlockBackend(block, { ...context, onStart() {} }, saved),
  );
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
  check: async ({ namespaces }) => {
    for (const { block } of namespaces) await blockDriver(block).check?.(block);
  },
  create,
  serve,
};
