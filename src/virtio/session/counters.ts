/**
 * What a session counts.
 *
 * @module
 */

import { counter, type CounterTable } from "../../core/counters.ts";
import {
  ERRORS,
  INTERRUPTS,
  KICKS,
  RESETS,
  SUPPRESSED,
} from "../../core/families.ts";

/** Counters of a session. */
export const SESSION_COUNTERS = {
  kicks: [counter(
    "device_notifications",
    "Notifications by the driver, in whatever way",
  )],
  /** Of those, by eventfd. */
  eventFdKicks: [KICKS, { path: "ioeventfd" }],
  /** Of those, by message. */
  messageKicks: [KICKS, { path: "message" }],
  /** Of those, by a store to a mapped page. */
  pageKicks: [KICKS, { path: "page" }],
  /** How often polling found new chains, without a notification. */
  polledKicks: [KICKS, { path: "poll" }],
  /** Notifications of what the device had taken already, as their data say. */
  lateKicks: [counter(
    "device_late_kicks",
    "Notifications of what had been taken already",
  )],
  /** Used buffer notifications by the device. */
  interrupts: [INTERRUPTS, { kind: "queue" }],
  /** Used buffers that the driver did not want to be notified of, in batches. */
  suppressedInterrupts: [SUPPRESSED, { reason: "unwanted" }],
  /** Configuration change notifications. */
  configInterrupts: [INTERRUPTS, { kind: "config" }],
  /** How often the driver broke a rule. */
  failures: [ERRORS, { kind: "driver" }],
  /** How often the device was reset. */
  resets: [RESETS, { kind: "device" }],
} satisfies CounterTable;

/** What a VirtioSession counts. */
export type SessionCounters = {
  -readonly [K in keyof typeof SESSION_COUNTERS]: number;
};
