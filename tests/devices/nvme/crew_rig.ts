/**
 * A controller at home and its twins, each on a loop of its own, in one thread: what threads say to each other is
 * carried by hand, so that a test sees every order of events.
 *
 * @module
 */

import { assert } from "@std/assert";
import {
  NvmeController,
  type NvmeControllerOptions,
} from "../../../devices/nvme/controller.ts";
import type { BlockOptions } from "../../../src/backend/block/options.ts";
import type { ResetReason } from "../../../src/pci/device.ts";
import {
  FOR_HOME,
  type SpreadingListener,
} from "../../../src/pci/spreading.ts";
import { DriverMemory } from "../../../src/testing/driver_memory.ts";
import { checkReleased, memoryUnderTest } from "../../memory_under_test.ts";
import {
  type FakeContext,
  fakeContext,
} from "../../../src/testing/fake_context.ts";
import type { ManualLoop } from "../../../src/testing/manual_loop.ts";
import { NaiveDriver, type Pair, type Sqe } from "./naive_driver.ts";
import { RamDisk } from "./ram_disk.ts";
import { RAM_BYTES, RAM_IOVA } from "./rig.ts";

/** One thread of a controller. */
export interface Member {
  readonly context: FakeContext;
  readonly disk: RamDisk;
  readonly device: NvmeController;
  /** Queues it was notified of and has not looked at. */
  readonly kicks: Set<number>;
  /** Disks of namespaces that came later, in that order. */
  readonly late: RamDisk[];
  /** Whether it opens no such disks. */
  refuse: boolean;
}

export interface CrewRigOptions {
  /** Threads, home included; 2 by default. */
  readonly threads?: number;
  readonly mode?: "intx" | "msi" | "msix";
  readonly controller?: Partial<NvmeControllerOptions>;
}

const DISK_BYTES = 1 << 20;
const QUEUES = 6;

/** Queue n + 1 is served by thread n modulo the number of threads; thread 0 is home. */
export class CrewRig implements Disposable {
  readonly memory = memoryUnderTest();
  readonly ram: DriverMemory;
  readonly members: Member[] = [];
  readonly driver: NaiveDriver;
  /** What home had its twins do: the thread, and the message's name. */
  readonly calls: [thread: number, op: string][] = [];
  /** How often each thread was woken up. */
  readonly kicks: number[];
  /** How often home said that every thread is reset. */
  resets = 0;
  readonly words: Int32Array<ArrayBuffer>;

  constructor(options: CrewRigOptions = {}) {
    const threads = options.threads ?? 2;
    const buffer = this.memory.map({ iova: RAM_IOVA, lengthBytes: RAM_BYTES });
    this.ram = new DriverMemory(buffer, RAM_IOVA);
    for (let i = 0; i < threads; i++) this.members.push(this.#make(options));
    this.kicks = new Array(threads).fill(0);
    this.words = new Int32Array(this.home.device.spreading.sharedWords);
    this.members.forEach(({ device }, i) =>
      device.spreading.begin(
        (group) => (group === FOR_HOME ? 0 : group % threads) === i,
        this.#listener(i),
      )
    );
    const { device } = this.home;
    this.driver = new NaiveDriver(
      {
        spec: device.spec,
        readBar: (bar, offset, width) => device.readBar(bar, offset, width),
        writeBar: (bar, offset, width, value) =>
          device.writeBar(bar, offset, width, value),
        reset: (reason) => this.reset(reason),
        close: () => {},
      },
      this.ram,
      { settle: () => this.settle() } as unknown as ManualLoop,
    );
    this.driver.enable();
    this.calls.length = 0;
  }

  get home(): Member {
    return this.members[0]!;
  }

  /** The first of the other threads. */
  get twin(): Member {
    return this.members[1]!;
  }

  /** The thread that serves a completion queue. */
  owner(cqid: number): Member {
    return this.members[this.#ownerOf(cqid)]!;
  }

  /** Queue 1, home's, and queue 2, the first twin's. */
  pairs(size = 16): [home: Pair, twin: Pair] {
    return [
      this.driver.createPair(1, size, this.vector(1)),
      this.driver.createPair(2, size, this.vector(2)),
    ];
  }

  vector(cqid: number): number {
    return this.home.context.interrupts.mode === "msix" ? cqid : 0;
  }

  /** Tells home of a command in a queue, and leaves the rest to the threads. @returns Its identifier */
  submit(pair: Pair, sqe: Sqe): number {
    const cid = this.driver.put(pair, sqe);
    this.driver.ring(pair);
    return cid;
  }

  /** How many requests each thread's disk was given. */
  submissions(): number[] {
    return this.members.map(({ disk }) => disk.log.length);
  }

  /** What a thread's loop has to do now, and nobody else's. @returns Whether there was anything */
  turn(member: Member): boolean {
    const kicked = [...member.kicks];
    member.kicks.clear();
    for (const queue of kicked) member.device.spreading.kick(queue);
    return member.context.loop.turn() || kicked.length > 0;
  }

  /** Lets everything happen that is to happen, on all threads. */
  settle(): void {
    for (let i = 0; i < 1000; i++) {
      if (!this.members.map((each) => this.turn(each)).includes(true)) return;
    }
    throw new Error("still busy after 1000 turns");
  }

  /** Time passes for all threads. */
  advance(ms: number): void {
    for (const { context } of this.members) context.loop.advance(ms);
    this.settle();
  }

  /** As the process does it. */
  reset(reason: ResetReason): void {
    for (const { device } of this.members.slice(1)) device.reset(reason);
    this.home.device.reset(reason);
  }

  stop(): void {
    for (const { device } of this.members.toReversed()) device.stop();
  }

  start(): void {
    for (const { device } of this.members) device.start();
  }

  setMode(mode: "intx" | "msi" | "msix"): void {
    for (const { context } of this.members) context.interrupts.mode = mode;
  }

  /** The vectors that each thread has raised since. */
  interrupts(): number[][] {
    return this.members.map(({ context }) => context.interrupts.take());
  }

  get level(): boolean {
    return this.home.context.interrupts.level;
  }

  counter(name: string): number {
    let sum = 0;
    for (const { device } of this.members) sum += device.counters()[name]!;
    return sum;
  }

  [Symbol.dispose](): void {
    for (const { device } of this.members.toReversed()) device.close();
    checkReleased(this.memory);
  }

  #ownerOf(cqid: number): number {
    return cqid === 0 ? 0 : (cqid - 1) % this.members.length;
  }

  #make({ mode, controller }: CrewRigOptions): Member {
    const context = fakeContext({ memory: this.memory });
    context.interrupts.mode = mode ?? "msix";
    const disk = new RamDisk(this.memory, DISK_BYTES);
    const home = this.members[0]?.disk;
    if (home !== undefined) {
      disk.bytes = home.bytes;
      disk.rescan = () => {
        disk.resize(home.info.sizeBytes);
        disk.bytes = home.bytes;
        return true;
      };
    }
    const identity = { serial: "SN1", model: "M", firmware: "FW", subnqn: "n" };
    const late: RamDisk[] = [];
    const open = (block: BlockOptions, given?: unknown) => {
      if (member.refuse) throw new Error("refused");
      if (block.kind !== "memory") throw new Error(block.kind);
      const disk = new RamDisk(this.memory, block.sizeBytes);
      if (given === undefined) disk.share = () => ({ at: late.indexOf(disk) });
      else {
        const { at } = given as { at: number };
        disk.bytes = this.home.late[at]!.bytes;
      }
      late.push(disk);
      return disk;
    };
    const device = new NvmeController(context, {
      identity,
      queues: QUEUES,
      queueEntries: 1024,
      msix: true,
      mapDoorbells: false,
      open,
      ...controller,
    }, [{ nsid: 1, backend: disk }]);
    const member: Member = {
      context,
      disk,
      device,
      kicks: new Set(),
      late,
      refuse: false,
    };
    return member;
  }

  #listener(i: number): SpreadingListener {
    const call = (thread: number, message: unknown) => {
      assert(i === 0, "a twin calls");
      this.calls.push([thread, (message as { op: string }).op]);
      const { spreading } = this.members[thread]!.device;
      return structuredClone(spreading.answer(structuredClone(message)));
    };
    return {
      onSharedState: () => {
        assert(i === 0, "shared state changes on a twin");
        const state = structuredClone(this.home.device.spreading.saveShared());
        for (const { device } of this.members.slice(1)) {
          device.spreading.loadShared(state);
        }
      },
      onFailure: () => assert(false, "it fails"),
      onReset: () => {
        assert(i === 0, "a twin resets the device");
        this.resets++;
      },
      onForeignKick: (queue) => {
        const owner = this.#ownerOf(queue);
        assert(owner !== i, "its own queue");
        this.kicks[owner]!++;
        this.members[owner]!.kicks.add(queue);
      },
      onIndirectWrite: () => assert(false, "there is no such way"),
      words: this.words,
      call: (queue, message) => {
        const owner = this.#ownerOf(queue);
        return owner === 0 ? null : call(owner, message);
      },
      callAll: (make) => {
        const answers: unknown[] = [];
        let failure: unknown;
        for (let thread = 1; thread < this.members.length; thread++) {
          try {
            answers.push(call(thread, make()));
          } catch (error) {
            failure ??= error;
          }
        }
        if (failure !== undefined) throw failure;
        return answers;
      },
    };
  }
}
