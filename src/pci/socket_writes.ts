/**
 * Register writes in the socket of a client.
 *
 * @module
 */

import { unreadBytes } from "../os/mod.ts";
import type { PostedWrites } from "./posted_writes.ts";

/** 32-bit words that threads share; bytes are counted modulo 2^32. */
const WORD = {
  /** The socket, −1 for none. */
  FD: 0,
  /** Odd while bytes are on their way from the socket to where they are counted. */
  TURN: 1,
  /** Bytes received. */
  RECEIVED: 2,
  /** Bytes of which nothing is left to be done: messages that were handled, and the beginning of one that is not whole. */
  SETTLED: 3,
} as const;

/** Number of words that {@linkcode SocketWrites} share. */
export const SOCKET_WRITES_WORDS = 4;

/** Writes that a client has sent, as any thread of the process sees them; the thread of its {@linkcode Connection} counts. */
export class SocketWrites implements PostedWrites {
  #words: Int32Array<ArrayBuffer>;

  /** @param words Those of another thread; its own without them */
  constructor(words?: Int32Array<ArrayBuffer>) {
    this.#words = words ?? unshared();
  }

  /** Counts in words that other threads see from here on; in its own without any. */
  share(words: Int32Array<ArrayBuffer> = unshared()): void {
    words.set(this.#words);
    this.#words = words;
  }

  mark(): number {
    const words = this.#words;
    for (;;) {
      const turn = Atomics.load(words, WORD.TURN);
      const fd = Atomics.load(words, WORD.FD);
      const received = Atomics.load(words, WORD.RECEIVED);
      const unread = fd < 0 ? 0 : unreadBytes(fd);
      if ((turn & 1) === 0 && Atomics.load(words, WORD.TURN) === turn) {
        return (received + unread) | 0;
      }
    }
  }

  reached(mark: number): boolean {
    return ((Atomics.load(this.#words, WORD.SETTLED) - mark) | 0) >= 0;
  }

  /** A client is there, of which some bytes have been received already. */
  begin(fd: number, receivedBytes: number): void {
    Atomics.add(this.#words, WORD.RECEIVED, receivedBytes);
    Atomics.store(this.#words, WORD.FD, fd);
  }

  /** Bytes are about to be received. */
  beginReceive(): void {
    Atomics.add(this.#words, WORD.TURN, 1);
  }

  /** Bytes were received. */
  endReceive(bytes: number): void {
    Atomics.add(this.#words, WORD.RECEIVED, bytes);
    Atomics.add(this.#words, WORD.TURN, 1);
  }

  /** Everything is done but what is in the last bytes received. */
  settle(unhandledBytes: number): void {
    const received = Atomics.load(this.#words, WORD.RECEIVED);
    Atomics.store(this.#words, WORD.SETTLED, received - unhandledBytes);
  }

  /** The client is gone, and nothing that it sent matters any more. */
  end(): void {
    Atomics.store(this.#words, WORD.FD, -1);
    this.settle(0);
  }
}

function unshared(): Int32Array<ArrayBuffer> {
  const words = new Int32Array(SOCKET_WRITES_WORDS);
  words[WORD.FD] = -1;
  return words;
}
