/**
 * The virtio disk: `--device virtio-blk`.
 *
 * @module
 */

import { openBlockBackend } from "../../src/block/open.ts";
import { formatSize } from "../../src/block/size.ts";
import type { DeviceContext, PciDevice } from "../../src/pci/device.ts";
import { ringFeatures } from "../../src/virtio/options.ts";
import { VirtioPci } from "../../src/virtio/virtio_pci.ts";
import type { DeviceModel } from "../model.ts";
import {
  parseVirtioBlkOptions,
  VIRTIO_BLK_OPTIONS,
  type VirtioBlkOptions,
} from "./config.ts";
import { VirtioBlk } from "./device.ts";

export { VirtioBlk, type VirtioBlkParts } from "./device.ts";
export { type DiskOptions, type VirtioBlkOptions } from "./config.ts";

function create(context: DeviceContext, options: VirtioBlkOptions): PciDevice {
  const { loop, log, memory } = context;
  const backend = openBlockBackend(options.block, { loop, log, memory });
  try {
    const device = new VirtioPci(
      context,
      (transport) => new VirtioBlk({ context, transport, backend, options }),
      { ringFeatures: ringFeatures(options.rings) },
    );
    const { sizeBytes, readonly } = backend.info;
    log.info(
      `disk of ${formatSize(sizeBytes)}${
        readonly ? ", read-only" : ""
      }, on ${backend.description}`,
      { sizeBytes, readonly, storage: backend.description },
    );
    return device;
  } catch (error) {
    backend.close();
    throw error;
  }
}

/** The model behind `--device virtio-blk`. */
export const virtioBlkModel: DeviceModel<VirtioBlkOptions> = {
  name: "virtio-blk",
  help: "virtio disk",
  options: VIRTIO_BLK_OPTIONS,
  parse: parseVirtioBlkOptions,
  create,
};
