/**
 * The state of a virtio device that no transport and no device type has a say in, as plain data.
 *
 * @module
 */

import { parseRingState, type RingState } from "../queue/ring_state.ts";
import { StateReader } from "../../core/state_reader.ts";

/** What {@linkcode SessionState} looks like today. */
export const SESSION_STATE_VERSION = 1;

/** See {@linkcode VirtioSession.save}. */
export interface SessionState {
  readonly version: typeof SESSION_STATE_VERSION;
  /** The device status as the driver reads it; whether the device halted follows from it. */
  readonly status: number;
  /** The bits the driver has accepted, 0–31 and 32–63. */
  readonly accepted: readonly number[];
  /** Whether it accepted one above 63. */
  readonly acceptedBeyond: boolean;
  /** The configuration generation as the driver last read it. */
  readonly configGeneration: number;
  /** Whether the configuration changed since it was last read. */
  readonly configDirty: boolean;
  /** Numbers of the queues whose drivers are owed a used buffer notification. */
  readonly owedInterrupts: readonly number[];
  /** Whether a configuration change notification is owed. */
  readonly owesConfigInterrupt: boolean;
  /** By number. */
  readonly queues: readonly RingState[];
  /** What the device model said of itself. */
  readonly device: unknown;
}

const WHAT = "the virtio device";
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
  const state = new StateReader(value, WHAT);
  state.version(SESSION_STATE_VERSION);
  return {
    version: SESSION_STATE_VERSION,
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
    device: state.value("device"),
  };
}

/** The error for a state that is none of this device. */
export function refusedState(reason: string): Error {
  return new StateReader({}, WHAT).refused(reason);
}
