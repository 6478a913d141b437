/**
 * What the threads of a device whose queues are spread show each other without a call: eventfds of interrupts, and
 * what a thread wants of the home thread.
 *
 * @module
 */

import { NativeBuffer, signalEventFd, viewMemory } from "../os/mod.ts";
import type { Interrupts } from "../pci/device.ts";
import { DIRECT_MODES, NO_DIRECT } from "../pci/interrupts.ts";
import { SOCKET_WRITES_WORDS } from "../pci/socket_writes.ts";
import { nudge, type Seat } from "./iothread/thread_calls.ts";

/** Where a board is in this process, and what it has room for. Plain data. */
export interface BoardPlace {
  readonly hva: number;
  readonly vectors: number;
  readonly queues: number;
  /** Words that are the device's own. */
  readonly words: number;
}

/** Views of a board: native memory, so that every thread reaches it by its address. Used through Atomics only. */
export class BoardView {
  /** Word 0: a mode of {@linkcode DIRECT_MODES}; word v + 1: the eventfd of vector v, or {@linkcode NO_DIRECT}. */
  readonly direct: Int32Array<ArrayBuffer>;
  /** Word 0: INTA# is wanted; word v + 1: vector v is wanted. */
  readonly wanted: Int32Array<ArrayBuffer>;
  /** Word q: queue q was notified at a thread that does not serve it. */
  readonly kicked: Int32Array<ArrayBuffer>;
  /** Word 0: a thread gave up on the driver. */
  readonly failed: Int32Array<ArrayBuffer>;
  /** Of {@linkcode SocketWrites}. */
  readonly posted: Int32Array<ArrayBuffer>;
  /** What the twins of the device show each other. */
  readonly words: Int32Array<ArrayBuffer>;

  constructor(buffer: ArrayBuffer, place: Omit<BoardPlace, "hva">) {
    let at = 0;
    const take = (words: number) => {
      const view = new Int32Array(buffer, at, words);
      at += words * 4;
      return view;
    };
    this.direct = take(place.vectors + 1);
    this.wanted = take(place.vectors + 1);
    this.kicked = take(place.queues);
    this.failed = take(1);
    this.posted = take(SOCKET_WRITES_WORDS);
    this.words = take(place.words);
  }
}

function boardBytes({ vectors, queues, words }: Omit<BoardPlace, "hva">) {
  return (2 * (vectors + 1) + queues + 1 + SOCKET_WRITES_WORDS + words) * 4;
}

/** What the home thread does about what others put on the board. */
export interface BoardListener {
  raise(vector: number): void;
  raiseLine(): void;
  kick(queue: number): void;
  fail(): void;
}

/** The home thread's board, which owns the memory. */
export class Board implements Disposable {
  readonly view: BoardView;
  readonly place: BoardPlace;
  readonly #buffer: NativeBuffer;

  /** A board on which nothing is direct and nothing wanted, and the device's words are 0. */
  constructor(size: Omit<BoardPlace, "hva">) {
    this.#buffer = new NativeBuffer(boardBytes(size));
    this.place = { ...size, hva: this.#buffer.hva };
    this.view = new BoardView(this.#buffer.bytes.buffer, this.place);
    this.view.direct.fill(NO_DIRECT, 1);
  }

  /** Does what the other threads want. */
  look(listener: BoardListener): void {
    this.deliver(listener);
    if (take(this.view.failed, 0)) listener.fail();
  }

  /** As {@linkcode Board.look}, but leaves it there that a thread gave up on the driver. */
  deliver(listener: Omit<BoardListener, "fail">): void {
    const { wanted, kicked } = this.view;
    for (let word = 0; word < wanted.length; word++) {
      if (!take(wanted, word)) continue;
      if (word === 0) listener.raiseLine();
      else listener.raise(word - 1);
    }
    for (let queue = 0; queue < kicked.length; queue++) {
      if (take(kicked, queue)) listener.kick(queue);
    }
  }

  /** What the other threads want is void: the device was reset, on each of them. */
  forget(): void {
    const { wanted, kicked, failed } = this.view;
    for (const words of [wanted, kicked, failed]) {
      for (let word = 0; word < words.length; word++) take(words, word);
    }
  }

  /** Frees it; no other thread may use it any more. */
  close(): void {
    this.#buffer.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

function take(words: Int32Array, word: number): boolean {
  return Atomics.load(words, word) !== 0 &&
    Atomics.exchange(words, word, 0) !== 0;
}

/** The board as another thread than home sees it; also the interrupts of the twin there. */
export class RemoteBoard implements Interrupts {
  readonly #view: BoardView;
  readonly #home: Seat;

  /** @param home The seat of the home thread, which keeps the board until this thread is told to close */
  constructor(place: BoardPlace, home: Seat) {
    this.#view = new BoardView(
      viewMemory(place.hva, boardBytes(place)),
      place,
    );
    this.#home = home;
  }

  /** What the driver has enabled. */
  get mode(): Interrupts["mode"] {
    return DIRECT_MODES[Atomics.load(this.#view.direct, 0)]!;
  }

  /** See {@linkcode BoardView.words}. */
  get words(): Int32Array<ArrayBuffer> {
    return this.#view.words;
  }

  /** See {@linkcode BoardView.posted}. */
  get posted(): Int32Array<ArrayBuffer> {
    return this.#view.posted;
  }

  raise(vector: number): void {
    const { direct, wanted } = this.#view;
    const word = vector + 1;
    if (word <= 0 || word >= direct.length) return;
    const fd = Atomics.load(direct, word);
    if (fd >= 0) signalEventFd(fd);
    else this.#want(wanted, word);
  }

  setLevel(asserted: boolean): void {
    // The driver reads and clears the ISR status at home.
    if (asserted) this.#want(this.#view.wanted, 0);
  }

  /** Has the home thread look at a queue. */
  kick(queue: number): void {
    if (queue < this.#view.kicked.length) this.#want(this.#view.kicked, queue);
  }

  /** Tells the home thread that this one gave up on the driver. */
  fail(): void {
    this.#want(this.#view.failed, 0);
  }

  #want(words: Int32Array, word: number): void {
    if (Atomics.exchange(words, word, 1) === 0) nudge(this.#home);
  }
}
