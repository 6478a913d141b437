/** A driver written from the standard alone, knowing nothing of the device's code. */

import { assert, assertEquals } from "@std/assert";
import type { PciDevice } from "../../../src/pci/device.ts";
import type { DriverMemory } from "../../../src/testing/driver_memory.ts";
import type { ManualLoop } from "../../../src/testing/manual_loop.ts";

/** A completion as the driver reads it. */
export interface Completion {
  readonly cid: number;
  readonly dw0: number;
  readonly sqhd: number;
  readonly sqid: number;
  /** Status code type and status code, without DNR. */
  readonly status: number;
  readonly dnr: boolean;
  /** True if the error log tells more. */
  readonly more: boolean;
}

/** A command; words that are not given are 0. */
export interface Sqe {
  opcode: number;
  cid?: number;
  nsid?: number;
  flags?: number;
  prp1?: number;
  prp2?: number;
  /** In place of prp1 and prp2: sixteen bytes. */
  sgl1?: Uint8Array;
  cdw10?: number;
  cdw11?: number;
  cdw12?: number;
  cdw13?: number;
  cdw14?: number;
  cdw15?: number;
}

const REG = {
  CAP: 0,
  VS: 8,
  INTMS: 0xc,
  INTMC: 0x10,
  CC: 0x14,
  CSTS: 0x1c,
  AQA: 0x24,
  ASQ: 0x28,
  ACQ: 0x30,
};
const PAGE = 4096;

/** A queue pair. */
export class Pair {
  sqTail = 0;
  cqHead = 0;
  phase = 1;
  nextCid = 1;
  readonly qid: number;
  readonly size: number;
  readonly cqSize: number;
  readonly sq: number;
  readonly cq: number;

  constructor(
    qid: number,
    size: number,
    cqSize: number,
    sq: number,
    cq: number,
  ) {
    this.qid = qid;
    this.size = size;
    this.cqSize = cqSize;
    this.sq = sq;
    this.cq = cq;
  }
}

export class NaiveDriver {
  readonly device: PciDevice;
  readonly ram: DriverMemory;
  readonly loop: ManualLoop;
  admin!: Pair;
  /** Shadow doorbell and EventIdx buffers. */
  shadow: number | null = null;
  eventIdx = 0;
  /** Doorbell messages that were sent. */
  doorbells = 0;

  constructor(device: PciDevice, ram: DriverMemory, loop: ManualLoop) {
    this.device = device;
    this.ram = ram;
    this.loop = loop;
  }

  read(offset: number): number {
    return this.device.readBar(0, offset, 4);
  }

  write(offset: number, value: number): void {
    this.device.writeBar(0, offset, 4, value);
  }

  write64(offset: number, value: number): void {
    this.write(offset, value >>> 0);
    this.write(offset + 4, Math.floor(value / 2 ** 32));
  }

  get csts(): number {
    return this.read(REG.CSTS);
  }

  page(count = 1): number {
    return this.ram.alloc(PAGE * count, PAGE);
  }

  /** Gives the controller its admin queues and turns it on. */
  enable(entries = 32, cc = 0x0046_0001): void {
    this.admin = new Pair(
      0,
      entries,
      entries,
      this.page(Math.ceil(entries * 64 / PAGE)),
      this.page(Math.ceil(entries * 16 / PAGE)),
    );
    this.write(REG.AQA, (entries - 1) | (entries - 1) << 16);
    this.write64(REG.ASQ, this.admin.sq);
    this.write64(REG.ACQ, this.admin.cq);
    this.write(REG.CC, cc);
    this.loop.settle();
    assertEquals(this.csts & 3, 1, "ready");
  }

  disable(): void {
    this.write(REG.CC, 0x0046_0000);
    this.loop.settle();
    assertEquals(this.csts & 1, 0);
  }

  createPair(
    qid: number,
    size = 16,
    vector = qid,
    cqSize = size,
    interrupts = true,
  ): Pair {
    const pair = new Pair(
      qid,
      size,
      cqSize,
      this.page(Math.ceil(size * 64 / PAGE)),
      this.page(Math.ceil(cqSize * 16 / PAGE)),
    );
    const cq = this.run({
      opcode: 5,
      prp1: pair.cq,
      cdw10: qid | (cqSize - 1) << 16,
      cdw11: 1 | (interrupts ? 2 : 0) | vector << 16,
    });
    assertEquals(cq.status, 0, "create CQ");
    const sq = this.run({
      opcode: 1,
      prp1: pair.sq,
      cdw10: qid | (size - 1) << 16,
      cdw11: 1 | qid << 16,
    });
    assertEquals(sq.status, 0, "create SQ");
    return pair;
  }

  /** Puts a command into a queue without ringing. @returns Its identifier */
  put(pair: Pair, sqe: Sqe): number {
    const cid = sqe.cid ?? pair.nextCid;
    if (sqe.cid === undefined) pair.nextCid = pair.nextCid % 0xfff0 + 1;
    const bytes = new Uint8Array(64);
    const view = new DataView(bytes.buffer);
    view.setUint8(0, sqe.opcode);
    view.setUint8(1, sqe.flags ?? 0);
    view.setUint16(2, cid, true);
    view.setUint32(4, sqe.nsid ?? 0, true);
    view.setBigUint64(24, BigInt(sqe.prp1 ?? 0), true);
    view.setBigUint64(32, BigInt(sqe.prp2 ?? 0), true);
    if (sqe.sgl1 !== undefined) bytes.set(sqe.sgl1, 24);
    const rest = [
      sqe.cdw10,
      sqe.cdw11,
      sqe.cdw12,
      sqe.cdw13,
      sqe.cdw14,
      sqe.cdw15,
    ];
    rest.forEach((word, i) => view.setUint32(40 + i * 4, word ?? 0, true));
    this.putBytes(pair, bytes);
    return cid;
  }

  putBytes(pair: Pair, bytes: Uint8Array): void {
    this.ram.write(pair.sq + pair.sqTail * 64, bytes);
    pair.sqTail = (pair.sqTail + 1) % pair.size;
  }

  /** Tells the controller about new commands. */
  ring(pair: Pair): void {
    this.#doorbell(pair.qid * 2, pair.sqTail);
  }

  #doorbell(index: number, value: number): void {
    if (this.shadow !== null) {
      const { view } = this.ram;
      const at = this.ram.offset(this.shadow) + index * 4;
      const old = view.getUint32(at, true);
      view.setUint32(at, value, true);
      const event = view.getUint32(
        this.ram.offset(this.eventIdx) + index * 4,
        true,
      );
      const mod = (n: number) => n & 0xffff;
      if (!(mod(value - event - 1) < mod(value - old))) return;
    }
    this.doorbells++;
    this.write(0x1000 + index * 4, value);
  }

  /** The completions that are there. */
  reap(pair: Pair, ring = true): Completion[] {
    const found: Completion[] = [];
    const { view, bytes } = this.ram;
    const words = new Uint32Array(bytes.buffer);
    for (;;) {
      const at = this.ram.offset(pair.cq) + pair.cqHead * 16;
      // Whole: a DataView may read it byte by byte, while another process writes it.
      const last = Atomics.load(words, (at + 12) / 4);
      if ((last >>> 16 & 1) !== pair.phase) break;
      found.push({
        dw0: view.getUint32(at, true),
        sqhd: view.getUint16(at + 8, true),
        sqid: view.getUint16(at + 10, true),
        cid: last & 0xffff,
        status: last >>> 17 & 0x7ff,
        dnr: last >>> 31 === 1,
        more: (last >>> 30 & 1) === 1,
      });
      if (++pair.cqHead === pair.cqSize) {
        pair.cqHead = 0;
        pair.phase ^= 1;
      }
      if (found.length > pair.cqSize) throw new Error("more than the queue");
    }
    if (ring && found.length > 0) {
      this.#doorbell(pair.qid * 2 + 1, pair.cqHead);
      this.loop.settle();
    }
    return found;
  }

  /** Runs one command to its end. */
  run(sqe: Sqe, pair: Pair = this.admin): Completion {
    const cid = this.put(pair, sqe);
    this.ring(pair);
    this.loop.settle();
    const found = this.reap(pair);
    assertEquals(found.length, 1, `completions of opcode ${sqe.opcode}`);
    assertEquals(found[0]!.cid, cid);
    assertEquals(found[0]!.sqid, pair.qid);
    return found[0]!;
  }

  /** Identify; fails when the command does. */
  identify(cns: number, nsid = 0, cdw11 = 0): DataView<ArrayBuffer> {
    const prp1 = this.page();
    const done = this.run({ opcode: 6, nsid, prp1, cdw10: cns, cdw11 });
    assertEquals(done.status, 0, `identify ${cns}`);
    const copy = this.ram.at(prp1, PAGE).slice();
    this.ram.free(prp1, PAGE);
    return new DataView(copy.buffer);
  }

  logPage(lid: number, bytes: number, more: Partial<Sqe> = {}): DataView {
    const prp1 = this.page();
    const done = this.run({
      opcode: 2,
      nsid: 0xffff_ffff,
      prp1,
      cdw10: lid | (bytes / 4 - 1) << 16,
      ...more,
    });
    assertEquals(done.status, 0, `log page ${lid}`);
    const copy = this.ram.at(prp1, bytes).slice();
    this.ram.free(prp1, PAGE);
    return new DataView(copy.buffer);
  }

  setFeature(fid: number, cdw11: number, more: Partial<Sqe> = {}): Completion {
    return this.run({ opcode: 9, cdw10: fid, cdw11, ...more });
  }

  getFeature(fid: number, cdw11 = 0, select = 0): Completion {
    return this.run({ opcode: 10, cdw10: fid | select << 8, cdw11 });
  }

  /** Turns shadow doorbells on, the way Linux does: not for the admin queue unless told. */
  configureShadow(): void {
    const shadow = this.page();
    this.eventIdx = this.page();
    const done = this.run({ opcode: 0x7c, prp1: shadow, prp2: this.eventIdx });
    assertEquals(done.status, 0);
    this.shadow = shadow;
  }

  /**
   * A data buffer of whole pages and the PRPs for a part of it.
   *
   * @param offset Offset of the data in its first page
   */
  prps(buffer: number, offset: number, bytes: number): Partial<Sqe> {
    const pages: number[] = [];
    for (let at = PAGE; at < offset + bytes; at += PAGE) {
      pages.push(buffer + at);
    }
    const prp1 = buffer + offset;
    if (pages.length === 0) return { prp1 };
    if (pages.length === 1) return { prp1, prp2: pages[0]! };
    assert(pages.length <= PAGE / 8);
    const list = this.page();
    pages.forEach((page, i) => this.ram.writeU64(list + i * 8, page));
    return { prp1, prp2: list };
  }
}
