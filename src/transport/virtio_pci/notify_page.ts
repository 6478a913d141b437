/**
 * Notifications that are stores to memory: the notify structure as pages that clients map (virtio 1.3, section 4.1.4.4).
 *
 * @module
 */

import { PAGE_SIZE } from "../../core/bits.ts";
import type { SharedMemory } from "../../pci/device.ts";

/** Bytes of a queue's slot: what NOTIFICATION_DATA makes drivers write (section 4.1.5.2.2). */
export const NOTIFY_SLOT_BYTES = 4;

/** What {@linkcode NotifyPage.look} calls for each notification it finds. */
export interface NotifyPageListener {
  /** A driver notified a queue, by 16 bits or fewer. */
  kick(queue: number): void;
  /** A driver notified a queue; `data` is what it wrote to the upper 16 bits. */
  kickWithData(queue: number, data: number): void;
}

/** The upper half of a slot that nobody wrote to. */
const UPPER_HALF = 0xffff;

/**
 * What a slot holds while its queue is not notified: the complement of the queue's index. A driver writes the index to
 * the lower half, whatever the width of its write, and no byte of that is equal to the complement's.
 */
function sentinel(queue: number): number {
  return ~queue;
}

/**
 * One 32-bit slot for each queue, in memory that clients write and we look at.
 *
 * Memory ordering: a driver makes buffers available and then stores to the slot; the slot is exchanged, sequentially
 * consistent, before the ring is looked at. So either a store is seen, or it comes after the exchange and is found by the
 * next look. Two stores between two looks are one notification, as they may be.
 *
 * A client may write anything anywhere: whatever is not the sentinel of its slot is a notification of that queue.
 */
export class NotifyPage {
  readonly #slots: Int32Array<ArrayBuffer>;

  /**
   * @param memory Of at least {@linkcode notifyPageBytes}; may be moved to another file, but not in our address space
   * @param queues How many slots there are
   */
  constructor(memory: SharedMemory, queues: number) {
    const { buffer, byteOffset } = memory.bytes;
    this.#slots = new Int32Array(buffer, byteOffset, queues);
    this.clear();
  }

  /** Forgets notifications that were not looked at. */
  clear(): void {
    for (let queue = 0; queue < this.#slots.length; queue++) {
      Atomics.store(this.#slots, queue, sentinel(queue));
    }
  }

  /**
   * Takes the notifications that came since the last look.
   *
   * @returns Whether there were any
   */
  look(listener: NotifyPageListener): boolean {
    const slots = this.#slots;
    let found = false;
    for (let queue = 0; queue < slots.length; queue++) {
      const empty = sentinel(queue);
      if (Atomics.load(slots, queue) === empty) continue;
      const data = Atomics.exchange(slots, queue, empty) >>> 16;
      found = true;
      // Untouched, or data that cannot be told from it: looking at the queue is right in both cases.
      if (data === UPPER_HALF) listener.kick(queue);
      else listener.kickWithData(queue, data);
    }
    return found;
  }
}

/** How much memory the slots of so many queues take, in whole pages. */
export function notifyPageBytes(queues: number): number {
  const pages = Math.ceil(queues * NOTIFY_SLOT_BYTES / PAGE_SIZE);
  return Math.max(1, pages) * PAGE_SIZE;
}
