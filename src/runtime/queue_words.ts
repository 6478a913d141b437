/**
 * Memory that the control thread and the queue threads of a device see: eventfds of interrupts, interrupts that the control
 * thread is to send, register writes that a client has sent, and the device's own words.
 *
 * @module
 */

import { NativeBuffer, signalEventFd, viewMemory } from "../os/mod.ts";
import type { Interrupts } from "../pci/context.ts";
import { DIRECT_MODES, NO_DIRECT } from "../pci/interrupts.ts";
import { SOCKET_WRITES_WORDS } from "../pci/socket_writes.ts";
import { type Mailbox, nudge } from "./iothread/thread_calls.ts";

/** Place of the words in this process, and the number of each kind. Plain data. */
export interface QueueWordsPlace {
  readonly hva: number;
  readonly vectors: number;
  /** Words that are the device's own. */
  readonly words: number;
}

type Size = Omit<QueueWordsPlace, "hva">;

/** Views of the words: native memory, so that every thread reaches it by its address. Used through Atomics only. */
export class QueueWords {
  /** Word 0: a mode of {@linkcode DIRECT_MODES}; word v + 1: the eventfd of vector v, or {@linkcode NO_DIRECT}. */
  readonly direct: Int32Array<ArrayBuffer>;
  /** Word 0: INTA# is wanted; word v + 1: vector v is wanted. */
  readonly wanted: Int32Array<ArrayBuffer>;
  /** Word 0: a service has something to report. */
  readonly reported: Int32Array<ArrayBuffer>;
  /** Of {@linkcode SocketWrites}. */
  readonly posted: Int32Array<ArrayBuffer>;
  /** The device's own. */
  readonly own: Int32Array<ArrayBuffer>;

  constructor(buffer: ArrayBuffer, size: Size) {
    let at = 0;
    const take = (words: number) => {
      const view = new Int32Array(buffer, at, words);
      at += words * 4;
      return view;
    };
    this.direct = take(size.vectors + 1);
    this.wanted = take(size.vectors + 1);
    this.reported = take(1);
    this.posted = take(SOCKET_WRITES_WORDS);
    this.own = take(size.words);
  }
}

function lengthBytes({ vectors, words }: Size): number {
  return (2 * (vectors + 1) + 1 + SOCKET_WRITES_WORDS + words) * 4;
}

function take(words: Int32Array, word: number): boolean {
  return Atomics.load(words, word) !== 0 &&
    Atomics.exchange(words, word, 0) !== 0;
}

/** Reactions of the control thread to what queue threads want of it. */
export interface QueueWordsListener {
  raise(vector: number): void;
  onLine(): void;
  onReport(): void;
}

/** The words of the control thread, which owns their memory. */
export class OwnQueueWords implements Disposable {
  readonly view: QueueWords;
  readonly place: QueueWordsPlace;
  readonly #buffer: NativeBuffer;

  /** Words by which no interrupt goes out at once and nothing is wanted. */
  constructor({ vectors, words }: Size) {
    const size = { vectors, words };
    this.#buffer = new NativeBuffer(lengthBytes(size));
    this.place = { ...size, hva: this.#buffer.hva };
    this.view = new QueueWords(this.#buffer.bytes.buffer, size);
    this.view.direct.fill(NO_DIRECT, 1);
  }

  /** Does what queue threads want. */
  look(listener: QueueWordsListener): void {
    this.deliver(listener);
    if (take(this.view.reported, 0)) listener.onReport();
  }

  /** As {@linkcode OwnQueueWords.look}, but leaves reports where they are. */
  deliver(listener: Omit<QueueWordsListener, "onReport">): void {
    const { wanted } = this.view;
    for (let word = 0; word < wanted.length; word++) {
      if (!take(wanted, word)) continue;
      if (word === 0) listener.onLine();
      else listener.raise(word - 1);
    }
  }

  /** Drops what queue threads want. */
  forget(): void {
    const { wanted, reported } = this.view;
    for (let word = 0; word < wanted.length; word++) take(wanted, word);
    take(reported, 0);
  }

  /** Frees the memory; no queue thread may use it any more. */
  close(): void {
    this.#buffer.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/** Interrupts of a queue thread: by eventfd where the driver lets one through, else by the control thread. */
export class QueueInterrupts implements Interrupts {
  readonly words: QueueWords;
  readonly #control: Mailbox;

  /** @param control Where the control thread is reached, which keeps the words until this thread has closed its service */
  constructor(place: QueueWordsPlace, control: Mailbox) {
    this.words = new QueueWords(
      viewMemory(place.hva, lengthBytes(place)),
      place,
    );
    this.#control = control;
  }

  get mode(): Interrupts["mode"] {
    return DIRECT_MODES[Atomics.load(this.words.direct, 0)]!;
  }

  raise(vector: number): void {
    const { direct, wanted } = this.words;
    const word = vector + 1;
    if (word <= 0 || word >= direct.length) return;
    const fd = Atomics.load(direct, word);
    if (fd >= 0) signalEventFd(fd);
    else this.#want(wanted, word);
  }

  /** The line goes down at the control thread, where the driver says that it has seen it. */
  setLevel(asserted: boolean): void {
    if (asserted) this.#want(this.words.wanted, 0);
  }

  /** Has the control thread look at what is reported. */
  report(): void {
    this.#want(this.words.reported, 0);
  }

  #want(words: Int32Array, word: number): void {
    if (Atomics.exchange(words, word, 1) === 0) nudge(this.#control);
  }
}
