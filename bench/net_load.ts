/**
 * A virtio-net driver that does nothing but keep its queues busy: any ring format, any number of queue pairs, one
 * buffer a frame, every buffer of its own. It looks at the used ring, never waits for an interrupt, and notifies when
 * the device asks for it. Nothing here allocates after construction.
 *
 * @module
 */

import {
  type DriverMemory,
  type DriverQueue,
  type DriverRing,
  F,
  NET_CTRL,
  NET_F,
  NET_OK,
  type VirtioDriver,
} from "../src/testing/mod.ts";

const HEADER_BYTES = 12;
const BUFFER_BYTES = 2048;
/** Frames shown to the device at once, as a driver with xmit_more or a receive ring refilled by NAPI would. */
const BATCH = 32;
const CTRL_MQ_VQ_PAIRS_SET = 0;
const CTRL_TIMEOUT_MS = 5000;

/** One queue whose buffers go round. */
class BufferRing {
  readonly queue: DriverQueue<DriverRing>;
  readonly #iova: number;
  readonly #lengthBytes: number;
  readonly #writable: boolean;
  /** Buffer of each chain in flight. */
  readonly #bufferOf: Uint16Array;
  readonly #free: Uint16Array;
  #freeCount: number;

  constructor(
    queue: DriverQueue<DriverRing>,
    memory: DriverMemory,
    lengthBytes: number,
    writable: boolean,
  ) {
    const { size } = queue.ring;
    this.queue = queue;
    this.#lengthBytes = lengthBytes;
    this.#writable = writable;
    this.#iova = memory.alloc(size * BUFFER_BYTES, 64);
    this.#bufferOf = new Uint16Array(size);
    this.#free = Uint16Array.from({ length: size }, (_, i) => size - 1 - i);
    this.#freeCount = size;
    // Broadcast frames behind an empty header: no filter takes them out.
    for (let i = 0; i < size; i++) {
      const at = this.#iova + i * BUFFER_BYTES + HEADER_BYTES;
      memory.at(at, 6).fill(0xff);
    }
  }

  /** Takes used buffers back. @returns How many */
  reclaim(): number {
    const { ring } = this.queue;
    let taken = 0;
    while (ring.take()) {
      this.#free[this.#freeCount++] = this.#bufferOf[ring.usedHead]!;
      taken++;
    }
    return taken;
  }

  /** Gives the device its buffers, once there is a batch of them. */
  refill(): void {
    if (this.#freeCount < BATCH) return;
    const { ring } = this.queue;
    while (this.#freeCount > 0) {
      const buffer = this.#free[--this.#freeCount]!;
      const iova = this.#iova + buffer * BUFFER_BYTES;
      ring.begin(1);
      if (this.#writable) ring.writable(iova, this.#lengthBytes);
      else ring.readable(iova, this.#lengthBytes);
      this.#bufferOf[ring.end()] = buffer;
    }
    this.queue.flush();
  }
}

/** Network to drive. */
export interface NetLoadOptions {
  /** Queue pairs, as many as the card has. */
  readonly pairs: number;
  /** True if to use packed rings. */
  readonly packed: boolean;
  /** Length of the frames to transmit; 0 transmits none. */
  readonly transmitBytes: number;
  /** True if to give the card buffers to receive into. */
  readonly receive: boolean;
}

/** A card under load. */
export class NetLoad {
  readonly #rings: BufferRing[] = [];

  /** Resets the card, negotiates, sets all queues up and starts it. */
  constructor(virtio: VirtioDriver, options: NetLoadOptions) {
    const { memory } = virtio;
    const { pairs, packed, transmitBytes, receive } = options;
    const features: number[] = [
      NET_F.MRG_RXBUF,
      F.RING_EVENT_IDX,
      NET_F.CTRL_VQ,
    ];
    if (pairs > 1) features.push(NET_F.MQ);
    if (packed) features.push(F.RING_PACKED);
    virtio.negotiate(features);
    if (virtio.has(F.RING_PACKED) !== packed) {
      throw new Error("Cannot measure packed rings: the card has none");
    }
    for (let pair = 0; pair < pairs; pair++) {
      const rx = virtio.setupAnyQueue(2 * pair);
      const tx = virtio.setupAnyQueue(2 * pair + 1);
      if (transmitBytes > 0) {
        const lengthBytes = HEADER_BYTES + transmitBytes;
        this.#rings.push(new BufferRing(tx, memory, lengthBytes, false));
      }
      if (receive) {
        this.#rings.push(new BufferRing(rx, memory, BUFFER_BYTES, true));
      }
    }
    const control = virtio.setupAnyQueue(2 * pairs);
    virtio.driverOk();
    if (pairs > 1) setPairs(control, memory, pairs);
  }

  /**
   * Keeps the queues busy.
   *
   * @returns How many frames the device has done since the last call
   */
  step(): number {
    let done = 0;
    for (let i = 0; i < this.#rings.length; i++) {
      done += this.#rings[i]!.reclaim();
      this.#rings[i]!.refill();
    }
    return done;
  }
}

/** Tells the card how many pairs are in use (virtio 1.3, section 5.1.6.5.6). */
function setPairs(
  control: DriverQueue<DriverRing>,
  memory: DriverMemory,
  pairs: number,
): void {
  const command = memory.alloc(8);
  const ack = command + 4;
  memory.write(
    command,
    Uint8Array.of(NET_CTRL.MQ, CTRL_MQ_VQ_PAIRS_SET, pairs, 0, 0xff),
  );
  const { ring } = control;
  ring.begin(2);
  ring.readable(command, 4);
  ring.writable(ack, 1);
  ring.end();
  control.flush();
  if (!control.waitUsed(CTRL_TIMEOUT_MS) || memory.at(ack, 1)[0] !== NET_OK) {
    throw new Error(`Cannot use ${pairs} queue pairs: the card refuses`);
  }
  ring.take();
}
