/**
 * Offloads as feature bits, and feature bits as offloads.
 *
 * @module
 */

import {
  NetOffload,
  type NetOffloads,
} from "../../src/backend/net/contract.ts";
import { Features } from "../../src/virtio/features.ts";
import { VIRTIO_NET_F } from "./defs.ts";

const { CSUM, TSO4, TSO6, ECN, UFO, USO4, USO6 } = NetOffload;

/** Feature bit and what it stands for; all of it. */
type Row = readonly [feature: number, offloads: number];

/** What the driver may leave to us. */
const TAKEN: readonly Row[] = [
  [VIRTIO_NET_F.CSUM, CSUM],
  [VIRTIO_NET_F.HOST_TSO4, TSO4],
  [VIRTIO_NET_F.HOST_TSO6, TSO6],
  [VIRTIO_NET_F.HOST_ECN, ECN],
  [VIRTIO_NET_F.HOST_UFO, UFO],
  [VIRTIO_NET_F.HOST_USO, USO4 | USO6],
];

/** What we may leave to the driver. */
const GIVEN: readonly Row[] = [
  [VIRTIO_NET_F.GUEST_CSUM, CSUM],
  [VIRTIO_NET_F.GUEST_TSO4, TSO4],
  [VIRTIO_NET_F.GUEST_TSO6, TSO6],
  [VIRTIO_NET_F.GUEST_ECN, ECN],
  [VIRTIO_NET_F.GUEST_UFO, UFO],
  [VIRTIO_NET_F.GUEST_USO4, USO4],
  [VIRTIO_NET_F.GUEST_USO6, USO6],
];

/** No offload at all. */
export const NO_OFFLOADS: NetOffloads = { take: 0, give: 0 };

/** Whether one of the offloads makes frames longer than a wire takes. */
export function canSegment(offloads: number): boolean {
  return (offloads & (TSO4 | TSO6 | UFO | USO4 | USO6)) !== 0;
}

/** The features to offer for what a back end can do. */
export function offloadFeatures(offloads: NetOffloads): Features {
  const covered = (rows: readonly Row[], able: number) =>
    rows.filter(([, needed]) => (able & needed) === needed)
      .map(([feature]) => feature);
  const given = covered(GIVEN, offloads.give);
  return Features.of(
    ...covered(TAKEN, offloads.take),
    ...given,
    ...(given.length > 0 ? [VIRTIO_NET_F.CTRL_GUEST_OFFLOADS] : []),
  );
}

function offloadsOf(rows: readonly Row[], features: Features): number {
  let offloads = 0;
  for (const [feature, meant] of rows) {
    if (features.has(feature)) offloads |= meant;
  }
  return offloads;
}

/** What the driver leaves to us with these features. */
export function takenOffloads(features: Features): number {
  return offloadsOf(TAKEN, features);
}

/** What we may leave to the driver with these features. */
export function givenOffloads(features: Features): number {
  return offloadsOf(GIVEN, features);
}

/**
 * What a driver asks for with VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET (virtio 1.3, section 5.1.6.5.8).
 *
 * @param asked The command's 64 bits
 * @returns The offloads, or −1 when one of them was not negotiated, or is none
 */
export function askedOffloads(asked: Features, negotiated: Features): number {
  const possible = GIVEN.map(([feature]) => feature)
    .filter((feature) => negotiated.has(feature));
  return asked.isSubsetOf(Features.of(...possible)) ? givenOffloads(asked) : -1;
}
