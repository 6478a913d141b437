/**
 * Time for data paths: where performance.now() costs a boxed number a call.
 *
 * @module
 */

import { NativeBuffer } from "./mapping.ts";
import { libc } from "./symbols.ts";

const CLOCK_MONOTONIC = 1;

// One page per thread: struct timespec { time_t tv_sec; long tv_nsec; }
const timespec = new NativeBuffer(16);
const POINTER = timespec.pointer();
const words = new Int32Array(timespec.bytes.buffer);
const SEC = 0;
const NSEC = 2;

/** Puts seconds on a clock that never goes back into a place of an array: a double that is returned may be boxed. */
export function storeMonotonicSeconds(into: Float64Array, at: number): void {
  libc.clock_gettime(CLOCK_MONOTONIC, POINTER);
  into[at] = (words[SEC + 1]! * 2 ** 32 + (words[SEC]! >>> 0)) +
    words[NSEC]! / 1e9;
}

/** Microseconds on a clock that never goes back, as 32 bits that wrap: `(later - earlier) | 0` is the time between. */
export function monotonicUs(): number {
  libc.clock_gettime(CLOCK_MONOTONIC, POINTER);
  return (Math.imul(words[SEC]!, 1_000_000) + (words[NSEC]! / 1000 | 0)) | 0;
}
