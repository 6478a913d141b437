/**
 * A store as a controller sees it.
 *
 * @module
 */

import { SLOT_BYTES, type StoreBlockOptions } from "./driver.ts";
import type { Log } from "../../../core/log.ts";
import type { BlockInfo } from "../contract.ts";
import type { Store } from "./store.ts";

const PHYSICAL_DEFAULT_BYTES = 4096;

/**
 * Properties of an open store for a controller.
 *
 * @throws {Error} When it is none that a controller can use
 */
export function storeInfo(
  store: Store,
  wanted: StoreBlockOptions,
  log: Log,
): BlockInfo {
  const refuse = (why: string): never => {
    throw new Error(
      `Cannot use ${wanted.reference} as a store: in what its open() gives, ${why}`,
    );
  };
  if (typeof store?.read !== "function") {
    refuse("`read` must be a function");
  }
  const info = store.info ?? refuse("`info` must be an object");
  const isBlock = (bytes: unknown) => bytes === 512 || bytes === 4096;
  const {
    sizeBytes: length,
    logicalBlockBytes: logical = 512,
    physicalBlockBytes = PHYSICAL_DEFAULT_BYTES,
    optimalBytes = 0,
  } = info;
  if (!isBlock(logical) || !isBlock(physicalBlockBytes)) {
    refuse("`logicalBlockBytes` and `physicalBlockBytes` are 512 or 4096");
  }
  const logicalBlockBytes = Math.max(logical, wanted.logicalBlockBytes);
  const excess = length % logicalBlockBytes;
  const sizeBytes = length - excess;
  if (!Number.isSafeInteger(length) || sizeBytes <= 0) {
    refuse(
      `\`info.sizeBytes\` is ${length}, and must be a whole number of bytes, at least one block of ${logicalBlockBytes}`,
    );
  }
  if (!Number.isSafeInteger(optimalBytes) || optimalBytes < 0) {
    refuse(`\`info.optimalBytes\` is ${optimalBytes}`);
  }
  if (excess > 0) {
    log.warn(`its last ${excess} bytes are no whole block and cannot be used`);
  }
  const readonly = wanted.readonly || info.readonly === true ||
    store.write === undefined;
  const physical = Math.max(
    logicalBlockBytes,
    wanted.physicalBlockBytes ?? physicalBlockBytes,
  );
  return {
    sizeBytes,
    logicalBlockBytes,
    physicalBlockBytes: physical,
    optimalBytes,
    readonly,
    volatileCache: store.flush !== undefined && !readonly,
    discardGranularityBytes: store.discard === undefined || readonly
      ? 0
      : physical,
    maxTransferBytes: SLOT_BYTES,
  };
}
