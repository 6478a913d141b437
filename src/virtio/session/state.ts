/**
 * The state of a virtio device that no transport and no device type has a say in, as plain data.
 *
 * @module
 */

import { parseRingState, type RingState } from "../queue/ring_state.ts";
import { type DeviceState, StateForm } from "../../core/state_form.ts";
import { StateReader } from "../../core/state_reader.ts";

/** See {@linkcode VirtioSession.save}. */
export interface SessionState {
  /** The device status as the driver reads it; whether the device halted follows from it. */
  readonly status: number;
  /** The bits the driver has accepted, 0–31 and 32–63. */
  readonly accepted: readonly number[];
  /** True when it accepted one above 63. */
  readonly acceptedBeyond: boolean;
  /** The configuration generation as the driver last read it. */
  readonly configGeneration: number;
  /** True when the configuration changed since it was last read. */
  readonly configDirty: boolean;
  /** Numbers of the queues whose drivers are owed a used buffer notification. */
  readonly owedInterrupts: readonly number[];
  /** True when a configuration change notification is owed. */
  readonly owesConfigInterrupt: boolean;
  /** By number. */
  readonly queues: readonly RingState[];
  /** State of the device model. */
  readonly device: DeviceState;
}

const WHAT = "the virtio device";

/** Form of the state of a virtio device, on whatever transport. */
export const SESSION_FORM: StateForm<SessionState> = new StateForm(
  "virtio",
  WHAT,
);

const U8_MAX = 0xff;
const U32_MAX = 0xffff_ffff;

/**
 * Parses saved state.
 *
 * @param queues How many queues the device has
 * @throws {ErrnoError} EINVAL when it is none of such a device
 */
export function parseSessionState(
  value: unknown,
  queues: number,
): SessionState {
  const state = SESSION_FORM.read(value);
  return {
    status: state.integer("status", U8_MAX),
    accepted: state.integers("accepted", U32_MAX, 2),
    acceptedBeyond: state.flag("acceptedBeyond"),
    configGeneration: state.integer("configGeneration", U8_MAX),
    configDirty: state.flag("configDirty"),
    owedInterrupts: state.integers("owedInterrupts", queues - 1),
    owesConfigInterrupt: state.flag("owesConfigInterrupt"),
    queues: state.list("queues", queues).map((queue, i) =>
      parseRingState(queue, `queue ${i}`)
    ),
    device: state.value("device") as DeviceState,
  };
}

/** The error for a state that is none of this device. */
export function refusedState(reason: string): Error {
  return new StateReader({}, WHAT).refused(reason);
}
