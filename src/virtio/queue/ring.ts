/**
 * The virtqueue of a device, in whichever format its ring is.
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
import { VIRTQUEUE_MAX_SIZE } from "../defs.ts";
import { type Features, VIRTIO_F } from "../features.ts";
import { ChainLedger } from "./chain_ledger.ts";
import type { Chain, Virtqueue } from "./queue.ts";
import {
  checkParts,
  type QueueAddresses,
  type RingPart,
  type RingParts,
} from "./ring_parts.ts";
import type { RingState } from "./ring_state.ts";

/** No place in any ring. */
export const NOWHERE = -1;

/** No generation of any memory: the ring must be resolved before it is touched. */
const UNRESOLVED = -1;

/**
 * The ring of one queue in one format: how chains are found and given back there, and how far either has come. Touches the
 * ring only in what its {@linkcode Ring} calls while that is ready, and {@linkcode RingFormat.spare}.
 */
export interface RingFormat {
  /** Name of the format in saved states. */
  readonly name: RingState["format"];
  /** Place of the next chain, as NOTIFICATION_DATA says it (virtio 1.3, section 2.9). */
  readonly here: number;
  /** Section of the standard that says how the parts are aligned. */
  readonly alignment: string;
  /** The rule that a queue size breaks; null for none. */
  checkSize(size: number, maxSize: number): string | null;
  /** Parts that the device accesses. */
  parts(at: QueueAddresses, eventIdx: boolean): RingParts;
  /** Begins at the start of a ring of so many entries. */
  reset(size: number): void;
  /** Position in the ring, beside what states of both formats have. */
  save(): unknown;
  /**
   * Goes on where {@linkcode RingFormat.save} was called, of a ring of this format.
   *
   * @returns What is wrong with the state; null for nothing
   */
  load(state: RingState): string | null;
  /** Looks for new chains, as {@linkcode Ring.poll}. */
  poll(): boolean;
  /**
   * Finds the next chain, unless it was found before; calls {@linkcode Ring.found} for new ones.
   *
   * @returns 1 when it is there, 0 when not, −errno when the driver broke a rule
   */
  look(): number;
  /**
   * Takes the chain that was found.
   *
   * @returns As {@linkcode Virtqueue.pop}
   */
  take(chain: Chain): number;
  /** The chain that was taken last is given back. */
  unpop(head: number): void;
  /**
   * Shows the driver the chains that the ledger gives back.
   *
   * @returns How many places of the ring they had; 0 for no chain
   */
  publish(): number;
  /**
   * Looks at the driver's event suppression.
   *
   * @returns False while that is not in reach
   */
  refreshEvents(): boolean;
  /**
   * True when the driver wants to know of `count` places that were used, the first of them `ago` places before the
   * next; after {@linkcode RingFormat.refreshEvents}.
   */
  wantsInterrupt(ago: number, count: number): boolean;
  /**
   * Asks the driver to notify of the next chain.
   *
   * @param unseen Of the next that poll has not seen
   */
  ask(unseen: boolean): void;
  /** Tells the driver not to notify, if the ring is ready and it does not know yet. */
  spare(): void;
  /** 1 when there is a chain to be taken, 0 when not, {@linkcode NOWHERE} while that is not in reach. */
  more(): number;
}

/** Makes the formats of a ring. */
export interface RingFormats {
  split(ring: Ring): RingFormat;
  packed(ring: Ring): RingFormat;
}

/**
 * A virtqueue as its transport uses it, and through {@linkcode Virtqueue} the device model.
 *
 * ```text
 *   disabled --enable--> enabled ⇄ suspended
 *      ↑                    |          |
 *      └───── disable ──────┴──────────┘
 * ```
 * While it is suspended, or its ring is not mapped, {@linkcode Ring.pop} finds nothing and what is pushed is kept until
 * the ring can be reached again. While it is held, in any state, pop finds nothing either, but what is pushed goes to the
 * driver.
 *
 * This class has what does not depend on the format: where the ring lies and when it may be touched, what was negotiated,
 * which chains are with the device, and who wants to be notified. The format reads the fields, which only methods here
 * set unless they say otherwise.
 *
 * Memory ordering: indices, the flags that make a descriptor available or used, and the event words are accessed by
 * Atomics, which JavaScript defines to be sequentially consistent. A load of an index thus comes before the loads of what
 * it covers, a store of an index after the stores of what it covers, and, which is the full barrier that both notification
 * protocols need (section 2.7.13.4.1, 2.8.21.3.1 and their mirror images for the device), a store of an index or event word
 * before a later load of the other side's word: on x86-64 the store is an XCHG, on AArch64 the pair is STLR and LDAR.
 */
export class Ring implements Virtqueue {
  readonly index: number;
  /** The largest size the device offers. */
  readonly maxSize: number;
  enabled = false;
  size = 0;
  lastError = "";
  awaitsReach = false;
  /** Number of published batches of which the driver did not want to hear; whoever adds them up sets it to 0. */
  suppressed = 0;
  /** True while something was published of which it is not known whether the driver wants an interrupt: publish again. */
  undecided = false;
  /** Features that were negotiated, as long as the queue is enabled. */
  eventIdx = false;
  indirect = false;
  inOrder = false;
  /** The chains that the driver has not got back; none while the queue is disabled. */
  readonly ledger: ChainLedger = new ChainLedger();
  /** The parts of the ring, to be accessed only after {@linkcode Ring.ready}: the descriptors, … */
  desc: MemoryWindow = NO_WINDOW;
  /** … what the driver writes, … */
  driverArea: MemoryWindow = NO_WINDOW;
  /** … and what the device writes. */
  deviceArea: MemoryWindow = NO_WINDOW;
  /** True while the queue is polled, so that the driver is not asked to notify. */
  polled: boolean;
  readonly #memory: GuestMemory;
  readonly #formats: RingFormats;
  readonly #split: RingFormat;
  /** Made when a driver first wants it: a process that never meets one keeps its calls monomorphic. */
  #packed: RingFormat | null = null;
  #format: RingFormat;
  #addresses: QueueAddresses | null = null;
  #parts: RingParts | null = null;
  #generation = UNRESOLVED;
  #suspended = false;
  #held = false;
  #order: WriteOrder | null = null;
  #everyChain = false;
  /** True when everything that was found is behind register writes that have been carried out. */
  #settled = true;
  /**
   * Place in the ring where the driver was asked to notify, when to look whether it had something to tell by then has to wait: it
   * is not asked there again. {@linkcode NOWHERE} otherwise.
   */
  #askedAt = NOWHERE;
  /** For how many used places it is not decided whether the driver gets an interrupt, and for how many that is looked at. */
  #untold = 0;
  #asked = 0;
  /** The device wants to be notified, once nobody polls. */
  #wantsNotification = true;

  /**
   * @param index Number of the queue in its device
   * @param maxSize The largest size, up to 32768; for split queues a power of two
   * @param polled Whether {@linkcode Ring.poll} is called all the time
   */
  constructor(
    memory: GuestMemory,
    formats: RingFormats,
    index: number,
    maxSize: number,
    polled: boolean,
  ) {
    if (
      !Number.isInteger(maxSize) || maxSize < 1 || maxSize > VIRTQUEUE_MAX_SIZE
    ) {
      throw new RangeError(`Cannot make a queue of ${maxSize} entries`);
    }
    this.#memory = memory;
    this.#formats = formats;
    this.index = index;
    this.maxSize = maxSize;
    this.polled = polled;
    this.#format = this.#split = formats.split(this);
  }

  /** Number of chains that the device has popped and not pushed. */
  get inFlight(): number {
    return this.ledger.held;
  }

  /**
   * Number of chains that the driver has not got back: those in flight, and those that are pushed but not published, wait for
   * others (IN_ORDER), or could not be published because the ring was out of reach.
   */
  get outstanding(): number {
    return this.ledger.outstanding;
  }

  /** True when the ring was found in memory, and nothing of the kind has been unmapped since. */
  get resolved(): boolean {
    return this.#generation === this.#memory.generation;
  }

  /**
   * Starts the queue from its beginning. The ring is not touched yet: a driver may zero it after it has enabled the
   * queue (SPDK does).
   *
   * @param features The negotiated features
   * @returns 0, or −EINVAL when the driver broke a rule ({@linkcode Virtqueue.lastError}); the queue is then disabled
   */
  enable(features: Features, addresses: QueueAddresses): number {
    this.disable();
    const format = features.has(VIRTIO_F.RING_PACKED)
      ? this.#packed ??= this.#formats.packed(this)
      : this.#split;
    const { size, descIova, availIova, usedIova } = addresses;
    const wrong = format.checkSize(size, this.maxSize) ??
      checkParts(format.parts(addresses, true), format.alignment);
    if (wrong !== null) {
      this.lastError = wrong;
      return -Errno.EINVAL;
    }
    this.#format = format;
    this.#addresses = { size, descIova, availIova, usedIova };
    this.enabled = true;
    this.size = size;
    this.eventIdx = features.has(VIRTIO_F.RING_EVENT_IDX);
    this.#parts = format.parts(addresses, this.eventIdx);
    this.indirect = features.has(VIRTIO_F.RING_INDIRECT_DESC);
    this.inOrder = features.has(VIRTIO_F.IN_ORDER);
    this.ledger.reset(size, this.inOrder);
    format.reset(size);
    return 0;
  }

  /**
   * Forgets the ring and what is in flight; until it is enabled again pop finds nothing and push does nothing. Hold, polling
   * and order stay as they are.
   */
  disable(): void {
    for (let head = 0; head < this.size; head++) {
      if (this.ledger.holds(head)) this.abandon(this.ledger.chain(head));
    }
    this.#addresses = this.#parts = null;
    this.enabled = this.#suspended = false;
    this.size = 0;
    this.#forgetWindows();
    this.ledger.reset(0, false);
    this.#format.reset(0);
    this.lastError = "";
    this.awaitsReach = this.undecided = false;
    this.#untold = 0;
    this.forgetOrder();
  }

  /** Stops touching the ring, until {@linkcode Ring.resume}; nothing is lost. */
  suspend(): void {
    this.#suspended = true;
    this.#forgetWindows();
  }

  /** Touches the ring again. */
  resume(): void {
    this.#suspended = false;
  }

  /**
   * Finds nothing new until {@linkcode Ring.release}, neither to pop nor to be asked for; disabling and enabling the queue
   * does not change that.
   */
  hold(): void {
    this.#held = true;
  }

  /**
   * Finds what waits again. Whoever held the queue must look at it: nobody was told of what came meanwhile, and the
   * driver may not have been asked to tell.
   */
  release(): void {
    this.#held = false;
  }

  /**
   * Sets how {@linkcode Virtqueue.settled} is known; null, as at first, for a queue of which it is always so. Disabling the queue
   * does not change that.
   *
   * @param everyChain Whether pop finds only chains that are settled
   */
  keepOrder(order: WriteOrder | null, everyChain: boolean): void {
    this.#order = order;
    this.#everyChain = everyChain;
  }

  /**
   * Place and position of the queue, everything that a driver could tell it by; the ring itself is the
   * guest's. Good for going on only when {@linkcode Ring.outstanding} is 0: no chain is in it.
   */
  save(): RingState {
    const at = this.#addresses;
    return {
      format: this.#format.name,
      enabled: this.enabled,
      size: this.size,
      descIova: at?.descIova ?? 0,
      availIova: at?.availIova ?? 0,
      usedIova: at?.usedIova ?? 0,
      ...this.#format.save() as object,
    } as RingState;
  }

  /**
   * Goes on where {@linkcode Ring.save} was called, as {@linkcode Ring.enable} begins: after the same checks, and without
   * touching the ring yet. No chain is taken twice, and no used entry written twice.
   *
   * @param features The features that were negotiated
   * @returns 0, or −EINVAL when the state cannot be one of this queue ({@linkcode Virtqueue.lastError}); the queue is then
   * disabled
   */
  load(features: Features, state: RingState): number {
    this.disable();
    if (!state.enabled) return 0;
    const result = this.enable(features, state);
    if (result < 0) return result;
    const format = this.#format;
    const wrong = format.name === state.format
      ? format.load(state)
      : `a ${state.format} queue was saved, this is a ${format.name} one`;
    if (wrong === null) return 0;
    this.disable();
    return this.fail(Errno.EINVAL, wrong);
  }

  /**
   * True when everything before a position was popped already.
   *
   * @param next What a driver notification says with NOTIFICATION_DATA: `next_off` in bits 0–14, `next_wrap` in
   * bit 15 (virtio 1.3, section 2.9)
   */
  hasTaken(next: number): boolean {
    return this.enabled && next === this.#format.here;
  }

  /**
   * True when the driver has made something available since anything here last looked: for polling handlers, which
   * must tell new chains from those a device has left in the ring.
   */
  poll(): boolean {
    return !this.#held && this.ready() && this.#format.poll();
  }

  pop(chain: Chain): number {
    if (this.#held || !this.ready()) return 0;
    const found = this.#format.look();
    if (found <= 0) return found;
    if (this.#everyChain && !this.settled()) return 0;
    return this.#format.take(chain);
  }

  settled(): boolean {
    // What has come since does not keep waiting what was found before: nothing new is found until all is taken.
    return this.#settled ||= this.#order === null || this.#order.admit();
  }

  /**
   * Gives the last `count` chains that were popped back; none popped since the first of them may have been pushed.
   *
   * @throws {Error} When they were: a mistake of the device model
   */
  unpop(count: number): void {
    if (!this.enabled) return;
    for (let i = 0; i < count; i++) {
      const head = this.ledger.unpop();
      if (head < 0) throw this.#notHeld("unpop a chain");
      this.abandon(this.ledger.chain(head));
      this.#format.unpop(head);
    }
  }

  /**
   * Returns a chain; see {@linkcode Virtqueue.push}. Ignored while the queue is disabled: the driver has reset it, and the
   * buffers are released already.
   *
   * @throws {Error} When the chain is not with the device: a mistake of the device model
   */
  push(head: number, writtenBytes: number): void {
    const { ledger } = this;
    if (!ledger.holds(head)) {
      if (!this.enabled) return;
      throw this.#notHeld(`push chain ${head}`);
    }
    const { readable, writable } = ledger.chain(head);
    this.#memory.release(readable, 0);
    const result = this.#memory.release(writable, writtenBytes);
    ledger.push(head, result < 0 ? 0 : writtenBytes);
  }

  publish(): boolean {
    if (!this.ready()) return false;
    const used = this.#format.publish();
    if (used === 0 && !this.undecided) return false;
    this.#untold = Math.min(this.#untold + used, this.size);
    // The store in there comes before these loads for everyone (see the class), so either we see that the driver
    // wants an interrupt, or the driver sees the new chains after it asked for one.
    const wanted = this.#decide();
    if (!wanted && !this.undecided) this.suppressed++;
    return wanted;
  }

  /** Says whether the driver wants to know of what it was not told of, as far as that can be said. */
  #decide(): boolean {
    const format = this.#format;
    let wanted = false;
    while (this.#untold > 0) {
      // What comes into reach is as old as the question.
      const count = this.undecided ? this.#asked : this.#untold;
      this.undecided = !format.refreshEvents();
      if (this.undecided) {
        this.#asked = count;
        break;
      }
      wanted ||= format.wantsInterrupt(this.#untold, count);
      this.#untold -= count;
    }
    return wanted;
  }

  enableNotifications(): boolean {
    if (!this.ready()) return false;
    this.#wantsNotification = true;
    const format = this.#format;
    const { here } = format;
    // While the queue is held, or waits for register writes or memory, whoever looks once more would find nothing, for ever.
    if (
      this.#held || this.awaitsReach || this.#askedAt === here ||
      this.#order?.waiting
    ) return false;
    if (!this.polled) format.ask(false);
    // As in publish: either we see what the driver made available, or it sees that we want to be notified.
    const more = format.more();
    this.#askedAt = more < 0 ? here : NOWHERE;
    return more > 0;
  }

  disableNotifications(): void {
    this.#wantsNotification = false;
    const format = this.#format;
    if (this.#askedAt !== format.here) format.spare();
  }

  /** The queue is polled from here on: the driver is not asked to notify any more. */
  beginPolling(): void {
    this.polled = true;
  }

  /**
   * The queue is not polled any more: the driver is asked to notify, if the device wants that.
   *
   * @returns Whether it has made something available since anything here last looked
   */
  endPolling(): boolean {
    this.polled = false;
    if (!this.#wantsNotification || !this.ready()) return false;
    // Not from what was taken last: the driver has passed that where the device leaves chains in the ring.
    this.#format.ask(true);
    return this.poll();
  }

  /** Names the part of the ring that is not mapped, for messages; null while all are, or the ring is not to be touched. */
  missing(): string | null {
    const parts = this.#parts;
    if (
      parts === null || this.#suspended || !this.#memory.accessible ||
      this.ready()
    ) return null;
    for (const { name, iova, lengthBytes, access } of parts) {
      if (this.#memory.covers(iova, lengthBytes, access)) continue;
      return `queue ${this.index}: the ${name} at ${
        hex(iova)
      } is not guest memory that may be ${
        access === Access.READ ? "read" : "written"
      }, ${lengthBytes} bytes of it`;
    }
    return `queue ${this.index}: a part of its ring lies in two mappings that do not meet at a page`;
  }

  /** True when the ring may be touched: a single comparison once it is resolved. */
  ready(): boolean {
    return this.#generation === this.#memory.generation || this.#resolve();
  }

  /** The format is about to look for new chains: all that were found have been taken. */
  forgetOrder(): void {
    this.#order?.forget();
  }

  /** The format has found new chains. */
  found(): void {
    this.#askedAt = NOWHERE;
    this.#settled = false;
  }

  /**
   * Looks at a part of the ring.
   *
   * @returns False when it could not; the queue is then to be served again
   */
  refresh(part: MemoryWindow, offset: number, lengthBytes: number): boolean {
    if (part.isLive || part.refresh(offset, lengthBytes) === 0) return true;
    this.awaitsReach = true;
    return false;
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
   * A chain could not be read: releases its buffers.
   *
   * @param result −errno, or MEMORY_PENDING: then it will be read again
   * @returns As {@linkcode Virtqueue.pop}
   */
  failChain(chain: Chain, result: number, message: string): number {
    this.awaitsReach = result === MEMORY_PENDING;
    this.abandon(chain, this.awaitsReach ? result : 0);
    return this.awaitsReach ? 0 : this.fail(-result, message);
  }

  /** Says what the driver did wrong; returns −`errno`. */
  fail(errno: number, message: string): number {
    this.lastError = `queue ${this.index}: ${message}`;
    return -errno;
  }

  #resolve(): boolean {
    const parts = this.#parts;
    this.#forgetWindows();
    if (parts === null || this.#suspended) return false;
    const [desc, driverArea, deviceArea] = parts;
    const descWindow = this.#window(desc);
    const driverWindow = this.#window(driverArea);
    const deviceWindow = this.#window(deviceArea);
    if (
      descWindow === null || driverWindow === null || deviceWindow === null
    ) return false;
    this.desc = descWindow;
    this.driverArea = driverWindow;
    this.deviceArea = deviceWindow;
    this.#generation = this.#memory.generation;
    return true;
  }

  #window({ iova, lengthBytes, access }: RingPart): MemoryWindow | null {
    return this.#memory.window(iova, lengthBytes, access);
  }

  #forgetWindows(): void {
    this.#generation = UNRESOLVED;
    this.#askedAt = NOWHERE;
    this.desc = this.driverArea = this.deviceArea = NO_WINDOW;
  }

  #notHeld(action: string): Error {
    return new Error(
      `Cannot ${action} of queue ${this.index}: the device does not hold it`,
    );
  }
}
