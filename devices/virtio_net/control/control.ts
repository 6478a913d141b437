/**
 * The control queue (virtio 1.3, section 5.1.6.5).
 *
 * @module
 */

import type { Counters } from "../../../src/core/counters.ts";
import type { BottomHalf, Loop } from "../../../src/loop/event_loop.ts";
import type { GuestMemory } from "../../../src/memory/guest_memory.ts";
import { Features } from "../../../src/virtio/features.ts";
import { Chain, type Virtqueue } from "../../../src/virtio/queue/queue.ts";
import type { CoalescingControl } from "./coalescing_control.ts";
import { CommandReader } from "./command_reader.ts";
import { NetCounter } from "../counters.ts";
import {
  ETH_ALEN,
  VIRTIO_NET_CTRL_ANNOUNCE,
  VIRTIO_NET_CTRL_ANNOUNCE_ACK,
  VIRTIO_NET_CTRL_COAL,
  VIRTIO_NET_CTRL_GUEST_OFFLOADS,
  VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET,
  VIRTIO_NET_CTRL_HDR,
  VIRTIO_NET_CTRL_MAC,
  VIRTIO_NET_CTRL_MAC_ADDR_SET,
  VIRTIO_NET_CTRL_MAC_TABLE_SET,
  VIRTIO_NET_CTRL_MQ,
  VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET,
  VIRTIO_NET_CTRL_NOTF_COAL,
  VIRTIO_NET_CTRL_NOTF_COAL_CMD,
  VIRTIO_NET_CTRL_RX,
  VIRTIO_NET_CTRL_RX_CMD,
  VIRTIO_NET_CTRL_VLAN,
  VIRTIO_NET_CTRL_VLAN_ADD,
  VIRTIO_NET_CTRL_VLAN_DEL,
  VIRTIO_NET_ERR,
  VIRTIO_NET_F,
  VIRTIO_NET_OK,
  VLAN_N_VID,
} from "../defs.ts";
import { MAC_TABLE_ENTRIES, type ReceiveFilter } from "./filter.ts";
import { askedOffloads } from "../offloads.ts";

/** Largest size of the control queue. */
export const CTRL_QUEUE_SIZE = 64;

/** Commands that are served before the loop gets its turn. */
const BUDGET = 64;

/** An answer is the ack and then, where the command has one, its result. */
const RESULT = 1;
const RESULT_MAX_BYTES = VIRTIO_NET_CTRL_COAL.SIZE;

/** What a {@linkcode ControlQueue} works with. */
export interface ControlQueueOptions {
  readonly memory: GuestMemory;
  readonly loop: Loop;
  readonly filter: ReceiveFilter;
  readonly counters: Counters;
  /** The driver sets the card's address, 6 bytes. */
  readonly setMac: (mac: Uint8Array) => void;
  /** The driver has seen that it is to announce itself. */
  readonly acknowledgeAnnounce: () => void;
  /** The driver uses so many queue pairs (any number); false when that cannot be. */
  readonly setQueuePairs: (count: number) => boolean;
  /** The driver chooses receive offloads that it has negotiated, a set of NetOffload; false when that cannot be. */
  readonly setGuestOffloads: (offloads: number) => boolean;
  readonly coalescing: CoalescingControl;
  /** The most descriptors in a chain: the queue may be at a number that is a larger queue's otherwise. */
  readonly chainSegments: number;
  /** What commands have changed is to be in force before the driver sees that they are done. */
  readonly apply: () => void;
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
  readonly #answer = new Uint8Array(RESULT + RESULT_MAX_BYTES);
  readonly #result = new DataView(this.#answer.buffer, RESULT);
  readonly #more: BottomHalf;
  #queue: Virtqueue | null = null;
  #features: Features | null = null;
  /** Length of the command's result. */
  #resultBytes = 0;

  constructor(options: ControlQueueOptions) {
    this.#options = options;
    const segments = Math.max(CTRL_QUEUE_SIZE, options.chainSegments);
    this.#chain = new Chain(options.memory, segments);
    this.#reader = new CommandReader(options.memory, segments);
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
    this.#more.cancel();
  }

  /** The driver has added commands. */
  run(): void {
    const queue = this.#queue;
    if (queue === null || !queue.enabled) return;
    const { apply, interrupt, fail } = this.#options;
    let left = BUDGET;
    let got = 0;
    do {
      queue.disableNotifications();
      while (left > 0 && (got = queue.pop(this.#chain)) > 0) {
        queue.push(this.#chain.head, this.#serve());
        left--;
      }
      apply();
      if (queue.publish()) interrupt(queue);
      if (got < 0) return fail(queue.lastError);
      if (left === 0) return this.#more.schedule();
    } while (queue.enableNotifications());
  }

  /** @returns How many bytes were written */
  #serve(): number {
    const { memory, counters } = this.#options;
    const writable = this.#chain.writable;
    this.#resultBytes = 0;
    // Without a place for the ack the driver could not learn what became of the command: nothing is done.
    this.#reader.begin(this.#chain.readable);
    const result = writable.lengthBytes < 1 ? VIRTIO_NET_ERR : this.#execute();
    counters.add(
      result === VIRTIO_NET_OK
        ? NetCounter.ctrlCommands
        : NetCounter.ctrlErrors,
      1,
    );
    this.#answer[0] = result;
    return memory.scatter(
      writable,
      this.#answer,
      RESULT + this.#resultBytes,
    );
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
      case VIRTIO_NET_CTRL_MQ:
        return this.#handleMq(command);
      case VIRTIO_NET_CTRL_GUEST_OFFLOADS:
        return this.#handleGuestOffloads(command);
      case VIRTIO_NET_CTRL_NOTF_COAL:
        return this.#handleCoalescing(command);
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

  #handleMq(command: number): number {
    if (
      command !== VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET ||
      !this.#has(VIRTIO_NET_F.MQ) || this.#reader.leftBytes !== 2
    ) {
      return VIRTIO_NET_ERR;
    }
    return this.#options.setQueuePairs(this.#reader.number(2)!)
      ? VIRTIO_NET_OK
      : VIRTIO_NET_ERR;
  }

  #handleGuestOffloads(command: number): number {
    if (
      command !== VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET ||
      !this.#has(VIRTIO_NET_F.CTRL_GUEST_OFFLOADS) ||
      this.#reader.leftBytes !== 8
    ) {
      return VIRTIO_NET_ERR;
    }
    const low = this.#reader.number(4)!;
    const high = this.#reader.number(4)!;
    const offloads = askedOffloads(new Features(low, high), this.#features!);
    return offloads >= 0 && this.#options.setGuestOffloads(offloads)
      ? VIRTIO_NET_OK
      : VIRTIO_NET_ERR;
  }

  #handleCoalescing(command: number): number {
    const { coalescing } = this.#options;
    const ofQueue = command >= VIRTIO_NET_CTRL_NOTF_COAL_CMD.VQ_SET;
    if (
      !this.#has(ofQueue ? VIRTIO_NET_F.VQ_NOTF_COAL : VIRTIO_NET_F.NOTF_COAL)
    ) {
      return VIRTIO_NET_ERR;
    }
    if (command !== VIRTIO_NET_CTRL_NOTF_COAL_CMD.VQ_GET) {
      return coalescing.set(command, this.#reader)
        ? VIRTIO_NET_OK
        : VIRTIO_NET_ERR;
    }
    const room = this.#chain.writable.lengthBytes - RESULT;
    if (
      room < VIRTIO_NET_CTRL_COAL.SIZE ||
      !coalescing.get(this.#reader, this.#result)
    ) {
      return VIRTIO_NET_ERR;
    }
    this.#resultBytes = VIRTIO_NET_CTRL_COAL.SIZE;
    return VIRTIO_NET_OK;
  }
}
