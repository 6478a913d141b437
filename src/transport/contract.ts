/**
 * The seam between a device and how clients reach it.
 *
 * @module
 */

import type { Log } from "../core/log.ts";
import type { EventLoop } from "../loop/event_loop.ts";
import type { ResourceBag, Saved } from "../os/mod.ts";
import type { DmaMemory } from "../memory/dma_memory.ts";
import type { DeviceState } from "../core/state_form.ts";
import type { ModelContext, SavedDevice } from "../../devices/model.ts";
import type { DeviceContext } from "../pci/context.ts";
import type { PciDevice } from "../pci/device.ts";
import type { PciInterrupts } from "../pci/interrupts.ts";
import type { SocketWrites } from "../pci/socket_writes.ts";
import type { VirtioDevice } from "../virtio/device.ts";

/**
 * Time a client may take until it and the server have agreed on a version, in milliseconds, unless told: nobody else can
 * use the device meanwhile.
 */
export const HELLO_TIMEOUT_MS = 5000;

/** Parts that a transport works with. */
export interface TransportOptions {
  /** The loop that the device lives on. */
  readonly loop: EventLoop;
  readonly log: Log;
  /** A listening UNIX stream socket; stays the caller's. */
  readonly listener: number;
  /** Guest memory, which clients fill. */
  readonly memory: DmaMemory;
  /** The device's model, for messages. */
  readonly model: string;
  /** See {@linkcode HELLO_TIMEOUT_MS}. */
  readonly helloTimeoutMs: number;
  /** A client has come; or gone, for a reason that is told in words for people. */
  readonly onClient: (pid: number, reason?: string) => void;
  /** The device has asked for all memory that clients may map, and none of it is offered yet. */
  readonly onMemory: () => void;
  /** State of {@linkcode Transport.save} and resources of {@linkcode Transport.handOver}, to go on from there. */
  readonly saved?: Saved<DeviceState>;
}

/**
 * Offers one device to clients, one at a time.
 *
 * ```text
 *   made --attach--> attached --start--> serving ⇄ held --save, handOver--> closed here
 *                        └──────────────────┴───────┴──close──▶ closed
 * ```
 */
export interface Transport {
  /** State that the model goes on from; undefined without a predecessor. */
  readonly savedDevice: SavedDevice | undefined;
  /** Part of a model's context. */
  readonly context: Pick<ModelContext, "interrupts" | "posted" | "virtio">;
  /** Interrupts of the device, for other threads. */
  readonly interrupts: PciInterrupts;
  /** Writes of the client, for other threads. */
  readonly writes: SocketWrites;
  /**
   * Puts the device behind it. Called once, before anything else; the device is the transport's from here on.
   *
   * @param context What its model was handed
   * @throws {Error} When the device is none, or cannot be offered so, or goes on with another's state in vain
   */
  attach(device: VirtioDevice | PciDevice, context: DeviceContext): void;
  /** Begins to take clients, or goes on with the one that was there. */
  start(): void;
  /** The device, as whoever runs it knows it. */
  readonly device: Pick<
    PciDevice,
    | "commands"
    | "counters"
    | "info"
    | "place"
    | "queueGroups"
    | "hold"
    | "save"
    | "load"
  >;
  /** The client's process; null without a client. */
  readonly clientPid: number | null;
  /** Counts over all clients. */
  counters(): Readonly<Record<string, number>>;
  /**
   * Has the device take no new requests; to be called again, turns of the loop later, until nothing is in flight.
   * Registers go on being served.
   *
   * @returns How many requests are in flight
   */
  hold(): number;
  /** The device goes on after {@linkcode Transport.hold}. */
  release(): void;
  /**
   * Device and client as a transport elsewhere goes on with them, between two turns of the loop; the client's descriptors
   * go into a bag. Changes nothing.
   *
   * @throws {Error} When requests are in flight
   */
  save(bag: ResourceBag): DeviceState;
  /**
   * Puts what the device has open into a bag, and closes what is here without anybody outside noticing. Follows
   * {@linkcode Transport.save}, or a start with another's state that failed: that is then as it was.
   *
   * @throws {Error} When the device cannot; it goes on as before
   */
  handOver(bag: ResourceBag): void;
  /** Drops the client and closes the device. */
  close(): void;
}

/** A way to reach devices. */
export interface TransportKind {
  /** Makes one for a device. */
  open(options: TransportOptions): Transport;
}

/** A way to reach devices, as people are told of it: apart from the way itself, which has much more to load. */
export interface TransportDescription {
  /** The argument by which QEMU reaches a device, ready for a shell. @param path Of its socket */
  qemuArgument(path: string): string;
  /**
   * Lines for people: how a client reaches devices.
   *
   * @param paths Of their sockets
   */
  describe(paths: readonly string[]): readonly string[];
}
