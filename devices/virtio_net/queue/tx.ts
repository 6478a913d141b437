/**
 * The transmit side: from the driver's buffers straight into the back end.
 *
 * @module
 */

import { Errno } from "../../../src/core/errno.ts";
import type { BottomHalf, Timer } from "../../../src/loop/event_loop.ts";
import type { GuestMemory } from "../../../src/memory/guest_memory.ts";
import { ScatterGather } from "../../../src/memory/scatter_gather.ts";
import { Chain, type Virtqueue } from "../../../src/virtio/queue/queue.ts";
import { NetCounter } from "../counters.ts";
import { ETH_HLEN, VIRTIO_NET_HDR } from "../defs.ts";
import { HeaderKind, sanitizeHeader } from "./header.ts";
import {
  BUDGET,
  largestFrameBytes,
  type PairOptions,
  plainFrameBytes,
  SEGMENTS_MAX,
  Traffic,
} from "./pair.ts";

/** So many frames at a time are a rush: more will come. */
const RUSH_FRAMES = 2;

/** Parts of a {@linkcode Transmitter}. */
export interface TransmitterOptions extends PairOptions {
  /** Time that the queue is left alone in a rush, in milliseconds; 0 for not at all. */
  readonly delayMs: number;
}

/**
 * Empties the transmit queue.
 *
 * ```text
 *   idle --start--> running ⇄ blocked (the back end takes no more; goes on at onWritable)
 * ```
 * In a rush of frames the driver is not asked to notify: the queue is looked at again after a while, until that finds it
 * quiet. A frame that the back end cannot take stays in the available ring, so there is nothing to give up on a reset.
 */
export class Transmitter {
  /** Frames that the back end took. */
  readonly traffic: Traffic = new Traffic();
  readonly #options: TransmitterOptions;
  /** The chain at hand is behind those of the frames that are kept. */
  readonly #chains: Chain[] = [];
  /** Our copies of headers, which the driver cannot change any more; where the back end keeps them, one for each frame. */
  readonly #headers: Uint8Array<ArrayBuffer>[] = [];
  /** The same as lists, for a back end with headers. */
  readonly #headerLists: ScatterGather[] = [];
  /** Segments for the back end: the driver's frame, behind our header if it has one. */
  readonly #list: ScatterGather;
  readonly #more: BottomHalf;
  /** Runs in a rush. */
  #again: Timer | null = null;
  readonly #delayMs: number;
  /** Length of the largest frame that goes over a wire, VLAN tag included. */
  readonly #plainMaxBytes: number;
  /** Offloads that the driver may leave to us, a set of NetOffload. */
  #offloads = 0;
  #maxBytes = 0;
  #queue: Virtqueue | null = null;
  #linkUp: boolean;
  #blocked = false;
  #busy = false;
  /** Frames that the back end may have kept since it was last flushed; their buffers are its own until then. */
  #kept = 0;

  constructor(options: TransmitterOptions, linkUp: boolean) {
    this.#options = options;
    this.#delayMs = options.delayMs;
    this.#linkUp = linkUp;
    this.#more = options.loop.bottomHalf(() => this.run());
    const { memory } = options;
    this.#list = memory.createScatterGather(
      Math.min(options.chainSegments + 1, SEGMENTS_MAX),
    );
    if (options.backend.hasVnetHeader) this.#makeHeaders(memory);
    else this.#headers.push(new Uint8Array(VIRTIO_NET_HDR.SIZE));
    this.#plainMaxBytes = plainFrameBytes(options.mtu);
  }

  #makeHeaders(memory: GuestMemory): void {
    const { SIZE } = VIRTIO_NET_HDR;
    const scratch = memory.createScratch(BUDGET * SIZE);
    const all = memory.createScatterGather(1);
    scratch.append(BUDGET * SIZE, all);
    const frames = this.#options.backend.flush === undefined ? 1 : BUDGET;
    for (let i = 0; i < frames; i++) {
      this.#headers.push(scratch.bytes.subarray(i * SIZE, (i + 1) * SIZE));
      const list = new ScatterGather(new Uint32Array(4));
      list.push(all.base(0) + i * SIZE, SIZE);
      this.#headerLists.push(list);
    }
  }

  /**
   * Takes a queue into service.
   *
   * @param offloads What the driver may leave to us, a set of NetOffload
   */
  start(queue: Virtqueue, offloads: number): void {
    this.#queue = queue;
    this.#blocked = false;
    this.#offloads = offloads;
    this.#maxBytes = largestFrameBytes(this.#options.mtu, offloads);
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
    this.#blocked = false;
    this.#more.cancel();
    this.#again?.cancel();
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
      // Nothing is kept between calls.
      this.#flush();
      this.#busy = false;
    }
  }

  #runBatch(queue: Virtqueue): void {
    let left = BUDGET;
    let got = 0;
    do {
      const before = left;
      queue.disableNotifications();
      while (left > 0) {
        const kept = this.#kept;
        const chain = this.#chains[kept] ?? this.#addChain();
        got = queue.pop(chain);
        if (got <= 0) break;
        if (this.#send(chain.readable) === -Errno.EAGAIN) {
          queue.unpop(1);
          this.#block();
          break;
        }
        if (this.#kept === kept) queue.push(chain.head, 0);
        left--;
      }
      // The driver may use its buffers anew from here on.
      for (let i = 0, kept = this.#flush(); i < kept; i++) {
        queue.push(this.#chains[i]!.head, 0);
      }
      this.#options.notifier.published(queue, queue.publish(), before - left);
      if (got < 0) return this.#options.fail(queue.lastError);
      if (this.#blocked) return;
      if (left === 0) return this.#more.schedule();
      if (this.#delayMs > 0 && BUDGET - left >= RUSH_FRAMES) {
        return this.#lookSoon();
      }
    } while (queue.enableNotifications());
  }

  /**
   * Frames come thick and fast: instead of being notified of each handful, which costs the driver more than the frames
   * themselves, look again by ourselves.
   */
  #lookSoon(): void {
    this.#again ??= this.#options.loop.timer(() => this.run());
    this.#again.arm(this.#delayMs);
  }

  #addChain(): Chain {
    const { memory, chainSegments } = this.#options;
    const chain = new Chain(memory, chainSegments);
    this.#chains.push(chain);
    return chain;
  }

  /** @returns How many frames are not kept any more */
  #flush(): number {
    const kept = this.#kept;
    if (kept === 0) return 0;
    this.#kept = 0;
    const { backend, counters } = this.#options;
    const lost = backend.flush!();
    if (lost > 0) counters.add(NetCounter.txErrors, lost);
    return kept;
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
    const cuts = frameBytes > this.#plainMaxBytes;
    const out = this.#compose(list);
    const result = out === null ? -Errno.E2BIG : this.#sendOut(out);
    if (result === -Errno.EAGAIN) return result;
    if (result < 0) {
      counters.add(NetCounter.txErrors, 1);
      return 0;
    }
    counters.add(NetCounter.txPackets, 1);
    counters.add(NetCounter.txBytes, frameBytes);
    if (cuts) counters.add(NetCounter.txGsoPackets, 1);
    this.traffic.add(frameBytes);
    return 0;
  }

  #sendOut(frame: ScatterGather): number {
    const { backend, pair } = this.#options;
    if (backend.flush === undefined) return backend.send(frame, pair);
    const result = backend.send(frame, pair, true);
    if (result >= 0) this.#kept++;
    return result;
  }

  /** @returns The frame as the back end takes it; null when it is in too many pieces */
  #compose(list: ScatterGather): ScatterGather | null {
    const out = this.#list;
    out.clear();
    if (this.#headerLists.length > 0) {
      out.append(this.#headerLists[this.#kept]!);
    }
    return out.append(list, VIRTIO_NET_HDR.SIZE) < 0 ? null : out;
  }

  /** @returns A {@linkcode NetCounter}, or −1 for a frame that is to be sent */
  #reasonToDrop(list: ScatterGather): number {
    const frameBytes = list.lengthBytes - VIRTIO_NET_HDR.SIZE;
    if (frameBytes < ETH_HLEN) return NetCounter.txDroppedShort;
    if (frameBytes > this.#maxBytes) return NetCounter.txDroppedOversized;
    if (!this.#linkUp) return NetCounter.txDroppedLinkDown;
    const header = this
      .#headers[this.#headerLists.length > 0 ? this.#kept : 0]!;
    this.#options.memory.gather(list, header, VIRTIO_NET_HDR.SIZE);
    switch (sanitizeHeader(header, frameBytes, this.#offloads, false)) {
      case HeaderKind.GSO:
        return -1;
      case HeaderKind.PLAIN:
        return frameBytes > this.#plainMaxBytes
          ? NetCounter.txDroppedOversized
          : -1;
      default:
        return NetCounter.txDroppedBadHeader;
    }
  }
}
