/**
 * The transmit side: from the driver's buffers straight into the back end.
 *
 * @module
 */

import { Errno } from "../../src/errno.ts";
import type { BottomHalf, Loop } from "../../src/event_loop.ts";
import type { GuestMemory } from "../../src/memory/guest_memory.ts";
import type { ScatterGather } from "../../src/memory/scatter_gather.ts";
import type { NetBackend } from "../../src/net/backend.ts";
import { Chain, type Virtqueue } from "../../src/virtio/queue.ts";
import { NetCounter, type NetCounters } from "./counters.ts";
import {
  ETH_HLEN,
  VIRTIO_NET_HDR,
  VIRTIO_NET_HDR_F_NEEDS_CSUM,
  VIRTIO_NET_HDR_GSO_NONE,
  VLAN_HLEN,
} from "./defs.ts";

/** Frames that are moved before the loop gets its turn. */
const BUDGET = 64;
/** How much of the header is looked at: flags and gso_type. */
const CHECKED_BYTES = VIRTIO_NET_HDR.GSO_TYPE + 1;

/** What a {@linkcode Transmitter} works with. */
export interface TransmitterOptions {
  readonly memory: GuestMemory;
  readonly loop: Loop;
  readonly backend: NetBackend;
  readonly counters: NetCounters;
  /** Largest IP packet in bytes. */
  readonly mtu: number;
  /** The most descriptors in a chain. */
  readonly chainSegments: number;
  /** See VirtioTransport. */
  readonly interrupt: (queue: Virtqueue) => void;
  /** The driver broke a rule. */
  readonly fail: (reason: string) => void;
}

/**
 * Empties the transmit queue.
 *
 * ```text
 *   idle --start--> running ⇄ blocked (the back end takes no more; goes on at onWritable)
 * ```
 * A frame that the back end cannot take stays in the available ring, so there is nothing to give up on a reset.
 */
export class Transmitter {
  readonly #options: TransmitterOptions;
  readonly #chain: Chain;
  readonly #header = new Uint8Array(CHECKED_BYTES);
  readonly #more: BottomHalf;
  readonly #hasVnetHeader: boolean;
  /** Length of the largest frame, VLAN tag and header included. */
  readonly #maxBytes: number;
  #queue: Virtqueue | null = null;
  /** Changes when the queue is taken away, so that a call in progress can tell. */
  #epoch = 0;
  #linkUp: boolean;
  #blocked = false;
  #busy = false;

  constructor(options: TransmitterOptions, linkUp: boolean) {
    this.#options = options;
    this.#linkUp = linkUp;
    this.#chain = new Chain(options.memory, options.chainSegments);
    this.#more = options.loop.bottomHalf(() => this.run());
    this.#hasVnetHeader = options.backend.hasVnetHeader;
    this.#maxBytes = VIRTIO_NET_HDR.SIZE + ETH_HLEN + VLAN_HLEN + options.mtu;
  }

  /** Takes a queue into service. */
  start(queue: Virtqueue): void {
    this.#queue = queue;
    this.#blocked = false;
  }

  /** Forgets the queue. */
  stop(): void {
    this.#queue = null;
    this.#drop();
  }

  /** The driver resets the queue. */
  resetQueue(): void {
    this.#drop();
  }

  #drop(): void {
    this.#epoch++;
    this.#blocked = false;
    this.#more.cancel();
  }

  /** Sends frames, or throws them away while the link is down. */
  setLink(up: boolean): void {
    this.#linkUp = up;
    // Whatever waited for the back end: there is another reason to look at it now.
    if (this.#blocked) this.onWritable();
  }

  /** The back end may take frames again. */
  onWritable(): void {
    if (!this.#blocked) return;
    this.#blocked = false;
    this.#more.schedule();
  }

  /** The driver has added frames, or has not finished before. */
  run(): void {
    const queue = this.#queue;
    // A back end may call from inside send().
    if (queue === null || this.#busy || this.#blocked || !queue.enabled) return;
    this.#busy = true;
    try {
      this.#runBatch(queue);
    } finally {
      this.#busy = false;
    }
  }

  #runBatch(queue: Virtqueue): void {
    const epoch = this.#epoch;
    let left = BUDGET;
    let got = 0;
    do {
      queue.disableNotifications();
      while (left > 0 && (got = queue.pop(this.#chain)) > 0) {
        const result = this.#send(this.#chain.readable);
        if (epoch !== this.#epoch) return;
        if (result === -Errno.EAGAIN) {
          queue.unpop(1);
          this.#block();
          break;
        }
        queue.push(this.#chain.head, 0);
        left--;
      }
      if (queue.publish()) this.#options.interrupt(queue);
      if (got < 0) return this.#options.fail(queue.lastError);
      if (this.#blocked) return;
      if (left === 0) return this.#more.schedule();
    } while (queue.enableNotifications());
  }

  #block(): void {
    this.#blocked = true;
    this.#options.counters.add(NetCounter.txBlocked, 1);
  }

  /** @returns −EAGAIN when the frame is to be tried again; otherwise it is done with */
  #send(list: ScatterGather): number {
    const counters = this.#options.counters;
    const reason = this.#reasonToDrop(list);
    if (reason >= 0) {
      counters.add(reason, 1);
      return 0;
    }
    const frameBytes = list.lengthBytes - VIRTIO_NET_HDR.SIZE;
    if (!this.#hasVnetHeader) list.consume(VIRTIO_NET_HDR.SIZE);
    const result = this.#options.backend.send(list);
    if (result === -Errno.EAGAIN) return result;
    if (result < 0) {
      counters.add(NetCounter.txErrors, 1);
      return 0;
    }
    counters.add(NetCounter.txPackets, 1);
    counters.add(NetCounter.txBytes, frameBytes);
    return 0;
  }

  /** @returns A {@linkcode NetCounter}, or −1 for a frame that is to be sent */
  #reasonToDrop(list: ScatterGather): number {
    if (list.lengthBytes < VIRTIO_NET_HDR.SIZE + ETH_HLEN) {
      return NetCounter.txDroppedShort;
    }
    if (list.lengthBytes > this.#maxBytes) {
      return NetCounter.txDroppedOversized;
    }
    if (!this.#linkUp) return NetCounter.txDroppedLinkDown;
    this.#options.memory.gather(list, this.#header, CHECKED_BYTES);
    // No transmit offload is negotiated; other flag bits are to be ignored (5.1.6.2.2).
    const asksForOffload = (this.#header[VIRTIO_NET_HDR.FLAGS]! &
          VIRTIO_NET_HDR_F_NEEDS_CSUM) !== 0 ||
      this.#header[VIRTIO_NET_HDR.GSO_TYPE] !== VIRTIO_NET_HDR_GSO_NONE;
    return asksForOffload ? NetCounter.txDroppedBadHeader : -1;
  }
}
