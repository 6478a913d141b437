/**
 * Blocks in a raw image or on a block device.
 *
 * What the page cache has is served at once; what would wait for the disk goes through io_uring, one system call for
 * all that was submitted since the last commit. Where io_uring is refused, everything is served at once, and waits.
 *
 * @module
 */

import { Errno, ErrnoError } from "../../../core/errno.ts";
import type {
  BottomHalf,
  FdWatch,
  Loop,
  Poller,
} from "../../../loop/event_loop.ts";
import {
  Epoll,
  fdatasync,
  NativeBuffer,
  type ResourceBag,
  type Saved,
  SyscallError,
} from "../../../os/mod.ts";
import {
  type BlockBackend,
  type BlockClient,
  type BlockContext,
  type BlockInfo,
  BlockOp,
  type BlockRequest,
  PENDING,
} from "../contract.ts";
import { countRequest } from "../counters.ts";
import { AtOnce, AtOncePolicy } from "./at_once.ts";
import { Counters } from "../../../core/counters.ts";
import { openRing, RingEngine, SyncEngine } from "./engine.ts";
import {
  AGAIN,
  BOUNCE_BYTES,
  FileSlot,
  type FileTraits,
  SLOT_LIST_BYTES,
  Step,
  ZEROES_BYTES,
} from "./steps.ts";
import type { DeviceState } from "../../../core/state_form.ts";
import { blockForm, readInfo, refuseInFlight } from "../state.ts";
import {
  adoptImage,
  closeImage,
  type Image,
  imageInfo,
  openImage,
  setImageLength,
} from "./image.ts";
import type { OpenBlock } from "../driver.ts";
import { FILE_COUNTERS, type FileBlockOptions, FileCounter } from "./driver.ts";
import { RequestQueue } from "../request_queue.ts";

const KIND = "file";
const FORM = blockForm(KIND);
const DEFAULT_DEPTH = 256;

/** Opens an image or a block device. */
export const openFile: OpenBlock<FileBlockOptions> = (
  options,
  context,
  saved,
) => new FileBackend(options, context, saved);

/** A file or a block device of the host. */
class FileBackend implements BlockBackend {
  readonly description: string;
  readonly #options: FileBlockOptions;
  readonly #loop: Loop;
  readonly #image: Image;
  readonly #fd: number;
  readonly #ring: RingEngine | null;
  readonly #sync: SyncEngine;
  readonly #zeroes: NativeBuffer;
  readonly #lists: NativeBuffer;
  readonly #bounces: NativeBuffer | null;
  readonly #slots: FileSlot[] = [];
  readonly #free: Int32Array;
  #freeCount: number;
  readonly #backlog = new RequestQueue<BlockRequest>();
  /** Slots of a back end without a ring that write zeroes bit by bit. */
  readonly #deferred = new RequestQueue<FileSlot>();
  readonly #later: BottomHalf;
  readonly #counts = new Counters(FILE_COUNTERS);
  readonly #atOnce: AtOnce;
  #info: BlockInfo;
  #client: BlockClient | null = null;
  #watch: FdWatch | null = null;
  #poller: Poller | null = null;
  #durable = false;
  #inFlight = 0;
  #closed = false;
  /** True if another back end owns the lock. */
  readonly #shared: boolean;
  /** True if the lock ends with this back end; that of another is left alone until this one has started in its place. */
  #isLockOurs: boolean;

  /**
   * @param saved What another was and had open, which this goes on with
   * @throws {ErrnoError} With what is wrong and the remedy
   */
  constructor(
    options: FileBlockOptions,
    context: BlockContext,
    saved?: Saved<unknown>,
  ) {
    using undo = new DisposableStack();
    this.#options = options;
    this.#loop = context.loop;
    this.description = `file ${options.path}`;
    const state = saved && FORM.read(saved.state);
    const image = this.#image = undo.adopt(
      saved === undefined
        ? openImage(options, context)
        : adoptImage(saved.bag.take(KIND), options),
      (image) => saved === undefined ? closeImage(image) : image.fd.close(),
    );
    this.#fd = image.fd.number;
    this.#info = state === undefined
      ? imageInfo(image, options)
      : readInfo(state.value("info"));
    this.#durable = state?.flag("durable") ?? false;
    this.#shared = state?.flag("shared") ?? false;
    this.#isLockOurs = saved === undefined;
    if (state !== undefined) this.#counts.restore(state.value("counters"));
    const ring = options.engine === "sync"
      ? null
      : openRing(options.depth ?? DEFAULT_DEPTH, this.description, context.log);
    if (ring !== null) undo.defer(() => ring.close());
    this.#ring = ring === null ? null : new RingEngine(ring, this.#fd);
    this.#sync = new SyncEngine(this.#fd);
    this.#atOnce = undo.use(
      new AtOnce(this.#fd, this.#policy(), this.#counts),
    );
    const depth = ring?.entries ?? 1;
    this.#zeroes = undo.use(new NativeBuffer(ZEROES_BYTES));
    this.#lists = undo.use(new NativeBuffer(depth * SLOT_LIST_BYTES));
    this.#bounces = options.direct
      ? undo.use(new NativeBuffer(depth * BOUNCE_BYTES))
      : null;
    this.#free = new Int32Array(depth);
    this.#freeCount = depth;
    this.#makeSlots(depth);
    this.#later = this.#loop.bottomHalf(() => this.#onLater());
    undo.move();
  }

  get info(): BlockInfo {
    return this.#info;
  }

  start(client: BlockClient): void {
    this.#client = client;
    this.#isLockOurs = !this.#shared;
    if (this.#ring === null || this.#watch !== null) return;
    const { ring } = this.#ring;
    this.#watch = this.#loop.watch(ring.fd, Epoll.IN, () => this.#reap());
    this.#poller = this.#loop.poll(() => this.#inFlight > 0 && this.#reap());
  }

  submit(request: BlockRequest): number {
    const result = this.#take(request);
    if (result === PENDING) return result;
    this.#counts.add(FileCounter.servedAtOnce, 1);
    countRequest(this.#counts, request, result);
    return result;
  }

  commit(): void {
    if (this.#ring === null) return;
    const { ring } = this.#ring;
    if (ring.unsubmitted === 0) return;
    this.#enter(0);
    // What the page cache had after all is complete by now; its controller is told when it is out of its own loop.
    if (ring.ready) this.#later.schedule();
  }

  drain(): void {
    while (this.#inFlight > 0 && !this.#closed) {
      if (this.#ring === null) this.#runDeferred();
      else {
        if (!this.#ring.ring.ready) this.#enter(1);
        this.#reap();
      }
    }
  }

  unfinished(): number {
    return this.#ring === null ? 0 : this.#inFlight;
  }

  setWriteCache(on: boolean): number {
    this.#durable = !on;
    return 0;
  }

  resize(sizeBytes: number): void {
    const { path } = this.#options;
    if (this.#image.isDevice) {
      throw new ErrnoError(
        Errno.EOPNOTSUPP,
        `Cannot resize ${path}: it is a block device, resize it on the host`,
      );
    }
    // Requests beyond the new end must not make the file grow again.
    if (sizeBytes < this.#info.sizeBytes) this.drain();
    setImageLength(this.#fd, sizeBytes, `resize ${path} to`);
    this.rescan();
  }

  rescan(): boolean {
    const { sizeBytes } = this.#info;
    const info = imageInfo(this.#image, this.#options);
    if (info.sizeBytes === sizeBytes) return false;
    this.#info = info;
    this.#client?.onResize();
    return true;
  }

  counters(): Readonly<Record<string, number>> {
    const counters = this.#counts.toRecord();
    const { ringSubmissions, ringEnters } = counters;
    counters.ringSubmissionsPerEnter = ringSubmissions /
      Math.max(1, ringEnters);
    return counters;
  }

  save(): DeviceState {
    refuseInFlight(this, this.#inFlight + this.#backlog.length);
    return this.#state(false, this.#counts.toRecord());
  }

  handOver(bag: ResourceBag): void {
    bag.put(KIND, this.#fd);
    this.#isLockOurs = false;
  }

  share(bag: ResourceBag): DeviceState {
    bag.put(KIND, this.#fd);
    return this.#state(true, new Counters(FILE_COUNTERS).toRecord());
  }

  close(): void {
    if (this.#closed) return;
    this.drain();
    this.#closed = true;
    this.#later.cancel();
    this.#atOnce.close();
    this.#watch?.close();
    this.#poller?.close();
    this.#ring?.ring.close();
    closeImage(this.#image, !this.#isLockOurs);
    this.#zeroes.close();
    this.#lists.close();
    this.#bounces?.close();
  }

  #state(
    shared: boolean,
    counters: Readonly<Record<string, number>>,
  ): DeviceState {
    const [info, durable] = [this.#info, this.#durable];
    return FORM.write({ info, durable, shared, counters });
  }

  #policy(): AtOncePolicy {
    // Without the page cache every transfer waits for the disk, and may have to be copied.
    if (this.#options.direct) return AtOncePolicy.NEVER;
    if (this.#ring === null) return AtOncePolicy.ALWAYS;
    if (this.#options.engine === "ring") return AtOncePolicy.NEVER;
    return this.#image.inMemory ? AtOncePolicy.SHORT : AtOncePolicy.CACHED;
  }

  #makeSlots(depth: number): void {
    const image = this.#image;
    const traits: FileTraits = {
      isDevice: image.isDevice,
      memoryAlign: image.memoryAlign,
      lengthAlign: image.lengthAlign,
      discard: this.#options.discard,
      punchHole: true,
      zeroRange: true,
      discardCommand: true,
      zeroes: this.#zeroes.hva,
    };
    for (let i = 0; i < depth; i++) {
      this.#free[i] = i;
      this.#slots.push(
        new FileSlot(i, traits, {
          lists: this.#lists,
          listOffset: i * SLOT_LIST_BYTES,
          bounceHva: this.#bounces === null
            ? 0
            : this.#bounces.hva + i * BOUNCE_BYTES,
        }),
      );
    }
  }

  #take(request: BlockRequest): number {
    const { op } = request;
    if (this.#options.readonly && op !== BlockOp.READ) {
      return op === BlockOp.FLUSH ? 0 : -Errno.EROFS;
    }
    if (op === BlockOp.FLUSH) {
      return this.#atOnce.flushes
        ? fdatasync(this.#fd)
        : this.#start(request, 0);
    }
    if (request.lengthBytes === 0) return 0;
    if (op === BlockOp.DISCARD && !this.#options.discard) return 0;
    if (op === BlockOp.DISCARD || op === BlockOp.WRITE_ZEROES) {
      return this.#start(request, 0);
    }
    const done = op === BlockOp.READ
      ? this.#atOnce.read(request)
      : this.#atOnce.write(request, this.#durable || request.durable);
    if (done < 0) return done;
    return done >= request.lengthBytes ? 0 : this.#start(request, done);
  }

  /** @returns {@linkcode PENDING}, or the result */
  #start(request: BlockRequest, done: number): number {
    if (this.#freeCount === 0) {
      this.#counts.add(FileCounter.queued, 1);
      this.#backlog.push(request);
      return PENDING;
    }
    const slot = this.#slots[this.#free[--this.#freeCount]!]!;
    request.slot = slot.index;
    this.#inFlight++;
    slot.begin(request, done, this.#durable || request.durable);
    if (slot.step === Step.BOUNCE) {
      this.#counts.add(FileCounter.bounced, 1);
    }
    const result = this.#proceed(slot);
    if (result !== PENDING) this.#release(slot);
    return result;
  }

  /** @returns {@linkcode PENDING}, or the request's result */
  #proceed(slot: FileSlot): number {
    if (this.#ring !== null && slot.step !== Step.DISCARD_IOCTL) {
      this.#ring.issue(slot);
      this.#counts.add(FileCounter.ringSubmissions, 1);
      return PENDING;
    }
    for (;;) {
      const result = slot.advance(this.#sync.execute(slot));
      if (result !== AGAIN) return result;
      if (slot.step === Step.WRITE_ZEROES) {
        // A range may be as long as the disk: one step a turn of the loop.
        this.#deferred.push(slot);
        this.#later.schedule();
        return PENDING;
      }
    }
  }

  #release(slot: FileSlot): void {
    slot.request!.slot = -1;
    slot.free();
    this.#free[this.#freeCount++] = slot.index;
    this.#inFlight--;
  }

  #finish(slot: FileSlot, result: number): void {
    const request = slot.request!;
    this.#release(slot);
    if (this.#ring !== null) {
      this.#counts.add(FileCounter.servedByRing, 1);
    }
    this.#complete(request, result);
    while (!this.#closed && this.#freeCount > 0) {
      const next = this.#backlog.shift();
      if (next === null) return;
      const atOnce = this.#start(next, 0);
      if (atOnce !== PENDING) this.#complete(next, atOnce);
    }
  }

  #complete(request: BlockRequest, result: number): void {
    countRequest(this.#counts, request, result);
    this.#client!.onComplete(request, result);
  }

  #enter(minComplete: number): void {
    const result = this.#ring!.ring.enter(minComplete);
    this.#counts.add(FileCounter.ringEnters, 1);
    if (result === 0 || result === -Errno.EINTR) return;
    if (result !== -Errno.EAGAIN && result !== -Errno.EBUSY) {
      throw new SyscallError("io_uring_enter", -result);
    }
    // Short of memory: what was not taken is offered again.
    this.#later.schedule();
  }

  #onLater(): void {
    if (this.#closed) return;
    if (this.#ring === null) this.#runDeferred();
    else this.#reap();
  }

  /** @returns Whether there were completions */
  #reap(): boolean {
    const { ring } = this.#ring!;
    let any = false;
    while (!this.#closed && ring.next()) {
      any = true;
      const slot = this.#slots[ring.userData]!;
      let result = slot.advance(ring.result);
      if (result === AGAIN) result = this.#proceed(slot);
      if (result !== PENDING) this.#finish(slot, result);
    }
    if (!this.#closed && ring.unsubmitted > 0) this.#enter(0);
    return any;
  }

  #runDeferred(): void {
    const slot = this.#deferred.shift();
    if (slot === null) return;
    const result = this.#proceed(slot);
    if (result !== PENDING) this.#finish(slot, result);
  }
}
