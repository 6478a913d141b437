/**
 * Calls from one IOThread to another that are answered before they return.
 *
 * A thread in its event loop hears no `onmessage`, and a thread that waits for an answer must not keep others waiting
 * for it in turn: two threads may call each other at the same moment. So a call is a message in native memory and a
 * number in shared memory; who waits goes on answering calls to itself.
 *
 * @module
 */

import type { FdWatch, Loop } from "../../loop/event_loop.ts";
import { alignUp, PAGE_SIZE } from "../../core/bits.ts";
import { Mapping, signalEventFd, viewMemory } from "../../os/mod.ts";
import { decodePlainData, encodePlainData } from "../../core/plain_data.ts";

/** Address of a thread; the same for all who call it. Travels by postMessage. */
export interface Mailbox {
  /** One 32-bit word, changed and notified whenever there is something for the thread to look at. */
  readonly word: SharedArrayBuffer;
  /** An eventfd that the thread's loop watches; open as long as any of the threads. */
  readonly eventFd: number;
}

/** One direction of talk between two threads. Travels by postMessage. */
export type CallLine = SharedArrayBuffer;

/** 32-bit words of a {@linkcode CallLine}. */
const LINE = {
  /** Number of the last call. */
  CALLED: 0,
  /** Number of the last call that was answered. */
  ANSWERED: 1,
  /** {@linkcode OPEN}, or why nobody answers any more. */
  CLOSED: 2,
  /** True if the answer is the message of an error. */
  FAILED: 3,
  /** Address and length of the bytes of the call. */
  CALL_HVA_LOW: 4,
  CALL_HVA_HIGH: 5,
  CALL_LENGTH: 6,
  /** Address and length of the bytes of the answer. */
  ANSWER_HVA_LOW: 7,
  ANSWER_HVA_HIGH: 8,
  ANSWER_LENGTH: 9,
  /** Number of bytes of memory the answer has there; 0 before the first, {@linkcode FREED} once it was freed. */
  ANSWER_ROOM: 10,
  SIZE: 11,
} as const;

const ANSWER_TIMEOUT_MS = 10_000;
const WORD = 0;
/** True if calls are answered; after a call was given up it stays so, since what was done about it is not known. */
const OPEN = 0;
const ENDED = 1;
const GIVEN_UP = 2;
/** The longest reason for a failure that is told, in UTF-16 units: less than half a page. */
const REASON_MAX = 1000;
/** In place of the room of an answer: its memory is no more. */
const FREED = -1;

/** Makes the shared memory of a {@linkcode CallLine}. */
export function createCallLine(): CallLine {
  return new SharedArrayBuffer(LINE.SIZE * 4);
}

/** Makes the shared memory of a {@linkcode Mailbox}. */
export function createMailbox(eventFd: number): Mailbox {
  return { word: new SharedArrayBuffer(4), eventFd };
}

/**
 * Ends a line whose answering thread is gone. Any thread may.
 *
 * @param from The mailbox of the thread that calls
 */
export function hangUp(line: CallLine, from: Mailbox): void {
  Atomics.store(new Int32Array(line), LINE.CLOSED, ENDED);
  nudge(from);
}

/** Makes the thread of a mailbox look at what there is for it. Any thread may. */
export function nudge(mailbox: Mailbox): void {
  endWait(mailbox);
  signalEventFd(mailbox.eventFd);
}

/** Makes the thread of a mailbox look again if it waits for an answer. */
function endWait(mailbox: Mailbox): void {
  const word = new Int32Array(mailbox.word);
  Atomics.add(word, WORD, 1);
  Atomics.notify(word, WORD);
}

/** One message in native memory, which other threads can read. */
class MessageBuffer implements Disposable {
  #memory = new Mapping({ lengthBytes: PAGE_SIZE });

  /** Bytes that it has room for. */
  get room(): number {
    return this.#memory.lengthBytes;
  }

  /** Writes a message; words from `at` on say where it is. */
  write(message: unknown, words: Int32Array, at: number): void {
    const bytes = encodePlainData(message);
    if (bytes.length > this.room) {
      const lengthBytes = alignUp(bytes.length * 2, PAGE_SIZE);
      const memory = new Mapping({ lengthBytes });
      this.#memory.close();
      this.#memory = memory;
    }
    new Uint8Array(this.#memory.buffer).set(bytes);
    const { hva } = this.#memory;
    words[at] = hva | 0;
    words[at + 1] = Math.floor(hva / 2 ** 32);
    words[at + 2] = bytes.length;
  }

  /** Leaves the memory to whoever knows where it is. */
  abandon(): void {
    this.#memory.release();
  }

  [Symbol.dispose](): void {
    this.#memory.close();
  }
}

function hvaOf(words: Int32Array, at: number): number {
  return words[at + 1]! * 2 ** 32 + (words[at]! >>> 0);
}

function isAnswered(words: Int32Array): boolean {
  return Atomics.load(words, LINE.ANSWERED) ===
    Atomics.load(words, LINE.CALLED);
}

/** Frees the answers of a line that has ended. */
function freeAnswer(words: Int32Array): void {
  const lengthBytes = words[LINE.ANSWER_ROOM]!;
  if (lengthBytes <= 0) return;
  new Mapping({ hva: hvaOf(words, LINE.ANSWER_HVA_LOW), lengthBytes }).close();
  words[LINE.ANSWER_ROOM] = FREED;
}

function readMessage(words: Int32Array, at: number): unknown {
  const hva = hvaOf(words, at);
  // SAFETY: the message is its writer's and stays as it is until this call is answered, or the answer taken.
  return decodePlainData(new Uint8Array(viewMemory(hva, words[at + 2]!)));
}

/** The calling end of a line. */
export interface Caller extends Disposable {
  /**
   * Makes the other thread handle a message and waits until it has.
   *
   * @param message Plain data
   * @returns What the handler returned, plain data
   * @throws {Error} What the handler threw; or that the thread is gone or does not answer
   */
  call(message: unknown): unknown;
  /** True if a call was given up: the other thread may be in the midst of it, now or later; no other one is made. */
  readonly lost: boolean;
  /** True if the other thread has ended, or at least its end of the line: it is in the midst of nothing. */
  readonly ended: boolean;
  /** Says that no more calls will come. */
  close(): void;
}

interface Served {
  readonly words: Int32Array;
  readonly from: Mailbox;
  readonly handler: (message: unknown) => unknown;
  readonly answer: MessageBuffer;
  /** True if a call is being handled: while that waits for others, it must not be begun again. */
  busy: boolean;
}

/** The calls of one IOThread, both ways. */
export class ThreadCalls implements Disposable {
  readonly #mailbox: Mailbox;
  readonly #word: Int32Array;
  readonly #watch: FdWatch;
  readonly #served: Served[] = [];
  readonly #listeners: (() => void)[] = [];

  /** @param mailbox The thread's own */
  constructor(loop: Loop, mailbox: Mailbox) {
    this.#mailbox = mailbox;
    this.#word = new Int32Array(mailbox.word);
    this.#watch = loop.watchEventFd(mailbox.eventFd, () => this.#look());
  }

  /** Address of this thread. */
  get mailbox(): Mailbox {
    return this.#mailbox;
  }

  /**
   * Answers the calls of a line from here on.
   *
   * @param from The mailbox of the thread that calls
   * @param handler May call other threads; what it throws is thrown at the caller
   * @returns Ends that; later calls fail
   */
  answer(
    line: CallLine,
    from: Mailbox,
    handler: (message: unknown) => unknown,
  ): () => void {
    const words = new Int32Array(line);
    const answer = new MessageBuffer();
    const served = { words, from, handler, answer, busy: false };
    this.#served.push(served);
    return () => {
      const at = this.#served.indexOf(served);
      if (at < 0) return;
      this.#served.splice(at, 1);
      end(served);
    };
  }

  /**
   * Opens the calling end of a line.
   *
   * @param to The mailbox of the thread that answers
   * @param timeoutMs How long an answer may take: another thread may be loading a module
   */
  caller(
    line: CallLine,
    to: Mailbox,
    timeoutMs: number = ANSWER_TIMEOUT_MS,
  ): Caller {
    const words = new Int32Array(line);
    const buffer = new MessageBuffer();
    const close = () => {
      Atomics.compareExchange(words, LINE.CLOSED, OPEN, ENDED);
      // Whoever is late with an answer may use the memory at this moment: then it is better lost.
      if (isAnswered(words)) {
        buffer[Symbol.dispose]();
        freeAnswer(words);
      }
    };
    return {
      call: (message) => {
        if (Atomics.load(words, LINE.CLOSED) !== OPEN) throw gone();
        buffer.write(message, words, LINE.CALL_HVA_LOW);
        Atomics.add(words, LINE.CALLED, 1);
        nudge(to);
        return this.#waitForAnswer(words, timeoutMs);
      },
      get lost() {
        return Atomics.load(words, LINE.CLOSED) === GIVEN_UP;
      },
      get ended() {
        return Atomics.load(words, LINE.CLOSED) === ENDED;
      },
      close,
      [Symbol.dispose]: close,
    };
  }

  /** Calls `listener` after this thread was nudged. @returns Ends that */
  onNudge(listener: () => void): () => void {
    this.#listeners.push(listener);
    return () => {
      const at = this.#listeners.indexOf(listener);
      if (at >= 0) this.#listeners.splice(at, 1);
    };
  }

  /** Fails the calls that others make from here on. */
  close(): void {
    this.#watch.close();
    for (const served of this.#served.splice(0)) end(served);
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #look(): void {
    this.#answerAll();
    for (let i = 0; i < this.#listeners.length; i++) this.#listeners[i]!();
  }

  #answerAll(): void {
    for (let i = 0; i < this.#served.length; i++) {
      const served = this.#served[i]!;
      const called = Atomics.load(served.words, LINE.CALLED);
      if (
        served.busy ||
        called === Atomics.load(served.words, LINE.ANSWERED) ||
        Atomics.load(served.words, LINE.CLOSED) !== OPEN
      ) continue;
      served.busy = true;
      answerOne(served, called);
      served.busy = false;
    }
  }

  #waitForAnswer(words: Int32Array, timeoutMs: number): unknown {
    const deadline = performance.now() + timeoutMs;
    for (;;) {
      const seen = Atomics.load(this.#word, WORD);
      if (isAnswered(words)) break;
      if (Atomics.load(words, LINE.CLOSED) !== OPEN) throw gone();
      // Whom we wait for may wait for us.
      this.#answerAll();
      const left = deadline - performance.now();
      if (left <= 0) {
        // Another call would change the message under the hands of a thread that is only late.
        Atomics.store(words, LINE.CLOSED, GIVEN_UP);
        throw new Error(
          `Cannot go on: another IOThread has not answered for ${timeoutMs} ms`,
        );
      }
      Atomics.wait(this.#word, WORD, seen, left);
    }
    const answer = readMessage(words, LINE.ANSWER_HVA_LOW);
    if (words[LINE.FAILED] !== 0) throw new Error(answer as string);
    return answer;
  }
}

/** The last answer may not have been read yet: its memory is the caller's to free, and may be freed already. */
function end({ words, from, answer }: Served): void {
  if (words[LINE.ANSWER_ROOM] === 0) answer[Symbol.dispose]();
  else answer.abandon();
  hangUp(words.buffer as CallLine, from);
}

function answerOne(served: Served, called: number): void {
  const { words, from, handler, answer } = served;
  // The handler may end the line: then nobody takes an answer.
  const isOver = () => Atomics.load(words, LINE.CLOSED) !== OPEN;
  let failed = 0;
  try {
    const value = handler(readMessage(words, LINE.CALL_HVA_LOW)) ?? null;
    if (isOver()) return;
    answer.write(value, words, LINE.ANSWER_HVA_LOW);
  } catch (error) {
    if (isOver()) return;
    failed = 1;
    const reason = error instanceof Error ? error.message : String(error);
    // So short that there is room: whoever calls waits for an answer, whatever has become of memory.
    answer.write(reason.slice(0, REASON_MAX), words, LINE.ANSWER_HVA_LOW);
  }
  words[LINE.ANSWER_ROOM] = answer.room;
  words[LINE.FAILED] = failed;
  Atomics.store(words, LINE.ANSWERED, called);
  endWait(from);
}

function gone(): Error {
  return new Error("Cannot go on: another IOThread has stopped");
}
