/**
 * What a virtio session consists of, saved and loaded as a whole.
 *
 * @module
 */

import { VIRTIO_CONFIG_S } from "../defs.ts";
import type { DeviceConfig } from "./device_config.ts";
import type { DeviceStatus } from "./device_status.ts";
import type { Negotiation } from "./negotiation.ts";
import type { SessionInterrupts } from "./interrupts.ts";
import type { SessionQueues } from "./queues.ts";
import { refusedState, type SessionState } from "./state.ts";

/** Everything of a session that a driver could tell, but for the device model. */
export interface SessionParts {
  readonly status: DeviceStatus;
  readonly negotiation: Negotiation;
  readonly config: DeviceConfig;
  readonly interrupts: SessionInterrupts;
  readonly queues: SessionQueues;
}

/**
 * The state of the parts. Changes nothing.
 *
 * @throws {Error} When chains are in flight that the driver waits for
 */
export function saveParts(parts: SessionParts): Omit<SessionState, "device"> {
  const { status } = parts;
  const { rings } = parts.queues;
  const open = rings.find((queue) => queue.outstanding > 0);
  if (open !== undefined && !status.halted) {
    throw new Error(
      `Cannot save the device: queue ${open.index} has ${open.outstanding} chains in flight, hold it until there are none`,
    );
  }
  return {
    status: status.value,
    ...parts.negotiation.save(),
    ...parts.config.save(),
    ...parts.interrupts.save(),
    queues: rings.map((queue) => queue.save()),
  };
}

/**
 * Takes over what {@linkcode saveParts} gave; the queues are left suspended.
 *
 * @throws {Error} When it is not a state of such a device
 */
export function loadParts(parts: SessionParts, state: SessionState): void {
  parts.status.load(state.status);
  parts.negotiation.load(state);
  checkStatus(parts);
  loadQueues(parts, state);
  parts.config.load(state);
  parts.interrupts.load(state);
}

function checkStatus({ status, negotiation }: SessionParts): void {
  if (status.negotiated && !negotiation.check()) {
    throw refusedState(
      `the driver had accepted ${negotiation.accepted}, of which only ${negotiation.offered} are offered here`,
    );
  }
  if (!status.negotiated && status.has(VIRTIO_CONFIG_S.DRIVER_OK)) {
    throw refusedState(`its status cannot be ${status.value}`);
  }
}

function loadQueues(parts: SessionParts, state: SessionState): void {
  const { accepted } = parts.negotiation;
  if (parts.status.negotiated) parts.queues.choose(accepted);
  else if (state.queues.some((queue) => queue.enabled)) {
    throw refusedState("a queue is enabled before FEATURES_OK");
  }
  parts.queues.rings.forEach((queue, i) => {
    if (queue.load(accepted, state.queues[i]!) < 0) {
      throw refusedState(queue.lastError);
    }
    queue.suspend();
  });
}
