/**
 * Feature bits of a card: what is offered, which need which others, and what they mean as offloads.
 *
 * @module
 */

import {
  type NetBackend,
  NetOffload,
  type NetOffloads,
} from "../../src/backend/net/contract.ts";
import { Features } from "../../src/virtio/features.ts";
import { VIRTIO_NET_F } from "./defs.ts";

const { CSUM, TSO4, TSO6, ECN, UFO, USO4, USO6 } = NetOffload;

const F = VIRTIO_NET_F;

/** Offered whatever the card is plugged into. */
const FEATURES = Features.of(
  F.MTU,
  F.MAC,
  F.MRG_RXBUF,
  F.STATUS,
  F.CTRL_VQ,
  F.CTRL_RX,
  F.CTRL_VLAN,
  F.CTRL_RX_EXTRA,
  F.GUEST_ANNOUNCE,
  F.CTRL_MAC_ADDR,
  F.VQ_NOTF_COAL,
  F.NOTF_COAL,
);

/** Feature bit and what it stands for; all of it. */
type Row = readonly [feature: number, offloads: number];

/** Offloads that the driver may leave to us. */
const TAKEN: readonly Row[] = [
  [F.CSUM, CSUM],
  [F.HOST_TSO4, TSO4],
  [F.HOST_TSO6, TSO6],
  [F.HOST_ECN, ECN],
  [F.HOST_UFO, UFO],
  [F.HOST_USO, USO4 | USO6],
];

/** Offloads that we may leave to the driver. */
const GIVEN: readonly Row[] = [
  [F.GUEST_CSUM, CSUM],
  [F.GUEST_TSO4, TSO4],
  [F.GUEST_TSO6, TSO6],
  [F.GUEST_ECN, ECN],
  [F.GUEST_UFO, UFO],
  [F.GUEST_USO4, USO4],
  [F.GUEST_USO6, USO6],
];

/** No offload at all. */
const NO_OFFLOADS: NetOffloads = { take: 0, give: 0 };

/** True when one of the offloads makes frames longer than a wire takes. */
export function canSegment(offloads: number): boolean {
  return (offloads & (TSO4 | TSO6 | UFO | USO4 | USO6)) !== 0;
}

/**
 * The features that a card offers.
 *
 * @param pairs How many queue pairs it has
 * @param offloads Whether it is to offer those of its back end
 */
export function offeredFeatures(
  backend: Pick<NetBackend, "hasVnetHeader" | "offloads">,
  pairs: number,
  offloads: boolean,
): Features {
  const able = offloads && backend.hasVnetHeader
    ? backend.offloads ?? NO_OFFLOADS
    : NO_OFFLOADS;
  const covered = (rows: readonly Row[], able: number) =>
    rows.filter(([, needed]) => (able & needed) === needed)
      .map(([feature]) => feature);
  const given = covered(GIVEN, able.give);
  return FEATURES.union(Features.of(
    ...covered(TAKEN, able.take),
    ...given,
    ...(given.length > 0 ? [F.CTRL_GUEST_OFFLOADS] : []),
    ...(pairs > 1 ? [F.MQ] : []),
  ));
}

function offloadsOf(rows: readonly Row[], features: Features): number {
  let offloads = 0;
  for (const [feature, meant] of rows) {
    if (features.has(feature)) offloads |= meant;
  }
  return offloads;
}

/** Offloads that the driver leaves to us with these features. */
export function takenOffloads(features: Features): number {
  return offloadsOf(TAKEN, features);
}

/** Offloads that we may leave to the driver with these features. */
export function givenOffloads(features: Features): number {
  return offloadsOf(GIVEN, features);
}

/**
 * Offloads that a driver asks for with VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET (virtio 1.3, section 5.1.6.5.8).
 *
 * @param asked The command's 64 bits
 * @returns The offloads, or −1 when one of them was not negotiated, or is none
 */
export function askedOffloads(asked: Features, negotiated: Features): number {
  const possible = GIVEN.map(([feature]) => feature)
    .filter((feature) => negotiated.has(feature));
  return asked.isSubsetOf(Features.of(...possible)) ? givenOffloads(asked) : -1;
}

/** A feature, and those of which it needs one (virtio 1.3, section 5.1.3.1). */
const REQUIREMENTS: readonly (readonly [number, ...number[]])[] = [
  [F.GUEST_TSO4, F.GUEST_CSUM],
  [F.GUEST_TSO6, F.GUEST_CSUM],
  [F.GUEST_ECN, F.GUEST_TSO4, F.GUEST_TSO6],
  [F.GUEST_UFO, F.GUEST_CSUM],
  [F.GUEST_USO4, F.GUEST_CSUM],
  [F.GUEST_USO6, F.GUEST_CSUM],
  [F.HOST_TSO4, F.CSUM],
  [F.HOST_TSO6, F.CSUM],
  [F.HOST_ECN, F.HOST_TSO4, F.HOST_TSO6],
  [F.HOST_UFO, F.CSUM],
  [F.HOST_USO, F.CSUM],
  [F.CTRL_RX, F.CTRL_VQ],
  [F.CTRL_VLAN, F.CTRL_VQ],
  [F.CTRL_RX_EXTRA, F.CTRL_VQ],
  [F.GUEST_ANNOUNCE, F.CTRL_VQ],
  [F.MQ, F.CTRL_VQ],
  [F.CTRL_MAC_ADDR, F.CTRL_VQ],
  [F.NOTF_COAL, F.CTRL_VQ],
  [F.VQ_NOTF_COAL, F.CTRL_VQ],
];

/** True when every feature has what it needs. */
export function areRequirementsMet(features: Features): boolean {
  return REQUIREMENTS.every(([feature, ...needed]) =>
    !features.has(feature) || needed.some((other) => features.has(other))
  );
}
