/**
 * From checked options to open storage.
 *
 * @module
 */

import type { BlockBackend, BlockContext } from "./contract.ts";
import type { Saved } from "../../os/resource_bag.ts";
import type { OpenBlock } from "./driver.ts";
import { BLOCK_DRIVERS, type BlockOptions } from "./options.ts";

/** Loaded once and for all: opening waits for nothing. */
const OPEN = new Map(
  await Promise.all(
    Object.entries(BLOCK_DRIVERS).map(async ([kind, driver]) =>
      [kind, await driver.load() as OpenBlock<never>] as const
    ),
  ),
);

/**
 * Opens the storage that the options ask for; to be called on the thread of the controller's event loop.
 *
 * @param saved See {@linkcode OpenBlock}
 * @throws {ErrnoError} With what is wrong and the remedy
 */
export function openBlockBackend(
  options: BlockOptions,
  context: BlockContext,
  saved?: Saved<unknown>,
): BlockBackend {
  // The kind of the options is the kind of their driver.
  return OPEN.get(options.kind)!(options as never, context, saved);
}
