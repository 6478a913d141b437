/**
 * The Worker's side of the rings: requests become calls of the store, and their promises become answers.
 *
 * @module
 */

import { Errno } from "../../../core/errno.ts";
import { viewMemory } from "../../../os/mod.ts";
import { BlockOp } from "../contract.ts";
import {
  numberAt,
  REQUEST,
  requestAt,
  RING,
  Ring,
  SLOTS,
  type StoreLink,
} from "./link.ts";
import { SLOT_BYTES } from "./driver.ts";
import type { Store } from "./store.ts";

const INDEX_MASK = SLOTS - 1;
const ERRNOS: ReadonlySet<number> = new Set(Object.values(Errno));

/** The error number that an author's error carries, by name or as a number; EIO for one that carries none. */
function errnoOf(error: unknown): number | null {
  const { code, errno } = (error ?? {}) as Record<string, unknown>;
  if (typeof code === "string" && Object.hasOwn(Errno, code)) {
    return Errno[code as keyof typeof Errno];
  }
  // Node.js has negative ones.
  const number = typeof errno === "number" ? Math.abs(errno) : 0;
  return ERRNOS.has(number) ? number : null;
}

/** Answers the requests of all IOThreads. */
export class StoreServer {
  readonly #link: StoreLink;
  readonly #store: Store;
  readonly #report: (error: unknown, action: string) => void;
  readonly #rings: RingServer[] = [];

  /** @param report Told of an error without an error number, and during what it was thrown */
  constructor(
    link: StoreLink,
    store: Store,
    report: (error: unknown, action: string) => void,
  ) {
    this.#link = link;
    this.#store = store;
    this.#report = report;
  }

  /** Begins what has been submitted. @returns Whether there was anything */
  look(): boolean {
    const rings = this.#rings;
    while (rings.length < this.#link.ringCount) {
      const ring = new Ring(this.#link.ringHva(rings.length));
      rings.push(new RingServer(ring, this.#store, this.#report));
    }
    let found = false;
    for (const ring of rings) {
      if (ring.look()) found = true;
    }
    return found;
  }
}

/** Answers the requests of one IOThread. */
class RingServer {
  readonly ring: Ring;
  readonly store: Store;
  readonly report: (error: unknown, action: string) => void;
  readonly #slots: readonly SlotServer[];
  readonly #flush = () => {
    this.#flushing = false;
    this.ring.notify();
  };
  #begun: number;
  #done: number;
  #flushing = false;

  constructor(
    ring: Ring,
    store: Store,
    report: (error: unknown, action: string) => void,
  ) {
    this.ring = ring;
    this.store = store;
    this.report = report;
    this.#slots = Array.from(
      { length: SLOTS },
      (_, i) => new SlotServer(this, i),
    );
    this.#begun = 0;
    this.#done = 0;
  }

  look(): boolean {
    const { words } = this.ring;
    const submitted = Atomics.load(words, RING.SUBMITTED);
    if (this.#begun === submitted) return false;
    while (this.#begun !== submitted) {
      const slot = words[RING.SUBMISSION + (this.#begun & INDEX_MASK)]!;
      this.#begun = (this.#begun + 1) | 0;
      this.#slots[slot]!.begin();
    }
    return true;
  }

  /** @param result 0 or −errno */
  answer(slot: number, result: number): void {
    const { words } = this.ring;
    const at = RING.COMPLETION + 2 * (this.#done & INDEX_MASK);
    words[at] = slot;
    words[at + 1] = result;
    this.#done = (this.#done + 1) | 0;
    Atomics.store(words, RING.DONE, this.#done);
    if (this.#flushing) return;
    // Behind all promises that have settled by now.
    this.#flushing = true;
    queueMicrotask(this.#flush);
  }
}

const ACTIONS: readonly string[] = [
  "read",
  "write",
  "flush",
  "discard",
  "writeZeroes",
];

/** One request at a time. */
class SlotServer {
  readonly #server: RingServer;
  readonly #index: number;
  /** Index of the request's first field. */
  readonly #at: number;
  #data: Uint8Array<ArrayBuffer> = new Uint8Array(0);
  readonly #onDone = () => this.#server.answer(this.#index, 0);
  readonly #onFailed = (error: unknown) => this.#fail(error);

  constructor(server: RingServer, index: number) {
    this.#server = server;
    this.#index = index;
    this.#at = requestAt(index);
  }

  begin(): void {
    let result: Promise<void> | void;
    try {
      result = this.#call();
    } catch (error) {
      return this.#fail(error);
    }
    if (result === undefined) this.#onDone();
    else result.then(this.#onDone, this.#onFailed);
  }

  #call(): Promise<void> | void {
    const { ring: { words }, store } = this.#server;
    const at = this.#at;
    const offset = numberAt(words, at + REQUEST.OFFSET_LOW);
    const length = numberAt(words, at + REQUEST.LENGTH_LOW);
    switch (words[at + REQUEST.OP] as BlockOp) {
      case BlockOp.READ:
        return store.read(offset, this.#view(length));
      case BlockOp.WRITE:
        return this.#durably(store.write!(offset, this.#view(length)));
      case BlockOp.FLUSH:
        return store.flush!();
      case BlockOp.DISCARD:
        return store.discard!(offset, length);
      case BlockOp.WRITE_ZEROES:
        return this.#durably(
          store.writeZeroes === undefined
            ? this.#zero(offset, length)
            : store.writeZeroes(offset, length),
        );
    }
  }

  /** The data of a request; of memory of its own, so that what an author does to the buffer is done to no other request. */
  #view(length: number): Uint8Array<ArrayBuffer> {
    let { buffer } = this.#data;
    // An author may have transferred it.
    if (buffer.byteLength !== SLOT_BYTES) {
      // SAFETY: it stays mapped until this Worker has ended, and every request has.
      buffer = viewMemory(this.#server.ring.dataHva(this.#index), SLOT_BYTES);
    } else if (this.#data.length === length) return this.#data;
    return this.#data = new Uint8Array(buffer, 0, length);
  }

  /** Follows a write with a flush, where that was asked for. */
  #durably(written: Promise<void> | void): Promise<void> | void {
    const { ring: { words }, store } = this.#server;
    if (
      words[this.#at + REQUEST.DURABLE] === 0 || store.flush === undefined
    ) return written;
    return Promise.resolve(written).then(() => store.flush!());
  }

  async #zero(offset: number, length: number): Promise<void> {
    const view = this.#view(Math.min(length, SLOT_BYTES)).fill(0);
    for (let done = 0; done < length; done += view.length) {
      const piece = view.subarray(0, length - done);
      await this.#server.store.write!(offset + done, piece);
    }
  }

  #fail(error: unknown): void {
    const { ring: { words }, report } = this.#server;
    const op = words[this.#at + REQUEST.OP]!;
    const errno = errnoOf(error);
    if (errno === null) report(error, ACTIONS[op]!);
    this.#server.answer(this.#index, -(errno ?? Errno.EIO));
  }
}
