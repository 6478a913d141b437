/**
 * What every kind of virtqueue offers to the transport, beside what device models see of it.
 *
 * @module
 */

import type { WriteOrder } from "../../pci/posted_writes.ts";
import type { Features } from "../features.ts";
import type { Virtqueue } from "./queue.ts";
import type { RingState } from "./ring_state.ts";

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
 * kept until the ring can be reached again. While it is held, in any state, pop finds nothing either, but what is
 * pushed goes to the driver.
 */
export interface Ring extends Virtqueue {
  /** The largest size the device offers. */
  readonly maxSize: number;
  /** How many chains the device has popped and not pushed. */
  readonly inFlight: number;
  /**
   * How many chains the driver has not got back: those in flight, and those that are pushed but not published, wait for
   * others (IN_ORDER), or could not be published because the ring was out of reach.
   */
  readonly outstanding: number;
  /** How many batches were published of which the driver did not want to hear; whoever adds them up sets it to 0. */
  suppressed: number;
  /** Whether the ring was found in memory, and nothing of the kind has been unmapped since. */
  readonly resolved: boolean;
  /** Whether something was published of which it is not known whether the driver wants an interrupt: publish again. */
  readonly undecided: boolean;
  /** Which part of the ring is not mapped, for messages; null while all are, or the ring is not to be touched. */
  missing(): string | null;
  /**
   * Starts the queue from its beginning. The ring is not touched yet: a driver may zero it after it has enabled the
   * queue (SPDK does).
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
   * Finds nothing new until {@linkcode Ring.release}, neither to pop nor to be asked for; disabling and enabling the queue
   * does not change that.
   */
  hold(): void;
  /**
   * Finds what waits again. Whoever held the queue must look at it: nobody was told of what came meanwhile, and the
   * driver may not have been asked to tell.
   */
  release(): void;
  /**
   * How {@linkcode Virtqueue.settled} is known; null, as at first, for a queue of which it is always so. Disabling the queue
   * does not change that.
   *
   * @param everyChain Whether pop finds only chains that are settled
   */
  keepOrder(order: WriteOrder | null, everyChain: boolean): void;
  /**
   * Where the queue is and how far it has come, everything that a driver could tell it by; the ring itself is the
   * guest's. Good for going on only when {@linkcode Ring.outstanding} is 0: no chain is in it.
   */
  save(): RingState;
  /**
   * Goes on where {@linkcode Ring.save} was called, as {@linkcode Ring.enable} begins: after the same checks, and without
   * touching the ring yet. No chain is taken twice, and no used entry written twice.
   *
   * @param features The features that were negotiated
   * @returns 0, or −EINVAL when the state cannot be one of this queue ({@linkcode Virtqueue.lastError}); the queue is then
   * disabled
   */
  load(features: Features, state: RingState): number;
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
