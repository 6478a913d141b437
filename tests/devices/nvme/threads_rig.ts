/**
 * A controller and its queue threads, each on a loop of its own, in one thread: what threads say to each other is carried
 * by hand, so that a test sees every order of events.
 *
 * @module
 */

import { assert, assertEquals } from "@std/assert";
import {
  NvmeController,
  type NvmeControllerOptions,
} from "../../../devices/nvme/controller.ts";
import {
  NvmeQueueService,
  type QueueGrant,
} from "../../../devices/nvme/threads/queue_service.ts";
import type { BlockOptions } from "../../../src/backend/block/options.ts";
import { ResourceBag, type Saved } from "../../../src/os/resource_bag.ts";
import type { Interrupts } from "../../../src/pci/context.ts";
import {
  CONTROL_THREAD,
  type QueueThreads,
  type QueueThreadsListener,
} from "../../../src/pci/queue_threads.ts";
import { DriverMemory } from "../../../src/testing/driver_memory.ts";
import {
  checkReleased,
  memoryUnderTest,
  reach,
} from "../../memory_under_test.ts";
import {
  type FakeContext,
  fakeContext,
} from "../../../src/testing/fake_context.ts";
import type { ManualLoop } from "../../../src/testing/manual_loop.ts";
import { NaiveDriver, type Pair, type Sqe } from "./naive_driver.ts";
import { RamDisk } from "./ram_disk.ts";
import { RAM_BYTES, RAM_IOVA } from "./rig.ts";

/** One thread of a controller. */
export class Member {
  readonly context: FakeContext;
  disk: RamDisk;
  /** Null on the control thread, and where no queue is served. */
  service: NvmeQueueService | null = null;
  /** True if its words are to be looked at. */
  woken = false;
  /** Disks of namespaces that came later, in that order. */
  readonly late: RamDisk[] = [];
  /** True if it opens no such disks. */
  refuse = false;
  /** A message that it fails at. */
  broken: string | null = null;

  constructor(context: FakeContext, disk: RamDisk) {
    this.context = context;
    this.disk = disk;
  }
}

export interface ThreadsRigOptions {
  /** Threads, the control thread included; 2 by default. */
  readonly threads?: number;
  readonly mode?: "intx" | "msi" | "msix";
  readonly controller?: Partial<NvmeControllerOptions>;
}

const DISK_BYTES = 1 << 20;
const QUEUES = 6;

/** Threads of the controller but the control thread. */
class CarriedThreads implements QueueThreads {
  readonly count: number;
  readonly #rig: ThreadsRig;
  readonly #turns: readonly number[];
  listener: QueueThreadsListener | null = null;
  words: Int32Array<ArrayBuffer> = new Int32Array(0);
  reported = false;
  line = false;

  constructor(rig: ThreadsRig, turns: readonly number[]) {
    this.#rig = rig;
    this.#turns = turns;
    this.count = rig.members.length - 1;
  }

  threadOf(group: number): number {
    return group < 0
      ? CONTROL_THREAD
      : this.#turns[group % this.#turns.length]!;
  }

  attach(listener: QueueThreadsListener): Int32Array<ArrayBuffer> {
    this.listener = listener;
    return this.words = new Int32Array(listener.words);
  }

  open(thread: number, grant: (bag: ResourceBag) => unknown): void {
    using bag = ResourceBag.of();
    this.#rig.open(thread, { state: structuredClone(grant(bag)), bag }, this);
  }

  call(thread: number, message: unknown): unknown {
    const member = this.#rig.members[thread]!;
    if (member.service === null) return undefined;
    const { op } = message as { op: string };
    this.#rig.calls.push([thread, op]);
    this.#rig.onCall(thread, op);
    if (member.broken === op) throw new Error(`broken at ${op}`);
    const answer = member.service.handle(structuredClone(message));
    return structuredClone(answer ?? null);
  }

  callAll(message: unknown): unknown[] {
    const answers: unknown[] = [];
    let failure: unknown;
    for (let thread = 1; thread <= this.count; thread++) {
      if (this.#rig.members[thread]!.service === null) continue;
      try {
        answers.push(this.call(thread, message));
      } catch (error) {
        failure ??= error;
      }
    }
    if (failure !== undefined) throw failure;
    return answers;
  }

  wake(thread: number): void {
    this.#rig.wakes[thread]!++;
    this.#rig.members[thread]!.woken = true;
  }

  close(thread: number): void {
    const member = this.#rig.members[thread]!;
    this.#rig.count(member.service?.counters());
    member.service?.close();
    member.service = null;
    member.woken = false;
  }

  stop(): void {}
  start(): void {}
  deliver(): void {}

  forget(): void {
    this.#rig.resets++;
    this.reported = this.line = false;
  }

  counters(): Readonly<Record<string, number>> {
    return {};
  }

  /** Looks at what the control thread is nudged for. */
  look(): boolean {
    const { line, reported } = this;
    this.line = this.reported = false;
    if (line) this.listener!.onLine();
    if (reported) this.listener!.onReport();
    return line || reported;
  }
}

/** Queue n + 1 is served by thread n modulo the number of threads; thread 0 is the control thread. */
export class ThreadsRig implements Disposable {
  readonly memory = memoryUnderTest();
  readonly ram: DriverMemory;
  readonly members: Member[] = [];
  readonly device: NvmeController;
  readonly driver: NaiveDriver;
  /** Calls of the control thread to others: the thread, and the message's name. */
  readonly calls: [thread: number, op: string][] = [];
  /** Told before the control thread has another do something. */
  onCall: (thread: number, op: string) => void = () => {};
  /** Number of times each thread was woken up. */
  readonly wakes: number[];
  /** Number of times everything that threads wanted was void. */
  resets = 0;
  threads: CarriedThreads | null = null;
  readonly #counted: Record<string, number> = {};

  constructor(options: ThreadsRigOptions = {}) {
    const threads = options.threads ?? 2;
    const buffer = this.memory.map({ iova: RAM_IOVA, lengthBytes: RAM_BYTES });
    this.ram = new DriverMemory(buffer, RAM_IOVA);
    for (let i = 0; i < threads; i++) this.members.push(this.#member(options));
    this.wakes = new Array(threads).fill(0);
    const identity = { serial: "SN1", model: "M", firmware: "FW", subnqn: "n" };
    const { context, disk } = this.control;
    disk.share = () => ({});
    this.device = new NvmeController(context, {
      identity,
      queues: QUEUES,
      queueEntries: 1024,
      msix: true,
      mapDoorbells: false,
      open: (block) => this.#openLate(this.control, block),
      ...options.controller,
    }, [{ nsid: 1, backend: disk, block: FIRST }]);
    this.place(this.members.map((_, i) => i));
    const loop = { settle: () => this.settle() } as unknown as ManualLoop;
    this.driver = new NaiveDriver(this.device, this.ram, loop);
    this.driver.enable();
    this.calls.length = 0;
  }

  get control(): Member {
    return this.members[0]!;
  }

  /** The first of the other threads. */
  get other(): Member {
    return this.members[1]!;
  }

  /** The thread that serves a completion queue. */
  owner(cqid: number): Member {
    return this.members[this.threads!.threadOf(cqid - 1)]!;
  }

  /** Has threads serve completion queues 1, 2, … in turns; none for the control thread alone. */
  place(turns: readonly number[] | null): void {
    this.device.place(null);
    this.threads = turns && new CarriedThreads(this, turns);
    this.device.place(this.threads);
  }

  /** As {@linkcode place}, once nothing is in flight. */
  move(turns: readonly number[] | null): void {
    for (let i = 0; this.device.hold() > 0; i++) {
      assert(i < 1000, "commands in flight do not end");
      for (const member of this.members) {
        member.disk.drain();
        this.turn(member);
      }
    }
    this.place(turns);
    this.device.start();
  }

  /** A thread makes its service. */
  open(
    thread: number,
    grant: Saved<unknown>,
    threads: CarriedThreads,
  ): void {
    const member = this.members[thread]!;
    const { context } = member;
    assertEquals(member.service, null);
    if (member.disk.closed > 0) member.disk = this.#disk();
    const { interrupts } = context;
    const carried: Interrupts = {
      get mode() {
        return interrupts.mode;
      },
      raise: (vector) => interrupts.raise(vector),
      setLevel: (asserted) => threads.line ||= asserted,
    };
    const [page] = this.device.spec.bars[0]!.mmap ?? [];
    member.service = new NvmeQueueService(
      {
        ...context,
        interrupts: carried,
        words: threads.words,
        sharedMemory: page === undefined ? [] : [page.memory],
        report: () => threads.reported = true,
      },
      grant as Saved<QueueGrant>,
      (block, saved) =>
        isFirst(block) ? member.disk : this.#openLate(member, block, saved),
    );
  }

  /** A service has ended that had counted this. */
  count(counters: Readonly<Record<string, number>> = {}): void {
    for (const [name, value] of Object.entries(counters)) {
      this.#counted[name] = (this.#counted[name] ?? 0) + value;
    }
  }

  /** A queue of the control thread, and of the first of the others. */
  pairs(size = 16): [control: Pair, other: Pair] {
    return [
      this.driver.createPair(1, size, this.vector(1)),
      this.driver.createPair(2, size, this.vector(2)),
    ];
  }

  vector(cqid: number): number {
    return this.control.context.interrupts.mode === "msix" ? cqid : 0;
  }

  /** Tells the controller of a command in a queue, and leaves the rest to the threads. @returns Its identifier */
  submit(pair: Pair, sqe: Sqe): number {
    const cid = this.driver.put(pair, sqe);
    this.driver.ring(pair);
    return cid;
  }

  /** Number of requests each thread's disk was given. */
  submissions(): number[] {
    return this.members.map(({ disk }) => disk.log.length);
  }

  /** Does what a thread's loop has to do now, and nobody else's. @returns True if there was anything */
  turn(member: Member): boolean {
    const { woken } = member;
    member.woken = false;
    if (woken) member.service?.wake();
    const looked = member === this.control && (this.threads?.look() ?? false);
    return member.context.loop.turn() || woken || looked;
  }

  /** Lets everything happen that is to happen, on all threads. */
  settle(): void {
    for (let i = 0; i < 1000; i++) {
      if (this.members.map((each) => this.turn(each)).includes(true)) continue;
      if (!reach(this.memory)) return;
    }
    throw new Error("still busy after 1000 turns");
  }

  /** Time passes for all threads. */
  advance(ms: number): void {
    for (const { context } of this.members) context.loop.advance(ms);
    this.settle();
  }

  setMode(mode: "intx" | "msi" | "msix"): void {
    for (const { context } of this.members) context.interrupts.mode = mode;
  }

  /** The vectors that each thread has raised since. */
  interrupts(): number[][] {
    return this.members.map(({ context }) => context.interrupts.take());
  }

  get level(): boolean {
    return this.control.context.interrupts.level;
  }

  counter(name: string): number {
    let sum = this.device.counters()[name]! + (this.#counted[name] ?? 0);
    for (const { service } of this.members) {
      sum += service?.counters()[name] ?? 0;
    }
    return sum;
  }

  [Symbol.dispose](): void {
    this.device.close();
    for (const { service } of this.members) assertEquals(service, null);
    checkReleased(this.memory);
  }

  #member({ mode }: ThreadsRigOptions): Member {
    const context = fakeContext({ memory: this.memory });
    context.interrupts.mode = mode ?? "msix";
    return new Member(context, this.#disk());
  }

  /** Shows what the first one has. */
  #disk(): RamDisk {
    const first = this.members[0]?.disk;
    const disk = new RamDisk(this.memory, first?.bytes.length ?? DISK_BYTES);
    if (first !== undefined) {
      disk.bytes = first.bytes;
      disk.rescan = () => {
        disk.resize(first.info.sizeBytes);
        disk.bytes = first.bytes;
        return true;
      };
    }
    return disk;
  }

  #openLate(
    member: Member,
    block: BlockOptions,
    saved?: Saved<unknown>,
  ): RamDisk {
    if (member.refuse) throw new Error("refused");
    if (block.kind !== "memory") throw new Error(block.kind);
    const disk = new RamDisk(this.memory, block.sizeBytes);
    const { late } = this.control;
    if (saved === undefined) disk.share = () => ({ at: late.indexOf(disk) });
    else disk.bytes = late[(saved.state as { at: number }).at]!.bytes;
    member.late.push(disk);
    return disk;
  }
}

/** Options that the first namespace was opened with, as far as anybody wants to know. */
const FIRST = { kind: "memory", sizeBytes: 0 } as BlockOptions;

function isFirst(block: BlockOptions): boolean {
  return block.kind === "memory" && block.sizeBytes === 0;
}
