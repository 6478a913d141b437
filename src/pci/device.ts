/**
 * Seam 1: what a PCI device model is, to whoever serves it.
 *
 * @module
 */

import type { DeviceState } from "../core/state_form.ts";
import type { ResourceBag } from "../os/resource_bag.ts";
import type { SharedMemory } from "../memory/shared_memory.ts";
import type { QueueThreads } from "./queue_threads.ts";

export type { SharedMemory } from "../memory/shared_memory.ts";

/** Width of a register access in bytes. Wider transfers are split, lowest address first. */
export type AccessWidth = 1 | 2 | 4;

/** A part of a BAR that clients may map: accesses to it never reach the model's readBar and writeBar. */
export interface MmapArea {
  /** Offset in the BAR; page-aligned. */
  readonly offset: number;
  /** Whole pages, from `createSharedMemory` of the context. */
  readonly memory: SharedMemory;
  /** Told after a message has written there; by a mapping nobody is told. As writeBar, it must return at once. */
  readonly onWrite?: () => void;
}

/** A register whose writes a client may replace by signalling an eventfd. */
export interface Doorbell {
  /** Offset in the BAR. */
  readonly offset: number;
  /** Width of the write that rings it; 0 for any. */
  readonly sizeBytes: 0 | 1 | 2 | 4 | 8;
  /** Value that rings it; any value without it. */
  readonly datamatch?: number;
}

/** One base address register. */
export interface BarSpec {
  /** 0–5; a 64-bit BAR also takes the next index. */
  readonly index: number;
  /** Power of two, at least 16 for memory and 4 for I/O. */
  readonly sizeBytes: number;
  /** Address space and width. */
  readonly kind: "memory32" | "memory64" | "io";
  /** True if reads have no side effects; memory only. */
  readonly prefetchable?: boolean;
  /** Parts that clients may map. */
  readonly mmap?: readonly MmapArea[];
  /** Registers that clients may replace by eventfds. */
  readonly doorbells?: readonly Doorbell[];
}

/** A vendor-specific capability (PCI Local Bus 3.0, section 6.7; id 09h). */
export interface VendorCapability {
  /** Marks the union. */
  readonly kind: "vendor";
  /** Bytes after the id, next and length bytes. */
  readonly body: Uint8Array;
  /** Bits of `body` that software may write; none without it. */
  readonly writable?: Uint8Array;
  /** Asked before bytes of the body are read; may update `bytes`, a live view of the body in configuration space. */
  readonly onRead?: (
    bytes: DataView,
    offset: number,
    lengthBytes: number,
  ) => void;
  /** Told after bytes of the body were written. */
  readonly onWrite?: (
    bytes: DataView,
    offset: number,
    lengthBytes: number,
  ) => void;
}

/** A capability of configuration space, in the order it is to be linked. */
export type CapabilitySpec =
  | { readonly kind: "pm" }
  | { readonly kind: "pcie" }
  | { readonly kind: "msi"; readonly vectors: 1 | 2 | 4 | 8 | 16 | 32 }
  | {
    readonly kind: "msix";
    /** 1–2048. */
    readonly vectors: number;
    readonly tableBar: number;
    readonly tableOffset: number;
    readonly pbaBar: number;
    readonly pbaOffset: number;
  }
  | VendorCapability;

/** The identity and shape of a PCI function, as data. */
export interface PciSpec {
  /** Vendor ID. */
  readonly vendorId: number;
  /** Device ID. */
  readonly deviceId: number;
  /** Revision ID. */
  readonly revision: number;
  /** Base class, sub-class and programming interface, 24 bits. */
  readonly classCode: number;
  /** Subsystem Vendor ID. */
  readonly subsystemVendorId: number;
  /** Subsystem ID. */
  readonly subsystemId: number;
  /** True if the function has an INTA# line. */
  readonly intx: boolean;
  /** Base address registers, in any order. */
  readonly bars: readonly BarSpec[];
  /** Capabilities, in the order of their list. */
  readonly capabilities: readonly CapabilitySpec[];
}

/**
 * Reasons to reset a device: the client asked for it, a function level reset, the soft reset of waking up from D3hot (its power
 * was never away), or the client has gone, which is how the power of a device of ours is lost.
 */
export type ResetReason =
  | "device_reset"
  | "flr"
  | "soft_reset"
  | "client_gone";

/**
 * A PCI device model.
 *
 * ```text
 *   create → running ⇄ stopped, holding → closed
 *              ↺ reset
 * ```
 * A device with {@linkcode PciDevice.hold}, `save` and `load` can be moved to another thread at run time.
 *
 * All calls come from one event loop and none may block. A register write must return at once: work it asks
 * for belongs in a bottom half, because the client may hold a lock until the write is answered.
 */
export interface PciDevice {
  /** Identity, BARs and capabilities; constant. */
  readonly spec: PciSpec;
  /**
   * Reads a register. MSI-X tables and mmap areas are served elsewhere and never asked for.
   *
   * @param offset Inside the BAR; aligned to `width`
   * @returns The value, an unsigned integer; all-ones or zero where there is no register, as the hardware would
   */
  readBar(bar: number, offset: number, width: AccessWidth): number;
  /** Writes a register; see {@linkcode PciDevice.readBar}. */
  writeBar(
    bar: number,
    offset: number,
    width: AccessWidth,
    value: number,
  ): void;
  /** A doorbell of `spec.bars` was rung through its eventfd. */
  ringDoorbell?(bar: number, doorbell: number): void;
  /** An eventfd of the device's own for a doorbell, offered to clients in place of one that rings here; if there is one. */
  doorbellEventFd?(bar: number, doorbell: number): number | undefined;
  /**
   * Back to the state after power-on; requests in flight are dropped, memory is not touched any more. A device that is
   * stopped or holds stays so.
   */
  reset(reason: ResetReason): void;
  /**
   * Stops touching guest memory and raising interrupts until {@linkcode PciDevice.start}; state is kept, registers are
   * served. When it returns nothing is in flight into guest memory.
   *
   * Called whenever the function may no longer be a bus master (once when it was just made). Without it the device finds
   * no guest memory meanwhile, is told so as of an unmapping, and its messages wait.
   */
  stop?(): void;
  /** Goes on after {@linkcode PciDevice.stop} or {@linkcode PciDevice.hold}: what the driver asked for meanwhile is done. */
  start?(): void;
  /**
   * Takes no new request of the guest; those in flight go on to their ends. Undone by {@linkcode PciDevice.start}.
   * Called again, turns of the loop later, until nothing is in flight any more.
   *
   * @returns How many requests are in flight
   */
  hold?(): number;
  /**
   * Requests in flight that a reset, {@linkcode PciDevice.stop}, or the end of a mapping would wait for, blocking. With
   * {@linkcode PciDevice.hold}, the transport lets them come to their ends before it does any of these. Absent for a device
   * that never waits.
   *
   * @param iova Guest address of memory that they use; all of it without
   * @param lengthBytes Length of that
   */
  unfinished?(iova?: number, lengthBytes?: number): number;
  /** A write of a register that does what a reset does, at least to a part of the device; see {@linkcode unfinished}. */
  endsRequests?(
    bar: number,
    offset: number,
    width: AccessWidth,
    value: number,
  ): boolean;
  /**
   * Everything that a guest could tell this device by, and where it is in its queues, but for what is in its
   * {@linkcode MmapArea}s, which its function keeps. Called after {@linkcode PciDevice.hold} has returned 0; changes nothing.
   */
  save?(): DeviceState;
  /**
   * Takes over what {@linkcode PciDevice.save} gave. Called once, on a device just made and stopped, which then holds until
   * {@linkcode PciDevice.start}; guest memory, interrupts and {@linkcode MmapArea}s are as they were.
   *
   * @throws {Error} When it is not a state of this model
   */
  load?(state: unknown): void;
  /**
   * Puts what was opened for it (descriptors, connections) into a bag, for a device of the same model elsewhere, which is
   * made with that and with what {@linkcode PciDevice.save} gave. Only close is called afterwards, and it leaves the
   * outside as it is.
   *
   * @throws {Error} When that cannot be; nothing is changed then
   */
  handOver?(bag: ResourceBag): void;
  /**
   * Has other threads serve queues, and this one the rest. Called on a device just made, or that holds with nothing in
   * flight.
   *
   * @param threads Null for none, and then what was placed before has ended when this returns
   * @throws {Error} When one of them cannot; this thread then serves every queue
   */
  place?(threads: QueueThreads | null): void;
  /** The groups of queues by number, for a device with {@linkcode PciDevice.place}: those of a group stay together. */
  queueGroups?(): readonly number[];
  /** Commands for a person at run time, such as `link down`. */
  readonly commands?: Readonly<Record<string, DeviceCommand>>;
  /** Counters by name, for metrics. */
  counters?(): Readonly<Record<string, number>>;
  /** Settings of the device, for metrics: short words by short names, such as `doorbells: "mmap"`; constant. */
  info?(): Readonly<Record<string, string>>;
  /** Releases everything; nothing is called afterwards. */
  close(): void;
}

/** Answer to a command: text for people, and plain data for programs. */
export interface CommandAnswer {
  /** Lines without a last line feed. */
  readonly text: string;
  /** Data that JSON can express. */
  readonly data: unknown;
}

/**
 * Answer to a command that takes more than a turn of the loop. It is called once, at once, with whom to tell when it is
 * there; it may throw as the command may.
 */
export type LaterAnswer = (
  tell: (outcome: string | CommandAnswer | Error) => void,
) => void;

/** A run-time command of a device. */
export interface DeviceCommand {
  /** One line for help. */
  readonly help: string;
  /**
   * Does it.
   *
   * @returns Text or data to tell; programs are given a text alone as `{ text }`
   * @throws {Error} With a message for the person
   */
  run(args: readonly string[]): string | CommandAnswer | LaterAnswer;
}
