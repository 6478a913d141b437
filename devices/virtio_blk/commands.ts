/**
 * Run-time commands of a disk.
 *
 * @module
 */

import type { BlockBackend } from "../../src/block/backend.ts";
import { formatSize, parseSize } from "../../src/block/size.ts";
import type { DeviceCommand } from "../../src/pci/device.ts";

/** The `resize` command: changes the size of a disk's storage, or tells it. */
export function resizeCommand(backend: BlockBackend): DeviceCommand {
  return {
    help: "resize SIZE: change the disk's size; without a word, tell",
    run(args) {
      if (args.length > 0) resize(backend, args);
      return `the disk has ${formatSize(backend.info.sizeBytes)}`;
    },
  };
}

function resize(backend: BlockBackend, args: readonly string[]): void {
  const sizeBytes = args.length > 1 ? null : parseSize(args[0]!);
  const { logicalBlockBytes } = backend.info;
  if (
    sizeBytes === null || sizeBytes < logicalBlockBytes ||
    sizeBytes % logicalBlockBytes !== 0
  ) {
    throw new Error(
      `Cannot resize to ${
        args.join(" ")
      }: a size like 10G, in blocks of ${logicalBlockBytes} bytes, is wanted`,
    );
  }
  if (backend.resize === undefined) {
    throw new Error(
      `Cannot resize: ${backend.description} has a size of its own`,
    );
  }
  backend.resize(sizeBytes);
}
