/**
 * State of back ends: saving it, and reading what was saved.
 *
 * @module
 */

import { StateForm } from "../../core/state_form.ts";
import { StateReader } from "../../core/state_reader.ts";
import type { BlockBackend, BlockInfo } from "./contract.ts";

const { MAX_SAFE_INTEGER } = Number;

/** Checks that nothing is in flight. @throws {Error} Otherwise: such a state cannot be saved */
export function refuseInFlight(
  { description }: BlockBackend,
  requests: number,
): void {
  if (requests === 0) return;
  throw new Error(
    `Cannot save ${description}: ${requests} requests are in flight`,
  );
}

/** Form of the states of back ends of one kind. */
export function blockForm<Body extends object>(kind: string): StateForm<Body> {
  return new StateForm(kind, `storage of kind ${kind}`);
}

/** Reads properties of storage as its controller knows them. */
export function readInfo(value: unknown): BlockInfo {
  const reader = new StateReader(value, "properties of storage");
  const size = (name: string) => reader.integer(name, MAX_SAFE_INTEGER);
  return {
    sizeBytes: size("sizeBytes"),
    logicalBlockBytes: size("logicalBlockBytes"),
    physicalBlockBytes: size("physicalBlockBytes"),
    optimalBytes: size("optimalBytes"),
    readonly: reader.flag("readonly"),
    volatileCache: reader.flag("volatileCache"),
    discardGranularityBytes: size("discardGranularityBytes"),
    maxTransferBytes: size("maxTransferBytes"),
  };
}
