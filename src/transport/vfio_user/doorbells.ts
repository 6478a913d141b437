/**
 * Doorbells: eventfds that a client signals, or has KVM signal, instead of sending a register write.
 *
 * @module
 */

import { setU64 } from "../../core/bits.ts";
import type { BottomHalf, FdWatch, Loop } from "../../loop/event_loop.ts";
import {
  createEventFd,
  type Fd,
  type ResourceBag,
  type Saved,
  SCM_MAX_FD,
  signalEventFd,
} from "../../os/mod.ts";
import type { Doorbell } from "../../pci/device.ts";
import type { PciFunction } from "../../pci/function.ts";
import { type PostedWrites, WriteOrder } from "../../pci/posted_writes.ts";
import type { BellsState } from "./client_state.ts";
import {
  KVM_IOEVENTFD_FLAG_DATAMATCH,
  KVM_IOEVENTFD_FLAG_PIO,
  REGION_IO_FDS,
  SUB_REGION_IOEVENTFD,
  VFIO_PCI_NUM_REGIONS,
  VFIO_USER_IO_FD_TYPE_IOEVENTFD,
} from "./defs.ts";
import { checkArgsz, invalid, type Request } from "./request.ts";
import type { Agreement } from "./version.ts";

/** Rings one doorbell, behind the register writes that were sent before it was signalled. */
class Bell {
  readonly #again: BottomHalf;
  readonly #order: WriteOrder;
  readonly #ring: () => void;

  constructor(loop: Loop, posted: PostedWrites, ring: () => void) {
    this.#again = loop.bottomHalf(() => this.signalled());
    this.#order = new WriteOrder(posted, () => this.#again.schedule());
    this.#ring = ring;
  }

  signalled(): void {
    if (this.#order.admit()) this.#ring();
  }

  /** Rings no more. @returns Whether it was to ring */
  close(): boolean {
    this.#again.cancel();
    return this.#order.waiting;
  }
}

/** The eventfds of one region. */
interface Bells {
  /** Null for one that the device itself watches. */
  readonly fds: (Fd | null)[];
  /** Descriptors that the client is given. */
  readonly numbers: number[];
  readonly watches: FdWatch[];
  /** Null for one that the device itself watches. */
  readonly bells: (Bell | null)[];
}

/** Stands for an eventfd that the device itself watches, where it does so no more. */
const NO_FD = -1;

/** The doorbells of one client. */
export class Doorbells {
  readonly #loop: Loop;
  readonly #pci: PciFunction;
  readonly #agreement: Agreement;
  readonly #posted: PostedWrites;
  readonly #ring: (region: number, doorbell: number) => void;
  readonly #bells = new Map<number, Bells>();

  /**
   * @param ring Called when an eventfd was signalled
   * @param saved What {@linkcode Doorbells.save} gave, to go on from there
   * @throws {Error} When an eventfd of that cannot be watched
   */
  constructor(
    loop: Loop,
    agreement: Agreement,
    pci: PciFunction,
    posted: PostedWrites,
    ring: (region: number, doorbell: number) => void,
    saved?: Saved<readonly BellsState[]>,
  ) {
    this.#loop = loop;
    this.#agreement = agreement;
    this.#pci = pci;
    this.#posted = posted;
    this.#ring = ring;
    if (saved === undefined) return;
    try {
      for (const bells of saved.state) this.#load(bells, saved.bag);
    } catch (error) {
      this.close();
      throw error;
    }
  }

  /**
   * DEVICE_GET_REGION_IO_FDS. Registers beyond what the client takes descriptors in a message get none and are
   * written by message, as is any register whose eventfd the client does not use.
   *
   * @throws {ErrnoError} EINVAL
   */
  describe(request: Request): number {
    const argsz = checkArgsz(request, "describe doorbells", REGION_IO_FDS.SIZE);
    const { in: view, at, out, outAt } = request;
    const flags = view.getUint32(at + REGION_IO_FDS.FLAGS, true);
    const index = view.getUint32(at + REGION_IO_FDS.INDEX, true);
    if (flags !== 0 || view.getUint32(at + REGION_IO_FDS.COUNT, true) !== 0) {
      throw invalid("Cannot describe doorbells: flags or count is not 0");
    }
    if (argsz > this.#agreement.maxDataXferSize) {
      throw invalid(`Cannot describe doorbells: argsz is ${argsz}`);
    }
    if (
      index >= VFIO_PCI_NUM_REGIONS || this.#pci.regionSizeBytes(index) === 0
    ) {
      throw invalid(
        `Cannot describe doorbells of region ${index}: there is none`,
      );
    }
    const doorbells = this.#offered(index);
    const needed = REGION_IO_FDS.SIZE +
      doorbells.length * SUB_REGION_IOEVENTFD.SIZE;
    out.setUint32(outAt + REGION_IO_FDS.ARGSZ, needed, true);
    out.setUint32(outAt + REGION_IO_FDS.FLAGS, 0, true);
    out.setUint32(outAt + REGION_IO_FDS.INDEX, index, true);
    out.setUint32(outAt + REGION_IO_FDS.COUNT, doorbells.length, true);
    if (doorbells.length === 0 || argsz < needed) return REGION_IO_FDS.SIZE;
    const isPio = this.#pci.bar(index)!.kind === "io";
    for (let i = 0; i < doorbells.length; i++) {
      const entry = outAt + REGION_IO_FDS.SUB_REGIONS +
        i * SUB_REGION_IOEVENTFD.SIZE;
      putDoorbell(out, entry, doorbells[i]!, i, isPio);
    }
    request.outFds = this.#bellsOf(index, doorbells).numbers;
    return needed;
  }

  /** Closes every eventfd. */
  close(): void {
    for (const bells of this.#bells.values()) closeBells(bells);
    this.#bells.clear();
  }

  /** Puts the eventfds into a bag. */
  save(bag: ResourceBag): BellsState[] {
    return Array.from(this.#bells, ([region, { fds }]) => {
      fds.forEach((fd, i) => {
        if (fd !== null) bag.put(`${region}.${i}`, fd.number);
      });
      return { region, count: fds.length };
    });
  }

  /** Closes every eventfd. What was signalled and not seen here is seen by whoever goes on with them. */
  leave(): void {
    for (const { fds, bells } of this.#bells.values()) {
      fds.forEach((fd, i) => {
        if (fd !== null && bells[i]!.close()) signalEventFd(fd.number);
      });
    }
    this.close();
  }

  #offered(region: number): readonly Doorbell[] {
    if (this.#pci.device.ringDoorbell === undefined) return [];
    const most = Math.min(this.#agreement.clientMsgFds, SCM_MAX_FD);
    return (this.#pci.bar(region)?.doorbells ?? []).slice(0, most);
  }

  #bellsOf(region: number, doorbells: readonly Doorbell[]): Bells {
    const known = this.#bells.get(region);
    if (known !== undefined) return known;
    const bells = noBells();
    try {
      for (let i = 0; i < doorbells.length; i++) {
        const eventFd = this.#eventFdOf(region, i);
        if (eventFd === undefined) this.#hang(region, bells, createEventFd());
        else leaveToDevice(bells, eventFd);
      }
    } catch (error) {
      closeBells(bells);
      throw error;
    }
    this.#bells.set(region, bells);
    return bells;
  }

  #load({ region, count }: BellsState, bag: ResourceBag): void {
    const bells = noBells();
    // Known before it is complete, so that what is in it can be closed.
    this.#bells.set(region, bells);
    for (let i = 0; i < count; i++) {
      const name = `${region}.${i}`;
      if (bag.has(name)) this.#hang(region, bells, bag.take(name));
      else leaveToDevice(bells, this.#eventFdOf(region, i) ?? NO_FD);
    }
  }

  #eventFdOf(region: number, doorbell: number): number | undefined {
    return this.#pci.device.doorbellEventFd?.(region, doorbell);
  }

  #hang(region: number, bells: Bells, fd: Fd): void {
    const doorbell = bells.fds.push(fd) - 1;
    bells.numbers.push(fd.number);
    const bell = new Bell(
      this.#loop,
      this.#posted,
      () => this.#ring(region, doorbell),
    );
    bells.bells.push(bell);
    bells.watches.push(
      this.#loop.watchEventFd(fd.number, () => bell.signalled()),
    );
  }
}

function noBells(): Bells {
  return { fds: [], numbers: [], watches: [], bells: [] };
}

function leaveToDevice(bells: Bells, eventFd: number): void {
  bells.fds.push(null);
  bells.bells.push(null);
  bells.numbers.push(eventFd);
}

function closeBells({ fds, watches, bells }: Bells): void {
  for (const watch of watches) watch.close();
  for (const bell of bells) bell?.close();
  for (const fd of fds) fd?.close();
}

function putDoorbell(
  out: DataView,
  at: number,
  doorbell: Doorbell,
  fdIndex: number,
  isPio: boolean,
): void {
  const { offset, sizeBytes, datamatch } = doorbell;
  const flags = (datamatch === undefined ? 0 : KVM_IOEVENTFD_FLAG_DATAMATCH) |
    (isPio ? KVM_IOEVENTFD_FLAG_PIO : 0);
  setU64(out, at + SUB_REGION_IOEVENTFD.OFFSET, offset);
  setU64(out, at + SUB_REGION_IOEVENTFD.LENGTH, sizeBytes);
  out.setUint32(at + SUB_REGION_IOEVENTFD.FD_INDEX, fdIndex, true);
  out.setUint32(
    at + SUB_REGION_IOEVENTFD.TYPE,
    VFIO_USER_IO_FD_TYPE_IOEVENTFD,
    true,
  );
  out.setUint32(at + SUB_REGION_IOEVENTFD.FLAGS, flags, true);
  out.setUint32(at + SUB_REGION_IOEVENTFD.PADDING, 0, true);
  setU64(out, at + SUB_REGION_IOEVENTFD.DATAMATCH, datamatch ?? 0);
}
