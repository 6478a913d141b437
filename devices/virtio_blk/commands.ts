/**
 * Run-time commands of a disk.
 *
 * @module
 */

import type { BlockBackend } from "../../src/backend/block/contract.ts";
import { resizeStorage } from "../../src/backend/block/resize.ts";
import { formatSize } from "../../src/core/size.ts";
import type { DeviceCommand } from "../../src/pci/device.ts";

/** The `resize` command: changes the size of a disk's storage, or tells it. */
export function resizeCommand(backend: BlockBackend): DeviceCommand {
  return {
    help:
      "resize SIZE [--shrink]: change the disk's size; without a word, tell",
    run(args) {
      if (args.length > 0) resizeStorage(backend, args);
      const { sizeBytes } = backend.info;
      return {
        text: `the disk has ${formatSize(sizeBytes)}`,
        data: { sizeBytes },
      };
    },
  };
}
