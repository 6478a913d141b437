/**
 * A request on a file as a sequence of steps, each of them one system call or one submission.
 *
 * @module
 */

import { high32, u64 } from "../../../core/bits.ts";
import { Errno } from "../../../core/errno.ts";
import { FallocateMode, type NativeBuffer } from "../../../os/mod.ts";
import { Words } from "../../../os/symbols.ts";
import { ScatterGather } from "../../../memory/scatter_gather.ts";
import { BlockOp, type BlockRequest } from "../contract.ts";
import { SegmentCopy } from "../../../memory/segments.ts";

/** Kinds of steps. */
export const Step = {
  /** Transfers between {@linkcode FileSlot.list} and the file. */
  TRANSFER: 0,
  /** Transfers between the slot's aligned buffer and the file. */
  BOUNCE: 1,
  /** Writes zeroes from {@linkcode FileSlot.list}. */
  WRITE_ZEROES: 2,
  /** fallocate(2) in {@linkcode FileSlot.mode}. */
  FALLOCATE: 3,
  /** Discards on a block device by io_uring. */
  DISCARD_COMMAND: 4,
  /** Discards on a block device by ioctl(2). */
  DISCARD_IOCTL: 5,
  /** fdatasync(2). */
  SYNC: 6,
} as const;

/** A step of {@linkcode Step}. */
export type Step = typeof Step[keyof typeof Step];

/** {@linkcode FileSlot.advance}'s answer while steps are left. */
export const AGAIN = 1;

/** Size of a slot's aligned buffer in bytes. */
export const BOUNCE_BYTES = 64 * 1024;
/** Size of the shared area of zeroes in bytes. */
export const ZEROES_BYTES = 64 * 1024;
const ZEROES_SEGMENTS = 16;
/** IOV_MAX. */
const SEGMENTS = 1024;
/** Words of the iovecs of the longest request. */
export const LIST_WORDS = SEGMENTS * 4;
/** Bytes that a slot needs for iovecs: those of the list, and that of the aligned buffer. */
export const SLOT_LIST_BYTES = LIST_WORDS * 4 + 64;
/** Number of times a step that was interrupted is tried again; a kernel that says so for ever must not spin the loop. */
const RETRIES_MAX = 1000;

/** Words of {@linkcode FileSlot.place}. */
export const Place = {
  /** First byte in the file. */
  OFFSET: 0,
  /** Bytes that are left. */
  LENGTH: 1,
  /** Address of the list's iovecs. */
  LIST: 2,
  /** Address of the aligned buffer's iovec. */
  BOUNCE: 3,
} as const;

/** Properties of a file, learnt as it goes. */
export interface FileTraits {
  readonly isDevice: boolean;
  /** Of memory, for O_DIRECT. */
  readonly memoryAlign: number;
  /** Of lengths, for O_DIRECT. */
  readonly lengthAlign: number;
  /** True if space may be given back. */
  readonly discard: boolean;
  /** True if holes can be punched. */
  punchHole: boolean;
  /** True if ranges can be zeroed in place. */
  zeroRange: boolean;
  /** True if io_uring can discard on the device (Linux 6.12). */
  discardCommand: boolean;
  /** Address of {@linkcode ZEROES_BYTES} zeroes. */
  readonly zeroes: number;
}

/** Memory of a slot. */
export interface SlotMemory {
  /** Buffer with the slot's iovecs. */
  readonly lists: NativeBuffer;
  /** Offset in it; {@linkcode SLOT_LIST_BYTES} are the slot's. */
  readonly listOffset: number;
  /** Address of {@linkcode BOUNCE_BYTES} aligned bytes; 0 where nothing bounces. */
  readonly bounceHva: number;
}

const copy = new SegmentCopy();

/**
 * One request in flight.
 *
 * ```text
 *   free --begin--> step --advance--> step … --advance--> result (free)
 * ```
 * What a step is to do stands in the fields: `step`, `mode`, `durable`, the range and the list.
 */
export class FileSlot {
  readonly index: number;
  /** Segments of the step. */
  readonly list: ScatterGather;
  /** The iovec of the aligned buffer, four words. */
  readonly bounce: Uint32Array<ArrayBuffer>;
  /** Offset and length of what is left, and addresses: see {@linkcode Place}. */
  readonly place = new Words(4);
  request: BlockRequest | null = null;
  step: Step = Step.SYNC;
  /** True if the step writes. */
  writes = false;
  /** Of {@linkcode Step.FALLOCATE}. */
  mode = 0;
  /** True if writes are to be durable. */
  durable = false;
  readonly #traits: FileTraits;
  // Offset and bytes left: in a typed array, where no number is ever boxed.
  readonly #at = new Float64Array(2);
  #retries = 0;

  constructor(index: number, traits: FileTraits, memory: SlotMemory) {
    this.index = index;
    this.#traits = traits;
    const { lists, listOffset } = memory;
    const { buffer } = lists.bytes;
    this.list = new ScatterGather(
      new Uint32Array(buffer, listOffset, LIST_WORDS),
    );
    this.place.set(Place.LIST, lists.hva + listOffset);
    const bounceOffset = listOffset + LIST_WORDS * 4;
    this.bounce = new Uint32Array(buffer, bounceOffset, 4);
    this.place.set(Place.BOUNCE, lists.hva + bounceOffset);
    this.bounce[0] = memory.bounceHva >>> 0;
    this.bounce[1] = high32(memory.bounceHva);
  }

  /**
   * Takes a request.
   *
   * @param done Bytes of it that were transferred before
   * @param durable Whether its writes are to be durable
   */
  begin(request: BlockRequest, done: number, durable: boolean): void {
    this.request = request;
    this.durable = durable;
    this.#retries = 0;
    this.#at[0] = request.offset + done;
    this.#at[1] = request.lengthBytes - done;
    switch (request.op) {
      case BlockOp.READ:
      case BlockOp.WRITE:
        this.writes = request.op === BlockOp.WRITE;
        this.#beginTransfer(request, done);
        break;
      case BlockOp.FLUSH:
        this.step = Step.SYNC;
        break;
      case BlockOp.DISCARD:
        this.#beginDiscard();
        break;
      case BlockOp.WRITE_ZEROES:
        this.writes = true;
        this.#beginZeroes(request.mayUnmap);
        break;
      default:
        request.op satisfies never;
    }
    this.#setRange();
  }

  /**
   * Takes a step's result.
   *
   * @param result What the system call returned, or −errno
   * @returns {@linkcode AGAIN} when there is another step; else the request's result, 0 or −errno
   */
  advance(result: number): number {
    if (result === -Errno.EINTR || result === -Errno.EAGAIN) {
      return ++this.#retries < RETRIES_MAX ? AGAIN : -Errno.EIO;
    }
    this.#retries = 0;
    switch (this.step) {
      case Step.TRANSFER:
      case Step.BOUNCE:
      case Step.WRITE_ZEROES:
        return this.#moved(result);
      case Step.FALLOCATE:
        return this.#allocated(result);
      case Step.DISCARD_COMMAND:
        if (result === 0) return 0;
        this.#traits.discardCommand = false;
        this.step = Step.DISCARD_IOCTL;
        return AGAIN;
      case Step.DISCARD_IOCTL:
        return isUnsupported(result) ? 0 : result;
      case Step.SYNC:
        return Math.min(result, 0);
      default:
        return this.step satisfies never;
    }
  }

  /** Forgets the request. */
  free(): void {
    this.request = null;
  }

  #setRange(): void {
    const { halves } = this.place;
    const offset = this.#at[0]!;
    const left = this.#at[1]!;
    halves[0] = offset >>> 0;
    halves[1] = Math.floor(offset / 0x1_0000_0000);
    halves[2] = left >>> 0;
    halves[3] = Math.floor(left / 0x1_0000_0000);
  }

  #beginTransfer(request: BlockRequest, done: number): void {
    const { list } = this;
    list.clear();
    // The controller's list stays as it is: it may have to be committed as a whole.
    list.append(request.buffers);
    if (done > 0) list.consume(done);
    this.step = Step.TRANSFER;
    if (!this.#isAligned()) {
      this.step = Step.BOUNCE;
      this.#fillBounce();
    }
  }

  /** True if the kernel takes the list as it is. */
  #isAligned(): boolean {
    const { memoryAlign, lengthAlign } = this.#traits;
    if (memoryAlign === 1) return true;
    const words = this.list.words;
    for (let i = 0; i < this.list.count * 4; i += 4) {
      if (
        (words[i]! & (memoryAlign - 1)) !== 0 ||
        (words[i + 2]! & (lengthAlign - 1)) !== 0
      ) return false;
    }
    return true;
  }

  #fillBounce(): void {
    const length = Math.min(this.#at[1]!, BOUNCE_BYTES);
    this.bounce[2] = length;
    if (this.writes) this.#copyBounce(length);
  }

  /** Copies between the start of the list and the aligned buffer, which is at least as long. */
  #copyBounce(lengthBytes: number): void {
    copy.hva[0] = u64(this.bounce[0]!, this.bounce[1]!);
    if (this.writes) copy.read(this.list, 0, lengthBytes);
    else copy.write(this.list, 0, lengthBytes);
  }

  #moved(result: number): number {
    if (result < 0) return result;
    // The end of a file that somebody cut, or a device that is full: neither comes to an end by trying again.
    if (result === 0 && this.#at[1]! > 0) return -Errno.EIO;
    if (this.step === Step.BOUNCE && !this.writes) this.#copyBounce(result);
    const left = this.#at[1]! - result;
    if (left <= 0) return 0;
    this.#at[0] = this.#at[0]! + result;
    this.#at[1] = left;
    this.#setRange();
    if (this.step === Step.WRITE_ZEROES) this.#fillZeroes();
    else this.list.consume(result);
    if (this.step === Step.BOUNCE) this.#fillBounce();
    return AGAIN;
  }

  #beginDiscard(): void {
    const traits = this.#traits;
    if (traits.isDevice) {
      this.step = traits.discardCommand
        ? Step.DISCARD_COMMAND
        : Step.DISCARD_IOCTL;
      return;
    }
    this.step = Step.FALLOCATE;
    this.mode = FallocateMode.PUNCH_HOLE | FallocateMode.KEEP_SIZE;
  }

  #beginZeroes(mayUnmap: boolean): void {
    const traits = this.#traits;
    this.step = Step.FALLOCATE;
    if (mayUnmap && traits.discard && traits.punchHole) {
      this.mode = FallocateMode.PUNCH_HOLE | FallocateMode.KEEP_SIZE;
    } else if (traits.zeroRange) {
      this.mode = FallocateMode.ZERO_RANGE | FallocateMode.KEEP_SIZE;
    } else {
      this.step = Step.WRITE_ZEROES;
      this.#fillZeroes();
    }
  }

  #allocated(result: number): number {
    const zeroes = this.request!.op === BlockOp.WRITE_ZEROES;
    if (result === 0) {
      if (!zeroes || !this.durable) return 0;
      this.step = Step.SYNC;
      return AGAIN;
    }
    // EINVAL is this range's alignment to the blocks of a device, not the file system's last word.
    if (!isUnsupported(result) && result !== -Errno.EINVAL) return result;
    const punched = (this.mode & FallocateMode.PUNCH_HOLE) !== 0;
    if (result !== -Errno.EINVAL) {
      if (punched) this.#traits.punchHole = false;
      else this.#traits.zeroRange = false;
    }
    if (!zeroes) return 0;
    if (punched && this.#traits.zeroRange) {
      this.mode = FallocateMode.ZERO_RANGE | FallocateMode.KEEP_SIZE;
    } else {
      this.step = Step.WRITE_ZEROES;
      this.#fillZeroes();
    }
    return AGAIN;
  }

  #fillZeroes(): void {
    const { list } = this;
    list.clear();
    let left = this.#at[1]!;
    for (let i = 0; i < ZEROES_SEGMENTS && left > 0; i++) {
      const length = Math.min(left, ZEROES_BYTES);
      list.push(this.#traits.zeroes, length);
      left -= length;
    }
  }
}

/** True if the storage cannot do what was asked, as opposed to having failed. */
function isUnsupported(result: number): boolean {
  return result === -Errno.EOPNOTSUPP || result === -Errno.ENOSYS ||
    result === -Errno.ENOTTY;
}
