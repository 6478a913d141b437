/**
 * The order of register writes and what a driver does behind them.
 *
 * A driver that writes a register does not wait for the device, and may at once put something into memory for the device
 * to find: PCI delivers the write first (PCI Local Bus 3.0, section 3.2.5: posted writes stay in order, and what a device
 * reads of memory was written behind those that it has got). Here a register write waits in a socket while memory is seen
 * at once, so whoever finds something there asks first.
 *
 * The question costs a system call. It is left out where the answer does not matter: for queues whose service depends on
 * no register but those that a driver reads back, or waits for, before it goes on. Of the transport of virtio that is all:
 * - `device_status`, `queue_enable`: until they are seen the ring is not looked at, and then it is (4.1.4.3)
 * - a reset of the device or of a queue, `queue_msix_vector`, `config_msix_vector`: to be read back (2.4.2, 2.6.1.2,
 *   4.1.5.1.2.2), as is a mask in the MSI-X table by whoever relies on it
 * - features, sizes, addresses: belong to a queue that is not enabled yet
 * Of NVM Express: CC is followed by waiting for CSTS; INTMS and INTMC are not to be used with MSI-X, and mean nothing to a
 * queue without interrupts; a doorbell moves its own queue only. Everything else is a matter of the device model, and taken
 * to matter unless it says that it does not.
 *
 * @module
 */

/** Register writes that a client has sent. */
export interface PostedWrites {
  /** A place behind everything that was sent before this call. */
  mark(): number;
  /** True if everything before a mark has been carried out. */
  reached(mark: number): boolean;
}

/** Keeps what was found in memory until the register writes before it have been carried out. */
export class WriteOrder {
  readonly #posted: PostedWrites;
  readonly #again: () => void;
  #mark = 0;
  #waiting = false;

  /**
   * Makes the gate of one thing that is looked at.
   *
   * @param again Something that was found has to wait: makes whoever asks ask again, in a later bottom half
   */
  constructor(posted: PostedWrites, again: () => void) {
    this.#posted = posted;
    this.#again = again;
  }

  /** True if what {@linkcode WriteOrder.admit} was asked about last has to wait. */
  get waiting(): boolean {
    return this.#waiting;
  }

  /**
   * Something was found. While it has to wait the question is about the same thing, whatever was found since.
   *
   * @returns Whether it may be acted on
   */
  admit(): boolean {
    if (!this.#waiting) this.#mark = this.#posted.mark();
    this.#waiting = !this.#posted.reached(this.#mark);
    if (this.#waiting) this.#again();
    return !this.#waiting;
  }

  /** Drops what waits. */
  forget(): void {
    this.#waiting = false;
  }
}
