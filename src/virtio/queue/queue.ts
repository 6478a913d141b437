/**
 * Virtqueues as they are to a device model: split and packed rings behind the same calls.
 *
 * @module
 */

import type { GuestMemory } from "../../memory/guest_memory.ts";
import type { ScatterGather } from "../../memory/scatter_gather.ts";

/** One descriptor chain taken from a queue; made once, reused for ever. */
export class Chain {
  /** Number of the chain, to be given back to {@linkcode Virtqueue.push}. */
  head = 0;
  /** The device-readable buffers, in order. */
  readonly readable: ScatterGather;
  /** The device-writable buffers, in order. */
  readonly writable: ScatterGather;
  /**
   * True when all of the buffers are there. Else they lie in more pieces of memory than there is room for, which no driver
   * promises to avoid, and of them no more is there than the last writable byte. Such a chain is popped only where
   * `mayLack` says so, and is a broken rule otherwise.
   */
  isWhole = true;
  /** True when its device can do without some. */
  readonly mayLack: boolean;

  /**
   * Makes room for one chain.
   *
   * @param segments The most segments of each kind, at most 1024
   * @param mayLack See {@linkcode Chain.isWhole}
   */
  constructor(
    memory: GuestMemory,
    segments: number,
    mayLack = false,
  ) {
    this.mayLack = mayLack;
    this.readable = memory.createScatterGather(segments);
    this.writable = memory.createScatterGather(segments);
  }
}

/**
 * A virtqueue as a device model uses it. It knows rings and memory, and nothing of devices, loops or interrupts.
 *
 * The service loop, which leaves no window for a lost notification:
 *
 * ```ts ignore
 * do {
 *   queue.disableNotifications();
 *   while ((got = queue.pop(chain)) > 0) {
 *     const written = serve(chain);
 *     queue.push(chain.head, written);
 *   }
 *   if (queue.publish()) transport.interrupt(queue);
 *   if (got < 0) return transport.fail(queue.lastError);
 * } while (queue.enableNotifications());
 * ```
 */
export interface Virtqueue {
  /** Number of the queue in its device. */
  readonly index: number;
  /** Entries of the ring, as the driver chose; of a packed ring any number, not only powers of two. */
  readonly size: number;
  /** True when the driver has enabled it. */
  readonly enabled: boolean;
  /**
   * True when something of the ring, or of a chain, was not in reach when it was looked at last. Nothing can be said of what is
   * available then; the device is notified again when it is.
   */
  readonly awaitsReach: boolean;
  /** Rule that the driver broke, after a negative {@linkcode pop}. */
  readonly lastError: string;
  /**
   * Takes the next available chain.
   *
   * @returns 1 with `chain` filled, 0 when there is none (or the ring is not mapped at the moment), −errno when
   * the driver broke a rule: the device must then {@linkcode VirtioTransport.fail}
   */
  pop(chain: Chain): number;
  /**
   * True when the register writes that were sent before the chain that was popped last was available have been carried
   * out; a system call for each look that found chains. When not, the device gives the chain back and looks no further:
   * it is notified again. Always so where no chain is given before they have been ({@linkcode VirtioDevice.dependsOnRegisters}).
   */
  settled(): boolean;
  /** Gives the last `count` chains that were popped, and not pushed, back to the available ring, and releases their buffers. */
  unpop(count: number): void;
  /**
   * Returns a chain to the driver; it sees it after {@linkcode publish}. Its buffers are released
   * ({@linkcode GuestMemory.release}), for which the lists of the {@linkcode Chain} must be as pop has filled them. Chains
   * may be pushed in any order: where the driver was promised another (IN_ORDER), the queue holds them back until it is
   * their turn.
   *
   * @param writtenBytes How much of the writable buffers was written, from the start
   */
  push(head: number, writtenBytes: number): void;
  /**
   * Makes pushed chains visible, all at once.
   *
   * @returns Whether the driver wants an interrupt for them
   */
  publish(): boolean;
  /**
   * Asks the driver to notify again.
   *
   * @returns Whether chains became available meanwhile, so that the device must look once more
   */
  enableNotifications(): boolean;
  /** Tells the driver that notifications are not needed for now. */
  disableNotifications(): void;
}
