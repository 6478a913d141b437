/**
 * Doorbells: eventfds that a client signals, or has KVM signal, instead of sending a register write.
 *
 * @module
 */

import { setU64 } from "../bits.ts";
import type { FdWatch, Loop } from "../event_loop.ts";
import { createEventFd, type Fd, SCM_MAX_FD } from "../libc/mod.ts";
import type { Doorbell } from "../pci/device.ts";
import type { PciFunction } from "../pci/function.ts";
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

/** The eventfds of one region. */
interface Bells {
  readonly fds: readonly Fd[];
  readonly numbers: readonly number[];
  readonly watches: readonly FdWatch[];
}

/** The doorbells of one client. */
export class Doorbells {
  readonly #loop: Loop;
  readonly #pci: PciFunction;
  readonly #agreement: Agreement;
  readonly #ring: (region: number, doorbell: number) => void;
  readonly #bells = new Map<number, Bells>();

  /** @param ring Called when an eventfd was signalled */
  constructor(
    loop: Loop,
    agreement: Agreement,
    pci: PciFunction,
    ring: (region: number, doorbell: number) => void,
  ) {
    this.#loop = loop;
    this.#agreement = agreement;
    this.#pci = pci;
    this.#ring = ring;
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
    request.outFds = this.#bellsOf(index, doorbells.length).numbers;
    return needed;
  }

  /** Closes every eventfd. */
  close(): void {
    for (const { fds, watches } of this.#bells.values()) {
      for (const watch of watches) watch.close();
      for (const fd of fds) fd.close();
    }
    this.#bells.clear();
  }

  #offered(region: number): readonly Doorbell[] {
    if (this.#pci.device.ringDoorbell === undefined) return [];
    const most = Math.min(this.#agreement.clientMsgFds, SCM_MAX_FD);
    return (this.#pci.bar(region)?.doorbells ?? []).slice(0, most);
  }

  #bellsOf(region: number, count: number): Bells {
    const known = this.#bells.get(region);
    if (known !== undefined) return known;
    const fds: Fd[] = [];
    const watches: FdWatch[] = [];
    try {
      for (let doorbell = 0; doorbell < count; doorbell++) {
        const fd = createEventFd();
        fds.push(fd);
        watches.push(
          this.#loop.watchEventFd(
            fd.number,
            () => this.#ring(region, doorbell),
          ),
        );
      }
    } catch (error) {
      for (const watch of watches) watch.close();
      for (const fd of fds) fd.close();
      throw error;
    }
    const bells = { fds, watches, numbers: fds.map(({ number }) => number) };
    this.#bells.set(region, bells);
    return bells;
  }
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
