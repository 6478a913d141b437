/**
 * From checked options to open storage.
 *
 * @module
 */

import { Errno, ErrnoError } from "../../core/errno.ts";
import type { BlockBackend, BlockContext } from "./contract.ts";
import { FileBackend } from "./file/file.ts";
import { inheritedFrom } from "./hand_over.ts";
import { MemoryBackend } from "./memory.ts";
import { NbdBackend } from "./nbd/nbd.ts";
import { BlockKind, type BlockOptions } from "./option_table.ts";

/**
 * Opens the storage that the options ask for; to be called on the thread of the controller's event loop.
 *
 * @param inherited What {@linkcode BlockBackend.handOver} of a back end with the same options gave on another thread: used
 * in place of opening it anew, and owned by the result; untouched when this throws
 * @throws {ErrnoError} With what is wrong and the remedy
 */
export function openBlockBackend(
  options: BlockOptions,
  context: BlockContext,
  inherited?: unknown,
): BlockBackend {
  const { kind } = options;
  switch (kind) {
    case BlockKind.FILE:
      return new FileBackend(
        options,
        context,
        inheritedFrom(kind, inherited),
      );
    case BlockKind.MEMORY:
      return new MemoryBackend(options, inheritedFrom(kind, inherited));
    case BlockKind.NBD:
      return new NbdBackend(options, context, inheritedFrom(kind, inherited));
    default:
      throw new ErrnoError(
        Errno.EINVAL,
        `Cannot open storage ${kind satisfies never}`,
      );
  }
}
