/**
 * The contract between a network card and what it is plugged into.
 *
 * Frames are Ethernet frames without preamble and FCS. Data moves between guest memory and the back end by the
 * kernel or by C, never byte by byte in JavaScript.
 *
 * @module
 */

import type { Loop } from "../../loop/event_loop.ts";
import type { Log } from "../../core/log.ts";
import type { DeviceState } from "../../core/state_form.ts";
import type { ResourceBag } from "../../os/resource_bag.ts";
import type { GuestMemory } from "../../memory/guest_memory.ts";
import type { ScatterGather } from "../../memory/scatter_gather.ts";

/** The most queue pairs a card can have. */
export const QUEUE_PAIRS_MAX = 8;

/** Work on frames that one side leaves to the other; bits of a set, valued as the kernel's TUN_F_*. */
export const NetOffload = {
  /** The checksum behind the header's `csum_start` is to be completed. */
  CSUM: 0x01,
  /** TCP over IPv4 is to be cut into segments. */
  TSO4: 0x02,
  /** TCP over IPv6 is to be cut into segments. */
  TSO6: 0x04,
  /** Segments to be cut may carry ECN's CWR. */
  ECN: 0x08,
  /** UDP is to be cut into IP fragments. */
  UFO: 0x10,
  /** UDP over IPv4 is to be cut into datagrams. */
  USO4: 0x20,
  /** UDP over IPv6 is to be cut into datagrams. */
  USO6: 0x40,
} as const;

/** Abilities of a back end with virtio-net headers as to offloads; sets of {@linkcode NetOffload}. */
export interface NetOffloads {
  /** Those that {@linkcode NetBackend.send} takes. */
  readonly take: number;
  /** Those that {@linkcode NetBackend.receive} can give, once {@linkcode NetBackend.setOffloads} asks for it. */
  readonly give: number;
}

/** A card as its back end calls it, on the card's event loop. */
export interface NetPeer {
  /**
   * Frames are waiting: call {@linkcode NetBackend.receive} until it has no more.
   *
   * @param pair Queue pair that they are for; 0 when left out
   */
  onReadable(pair?: number): void;
  /**
   * {@linkcode NetBackend.send} refused with −EAGAIN before and may succeed now.
   *
   * @param pair Queue pair that may go on; 0 when left out
   */
  onWritable(pair?: number): void;
  /** {@linkcode NetBackend.linkUp} has changed. */
  onLinkChange?(): void;
}

/** Surroundings that a back end is opened in. */
export interface NetContext {
  readonly loop: Loop;
  readonly log: Log;
  /** Memory whose segments the scatter-gather lists hold (for back ends that must look at bytes). */
  readonly memory: GuestMemory;
  /** Largest IP packet the card is configured for, in bytes. */
  readonly mtu: number;
  /** The card's address, 6 bytes. */
  readonly mac: Uint8Array;
  /** Count of queue pairs of the card, up to {@linkcode QUEUE_PAIRS_MAX}; 1 when absent. */
  readonly queuePairs?: number;
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
   * True when each frame travels behind a 12-byte virtio-net header (struct virtio_net_hdr_v1) of its own: the kernel
   * does that on a TAP. Otherwise the card strips and adds it.
   */
  readonly hasVnetHeader: boolean;
  /**
   * True when there is something at the other end: its peer is there, its interface was not deleted. Always when absent.
   * The back end takes frames all the same.
   */
  readonly linkUp?: boolean;
  /** Offloads by way of those headers; none when absent. */
  readonly offloads?: NetOffloads;
  /**
   * Count of its queue pairs, each with frames of its own; 1 when absent. Frames of one flow are given on the pair
   * that last sent frames of that flow (virtio 1.3, section 5.1.6.5.6).
   */
  readonly queuePairs?: number;
  /**
   * Chooses what {@linkcode receive} may give from now on; nothing until it is called. Frames that wait already are as
   * they are.
   *
   * @param give A subset of {@linkcode NetOffloads.give}; nothing without CSUM
   * @returns 0 or −errno
   */
  setOffloads?(give: number): number;
  /**
   * Chooses how many pairs receive from now on; the first only until it is called. {@linkcode send} takes frames of all
   * pairs all the time.
   *
   * @param count 1 to {@linkcode queuePairs}
   * @returns 0 or −errno
   */
  setQueuePairs?(count: number): number;
  /** For one that {@linkcode NetBackend.share} made: so many pairs receive from now on. */
  follow?(count: number): void;
  /** Begins to call `peer`. */
  start(peer: NetPeer): void;
  /** Calls nothing any more; waiting frames are dropped. */
  stop(): void;
  /**
   * Sends one frame (behind its header, if {@linkcode hasVnetHeader}). The list may be consumed.
   *
   * @param pair Queue pair that it comes from; 0 when left out
   * @param more The caller calls {@linkcode flush} before anything else happens to this back end, to the frame's
   * buffers or to guest memory: until then they are as they are, and the frame may wait for others to go with it
   * @returns ≥ 0 when the frame was taken (or dropped for good), −EAGAIN when it must be tried again after `onWritable`,
   * another −errno when it was dropped by an error
   */
  send(frame: ScatterGather, pair?: number, more?: boolean): number;
  /**
   * Frames that {@linkcode send} took with `more`, of whichever pair, are on their way when it returns, in order, or
   * dropped. Nothing waits when it is absent.
   *
   * @returns Count of those that were dropped by an error
   */
  flush?(): number;
  /**
   * Receives one frame into the list, which has room for the largest one wherever the driver gave that much. The list
   * is left as it is: not consumed, not truncated.
   *
   * @param pair Queue pair to take from; 0 when left out
   * @returns Length in bytes including the header, if any (more than the list has room for, when the frame was cut and the
   * back end knows its true length); −EAGAIN when there is none; another −errno when a frame was lost
   */
  receive(into: ScatterGather, pair?: number): number;
  /**
   * Pauses or resumes `onReadable`.
   *
   * @param pair Queue pair that is meant; 0 when left out
   */
  setReceiving(on: boolean, pair?: number): void;
  /** Counters by name, for metrics. */
  counters?(): Readonly<Record<string, number>>;
  /**
   * State for a back end of the same kind that goes on, with the frames that wait here. Called whether it
   * is started or not; changes nothing. Absent for one that cannot go on elsewhere.
   *
   * The successor of one that was started drops nothing at its first start: what waits, and what comes until then, is
   * kept (a stop drops it, as ever). The count of pairs is as it was, and so are offloads and counters.
   */
  save?(): DeviceState;
  /**
   * Puts what it has opened into a bag, for a back end that is opened with that and with what {@linkcode save} gave. Only
   * close is called afterwards, at once, and it leaves the outside as it is. Absent where nothing was opened.
   *
   * @throws {import("../../os/mod.ts").SyscallError}
   */
  handOver?(bag: ResourceBag): void;
  /**
   * As the last two, for a back end on another thread that serves some of its pairs, beside this one, which does not serve
   * them any more and goes on to choose for all.
   *
   * @throws {import("../../os/mod.ts").SyscallError}
   */
  share?(pairs: readonly number[], bag: ResourceBag): unknown;
  /** Serves all pairs itself again: what was shared has ended. */
  reclaim?(): void;
  /** Releases everything. */
  close(): void;
}
