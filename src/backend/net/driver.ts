/**
 * A kind of network, as each declares itself.
 *
 * Declarations load nothing that opens descriptors: help needs no permission.
 *
 * @module
 */

import type { CounterTable } from "../../core/counters.ts";
import type { Options } from "../../core/options.ts";
import type { Saved } from "../../os/resource_bag.ts";
import type { NetBackend, NetContext } from "./contract.ts";

/**
 * Opens a network.
 *
 * @param saved State and descriptors of a back end with the same options, in place of opening it anew. When this throws,
 * or the result is closed before it is started and its loop turns, all is as it was, for another attempt on any thread
 * @throws {ErrnoError} With what is wrong and the remedy, or when `saved` is not of a back end of this kind
 */
export type OpenNet<O> = (
  options: O,
  context: NetContext,
  saved?: Saved<unknown>,
) => NetBackend;

/** A kind of network. */
export interface NetDriver<O extends object> {
  /** Its options. */
  readonly options: Options<O>;
  /** Its counters. */
  readonly counters: CounterTable;
  /** Loads what opens it. */
  readonly load: () => Promise<OpenNet<O>>;
  /** True where there may be several queue pairs. */
  readonly multiQueue: boolean;
}
