/**
 * The contract between a network card and what it is plugged into.
 *
 * Frames are Ethernet frames without preamble and FCS. Data moves between guest memory and the back end by the
 * kernel or by C, never byte by byte in JavaScript.
 *
 * @module
 */

import type { Loop } from "../event_loop.ts";
import type { Log } from "../log.ts";
import type { GuestMemory } from "../memory/guest_memory.ts";
import type { ScatterGather } from "../memory/scatter_gather.ts";

/** What a back end calls on its card; on the card's event loop. */
export interface NetPeer {
  /** Frames are waiting: call {@linkcode NetBackend.receive} until it has no more. */
  onReadable(): void;
  /** {@linkcode NetBackend.send} refused with −EAGAIN before and may succeed now. */
  onWritable(): void;
}

/** What a back end is opened with. */
export interface NetContext {
  readonly loop: Loop;
  readonly log: Log;
  /** Whose segments the scatter-gather lists hold (for back ends that must look at bytes). */
  readonly memory: GuestMemory;
  /** Largest IP packet the card is configured for, in bytes. */
  readonly mtu: number;
  /** The card's address, 6 bytes. */
  readonly mac: Uint8Array;
}

/**
 * A host-side network.
 *
 * ```text
 *   open → idle --start--> running --stop--> idle … → closed
 * ```
 * A card transmits with {@linkcode send} and receives with {@linkcode receive}. It is level-triggered: `onReadable` is called
 * again while frames wait, unless the card pauses reception because the driver gave it no buffers.
 */
export interface NetBackend {
  /** For people, such as `tap tap0`. */
  readonly description: string;
  /**
   * Whether each frame travels behind a 12-byte virtio-net header (struct virtio_net_hdr_v1) of its own: the kernel
   * does that on a TAP. Otherwise the card strips and adds it.
   */
  readonly hasVnetHeader: boolean;
  /** Begins to call `peer`. */
  start(peer: NetPeer): void;
  /** Calls nothing any more; waiting frames are dropped. */
  stop(): void;
  /**
   * Sends one frame (behind its header, if {@linkcode hasVnetHeader}). The list may be consumed.
   *
   * @returns ≥ 0 when the frame was taken (or dropped for good), −EAGAIN when it must be tried again after `onWritable`,
   * another −errno when it was dropped by an error
   */
  send(frame: ScatterGather): number;
  /**
   * Receives one frame into the list, which has room for the largest one wherever the driver gave that much. The list
   * is left as it is: not consumed, not truncated.
   *
   * @returns Length in bytes including the header, if any (more than the list has room for, when the frame was cut and the
   * back end knows its true length); −EAGAIN when there is none; another −errno when a frame was lost
   */
  receive(into: ScatterGather): number;
  /** Pauses or resumes `onReadable`. */
  setReceiving(on: boolean): void;
  /** Counters by name, for metrics. */
  counters?(): Readonly<Record<string, number>>;
  /** Releases everything. */
  close(): void;
}
