/**
 * From checked options to open storage.
 *
 * @module
 */

import type { BlockBackend, BlockContext } from "./contract.ts";
import type { Saved } from "../../os/resource_bag.ts";
import type { BeginOpenBlock, OpenBlock } from "./driver.ts";
import { BLOCK_DRIVERS, type BlockOptions } from "./options.ts";

/** Those that may take long to open. */
const BEGIN = new Map(
  await Promise.all(
    Object.entries(BLOCK_DRIVERS).map(async ([kind, driver]) =>
      [
        kind,
        await driver.loadBegin?.() as BeginOpenBlock<never> | undefined,
      ] as const
    ),
  ),
);

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

/**
 * Begins to open storage that may take seconds for that, and has the loop go on meanwhile.
 *
 * @param tell Told in a later turn of the loop
 * @returns Gives up, until it was told; null for storage that {@linkcode openBlockBackend} opens at once
 */
export function beginOpenBlockBackend(
  options: BlockOptions,
  context: BlockContext,
  tell: (outcome: BlockBackend | Error) => void,
): Disposable | null {
  const begin = BEGIN.get(options.kind);
  return begin === undefined ? null : begin(options as never, context, tell);
}
