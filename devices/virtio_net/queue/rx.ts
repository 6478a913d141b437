/**
 * The receive side: from the back end straight into the driver's buffers.
 *
 * @module
 */

import type { Counters } from "../../../src/core/counters.ts";
import { Errno } from "../../../src/core/errno.ts";
import type { GuestMemory } from "../../../src/memory/guest_memory.ts";
import type { ScatterGather } from "../../../src/memory/scatter_gather.ts";
import type { NetBackend } from "../../../src/backend/net/contract.ts";
import { Chain, type Virtqueue } from "../../../src/virtio/queue/queue.ts";
import { NetCounter } from "../counters.ts";
import {
  ETH_DATA_LEN,
  ETH_HLEN,
  GSO_FRAME_BYTES,
  VIRTIO_NET_HDR,
} from "../defs.ts";
import { FILTER_BYTES, type ReceiveFilter } from "../control/filter.ts";
import { HeaderKind, sanitizeHeader } from "./header.ts";
import { canSegment } from "../features.ts";
import {
  BUDGET,
  largestFrameBytes,
  type PairOptions,
  plainFrameBytes,
  SEGMENTS_MAX,
  Traffic,
} from "./pair.ts";
import { Relief } from "./relief.ts";

/** The most buffers that one frame is spread over. */
const CHAINS_MAX = 256;

/** Parts of a {@linkcode Receiver}. */
export interface ReceiverOptions extends PairOptions {
  readonly filter: ReceiveFilter;
  /** The longest that frames are kept from a driver that cannot keep up, in milliseconds; 0 for not at all. */
  readonly reliefMs: number;
}

/**
 * Fills receive buffers.
 *
 * As many chains as the largest frame can need are put into one list, which the back end fills. What a frame does not
 * need is there for the next one, with as many chains added. They are kept between calls: with segmentation offloads
 * several dozen are read from the ring for the largest frame, of which a small frame takes one. They go back to the
 * available ring when the device pauses or holds, and when guest memory changes, whose addresses they are.
 *
 * ```text
 *   idle --start--> receiving ⇄ starved (the driver has given too few buffers, or is left alone; see Relief)
 * ```
 */
export class Receiver {
  /** Frames that were given to the driver. */
  readonly traffic: Traffic = new Traffic();
  readonly #options: ReceiverOptions;
  readonly #memory: GuestMemory;
  readonly #backend: NetBackend;
  readonly #counters: Counters;
  readonly #relief: Relief;
  readonly #chains: Chain[] = [];
  /** The chains at hand, from the first byte that the back end writes on. */
  readonly #list: ScatterGather;
  /** Start of the frame at hand, behind the back end's header if it has one. */
  readonly #start: Uint8Array<ArrayBuffer>;
  /** The header for the driver: at the start of {@linkcode #start} where the back end writes one, zeros otherwise. */
  readonly #header: Uint8Array<ArrayBuffer>;
  /** Bytes of header that the back end writes before a frame. */
  readonly #backendHeaderBytes: number;
  /** Length of the largest frame that came over a wire, VLAN tag included. */
  readonly #plainMaxBytes: number;
  #queue: Virtqueue | null = null;
  #mergeable = false;
  /** Offloads that the back end may leave to the driver, a set of NetOffload. */
  #offloads = 0;
  /** The MTU that the driver has to expect. */
  #driverMtu = 0;
  /** Length of the largest frame that can come. */
  #frameMaxBytes = 0;
  /** Bytes that the driver must give for the largest frame it has to expect. */
  #neededBytes = 0;
  /** Chains at hand. */
  #held = 0;
  /** True when memory that they lie in was unmapped. */
  #lost = false;
  /** Room in the chains at hand. */
  #roomBytes = 0;
  /** Frames delivered and not yet published. */
  #unpublished = 0;
  /** The room is less than it should be: a frame that fills it may have been cut. */
  #tight = false;
  #starved = false;
  #busy = false;
  /** Rule that the driver broke. */
  #violation = "";

  constructor(options: ReceiverOptions) {
    this.#options = options;
    this.#memory = options.memory;
    this.#backend = options.backend;
    this.#counters = options.counters;
    this.#relief = new Relief({
      loop: options.loop,
      counters: options.counters,
      longestMs: options.reliefMs,
      resume: () => this.resume(),
    });
    this.#list = options.memory.createScatterGather(SEGMENTS_MAX);
    this.#backendHeaderBytes = options.backend.hasVnetHeader
      ? VIRTIO_NET_HDR.SIZE
      : 0;
    this.#start = new Uint8Array(this.#backendHeaderBytes + FILTER_BYTES);
    this.#header = options.backend.hasVnetHeader
      ? this.#start
      : new Uint8Array(VIRTIO_NET_HDR.SIZE);
    this.#plainMaxBytes = plainFrameBytes(options.mtu);
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
    this.#driverMtu = knowsMtu
      ? this.#options.mtu
      : Math.min(this.#options.mtu, ETH_DATA_LEN);
    this.#starved = false;
    this.setOffloads(0);
  }

  /** The back end leaves these offloads to the driver from now on, a set of NetOffload. */
  setOffloads(offloads: number): void {
    this.#offloads = offloads;
    this.#frameMaxBytes = largestFrameBytes(this.#options.mtu, offloads);
    const plain = ETH_HLEN + this.#driverMtu;
    this.#neededBytes = VIRTIO_NET_HDR.SIZE +
      (canSegment(offloads) ? Math.max(GSO_FRAME_BYTES, plain) : plain);
  }

  /** Forgets the queue. */
  stop(): void {
    this.#queue = null;
    this.#relief.reset();
    this.#held = 0;
  }

  /** The driver resets the queue: waits until it has added buffers to the new one. */
  resetQueue(): void {
    this.#held = 0;
    this.#relief.reset();
    if (this.#queue !== null) this.#starve();
  }

  /** The back end begins anew, and so does reception. */
  resume(): void {
    this.#starved = false;
    this.#relief.begin();
    this.#backend.setReceiving(true, this.#options.pair);
  }

  /** Takes no more frames, until {@linkcode resume}. */
  hold(): void {
    this.pause();
    this.#relief.cancel();
    if (this.#queue !== null) this.#starve();
  }

  /** Gives the chains at hand back to the available ring. */
  pause(): void {
    if (this.#queue !== null) this.#giveBack(this.#queue, 0);
  }

  /** A range of guest memory is about to be unmapped. */
  loseMemory(iova: number, lengthBytes: number): void {
    for (let i = 0; i < this.#held; i++) {
      const { readable, writable } = this.#chains[i]!;
      if (
        readable.overlaps(iova, lengthBytes) ||
        writable.overlaps(iova, lengthBytes)
      ) this.#lost = true;
    }
  }

  /** The driver has added buffers. */
  onBuffers(): void {
    const queue = this.#queue;
    if (!this.#starved || queue === null) return;
    queue.disableNotifications();
    // What was not in reach is now, and may not be when frames come.
    if (queue.awaitsReach && !this.#isReady(queue)) return;
    if (!this.#relief.rests()) this.resume();
  }

  #isReady(queue: Virtqueue): boolean {
    const ready = this.#collect(queue);
    if (ready < 0) {
      this.#giveBack(queue, 0);
      this.#options.fail(this.#violation);
    }
    return ready > 0;
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
    const pair = this.#options.pair;
    queue.disableNotifications();
    let ready = 0;
    this.#unpublished = 0;
    for (let n = 0; n < BUDGET; n++) {
      ready = this.#collect(queue);
      if (ready <= 0) break;
      const length = this.#backend.receive(this.#list, pair);
      if (length === -Errno.EAGAIN) {
        this.#relief.keptUp();
        break;
      }
      if (length < 0) this.#counters.add(NetCounter.rxErrors, 1);
      else if (this.#isWanted(length - this.#backendHeaderBytes)) {
        this.#deliver(
          queue,
          length - this.#backendHeaderBytes + VIRTIO_NET_HDR.SIZE,
        );
      }
    }
    if (ready < 0) this.#giveBack(queue, 0);
    const wanted = queue.publish();
    this.#options.notifier.published(queue, wanted, this.#unpublished);
    if (ready < 0) this.#options.fail(this.#violation);
  }

  /**
   * Takes more chains until there is room for the largest frame.
   *
   * @returns 1 when {@linkcode #list} is ready, 0 when the driver has given too little, −errno when it broke a rule
   */
  #collect(queue: Virtqueue): number {
    // One byte more than needed tells a frame that was cut from one that fits. Without merging the chain after the
    // first serves for that.
    const wantedBytes = VIRTIO_NET_HDR.SIZE + this.#frameMaxBytes + 1;
    const most = this.#mergeable ? CHAINS_MAX : 2;
    const list = this.#list;
    if (this.#lost) this.#giveBack(queue, 0);
    if (this.#held === 0) {
      list.clear();
      this.#roomBytes = 0;
      this.#lost = false;
    }
    while (this.#roomBytes < wantedBytes && this.#held < most) {
      const chain = this.#chains[this.#held] ?? this.#addChain();
      const got = queue.pop(chain);
      if (got < 0) {
        this.#violation = queue.lastError;
        return got;
      }
      if (got === 0) {
        if (this.#isEnough(queue)) break;
        // Asked while everything available is in our hands: a notification is then due for whatever is added.
        if (!queue.enableNotifications()) return this.#starveHere(queue);
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
        this.#giveBack(queue, this.#held - 1);
        break;
      }
      this.#roomBytes += chain.writable.lengthBytes;
      if (this.#held === 1) this.#skipHeader();
    }
    this.#tight = this.#roomBytes < this.#neededBytes;
    return 1;
  }

  /** A back end without headers begins with the frame. */
  #skipHeader(): void {
    this.#list.consume(VIRTIO_NET_HDR.SIZE - this.#backendHeaderBytes);
  }

  #isEnough(queue: Virtqueue): boolean {
    if (!this.#mergeable) return this.#held > 0;
    if (this.#roomBytes >= this.#neededBytes) return true;
    // A small ring may never hold the largest frame, and a driver need not fill up a ring that is half full.
    const descriptors = Math.max(this.#held, this.#list.count);
    return descriptors * 2 >= queue.size;
  }

  #starveHere(queue: Virtqueue): number {
    // The driver may have given some that are not in reach yet.
    if (!queue.awaitsReach) {
      this.#counters.add(NetCounter.rxStarved, 1);
      this.#relief.ranDry(this.traffic.packets, this.traffic.bytes);
    }
    this.#starve();
    return 0;
  }

  #starve(): void {
    this.#starved = true;
    this.#backend.setReceiving(false, this.#options.pair);
  }

  #addChain(): Chain {
    const chain = new Chain(this.#memory, this.#options.chainSegments);
    this.#chains.push(chain);
    return chain;
  }

  /** The first `used` chains are with the driver: those behind them move up. */
  #advance(used: number): void {
    const chains = this.#chains;
    let bytes = 0;
    for (let i = 0; i < used; i++) bytes += chains[i]!.writable.lengthBytes;
    const left = this.#held - used;
    for (let i = 0; i < left; i++) {
      const chain = chains[i]!;
      chains[i] = chains[i + used]!;
      chains[i + used] = chain;
    }
    this.#held = left;
    this.#roomBytes -= bytes;
    if (left === 0) return;
    // The list began behind the skipped header of the first chain.
    const skipped = VIRTIO_NET_HDR.SIZE - this.#backendHeaderBytes;
    this.#list.consume(bytes - skipped);
    this.#skipHeader();
  }

  /** Gives all but the first `kept` chains at hand back to the available ring. */
  #giveBack(queue: Virtqueue, kept: number): void {
    if (this.#held > kept) queue.unpop(this.#held - kept);
    this.#held = kept;
  }

  /** True when the frame of `length` bytes at hand is to be delivered; counts why not. */
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
    const promiscuous = filter.promiscuous;
    const headerBytes = this.#backendHeaderBytes;
    const bytes = promiscuous ? headerBytes : this.#start.length;
    if (bytes > 0) this.#memory.gather(this.#list, this.#start, bytes);
    if (headerBytes > 0 && !this.#isHeaderGood(length)) return false;
    if (promiscuous || filter.accepts(this.#start, headerBytes)) return true;
    counters.add(NetCounter.rxDroppedFilter, 1);
    return false;
  }

  /** True when the back end's header is one that the driver can take; counts why not. */
  #isHeaderGood(length: number): boolean {
    const kind = sanitizeHeader(this.#header, length, this.#offloads, true);
    if (kind === HeaderKind.GSO) return true;
    if (kind === HeaderKind.PLAIN && length <= this.#plainMaxBytes) return true;
    this.#counters.add(
      kind === HeaderKind.PLAIN
        ? NetCounter.rxDroppedOversized
        : NetCounter.rxDroppedBadHeader,
      1,
    );
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
   */
  #deliver(queue: Virtqueue, totalBytes: number): void {
    const chains = this.#chains;
    let used = 0;
    for (let left = totalBytes; left > 0; used++) {
      left -= chains[used]!.writable.lengthBytes;
    }
    this.#header[VIRTIO_NET_HDR.NUM_BUFFERS] = used & 0xff;
    this.#header[VIRTIO_NET_HDR.NUM_BUFFERS + 1] = used >>> 8;
    this.#memory.scatter(
      chains[0]!.writable,
      this.#header,
      VIRTIO_NET_HDR.SIZE,
    );
    for (let i = 0, left = totalBytes; i < used; i++) {
      const room = chains[i]!.writable.lengthBytes;
      queue.push(chains[i]!.head, Math.min(left, room));
      left -= room;
    }
    this.#advance(used);
    this.#count(totalBytes - VIRTIO_NET_HDR.SIZE);
  }

  #count(frameBytes: number): void {
    const counters = this.#counters;
    counters.add(NetCounter.rxPackets, 1);
    counters.add(NetCounter.rxBytes, frameBytes);
    if (frameBytes > this.#plainMaxBytes) {
      counters.add(NetCounter.rxGsoPackets, 1);
    }
    this.traffic.add(frameBytes);
    this.#unpublished++;
  }
}
