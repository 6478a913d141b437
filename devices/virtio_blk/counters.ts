/**
 * Counters of a disk.
 *
 * @module
 */

import {
  counter,
  type Counters,
  type CounterTable,
  gauge,
  indicesOf,
} from "../../src/core/counters.ts";
import { ERRORS, REQUESTS, TRANSFER } from "../../src/core/families.ts";
import { VIRTIO_BLK_S, VIRTIO_BLK_T } from "./defs.ts";
import type { Slot } from "./in_flight.ts";

/** Counters of a disk. */
export const BLK_COUNTERS = {
  /** Reads that succeeded. */
  reads: [REQUESTS, { op: "read" }],
  /** Their bytes. */
  readBytes: [TRANSFER, { direction: "read" }],
  /** Writes that succeeded. */
  writes: [REQUESTS, { op: "write" }],
  /** Their bytes. */
  writtenBytes: [TRANSFER, { direction: "write" }],
  /** Flushes that succeeded. */
  flushes: [REQUESTS, { op: "flush" }],
  /** DISCARD requests that succeeded. */
  discards: [REQUESTS, { op: "discard" }],
  /** WRITE_ZEROES requests that succeeded. */
  writeZeroes: [REQUESTS, { op: "write_zeroes" }],
  /** GET_ID requests. */
  getIds: [REQUESTS, { op: "get_id" }],
  /** Requests that were refused or that the storage failed: VIRTIO_BLK_S_IOERR. */
  errors: [ERRORS, { kind: "request" }],
  /** Requests that were not understood: VIRTIO_BLK_S_UNSUPP. */
  unsupported: [ERRORS, { kind: "unsupported" }],
  reissued: [counter(
    "device_reissued_requests",
    "Requests that were issued again because guest memory changed",
  )],
  dropped: [counter(
    "device_abandoned_requests",
    "Requests that a reset has thrown away",
  )],
  inFlight: [gauge("device_requests_in_flight", "Requests under way")],
} satisfies CounterTable;

/** Indices of {@linkcode BLK_COUNTERS}. */
export const BlkCounter = indicesOf(BLK_COUNTERS);

/** Counts a request by its type and status. */
export function countRequest(
  counters: Counters,
  slot: Slot,
  status: number,
): void {
  if (status === VIRTIO_BLK_S.UNSUPP) {
    return counters.add(BlkCounter.unsupported, 1);
  }
  if (status !== VIRTIO_BLK_S.OK) return counters.add(BlkCounter.errors, 1);
  switch (slot.type) {
    case VIRTIO_BLK_T.IN:
      counters.add(BlkCounter.reads, 1);
      return counters.add(BlkCounter.readBytes, slot.dataBytes);
    case VIRTIO_BLK_T.OUT:
      counters.add(BlkCounter.writes, 1);
      return counters.add(
        BlkCounter.writtenBytes,
        slot.request.lengthBytes,
      );
    case VIRTIO_BLK_T.FLUSH:
      return counters.add(BlkCounter.flushes, 1);
    case VIRTIO_BLK_T.DISCARD:
      return counters.add(BlkCounter.discards, 1);
    case VIRTIO_BLK_T.WRITE_ZEROES:
      return counters.add(BlkCounter.writeZeroes, 1);
    case VIRTIO_BLK_T.GET_ID:
      return counters.add(BlkCounter.getIds, 1);
  }
}
