/**
 * Event and timer descriptors.
 *
 * @module
 */

import { high32 } from "../../core/bits.ts";
import { check } from "../errors.ts";
import { Fd } from "../fd.ts";
import { NativeBuffer } from "../mapping.ts";
import { libc, Words } from "../symbols.ts";

// One page per thread: the constant 1 to write, and a place to read counters into.
const scratch = new NativeBuffer(4096);
const ONE = scratch.pointer();
const COUNTER = scratch.pointer(8);
const COUNTER_WORD = 2;
const TIMERSPEC = scratch.pointer(64);
const EIGHT = new Words(1);
EIGHT.set(0, 8);
const words = new Uint32Array(scratch.bytes.buffer);
words[0] = 1;

/**
 * Adds 1 to an eventfd's counter. Never blocks on a nonblocking eventfd; a counter that is full already
 * says what we would say.
 *
 * @returns 8, or −1 with errno
 */
export function signalEventFd(fd: number): number {
  return libc.write(fd, ONE, EIGHT.at[0]!);
}

/**
 * Reads and clears an eventfd or timerfd counter.
 *
 * @returns The counter (low 32 bits), 0 when it was not signalled
 */
export function drainEventFd(fd: number): number {
  return libc.read(fd, COUNTER, EIGHT.at[0]!) === 8 ? words[COUNTER_WORD]! : 0;
}

const NONBLOCK_CLOEXEC = 0o4000 | 0o2000000;

/**
 * A nonblocking eventfd(2).
 *
 * @throws {import("../errors.ts").SyscallError}
 */
export function createEventFd(initial = 0): Fd {
  return new Fd(check(libc.eventfd(initial, NONBLOCK_CLOEXEC), "eventfd"));
}

/**
 * A nonblocking timerfd on CLOCK_MONOTONIC.
 *
 * @throws {import("../errors.ts").SyscallError}
 */
export function createTimerFd(): Fd {
  const CLOCK_MONOTONIC = 1;
  return new Fd(
    check(
      libc.timerfd_create(CLOCK_MONOTONIC, NONBLOCK_CLOEXEC),
      "timerfd_create",
    ),
  );
}

/** Arms a timerfd once, `delayNs` nanoseconds from now (at least 1); 0 disarms it. */
export function armTimerFd(fd: number, delayNs: number): void {
  const seconds = Math.floor(delayNs / 1e9);
  // struct itimerspec { it_interval { sec, nsec }, it_value { sec, nsec } }, at 64 in the scratch page
  words.fill(0, 16, 24);
  words[20] = seconds >>> 0;
  words[21] = high32(seconds);
  words[22] = Math.floor(delayNs - seconds * 1e9);
  libc.timerfd_settime(fd, 0, TIMERSPEC, null);
}
