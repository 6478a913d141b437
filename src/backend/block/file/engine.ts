/**
 * Carrying out the steps of {@linkcode FileSlot}: by io_uring, or at once.
 *
 * @module
 */

import { ErrnoError } from "../../../core/errno.ts";
import {
  blockDeviceDiscard,
  fallocate,
  fdatasync,
  IORING_FSYNC_DATASYNC,
  IoUring,
  IoUringOp,
  preadv2,
  pwritev2,
  Rwf,
  Sqe,
  SQE_FIXED_FILE,
} from "../../../os/mod.ts";
import type { Log } from "../../../core/log.ts";
import { type FileSlot, Place, Step } from "./steps.ts";

const OPS_NEEDED = [
  IoUringOp.READ,
  IoUringOp.WRITE,
  IoUringOp.READV,
  IoUringOp.WRITEV,
  IoUringOp.FSYNC,
  IoUringOp.FALLOCATE,
];

// _IO(0x12, 0)
const BLOCK_URING_CMD_DISCARD = 0x1200;

/**
 * A ring that knows all we need, or null where it cannot be had, which is logged.
 *
 * @param description Of the storage, for the log
 */
export function openRing(
  depth: number,
  description: string,
  log: Log,
): IoUring | null {
  const complain = (why: string) =>
    log.warn(
      `${description} is served without io_uring, reads and writes that wait for the disk hold up its device: ${why}`,
    );
  let ring: IoUring;
  try {
    ring = new IoUring(depth);
  } catch (error) {
    if (!(error instanceof ErrnoError)) throw error;
    complain(
      `the kernel says ${error.code}, allow it by kernel.io_uring_disabled=0 and in the container's seccomp profile`,
    );
    return null;
  }
  if (ring.supports(OPS_NEEDED)) return ring;
  ring.close();
  complain("the kernel is older than Linux 5.6");
  return null;
}

/** Steps as submissions to a ring. */
export class RingEngine {
  readonly ring: IoUring;
  readonly #file: number;
  readonly #flags: number;

  constructor(ring: IoUring, fd: number) {
    this.ring = ring;
    const registered = ring.registerFiles([fd]);
    this.#file = registered ? 0 : fd;
    this.#flags = registered ? SQE_FIXED_FILE : 0;
  }

  /** Prepares the slot's step; its completion has the slot's index as user data. */
  issue(slot: FileSlot): void {
    const { ring } = this;
    const at = ring.sqe();
    const { sqes } = ring;
    const place = slot.place.halves;
    sqes[at + Sqe.FD] = this.#file;
    sqes[at + Sqe.OFF_LOW] = place[0]!;
    sqes[at + Sqe.OFF_HIGH] = place[1]!;
    sqes[at + Sqe.USER_DATA] = slot.index;
    switch (slot.step) {
      case Step.TRANSFER:
      case Step.WRITE_ZEROES:
        this.#putTransfer(sqes, at, slot);
        break;
      case Step.BOUNCE:
        this.#putSegment(sqes, at, slot, slot.bounce);
        break;
      case Step.FALLOCATE:
        sqes[at] = IoUringOp.FALLOCATE | this.#flags;
        sqes[at + Sqe.ADDR_LOW] = place[2]!;
        sqes[at + Sqe.ADDR_HIGH] = place[3]!;
        sqes[at + Sqe.LEN] = slot.mode;
        break;
      case Step.DISCARD_COMMAND:
        sqes[at] = IoUringOp.URING_CMD | this.#flags;
        sqes[at + Sqe.OFF_LOW] = BLOCK_URING_CMD_DISCARD;
        sqes[at + Sqe.OFF_HIGH] = 0;
        sqes[at + Sqe.ADDR_LOW] = place[0]!;
        sqes[at + Sqe.ADDR_HIGH] = place[1]!;
        sqes[at + Sqe.ADDR3_LOW] = place[2]!;
        sqes[at + Sqe.ADDR3_HIGH] = place[3]!;
        break;
      case Step.SYNC:
        sqes[at] = IoUringOp.FSYNC | this.#flags;
        sqes[at + Sqe.OFF_LOW] = sqes[at + Sqe.OFF_HIGH] = 0;
        sqes[at + Sqe.OP_FLAGS] = IORING_FSYNC_DATASYNC;
        break;
      case Step.DISCARD_IOCTL:
        throw new Error("Cannot issue an ioctl: a ring has none");
      default:
        slot.step satisfies never;
    }
  }

  #putTransfer(sqes: Uint32Array, at: number, slot: FileSlot): void {
    if (slot.list.count === 1) {
      this.#putSegment(sqes, at, slot, slot.list.words);
      return;
    }
    const op = slot.writes ? IoUringOp.WRITEV : IoUringOp.READV;
    sqes[at] = op | this.#flags;
    sqes[at + Sqe.ADDR_LOW] = slot.place.halves[2 * Place.LIST]!;
    sqes[at + Sqe.ADDR_HIGH] = slot.place.halves[2 * Place.LIST + 1]!;
    sqes[at + Sqe.LEN] = slot.list.count;
    sqes[at + Sqe.OP_FLAGS] = slot.writes && slot.durable ? Rwf.DSYNC : 0;
  }

  #putSegment(
    sqes: Uint32Array,
    at: number,
    slot: FileSlot,
    iovec: Uint32Array,
  ): void {
    const op = slot.writes ? IoUringOp.WRITE : IoUringOp.READ;
    sqes[at] = op | this.#flags;
    sqes[at + Sqe.ADDR_LOW] = iovec[0]!;
    sqes[at + Sqe.ADDR_HIGH] = iovec[1]!;
    sqes[at + Sqe.LEN] = iovec[2]!;
    sqes[at + Sqe.OP_FLAGS] = slot.writes && slot.durable ? Rwf.DSYNC : 0;
  }
}

/** Steps as system calls that wait. */
export class SyncEngine {
  readonly #fd: number;

  constructor(fd: number) {
    this.#fd = fd;
  }

  /**
   * Does the slot's step.
   *
   * @returns As the system call, or −errno
   */
  execute(slot: FileSlot): number {
    const fd = this.#fd;
    switch (slot.step) {
      case Step.TRANSFER:
      case Step.WRITE_ZEROES:
        return this.#transfer(slot, Place.LIST, slot.list.count);
      case Step.BOUNCE:
        return this.#transfer(slot, Place.BOUNCE, 1);
      case Step.FALLOCATE:
        return fallocate(fd, slot.mode, slot.place);
      case Step.DISCARD_COMMAND:
      case Step.DISCARD_IOCTL:
        return blockDeviceDiscard(fd, slot.place);
      case Step.SYNC:
        return fdatasync(fd);
      default:
        return slot.step satisfies never;
    }
  }

  #transfer(slot: FileSlot, iovec: number, count: number): number {
    const { place } = slot;
    return slot.writes
      ? pwritev2(this.#fd, place, iovec, count, slot.durable ? Rwf.DSYNC : 0)
      : preadv2(this.#fd, place, iovec, count, 0);
  }
}
