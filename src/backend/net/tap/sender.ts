/**
 * Frames on their way out of a TAP.
 *
 * @module
 */

import { high32, low32 } from "../../../core/bits.ts";
import { Errno, ErrnoError, errnoName } from "../../../core/errno.ts";
import {
  IoUring,
  IoUringOp,
  NativeBuffer,
  Rwf,
  Sqe,
  SQE_FIXED_FILE,
  writev,
} from "../../../os/mod.ts";
import type { Log } from "../../../core/log.ts";
import type { ScatterGather } from "../../../memory/scatter_gather.ts";
import { TapEngine } from "./driver.ts";
import type { TapQueue } from "./queue.ts";

/** Fewer frames are sent faster by a system call each (`deno task bench tap`: two by io_uring at 0.86 times the rate). */
const BATCH_MIN = 4;
/** The most frames that one system call sends: as many as a card moves in one go. */
const FRAMES_MAX = 64;
/** Segments of all those frames: no frame has more (IOV_MAX), and most have two or three. */
const SEGMENTS_MAX = 1024;
/** sizeof(struct iovec). */
const IOVEC_BYTES = 16;
const IOVEC_WORDS = IOVEC_BYTES / 4;

/** Parts of a {@linkcode TapSender}. */
export interface TapSenderOptions {
  /** By pair; none for those of other threads. They outlive the sender. */
  readonly queues: readonly (TapQueue | undefined)[];
  readonly engine: TapEngine;
  /** Of the interface, for the log. */
  readonly description: string;
  readonly log: Log;
  /** Makes a ring; the kernel's unless told. */
  readonly makeRing?: (entries: number) => IoUring;
}

/**
 * Sends the frames of all queues that one thread has of a TAP: a few by writev(2), many at once by io_uring, in the order
 * in which they came.
 *
 * ```text
 *   send(…, true) … send(…, true)   copies the lists of their segments
 *   flush()                         they have left when it returns
 * ```
 * The TAP takes or refuses each frame while it is submitted: it never has to wait, since nobody bounds its send buffer.
 * Where somebody did, and where the kernel has no io_uring or forbids it, each frame is sent by writev for good, and
 * one that must wait stays with the card.
 *
 * Memory and ring are made when the first frame and the first batch want them: what sends nothing costs nothing.
 */
export class TapSender {
  /** Frames that the kernel did not take, by errors that last. */
  dropped = 0;
  /** System calls that sent several frames. */
  batches = 0;
  readonly #options: TapSenderOptions;
  readonly #engine: TapEngine;
  #batching: boolean;
  #arena: NativeBuffer | null = null;
  /** The segments of the queued frames, one frame's after the other's. */
  #words = new Uint32Array(0);
  /** Address of the first one: low word, high word. */
  readonly #base = new Uint32Array(2);
  /** By queued frame: its first segment, how many they are, and its queue. */
  readonly #firsts = new Int32Array(FRAMES_MAX);
  readonly #counts = new Int32Array(FRAMES_MAX);
  readonly #fds = new Int32Array(FRAMES_MAX);
  readonly #pairs = new Int32Array(FRAMES_MAX);
  /** Addresses of segments that writev was given once, by their index: each is an object. */
  readonly #iovecs: (Deno.PointerObject | undefined)[] = [];
  #queued = 0;
  #segments = 0;
  /** Queued frames that were lost and not told of yet. */
  #lost = 0;
  #ring: IoUring | null = null;
  /** True when the ring knows the queues by their pair. */
  #registered = false;
  /** Error for which frames cannot be queued any more, as −errno; 0 while they can. */
  #failure = 0;

  constructor(options: TapSenderOptions) {
    this.#options = options;
    this.#engine = options.engine;
    this.#batching = this.#engine !== TapEngine.SYNC;
  }

  /**
   * As NetBackend.send.
   *
   * @param queue One of {@linkcode TapSenderOptions.queues}, attached
   */
  send(frame: ScatterGather, queue: TapQueue, more: boolean): number {
    if (more && this.#batching && this.#enqueue(frame, queue)) {
      return frame.lengthBytes;
    }
    this.#sendQueued();
    const n = queue.send(frame);
    // EIO says the interface is down, EINVAL that the guest's header or frame is nonsense: lost, as on a wire.
    if (n < 0 && n !== -Errno.EAGAIN) this.dropped++;
    return n;
  }

  /** As NetBackend.flush. */
  flush(): number {
    this.#sendQueued();
    const lost = this.#lost;
    this.#lost = 0;
    return lost;
  }

  #sendQueued(): void {
    const count = this.#queued;
    if (count === 0) return;
    this.#queued = this.#segments = 0;
    const many = count >= BATCH_MIN || this.#engine === TapEngine.RING;
    if (many && this.#batching) this.#ring ??= this.#makeRing();
    if (many && this.#ring !== null) this.#submit(this.#ring, count);
    else for (let i = 0; i < count; i++) this.#write(i);
    if (this.#failure !== 0) {
      this.#giveUp(`sending gave ${errnoName(-this.#failure)}`);
    }
  }

  /** Frees what it has; nothing may be sent afterwards. */
  close(): void {
    this.#batching = false;
    this.#queued = this.#segments = 0;
    this.#closeRing();
    this.#arena?.close();
    this.#arena = null;
  }

  /** @returns False when there is no room for it */
  #enqueue(frame: ScatterGather, queue: TapQueue): boolean {
    const { count } = frame;
    if (
      this.#queued === FRAMES_MAX || this.#segments + count > SEGMENTS_MAX
    ) {
      this.#sendQueued();
      if (!this.#batching || count > SEGMENTS_MAX) return false;
    }
    if (this.#arena === null) this.#makeArena();
    const i = this.#queued++;
    this.#firsts[i] = this.#segments;
    this.#counts[i] = count;
    this.#fds[i] = queue.fd;
    this.#pairs[i] = queue.pair;
    const from = frame.words;
    const to = this.#words;
    let at = this.#segments * IOVEC_WORDS;
    // By words, as everywhere: a 64-bit address as one number would be allocated.
    for (let k = 0, end = count * IOVEC_WORDS; k < end; k++) {
      to[at++] = from[k]!;
    }
    this.#segments += count;
    return true;
  }

  #makeArena(): void {
    const arena = new NativeBuffer(SEGMENTS_MAX * IOVEC_BYTES);
    this.#arena = arena;
    this.#words = new Uint32Array(arena.bytes.buffer);
    this.#base[0] = low32(arena.hva);
    this.#base[1] = high32(arena.hva);
  }

  /** @returns The ring, or null where there can be none */
  #makeRing(): IoUring | null {
    const { queues, makeRing = (entries) => new IoUring(entries) } =
      this.#options;
    try {
      const ring = makeRing(FRAMES_MAX);
      this.#registered = ring.registerFiles(
        Array.from(queues, (queue) => queue?.fd ?? -1),
      );
      return ring;
    } catch (error) {
      if (!(error instanceof ErrnoError)) throw error;
      this.#giveUp(
        `the kernel says ${error.code}, allow io_uring by kernel.io_uring_disabled=0 and in the container's seccomp profile`,
      );
      return null;
    }
  }

  #fill(ring: IoUring, i: number): void {
    const at = ring.sqe();
    const { sqes } = ring;
    const low = this.#base[0]! + this.#firsts[i]! * IOVEC_BYTES;
    const carry = low > 0xffff_ffff ? 1 : 0;
    const registered = this.#registered;
    sqes[at] = IoUringOp.WRITEV | (registered ? SQE_FIXED_FILE : 0);
    sqes[at + Sqe.FD] = (registered ? this.#pairs : this.#fds)[i]!;
    sqes[at + Sqe.ADDR_LOW] = low;
    sqes[at + Sqe.ADDR_HIGH] = this.#base[1]! + carry;
    sqes[at + Sqe.LEN] = this.#counts[i]!;
    // Without it the ring would wait for room in place of the card.
    sqes[at + Sqe.OP_FLAGS] = Rwf.NOWAIT;
    sqes[at + Sqe.USER_DATA] = i;
  }

  #submit(ring: IoUring, count: number): void {
    for (let i = 0; i < count; i++) this.#fill(ring, i);
    let done = 0;
    // Frames complete as they are submitted, so that there is nothing to wait for.
    let result = ring.enter();
    for (;;) {
      while (ring.next()) {
        done++;
        this.#complete(ring.userData, ring.result);
      }
      if (done === count || (result < 0 && result !== -Errno.EINTR)) break;
      result = ring.enter(count - done);
    }
    this.batches++;
    if (done < count) this.#failure = result;
    // Frames complete as they are submitted, in order: those behind the last one are not the kernel's.
    for (; done < count; done++) this.#write(done);
  }

  /** A frame is through the ring. */
  #complete(i: number, result: number): void {
    if (result >= 0) return;
    // The send buffer has a bound; or Linux, before 5.7, cannot tell whether a TAP would have to wait.
    if (result === -Errno.EAGAIN || result === -Errno.EOPNOTSUPP) {
      this.#failure = result;
      this.#write(i);
    } else this.#drop();
  }

  /** Sends a queued frame that the card believes sent. */
  #write(i: number): void {
    const first = this.#firsts[i]!;
    const iovec = this.#iovecs[first] ??
      (this.#iovecs[first] = this.#arena!.pointer(first * IOVEC_BYTES));
    const n = writev(this.#fds[i]!, iovec, this.#counts[i]!);
    if (n >= 0) return;
    this.#drop();
    if (n === -Errno.EAGAIN) this.#failure = n;
  }

  /** A queued frame is lost. */
  #drop(): void {
    this.dropped++;
    this.#lost++;
  }

  /** From here on the card learns of each frame by itself what becomes of it. */
  #giveUp(why: string): void {
    this.#closeRing();
    if (!this.#batching) return;
    this.#batching = false;
    const { description, log } = this.#options;
    const message =
      `${description} is sent to without io_uring, a system call for each frame: ${why}`;
    if (this.#engine === TapEngine.RING) log.warn(message);
    else log.debug(message);
  }

  #closeRing(): void {
    this.#ring?.close();
    this.#ring = null;
  }
}
