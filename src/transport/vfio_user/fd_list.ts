/**
 * The file descriptors that came with one message.
 *
 * @module
 */

import type { StateReader } from "../../core/state_reader.ts";
import { closeFd, type ResourceBag, SCM_MAX_FD } from "../../os/mod.ts";

/** Descriptors received that no command has used yet. */
export interface FdsState {
  /** Number of descriptors that came; those taken since are not in the bag. */
  readonly count: number;
  /** See {@linkcode FdList.truncated}. */
  readonly truncated: boolean;
}

/** @throws {import("../../core/errno.ts").ErrnoError} EINVAL when there are more than can come */
export function parseFds(reader: StateReader): FdsState {
  return {
    count: reader.integer("count", SCM_MAX_FD),
    truncated: reader.flag("truncated"),
  };
}

/** Descriptors of a message, each owned by the list until somebody takes it. */
export class FdList {
  readonly #fds = new Int32Array(SCM_MAX_FD);
  #count = 0;
  /** True if descriptors were lost on the way, because this process may open no more. */
  truncated = false;

  /** Number of descriptors that came; taken ones count. */
  get count(): number {
    return this.#count;
  }

  /**
   * Adds a descriptor, or closes it when the list is full.
   *
   * @returns Whether it was added
   */
  add(fd: number): boolean {
    if (this.#count === this.#fds.length) {
      closeFd(fd);
      return false;
    }
    this.#fds[this.#count++] = fd;
    return true;
  }

  /** The number of descriptor `i`, which stays the list's; −1 when it was taken or never came. */
  peek(i: number): number {
    return i < this.#count ? this.#fds[i]! : -1;
  }

  /** Takes descriptor `i`: the caller closes it. −1 when it was taken before or never came. */
  take(i: number): number {
    if (i >= this.#count) return -1;
    const fd = this.#fds[i]!;
    this.#fds[i] = -1;
    return fd;
  }

  /** Puts all of them into a bag. */
  save(bag: ResourceBag): FdsState {
    for (let i = 0; i < this.#count; i++) {
      if (this.#fds[i]! >= 0) bag.put(`${i}`, this.#fds[i]!);
    }
    return { count: this.#count, truncated: this.truncated };
  }

  /** Takes out of a bag what an empty list is to hold. */
  load({ count, truncated }: FdsState, bag: ResourceBag): void {
    for (let i = 0; i < count; i++) {
      this.#fds[i] = bag.has(`${i}`) ? bag.take(`${i}`).release() : -1;
      this.#count = i + 1;
    }
    this.truncated = truncated;
  }

  /** Closes what was not taken and empties the list. */
  closeAll(): void {
    if (this.#count === 0 && !this.truncated) return;
    for (let i = 0; i < this.#count; i++) {
      if (this.#fds[i]! >= 0) closeFd(this.#fds[i]!);
    }
    this.#count = 0;
    this.truncated = false;
  }
}
