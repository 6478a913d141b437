/**
 * The control queue (virtio 1.3, section 5.1.6.5).
 *
 * @module
 */

import type { BottomHalf, Loop } from "../../src/event_loop.ts";
import type { GuestMemory } from "../../src/memory/guest_memory.ts";
import type { ScatterGather } from "../../src/memory/scatter_gather.ts";
import type { Features } from "../../src/virtio/features.ts";
import { Chain, type Virtqueue } from "../../src/virtio/queue.ts";
import { NetCounter, type NetCounters } from "./counters.ts";
import {
  ETH_ALEN,
  VIRTIO_NET_CTRL_ANNOUNCE,
  VIRTIO_NET_CTRL_ANNOUNCE_ACK,
  VIRTIO_NET_CTRL_HDR,
  VIRTIO_NET_CTRL_MAC,
  VIRTIO_NET_CTRL_MAC_ADDR_SET,
  VIRTIO_NET_CTRL_MAC_TABLE_SET,
  VIRTIO_NET_CTRL_RX,
  VIRTIO_NET_CTRL_RX_CMD,
  VIRTIO_NET_CTRL_VLAN,
  VIRTIO_NET_CTRL_VLAN_ADD,
  VIRTIO_NET_CTRL_VLAN_DEL,
  VIRTIO_NET_ERR,
  VIRTIO_NET_F,
  VIRTIO_NET_OK,
  VLAN_N_VID,
} from "./defs.ts";
import { MAC_TABLE_ENTRIES, type ReceiveFilter } from "./filter.ts";

/** Largest size of the control queue. */
export const CTRL_QUEUE_SIZE = 64;

/** Commands that are served before the loop gets its turn. */
const BUDGET = 64;

/** Reads a command's data from the front; consumes the list. */
class CommandReader {
  readonly #memory: GuestMemory;
  readonly #list: ScatterGather;
  readonly #word = new Uint8Array(4);
  readonly #view = new DataView(this.#word.buffer);

  constructor(memory: GuestMemory, list: ScatterGather) {
    this.#memory = memory;
    this.#list = list;
  }

  /** Bytes that have not been read. */
  get leftBytes(): number {
    return this.#list.lengthBytes;
  }

  /** Reads 1, 2 or 4 bytes, little-endian; null at the end of the data. */
  number(width: 1 | 2 | 4): number | null {
    this.#word.fill(0);
    if (this.#memory.gather(this.#list, this.#word, width) < width) return null;
    this.#list.consume(width);
    return this.#view.getUint32(0, true);
  }

  /** Reads bytes; null at the end of the data. */
  bytes(lengthBytes: number): Uint8Array | null {
    const bytes = new Uint8Array(lengthBytes);
    if (this.#memory.gather(this.#list, bytes, lengthBytes) < lengthBytes) {
      return null;
    }
    this.#list.consume(lengthBytes);
    return bytes;
  }

  /** Leaves bytes out. */
  skip(lengthBytes: number): void {
    this.#list.consume(lengthBytes);
  }
}

/** What a {@linkcode ControlQueue} works with. */
export interface ControlQueueOptions {
  readonly memory: GuestMemory;
  readonly loop: Loop;
  readonly filter: ReceiveFilter;
  readonly counters: NetCounters;
  /** The driver sets the card's address, 6 bytes. */
  readonly setMac: (mac: Uint8Array) => void;
  /** The driver has seen that it is to announce itself. */
  readonly acknowledgeAnnounce: () => void;
  /** See VirtioTransport. */
  readonly interrupt: (queue: Virtqueue) => void;
  /** The driver broke a rule. */
  readonly fail: (reason: string) => void;
}

/** Serves control commands: what was not negotiated, is malformed or unknown is answered with VIRTIO_NET_ERR. */
export class ControlQueue {
  readonly #options: ControlQueueOptions;
  readonly #chain: Chain;
  readonly #reader: CommandReader;
  readonly #ack = new Uint8Array(1);
  readonly #more: BottomHalf;
  #queue: Virtqueue | null = null;
  #features: Features | null = null;
  /** Changes when the queue is taken away, so that a call in progress can tell. */
  #epoch = 0;

  constructor(options: ControlQueueOptions) {
    this.#options = options;
    this.#chain = new Chain(options.memory, CTRL_QUEUE_SIZE);
    this.#reader = new CommandReader(options.memory, this.#chain.readable);
    this.#more = options.loop.bottomHalf(() => this.run());
  }

  /** Takes a queue into service. */
  start(queue: Virtqueue, features: Features): void {
    this.#queue = queue;
    this.#features = features;
  }

  /** Forgets the queue. */
  stop(): void {
    this.#queue = null;
    this.resetQueue();
  }

  /** The driver resets the queue. */
  resetQueue(): void {
    this.#epoch++;
    this.#more.cancel();
  }

  /** The driver has added commands. */
  run(): void {
    const queue = this.#queue;
    if (queue === null || !queue.enabled) return;
    const epoch = this.#epoch;
    const { interrupt, fail } = this.#options;
    let left = BUDGET;
    let got = 0;
    do {
      queue.disableNotifications();
      while (left > 0 && (got = queue.pop(this.#chain)) > 0) {
        const written = this.#serve();
        if (epoch !== this.#epoch) return;
        queue.push(this.#chain.head, written);
        left--;
      }
      if (queue.publish()) interrupt(queue);
      if (got < 0) return fail(queue.lastError);
      if (left === 0) return this.#more.schedule();
    } while (queue.enableNotifications());
  }

  /** @returns How many bytes were written */
  #serve(): number {
    const { memory, counters } = this.#options;
    const writable = this.#chain.writable;
    // Without a place for the ack the driver could not learn what became of the command: nothing is done.
    const result = writable.lengthBytes < 1 ? VIRTIO_NET_ERR : this.#execute();
    counters.add(
      result === VIRTIO_NET_OK
        ? NetCounter.ctrlCommands
        : NetCounter.ctrlErrors,
      1,
    );
    this.#ack[0] = result;
    const written = memory.scatter(writable, this.#ack, 1);
    return memory.commit(writable, written) < 0 ? 0 : written;
  }

  #execute(): number {
    if (this.#reader.leftBytes < VIRTIO_NET_CTRL_HDR.SIZE) {
      return VIRTIO_NET_ERR;
    }
    const commandClass = this.#reader.number(1)!;
    const command = this.#reader.number(1)!;
    switch (commandClass) {
      case VIRTIO_NET_CTRL_RX:
        return this.#handleRx(command);
      case VIRTIO_NET_CTRL_MAC:
        return this.#handleMac(command);
      case VIRTIO_NET_CTRL_VLAN:
        return this.#handleVlan(command);
      case VIRTIO_NET_CTRL_ANNOUNCE:
        return this.#handleAnnounce(command);
      default:
        return VIRTIO_NET_ERR;
    }
  }

  #has(feature: number): boolean {
    return this.#features!.has(feature);
  }

  #handleRx(command: number): number {
    const feature = command <= VIRTIO_NET_CTRL_RX_CMD.ALLMULTI
      ? VIRTIO_NET_F.CTRL_RX
      : VIRTIO_NET_F.CTRL_RX_EXTRA;
    if (command > VIRTIO_NET_CTRL_RX_CMD.NOBCAST || !this.#has(feature)) {
      return VIRTIO_NET_ERR;
    }
    const on = this.#reader.number(1);
    if (on === null) return VIRTIO_NET_ERR;
    this.#options.filter.setMode(command, on !== 0);
    return VIRTIO_NET_OK;
  }

  #handleMac(command: number): number {
    switch (command) {
      case VIRTIO_NET_CTRL_MAC_TABLE_SET:
        return this.#has(VIRTIO_NET_F.CTRL_RX)
          ? this.#setMacTable()
          : VIRTIO_NET_ERR;
      case VIRTIO_NET_CTRL_MAC_ADDR_SET:
        return this.#has(VIRTIO_NET_F.CTRL_MAC_ADDR)
          ? this.#setMac()
          : VIRTIO_NET_ERR;
      default:
        return VIRTIO_NET_ERR;
    }
  }

  #setMac(): number {
    if (this.#reader.leftBytes !== ETH_ALEN) return VIRTIO_NET_ERR;
    const mac = this.#reader.bytes(ETH_ALEN)!;
    // A card has an address of its own: not a group's, not none.
    if ((mac[0]! & 1) !== 0 || mac.every((byte) => byte === 0)) {
      return VIRTIO_NET_ERR;
    }
    this.#options.setMac(mac);
    return VIRTIO_NET_OK;
  }

  #setMacTable(): number {
    // Nothing is changed before all of it has been checked.
    const unicast = this.#readTable();
    if (unicast === undefined) return VIRTIO_NET_ERR;
    const multicast = this.#readTable();
    if (multicast === undefined || this.#reader.leftBytes !== 0) {
      return VIRTIO_NET_ERR;
    }
    this.#options.filter.setMacTable(unicast, multicast);
    return VIRTIO_NET_OK;
  }

  /** @returns The addresses, null when there are more than we keep, undefined when the table is cut short */
  #readTable(): Uint8Array | null | undefined {
    const entries = this.#reader.number(4);
    if (entries === null || entries * ETH_ALEN > this.#reader.leftBytes) {
      return undefined;
    }
    if (entries > MAC_TABLE_ENTRIES) {
      this.#reader.skip(entries * ETH_ALEN);
      return null;
    }
    return this.#reader.bytes(entries * ETH_ALEN)!;
  }

  #handleVlan(command: number): number {
    const vid = this.#reader.number(2);
    if (
      !this.#has(VIRTIO_NET_F.CTRL_VLAN) || vid === null || vid >= VLAN_N_VID
    ) {
      return VIRTIO_NET_ERR;
    }
    switch (command) {
      case VIRTIO_NET_CTRL_VLAN_ADD:
      case VIRTIO_NET_CTRL_VLAN_DEL:
        this.#options.filter.setVlan(vid, command === VIRTIO_NET_CTRL_VLAN_ADD);
        return VIRTIO_NET_OK;
      default:
        return VIRTIO_NET_ERR;
    }
  }

  #handleAnnounce(command: number): number {
    if (
      command !== VIRTIO_NET_CTRL_ANNOUNCE_ACK ||
      !this.#has(VIRTIO_NET_F.GUEST_ANNOUNCE)
    ) {
      return VIRTIO_NET_ERR;
    }
    this.#options.acknowledgeAnnounce();
    return VIRTIO_NET_OK;
  }
}
