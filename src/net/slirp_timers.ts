/**
 * libslirp's timers and clock on the event loop.
 *
 * @module
 */

import type { Loop, Timer } from "../event_loop.ts";
import { NativeBuffer } from "../libc/mod.ts";
import { libc } from "../libc/symbols.ts";

/** {@linkcode SlirpTimers} on their way to another thread. */
export interface GivenTimers {
  readonly lastHandle: number;
  readonly timers: readonly {
    /** As libslirp knows it. */
    readonly handle: number;
    readonly id: number;
    /** Address of what libslirp wants back. */
    readonly opaque: number;
    /** When it fires, on the clock of all threads; null when it is not armed. */
    readonly expireMs: number | null;
  }[];
}

class SlirpTimer {
  readonly id: number;
  readonly opaque: Deno.PointerValue;
  readonly timer: Timer;
  expireMs: number | null = null;

  constructor(
    loop: Loop,
    id: number,
    opaque: Deno.PointerValue,
    onExpire: (id: number, opaque: Deno.PointerValue) => void,
  ) {
    this.id = id;
    this.opaque = opaque;
    this.timer = loop.timer(() => {
      this.expireMs = null;
      onExpire(id, opaque);
    });
  }
}

/** A look at two clocks is good when no more time goes by than this. */
const LOOK_MS = 0.1;
const LOOKS_MAX = 100;

/** How far the clock of all threads is ahead of this loop's, which begins with its thread. */
function clockOffsetMs(loop: Loop): number {
  const CLOCK_MONOTONIC = 1;
  // struct timespec { time_t tv_sec; long tv_nsec; }
  using timespec = new NativeBuffer(16);
  const pointer = timespec.pointer();
  const { view } = timespec;
  let offsetMs = 0;
  let least = Infinity;
  // The thread may be kept from its CPU between one clock and the other.
  for (let i = 0; i < LOOKS_MAX && least > LOOK_MS; i++) {
    const before = loop.now();
    libc.clock_gettime(CLOCK_MONOTONIC, pointer);
    const tookMs = loop.now() - before;
    if (tookMs >= least) continue;
    least = tookMs;
    offsetMs = Number(view.getBigInt64(0, true)) * 1000 +
      Number(view.getBigInt64(8, true)) / 1e6 - before - tookMs / 2;
  }
  return offsetMs;
}

/** Timers by handle; a handle is a small number other than 0. */
export class SlirpTimers {
  readonly #loop: Loop;
  readonly #offsetMs: number;
  readonly #onExpire: (id: number, opaque: Deno.PointerValue) => void;
  readonly #timers = new Map<number, SlirpTimer>();
  #lastHandle = 0;

  /** @param onExpire Called with what the timer was made with */
  constructor(
    loop: Loop,
    onExpire: (id: number, opaque: Deno.PointerValue) => void,
  ) {
    this.#loop = loop;
    this.#offsetMs = clockOffsetMs(loop);
    this.#onExpire = onExpire;
  }

  /**
   * Whole milliseconds. libslirp keeps the time in a variable of the process, so that all threads must have one
   * clock, and takes 0 for "never".
   */
  clockMs(): number {
    return Math.floor(this.#offsetMs + this.#loop.now());
  }

  /** Makes a timer. */
  create(id: number, opaque: Deno.PointerValue): number {
    const handle = ++this.#lastHandle;
    const timer = new SlirpTimer(this.#loop, id, opaque, this.#onExpire);
    this.#timers.set(handle, timer);
    return handle;
  }

  /** Arms a timer for a moment of the clock. */
  arm(handle: number, expireMs: number): void {
    const timer = this.#timers.get(handle);
    if (timer === undefined) return;
    timer.expireMs = expireMs;
    timer.timer.arm(expireMs - this.clockMs());
  }

  /** Frees a timer. */
  free(handle: number): void {
    this.#timers.get(handle)?.timer.close();
    this.#timers.delete(handle);
  }

  /** All timers, for a successor; they do not fire here any more. */
  handOver(): GivenTimers {
    const timers = [...this.#timers].map(([handle, timer]) => ({
      handle,
      id: timer.id,
      opaque: Number(Deno.UnsafePointer.value(timer.opaque)),
      expireMs: timer.expireMs,
    }));
    this.close();
    return { lastHandle: this.#lastHandle, timers };
  }

  /** Takes over what a predecessor gave; what became due meanwhile fires at once. */
  inherit(given: GivenTimers): void {
    this.#lastHandle = given.lastHandle;
    for (const { handle, id, opaque, expireMs } of given.timers) {
      // SAFETY: an address that libslirp gave and wants back; it is not looked at here.
      const pointer = Deno.UnsafePointer.create(BigInt(opaque));
      const timer = new SlirpTimer(this.#loop, id, pointer, this.#onExpire);
      this.#timers.set(handle, timer);
      if (expireMs !== null) this.arm(handle, expireMs);
    }
  }

  /** Frees all. */
  close(): void {
    for (const handle of [...this.#timers.keys()]) this.free(handle);
  }
}
