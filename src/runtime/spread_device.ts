/**
 * The home thread's side of a device whose queues are served by several threads.
 *
 * @module
 */

import type { BottomHalf, Loop } from "../loop/event_loop.ts";
import { createEventFd, type Fd, signalEventFd } from "../os/mod.ts";
import type { BorrowedRange, DmaMemory } from "../memory/dma_memory.ts";
import type {
  AccessWidth,
  DeviceCommand,
  PciDevice,
  PciSpec,
  ResetReason,
} from "../pci/device.ts";
import type { PciInterrupts } from "../pci/interrupts.ts";
import {
  FOR_ALL,
  type Spreading,
  type SpreadingListener,
} from "../pci/spreading.ts";
import { Board, type BoardListener, type BoardPlace } from "./crew_board.ts";
import type { SocketWrites } from "../pci/socket_writes.ts";
import type { QueuePlan, ThreadLine } from "./device_threads.ts";
import type { Caller, ThreadCalls } from "./iothread/thread_calls.ts";

/** What the home thread tells the others; each is carried out before the next is. Plain data. */
export type CrewMessage =
  | {
    readonly op: "open";
    /** What {@linkcode Spreading.share} gave. */
    readonly shared: unknown;
    /** Groups that are this thread's. */
    readonly groups: readonly number[];
    readonly board: BoardPlace;
    /** Eventfds by queue; −1 for those that are not this thread's. */
    readonly kicks: readonly number[];
  }
  | {
    readonly op: "write";
    readonly bar: number;
    readonly offset: number;
    readonly width: AccessWidth;
    readonly value: number;
  }
  | { readonly op: "reset"; readonly reason: ResetReason }
  | { readonly op: "stop" }
  | { readonly op: "start" }
  /** From here on guest memory is accessible. */
  | { readonly op: "map"; readonly ranges: readonly BorrowedRange[] }
  | {
    readonly op: "unmap";
    readonly iova: number;
    readonly lengthBytes: number;
  }
  /** Everything is unmapped, and guest memory is not accessible. */
  | { readonly op: "unmapAll" }
  | { readonly op: "state"; readonly state: unknown }
  /** Answered with what {@linkcode Spreading.answer} returned. */
  | { readonly op: "call"; readonly message: unknown }
  | { readonly op: "fail"; readonly reason: string }
  /** Answered with what this twin has counted. */
  | { readonly op: "counters" }
  /** Nothing: by the answer the thread is not in the midst of anything. */
  | { readonly op: "fence" }
  | { readonly op: "close" };

/** What a {@linkcode SpreadDevice} is made with. */
export interface SpreadDeviceParts {
  readonly device: PciDevice;
  readonly memory: DmaMemory;
  readonly interrupts: PciInterrupts;
  readonly loop: Loop;
  /** What the client sends, which the other threads are to see. */
  readonly writes: SocketWrites;
  readonly calls: ThreadCalls;
  readonly plan: QueuePlan;
}

const HOME = 0;
const NO_KICK = -1;

/**
 * The device that the client talks to: its own twin and the ones on other threads behind one {@linkcode PciDevice}.
 *
 * Whatever a driver may wait for (a register write, a reset, an unmapping) has been carried out by every thread when
 * the call returns, and so before the client's message is answered.
 */
export class SpreadDevice implements PciDevice {
  readonly spec: PciSpec;
  readonly commands?: Readonly<Record<string, DeviceCommand>>;
  readonly #device: PciDevice;
  readonly #spreading: Spreading;
  readonly #memory: DmaMemory;
  readonly #interrupts: PciInterrupts;
  readonly #writes: SocketWrites;
  readonly #callers: Caller[] = [];
  readonly #board: Board;
  readonly #boardListener: BoardListener;
  /** By queue: what wakes the thread that serves it. */
  readonly #kicks: (Fd | null)[] = [];
  readonly #sharedState: BottomHalf;
  readonly #endings: (() => void)[] = [];
  /** Guest addresses of the ranges that the others know of; none while the device is stopped. */
  readonly #mapped = new Set<number>();
  #stopped = false;
  /** Ends the hearing of memory that comes and goes. */
  #deafen: () => void = () => {};

  /**
   * @throws {Error} When the device cannot be spread or another thread cannot make its twin; the device is then still
   * the caller's to close
   */
  constructor(parts: SpreadDeviceParts) {
    const { device, memory, interrupts, loop, writes, calls, plan } = parts;
    const { spreading } = device;
    if (spreading === undefined) {
      throw new Error("Cannot use several IOThreads: this model has one queue");
    }
    if (device.spec.bars.some(({ mmap }) => mmap !== undefined)) {
      throw new Error(
        "Cannot use several IOThreads with mapped doorbells: one thread polls the page; use doorbells=message",
      );
    }
    this.#device = device;
    this.#spreading = spreading;
    this.#memory = memory;
    this.#interrupts = interrupts;
    this.#writes = writes;
    this.#sharedState = loop.bottomHalf(() => this.#tellState());
    checkGroups(spreading, plan);
    const turnOf = (group: number) =>
      group < 0 ? HOME : plan.turns[group % plan.turns.length]!;
    this.#board = new Board({
      vectors: vectorsOf(device.spec),
      queues: spreading.queueCount,
      words: spreading.sharedWords ?? 0,
    });
    this.#boardListener = {
      raise: (vector) => interrupts.raise(vector),
      raiseLine: () => spreading.raiseLine(),
      kick: (queue) => spreading.kick(queue),
      fail: () =>
        spreading.fail("it broke the rules on a queue of another thread"),
    };
    writes.share(this.#board.view.posted);
    try {
      for (let queue = 0; queue < spreading.queueCount; queue++) {
        const isHome = turnOf(spreading.groupOf(queue)) === HOME;
        this.#kicks.push(isHome ? null : createEventFd());
      }
      spreading.begin(
        (group) => turnOf(group) === HOME,
        this.#listener((queue) => turnOf(spreading.groupOf(queue))),
      );
      plan.threads.forEach((seat, i) => this.#open(seat, i + 1, turnOf, calls));
      this.#connect(calls);
    } catch (error) {
      this.#release();
      throw error;
    }
    this.spec = device.spec;
    if (device.commands !== undefined) {
      this.commands = this.#wrapCommands(device.commands);
    }
  }

  #listener(turnOfQueue: (queue: number) => number): SpreadingListener {
    return {
      onSharedState: () => this.#sharedState.schedule(),
      onFailure: (reason) => this.#tell({ op: "fail", reason }),
      onReset: () => this.#board.forget(),
      onForeignKick: (queue) => this.#forward(queue),
      onIndirectWrite: (bar, offset, width, value) =>
        this.writeBar(bar, offset, width, value),
      words: this.#board.view.words,
      call: (queue, message) => {
        const turn = turnOfQueue(queue);
        return turn === HOME ? null : this.#callers[turn - 1]!.call(
          { op: "call", message } satisfies CrewMessage,
        );
      },
      callAll: (make) =>
        this.#tellEach(() => ({ op: "call", message: make() })),
    };
  }

  /** From here on the other threads are told of memory and interrupts, and what they want is done. */
  #connect(calls: ThreadCalls): void {
    this.#deafen = this.#memory.subscribe({
      onUnmap: (iova, lengthBytes) => this.#unmap(iova, lengthBytes),
      onMap: (iova) => this.#map([this.#memory.lend(iova)]),
      onChange: () => this.#lend(),
    });
    this.#endings.push(
      calls.onNudge(() => this.#board.look(this.#boardListener)),
      this.#interrupts.publishDirect(
        this.#board.view.direct,
        () => this.#tell({ op: "fence" }),
      ),
    );
    this.#lend();
  }

  readBar(bar: number, offset: number, width: AccessWidth): number {
    return this.#device.readBar(bar, offset, width);
  }

  writeBar(
    bar: number,
    offset: number,
    width: AccessWidth,
    value: number,
  ): void {
    const target = this.#spreading.targetOfWrite(bar, offset);
    if (target >= 0 && this.#kicks[target] != null) {
      this.#forward(target);
      return;
    }
    if (target !== FOR_ALL) {
      this.#device.writeBar(bar, offset, width, value);
      return;
    }
    // The others first, as in a reset: what they did before comes before it here too.
    try {
      this.#tell({ op: "write", bar, offset, width, value });
    } finally {
      this.#board.deliver(this.#boardListener);
      this.#device.writeBar(bar, offset, width, value);
    }
  }

  ringDoorbell(bar: number, doorbell: number): void {
    this.#device.ringDoorbell?.(bar, doorbell);
  }

  reset(reason: ResetReason): void {
    try {
      this.#tell({ op: "reset", reason });
    } finally {
      this.#device.reset(reason);
    }
  }

  stop(): void {
    this.#stopped = true;
    try {
      this.#tell({ op: "stop" });
    } finally {
      this.#device.stop?.();
    }
    this.#tell({ op: "unmapAll" });
    this.#mapped.clear();
  }

  start(): void {
    this.#stopped = false;
    this.#lend();
    this.#device.start?.();
    this.#tell({ op: "start" });
  }

  /** The sums over all threads. */
  counters(): Readonly<Record<string, number>> {
    const sums: Record<string, number> = { ...this.#device.counters?.() };
    for (const caller of this.#callers) {
      if (caller.ended) continue;
      const counters = caller.call({ op: "counters" } satisfies CrewMessage);
      for (const [name, value] of Object.entries(counters as typeof sums)) {
        sums[name] = (sums[name] ?? 0) + value;
      }
    }
    return sums;
  }

  info(): Readonly<Record<string, string>> {
    return this.#device.info?.() ?? {};
  }

  close(): void {
    this.#sharedState.cancel();
    this.#release();
    this.#device.close();
  }

  #open(
    seat: ThreadLine,
    turn: number,
    turnOf: (group: number) => number,
    calls: ThreadCalls,
  ): void {
    const queues = this.#kicks.map((_, queue) =>
      this.#spreading.groupOf(queue)
    );
    const groups = [...new Set(queues)].filter((group) =>
      turnOf(group) === turn
    );
    const caller = calls.caller(seat.line, seat.seat);
    this.#callers.push(caller);
    const message: CrewMessage = {
      op: "open",
      shared: this.#spreading.share(groups),
      groups,
      board: this.#board.place,
      kicks: queues.map((group, queue) =>
        turnOf(group) === turn ? this.#kicks[queue]!.number : NO_KICK
      ),
    };
    caller.call(message);
  }

  /** A command may change what all twins use, the size of a disk for one: they stand still meanwhile. */
  #wrapCommands(
    commands: Readonly<Record<string, DeviceCommand>>,
  ): Record<string, DeviceCommand> {
    const wrapped: Record<string, DeviceCommand> = {};
    for (const [name, command] of Object.entries(commands)) {
      const run = (args: readonly string[]) => {
        try {
          this.#tell({ op: "stop" });
          return command.run(args);
        } finally {
          try {
            this.#tellState();
          } finally {
            if (!this.#stopped) this.#tell({ op: "start" });
          }
        }
      };
      wrapped[name] = { help: command.help, run };
    }
    return wrapped;
  }

  /** Ends the twins and frees what they used. */
  #release(): void {
    const late: Caller[] = [];
    for (const caller of this.#callers.splice(0)) {
      try {
        caller.call({ op: "close" } satisfies CrewMessage);
      } catch {
        // It has stopped: then its twin is gone too. Or else it has not let go of anything.
        if (!caller.ended) {
          late.push(caller);
          continue;
        }
      }
      caller.close();
    }
    for (const end of this.#endings.splice(0)) end();
    if (late.length > 0) {
      // What a thread may be using, guest memory too, is better lost.
      this.#callers.push(...late);
      return;
    }
    this.#deafen();
    for (const kick of this.#kicks.splice(0)) kick?.close();
    this.#writes.share();
    this.#board.close();
  }

  /**
   * Tells every thread, though others fail. A thread that has ended has nothing to do any more, and the process ends
   * soon.
   *
   * @returns What each answered that has not ended
   * @throws {Error} What failed first
   */
  #tell(message: CrewMessage): unknown[] {
    return this.#tellEach(() => message);
  }

  /** As {@linkcode SpreadDevice.#tell}, with a message for each. */
  #tellEach(make: () => CrewMessage): unknown[] {
    const answers: unknown[] = [];
    let failure: unknown;
    for (let i = 0; i < this.#callers.length; i++) {
      const caller = this.#callers[i]!;
      try {
        answers.push(caller.call(make()));
      } catch (error) {
        if (!caller.ended) failure ??= error;
      }
    }
    if (failure !== undefined) throw failure;
    return answers;
  }

  #tellState(): void {
    this.#tell({ op: "state", state: this.#spreading.saveShared() });
  }

  /** Notifies a queue that another thread serves, or our own of what came to another thread. */
  #forward(queue: number): void {
    const kick = this.#kicks[queue];
    if (kick == null) this.#spreading.kick(queue);
    else signalEventFd(kick.number);
  }

  #unmap(iova: number, lengthBytes: number): void {
    if (!this.#mapped.has(iova)) return;
    // What this throws keeps the range mapped, now and later: a thread may use it.
    this.#tell({ op: "unmap", iova, lengthBytes });
    this.#mapped.delete(iova);
  }

  /** What is mapped, or accessible again, and not known to the others. */
  #lend(): void {
    if (this.#stopped || this.#mapped.size === this.#memory.count) return;
    this.#map(
      this.#memory.lendable().filter(({ iova }) => !this.#mapped.has(iova)),
    );
  }

  #map(ranges: readonly BorrowedRange[]): void {
    if (this.#stopped || ranges.length === 0) return;
    for (const { iova } of ranges) this.#mapped.add(iova);
    this.#tell({ op: "map", ranges });
  }

  doorbellEventFd(bar: number, doorbell: number): number | undefined {
    const queue = this.#spreading.targetOfDoorbell(bar, doorbell);
    return this.#kicks[queue]?.number;
  }
}

function checkGroups(spreading: Spreading, plan: QueuePlan): void {
  const groups = new Set<number>();
  for (let queue = 0; queue < spreading.queueCount; queue++) {
    const group = spreading.groupOf(queue);
    if (group >= 0) groups.add(group);
  }
  if (groups.size >= plan.turns.length) return;
  throw new Error(
    `Cannot use ${plan.turns.length} IOThreads: the device has ${
      groups.size <= 1 ? "one queue" : `${groups.size} queues`
    }; ask for more with queues=${plan.turns.length}`,
  );
}

function vectorsOf(spec: PciSpec): number {
  for (const capability of spec.capabilities) {
    if (capability.kind === "msix") return capability.vectors;
  }
  return 0;
}
