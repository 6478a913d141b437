/**
 * What every kind of virtqueue offers to the transport, beside what device models see of it.
 *
 * @module
 */

import type { Features } from "./features.ts";
import type { Virtqueue } from "./queue.ts";

/** Where a driver has put a queue. */
export interface QueueAddresses {
  /** Entries of the ring. */
  readonly size: number;
  /** Address of the descriptor area: the descriptor table, or the descriptor ring of a packed queue. */
  readonly descIova: number;
  /** Address of the driver area: the available ring, or the driver's event suppression. */
  readonly availIova: number;
  /** Address of the device area: the used ring, or the device's event suppression. */
  readonly usedIova: number;
}

/**
 * A virtqueue as its transport uses it.
 *
 * ```text
 *   disabled --enable--> enabled ⇄ suspended
 *      ↑                    |          |
 *      └───── disable ──────┴──────────┘
 * ```
 * While it is suspended, or its ring is not mapped, {@linkcode Virtqueue.pop} finds nothing and what is pushed is
 * kept until the ring can be reached again.
 */
export interface Ring extends Virtqueue {
  /** The largest size the device offers. */
  readonly maxSize: number;
  /** How many chains the device has popped and not pushed. */
  readonly inFlight: number;
  /** Whether the ring was found in memory, and nothing has been unmapped since. */
  readonly resolved: boolean;
  /**
   * Starts the queue from its beginning. The ring is not touched yet: a driver may zero it after it has enabled the
   * queue (SPDK does), and may map it later.
   *
   * @param features The negotiated features
   * @returns 0, or −EINVAL when the driver broke a rule ({@linkcode Virtqueue.lastError}); the queue is then disabled
   */
  enable(features: Features, addresses: QueueAddresses): number;
  /** Forgets the ring and what is in flight; until it is enabled again pop finds nothing and push does nothing. */
  disable(): void;
  /** Stops touching the ring, until {@linkcode Ring.resume}; nothing is lost. */
  suspend(): void;
  /** Touches the ring again. */
  resume(): void;
  /**
   * Whether the driver has made something available since anything here last looked: for polling handlers, which
   * must tell new chains from those a device has left in the ring.
   */
  poll(): boolean;
  /** The queue is polled from here on: the driver is not asked to notify any more. */
  beginPolling(): void;
  /**
   * The queue is not polled any more: the driver is asked to notify, if the device wants that.
   *
   * @returns Whether it has made something available since anything here last looked
   */
  endPolling(): boolean;
  /**
   * Whether everything before a position was popped already.
   *
   * @param next What a driver notification says with NOTIFICATION_DATA: `next_off` in bits 0–14, `next_wrap` in
   * bit 15 (virtio 1.3, section 2.9)
   */
  hasTaken(next: number): boolean;
}
