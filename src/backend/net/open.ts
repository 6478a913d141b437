/**
 * From checked options to an open back end.
 *
 * @module
 */

import type { Saved } from "../../os/resource_bag.ts";
import type { NetBackend, NetContext } from "./contract.ts";
import type { OpenNet } from "./driver.ts";
import { NET_DRIVERS, type NetOptions } from "./options.ts";

/** Loaded once and for all: opening waits for nothing. */
const OPEN = new Map(
  await Promise.all(
    Object.entries(NET_DRIVERS).map(async ([kind, driver]) =>
      [kind, await driver.load() as OpenNet<never>] as const
    ),
  ),
);

/**
 * Opens the network that the options ask for; to be called on the thread of the card's event loop.
 *
 * @param saved See {@linkcode OpenNet}
 * @throws {ErrnoError} As there
 */
export function openNetBackend(
  options: NetOptions,
  context: NetContext,
  saved?: Saved<unknown>,
): NetBackend {
  // The kind of the options is the kind of their driver.
  return OPEN.get(options.net)!(options as never, context, saved);
}
