/**
 * The receive side: from the back end straight into the driver's buffers.
 *
 * @module
 */

import { Errno } from "../../src/errno.ts";
import type { GuestMemory } from "../../src/memory/guest_memory.ts";
import type { ScatterGather } from "../../src/memory/scatter_gather.ts";
import type { NetBackend } from "../../src/net/backend.ts";
import { Chain, type Virtqueue } from "../../src/virtio/queue.ts";
import { NetCounter, type NetCounters } from "./counters.ts";
import { ETH_DATA_LEN, ETH_HLEN, VIRTIO_NET_HDR, VLAN_HLEN } from "./defs.ts";
import { FILTER_BYTES, type ReceiveFilter } from "./filter.ts";

/** Frames that are moved before the loop gets its turn. */
const BUDGET = 64;
/** The most buffers that one frame is spread over. */
const CHAINS_MAX = 256;
/** IOV_MAX: what one readv(2) takes. */
const SEGMENTS_MAX = 1024;

/** What a {@linkcode Receiver} works with. */
export interface ReceiverOptions {
  readonly memory: GuestMemory;
  readonly backend: NetBackend;
  readonly filter: ReceiveFilter;
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
 * Fills receive buffers.
 *
 * For each frame as many chains as the largest one can need are put into one list, which the back end fills; chains
 * that turn out not to be needed go back to the available ring. Between calls no chain is held, so there is nothing
 * to give up when the driver resets.
 *
 * ```text
 *   idle --start--> receiving ⇄ starved (the driver has given too few buffers)
 * ```
 */
export class Receiver {
  readonly #options: ReceiverOptions;
  readonly #memory: GuestMemory;
  readonly #backend: NetBackend;
  readonly #counters: NetCounters;
  readonly #chains: Chain[] = [];
  /** The chains at hand, from the first byte of the header on. */
  readonly #list: ScatterGather;
  readonly #header = new Uint8Array(VIRTIO_NET_HDR.SIZE);
  /** Start of the frame at hand, behind the back end's header if it has one. */
  readonly #start: Uint8Array<ArrayBuffer>;
  /** Bytes of header that the back end writes before a frame. */
  readonly #backendHeaderBytes: number;
  /** Length of the largest frame, VLAN tag included. */
  readonly #frameMaxBytes: number;
  #queue: Virtqueue | null = null;
  /** Changes when the queue is taken away, so that a call in progress can tell. */
  #epoch = 0;
  #mergeable = false;
  /** What the driver must give for the largest frame it has to expect. */
  #neededBytes = 0;
  /** Chains at hand. */
  #held = 0;
  /** Room in the chains at hand. */
  #roomBytes = 0;
  /** The room is less than it should be: a frame that fills it may have been cut. */
  #tight = false;
  #starved = false;
  #busy = false;
  /** What the driver did wrong. */
  #violation = "";

  constructor(options: ReceiverOptions) {
    this.#options = options;
    this.#memory = options.memory;
    this.#backend = options.backend;
    this.#counters = options.counters;
    this.#list = options.memory.createScatterGather(SEGMENTS_MAX);
    this.#backendHeaderBytes = options.backend.hasVnetHeader
      ? VIRTIO_NET_HDR.SIZE
      : 0;
    this.#start = new Uint8Array(this.#backendHeaderBytes + FILTER_BYTES);
    this.#frameMaxBytes = options.mtu + ETH_HLEN + VLAN_HLEN;
  }

  /**
   * Takes a queue into service.
   *
   * @param mergeable Whether MRG_RXBUF was negotiated
   * @param knowsMtu Whether MTU was negotiated
   */
  start(queue: Virtqueue, mergeable: boolean, knowsMtu: boolean): void {
    this.#queue = queue;
    this.#mergeable = mergeable;
    // A driver MUST offer room for a packet of `mtu` bytes (5.1.4.2), or else for a standard one (5.1.6.3.1).
    const mtu = knowsMtu
      ? this.#options.mtu
      : Math.min(this.#options.mtu, ETH_DATA_LEN);
    this.#neededBytes = VIRTIO_NET_HDR.SIZE + ETH_HLEN + mtu;
    this.#starved = false;
  }

  /** Forgets the queue. */
  stop(): void {
    this.#queue = null;
    this.#epoch++;
    this.#held = 0;
  }

  /** The driver resets the queue: waits until it has added buffers to the new one. */
  resetQueue(): void {
    this.#epoch++;
    this.#held = 0;
    if (this.#queue !== null) this.#starve();
  }

  /** The back end begins anew, and so does reception. */
  resume(): void {
    this.#starved = false;
    this.#backend.setReceiving(true);
  }

  /** The driver has added buffers. */
  onBuffers(): void {
    if (!this.#starved) return;
    this.#queue?.disableNotifications();
    this.resume();
  }

  /** Frames are waiting. */
  run(): void {
    const queue = this.#queue;
    // A back end may call from inside receive().
    if (queue === null || this.#busy) return;
    if (!queue.enabled) return this.#starve();
    this.#busy = true;
    try {
      this.#runBatch(queue);
    } finally {
      this.#busy = false;
    }
  }

  #runBatch(queue: Virtqueue): void {
    const epoch = this.#epoch;
    queue.disableNotifications();
    let ready = 0;
    for (let n = 0; n < BUDGET; n++) {
      ready = this.#held > 0 ? 1 : this.#collect(queue);
      if (ready <= 0 || epoch !== this.#epoch) break;
      const length = this.#backend.receive(this.#list);
      if (epoch !== this.#epoch) break;
      if (length === -Errno.EAGAIN) break;
      if (length < 0) this.#counters.add(NetCounter.rxErrors, 1);
      else if (this.#isWanted(length - this.#backendHeaderBytes)) {
        ready = this.#deliver(
          queue,
          length - this.#backendHeaderBytes + VIRTIO_NET_HDR.SIZE,
        );
        if (ready < 0) break;
      }
    }
    // Whoever took the queue away took the chains as well.
    if (epoch !== this.#epoch) return;
    this.#release(queue, 0);
    if (queue.publish()) this.#options.interrupt(queue);
    if (ready < 0) this.#options.fail(this.#violation);
  }

  /**
   * Takes chains until there is room for the largest frame.
   *
   * @returns 1 when {@linkcode #list} is ready, 0 when the driver has given too little, −errno when it broke a rule
   */
  #collect(queue: Virtqueue): number {
    // One byte more than needed tells a frame that was cut from one that fits. Without merging the chain after the
    // first serves for that.
    const wantedBytes = VIRTIO_NET_HDR.SIZE + this.#frameMaxBytes + 1;
    const most = this.#mergeable ? CHAINS_MAX : 2;
    const list = this.#list;
    list.clear();
    while (list.lengthBytes < wantedBytes && this.#held < most) {
      const chain = this.#chains[this.#held] ?? this.#addChain();
      const got = queue.pop(chain);
      if (got < 0) {
        this.#violation = queue.lastError;
        return got;
      }
      if (got === 0) {
        if (this.#isEnough()) break;
        // Asked while everything available is in our hands: a notification is then due for whatever is added.
        if (!queue.enableNotifications()) return this.#starveWith(queue);
        queue.disableNotifications();
        continue;
      }
      this.#held++;
      if (chain.writable.lengthBytes < VIRTIO_NET_HDR.SIZE) {
        // 5.1.6.3.1: each buffer MUST have room for the header at least.
        this.#violation =
          `a receive buffer of ${chain.writable.lengthBytes} bytes has no room for the header`;
        return -Errno.EINVAL;
      }
      if (list.append(chain.writable) < 0) {
        this.#release(queue, this.#held - 1);
        break;
      }
    }
    this.#roomBytes = list.lengthBytes;
    this.#tight = this.#roomBytes < this.#neededBytes;
    list.consume(VIRTIO_NET_HDR.SIZE - this.#backendHeaderBytes);
    return 1;
  }

  #isEnough(): boolean {
    return this.#mergeable
      ? this.#list.lengthBytes >= this.#neededBytes
      : this.#held > 0;
  }

  #starveWith(queue: Virtqueue): number {
    this.#release(queue, 0);
    this.#counters.add(NetCounter.rxStarved, 1);
    this.#starve();
    return 0;
  }

  #starve(): void {
    this.#starved = true;
    this.#backend.setReceiving(false);
  }

  #addChain(): Chain {
    const chain = new Chain(this.#memory, this.#options.chainSegments);
    this.#chains.push(chain);
    return chain;
  }

  /** Gives all but the first `kept` chains at hand back to the available ring. */
  #release(queue: Virtqueue, kept: number): void {
    if (this.#held > kept) queue.unpop(this.#held - kept);
    this.#held = kept;
  }

  /** Whether the frame of `length` bytes at hand is to be delivered; counts why not. */
  #isWanted(length: number): boolean {
    const counters = this.#counters;
    if (length < ETH_HLEN) {
      counters.add(NetCounter.rxDroppedRunt, 1);
      return false;
    }
    if (length > this.#frameMaxBytes) {
      counters.add(NetCounter.rxDroppedOversized, 1);
      return false;
    }
    if (!this.#fits(length + VIRTIO_NET_HDR.SIZE)) {
      counters.add(NetCounter.rxDroppedNoRoom, 1);
      return false;
    }
    const filter = this.#options.filter;
    if (filter.promiscuous) return true;
    this.#memory.gather(this.#list, this.#start, this.#start.length);
    if (filter.accepts(this.#start, this.#backendHeaderBytes)) return true;
    counters.add(NetCounter.rxDroppedFilter, 1);
    return false;
  }

  #fits(totalBytes: number): boolean {
    if (this.#tight && totalBytes >= this.#roomBytes) return false;
    return totalBytes <=
      (this.#mergeable
        ? this.#roomBytes
        : this.#chains[0]!.writable.lengthBytes);
  }

  /**
   * Returns the chains that hold the frame to the driver, with the header, and the rest to the available ring.
   *
   * @param totalBytes Header and frame
   * @returns 1, 0 when the queue went away meanwhile, −errno
   */
  #deliver(queue: Virtqueue, totalBytes: number): number {
    const epoch = this.#epoch;
    const chains = this.#chains;
    let used = 0;
    for (let left = totalBytes; left > 0; used++) {
      left -= chains[used]!.writable.lengthBytes;
    }
    // No receive offload is negotiated, so every field but num_buffers is 0, whatever the back end wrote.
    this.#header[VIRTIO_NET_HDR.NUM_BUFFERS] = used & 0xff;
    this.#header[VIRTIO_NET_HDR.NUM_BUFFERS + 1] = used >>> 8;
    const memory = this.#memory;
    memory.scatter(chains[0]!.writable, this.#header, VIRTIO_NET_HDR.SIZE);
    for (let i = 0, left = totalBytes; i < used; i++) {
      const writable = chains[i]!.writable;
      const written = Math.min(left, writable.lengthBytes);
      if (memory.commit(writable, written) < 0) {
        this.#counters.add(NetCounter.rxErrors, 1);
        return 1;
      }
      left -= written;
    }
    if (epoch !== this.#epoch) return 0;
    for (let i = 0, left = totalBytes; i < used; i++) {
      const room = chains[i]!.writable.lengthBytes;
      queue.push(chains[i]!.head, Math.min(left, room));
      left -= room;
    }
    // The chains that were taken last were not needed.
    if (this.#held > used) queue.unpop(this.#held - used);
    this.#held = 0;
    this.#counters.add(NetCounter.rxPackets, 1);
    this.#counters.add(
      NetCounter.rxBytes,
      totalBytes - VIRTIO_NET_HDR.SIZE,
    );
    return 1;
  }
}
