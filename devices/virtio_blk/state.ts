/**
 * What of a disk outlasts a move: its state, and what was opened for it.
 *
 * @module
 */

import { parseCounters } from "../../src/core/counters.ts";
import { StateForm } from "../../src/core/state_form.ts";
import { BLK_COUNTERS } from "./counters.ts";

/** What a driver could tell a disk by, beyond what is the transport's. */
export interface VirtioBlkState {
  /** The cache mode, as the driver reads it and may have set it. */
  readonly writeback: boolean;
  /** The capacity that the driver was told. */
  readonly sizeBytes: number;
  /** What was counted, by name. */
  readonly counters: Readonly<Record<string, number>>;
  /** What the storage has saved, for openBlockBackend; null for storage that cannot be saved. */
  readonly backend: unknown;
}

/** Form of {@linkcode VirtioBlkState}. */
export const VIRTIO_BLK_FORM: StateForm<VirtioBlkState> = new StateForm(
  "virtio-blk",
  "the disk",
);

/**
 * Checks a saved state.
 *
 * @throws {import("../../src/core/errno.ts").ErrnoError} EINVAL when it is none of a disk
 */
export function parseVirtioBlkState(value: unknown): VirtioBlkState {
  const reader = VIRTIO_BLK_FORM.read(value);
  return {
    writeback: reader.flag("writeback"),
    sizeBytes: reader.integer("sizeBytes", Number.MAX_SAFE_INTEGER),
    counters: parseCounters(BLK_COUNTERS, reader.value("counters")),
    backend: reader.value("backend"),
  };
}
