/**
 * The card's options, and its device configuration structure.
 *
 * @module
 */

import { isPowerOfTwo } from "../../src/core/bits.ts";
import { QUEUE_PAIRS_MAX } from "../../src/backend/net/contract.ts";
import {
  NET_OPTIONS,
  NetKind,
  type NetOptions,
} from "../../src/backend/net/option_table.ts";
import { parseNetOptions } from "../../src/backend/net/options.ts";
import type { AccessWidth } from "../../src/pci/device.ts";
import {
  isVirtioOption,
  parseVirtioOptions,
  type VirtioOptions,
  virtioOptionTable,
} from "../../src/virtio/options.ts";
import type { OptionSpec } from "../model.ts";
import { type OptionGroup, optionGroup, sortOptions } from "../options.ts";
import {
  ETH_ALEN,
  MTU_DEFAULT,
  MTU_MAX,
  MTU_MIN,
  VIRTIO_NET_CONFIG,
} from "./defs.ts";

const QUEUE_SIZE_MIN = 8;
const QUEUE_SIZE_MAX = 32768;
const QUEUE_SIZE_DEFAULT = 256;

/** What a card is made with; plain data. */
export interface VirtioNetOptions {
  /** Six bytes; null for one made up at random. */
  readonly mac: readonly number[] | null;
  /** Largest IP packet in bytes. */
  readonly mtu: number;
  /** Whether the link is up at first. */
  readonly linkUp: boolean;
  /** Largest size of the receive and transmit queues. */
  readonly queueSize: number;
  /** How many pairs of receive and transmit queues it has. */
  readonly queuePairs: number;
  /** How long a busy transmit queue is left alone before it is looked at again, in microseconds; 0 for not at all. */
  readonly txDelayUsec: number;
  /** The longest that frames are kept from a driver that cannot keep up, in microseconds; 0 for not at all. */
  readonly rxReliefUsec: number;
  /** Whether checksums and segments are left to the network, and to the driver, where they can do it. */
  readonly offloads: boolean;
  /** Which kinds of ring are offered. */
  readonly rings: VirtioOptions;
  /** What it is plugged into. */
  readonly net: NetOptions;
}

/** Linux' first drivers with IN_ORDER take the slot of a used entry for the head of its chain: only when asked for. */
const RING_DEFAULTS = { inOrder: false };

/** Much less saves no notifications, and much more is felt. */
const TX_DELAY_DEFAULT = 100;
const TX_DELAY_MAX = 10_000;

/** Enough for an emulated guest; one on hardware never rests so long. */
const RX_RELIEF_DEFAULT = 5000;
const RX_RELIEF_MAX = 100_000;

const CARD_OPTIONS: readonly OptionSpec[] = [
  {
    name: "mac",
    syntax: "xx:xx:xx:xx:xx:xx",
    help: "the card's address; 52:54:00 and a random rest unless given",
  },
  {
    name: "mtu",
    syntax: "bytes",
    help: `largest IP packet, ${MTU_MIN} to ${MTU_MAX}`,
    default: `${MTU_DEFAULT}`,
  },
  {
    name: "link",
    syntax: "up|down",
    help: "state of the link at first",
    default: "up",
  },
  {
    name: "tx-delay",
    syntax: "microseconds",
    help: "while frames come two and more at a time, how long to wait for " +
      "more of them instead of having the driver notify; 0 for not at all",
    default: `${TX_DELAY_DEFAULT}`,
  },
  {
    name: "rx-relief",
    syntax: "microseconds",
    help: "the longest to keep frames from a guest that cannot keep up, so " +
      "that its programs get time for those it has; 0 for not at all",
    default: `${RX_RELIEF_DEFAULT}`,
  },
  {
    name: "queue-size",
    syntax: "entries",
    help:
      `largest size of a queue, a power of two from ${QUEUE_SIZE_MIN} to ${QUEUE_SIZE_MAX}`,
    default: `${QUEUE_SIZE_DEFAULT}`,
  },
  {
    name: "queues",
    syntax: "pairs",
    help:
      `pairs of receive and transmit queues, 1 to ${QUEUE_PAIRS_MAX}; more than one with net=tap`,
    default: "1",
  },
  {
    name: "offloads",
    syntax: "on|off",
    help:
      "leave checksums and segmentation to the network, where it is a TAP or user (TCP over IPv4)",
    default: "on",
  },
];

/** Networks that have several queues. */
const MULTI_QUEUE_NETS: readonly string[] = [NetKind.TAP, NetKind.NONE];

/** Every option of the model: the card's own, then those of what it is plugged into. */
export const VIRTIO_NET_OPTIONS: readonly OptionSpec[] = [
  ...CARD_OPTIONS,
  ...NET_OPTIONS,
  ...virtioOptionTable(RING_DEFAULTS),
];

function parseMac(text: string): number[] {
  if (!/^[0-9a-f]{2}([:-][0-9a-f]{2}){5}$/i.test(text)) {
    throw new Error(
      `Cannot use mac=${text}: six bytes are wanted, such as 52:54:00:12:34:56`,
    );
  }
  const mac = text.split(/[:-]/).map((byte) => parseInt(byte, 16));
  if ((mac[0]! & 1) !== 0) {
    throw new Error(
      `Cannot use mac=${text}: it is a multicast address, the first byte must be even`,
    );
  }
  if (mac.every((byte) => byte === 0)) {
    throw new Error(
      `Cannot use mac=${text}: the zero address belongs to nobody; leave mac= out for a random one`,
    );
  }
  return mac;
}

function parseMtu(text: string): number {
  const mtu = Number(text);
  if (!/^\d+$/.test(text) || mtu < MTU_MIN || mtu > MTU_MAX) {
    throw new Error(
      `Cannot use mtu=${text}: ${MTU_MIN} to ${MTU_MAX} bytes are allowed`,
    );
  }
  return mtu;
}

function parseLink(text: string): boolean {
  if (text !== "up" && text !== "down") {
    throw new Error(`Cannot use link=${text}: it is up or down`);
  }
  return text === "up";
}

function parseQueueSize(text: string): number {
  const size = Number(text);
  if (
    !/^\d+$/.test(text) || !isPowerOfTwo(size) || size < QUEUE_SIZE_MIN ||
    size > QUEUE_SIZE_MAX
  ) {
    throw new Error(
      `Cannot use queue-size=${text}: a power of two from ${QUEUE_SIZE_MIN} to ${QUEUE_SIZE_MAX} is wanted`,
    );
  }
  return size;
}

function parseQueuePairs(text: string, net: string): number {
  const pairs = Number(text);
  if (!/^\d+$/.test(text) || pairs < 1 || pairs > QUEUE_PAIRS_MAX) {
    throw new Error(
      `Cannot use queues=${text}: 1 to ${QUEUE_PAIRS_MAX} pairs are allowed`,
    );
  }
  if (pairs > 1 && !MULTI_QUEUE_NETS.includes(net)) {
    throw new Error(
      `Cannot use queues=${pairs} with net=${net}: it has one queue, several need net=tap`,
    );
  }
  return pairs;
}

function parseUsec(name: string, text: string, most: number): number {
  const usec = Number(text);
  if (!/^\d+$/.test(text) || usec > most) {
    throw new Error(
      `Cannot use ${name}=${text}: 0 to ${most} microseconds are allowed`,
    );
  }
  return usec;
}

function parseOffloads(text: string): boolean {
  if (text !== "on" && text !== "off") {
    throw new Error(`Cannot use offloads=${text}: it is on or off`);
  }
  return text === "on";
}

/**
 * Parses and checks the options of `--device virtio-net,…`.
 *
 * @throws {Error} With what is wrong and what would be right
 */
export function parseVirtioNetOptions(
  options: Readonly<Record<string, string | readonly string[]>>,
): VirtioNetOptions {
  const net = optionGroup(NET_OPTIONS);
  const rings: OptionGroup = { has: isVirtioOption, values: {} };
  const own = sortOptions(options, {
    name: "virtio-net",
    own: CARD_OPTIONS,
    all: VIRTIO_NET_OPTIONS,
  }, [net, rings]);
  const mac = own.get("mac");
  const network = parseNetOptions(net.values);
  return {
    mac: mac === undefined ? null : parseMac(mac),
    mtu: parseMtu(own.get("mtu") ?? `${MTU_DEFAULT}`),
    linkUp: parseLink(own.get("link") ?? "up"),
    txDelayUsec: parseUsec(
      "tx-delay",
      own.get("tx-delay") ?? `${TX_DELAY_DEFAULT}`,
      TX_DELAY_MAX,
    ),
    rxReliefUsec: parseUsec(
      "rx-relief",
      own.get("rx-relief") ?? `${RX_RELIEF_DEFAULT}`,
      RX_RELIEF_MAX,
    ),
    queueSize: parseQueueSize(own.get("queue-size") ?? `${QUEUE_SIZE_DEFAULT}`),
    queuePairs: parseQueuePairs(own.get("queues") ?? "1", network.net),
    offloads: parseOffloads(own.get("offloads") ?? "on"),
    rings: parseVirtioOptions(rings.values, RING_DEFAULTS),
    net: network,
  };
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
