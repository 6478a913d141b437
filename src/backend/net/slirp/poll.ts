/**
 * The descriptors and the timers that libslirp waits for, by poll(2): its process has nothing else to do.
 *
 * @module
 */

import { NativeBuffer, Poll } from "../../../os/mod.ts";
import { libc, Words } from "../../../os/symbols.ts";
import { SLIRP_POLL } from "./symbols.ts";

/** As many descriptors as the process may have: connections and flows of a guest, and what the runtime has open. */
export const DESCRIPTORS_MAX = 1024;

/** Lead of libslirp's clock over the system's: it takes 0 for "never". */
const OFFSET_MS = 1000;

// struct pollfd { int fd; short events; short revents; } as two 32-bit words
const POLLFD = { FD: 0, EVENTS: 1, WORDS: 2 } as const;

const INPUT = SLIRP_POLL.IN | SLIRP_POLL.PRI;
const TRANSFERS = INPUT | SLIRP_POLL.OUT;

/** SLIRP_POLL bits as those of poll(2), and the other way round: the two differ in which bit is OUT and which is PRI. */
export function swapPollBits(events: number): number {
  const { OUT, PRI } = SLIRP_POLL;
  return (events & ~(OUT | PRI)) |
    (events & OUT ? Poll.OUT : 0) | (events & Poll.OUT ? OUT : 0);
}

interface SlirpTimer {
  readonly id: number;
  readonly opaque: Deno.PointerValue;
  /** Time on the clock when it is due. */
  dueMs: number;
}

/**
 * Descriptors and timers of one thread's libslirp.
 *
 * ```text
 *   begin(card), add(…) … add(…), wait() → revents(…), takeDue()     a turn
 * ```
 */
export class SlirpPoll implements Disposable {
  /** Count of descriptors that there was no room for. */
  failures = 0;
  readonly #pollfds = new NativeBuffer(DESCRIPTORS_MAX * POLLFD.WORDS * 4);
  readonly #words = new Int32Array(this.#pollfds.bytes.buffer);
  /** Arguments of poll(2): the array, its length. */
  readonly #arguments = new Words(2);
  readonly #timers = new Map<number, SlirpTimer>();
  #lastHandle = 0;
  #count = 0;
  #mask = -1;

  constructor() {
    this.#arguments.set(0, this.#pollfds.hva);
  }

  /** Count of descriptors that are asked for. */
  get count(): number {
    return this.#count;
  }

  /**
   * Begins a turn: asks for the card's socket, which is at index 0.
   *
   * @param full True when that has to take something first, and no input of other descriptors is wanted
   */
  begin(card: number, full: boolean): void {
    this.#count = 0;
    this.#mask = -1;
    this.add(card, SLIRP_POLL.IN | (full ? SLIRP_POLL.OUT : 0));
    if (full) this.#mask = ~INPUT;
  }

  /**
   * Asks for a descriptor.
   *
   * @param events SLIRP_POLL bits
   * @returns Its index in this turn; −1 when there is no room for it
   */
  add(fd: number, events: number): number {
    if (this.#count === DESCRIPTORS_MAX) {
      this.failures++;
      return -1;
    }
    const wanted = events & this.#mask;
    const at = this.#count * POLLFD.WORDS;
    // A hang-up cannot be masked, and lasts: where nothing can be done about it, the kernel is not to look.
    this.#words[at + POLLFD.FD] = (wanted & TRANSFERS) === 0 ? -1 : fd;
    this.#words[at + POLLFD.EVENTS] = swapPollBits(wanted);
    return this.#count++;
  }

  /**
   * Waits until something is ready, a timer is due, or the time is up.
   *
   * @param timeoutMs Infinity for ever
   * @returns True when a descriptor is ready
   */
  wait(timeoutMs: number): boolean {
    let leftMs = timeoutMs;
    for (const { dueMs } of this.#timers.values()) {
      leftMs = Math.min(leftMs, Math.max(dueMs - this.clockMs(), 0));
    }
    const { at } = this.#arguments;
    this.#arguments.set(1, this.#count);
    // SAFETY: the array is ours until close(). A failure is a signal's, and leaves all as not ready.
    return libc.poll(
      at[0]!,
      at[1]!,
      leftMs === Infinity ? -1 : Math.ceil(leftMs),
    ) > 0;
  }

  /** SLIRP_POLL bits that are ready at an index of this turn. */
  revents(index: number): number {
    const word = this.#words[index * POLLFD.WORDS + POLLFD.EVENTS]!;
    return swapPollBits(word >>> 16);
  }

  /** Whole milliseconds. */
  clockMs(): number {
    return Math.floor(OFFSET_MS + performance.now());
  }

  /** Makes a timer. @returns Its handle, which is not 0 */
  createTimer(id: number, opaque: Deno.PointerValue): number {
    const handle = ++this.#lastHandle;
    this.#timers.set(handle, { id, opaque, dueMs: Infinity });
    return handle;
  }

  /** Arms a timer for a moment of the clock. */
  armTimer(handle: number, dueMs: number): void {
    const timer = this.#timers.get(handle);
    if (timer !== undefined) timer.dueMs = dueMs;
  }

  /** Frees a timer. */
  freeTimer(handle: number): void {
    this.#timers.delete(handle);
  }

  /** Disarms a timer that is due, and gives it; null when there is none. */
  takeDue(): Pick<SlirpTimer, "id" | "opaque"> | null {
    for (const timer of this.#timers.values()) {
      if (timer.dueMs > this.clockMs()) continue;
      timer.dueMs = Infinity;
      return timer;
    }
    return null;
  }

  /** Frees the memory. */
  close(): void {
    this.#pollfds.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}
