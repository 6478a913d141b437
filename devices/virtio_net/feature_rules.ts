/**
 * Which features need which others (virtio 1.3, section 5.1.3.1).
 *
 * @module
 */

import type { Features } from "../../src/virtio/features.ts";
import { VIRTIO_NET_F } from "./defs.ts";

const F = VIRTIO_NET_F;

/** A feature, and those of which it needs one. */
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

/** Whether every feature has what it needs. */
export function areRequirementsMet(features: Features): boolean {
  return REQUIREMENTS.every(([feature, ...needed]) =>
    !features.has(feature) || needed.some((other) => features.has(other))
  );
}
