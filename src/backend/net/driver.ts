/**
 * A kind of network, as each declares itself.
 *
 * Declarations load nothing that opens descriptors: help needs no permission.
 *
 * @module
 */

import type { Options } from "../../core/options.ts";
import type { NetBackend, NetContext } from "./contract.ts";

/**
 * Opens a network.
 *
 * @param inherited What {@linkcode NetBackend.handOver} of a predecessor with the same options gave: used instead of
 * opening it anew, and owned from here on. When this throws, it is as it was, for another attempt on any thread
 * @throws {ErrnoError} With what is wrong and the remedy
 * @throws {Error} When `inherited` is not of a back end of this kind
 */
export type OpenNet<O> = (
  options: O,
  context: NetContext,
  inherited?: unknown,
) => NetBackend;

/** A kind of network. */
export interface NetDriver<O extends object> {
  /** Its options. */
  readonly options: Options<O>;
  /** Loads what opens it. */
  readonly load: () => Promise<OpenNet<O>>;
  /** Whether there may be several queue pairs. */
  readonly multiQueue: boolean;
}
