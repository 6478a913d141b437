/**
 * State of back ends: saving it, and reading what was saved.
 *
 * @module
 */

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

/**
 * Begins to read what a back end has saved.
 *
 * @param kind Which must have saved it
 * @throws {ErrnoError} EINVAL when another did
 */
export function readState(value: unknown, kind: string): StateReader {
  const reader = new StateReader(value, `storage of kind ${kind}`);
  reader.version(1);
  if (reader.text("kind") !== kind) throw reader.refused("it is of another");
  return reader;
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
