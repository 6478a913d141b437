/**
 * The virtio network card (virtio 1.3, section 5.1).
 *
 * @module
 */

import type {
  AccessWidth,
  DeviceCommand,
  DeviceContext,
} from "../../src/pci/device.ts";
import type { NetBackend, NetPeer } from "../../src/net/backend.ts";
import type { VirtioDevice, VirtioTransport } from "../../src/virtio/device.ts";
import { Features } from "../../src/virtio/features.ts";
import type { Virtqueue } from "../../src/virtio/queue.ts";
import { NetConfig } from "./config.ts";
import { ControlQueue, CTRL_QUEUE_SIZE } from "./control.ts";
import { NetCounters } from "./counters.ts";
import {
  PCI_CLASS_NETWORK_ETHERNET,
  VIRTIO_ID_NET,
  VIRTIO_NET_CONFIG,
  VIRTIO_NET_F,
  VIRTIO_NET_S_ANNOUNCE,
  VIRTIO_NET_S_LINK_UP,
  VIRTIO_NET_VQ,
} from "./defs.ts";
import { ReceiveFilter } from "./filter.ts";
import { Receiver } from "./rx.ts";
import { Transmitter } from "./tx.ts";

/** What a {@linkcode VirtioNet} is made with. */
export interface VirtioNetParts {
  /** As handed to the model. */
  readonly context: DeviceContext;
  readonly transport: VirtioTransport;
  /** What it is plugged into; the card closes it. */
  readonly backend: NetBackend;
  /** Its address and shape. */
  readonly options: {
    /** Six bytes. */
    readonly mac: Uint8Array;
    /** Largest IP packet in bytes. */
    readonly mtu: number;
    /** Whether the link is up at first. */
    readonly linkUp: boolean;
    /** Largest size of the receive and transmit queues. */
    readonly queueSize: number;
  };
}

const FEATURES = Features.of(
  VIRTIO_NET_F.MTU,
  VIRTIO_NET_F.MAC,
  VIRTIO_NET_F.MRG_RXBUF,
  VIRTIO_NET_F.STATUS,
  VIRTIO_NET_F.CTRL_VQ,
  VIRTIO_NET_F.CTRL_RX,
  VIRTIO_NET_F.CTRL_VLAN,
  VIRTIO_NET_F.CTRL_RX_EXTRA,
  VIRTIO_NET_F.GUEST_ANNOUNCE,
  VIRTIO_NET_F.CTRL_MAC_ADDR,
);

/** What needs the control queue (section 5.1.3.1). */
const NEED_CTRL_VQ = [
  VIRTIO_NET_F.CTRL_RX,
  VIRTIO_NET_F.CTRL_VLAN,
  VIRTIO_NET_F.CTRL_RX_EXTRA,
  VIRTIO_NET_F.GUEST_ANNOUNCE,
  VIRTIO_NET_F.CTRL_MAC_ADDR,
] as const;

const NO_FEATURES = new Features(0, 0);

/** IOV_MAX: what one readv(2) or writev(2) takes. */
const SEGMENTS_MAX = 1024;

/**
 * A network card with one pair of queues and a control queue.
 *
 * ```text
 *   idle --start--> running --reset--> idle        in each: link up ⇄ down
 *                      ╰─ a rule broken ─> failed --reset--> idle
 * ```
 * The back end runs while the device runs and the link is up. No chain is held between calls, so a reset leaves
 * nothing behind.
 */
export class VirtioNet implements VirtioDevice, NetPeer {
  readonly deviceId: number = VIRTIO_ID_NET;
  readonly pciClassCode: number = PCI_CLASS_NETWORK_ETHERNET;
  readonly features: Features = FEATURES;
  readonly queueSizes: readonly number[];
  readonly configLengthBytes: number = VIRTIO_NET_CONFIG.SIZE;
  readonly commands: Readonly<Record<string, DeviceCommand>>;
  readonly #transport: VirtioTransport;
  readonly #backend: NetBackend;
  /** The address that a reset restores. */
  readonly #mac: Uint8Array;
  readonly #config: NetConfig;
  readonly #counters = new NetCounters();
  readonly #filter = new ReceiveFilter();
  readonly #rx: Receiver;
  readonly #tx: Transmitter;
  readonly #control: ControlQueue;
  #negotiated: Features = NO_FEATURES;
  #running = false;

  constructor(parts: VirtioNetParts) {
    const { context, transport, backend, options } = parts;
    this.#transport = transport;
    this.#backend = backend;
    this.#mac = options.mac.slice();
    this.#config = new NetConfig(options.mac, options.mtu);
    this.#config.status = options.linkUp ? VIRTIO_NET_S_LINK_UP : 0;
    this.queueSizes = [options.queueSize, options.queueSize, CTRL_QUEUE_SIZE];
    this.#filter.reset(options.mac, false);
    const common = {
      memory: context.memory,
      loop: context.loop,
      backend,
      filter: this.#filter,
      counters: this.#counters,
      mtu: options.mtu,
      chainSegments: Math.min(options.queueSize, SEGMENTS_MAX),
      interrupt: (queue: Virtqueue) => transport.interrupt(queue),
      fail: (reason: string) => this.#fail(reason),
    };
    this.#rx = new Receiver(common);
    this.#tx = new Transmitter(common, options.linkUp);
    this.#control = new ControlQueue({
      ...common,
      setMac: (mac) => this.#setMac(mac),
      acknowledgeAnnounce: () => this.#clearAnnounce(),
    });
    this.commands = {
      link: {
        help: "link up|down: plug the card in or out; without a word, tell",
        run: (args) => this.#runLink(args),
      },
      announce: {
        help: "ask the driver to announce the card on the network",
        run: () => this.#runAnnounce(),
      },
    };
  }

  /** Whether the link is up. */
  get linkUp(): boolean {
    return (this.#config.status & VIRTIO_NET_S_LINK_UP) !== 0;
  }

  /**
   * Plugs the card in or out, and tells the driver. A driver that can is asked to announce itself when the link
   * comes up.
   */
  setLink(up: boolean): void {
    if (up === this.linkUp) return;
    this.#config.status = up ? VIRTIO_NET_S_LINK_UP : 0;
    if (up && this.#canAnnounce()) {
      this.#config.status |= VIRTIO_NET_S_ANNOUNCE;
    }
    this.#tx.setLink(up);
    if (this.#running) {
      if (up) this.#startBackend();
      else this.#backend.stop();
    }
    this.#transport.configChanged();
  }

  /**
   * Asks the driver to announce the card on the network.
   *
   * @returns Whether it can be asked: it must have negotiated GUEST_ANNOUNCE, and the link must be up
   */
  announce(): boolean {
    if (!this.linkUp || !this.#canAnnounce()) return false;
    this.#config.status |= VIRTIO_NET_S_ANNOUNCE;
    this.#transport.configChanged();
    return true;
  }

  acceptsFeatures(features: Features): boolean {
    return features.has(VIRTIO_NET_F.CTRL_VQ) ||
      !NEED_CTRL_VQ.some((bit) => features.has(bit));
  }

  readConfig(offset: number, width: AccessWidth): number {
    return this.#config.read(offset, width);
  }

  writeConfig(_offset: number, _width: AccessWidth, _value: number): void {
    // The driver MUST NOT write to any field (5.1.4.2); the address is set by command.
  }

  start(features: Features, queues: readonly Virtqueue[]): void {
    this.#negotiated = features;
    this.#running = true;
    this.#filter.reset(
      this.#config.mac,
      features.has(VIRTIO_NET_F.CTRL_VLAN),
    );
    this.#rx.start(
      queues[VIRTIO_NET_VQ.RX]!,
      features.has(VIRTIO_NET_F.MRG_RXBUF),
      features.has(VIRTIO_NET_F.MTU),
    );
    this.#tx.start(queues[VIRTIO_NET_VQ.TX]!);
    if (features.has(VIRTIO_NET_F.CTRL_VQ)) {
      this.#control.start(queues[VIRTIO_NET_VQ.CTRL]!, features);
    }
    if (this.linkUp) this.#startBackend();
  }

  notify(queue: Virtqueue): void {
    if (!this.#running) return;
    switch (queue.index) {
      case VIRTIO_NET_VQ.RX:
        this.#rx.onBuffers();
        break;
      case VIRTIO_NET_VQ.TX:
        this.#tx.run();
        break;
      case VIRTIO_NET_VQ.CTRL:
        this.#control.run();
        break;
    }
  }

  onReadable(): void {
    if (this.#running && this.linkUp) this.#rx.run();
  }

  onWritable(): void {
    this.#tx.onWritable();
  }

  resetQueue(queue: Virtqueue): void {
    switch (queue.index) {
      case VIRTIO_NET_VQ.RX:
        this.#rx.resetQueue();
        break;
      case VIRTIO_NET_VQ.TX:
        this.#tx.resetQueue();
        break;
      case VIRTIO_NET_VQ.CTRL:
        this.#control.resetQueue();
        break;
    }
  }

  reset(): void {
    this.#halt();
    this.#negotiated = NO_FEATURES;
    this.#config.setMac(this.#mac);
    this.#filter.reset(this.#mac, false);
    this.#clearAnnounce();
  }

  counters(): Readonly<Record<string, number>> {
    const counters = this.#counters.toRecord();
    for (
      const [name, value] of Object.entries(this.#backend.counters?.() ?? {})
    ) {
      counters[`backend.${name}`] = value;
    }
    return counters;
  }

  close(): void {
    this.#halt();
    this.#backend.close();
  }

  /** Stops everything that moves; the driver's queues are not touched any more. */
  #halt(): void {
    if (this.#running && this.linkUp) this.#backend.stop();
    this.#running = false;
    this.#rx.stop();
    this.#tx.stop();
    this.#control.stop();
  }

  #fail(reason: string): void {
    if (!this.#running) return;
    this.#halt();
    this.#transport.fail(reason);
  }

  #startBackend(): void {
    this.#backend.start(this);
    this.#rx.resume();
  }

  #setMac(mac: Uint8Array): void {
    this.#config.setMac(mac);
    this.#filter.setMac(mac);
  }

  #canAnnounce(): boolean {
    return this.#running && this.#negotiated.has(VIRTIO_NET_F.GUEST_ANNOUNCE);
  }

  #clearAnnounce(): void {
    this.#config.status &= ~VIRTIO_NET_S_ANNOUNCE;
  }

  #runLink(args: readonly string[]): string {
    const [state, ...rest] = args;
    if (
      rest.length > 0 ||
      (state !== undefined && state !== "up" && state !== "down")
    ) {
      throw new Error(`Cannot set link ${args.join(" ")}: it is up or down`);
    }
    if (state !== undefined) this.setLink(state === "up");
    return `link is ${this.linkUp ? "up" : "down"}`;
  }

  #runAnnounce(): string {
    if (!this.announce()) {
      throw new Error(
        this.linkUp
          ? "Cannot announce: no driver is running that can do it (GUEST_ANNOUNCE)"
          : "Cannot announce: the link is down; use link up",
      );
    }
    return "the driver was asked to announce itself";
  }
}
