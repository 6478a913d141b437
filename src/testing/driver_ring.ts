/**
 * Virtqueue of any format, as a driver uses it.
 *
 * @module
 */

/** A virtqueue from the driver's side; see {@linkcode Vring} for how it is used. */
export interface DriverRing {
  /** Entries. */
  readonly size: number;
  /** Address of the descriptor area. */
  readonly descIova: number;
  /** Address of the driver area. */
  readonly availIova: number;
  /** Address of the device area. */
  readonly usedIova: number;
  /** The chain that {@linkcode DriverRing.take} took. */
  readonly usedHead: number;
  /** Number of bytes the device says it wrote to it. */
  readonly usedLength: number;
  /** Descriptors of the ring that are free. */
  readonly free: number;
  /** Chains that were published and not taken back. */
  readonly inFlight: number;
  /** Word that a notification carries for this queue with NOTIFICATION_DATA: `next_off` and `next_wrap`, 16 bits. */
  readonly notifyData: number;
  /** True if the device has used a chain that was not taken yet. */
  readonly hasUsed: boolean;
  /** Begins a chain of exactly so many buffers; whether there is room. */
  begin(descriptors: number): boolean;
  /** Adds a buffer that the device reads. */
  readable(iova: number, lengthBytes: number): void;
  /** Adds a buffer that the device writes. */
  writable(iova: number, lengthBytes: number): void;
  /** Ends a chain, which the device sees after {@linkcode DriverRing.publish}; returns what it comes back by. */
  end(): number;
  /** Shows the device everything that was ended; whether it wants a notification. */
  publish(): boolean;
  /** Takes the next used chain, if there is one. */
  take(): boolean;
  /** Asks for an interrupt with the next used chain; whether one was used meanwhile. */
  enableInterrupts(): boolean;
  /** Asks for no interrupts; the device may send some all the same. */
  disableInterrupts(): void;
  /** Forgets everything in flight and clears the rings, as after a reset of the queue. */
  reset(): void;
  /** Gives the memory of the rings back. */
  close(): void;
}
