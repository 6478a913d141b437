/**
 * Disks driven by hand, as a bench or a test wants them: a fixed set of slots, each with a buffer, that are issued and
 * reaped. One interface, two controllers: virtio-blk and NVMe.
 *
 * @module
 */

import { high32 } from "../src/core/bits.ts";
import type { DriverMemory } from "../src/testing/driver_memory.ts";
import type { Bell, PciAccess } from "../src/testing/pci_access.ts";
import { F } from "../src/testing/virtio_defs.ts";
import type {
  DriverQueue,
  VirtioDriver,
} from "../src/testing/virtio_driver.ts";

const SECTOR_BYTES = 512;
const PAGE_BYTES = 4096;

/** Operation of a slot. */
export const DiskOp = { READ: 0, WRITE: 1, FLUSH: 2 } as const;

/** An operation of {@linkcode DiskOp}. */
export type DiskOp = typeof DiskOp[keyof typeof DiskOp];

/** A disk and its slots. Nothing here allocates after construction. */
export interface DiskDriver {
  /** Length of the disk in sectors of 512 bytes. */
  readonly sectors: number;
  /** Slots that {@linkcode reap} found done: the first so many of {@linkcode done}. */
  readonly done: Uint16Array;
  /** True if each slot's last command failed; nonzero is the status. */
  readonly status: Uint16Array;
  /** Address of a slot's buffer. */
  bufferIova(slot: number): number;
  /** Prepares a command of a free slot; {@linkcode flush} shows it to the device. */
  issue(slot: number, op: DiskOp, sector: number): void;
  /** Shows what was issued. */
  flush(): void;
  /** Takes completions without waiting. @returns How many; their slots are in {@linkcode done} */
  reap(): number;
  /** Stops the device. */
  close(): void;
}

/** Settings of a driver. */
export interface DiskDriverOptions {
  /** Commands in flight at most. */
  readonly slots: number;
  /** Length of each slot's buffer: a multiple of 512, of 4096 for NVMe. */
  readonly transferBytes: number;
  /** Address of virtio-blk's buffer of a slot, as the device sees it; in the driver's memory without it. */
  readonly bufferIova?: (slot: number) => number;
}

// struct virtio_blk_req { le32 type; le32 reserved; le64 sector; u8 data[]; u8 status; }
const BLK_REQ = { TYPE: 0, SECTOR: 8, SIZE: 16 } as const;
const BLK_TYPE = [0, 1, 4] as const;
const STATUS_AT = 16;
const SLOT_BYTES = 32;

/** virtio-blk with one queue. */
export class VirtioBlkDriver implements DiskDriver {
  readonly sectors: number;
  readonly done: Uint16Array;
  readonly status: Uint16Array;
  readonly #virtio: VirtioDriver;
  readonly #queue: DriverQueue;
  readonly #memory: DriverMemory;
  readonly #headers: number;
  readonly #buffers: number;
  readonly #transferBytes: number;
  readonly #bufferIova: ((slot: number) => number) | undefined;
  /** Slot of each head in flight. */
  readonly #slotOf: Uint16Array;

  /** Resets the device, negotiates and starts it. */
  constructor(virtio: VirtioDriver, options: DiskDriverOptions) {
    this.#virtio = virtio;
    this.#memory = virtio.memory;
    virtio.negotiate([F.RING_INDIRECT_DESC, F.RING_EVENT_IDX]);
    this.#queue = virtio.setupQueue(0, { indirect: 3 });
    const size = this.#queue.ring.size;
    this.sectors = virtio.readConfig(0, 4);
    this.done = new Uint16Array(options.slots);
    this.status = new Uint16Array(options.slots);
    this.#slotOf = new Uint16Array(size);
    this.#transferBytes = options.transferBytes;
    this.#bufferIova = options.bufferIova;
    this.#headers = this.#memory.alloc(options.slots * SLOT_BYTES, 16);
    this.#buffers = this.#memory.alloc(
      options.slots * options.transferBytes,
      PAGE_BYTES,
    );
    virtio.driverOk();
  }

  bufferIova(slot: number): number {
    if (this.#bufferIova !== undefined) return this.#bufferIova(slot);
    return this.#buffers + slot * this.#transferBytes;
  }

  issue(slot: number, op: DiskOp, sector: number): void {
    const header = this.#headers + slot * SLOT_BYTES;
    const at = this.#memory.offset(header);
    const view = this.#memory.view;
    view.setUint32(at + BLK_REQ.TYPE, BLK_TYPE[op], true);
    view.setUint32(at + BLK_REQ.SECTOR, sector >>> 0, true);
    view.setUint32(at + BLK_REQ.SECTOR + 4, high32(sector), true);
    view.setUint8(at + STATUS_AT, 0xff);
    const ring = this.#queue.ring;
    if (!ring.begin(op === DiskOp.FLUSH ? 2 : 3)) {
      throw new Error("Cannot issue: the ring is full");
    }
    ring.readable(header, BLK_REQ.SIZE);
    if (op === DiskOp.WRITE) {
      ring.readable(this.bufferIova(slot), this.#transferBytes);
    } else if (op === DiskOp.READ) {
      ring.writable(this.bufferIova(slot), this.#transferBytes);
    }
    ring.writable(header + STATUS_AT, 1);
    this.#slotOf[ring.end()] = slot;
  }

  flush(): void {
    this.#queue.flush();
  }

  reap(): number {
    const ring = this.#queue.ring;
    let count = 0;
    while (count < this.done.length && ring.take()) {
      const slot = this.#slotOf[ring.usedHead]!;
      const at = this.#memory.offset(this.#headers + slot * SLOT_BYTES);
      this.status[slot] = this.#memory.view.getUint8(at + STATUS_AT);
      this.done[count++] = slot;
    }
    return count;
  }

  close(): void {
    this.#virtio.reset();
  }
}

const REG = { CC: 0x14, CSTS: 0x1c, AQA: 0x24, ASQ: 0x28, ACQ: 0x30 } as const;
const DOORBELLS = 0x1000;
const SQE_BYTES = 64;
const CQE_BYTES = 16;
const CC_ENABLE = 0x0046_0001; // 64-byte and 16-byte entries, enabled
const CSTS_RDY = 1;
const ADMIN = { CREATE_SQ: 1, CREATE_CQ: 5, IDENTIFY: 6, DBBUF: 0x7c } as const;
const NVM_OPCODE = [2, 1, 0] as const;
const NSID = 1;
const ADMIN_ENTRIES = 16;
/** The longest that a controller may take, on a machine however busy. */
const ANSWER_TIMEOUT_MS = 60_000;
/** As in Linux. A doorbell that wraps to 0 must be rung, so a short queue would be rung all the time. */
const IO_ENTRIES = 1024;

/** A submission and a completion queue in guest memory. */
class NvmePair {
  readonly qid: number;
  readonly entries: number;
  readonly sq: number;
  readonly cq: number;
  tail = 0;
  head = 0;
  phase = 1;

  constructor(memory: DriverMemory, qid: number, entries: number) {
    this.qid = qid;
    this.entries = entries;
    this.sq = memory.alloc(entries * SQE_BYTES, PAGE_BYTES);
    this.cq = memory.alloc(entries * CQE_BYTES, PAGE_BYTES);
    memory.at(this.cq, entries * CQE_BYTES).fill(0);
  }
}

/** True if a driver whose doorbell moved from `before` to `now` must tell a device that waits for `event`. */
function mustRing(event: number, now: number, before: number): boolean {
  return ((now - event - 1) & 0xffff) < ((now - before) & 0xffff);
}

/** An NVMe controller with one I/O queue pair, polled, with shadow doorbells as Linux' driver has them. */
export class NvmeDriver implements DiskDriver {
  readonly sectors: number;
  readonly done: Uint16Array;
  readonly status: Uint16Array;
  readonly #pci: PciAccess;
  readonly #memory: DriverMemory;
  readonly #words32: Uint32Array;
  readonly #admin: NvmePair;
  readonly #io: NvmePair;
  readonly #sqBell: Bell;
  readonly #cqBell: Bell;
  readonly #buffers: number;
  readonly #lists: number;
  readonly #transferBytes: number;
  readonly #shadow: number;
  readonly #events: number;
  #rungTail = 0;
  #rungHead = 0;
  #cid = 0;

  /** Resets the controller, enables it, makes a queue pair. */
  constructor(
    pci: PciAccess,
    memory: DriverMemory,
    options: DiskDriverOptions,
  ) {
    this.#pci = pci;
    this.#memory = memory;
    this.#words32 = new Uint32Array(memory.bytes.buffer);
    this.done = new Uint16Array(options.slots);
    this.status = new Uint16Array(options.slots);
    this.#transferBytes = options.transferBytes;
    this.#admin = new NvmePair(memory, 0, ADMIN_ENTRIES);
    this.#enable();
    const page = memory.alloc(PAGE_BYTES, PAGE_BYTES);
    this.#command(ADMIN.IDENTIFY, NSID, page, 0, 0);
    this.sectors = memory.view.getUint32(memory.offset(page), true);
    this.#shadow = memory.alloc(PAGE_BYTES, PAGE_BYTES);
    this.#events = memory.alloc(PAGE_BYTES, PAGE_BYTES);
    memory.at(this.#shadow, PAGE_BYTES).fill(0);
    memory.at(this.#events, PAGE_BYTES).fill(0);
    this.#command(ADMIN.DBBUF, 0, this.#shadow, 0, 0, this.#events);
    this.#io = this.#createPair(Math.max(IO_ENTRIES, options.slots + 1));
    this.#sqBell = pci.bell(0, DOORBELLS + 8, 4);
    this.#cqBell = pci.bell(0, DOORBELLS + 12, 4);
    this.#buffers = memory.alloc(
      options.slots * options.transferBytes,
      PAGE_BYTES,
    );
    this.#lists = memory.alloc(options.slots * PAGE_BYTES, PAGE_BYTES);
    for (let slot = 0; slot < options.slots; slot++) this.#fillList(slot);
  }

  bufferIova(slot: number): number {
    return this.#buffers + slot * this.#transferBytes;
  }

  issue(slot: number, op: DiskOp, sector: number): void {
    const io = this.#io;
    const at = this.#memory.offset(io.sq + io.tail * SQE_BYTES) >>> 2;
    const words = this.#words32;
    words.fill(0, at, at + 16);
    words[at] = NVM_OPCODE[op] | slot << 16;
    words[at + 1] = NSID;
    if (op !== DiskOp.FLUSH) {
      const buffer = this.bufferIova(slot);
      words[at + 6] = buffer >>> 0;
      words[at + 7] = high32(buffer);
      const second = this.#transferBytes <= PAGE_BYTES
        ? 0
        : this.#transferBytes <= 2 * PAGE_BYTES
        ? buffer + PAGE_BYTES
        : this.#lists + slot * PAGE_BYTES;
      words[at + 8] = second >>> 0;
      words[at + 9] = high32(second);
      words[at + 10] = sector >>> 0;
      words[at + 11] = high32(sector);
      words[at + 12] = this.#transferBytes / SECTOR_BYTES - 1;
    }
    io.tail = io.tail + 1 === io.entries ? 0 : io.tail + 1;
  }

  flush(): void {
    const { tail } = this.#io;
    if (tail === this.#rungTail) return;
    if (this.#publish(2, tail, this.#rungTail)) this.#sqBell.ring(tail);
    this.#rungTail = tail;
  }

  reap(): number {
    const io = this.#io;
    const words = this.#words32;
    let count = 0;
    while (count < this.done.length) {
      const at = this.#memory.offset(io.cq + io.head * CQE_BYTES) >>> 2;
      const word = Atomics.load(words, at + 3);
      if ((word >>> 16 & 1) !== io.phase) break;
      const slot = word & 0xffff;
      this.status[slot] = word >>> 17;
      this.done[count++] = slot;
      if (++io.head === io.entries) {
        io.head = 0;
        io.phase ^= 1;
      }
    }
    if (count > 0) {
      if (this.#publish(3, io.head, this.#rungHead)) this.#cqBell.ring(io.head);
      this.#rungHead = io.head;
    }
    return count;
  }

  close(): void {
    this.#pci.writeBar(0, REG.CC, 4, 0);
  }

  /** Writes a shadow doorbell; whether the device wants the real one too. */
  #publish(index: number, value: number, before: number): boolean {
    const words = this.#words32;
    Atomics.store(
      words,
      (this.#memory.offset(this.#shadow) >>> 2) + index,
      value,
    );
    const event = Atomics.load(
      words,
      (this.#memory.offset(this.#events) >>> 2) + index,
    );
    return mustRing(event, value, before);
  }

  #enable(): void {
    const pci = this.#pci;
    pci.writeBar(0, REG.CC, 4, 0);
    this.#waitReady(false);
    const { sq, cq } = this.#admin;
    pci.writeBar(0, REG.AQA, 4, (ADMIN_ENTRIES - 1) << 16 | ADMIN_ENTRIES - 1);
    pci.writeBar(0, REG.ASQ, 4, sq >>> 0);
    pci.writeBar(0, REG.ASQ + 4, 4, high32(sq));
    pci.writeBar(0, REG.ACQ, 4, cq >>> 0);
    pci.writeBar(0, REG.ACQ + 4, 4, high32(cq));
    pci.writeBar(0, REG.CC, 4, CC_ENABLE);
    this.#waitReady(true);
  }

  #waitReady(ready: boolean): void {
    const deadline = performance.now() + ANSWER_TIMEOUT_MS;
    while (
      ((this.#pci.readBar(0, REG.CSTS, 4) & CSTS_RDY) !== 0) !== ready
    ) {
      if (performance.now() > deadline) {
        throw new Error(
          `Cannot reset the controller: CSTS.RDY is not ${ready}`,
        );
      }
    }
  }

  #createPair(entries: number): NvmePair {
    const pair = new NvmePair(this.#memory, 1, entries);
    const size = (entries - 1) << 16 | pair.qid;
    const CONTIGUOUS = 1;
    this.#command(ADMIN.CREATE_CQ, 0, pair.cq, size, CONTIGUOUS);
    this.#command(
      ADMIN.CREATE_SQ,
      0,
      pair.sq,
      size,
      pair.qid << 16 | CONTIGUOUS,
    );
    return pair;
  }

  /** Runs an admin command and waits for it. */
  #command(
    opcode: number,
    nsid: number,
    prp1: number,
    cdw10: number,
    cdw11: number,
    prp2 = 0,
  ): void {
    const { sq, cq } = this.#admin;
    const admin = this.#admin;
    const words = this.#words32;
    const at = this.#memory.offset(sq + admin.tail * SQE_BYTES) >>> 2;
    words.fill(0, at, at + 16);
    words.set([opcode | ++this.#cid << 16, nsid], at);
    words.set([prp1 >>> 0, high32(prp1), prp2 >>> 0, high32(prp2)], at + 6);
    words.set([cdw10, cdw11], at + 10);
    admin.tail = (admin.tail + 1) % ADMIN_ENTRIES;
    this.#pci.writeBar(0, DOORBELLS, 4, admin.tail);
    const done = (this.#memory.offset(cq + admin.head * CQE_BYTES) >>> 2) + 3;
    const deadline = performance.now() + ANSWER_TIMEOUT_MS;
    while ((Atomics.load(words, done) >>> 16 & 1) !== admin.phase) {
      if (performance.now() > deadline) {
        throw new Error(`Cannot run admin command ${opcode}: no completion`);
      }
    }
    const status = words[done]! >>> 17;
    if (++admin.head === ADMIN_ENTRIES) {
      admin.head = 0;
      admin.phase ^= 1;
    }
    this.#pci.writeBar(0, DOORBELLS + 4, 4, admin.head);
    if (status !== 0) {
      throw new Error(
        `Cannot run admin command ${opcode}: status ${status.toString(16)}`,
      );
    }
  }

  #fillList(slot: number): void {
    const view = this.#memory.view;
    const at = this.#memory.offset(this.#lists + slot * PAGE_BYTES);
    const pages = this.#transferBytes / PAGE_BYTES - 1;
    for (let i = 0; i < pages; i++) {
      const page = this.bufferIova(slot) + (i + 1) * PAGE_BYTES;
      view.setUint32(at + 8 * i, page >>> 0, true);
      view.setUint32(at + 8 * i + 4, high32(page), true);
    }
  }
}
