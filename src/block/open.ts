/**
 * From checked options to open storage.
 *
 * @module
 */

import { Errno, ErrnoError } from "../errno.ts";
import type { BlockBackend, BlockContext } from "./backend.ts";
import { FileBackend } from "./file.ts";
import { MemoryBackend } from "./memory.ts";
import { NbdBackend } from "./nbd.ts";
import { BlockKind, type BlockOptions } from "./option_table.ts";

/**
 * Opens the storage that the options ask for; to be called on the thread of the controller's event loop.
 *
 * @throws {ErrnoError} With what is wrong and the remedy
 */
export function openBlockBackend(
  options: BlockOptions,
  context: BlockContext,
): BlockBackend {
  switch (options.kind) {
    case BlockKind.FILE:
      return new FileBackend(options, context);
    case BlockKind.MEMORY:
      return new MemoryBackend(options);
    case BlockKind.NBD:
      return new NbdBackend(options, context);
    default:
      throw new ErrnoError(
        Errno.EINVAL,
        `Cannot open storage ${options satisfies never}`,
      );
  }
}
