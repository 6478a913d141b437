/**
 * A network card as naive as can be, in this thread: it sends back every frame it is given. It knows the standard and
 * nothing of this package; a test can make it misbehave.
 */

import type {
  Bell,
  BellWidth,
  DriverMemory,
  InterruptLines,
  PciAccess,
  PciWidth,
} from "../../src/testing/mod.ts";

const COMMON_AT = 0x100;
const ISR_AT = 0x200;
const DEVICE_AT = 0x300;
const NOTIFY_AT = 0x400;
const NO_VECTOR = 0xffff;

interface Queue {
  regs: Map<number, number>;
  size: number;
  vector: number;
  enabled: boolean;
  lastAvail: number;
  usedIdx: number;
}

export class NaiveCard implements PciAccess, InterruptLines {
  readonly config = new DataView(new ArrayBuffer(256));
  readonly device = new DataView(new ArrayBuffer(64));
  readonly queues: Queue[] = [];
  /** Everything that was written to the status register. */
  readonly statuses: number[] = [];
  readonly raised: number[] = [0, 0, 0, 0];
  readonly commands: number[][] = [];
  offered: Set<number>;
  accepted = new Set<number>();
  ack = 0;
  /** Do not answer kicks. */
  deaf = false;
  /** Number of times the generation changes between two reads. */
  generationChanges = 0;
  refuseFeatures = false;
  refuseVectors = false;
  stuckStatus = 0;
  isr = 3;
  readonly #memory: DriverMemory;
  #select = 0;
  #status = 0;
  #featureSelect = 0;
  #driverSelect = 0;
  #configVector = NO_VECTOR;
  #generation = 0;
  #window = { bar: 0, offset: 0 };

  constructor(memory: DriverMemory, offered: Iterable<number>) {
    this.#memory = memory;
    this.offered = new Set(offered);
    for (let i = 0; i < 3; i++) this.queues.push(newQueue());
    this.config.setUint32(0, 0x1041_1af4, true);
    this.config.setUint16(6, 0x10, true);
    this.config.setUint8(0x34, 0x40);
    const caps = [
      [1, COMMON_AT, 56, 16],
      [2, NOTIFY_AT, 12, 20],
      [3, ISR_AT, 1, 16],
      [4, DEVICE_AT, 64, 16],
      [5, 0, 0, 20],
    ];
    caps.forEach(([type, offset, length, size], i) => {
      const at = 0x40 + i * 24;
      this.config.setUint8(at, 9);
      this.config.setUint8(at + 1, i + 1 < caps.length ? at + 24 : 0);
      this.config.setUint8(at + 2, size!);
      this.config.setUint8(at + 3, type!);
      this.config.setUint8(at + 4, type === 5 ? 0 : 4);
      this.config.setUint32(at + 8, offset!, true);
      this.config.setUint32(at + 12, length!, true);
    });
    this.config.setUint32(0x40 + 24 + 16, 4, true);
  }

  readConfig(offset: number, width: PciWidth): number {
    if (offset === 0x40 + 4 * 24 + 16) {
      return this.readBar(this.#window.bar, this.#window.offset, width);
    }
    return load(this.config, offset, width);
  }

  writeConfig(offset: number, width: PciWidth, value: number): void {
    const at = 0x40 + 4 * 24;
    if (offset === at + 4) this.#window.bar = value;
    else if (offset === at + 8) this.#window.offset = value;
    else if (offset === at + 16) {
      this.writeBar(this.#window.bar, this.#window.offset, width, value);
    } else if (offset === 4) this.config.setUint16(4, value, true);
  }

  readBar(_bar: number, offset: number, width: PciWidth): number {
    if (offset >= DEVICE_AT) {
      return load(this.device, offset - DEVICE_AT, width);
    }
    if (offset === ISR_AT) {
      const isr = this.isr;
      this.isr = 0;
      return isr;
    }
    const queue = this.queues[this.#select];
    switch (offset - COMMON_AT) {
      case 4:
        return wordOf(this.offered, this.#featureSelect);
      case 16:
        return this.#configVector;
      case 18:
        return this.queues.length;
      case 20:
        return this.#status;
      case 21:
        if (this.generationChanges > 0) {
          this.generationChanges--;
          this.#generation++;
          this.device.setUint8(0, this.#generation);
        }
        return this.#generation & 0xff;
      case 24:
        return queue?.size ?? 0;
      case 26:
        return queue?.vector ?? NO_VECTOR;
      case 28:
        return queue?.enabled ? 1 : 0;
      case 30:
        return this.#select;
      default:
        return 0;
    }
  }

  writeBar(
    _bar: number,
    offset: number,
    _width: PciWidth,
    value: number,
  ): void {
    if (offset >= NOTIFY_AT) return this.#kick(value);
    if (offset >= DEVICE_AT) {
      return this.device.setUint8(offset - DEVICE_AT, value);
    }
    const queue = this.queues[this.#select];
    const at = offset - COMMON_AT;
    if (at >= 32 && at < 56) queue?.regs.set(at, value);
    switch (at) {
      case 0:
        this.#featureSelect = value;
        break;
      case 8:
        this.#driverSelect = value;
        break;
      case 12:
        for (let bit = 0; bit < 32; bit++) {
          if ((value >>> bit) & 1) {
            this.accepted.add(this.#driverSelect * 32 + bit);
          }
        }
        break;
      case 16:
        this.#configVector = this.refuseVectors ? NO_VECTOR : value;
        break;
      case 20:
        this.#setStatus(value);
        break;
      case 22:
        this.#select = value;
        break;
      case 24:
        queue!.size = value;
        break;
      case 26:
        queue!.vector = this.refuseVectors ? NO_VECTOR : value;
        break;
      case 28:
        queue!.enabled = true;
        break;
      case 58:
        this.queues[this.#select] = newQueue();
        break;
    }
  }

  bell(_bar: number, offset: number, width: BellWidth): Bell {
    return {
      ring: (value) => this.writeBar(4, offset, width, value),
    };
  }

  enableMsix(_vectors: number): InterruptLines {
    return this;
  }

  wait(vector: number, _timeoutMs: number): number {
    const raised = this.raised[vector]!;
    this.raised[vector] = 0;
    return raised;
  }

  #setStatus(value: number): void {
    this.statuses.push(value);
    this.#status = value === 0
      ? this.stuckStatus
      : this.refuseFeatures
      ? value & ~8
      : value;
    if (value !== 0) return;
    this.accepted.clear();
    for (let i = 0; i < 3; i++) this.queues[i] = newQueue();
  }

  /** Looks at all queues, whichever was rung. */
  #kick(_queue: number): void {
    if (this.deaf) return;
    for (let frame = this.#pop(1); frame !== null; frame = this.#pop(1)) {
      const bytes = gather(this.#memory, frame.buffers);
      this.#push(1, frame.head, 0);
      this.deliver(bytes.slice(12));
    }
    for (let got = this.#pop(2); got !== null; got = this.#pop(2)) {
      const readable = got.buffers.filter((buffer) => !buffer.writable);
      this.commands.push([...gather(this.#memory, readable)]);
      const ack = got.buffers.find((buffer) => buffer.writable)!;
      this.#memory.write(ack.iova, Uint8Array.of(this.ack));
      this.#push(2, got.head, 1);
    }
  }

  /** Gives the driver a frame, over as many buffers as it takes. */
  deliver(frame: Uint8Array): void {
    const bytes = new Uint8Array(12 + frame.length);
    bytes.set(frame, 12);
    const parts: { head: number; iova: number; length: number; at: number }[] =
      [];
    let at = 0;
    while (at < bytes.length) {
      const got = this.#pop(0);
      if (got === null) return;
      const { iova, lengthBytes } = got.buffers[0]!;
      const length = Math.min(lengthBytes, bytes.length - at);
      parts.push({ head: got.head, iova, length, at });
      at += length;
    }
    bytes[10] = parts.length;
    for (const part of parts) {
      this.#memory.write(
        part.iova,
        bytes.slice(part.at, part.at + part.length),
      );
      this.#push(0, part.head, part.length);
    }
  }

  #address(queue: Queue, at: number): number {
    return (queue.regs.get(at + 4) ?? 0) * 2 ** 32 + (queue.regs.get(at) ?? 0);
  }

  #pop(index: number) {
    const queue = this.queues[index]!;
    if (!queue.enabled) return null;
    const view = this.#memory.view;
    const avail = this.#memory.offset(this.#address(queue, 40));
    if (view.getUint16(avail + 2, true) === queue.lastAvail) return null;
    const slot = queue.lastAvail % queue.size;
    queue.lastAvail = (queue.lastAvail + 1) % 65_536;
    const head = view.getUint16(avail + 4 + slot * 2, true);
    const buffers: { iova: number; lengthBytes: number; writable: boolean }[] =
      [];
    let table = this.#address(queue, 32);
    for (let next = head;;) {
      const at = this.#memory.offset(table) + next * 16;
      const flags = view.getUint16(at + 12, true);
      const iova = Number(view.getBigUint64(at, true));
      if ((flags & 4) !== 0) {
        table = iova;
        next = 0;
        continue;
      }
      buffers.push({
        iova,
        lengthBytes: view.getUint32(at + 8, true),
        writable: (flags & 2) !== 0,
      });
      if ((flags & 1) === 0) return { head, buffers };
      next = view.getUint16(at + 14, true);
    }
  }

  #push(index: number, head: number, length: number): void {
    const queue = this.queues[index]!;
    const view = this.#memory.view;
    const used = this.#memory.offset(this.#address(queue, 48));
    const at = used + 4 + (queue.usedIdx % queue.size) * 8;
    view.setUint32(at, head, true);
    view.setUint32(at + 4, length, true);
    queue.usedIdx = (queue.usedIdx + 1) % 65_536;
    view.setUint16(used + 2, queue.usedIdx, true);
    // Wants every kick and raises for everything.
    view.setUint16(used + 4 + queue.size * 8, queue.lastAvail, true);
    if (queue.vector !== NO_VECTOR) this.raised[queue.vector]!++;
  }
}

function newQueue(): Queue {
  return {
    regs: new Map(),
    size: 16,
    vector: NO_VECTOR,
    enabled: false,
    lastAvail: 0,
    usedIdx: 0,
  };
}

function load(view: DataView, offset: number, width: PciWidth): number {
  return width === 1
    ? view.getUint8(offset)
    : width === 2
    ? view.getUint16(offset, true)
    : view.getUint32(offset, true);
}

function wordOf(bits: ReadonlySet<number>, select: number): number {
  let word = 0;
  for (const bit of bits) if (bit >> 5 === select) word |= 1 << (bit & 31);
  return word >>> 0;
}

function gather(
  memory: DriverMemory,
  buffers: readonly { iova: number; lengthBytes: number }[],
): Uint8Array {
  return Uint8Array.from(
    buffers.flatMap((
      { iova, lengthBytes },
    ) => [...memory.at(iova, lengthBytes)]),
  );
}
