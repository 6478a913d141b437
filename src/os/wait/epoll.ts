/**
 * epoll(7).
 *
 * @module
 */

import { Errno } from "../../core/errno.ts";
import { check, SyscallError } from "../errors.ts";
import { Fd } from "../fd.ts";
import { NativeBuffer } from "../mapping.ts";
import { lastErrno, libc } from "../symbols.ts";

/** Event bits of epoll. */
export const Epoll = {
  IN: 0x001,
  PRI: 0x002,
  OUT: 0x004,
  ERR: 0x008,
  HUP: 0x010,
  RDHUP: 0x2000,
  ONESHOT: 0x4000_0000,
} as const;

const EPOLL_CTL_ADD = 1;
const EPOLL_CTL_DEL = 2;
const EPOLL_CTL_MOD = 3;
const MAX_EVENTS = 64;

// struct epoll_event { uint32_t events; epoll_data_t data; } is packed on x86_64 only.
const EVENT = Deno.build.arch === "x86_64"
  ? { EVENTS: 0, DATA: 4, SIZE: 12 } as const
  : { EVENTS: 0, DATA: 8, SIZE: 16 } as const;

/** An epoll instance; each descriptor in it carries a 32-bit serial beside its number. */
export class EpollSet implements Disposable {
  readonly #fd: Fd;
  readonly #events = new NativeBuffer(MAX_EVENTS * EVENT.SIZE + EVENT.SIZE);
  readonly #view = this.#events.view;
  readonly #eventsPointer = this.#events.pointer();
  readonly #ctlOffset = MAX_EVENTS * EVENT.SIZE;
  readonly #ctlPointer = this.#events.pointer(this.#ctlOffset);

  /** @throws {SyscallError} */
  constructor() {
    const EPOLL_CLOEXEC = 0o2000000;
    this.#fd = new Fd(
      check(libc.epoll_create1(EPOLL_CLOEXEC), "epoll_create1"),
    );
  }

  #ctl(op: number, fd: number, events: number, serial: number): number {
    const at = this.#ctlOffset;
    this.#view.setUint32(at + EVENT.EVENTS, events, true);
    this.#view.setUint32(at + EVENT.DATA, fd, true);
    this.#view.setUint32(at + EVENT.DATA + 4, serial, true);
    return libc.epoll_ctl(this.#fd.number, op, fd, this.#ctlPointer);
  }

  /** @throws {SyscallError} EPERM for a file that cannot be polled, EEXIST */
  add(fd: number, events: number, serial: number): void {
    check(
      this.#ctl(EPOLL_CTL_ADD, fd, events, serial),
      "epoll_ctl",
      `Cannot watch fd ${fd}`,
    );
  }

  /** @throws {SyscallError} */
  modify(fd: number, events: number, serial: number): void {
    check(
      this.#ctl(EPOLL_CTL_MOD, fd, events, serial),
      "epoll_ctl",
      `Cannot watch fd ${fd}`,
    );
  }

  /** Removes a descriptor; one that is closed already is gone by itself. */
  remove(fd: number): void {
    this.#ctl(EPOLL_CTL_DEL, fd, 0, 0);
  }

  /**
   * Waits for events.
   *
   * @param timeoutMs −1 waits for ever, 0 only looks
   * @returns Number of events, to be read with the accessors below; 0 after a signal
   */
  wait(timeoutMs: number): number {
    const n = libc.epoll_wait(
      this.#fd.number,
      this.#eventsPointer,
      MAX_EVENTS,
      timeoutMs,
    );
    if (n >= 0) return n;
    const errno = lastErrno();
    if (errno === Errno.EINTR) return 0;
    throw new SyscallError("epoll_wait", errno);
  }

  /** The descriptor of event `i`. */
  fd(i: number): number {
    return this.#view.getUint32(i * EVENT.SIZE + EVENT.DATA, true);
  }

  /** The serial of event `i`. */
  serial(i: number): number {
    return this.#view.getUint32(i * EVENT.SIZE + EVENT.DATA + 4, true);
  }

  /** The event bits of event `i`. */
  events(i: number): number {
    return this.#view.getUint32(i * EVENT.SIZE + EVENT.EVENTS, true);
  }

  /** Closes the instance. */
  close(): void {
    this.#fd.close();
    this.#events.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}
