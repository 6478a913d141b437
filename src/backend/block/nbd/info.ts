/**
 * What an NBD export means for a controller.
 *
 * @module
 */

import { bit } from "../../../core/bits.ts";
import { Errno, ErrnoError } from "../../../core/errno.ts";
import type { Log } from "../../../core/log.ts";
import type { BlockInfo } from "../contract.ts";
import type { NbdExport } from "./handshake.ts";
import {
  NBD_DEFAULT_MAX_PAYLOAD,
  NBD_ERROR,
  NBD_FLAG_EXPORT,
} from "./protocol.ts";
import type { CommonBlockOptions } from "../driver.ts";

/** Larger physical blocks than that are nothing a guest expects. */
const PHYSICAL_MAX_BYTES = 4096;

/**
 * The properties of storage on an export.
 *
 * @throws {ErrnoError} When a controller cannot use it, with the remedy
 */
export function nbdInfo(
  found: NbdExport,
  options: CommonBlockOptions,
  log: Log,
): BlockInfo {
  const { logicalBlockBytes } = options;
  const { minimumBlockBytes, preferredBlockBytes, flags } = found;
  if (minimumBlockBytes > logicalBlockBytes) {
    throw new ErrnoError(
      Errno.EINVAL,
      minimumBlockBytes > PHYSICAL_MAX_BYTES
        ? `Cannot use the NBD server: its blocks have ${minimumBlockBytes} bytes, 4096 are the most`
        : `Cannot use the NBD server: its blocks have ${minimumBlockBytes} bytes, give block-size=${minimumBlockBytes}`,
    );
  }
  const excess = found.sizeBytes % logicalBlockBytes;
  const sizeBytes = found.sizeBytes - excess;
  if (!Number.isSafeInteger(found.sizeBytes)) {
    throw new ErrnoError(
      Errno.EFBIG,
      "Cannot use the NBD server: its export has 2^53 bytes or more",
    );
  }
  if (sizeBytes === 0) {
    throw new ErrnoError(
      Errno.EINVAL,
      `Cannot use the NBD server: its export has ${found.sizeBytes} bytes, that is no block`,
    );
  }
  if (excess > 0) {
    log.warn(
      `The last ${excess} bytes of the NBD export are no whole block and cannot be used`,
    );
  }
  const readonly = options.readonly || bit(flags, NBD_FLAG_EXPORT.READ_ONLY);
  const physical = Math.min(
    Math.max(preferredBlockBytes, logicalBlockBytes),
    PHYSICAL_MAX_BYTES,
  );
  const payload = Math.min(found.maximumPayloadBytes, NBD_DEFAULT_MAX_PAYLOAD);
  return {
    sizeBytes,
    logicalBlockBytes,
    physicalBlockBytes: options.physicalBlockBytes ?? physical,
    optimalBytes: preferredBlockBytes > physical ? preferredBlockBytes : 0,
    readonly,
    volatileCache: bit(flags, NBD_FLAG_EXPORT.SEND_FLUSH),
    discardGranularityBytes: bit(flags, NBD_FLAG_EXPORT.SEND_TRIM) && !readonly
      ? physical
      : 0,
    maxTransferBytes: payload - payload % logicalBlockBytes,
  };
}

/** The error number of Linux for one of NBD's. */
export function errnoOfNbd(error: number): number {
  switch (error) {
    case NBD_ERROR.EPERM:
      return Errno.EPERM;
    case NBD_ERROR.EIO:
      return Errno.EIO;
    case NBD_ERROR.ENOMEM:
      return Errno.ENOMEM;
    case NBD_ERROR.ENOSPC:
      return Errno.ENOSPC;
    case NBD_ERROR.EOVERFLOW:
      return Errno.EOVERFLOW;
    case NBD_ERROR.ENOTSUP:
      return Errno.EOPNOTSUPP;
    default:
      // An unexpected error is to be taken for EINVAL.
      return Errno.EINVAL;
  }
}
