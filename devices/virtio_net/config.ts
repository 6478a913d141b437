/**
 * The card's options, and its device configuration structure.
 *
 * @module
 */

import { QUEUE_PAIRS_MAX } from "../../src/backend/net/contract.ts";
import { NET_DRIVERS, NET_OPTIONS } from "../../src/backend/net/options.ts";
import {
  type Infer,
  integer,
  oneOf,
  onOff,
  option,
  options,
  refuse,
} from "../../src/core/options.ts";
import type { AccessWidth } from "../../src/pci/device.ts";
import { virtioOptions } from "../../src/virtio/options.ts";
import {
  ETH_ALEN,
  MTU_DEFAULT,
  MTU_MAX,
  MTU_MIN,
  VIRTIO_NET_CONFIG,
} from "./defs.ts";

/** Every option of the model: the card's own, those of what it is plugged into, and those of its queues. */
export const VIRTIO_NET_OPTIONS = options({
  mac: option("mac", {
    syntax: "xx:xx:xx:xx:xx:xx",
    help: "the card's address; 52:54:00 and a random rest unless given",
  }, (text, refuse) => {
    if (!/^[0-9a-f]{2}([:-][0-9a-f]{2}){5}$/i.test(text)) {
      refuse("six bytes are wanted, such as 52:54:00:12:34:56");
    }
    const mac = text.split(/[:-]/).map((byte) => parseInt(byte, 16));
    if ((mac[0]! & 1) !== 0) {
      refuse("it is a multicast address, the first byte must be even");
    }
    if (mac.every((byte) => byte === 0)) {
      refuse(
        "the zero address belongs to nobody; leave mac= out for a random one",
      );
    }
    return mac;
  }),
  mtu: integer("mtu", {
    syntax: "bytes",
    help: "largest IP packet",
    min: MTU_MIN,
    max: MTU_MAX,
    default: `${MTU_DEFAULT}`,
  }),
  link: oneOf("link", ["up", "down"], {
    help: "state of the link at first",
    default: "up",
  }),
  // Much less saves no notifications, and much more is felt.
  txDelayUsec: integer("tx-delay", {
    syntax: "microseconds",
    help: "while frames come two and more at a time, how long to wait for " +
      "more of them instead of having the driver notify; 0 for not at all",
    min: 0,
    max: 10_000,
    default: "100",
  }),
  // Enough for an emulated guest; one on hardware never rests so long.
  rxReliefUsec: integer("rx-relief", {
    syntax: "microseconds",
    help: "the longest to keep frames from a guest that cannot keep up, so " +
      "that its programs get time for those it has; 0 for not at all",
    min: 0,
    max: 100_000,
    default: "5000",
  }),
  queueSize: integer("queue-size", {
    syntax: "entries",
    help: "largest size of a queue",
    min: 8,
    max: 32_768,
    powerOfTwo: true,
    default: "256",
  }),
  queuePairs: integer("queues", {
    syntax: "pairs",
    help: "pairs of receive and transmit queues, more than one with net=tap",
    min: 1,
    max: QUEUE_PAIRS_MAX,
    default: "1",
  }),
  offloads: onOff("offloads", {
    help:
      "leave checksums and segmentation to the network, where it is a TAP or user (TCP over IPv4)",
    default: "on",
  }),
  net: NET_OPTIONS,
  // Linux' first drivers with IN_ORDER take the slot of a used entry for the head of its chain: only when asked for.
  rings: virtioOptions(false),
}, ({ link, ...values }) => {
  const { queuePairs, net: { net } } = values;
  if (queuePairs > 1 && !NET_DRIVERS[net].multiQueue) {
    refuse(
      `queues=${queuePairs} with net=${net}`,
      "it has one queue, several need net=tap",
    );
  }
  return { ...values, linkUp: link === "up" };
});

/** Options of a card; plain data. */
export type VirtioNetOptions = Infer<typeof VIRTIO_NET_OPTIONS>;

/** Options of the card itself. */
export interface CardOptions
  extends Omit<VirtioNetOptions, "mac" | "net" | "rings"> {
  /** Six bytes. */
  readonly mac: Uint8Array;
}

/**
 * A made-up address: QEMU's and KVM's locally administered prefix 52:54:00, three random bytes.
 *
 * @param random As of the device's context
 */
export function randomMac(
  random: (lengthBytes: number) => Uint8Array,
): Uint8Array<ArrayBuffer> {
  const mac = new Uint8Array(ETH_ALEN);
  mac.set([0x52, 0x54, 0x00]);
  mac.set(random(3), 3);
  return mac;
}

/** An address as people write it, such as `52:54:00:12:34:56`. */
export function formatMac(mac: Uint8Array): string {
  return Array.from(mac, (byte) => byte.toString(16).padStart(2, "0"))
    .join(":");
}

/** The device configuration structure; see {@linkcode VIRTIO_NET_CONFIG}. */
export class NetConfig {
  readonly #bytes = new Uint8Array(VIRTIO_NET_CONFIG.SIZE);
  readonly #view = new DataView(this.#bytes.buffer);

  /** @param mac Six bytes @param mtu In bytes @param queuePairs How many there can be */
  constructor(mac: Uint8Array, mtu: number, queuePairs = 1) {
    this.setMac(mac);
    this.#view.setUint16(
      VIRTIO_NET_CONFIG.MAX_VIRTQUEUE_PAIRS,
      queuePairs,
      true,
    );
    this.#view.setUint16(VIRTIO_NET_CONFIG.MTU, mtu, true);
  }

  /** The card's address: a live view. */
  get mac(): Uint8Array<ArrayBuffer> {
    return this.#bytes.subarray(
      VIRTIO_NET_CONFIG.MAC,
      VIRTIO_NET_CONFIG.MAC + ETH_ALEN,
    );
  }

  /** Changes the address. */
  setMac(mac: Uint8Array): void {
    this.#bytes.set(mac, VIRTIO_NET_CONFIG.MAC);
  }

  /** Link and announcement bits, VIRTIO_NET_S_*. */
  get status(): number {
    return this.#view.getUint16(VIRTIO_NET_CONFIG.STATUS, true);
  }

  set status(bits: number) {
    this.#view.setUint16(VIRTIO_NET_CONFIG.STATUS, bits, true);
  }

  /** Reads `width` bytes, little-endian; they lie inside. */
  read(offset: number, width: AccessWidth): number {
    let value = 0;
    for (let i = width - 1; i >= 0; i--) {
      value = value * 256 + this.#bytes[offset + i]!;
    }
    return value;
  }
}
