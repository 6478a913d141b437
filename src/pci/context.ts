/**
 * Context of a device model: everything it is handed, so that it needs no import of the system or the transport.
 *
 * @module
 */

import type { Log } from "../core/log.ts";
import type { Loop } from "../loop/event_loop.ts";
import type { GuestMemory } from "../memory/guest_memory.ts";
import type { SharedMemory } from "../memory/shared_memory.ts";
import type { PostedWrites } from "./posted_writes.ts";

/** Interrupts of a model. */
export interface Interrupts {
  /** Kind that the driver has enabled in configuration space. */
  readonly mode: "intx" | "msi" | "msix";
  /** Sends the message of an MSI or MSI-X vector; a masked vector stays pending. */
  raise(vector: number): void;
  /** Drives the INTA# line: level, not edge. */
  setLevel(asserted: boolean): void;
}

/** Everything a model is handed. */
export interface DeviceContext {
  /** Guest memory. */
  readonly memory: GuestMemory;
  /** Interrupts towards the guest. */
  readonly interrupts: Interrupts;
  /** The event loop the device lives on, with the only clock to use. */
  readonly loop: Loop;
  /** For a model that looks for work in memory: what comes before it. Queues of a VirtioDevice see to it themselves. */
  readonly posted: PostedWrites;
  /** Messages for people. */
  readonly log: Log;
  /** Cryptographically random bytes, for addresses and serial numbers. */
  random(lengthBytes: number): Uint8Array;
  /**
   * Tells what becomes of the start, once: true when clients may come, false when the device, another one or a socket
   * could not be had. For what a model makes outside this process, which a start that fails is to leave no trace of.
   */
  onStart(tell: (started: boolean) => void): void;
  /** Memory for {@linkcode MmapArea}; whole pages. */
  createSharedMemory(name: string, lengthBytes: number): SharedMemory;
}
