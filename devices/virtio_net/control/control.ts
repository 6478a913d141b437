/**
 * The control queue (virtio 1.3, section 5.1.6.5).
 *
 * @module
 */

import type { Counters } from "../../../src/core/counters.ts";
import type { BottomHalf, Loop } from "../../../src/loop/event_loop.ts";
import type { GuestMemory } from "../../../src/memory/guest_memory.ts";
import type { ScatterGather } from "../../../src/memory/scatter_gather.ts";
import { Features } from "../../../src/virtio/features.ts";
import { Chain, type Virtqueue } from "../../../src/virtio/queue/queue.ts";
import type { CoalescingLimits } from "../queue/coalescing.ts";
import type { CoalescingControl } from "./coalescing_control.ts";
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
import { askedOffloads } from "../features.ts";

/** Largest size of the control queue. */
export const CTRL_QUEUE_SIZE = 64;

/** Commands that are served before the loop gets its turn. */
const BUDGET = 64;

/** An answer is the ack and then, where the command has one, its result. */
const RESULT = 1;
const RESULT_MAX_BYTES = VIRTIO_NET_CTRL_COAL.SIZE;

/** Parts of a {@linkcode ControlQueue}. */
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
  /** There is an enabled queue of that number for packets. */
  readonly isInUse: (queueIndex: number) => boolean;
  /** The most descriptors in a chain: the queue may be at a number that is a larger queue's otherwise. */
  readonly chainSegments: number;
  /** Puts into force what commands have changed, before the driver sees that they are done. */
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
    this.#reader.begin(this.#chain.readable);
    // Without a place for the ack the driver could not learn what became of the command: nothing is done.
    const isDone = writable.lengthBytes >= RESULT && this.#execute();
    counters.add(
      isDone ? NetCounter.ctrlCommands : NetCounter.ctrlErrors,
      1,
    );
    this.#answer[0] = isDone ? VIRTIO_NET_OK : VIRTIO_NET_ERR;
    return memory.scatter(
      writable,
      this.#answer,
      RESULT + this.#resultBytes,
    );
  }

  /** @returns Whether it was a command, negotiated and right */
  #execute(): boolean {
    const reader = this.#reader;
    if (reader.leftBytes < VIRTIO_NET_CTRL_HDR.SIZE) return false;
    const commandClass = reader.number(1);
    const command = reader.number(1);
    switch (commandClass) {
      case VIRTIO_NET_CTRL_RX:
        return this.#setMode(command);
      case VIRTIO_NET_CTRL_MAC:
        return command === VIRTIO_NET_CTRL_MAC_TABLE_SET
          ? this.#has(VIRTIO_NET_F.CTRL_RX) && this.#setMacTable()
          : command === VIRTIO_NET_CTRL_MAC_ADDR_SET &&
            this.#has(VIRTIO_NET_F.CTRL_MAC_ADDR) && this.#setMac();
      case VIRTIO_NET_CTRL_VLAN:
        return this.#has(VIRTIO_NET_F.CTRL_VLAN) && this.#setVlan(command);
      case VIRTIO_NET_CTRL_ANNOUNCE:
        return command === VIRTIO_NET_CTRL_ANNOUNCE_ACK &&
          this.#has(VIRTIO_NET_F.GUEST_ANNOUNCE) && this.#acknowledge();
      case VIRTIO_NET_CTRL_MQ:
        return command === VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET &&
          this.#has(VIRTIO_NET_F.MQ) && reader.leftBytes === 2 &&
          this.#options.setQueuePairs(reader.number(2));
      case VIRTIO_NET_CTRL_GUEST_OFFLOADS:
        return command === VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET &&
          this.#has(VIRTIO_NET_F.CTRL_GUEST_OFFLOADS) &&
          this.#setGuestOffloads();
      case VIRTIO_NET_CTRL_NOTF_COAL:
        return this.#coalesce(command);
      default:
        return false;
    }
  }

  #has(feature: number): boolean {
    return this.#features!.has(feature);
  }

  #setMode(command: number): boolean {
    const feature = command <= VIRTIO_NET_CTRL_RX_CMD.ALLMULTI
      ? VIRTIO_NET_F.CTRL_RX
      : VIRTIO_NET_F.CTRL_RX_EXTRA;
    const on = this.#reader.number(1);
    if (
      command > VIRTIO_NET_CTRL_RX_CMD.NOBCAST || !this.#has(feature) || on < 0
    ) return false;
    this.#options.filter.setMode(command, on !== 0);
    return true;
  }

  #setMac(): boolean {
    if (this.#reader.leftBytes !== ETH_ALEN) return false;
    const mac = this.#reader.bytes(ETH_ALEN);
    // A card has an address of its own: not a group's, not none.
    if ((mac[0]! & 1) !== 0 || mac.every((byte) => byte === 0)) return false;
    this.#options.setMac(mac);
    return true;
  }

  #setMacTable(): boolean {
    // Nothing is changed before all of it has been checked.
    const unicast = this.#readTable();
    if (unicast === undefined) return false;
    const multicast = this.#readTable();
    if (multicast === undefined || this.#reader.leftBytes !== 0) return false;
    this.#options.filter.setMacTable(unicast, multicast);
    return true;
  }

  /** @returns The addresses, null when there are more than we keep, undefined when the table is cut short */
  #readTable(): Uint8Array | null | undefined {
    const reader = this.#reader;
    const entries = reader.number(4);
    const lengthBytes = entries * ETH_ALEN;
    if (entries < 0 || lengthBytes > reader.leftBytes) return undefined;
    if (entries <= MAC_TABLE_ENTRIES) return reader.bytes(lengthBytes);
    reader.skip(lengthBytes);
    return null;
  }

  #setVlan(command: number): boolean {
    const vid = this.#reader.number(2);
    const adds = command === VIRTIO_NET_CTRL_VLAN_ADD;
    if (
      vid < 0 || vid >= VLAN_N_VID ||
      (!adds && command !== VIRTIO_NET_CTRL_VLAN_DEL)
    ) return false;
    this.#options.filter.setVlan(vid, adds);
    return true;
  }

  #acknowledge(): boolean {
    this.#options.acknowledgeAnnounce();
    return true;
  }

  #setGuestOffloads(): boolean {
    const reader = this.#reader;
    if (reader.leftBytes !== 8) return false;
    const asked = new Features(reader.number(4), reader.number(4));
    const offloads = askedOffloads(asked, this.#features!);
    return offloads >= 0 && this.#options.setGuestOffloads(offloads);
  }

  #coalesce(command: number): boolean {
    const { coalescing } = this.#options;
    const { RX_SET, TX_SET, VQ_SET, VQ_GET } = VIRTIO_NET_CTRL_NOTF_COAL_CMD;
    if (command === RX_SET || command === TX_SET) {
      const limits = this.#readLimits();
      if (!this.#has(VIRTIO_NET_F.NOTF_COAL) || limits === null) return false;
      coalescing.setAll(command === RX_SET ? 0 : 1, limits);
      return true;
    }
    if (!this.#has(VIRTIO_NET_F.VQ_NOTF_COAL)) return false;
    // { le16 vq_index; le16 reserved; }
    const queue = this.#reader.number(2);
    const reserved = this.#reader.number(2);
    if (reserved < 0 || !this.#options.isInUse(queue)) return false;
    if (command === VQ_GET) return this.#tellLimits(coalescing.of(queue));
    const limits = this.#readLimits();
    if (command !== VQ_SET || limits === null) return false;
    coalescing.set(queue, limits);
    return true;
  }

  /** Reads the rest of a command as limits; null when it is longer or shorter. */
  #readLimits(): CoalescingLimits | null {
    const reader = this.#reader;
    if (reader.leftBytes !== VIRTIO_NET_CTRL_COAL.SIZE) return null;
    const maxPackets = reader.number(4);
    const maxUsecs = reader.number(4);
    return { maxPackets, maxUsecs };
  }

  #tellLimits({ maxPackets, maxUsecs }: CoalescingLimits): boolean {
    const { MAX_PACKETS, MAX_USECS, SIZE } = VIRTIO_NET_CTRL_COAL;
    const room = this.#chain.writable.lengthBytes - RESULT;
    if (room < SIZE || this.#reader.leftBytes !== 0) return false;
    this.#result.setUint32(MAX_PACKETS, maxPackets, true);
    this.#result.setUint32(MAX_USECS, maxUsecs, true);
    this.#resultBytes = SIZE;
    return true;
  }
}

/** Reads a command's data from the front. */
class CommandReader {
  readonly #memory: GuestMemory;
  readonly #list: ScatterGather;
  readonly #word = new Uint8Array(4);
  readonly #view = new DataView(this.#word.buffer);

  constructor(memory: GuestMemory, segments: number) {
    this.#memory = memory;
    this.#list = memory.createScatterGather(segments);
  }

  begin(list: ScatterGather): void {
    this.#list.clear();
    this.#list.append(list);
  }

  /** Bytes that have not been read. */
  get leftBytes(): number {
    return this.#list.lengthBytes;
  }

  /** Reads 1, 2 or 4 bytes, little-endian; −1 at the end of the data. */
  number(width: 1 | 2 | 4): number {
    this.#word.fill(0);
    if (this.#memory.gather(this.#list, this.#word, width) < width) return -1;
    this.#list.consume(width);
    return this.#view.getUint32(0, true);
  }

  /** Reads bytes, no more than are left. */
  bytes(lengthBytes: number): Uint8Array {
    const bytes = new Uint8Array(lengthBytes);
    this.#memory.gather(this.#list, bytes, lengthBytes);
    this.#list.consume(lengthBytes);
    return bytes;
  }

  skip(lengthBytes: number): void {
    this.#list.consume(lengthBytes);
  }
}
