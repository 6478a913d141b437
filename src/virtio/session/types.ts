/**
 * What a session is made with, tells and counts.
 *
 * @module
 */

import type { Features } from "../features.ts";

/** How a transport reaches the driver. */
export interface SessionSignals {
  /** Sends a used buffer notification for a queue. */
  notifyUsed(queueIndex: number): void;
  /** Sends a configuration change notification. */
  notifyConfig(): void;
  /** The device is being reset: the transport's registers are reset with it. */
  onReset(): void;
  /** Calls {@linkcode VirtioSession.setVector} for every queue. */
  tellVectors(): void;
  /** Interrupts for used buffers where that is not by vector. */
  notifyByLine(): void;
}

/** How a session behaves. */
export interface SessionOptions {
  /** Features of the transport and the rings that are offered; VERSION_1 is added. RING_FEATURES unless told. */
  readonly ringFeatures?: Features;
  /** Whether the event loop polls all the time, so that drivers need not notify. */
  readonly polled?: boolean;
}

/** How a notification came. */
export const KickPath = {
  /** By an eventfd. */
  EVENTFD: 0,
  /** By a register write in a message. */
  MESSAGE: 1,
  /** By a store to a page that the client maps. */
  PAGE: 2,
} as const;
/** One of {@linkcode KickPath}. */
export type KickPath = typeof KickPath[keyof typeof KickPath];
