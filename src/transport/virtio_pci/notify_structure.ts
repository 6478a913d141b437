/**
 * The notify structure of virtio over PCI (virtio 1.3, section 4.1.4.4): how drivers tell a device to look at a queue.
 *
 * @module
 */

import type { Poller } from "../../loop/event_loop.ts";
import { LookTimer } from "../../loop/look_timer.ts";
import type { DeviceContext } from "../../pci/context.ts";
import type {
  AccessWidth,
  BarSpec,
  Doorbell,
  MmapArea,
} from "../../pci/device.ts";
import { VIRTIO_F } from "../../virtio/features.ts";
import {
  NOTIFY_SLOT_BYTES,
  NotifyPage,
  notifyPageBytes,
  type NotifyPageListener,
} from "./notify_page.ts";
import type { VirtioSession } from "../../virtio/session/session.ts";
import { KickPath } from "../../virtio/session/queues.ts";

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
  /** Where it begins in its BAR. */
  readonly offset: number;
  /** How much of the BAR it takes. */
  readonly lengthBytes: number;
  readonly #session: VirtioSession;
  readonly #byPage: NotifyPageListener;
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
    this.#byPage = this.#listener(KickPath.PAGE);
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

  /** Whether clients map it. */
  get mapped(): boolean {
    return this.#mapped !== null;
  }

  /** What it adds to the description of its BAR. */
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
    const byMessage = this.#listener(KickPath.MESSAGE);
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
        page.look(byMessage);
      },
    };
    const timer = new LookTimer(context.loop, () => this.#onTimer());
    return { area, page, timer };
  }

  /** Looks for notifications in memory, and for new chains in the rings; returns whether there were any. */
  #poll(): boolean {
    const mapped = this.#mapped;
    const noted = mapped !== null && mapped.page.look(this.#byPage);
    return this.#session.poll() || noted;
  }

  /** A driver that polls (SPDK's) never notifies, so the rings are looked at too. */
  #onTimer(): boolean {
    if (this.#session.running) return this.#poll();
    this.stop();
    return false;
  }

  #listener(path: KickPath): NotifyPageListener {
    const session = this.#session;
    return {
      kick: (queue) => session.kick(queue, path),
      kickWithData: (queue, data) => session.kickWithData(queue, data, path),
    };
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
