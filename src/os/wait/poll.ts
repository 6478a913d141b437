/**
 * poll(2), for code that waits instead of living on an event loop.
 *
 * @module
 */

import { Errno } from "../../core/errno.ts";
import { SyscallError } from "../errors.ts";
import { NativeBuffer } from "../mapping.ts";
import { lastErrno, libc, Words } from "../symbols.ts";

/** Event bits of poll. */
export const Poll = { IN: 0x01, OUT: 0x04, ERR: 0x08, HUP: 0x10 } as const;

// struct pollfd { int fd; short events; short revents; }
const POLLFD = { FD: 0, EVENTS: 4, REVENTS: 6, SIZE: 8 } as const;

// One page per thread.
const pollfd = new NativeBuffer(POLLFD.SIZE);
const ARGUMENTS = new Words(2);
ARGUMENTS.set(0, pollfd.hva);
ARGUMENTS.set(1, 1);

/**
 * Blocks this thread until the descriptor is ready.
 *
 * @param events Bits of {@linkcode Poll}
 * @param timeoutMs The longest to wait, rounded up to whole milliseconds; −1 for ever, 0 only looks
 * @returns The bits that are ready, 0 when the time is up
 * @throws {SyscallError}
 */
export function pollFd(fd: number, events: number, timeoutMs: number): number {
  const view = pollfd.view;
  view.setInt32(POLLFD.FD, fd, true);
  view.setInt16(POLLFD.EVENTS, events, true);
  view.setInt16(POLLFD.REVENTS, 0, true);
  for (;;) {
    const { at } = ARGUMENTS;
    const n = libc.poll(at[0]!, at[1]!, Math.ceil(timeoutMs));
    if (n === 0) return 0;
    if (n > 0) return view.getInt16(POLLFD.REVENTS, true);
    const errno = lastErrno();
    // A signal starts the wait again: the callers' timeouts guard against hanging, they measure nothing.
    if (errno !== Errno.EINTR) throw new SyscallError("poll", errno);
  }
}

/** Descriptors that are waited for on a thread of the runtime's; they stay open until that is over. */
export class PollSet implements Disposable {
  readonly #count: number;
  readonly #buffer: NativeBuffer;
  readonly #pointer: Deno.PointerObject;

  /** @param events Bits of {@linkcode Poll} */
  constructor(fds: readonly number[], events: number) {
    this.#count = fds.length;
    this.#buffer = new NativeBuffer(fds.length * POLLFD.SIZE);
    this.#pointer = this.#buffer.pointer();
    fds.forEach((fd, i) => {
      const { view } = this.#buffer;
      view.setInt32(i * POLLFD.SIZE + POLLFD.FD, fd, true);
      view.setInt16(i * POLLFD.SIZE + POLLFD.EVENTS, events, true);
    });
  }

  /** Waits until one of them is ready, however long. */
  async ready(): Promise<void> {
    // Its errno is another thread's; with these arguments it can only have been interrupted.
    while (await libc.poll_apart(this.#pointer, this.#count, -1) <= 0);
  }

  /** Frees its memory; nobody waits any more. */
  [Symbol.dispose](): void {
    this.#buffer.close();
  }
}

/**
 * Waits on a thread of the runtime's until one of the descriptors is ready, however long; they stay open meanwhile.
 *
 * @param events Bits of {@linkcode Poll}
 */
export async function pollApart(
  fds: readonly number[],
  events: number,
): Promise<void> {
  using set = new PollSet(fds, events);
  await set.ready();
}
