/**
 * Counters of a card.
 *
 * @module
 */

import {
  counter,
  type CounterTable,
  indicesOf,
} from "../../src/core/counters.ts";
import {
  ERRORS,
  REQUESTS,
  STALLS,
  SUPPRESSED,
  TRANSFER,
} from "../../src/core/families.ts";

const PACKETS = counter("device_packets", "Frames moved");
const GSO_PACKETS = counter("device_gso_packets", "Of those, segmented ones");
const DROPPED = counter("device_dropped_packets", "Frames lost, by reason");
const PAIR_PACKETS = counter(
  "device_pair_packets",
  "Frames moved by each queue pair",
);
const PAIR_TRANSFER = counter(
  "device_pair_transfer_bytes",
  "Bytes moved by each queue pair",
  "bytes",
);
const RECEIVE = { direction: "receive" };
const TRANSMIT = { direction: "transmit" };

/** Counters of a card. */
export const NET_COUNTERS = {
  /** Frames given to the driver. */
  rxPackets: [PACKETS, RECEIVE],
  /** Their bytes, without the virtio-net header. */
  rxBytes: [TRANSFER, RECEIVE],
  /** The driver does not want the address or the VLAN. */
  rxDroppedFilter: [DROPPED, { ...RECEIVE, reason: "filter" }],
  /** Longer than the MTU allows. */
  rxDroppedOversized: [DROPPED, { ...RECEIVE, reason: "oversized" }],
  /** Shorter than an Ethernet header. */
  rxDroppedRunt: [DROPPED, { ...RECEIVE, reason: "runt" }],
  /** Did not fit into the buffers that the driver gave. */
  rxDroppedNoRoom: [DROPPED, { ...RECEIVE, reason: "no_room" }],
  /** The back end lost a frame. */
  rxErrors: [ERRORS, { kind: "receive" }],
  /** Times that reception stopped because the driver gave too few buffers. */
  rxStarved: [STALLS, { reason: "no_buffers" }],
  /** Frames that the back end took. */
  txPackets: [PACKETS, TRANSMIT],
  /** Their bytes, without the virtio-net header. */
  txBytes: [TRANSFER, TRANSMIT],
  /** The header or the Ethernet header is not all there. */
  txDroppedShort: [DROPPED, { ...TRANSMIT, reason: "short" }],
  /** Longer than the MTU allows. */
  txDroppedOversized: [DROPPED, { ...TRANSMIT, reason: "oversized" }],
  /** The header asks for an offload that was not negotiated. */
  txDroppedBadHeader: [DROPPED, { ...TRANSMIT, reason: "bad_header" }],
  /** The link is down. */
  txDroppedLinkDown: [DROPPED, { ...TRANSMIT, reason: "link_down" }],
  /** The back end refused a frame, or lost it after it took it. */
  txErrors: [ERRORS, { kind: "transmit" }],
  /** Times that the back end made us wait. */
  txBlocked: [STALLS, { reason: "backend" }],
  /** Control commands that were answered with VIRTIO_NET_OK. */
  ctrlCommands: [REQUESTS, { op: "control" }],
  /** Control commands that were answered with VIRTIO_NET_ERR, or could not be answered. */
  ctrlErrors: [ERRORS, { kind: "control" }],
  /** Frames given to the driver that are longer than a wire takes: several segments at once. */
  rxGsoPackets: [GSO_PACKETS, RECEIVE],
  /** Frames that the back end took to cut into segments. */
  txGsoPackets: [GSO_PACKETS, TRANSMIT],
  /** The header has an offload that is off, as just after the driver turned it off. */
  rxDroppedBadHeader: [DROPPED, { ...RECEIVE, reason: "bad_header" }],
  /** Interrupts that were not raised because one that is held back stands for them too. */
  coalescedInterrupts: [SUPPRESSED, { reason: "coalesced" }],
  /** Times that frames were kept from a driver that could not keep up. */
  rxRests: [STALLS, { reason: "overloaded_driver" }],
} satisfies CounterTable;

/** Indices of {@linkcode NET_COUNTERS}. */
export const NetCounter = indicesOf(NET_COUNTERS);

/** Counters of each queue pair. */
export const PAIR_COUNTERS = {
  rxPackets: [PAIR_PACKETS, RECEIVE],
  rxBytes: [PAIR_TRANSFER, RECEIVE],
  txPackets: [PAIR_PACKETS, TRANSMIT],
  txBytes: [PAIR_TRANSFER, TRANSMIT],
} satisfies CounterTable;
