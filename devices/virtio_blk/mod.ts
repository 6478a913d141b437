/**
 * The virtio disk: `--device virtio-blk`.
 *
 * @module
 */

import type { BlockBackend } from "../../src/backend/block/contract.ts";
import { openBlockBackend } from "../../src/backend/block/open.ts";
import { blockDriver } from "../../src/backend/block/options.ts";
import { formatSize } from "../../src/core/size.ts";
import type { Saved } from "../../src/os/resource_bag.ts";
import type { Log } from "../../src/core/log.ts";
import type {
  QueueContext,
  QueueService,
} from "../../src/pci/queue_threads.ts";
import type { VirtioDevice } from "../../src/virtio/device.ts";
import { VirtioQueueService } from "../../src/virtio/session/threads.ts";
import type { DeviceModel, ModelContext, SavedDevice } from "../model.ts";
import { VIRTIO_BLK_OPTIONS, type VirtioBlkOptions } from "./config.ts";
import { VirtioBlk } from "./device.ts";
import { BlkQueues } from "./queues.ts";
import { parseVirtioBlkState } from "./state.ts";

export { VirtioBlk, type VirtioBlkParts } from "./device.ts";
export { type DiskOptions, type VirtioBlkOptions } from "./config.ts";

function create(
  context: ModelContext,
  options: VirtioBlkOptions,
  saved?: SavedDevice,
): VirtioDevice {
  const backend = openBlockBackend(
    options.block,
    context,
    saved && {
      state: parseVirtioBlkState(saved.state).backend,
      bag: saved.bag.at("backend"),
    },
  );
  try {
    const transport = context.virtio;
    const device = new VirtioBlk({ context, transport, backend, options });
    if (saved === undefined) announce(context.log, backend);
    return device;
  } catch (error) {
    backend.close();
    throw error;
  }
}

function serve(
  context: QueueContext,
  options: VirtioBlkOptions,
  grant: Saved<unknown>,
): QueueService {
  return new VirtioQueueService(context, grant, (transport, saved) => {
    const backend = openBlockBackend(
      options.block,
      { ...context, onStart() {} },
      saved,
    );
    return new BlkQueues({
      ...{ context, transport, backend, options },
      onResize: () => {},
    });
  });
}

function announce(log: Log, backend: BlockBackend): void {
  const { sizeBytes, readonly } = backend.info;
  log.info(
    `disk of ${formatSize(sizeBytes)}${
      readonly ? ", read-only" : ""
    }, on ${backend.description}`,
    { sizeBytes, readonly, storage: backend.description },
  );
}

/** The model behind `--device virtio-blk`. */
export const virtioBlkModel: DeviceModel<VirtioBlkOptions> = {
  name: "virtio-blk",
  help: "virtio disk",
  options: VIRTIO_BLK_OPTIONS,
  check: async ({ block }) => await blockDriver(block).check?.(block),
  create,
  serve,
};
