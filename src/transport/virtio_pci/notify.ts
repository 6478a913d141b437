/**
 * The notify structure of virtio over PCI (virtio 1.3, section 4.1.4.4): how drivers tell a device to look at a queue.
 *
 * @module
 */

import { PAGE_SIZE } from "../../core/bits.ts";
import type { Poller } from "../../loop/event_loop.ts";
import { LookTimer } from "../../loop/look_timer.ts";
import type { DeviceContext } from "../../pci/context.ts";
import type {
  AccessWidth,
  BarSpec,
  Doorbell,
  MmapArea,
  SharedMemory,
} from "../../pci/device.ts";
import { VIRTIO_F } from "../../virtio/features.ts";
import type { VirtioSession } from "../../virtio/session/session.ts";
import { KickPath } from "../../virtio/session/queues.ts";

/** Bytes of a queue's slot: what NOTIFICATION_DATA makes drivers write (section 4.1.5.2.2). */
export const NOTIFY_SLOT_BYTES = 4;

/** Listener for notifications. */
type Kicked = Pick<VirtioSession, "kick" | "kickWithData">;

/** The upper half of a slot that nobody wrote to. */
const UPPER_HALF = 0xffff;

/**
 * Value of a slot while its queue is not notified: the complement of the queue's index. A driver writes the index to
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
  look(session: Kicked, path: KickPath): boolean {
    const slots = this.#slots;
    let found = false;
    for (let queue = 0; queue < slots.length; queue++) {
      const empty = sentinel(queue);
      if (Atomics.load(slots, queue) === empty) continue;
      const data = Atomics.exchange(slots, queue, empty) >>> 16;
      found = true;
      // Untouched, or data that cannot be told from it: looking at the queue is right in both cases.
      if (data === UPPER_HALF) session.kick(queue, path);
      else session.kickWithData(queue, data, path);
    }
    return found;
  }
}

/** Bytes of memory for the slots of so many queues, in whole pages. */
export function notifyPageBytes(queues: number): number {
  const pages = Math.ceil(queues * NOTIFY_SLOT_BYTES / PAGE_SIZE);
  return Math.max(1, pages) * PAGE_SIZE;
}

/** A {@linkcode NotifyPage}, where in the BAR it is, and what looks at it while the loop sleeps. */
interface MappedNotify {
  readonly area: MmapArea;
  readonly page: NotifyPage;
  readonly timer: LookTimer;
}

/**
 * The doorbells of all queues, {@linkcode NOTIFY_SLOT_BYTES} apart: registers and eventfds, or memory that clients map and
 * we look at.
 */
export class NotifyStructure {
  /** Offset in its BAR. */
  readonly offset: number;
  /** Bytes that it takes of the BAR. */
  readonly lengthBytes: number;
  readonly #session: VirtioSession;
  readonly #mapped: MappedNotify | null;
  readonly #poller: Poller;

  /**
   * @param offset Where it begins in its BAR
   * @param mapped Whether clients map it
   */
  constructor(
    context: DeviceContext,
    session: VirtioSession,
    offset: number,
    mapped: boolean,
  ) {
    this.offset = offset;
    this.lengthBytes = notifyPageBytes(session.queues.length);
    this.#session = session;
    this.#mapped = mapped ? this.#map(context) : null;
    context.log.debug(
      mapped
        ? "drivers notify by a page that the client maps"
        : "drivers notify by messages and eventfds",
    );
    this.#poller = context.loop.poll(() => this.#poll(), {
      begin: () => {
        this.#mapped?.timer.beginPolling();
        session.beginPolling();
      },
      end: () => {
        this.#mapped?.timer.endPolling();
        return session.endPolling();
      },
    });
  }

  /** True when clients map it. */
  get mapped(): boolean {
    return this.#mapped !== null;
  }

  /** Part that it adds to the description of its BAR. */
  get barSpec(): Pick<BarSpec, "doorbells" | "mmap"> {
    return this.#mapped === null
      ? { doorbells: this.#doorbells() }
      : { mmap: [this.#mapped.area] };
  }

  /** The queue that is notified at an offset of the BAR; there may be none of that number. */
  queueAt(offset: number): number {
    return Math.floor((offset - this.offset) / NOTIFY_SLOT_BYTES);
  }

  /** A driver notifies a queue by a register write. */
  write(offset: number, width: AccessWidth, value: number): void {
    // The address names the queue; the value does too, but need not be trusted (4.1.5.2).
    const queue = this.queueAt(offset);
    // With NOTIFICATION_DATA the upper half says how far the driver has come.
    const path = KickPath.MESSAGE;
    if (width === 4) this.#session.kickWithData(queue, value >>> 16, path);
    else this.#session.kick(queue, path);
  }

  /** The device may have begun to run: sees to it that somebody looks. */
  lookIfRunning(): void {
    if (this.#mapped !== null && this.#session.running) {
      this.#mapped.timer.start();
    }
  }

  /** Looks no more while the loop sleeps, until {@linkcode lookIfRunning}. */
  stop(): void {
    this.#mapped?.timer.stop();
  }

  /** Forgets notifications that nobody looked at, and stops. */
  reset(): void {
    this.stop();
    this.#mapped?.page.clear();
  }

  /** Looks and polls no more, for good. */
  close(): void {
    this.#poller.close();
    this.#mapped?.timer.close();
  }

  #map(context: DeviceContext): MappedNotify {
    const memory = context.createSharedMemory(
      "virtio-notify",
      this.lengthBytes,
    );
    const page = new NotifyPage(memory, this.#session.queues.length);
    const area = {
      offset: this.offset,
      memory,
      // A message that wrote there need not wait for the next look.
      onWrite: () => {
        page.look(this.#session, KickPath.MESSAGE);
      },
    };
    const timer = new LookTimer(context.loop, () => this.#onTimer());
    return { area, page, timer };
  }

  /** Looks for notifications in memory, and for new chains in the rings; returns whether there were any. */
  #poll(): boolean {
    const mapped = this.#mapped;
    const noted = mapped !== null &&
      mapped.page.look(this.#session, KickPath.PAGE);
    return this.#session.poll() || noted;
  }

  /** A driver that polls (SPDK's) never notifies, so the rings are looked at too. */
  #onTimer(): boolean {
    if (this.#session.running) return this.#poll();
    this.stop();
    return false;
  }

  #doorbells(): Doorbell[] {
    // A driver writes the 16-bit queue index, or 32 bits when it takes NOTIFICATION_DATA up (4.1.5.2), which is not
    // known yet. An eventfd carries no data, so it is a plain kick then; another width is a trapped write.
    const sizeBytes = this.#session.offered.has(VIRTIO_F.NOTIFICATION_DATA)
      ? 0
      : 2;
    return this.#session.queues.map((_, i) => ({
      offset: this.offset + i * NOTIFY_SLOT_BYTES,
      sizeBytes,
    }));
  }
}
