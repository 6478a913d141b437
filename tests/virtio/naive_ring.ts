/**
 * The driver's side of a split virtqueue as the standard describes it, written without a look at src/: every byte is
 * put where section 2.7 of virtio 1.3 says, with plain DataView accesses, and nothing is fast.
 */

/** A descriptor, field by field; nothing is checked. */
export interface RawDescriptor {
  readonly addr?: number | bigint;
  readonly len?: number;
  readonly flags?: number;
  readonly next?: number;
}

/** A buffer of a well-formed chain. */
export interface Buffer {
  readonly iova: number;
  readonly length: number;
  readonly write?: boolean;
}

export const NEXT = 1;
export const WRITE = 2;
export const INDIRECT = 4;

/** First bytes of the parts of a ring. */
export interface RingPlaces {
  readonly desc: number;
  readonly avail: number;
  readonly used: number;
}

export class NaiveRing {
  readonly size: number;
  readonly places: RingPlaces;
  readonly view: DataView;
  readonly eventIdx: boolean;
  readonly #base: number;
  readonly #free: number[] = [];
  readonly #chains = new Map<number, number[]>();
  /** With IN_ORDER: heads in the order they were made available, and what they can be written. */
  readonly #order: number[] = [];
  readonly #writable = new Map<number, number>();
  readonly #inOrder: boolean;
  #seenUsed = 0;

  /** @param base Guest address of the first byte of `buffer` */
  constructor(
    buffer: ArrayBuffer,
    base: number,
    size: number,
    places: RingPlaces,
    eventIdx: boolean,
    inOrder = false,
  ) {
    this.#inOrder = inOrder;
    this.view = new DataView(buffer);
    this.#base = base;
    this.size = size;
    this.places = places;
    this.eventIdx = eventIdx;
    for (let i = 0; i < size; i++) this.#free.push(i);
  }

  /** Pretends that both sides have already gone round to this index; the device must be told apart. */
  startAt(index: number): void {
    this.availIdx = index;
    this.view.setUint16(this.#at(this.places.used + 2), index, true);
    this.#seenUsed = index;
  }

  descriptor(index: number, raw: RawDescriptor): void {
    this.descriptorAt(this.places.desc + index * 16, raw);
  }

  descriptorAt(iova: number, raw: RawDescriptor): void {
    const at = this.#at(iova);
    this.view.setBigUint64(at, BigInt(raw.addr ?? 0), true);
    this.view.setUint32(at + 8, raw.len ?? 0, true);
    this.view.setUint16(at + 12, raw.flags ?? 0, true);
    this.view.setUint16(at + 14, raw.next ?? 0, true);
  }

  get availIdx(): number {
    return this.view.getUint16(this.#at(this.places.avail + 2), true);
  }

  set availIdx(value: number) {
    this.view.setUint16(this.#at(this.places.avail + 2), value, true);
  }

  set availFlags(value: number) {
    this.view.setUint16(this.#at(this.places.avail), value, true);
  }

  set usedEvent(value: number) {
    const at = this.places.avail + 4 + 2 * this.size;
    this.view.setUint16(this.#at(at), value, true);
  }

  get usedIdx(): number {
    return this.view.getUint16(this.#at(this.places.used + 2), true);
  }

  get usedFlags(): number {
    return this.view.getUint16(this.#at(this.places.used), true);
  }

  get availEvent(): number {
    const at = this.places.used + 4 + 8 * this.size;
    return this.view.getUint16(this.#at(at), true);
  }

  set availEvent(value: number) {
    const at = this.places.used + 4 + 8 * this.size;
    this.view.setUint16(this.#at(at), value, true);
  }

  /** Puts a head into the available ring and moves the index. */
  offer(head: number): void {
    const idx = this.availIdx;
    this.view.setUint16(
      this.#at(this.places.avail + 4 + 2 * (idx % this.size)),
      head,
      true,
    );
    this.availIdx = (idx + 1) & 0xffff;
  }

  get freeDescriptors(): number {
    return this.#free.length;
  }

  /** Builds a well-formed chain, in a table at `tableIova` if one is given, and offers it. Returns its head. */
  add(buffers: readonly Buffer[], tableIova?: number): number {
    const indices = this.#free.splice(
      0,
      tableIova === undefined ? buffers.length : 1,
    );
    const head = indices[0]!;
    if (tableIova === undefined) {
      buffers.forEach((buffer, i) => {
        const next = indices[i + 1];
        this.descriptor(indices[i]!, {
          addr: buffer.iova,
          len: buffer.length,
          flags: (buffer.write ? WRITE : 0) | (next === undefined ? 0 : NEXT),
          next: next ?? 0,
        });
      });
    } else {
      buffers.forEach((buffer, i) => {
        const last = i === buffers.length - 1;
        this.descriptorAt(tableIova + i * 16, {
          addr: buffer.iova,
          len: buffer.length,
          flags: (buffer.write ? WRITE : 0) | (last ? 0 : NEXT),
          next: last ? 0 : i + 1,
        });
      });
      this.descriptor(head, {
        addr: tableIova,
        len: buffers.length * 16,
        flags: INDIRECT,
      });
    }
    this.#chains.set(head, indices);
    this.#order.push(head);
    this.#writable.set(
      head,
      buffers.filter((buffer) => buffer.write)
        .reduce((sum, buffer) => sum + buffer.length, 0),
    );
    this.offer(head);
    return head;
  }

  /** Takes everything that was used since the last call. */
  collect(): { id: number; len: number }[] {
    const result = [];
    while (this.#seenUsed !== this.usedIdx) {
      const at = this.#at(
        this.places.used + 4 + 8 * (this.#seenUsed % this.size),
      );
      const id = this.view.getUint32(at, true);
      result.push({ id, len: this.view.getUint32(at + 4, true) });
      this.#free.push(...(this.#chains.get(id) ?? []));
      this.#chains.delete(id);
      this.#seenUsed = (this.#seenUsed + 1) & 0xffff;
    }
    return result;
  }

  /** As collect, by the rule of 2.7.9: an entry stands for every chain up to the one it names. */
  collectInOrder(): { id: number; len: number; told: boolean }[] {
    if (!this.#inOrder) throw new Error("IN_ORDER was not negotiated");
    const result = [];
    while (this.#seenUsed !== this.usedIdx) {
      const at = this.#at(
        this.places.used + 4 + 8 * (this.#seenUsed % this.size),
      );
      const last = this.view.getUint32(at, true);
      const len = this.view.getUint32(at + 4, true);
      if (!this.#order.includes(last)) {
        throw new Error(`head ${last} is not in flight`);
      }
      let id: number;
      do {
        if (this.#seenUsed === this.usedIdx) {
          throw new Error("a batch goes on behind the used index");
        }
        id = this.#order.shift()!;
        const told = id === last;
        result.push({ id, len: told ? len : this.#writable.get(id)!, told });
        this.#free.push(...this.#chains.get(id)!);
        this.#chains.delete(id);
        this.#seenUsed = (this.#seenUsed + 1) & 0xffff;
      } while (id !== last);
    }
    return result;
  }

  #at(iova: number): number {
    return iova - this.#base;
  }
}
