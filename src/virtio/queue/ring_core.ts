/**
 * The part of a virtqueue that does not depend on the format of its ring.
 *
 * @module
 */

import { hex } from "../../core/bits.ts";
import { Errno } from "../../core/errno.ts";
import {
  Access,
  type GuestMemory,
  MEMORY_PENDING,
  type MemoryWindow,
} from "../../memory/guest_memory.ts";
import { NO_WINDOW } from "../../memory/range_window.ts";
import type { WriteOrder } from "../../pci/posted_writes.ts";
import { ChainLedger } from "./chain_ledger.ts";
import type { Chain } from "./queue.ts";
import { type Features, VIRTIO_F } from "../features.ts";
import type { QueueAddresses } from "./ring.ts";
import type { RingLayout, RingPart, RingParts } from "./ring_layout.ts";
import type { RingPlace } from "./ring_state.ts";

/** No place in any ring. */
export const NOWHERE = -1;

/** No generation of any memory: the ring must be resolved before it is touched. */
const UNRESOLVED = -1;

/**
 * What a queue of either format is beside its ring: where that lies and when it may be touched, what was negotiated,
 * which chains are with the device, and who wants to be notified.
 *
 * The queue around it knows the format and where in the ring it is. It reads the fields, which only the methods here set.
 */
export class RingCore {
  readonly index: number;
  readonly maxSize: number;
  /** Entries of the ring, 0 while the queue is disabled. */
  size = 0;
  /** What was negotiated, as long as the queue is enabled. */
  eventIdx = false;
  indirect = false;
  inOrder = false;
  /** The chains that the driver has not got back; none while the queue is disabled. */
  readonly ledger: ChainLedger = new ChainLedger();
  /** The parts of the ring, to be accessed only after {@linkcode ready}: the descriptors, … */
  desc: MemoryWindow = NO_WINDOW;
  /** … what the driver writes, … */
  driverArea: MemoryWindow = NO_WINDOW;
  /** … and what the device writes. */
  deviceArea: MemoryWindow = NO_WINDOW;
  /** Whether the queue is polled, so that the driver is not asked to notify. */
  polled: boolean;
  /** See {@linkcode Virtqueue.awaitsReach}. */
  awaitsReach = false;
  /**
   * Where in the ring the driver was asked to notify, when to look whether it had something to tell by then has to wait: it
   * is not asked there again. {@linkcode NOWHERE} otherwise.
   */
  askedAt: number = NOWHERE;
  /** See {@linkcode Ring.undecided}. */
  undecided = false;
  /** See {@linkcode Virtqueue.lastError}. */
  lastError = "";
  /** See {@linkcode Ring.keepOrder}. */
  order: WriteOrder | null = null;
  everyChain = false;
  readonly #memory: GuestMemory;
  readonly #layout: RingLayout;
  #addresses: QueueAddresses | null = null;
  #parts: RingParts | null = null;
  #generation = UNRESOLVED;
  #suspended = false;
  #held = false;
  /** Whether the device wants to be notified, once nobody polls. */
  #wantsNotification = true;

  /**
   * @param index Number of the queue in its device
   * @param maxSize The largest size
   * @param polled Whether {@linkcode Ring.poll} is called all the time
   */
  constructor(
    memory: GuestMemory,
    layout: RingLayout,
    index: number,
    maxSize: number,
    polled: boolean,
  ) {
    if (!layout.allowsMaxSize(maxSize)) {
      throw new RangeError(`Cannot make a queue of ${maxSize} entries`);
    }
    this.#memory = memory;
    this.#layout = layout;
    this.index = index;
    this.maxSize = maxSize;
    this.polled = polled;
  }

  /** See {@linkcode Virtqueue.enabled}. */
  get enabled(): boolean {
    return this.#addresses !== null;
  }

  /** See {@linkcode Ring.resolved}. */
  get resolved(): boolean {
    return this.#generation === this.#memory.generation;
  }

  /** Enables a disabled queue; see {@linkcode Ring.enable}. */
  enable(features: Features, addresses: QueueAddresses): number {
    const wrong = this.#layout.check(addresses, this.maxSize);
    if (wrong !== null) {
      this.lastError = wrong;
      return -Errno.EINVAL;
    }
    const { size, descIova, availIova, usedIova } = addresses;
    this.#addresses = { size, descIova, availIova, usedIova };
    this.size = size;
    this.eventIdx = features.has(VIRTIO_F.RING_EVENT_IDX);
    this.#parts = this.#layout.parts(addresses, this.eventIdx);
    this.indirect = features.has(VIRTIO_F.RING_INDIRECT_DESC);
    this.inOrder = features.has(VIRTIO_F.IN_ORDER);
    this.ledger.reset(size, this.inOrder);
    return 0;
  }

  /** Forgets the ring and its chains; whether the queue is held or polled stays as it is. */
  disable(): void {
    for (let head = 0; head < this.size; head++) {
      if (this.ledger.holds(head)) this.abandon(this.ledger.chain(head));
    }
    this.#addresses = this.#parts = null;
    this.size = 0;
    this.#forgetWindows();
    this.ledger.reset(0, false);
    this.#suspended = false;
    this.lastError = "";
    this.awaitsReach = this.undecided = false;
    this.forgetOrder();
  }

  /** See {@linkcode Ring.suspend}. */
  suspend(): void {
    this.#suspended = true;
    this.#forgetWindows();
  }

  /** See {@linkcode Ring.resume}. */
  resume(): void {
    this.#suspended = false;
  }

  /** See {@linkcode Ring.hold}. */
  hold(): void {
    this.#held = true;
  }

  /** See {@linkcode Ring.release}. */
  release(): void {
    this.#held = false;
  }

  /** Where the queue is; the part of {@linkcode Ring.save} that both formats have. */
  save(): RingPlace {
    const at = this.#addresses;
    return {
      enabled: at !== null,
      size: this.size,
      descIova: at?.descIova ?? 0,
      availIova: at?.availIova ?? 0,
      usedIova: at?.usedIova ?? 0,
    };
  }

  /** Whether the ring may be touched: a single comparison once it is resolved. */
  ready(): boolean {
    return this.#generation === this.#memory.generation || this.#resolve();
  }

  /** Whether the ring may be touched, and chains be found in it. */
  readyToTake(): boolean {
    return this.ready() && !this.#held;
  }

  /** Whether chains were found that have to wait for register writes. */
  get waiting(): boolean {
    return this.order !== null && this.order.waiting;
  }

  /** See {@linkcode Ring.keepOrder}. */
  keepOrder(order: WriteOrder | null, everyChain: boolean): void {
    this.order = order;
    this.everyChain = everyChain;
  }

  /** All chains that were found have been taken. */
  forgetOrder(): void {
    this.order?.forget();
  }

  /** Chains were found. @returns Whether they are settled */
  admit(): boolean {
    return this.order === null || this.order.admit();
  }

  /**
   * The device takes the last chain that it popped back from itself.
   *
   * @returns Its head
   * @throws {Error} When the device does not hold it any more: a mistake of the device model
   */
  unpop(): number {
    const head = this.ledger.unpop();
    if (head < 0) throw this.#notHeld("unpop a chain");
    this.abandon(this.ledger.chain(head));
    return head;
  }

  /**
   * Releases the buffers of a chain that nothing was written to.
   *
   * @param writtenBytes 0; MEMORY_PENDING when it will be taken again
   */
  abandon(chain: Chain, writtenBytes = 0): void {
    this.#memory.release(chain.readable, writtenBytes);
    this.#memory.release(chain.writable, writtenBytes);
  }

  /**
   * Looks at a part of the ring.
   *
   * @returns Whether it could; when not, the queue is to be served again
   */
  refresh(part: MemoryWindow, offset: number, lengthBytes: number): boolean {
    if (part.refresh(offset, lengthBytes) === 0) return true;
    this.awaitsReach = true;
    return false;
  }

  /**
   * The device is done with a chain, whose buffers are released. Ignored while the queue is disabled: the driver has reset
   * it, and they are released already.
   *
   * @throws {Error} When the device does not hold it: a mistake of the device model
   */
  push(head: number, writtenBytes: number): void {
    const { ledger } = this;
    if (!ledger.holds(head)) {
      if (this.#addresses === null) return;
      throw this.#notHeld(`push chain ${head}`);
    }
    const { readable, writable } = ledger.chain(head);
    this.#memory.release(readable, 0);
    const result = this.#memory.release(writable, writtenBytes);
    ledger.push(head, result < 0 ? 0 : writtenBytes);
  }

  /**
   * The device wants to be notified.
   *
   * @param at Where in the ring the next chain will be
   * @returns Whether it may look for chains. While the queue is held, or waits for register writes or memory, whoever looks
   * once more would find nothing, for ever
   */
  beginNotifications(at: number): boolean {
    if (!this.ready()) return false;
    this.#wantsNotification = true;
    return !this.#held && !this.waiting && !this.awaitsReach &&
      this.askedAt !== at;
  }

  /** The device does not want to be notified. */
  endNotifications(): void {
    this.#wantsNotification = false;
  }

  /** The queue is polled from here on. */
  beginPolling(): void {
    this.polled = true;
  }

  /**
   * The queue is not polled any more.
   *
   * @returns Whether the driver is to be asked to notify
   */
  endPolling(): boolean {
    this.polled = false;
    return this.#wantsNotification && this.ready();
  }

  /**
   * A chain could not be read: releases its buffers.
   *
   * @param result −errno, or MEMORY_PENDING: then it will be read again
   * @returns What {@linkcode Virtqueue.pop} does
   */
  failChain(chain: Chain, result: number, message: string): number {
    this.awaitsReach = result === MEMORY_PENDING;
    this.abandon(chain, this.awaitsReach ? result : 0);
    return this.awaitsReach ? 0 : this.fail(-result, message);
  }

  /** Notes what the driver did wrong; returns −`errno`. */
  fail(errno: number, message: string): number {
    this.lastError = `queue ${this.index}: ${message}`;
    return -errno;
  }

  /** Refuses a state of a queue of another format. */
  failFormat(format: string): number {
    return this.fail(
      Errno.EINVAL,
      `a ${format} queue was saved, this is a ${this.#layout.format} one`,
    );
  }

  /** See {@linkcode Ring.missing}. */
  missing(): string | null {
    const parts = this.#parts;
    if (
      parts === null || this.#suspended || !this.#memory.accessible ||
      this.ready()
    ) return null;
    for (const { name, iova, lengthBytes, access } of Object.values(parts)) {
      if (this.#memory.covers(iova, lengthBytes, access)) continue;
      return `queue ${this.index}: ${name} at ${
        hex(iova)
      } is not guest memory that may be ${
        access === Access.READ ? "read" : "written"
      }, ${lengthBytes} bytes of it`;
    }
    return `queue ${this.index}: a part of its ring lies in two mappings that do not meet at a page`;
  }

  #resolve(): boolean {
    const parts = this.#parts;
    this.#forgetWindows();
    if (parts === null || this.#suspended) return false;
    const desc = this.#window(parts.desc);
    const driverArea = this.#window(parts.driverArea);
    const deviceArea = this.#window(parts.deviceArea);
    if (desc === null || driverArea === null || deviceArea === null) {
      return false;
    }
    this.desc = desc;
    this.driverArea = driverArea;
    this.deviceArea = deviceArea;
    this.#generation = this.#memory.generation;
    return true;
  }

  #window({ iova, lengthBytes, access }: RingPart): MemoryWindow | null {
    return this.#memory.window(iova, lengthBytes, access);
  }

  #forgetWindows(): void {
    this.#generation = UNRESOLVED;
    this.askedAt = NOWHERE;
    this.desc = this.driverArea = this.deviceArea = NO_WINDOW;
  }

  #notHeld(action: string): Error {
    return new Error(
      `Cannot ${action} of queue ${this.index}: the device does not hold it`,
    );
  }
}
