/**
 * Interrupts towards the client: an eventfd and a mask for every vector.
 *
 * @module
 */

import { Errno, ErrnoError } from "../../core/errno.ts";
import type { FdWatch, Loop } from "../../loop/event_loop.ts";
import type { Log } from "../../core/log.ts";
import {
  drainEventFd,
  Epoll,
  Fd,
  isRegularFile,
  type ResourceBag,
  type Saved,
  setNonblocking,
  signalEventFd,
  statFd,
} from "../../os/mod.ts";
import type { IrqSink, PciInterrupts } from "../../pci/interrupts.ts";
import type { IrqsState } from "./client_state.ts";
import {
  IRQ_INFO,
  IRQ_SET,
  VFIO_IRQ_INFO_AUTOMASKED,
  VFIO_IRQ_INFO_EVENTFD,
  VFIO_IRQ_INFO_MASKABLE,
  VFIO_IRQ_SET_ACTION_MASK,
  VFIO_IRQ_SET_ACTION_TRIGGER,
  VFIO_IRQ_SET_ACTION_TYPE_MASK,
  VFIO_IRQ_SET_ACTION_UNMASK,
  VFIO_IRQ_SET_DATA_BOOL,
  VFIO_IRQ_SET_DATA_EVENTFD,
  VFIO_IRQ_SET_DATA_NONE,
  VFIO_IRQ_SET_DATA_TYPE_MASK,
  VFIO_PCI_INTX_IRQ_INDEX,
  VFIO_PCI_MSIX_IRQ_INDEX,
  VFIO_PCI_NUM_IRQS,
} from "./defs.ts";
import { checkArgsz, invalid, type Request } from "./request.ts";

const NO_FD = -1;
/** Number of times an unmask eventfd may be readable and hold nothing before it is taken for something else. */
const EMPTY_READS_MAX = 64;

/** The vectors of one interrupt index. */
interface Line {
  /** Eventfd of each vector, {@linkcode NO_FD} for none. */
  readonly fds: Int32Array;
  /** 1 for a vector that the client masked, or that masked itself. */
  readonly masked: Uint8Array;
}

/** A checked SET_IRQS request. */
interface Change {
  readonly index: number;
  readonly start: number;
  readonly count: number;
  readonly action: number;
  readonly data: number;
}

/**
 * An eventfd has no file type. What has one is refused: it would not do what an eventfd does, and could block the
 * loop. Nonblocking it must be for the same reason, whoever else shares it.
 */
function checkEventFd(fd: number): void {
  const S_IFMT = 0o170000;
  const stat = statFd(fd);
  if (isRegularFile(stat) || (stat.mode & S_IFMT) !== 0) {
    throw invalid("Cannot set interrupts: a descriptor is not an eventfd");
  }
  setNonblocking(fd);
}

function parseChange(request: Request, interrupts: PciInterrupts): Change {
  checkArgsz(request, "set interrupts", IRQ_SET.SIZE);
  const { in: view, at } = request;
  const flags = view.getUint32(at + IRQ_SET.FLAGS, true);
  const index = view.getUint32(at + IRQ_SET.INDEX, true);
  const start = view.getUint32(at + IRQ_SET.START, true);
  const count = view.getUint32(at + IRQ_SET.COUNT, true);
  const action = flags & VFIO_IRQ_SET_ACTION_TYPE_MASK;
  const data = flags & VFIO_IRQ_SET_DATA_TYPE_MASK;
  const known = VFIO_IRQ_SET_ACTION_TYPE_MASK | VFIO_IRQ_SET_DATA_TYPE_MASK;
  const oneBit = (bits: number) => bits !== 0 && (bits & (bits - 1)) === 0;
  if ((flags & ~known) !== 0 || !oneBit(action) || !oneBit(data)) {
    throw invalid(
      `Cannot set interrupts: flags ${flags} are not one action and one kind of data`,
    );
  }
  const available = index < VFIO_PCI_NUM_IRQS
    ? interrupts.vectorCount(index)
    : 0;
  if (start >= available || start + count > available) {
    throw invalid(
      `Cannot set interrupts: ${start}+${count} of index ${index}, which has ${available}`,
    );
  }
  return { index, start, count, action, data };
}

function checkData(request: Request, change: Change): void {
  const { index, start, count, action, data } = change;
  const isTrigger = action === VFIO_IRQ_SET_ACTION_TRIGGER;
  if (
    count === 0 &&
    (start !== 0 || !isTrigger || data !== VFIO_IRQ_SET_DATA_NONE)
  ) {
    throw invalid(
      "Cannot set interrupts: a count of 0 only disables a whole index",
    );
  }
  if (index > VFIO_PCI_MSIX_IRQ_INDEX && !isTrigger) {
    throw invalid(`Cannot mask interrupts of index ${index}`);
  }
  if (
    data === VFIO_IRQ_SET_DATA_BOOL &&
    request.lengthBytes - IRQ_SET.SIZE !== count
  ) {
    throw invalid(
      `Cannot set interrupts: ${
        request.lengthBytes - IRQ_SET.SIZE
      } bytes of data for ${count} vectors`,
    );
  }
  const fdCount = request.fds.count;
  if (data !== VFIO_IRQ_SET_DATA_EVENTFD && fdCount !== 0) {
    throw invalid("Cannot set interrupts: descriptors came with other data");
  }
  if (fdCount !== 0 && fdCount !== count) {
    throw invalid(
      `Cannot set interrupts: ${fdCount} descriptors for ${count} vectors`,
    );
  }
}

/**
 * The interrupts of one client.
 *
 * INTx masks itself when it is delivered; the client unmasks it, by message or through an eventfd, once the guest
 * has served it. Messages (MSI, MSI-X) do not mask themselves.
 */
export class Irqs implements IrqSink {
  readonly #loop: Loop;
  readonly #log: Log;
  readonly #interrupts: PciInterrupts;
  readonly #lines: Line[] = [];
  readonly #counters: { interrupts: number };
  #unmaskFd: Fd | null = null;
  #unmaskWatch: FdWatch | null = null;

  /**
   * @param counters Where delivered interrupts are counted
   * @param saved What {@linkcode Irqs.save} gave, to go on from there
   * @throws {Error} When that belongs to a device with other interrupts, or its eventfd cannot be watched
   */
  constructor(
    loop: Loop,
    log: Log,
    interrupts: PciInterrupts,
    counters: { interrupts: number },
    saved?: Saved<IrqsState>,
  ) {
    this.#loop = loop;
    this.#log = log;
    this.#interrupts = interrupts;
    this.#counters = counters;
    for (let index = 0; index < VFIO_PCI_NUM_IRQS; index++) {
      const count = interrupts.vectorCount(index);
      this.#lines.push({
        fds: new Int32Array(count).fill(NO_FD),
        masked: new Uint8Array(count),
      });
    }
    if (saved === undefined) return;
    try {
      this.#load(saved);
    } catch (error) {
      this.close();
      throw error;
    }
  }

  #load({ state, bag }: Saved<IrqsState>): void {
    for (let index = 0; index < this.#lines.length; index++) {
      const { fds, masked } = this.#lines[index]!;
      const theirs = state.masked[index] ?? new Uint8Array();
      if (theirs.length !== fds.length) {
        throw new Error(
          `Cannot take over interrupts of index ${index}: there were ${theirs.length}, there are ${fds.length}`,
        );
      }
      masked.set(theirs);
      for (let vector = 0; vector < fds.length; vector++) {
        const name = `${index}.${vector}`;
        if (bag.has(name)) fds[vector] = bag.take(name).release();
      }
    }
    if (!bag.has("unmask")) return;
    this.#unmaskFd = bag.take("unmask");
    this.#watchUnmaskFd(this.#unmaskFd.number);
  }

  /** Puts eventfds into a bag, for whoever goes on with the client. */
  save(bag: ResourceBag): IrqsState {
    this.#lines.forEach(({ fds }, index) =>
      fds.forEach((fd, vector) => {
        if (fd >= 0) bag.put(`${index}.${vector}`, fd);
      })
    );
    if (this.#unmaskFd !== null) bag.put("unmask", this.#unmaskFd.number);
    return { masked: this.#lines.map(({ masked }) => masked.slice()) };
  }

  /** Leaves the eventfds open, which another thread may be signalling. */
  abandon(): void {
    for (const { fds } of this.#lines) fds.fill(NO_FD);
    this.close();
  }

  deliver(index: number, vector: number): boolean {
    const line = this.#lines[index];
    if (line === undefined || vector >= line.fds.length) return false;
    const fd = line.fds[vector]!;
    if (fd < 0 || line.masked[vector] !== 0) return false;
    if (index === VFIO_PCI_INTX_IRQ_INDEX) line.masked[vector] = 1;
    // A full counter (EAGAIN) tells the client what this signal would have told it.
    signalEventFd(fd);
    this.#counters.interrupts++;
    return true;
  }

  eventFd(index: number, vector: number): number {
    const line = this.#lines[index];
    if (line === undefined || (line.masked[vector] ?? 1) !== 0) return NO_FD;
    return line.fds[vector] ?? NO_FD;
  }

  /**
   * DEVICE_GET_IRQ_INFO.
   *
   * @throws {ErrnoError} EINVAL
   */
  info(request: Request): number {
    checkArgsz(request, "describe interrupts", IRQ_INFO.SIZE);
    const index = request.in.getUint32(request.at + IRQ_INFO.INDEX, true);
    const line = this.#lines[index];
    if (line === undefined) {
      throw invalid(`Cannot describe interrupts: there is no index ${index}`);
    }
    let flags = VFIO_IRQ_INFO_EVENTFD;
    if (index <= VFIO_PCI_MSIX_IRQ_INDEX) flags |= VFIO_IRQ_INFO_MASKABLE;
    if (index === VFIO_PCI_INTX_IRQ_INDEX) flags |= VFIO_IRQ_INFO_AUTOMASKED;
    const { out, outAt } = request;
    out.setUint32(outAt + IRQ_INFO.ARGSZ, IRQ_INFO.SIZE, true);
    out.setUint32(outAt + IRQ_INFO.FLAGS, flags, true);
    out.setUint32(outAt + IRQ_INFO.INDEX, index, true);
    out.setUint32(outAt + IRQ_INFO.COUNT, line.fds.length, true);
    return IRQ_INFO.SIZE;
  }

  /**
   * DEVICE_SET_IRQS; the reply is empty.
   *
   * @throws {ErrnoError} EINVAL; EOPNOTSUPP for an eventfd that masks, or that unmasks messages
   */
  set(request: Request): number {
    const change = parseChange(request, this.#interrupts);
    checkData(request, change);
    this.#interrupts.withdrawDirect();
    try {
      this.#apply(request, change);
    } finally {
      this.#interrupts.refreshDirect();
    }
    return 0;
  }

  /** Closes every eventfd. */
  close(): void {
    for (const { fds } of this.#lines) this.#unassign(fds, 0, fds.length);
    this.#dropUnmaskFd();
  }

  #apply(request: Request, change: Change): void {
    switch (change.action) {
      case VFIO_IRQ_SET_ACTION_MASK:
        return this.#mask(request, change);
      case VFIO_IRQ_SET_ACTION_UNMASK:
        return this.#unmask(request, change);
      default:
        this.#trigger(request, change);
    }
  }

  #trigger(request: Request, change: Change): void {
    const { index, start, count, data } = change;
    const { fds, masked } = this.#lines[index]!;
    if (data === VFIO_IRQ_SET_DATA_EVENTFD) {
      if (request.fds.count > 0) this.#assign(request, change);
      else {
        this.#unassign(fds, start, count);
        // Nobody is left who would unmask what masked itself.
        if (index === VFIO_PCI_INTX_IRQ_INDEX) masked.fill(0);
      }
    } else if (count === 0) {
      this.#unassign(fds, 0, fds.length);
      masked.fill(0);
      if (index === VFIO_PCI_INTX_IRQ_INDEX) this.#dropUnmaskFd();
    } else {
      for (let i = 0; i < count; i++) {
        if (this.#applies(request, change, i)) this.deliver(index, start + i);
      }
    }
  }

  #mask(request: Request, change: Change): void {
    if (change.data === VFIO_IRQ_SET_DATA_EVENTFD) {
      throw new ErrnoError(
        Errno.EOPNOTSUPP,
        "Cannot set interrupts: masking by eventfd is not supported",
      );
    }
    const { masked } = this.#lines[change.index]!;
    for (let i = 0; i < change.count; i++) {
      if (this.#applies(request, change, i)) masked[change.start + i] = 1;
    }
  }

  #unmask(request: Request, change: Change): void {
    const { index, start, count } = change;
    if (change.data === VFIO_IRQ_SET_DATA_EVENTFD) {
      this.#setUnmaskFd(request, index);
      return;
    }
    for (let i = 0; i < count; i++) {
      if (this.#applies(request, change, i)) this.#unmaskOne(index, start + i);
    }
  }

  #unmaskOne(index: number, vector: number): void {
    this.#lines[index]!.masked[vector] = 0;
    this.#interrupts.retry(index, vector, 1);
  }

  /** True if a change applies to its vector `i`: always, or where the byte for it is set. */
  #applies(request: Request, change: Change, i: number): boolean {
    return change.data === VFIO_IRQ_SET_DATA_NONE ||
      request.in.getUint8(request.at + IRQ_SET.DATA + i) !== 0;
  }

  #assign(request: Request, { index, start, count }: Change): void {
    // All are checked first, so that a refused request has changed nothing.
    for (let i = 0; i < count; i++) checkEventFd(request.fds.peek(i));
    const { fds } = this.#lines[index]!;
    this.#unassign(fds, start, count);
    for (let i = 0; i < count; i++) fds[start + i] = request.fds.take(i);
    this.#interrupts.retry(index, start, count);
  }

  #unassign(fds: Int32Array, start: number, count: number): void {
    for (let vector = start; vector < start + count; vector++) {
      if (fds[vector]! >= 0) new Fd(fds[vector]!).close();
      fds[vector] = NO_FD;
    }
  }

  #setUnmaskFd(request: Request, index: number): void {
    if (index !== VFIO_PCI_INTX_IRQ_INDEX) {
      throw new ErrnoError(
        Errno.EOPNOTSUPP,
        "Cannot set interrupts: unmasking messages by eventfd is not supported",
      );
    }
    if (request.fds.count > 0) checkEventFd(request.fds.peek(0));
    this.#dropUnmaskFd();
    if (request.fds.count === 0) return;
    const fd = new Fd(request.fds.take(0));
    try {
      this.#watchUnmaskFd(fd.number);
    } catch (error) {
      fd.close();
      throw error;
    }
    this.#unmaskFd = fd;
  }

  #watchUnmaskFd(fd: number): void {
    let emptyReads = 0;
    this.#unmaskWatch = this.#loop.watch(fd, Epoll.IN, () => {
      if (drainEventFd(fd) > 0) {
        emptyReads = 0;
        this.#unmaskOne(VFIO_PCI_INTX_IRQ_INDEX, 0);
      } else if (++emptyReads > EMPTY_READS_MAX) {
        this.#log.warn(
          "the descriptor to unmask INTx by is not an eventfd, ignoring it",
        );
        this.#dropUnmaskFd();
      }
    });
  }

  #dropUnmaskFd(): void {
    this.#unmaskWatch?.close();
    this.#unmaskWatch = null;
    this.#unmaskFd?.close();
    this.#unmaskFd = null;
  }
}
