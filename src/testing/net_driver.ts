/**
 * A virtio-net driver (virtio 1.3, section 5.1), for tests and benches of network cards.
 *
 * @module
 */

import type { DriverMemory } from "./driver_memory.ts";
import { F } from "./virtio_defs.ts";
import type { DriverQueue, VirtioDriver } from "./virtio_driver.ts";

/** Feature bits of a network card. */
export const NET_F = {
  CSUM: 0,
  GUEST_CSUM: 1,
  MTU: 3,
  MAC: 5,
  GUEST_TSO4: 7,
  GUEST_TSO6: 8,
  HOST_TSO4: 11,
  HOST_TSO6: 12,
  MRG_RXBUF: 15,
  STATUS: 16,
  CTRL_VQ: 17,
  CTRL_RX: 18,
  CTRL_VLAN: 19,
  GUEST_ANNOUNCE: 21,
  MQ: 22,
  CTRL_MAC_ADDR: 23,
  SPEED_DUPLEX: 63,
} as const;

/** Classes of control commands. */
export const NET_CTRL = {
  RX: 0,
  MAC: 1,
  VLAN: 2,
  ANNOUNCE: 3,
  MQ: 4,
} as const;

/** The acknowledgement of a control command that worked. */
export const NET_OK = 0;

// struct virtio_net_config { u8 mac[6]; le16 status; le16 max_virtqueue_pairs; le16 mtu; … }
const CONFIG = { MAC: 0, STATUS: 6, MAX_PAIRS: 8, MTU: 10 } as const;
// struct virtio_net_hdr { u8 flags, gso_type; le16 hdr_len, gso_size, csum_start, csum_offset, num_buffers; }
const HDR = { NUM_BUFFERS: 10, SIZE: 12 } as const;

const STATUS_LINK_UP = 1;
const CTRL_BYTES = 4096;

/** Settings of the card. */
export interface NetDriverOptions {
  /** Features to ask for; what a plain driver wants unless told. */
  readonly features?: readonly number[];
  /** Entries of the receive and transmit queues; the device's maximum unless told. */
  readonly queueSize?: number;
  /** Length of a receive buffer in bytes, header included; 2048 unless told. */
  readonly rxBufferBytes?: number;
  /** The longest frame to transmit, in bytes; 2048 unless told. */
  readonly txBufferBytes?: number;
  /** Buffers to post for reception; as many as fit unless told. */
  readonly rxBuffers?: number;
  /** Descriptors of indirect tables for transmission; 0, the default, chains in the ring. */
  readonly indirect?: number;
  /** Put the header and the frame of a transmission into separate descriptors. */
  readonly splitHeader?: boolean;
  /** MSI-X vectors of the receive, transmit and control queues; polled where there is none. */
  readonly vectors?: { rx?: number; tx?: number; ctrl?: number };
}

/** Features that a plain driver asks for. */
export const NET_DEFAULT_FEATURES: readonly number[] = [
  NET_F.MAC,
  NET_F.STATUS,
  NET_F.MTU,
  NET_F.MRG_RXBUF,
  NET_F.CTRL_VQ,
  NET_F.CTRL_RX,
  NET_F.CTRL_MAC_ADDR,
  F.RING_INDIRECT_DESC,
  F.RING_EVENT_IDX,
];

/**
 * A network card with one pair of queues, driven by hand.
 *
 * ```ts ignore
 * const net = new NetDriver(new VirtioDriver(pci, ram.memory));
 * net.transmit(frame);
 * net.waitTransmitted(1000);
 * const answer = net.receive(1000);
 * ```
 */
export class NetDriver implements Disposable {
  /** The transport. */
  readonly virtio: VirtioDriver;
  /** The receive queue. */
  readonly rx: DriverQueue;
  /** The transmit queue. */
  readonly tx: DriverQueue;
  /** The control queue, when the card has one. */
  readonly ctrl: DriverQueue | null;
  /** Frames the device took. */
  txFrames = 0;
  /** Frames the device gave. */
  rxFrames = 0;
  /** Bytes of those frames, without headers. */
  rxBytes = 0;
  readonly #memory: DriverMemory;
  readonly #rxBufferBytes: number;
  readonly #txBufferBytes: number;
  readonly #txDescriptors: number;
  readonly #rxBuffers: number;
  readonly #rxIova: number;
  readonly #txIova: number;
  readonly #ctrlIova: number;
  /** Buffer of each head in flight. */
  readonly #rxBufferOf: Uint16Array;
  readonly #txBufferOf: Uint16Array;
  readonly #freeTx: Uint16Array;
  #freeTxCount: number;

  /** Resets the card, negotiates, sets up its queues, fills the receive ring and starts it. */
  constructor(virtio: VirtioDriver, options: NetDriverOptions = {}) {
    this.virtio = virtio;
    this.#memory = virtio.memory;
    virtio.negotiate(options.features ?? NET_DEFAULT_FEATURES);
    const vectors = options.vectors ?? {};
    const size = options.queueSize === undefined
      ? {}
      : { size: options.queueSize };
    this.rx = virtio.setupQueue(0, { ...size, ...vectorOf(vectors.rx) });
    this.tx = virtio.setupQueue(1, {
      ...size,
      ...vectorOf(vectors.tx),
      indirect: options.indirect ?? 0,
    });
    this.ctrl = virtio.has(NET_F.CTRL_VQ)
      ? virtio.setupQueue(this.#ctrlIndex(), vectorOf(vectors.ctrl))
      : null;

    this.#rxBufferBytes = options.rxBufferBytes ?? 2048;
    this.#txBufferBytes = HDR.SIZE + (options.txBufferBytes ?? 2048);
    this.#txDescriptors = options.splitHeader ? 2 : 1;
    this.#rxBuffers = Math.min(
      options.rxBuffers ?? this.rx.ring.size,
      this.rx.ring.size,
    );
    const txBuffers = this.tx.ring.size;
    this.#rxIova = this.#memory.alloc(this.#rxBuffers * this.#rxBufferBytes);
    this.#txIova = this.#memory.alloc(txBuffers * this.#txBufferBytes);
    this.#ctrlIova = this.#memory.alloc(CTRL_BYTES);
    this.#rxBufferOf = new Uint16Array(this.rx.ring.size);
    this.#txBufferOf = new Uint16Array(txBuffers);
    this.#freeTx = new Uint16Array(txBuffers);
    for (let i = 0; i < txBuffers; i++) this.#freeTx[i] = txBuffers - 1 - i;
    this.#freeTxCount = txBuffers;

    for (let i = 0; i < this.#rxBuffers; i++) this.#postRx(i);
    virtio.driverOk();
    this.rx.flush();
  }

  /** The card's address. */
  get mac(): Uint8Array<ArrayBuffer> {
    return this.virtio.readConfigBytes(CONFIG.MAC, 6);
  }

  /** True if the card says that its link is up. */
  get linkUp(): boolean {
    return (this.virtio.readConfig(CONFIG.STATUS, 2) & STATUS_LINK_UP) !== 0;
  }

  /** The MTU the card advises. */
  get mtu(): number {
    return this.virtio.readConfig(CONFIG.MTU, 2);
  }

  /** Number of pairs of queues that the card has. */
  get maxPairs(): number {
    return this.virtio.readConfig(CONFIG.MAX_PAIRS, 2);
  }

  /**
   * Queues a frame behind an empty header and shows it to the device.
   *
   * @returns Whether there was room
   */
  transmit(frame: Uint8Array): boolean {
    this.reclaim();
    const buffer = this.#takeTx(frame.length);
    if (buffer < 0) return false;
    const iova = this.#txIova + buffer * this.#txBufferBytes;
    this.#memory.write(iova + HDR.SIZE, frame);
    this.#postTx(buffer, frame.length);
    this.tx.flush();
    return true;
  }

  /**
   * Queues up to `count` frames of `frameBytes` and shows them to the device at once. What the buffers hold is sent:
   * {@linkcode fillFrames} puts a frame there. Allocates nothing, or where
   * addresses have more than 31 bits one number a descriptor.
   *
   * @returns How many there was room for
   */
  transmitBurst(count: number, frameBytes: number): number {
    this.reclaim();
    let posted = 0;
    while (posted < count) {
      const buffer = this.#takeTx(frameBytes);
      if (buffer < 0) break;
      this.#postTx(buffer, frameBytes);
      posted++;
    }
    if (posted > 0) this.tx.flush();
    return posted;
  }

  /** Puts the same frame into every transmit buffer, for {@linkcode transmitBurst}. */
  fillFrames(frame: Uint8Array): void {
    for (let i = 0; i < this.tx.ring.size; i++) {
      const iova = this.#txIova + i * this.#txBufferBytes;
      this.#memory.write(iova + HDR.SIZE, frame);
    }
  }

  /**
   * Takes transmitted buffers back. Allocates nothing.
   *
   * @returns How many
   */
  reclaim(): number {
    const ring = this.tx.ring;
    let done = 0;
    while (ring.take()) {
      this.#freeTx[this.#freeTxCount++] = this.#txBufferOf[ring.usedHead]!;
      done++;
    }
    this.txFrames += done;
    return done;
  }

  /** Waits until the device has taken every frame; whether it has, within the time. */
  waitTransmitted(timeoutMs: number): boolean {
    const deadline = performance.now() + timeoutMs;
    for (;;) {
      this.reclaim();
      if (this.tx.ring.inFlight === 0) return true;
      if (!this.tx.waitUsed(deadline - performance.now())) return false;
    }
  }

  /**
   * Waits for a frame and copies it out; its buffers go back to the device.
   *
   * @param timeoutMs The longest to wait; 0 only looks
   */
  receive(timeoutMs = 0): Uint8Array<ArrayBuffer> | null {
    const ring = this.rx.ring;
    if (!ring.hasUsed && (timeoutMs <= 0 || !this.rx.waitUsed(timeoutMs))) {
      return null;
    }
    const parts: Uint8Array[] = [];
    let buffers = 1;
    for (let i = 0; i < buffers; i++) {
      // The device shows all buffers of a frame at once (5.1.6.4).
      if (!ring.take()) throw new Error("Cannot receive: a part is missing");
      const buffer = this.#rxBufferOf[ring.usedHead]!;
      const iova = this.#rxIova + buffer * this.#rxBufferBytes;
      const skip = i === 0 ? HDR.SIZE : 0;
      if (i === 0) buffers = this.#numBuffers(iova);
      parts.push(this.#memory.at(iova, ring.usedLength).slice(skip));
      this.#postRx(buffer);
    }
    this.rx.flush();
    const frame = new Uint8Array(parts.reduce((n, part) => n + part.length, 0));
    let at = 0;
    for (const part of parts) {
      frame.set(part, at);
      at += part.length;
    }
    this.rxFrames++;
    this.rxBytes += frame.length;
    return frame;
  }

  /**
   * Takes all frames that were received, counts them and gives their buffers back. Allocates no more than
   * {@linkcode transmitBurst}.
   *
   * @returns How many
   */
  receiveBurst(): number {
    const ring = this.rx.ring;
    let frames = 0;
    let left = 0;
    while (ring.take()) {
      const buffer = this.#rxBufferOf[ring.usedHead]!;
      this.rxBytes += ring.usedLength;
      if (left === 0) {
        left = this.#numBuffers(this.#rxIova + buffer * this.#rxBufferBytes);
        this.rxBytes -= HDR.SIZE;
        frames++;
      }
      left--;
      this.#postRx(buffer);
    }
    if (frames > 0) this.rx.flush();
    this.rxFrames += frames;
    return frames;
  }

  /**
   * Sends a control command and waits for its acknowledgement.
   *
   * @returns The acknowledgement: {@linkcode NET_OK} or an error
   * @throws {Error} When there is no control queue or no answer in time
   */
  command(
    commandClass: number,
    command: number,
    data: Uint8Array = new Uint8Array(0),
    timeoutMs = 60_000,
  ): number {
    const queue = this.ctrl;
    if (queue === null) {
      throw new Error("Cannot send a command: the card has no control queue");
    }
    const at = this.#ctrlIova;
    const ack = at + CTRL_BYTES - 1;
    this.#memory.write(at, new Uint8Array([commandClass, command]));
    this.#memory.write(at + 2, data);
    this.#memory.write(ack, new Uint8Array([0xff]));
    queue.ring.begin(data.length > 0 ? 3 : 2);
    queue.ring.readable(at, 2);
    if (data.length > 0) queue.ring.readable(at + 2, data.length);
    queue.ring.writable(ack, 1);
    queue.ring.end();
    queue.flush();
    if (!queue.waitUsed(timeoutMs)) {
      throw new Error("Cannot complete a command: the card does not answer");
    }
    queue.ring.take();
    return this.#memory.at(ack, 1)[0]!;
  }

  /** Resets the card and gives all memory back. */
  close(): void {
    this.virtio.reset();
    const memory = this.#memory;
    memory.free(this.#rxIova, this.#rxBuffers * this.#rxBufferBytes);
    memory.free(this.#txIova, this.tx.ring.size * this.#txBufferBytes);
    memory.free(this.#ctrlIova, CTRL_BYTES);
  }

  /** Closes it. */
  [Symbol.dispose](): void {
    this.close();
  }

  /** The control queue comes after the pairs; without MQ there is one pair. */
  #ctrlIndex(): number {
    return this.virtio.has(NET_F.MQ) ? this.maxPairs * 2 : 2;
  }

  #numBuffers(iova: number): number {
    if (!this.virtio.has(NET_F.MRG_RXBUF)) return 1;
    const at = this.#memory.offset(iova) + HDR.NUM_BUFFERS;
    return this.#memory.view.getUint16(at, true);
  }

  #postRx(buffer: number): void {
    const ring = this.rx.ring;
    ring.begin(1);
    ring.writable(
      this.#rxIova + buffer * this.#rxBufferBytes,
      this.#rxBufferBytes,
    );
    this.#rxBufferOf[ring.end()] = buffer;
  }

  #takeTx(frameBytes: number): number {
    if (HDR.SIZE + frameBytes > this.#txBufferBytes) {
      throw new RangeError(
        `Cannot transmit ${frameBytes} bytes: buffers hold ${
          this.#txBufferBytes - HDR.SIZE
        }`,
      );
    }
    if (this.#freeTxCount === 0 || !this.tx.ring.begin(this.#txDescriptors)) {
      return -1;
    }
    return this.#freeTx[--this.#freeTxCount]!;
  }

  #postTx(buffer: number, frameBytes: number): void {
    const ring = this.tx.ring;
    const iova = this.#txIova + buffer * this.#txBufferBytes;
    if (this.#txDescriptors === 1) {
      ring.readable(iova, HDR.SIZE + frameBytes);
    } else {
      ring.readable(iova, HDR.SIZE);
      ring.readable(iova + HDR.SIZE, frameBytes);
    }
    this.#txBufferOf[ring.end()] = buffer;
  }
}

function vectorOf(vector: number | undefined): { vector?: number } {
  return vector === undefined ? {} : { vector };
}
