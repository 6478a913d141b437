/**
 * The driver's side of a packed virtqueue as the standard describes it, written without a look at src/: every byte is
 * put where section 2.8 of virtio 1.3 says, with plain DataView accesses, and nothing is fast.
 */

import type { Buffer } from "./naive_ring.ts";

export const NEXT = 1;
export const WRITE = 2;
export const INDIRECT = 4;
export const AVAIL = 1 << 7;
export const USED = 1 << 15;

export const EVENT = { ENABLE: 0, DISABLE: 1, DESC: 2 } as const;

/** A descriptor, field by field; nothing is checked. */
export interface RawPacked {
  readonly addr?: number | bigint;
  readonly len?: number;
  readonly id?: number;
  readonly flags?: number;
}

/** First bytes of the parts of a ring. */
export interface PackedPlaces {
  readonly desc: number;
  readonly driver: number;
  readonly device: number;
}

interface InFlight {
  readonly descriptors: number;
  readonly writable: number;
}

export class NaivePackedRing {
  readonly size: number;
  readonly places: PackedPlaces;
  readonly view: DataView;
  readonly #base: number;
  readonly #inOrder: boolean;
  /** Counts descriptors for ever; place and wrap counter follow from it. */
  next = 0;
  nextUsed = 0;
  free: number;
  readonly #ids: number[] = [];
  readonly #chains = new Map<number, InFlight>();
  /** Ids in the order they were made available. */
  readonly #order: number[] = [];

  /** @param base Guest address of the first byte of `buffer` */
  constructor(
    buffer: ArrayBuffer,
    base: number,
    size: number,
    places: PackedPlaces,
    inOrder = false,
  ) {
    this.view = new DataView(buffer);
    this.#base = base;
    this.size = size;
    this.free = size;
    this.places = places;
    this.#inOrder = inOrder;
    // Not in ascending order, so that an id taken for a place shows.
    for (let i = 0; i < size; i++) this.#ids.push((i * 7 + 3) % size);
    if (new Set(this.#ids).size < size) {
      for (let i = 0; i < size; i++) this.#ids[i] = size - 1 - i;
    }
  }

  /** AVAIL and USED of an available descriptor that is the n-th ever. */
  availableFlags(n: number): number {
    return Math.floor(n / this.size) % 2 === 0 ? AVAIL : USED;
  }

  offWrap(n: number): number {
    const wrap = Math.floor(n / this.size) % 2 === 0 ? 1 : 0;
    return n % this.size + wrap * 0x8000;
  }

  descriptor(index: number, raw: RawPacked): void {
    this.descriptorAt(this.places.desc + index * 16, raw);
  }

  descriptorAt(iova: number, raw: RawPacked): void {
    const at = iova - this.#base;
    this.view.setBigUint64(at, BigInt(raw.addr ?? 0), true);
    this.view.setUint32(at + 8, raw.len ?? 0, true);
    this.view.setUint16(at + 12, raw.id ?? 0, true);
    this.view.setUint16(at + 14, raw.flags ?? 0, true);
  }

  read(index: number): Required<RawPacked> {
    const at = this.places.desc + index * 16 - this.#base;
    return {
      addr: this.view.getBigUint64(at, true),
      len: this.view.getUint32(at + 8, true),
      id: this.view.getUint16(at + 12, true),
      flags: this.view.getUint16(at + 14, true),
    };
  }

  /** Sets the driver's event suppression. */
  driverEvent(flags: number, offWrap = 0): void {
    const at = this.places.driver - this.#base;
    this.view.setUint16(at, offWrap, true);
    this.view.setUint16(at + 2, flags, true);
  }

  /** The device's event suppression: [flags, off_wrap]. */
  get deviceEvent(): [number, number] {
    const at = this.places.device - this.#base;
    return [this.view.getUint16(at + 2, true), this.view.getUint16(at, true)];
  }

  set deviceEvent([flags, offWrap]: [number, number]) {
    const at = this.places.device - this.#base;
    this.view.setUint16(at, offWrap, true);
    this.view.setUint16(at + 2, flags, true);
  }

  /** Writes descriptors at the next places, the flags of the first last. */
  offer(parts: readonly RawPacked[]): void {
    parts.forEach((raw, i) => {
      const n = this.next + i;
      const flags = (raw.flags ?? 0) | this.availableFlags(n);
      this.descriptor(n % this.size, { ...raw, flags: i === 0 ? 0 : flags });
    });
    const at = this.places.desc + (this.next % this.size) * 16 - this.#base;
    const first = (parts[0]!.flags ?? 0) | this.availableFlags(this.next);
    this.view.setUint16(at + 14, first, true);
    this.next += parts.length;
  }

  /** Builds a well-formed chain, in a table at `tableIova` if one is given, and offers it. Returns its id. */
  add(buffers: readonly Buffer[], tableIova?: number): number {
    const id = this.#ids.shift()!;
    const descriptors = tableIova === undefined ? buffers.length : 1;
    if (tableIova === undefined) {
      this.offer(buffers.map((buffer, i) => ({
        addr: buffer.iova,
        len: buffer.length,
        // The id counts in the last only (2.8.6).
        id: i === buffers.length - 1 ? id : 0xdead,
        flags: (buffer.write ? WRITE : 0) |
          (i === buffers.length - 1 ? 0 : NEXT),
      })));
    } else {
      buffers.forEach((buffer, i) =>
        this.descriptorAt(tableIova + i * 16, {
          addr: buffer.iova,
          len: buffer.length,
          id: 0xdead,
          flags: buffer.write ? WRITE : 0,
        })
      );
      this.offer([{
        addr: tableIova,
        len: buffers.length * 16,
        id,
        flags: INDIRECT,
      }]);
    }
    const writable = buffers.filter((buffer) => buffer.write)
      .reduce((sum, buffer) => sum + buffer.length, 0);
    this.#chains.set(id, { descriptors, writable });
    this.#order.push(id);
    this.free -= descriptors;
    return id;
  }

  /** Takes everything that was used since the last call; `told` is false for what IN_ORDER let the device skip. */
  collect(): { id: number; len: number; told: boolean }[] {
    const result = [];
    for (;;) {
      const raw = this.read(this.nextUsed % this.size);
      const wrap = Math.floor(this.nextUsed / this.size) % 2 === 0;
      const mark = wrap ? AVAIL | USED : 0;
      if ((raw.flags & (AVAIL | USED)) !== mark) return result;
      const len = (raw.flags & WRITE) !== 0 ? raw.len : 0;
      if (!this.#inOrder) {
        this.#order.splice(this.#order.indexOf(raw.id), 1);
        this.#free(raw.id);
        result.push({ id: raw.id, len, told: true });
        continue;
      }
      if (!this.#order.includes(raw.id)) {
        throw new Error(`id ${raw.id} is not in flight`);
      }
      let id: number;
      do {
        id = this.#order.shift()!;
        const told = id === raw.id;
        const assumed = this.#chains.get(id)!.writable;
        result.push({ id, len: told ? len : assumed, told });
        this.#free(id);
      } while (id !== raw.id);
    }
  }

  #free(id: number): void {
    const chain = this.#chains.get(id);
    if (chain === undefined) throw new Error(`id ${id} is not in flight`);
    this.#chains.delete(id);
    this.#ids.push(id);
    this.free += chain.descriptors;
    this.nextUsed += chain.descriptors;
  }
}
