/**
 * The control commands of notification coalescing (virtio 1.3, section 5.1.6.5.9).
 *
 * @module
 */

import { type CoalescingLimits, NO_COALESCING } from "../queue/coalescing.ts";
import type { CommandReader } from "./command_reader.ts";
import type { CoalescingState } from "../state.ts";
import {
  VIRTIO_NET_CTRL_COAL,
  VIRTIO_NET_CTRL_NOTF_COAL_CMD,
} from "../defs.ts";

/** Limits for all receive queues, all transmit queues, and queues by number. */
export class CoalescingControl {
  /** By queue number. */
  readonly #limits: CoalescingLimits[];
  readonly #isInUse: (queueIndex: number) => boolean;
  /** What all receive queues, and all transmit queues, were given last. */
  readonly #common: [CoalescingLimits, CoalescingLimits] = [
    NO_COALESCING,
    NO_COALESCING,
  ];

  /**
   * @param queues How many there are: receive, transmit, receive, …
   * @param isInUse Whether there is an enabled queue of that number for packets
   */
  constructor(
    queues: number,
    isInUse: (queueIndex: number) => boolean,
  ) {
    this.#limits = new Array(queues).fill(NO_COALESCING);
    this.#isInUse = isInUse;
  }

  /** Back to none, everywhere. */
  reset(): void {
    this.#common.fill(NO_COALESCING);
    this.#limits.fill(NO_COALESCING);
  }

  /** A queue begins anew with what all of its kind have. */
  resetQueue(queueIndex: number): void {
    this.#limits[queueIndex] = this.#common[queueIndex & 1]!;
  }

  /**
   * Executes a command other than VQ_GET.
   *
   * @returns Whether it was one, and right
   */
  set(command: number, reader: CommandReader): boolean {
    switch (command) {
      case VIRTIO_NET_CTRL_NOTF_COAL_CMD.RX_SET:
        return this.#setAll(0, readLimits(reader));
      case VIRTIO_NET_CTRL_NOTF_COAL_CMD.TX_SET:
        return this.#setAll(1, readLimits(reader));
      case VIRTIO_NET_CTRL_NOTF_COAL_CMD.VQ_SET: {
        const queue = this.#readQueue(reader);
        const limits = readLimits(reader);
        if (queue < 0 || limits === null) return false;
        this.#limits[queue] = limits;
        return true;
      }
      default:
        return false;
    }
  }

  /**
   * Executes VQ_GET.
   *
   * @param into Where struct virtio_net_ctrl_coal goes
   * @returns Whether it was right
   */
  get(reader: CommandReader, into: DataView): boolean {
    const queue = this.#readQueue(reader);
    if (queue < 0 || reader.leftBytes !== 0) return false;
    const { maxPackets, maxUsecs } = this.#limits[queue]!;
    into.setUint32(VIRTIO_NET_CTRL_COAL.MAX_PACKETS, maxPackets, true);
    into.setUint32(VIRTIO_NET_CTRL_COAL.MAX_USECS, maxUsecs, true);
    return true;
  }

  /** What was set. */
  save(): CoalescingState {
    return {
      rx: this.#common[0],
      tx: this.#common[1],
      queues: [...this.#limits],
    };
  }

  /** Takes over what {@linkcode save} gave, of as many queues. */
  load(state: CoalescingState): void {
    this.#common[0] = state.rx;
    this.#common[1] = state.tx;
    this.#limits.splice(0, Infinity, ...state.queues);
  }

  #setAll(kind: 0 | 1, limits: CoalescingLimits | null): boolean {
    if (limits === null) return false;
    this.#common[kind] = limits;
    for (let i = kind; i < this.#limits.length; i += 2) {
      this.#limits[i] = limits;
    }
    return true;
  }

  /** Reads `{ le16 vq_index; le16 reserved; }`; −1 when there is no such queue. */
  #readQueue(reader: CommandReader): number {
    const index = reader.number(2);
    const reserved = reader.number(2);
    if (index === null || reserved === null || !this.#isInUse(index)) {
      return -1;
    }
    return index;
  }
}

/** Reads the rest of a command as limits; null when it is longer or shorter. */
function readLimits(reader: CommandReader): CoalescingLimits | null {
  if (reader.leftBytes !== VIRTIO_NET_CTRL_COAL.SIZE) return null;
  const maxPackets = reader.number(4)!;
  const maxUsecs = reader.number(4)!;
  return { maxPackets, maxUsecs };
}
