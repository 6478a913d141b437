/**
 * State of a disk, which outlasts a move.
 *
 * @module
 */

import { parseCounters } from "../../src/core/counters.ts";
import { StateForm } from "../../src/core/state_form.ts";
import type { StateReader } from "../../src/core/state_reader.ts";
import { BLK_COUNTERS } from "./counters.ts";

function readState(state: StateReader) {
  return {
    /** The cache mode, as the driver reads it and may have set it. */
    writeback: state.flag("writeback"),
    /** The capacity that the driver was told. */
    sizeBytes: state.integer("sizeBytes", Number.MAX_SAFE_INTEGER),
    /** Counters by name. */
    counters: parseCounters(BLK_COUNTERS, state.value("counters")),
    /** State of the storage, for openBlockBackend; null for storage that cannot be saved. */
    backend: state.value("backend"),
  };
}

/** State of a disk, beyond that of the transport. */
export type VirtioBlkState = Readonly<ReturnType<typeof readState>>;

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
  return readState(VIRTIO_BLK_FORM.read(value));
}
