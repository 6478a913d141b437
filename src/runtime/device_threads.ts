/**
 * The queue threads of a device, from its control thread.
 *
 * @module
 */

import type { DmaMemory, SharedRange } from "../memory/dma_memory.ts";
import { ResourceBag, signalEventFd } from "../os/mod.ts";
import type { PciInterrupts } from "../pci/interrupts.ts";
import {
  CONTROL_THREAD,
  type QueueThreads,
  type QueueThreadsListener,
} from "../pci/queue_threads.ts";
import type { SocketWrites } from "../pci/socket_writes.ts";
import type {
  Caller,
  CallLine,
  Mailbox,
  ThreadCalls,
} from "./iothread/thread_calls.ts";
import {
  OwnQueueWords,
  type QueueWordsListener,
  type QueueWordsPlace,
} from "./queue_words.ts";

/** Message of the control thread to a queue thread; each is carried out before the next. Plain data. */
export type QueueThreadMessage =
  | {
    readonly op: "open";
    readonly grant: unknown;
    /** Descriptors that go with it, by name. */
    readonly fds: Readonly<Record<string, number>>;
    readonly place: QueueWordsPlace;
    readonly sharedMemory: readonly MemoryPlace[];
  }
  /** For the service. */
  | { readonly op: "call"; readonly message: unknown }
  /** From here on guest memory is accessible. */
  | { readonly op: "map"; readonly ranges: readonly SharedRange[] }
  | {
    readonly op: "unmap";
    readonly iova: number;
    readonly lengthBytes: number;
  }
  /** Everything is unmapped, and guest memory is not accessible. */
  | { readonly op: "unmapAll" }
  /** Answered with what the service has counted. */
  | { readonly op: "counters" }
  /** Nothing: by the answer the thread is not in the midst of anything. */
  | { readonly op: "fence" }
  | { readonly op: "close" };

/** Place of memory in this process. Plain data. */
export interface MemoryPlace {
  readonly hva: number;
  readonly lengthBytes: number;
}

/** A thread that may serve queues of a device. Travels by postMessage. */
export interface ThreadLine {
  /** Number of the IOThread. */
  readonly iothread: number;
  readonly mailbox: Mailbox;
  readonly line: CallLine;
}

/** Threads that serve the queues of a device. Travels by postMessage. */
export interface QueuePlan {
  /** By group of queues, in turns: {@linkcode CONTROL_THREAD}, or n for the n-th of `threads`. */
  readonly turns: readonly number[];
  readonly threads: readonly ThreadLine[];
}

/** Parts of {@linkcode DeviceThreads}. */
export interface DeviceThreadsParts {
  readonly memory: DmaMemory;
  readonly interrupts: PciInterrupts;
  /** Memory that the device had of {@linkcode DeviceContext.createSharedMemory}. */
  readonly sharedMemory: readonly MemoryPlace[];
  /** Writes of the client, which queue threads are to see. */
  readonly writes: SocketWrites;
  readonly calls: ThreadCalls;
  readonly plan: QueuePlan;
}

type Counters = Readonly<Record<string, number>>;

/** Adds counters by name to others. */
export function addCounters(
  sums: Record<string, number>,
  more: Counters,
): void {
  for (const [name, value] of Object.entries(more)) {
    sums[name] = (sums[name] ?? 0) + value;
  }
}

/**
 * Tells queue threads of guest memory and interrupts, and carries the device's messages.
 *
 * Whatever a driver may wait for, such as a reset or an unmapping, has been carried out by every thread when the call
 * returns, and so before the client's message is answered.
 */
export class DeviceThreads implements QueueThreads, Disposable {
  readonly #parts: DeviceThreadsParts;
  /** By thread, the first is number 1; null without a service. */
  readonly #callers: (Caller | null)[];
  /** Guest addresses of the ranges that the threads know of; none while they are stopped. */
  readonly #mapped = new Set<number>();
  #words: OwnQueueWords | null = null;
  #listener: QueueWordsListener | null = null;
  #endings: (() => void)[] = [];
  #stopped = true;
  /** By services that have ended. */
  readonly #counted: Record<string, number> = {};

  constructor(parts: DeviceThreadsParts) {
    this.#parts = parts;
    this.#callers = parts.plan.threads.map(() => null);
  }

  get count(): number {
    return this.#callers.length;
  }

  threadOf(group: number): number {
    const { turns } = this.#parts.plan;
    return group < 0 ? CONTROL_THREAD : turns[group % turns.length]!;
  }

  attach(listener: QueueThreadsListener): Int32Array<ArrayBuffer> {
    const words = new OwnQueueWords(listener);
    const { memory, interrupts, writes, calls } = this.#parts;
    this.#words = words;
    writes.share(words.view.posted);
    this.#listener = {
      raise: (vector: number) => interrupts.raise(vector),
      onLine: () => listener.onLine(),
      onReport: () => listener.onReport(),
    };
    this.#endings = [
      calls.onNudge(() => words.look(this.#listener!)),
      interrupts.publishDirect(
        words.view.direct,
        () => this.#tell({ op: "fence" }),
      ),
      memory.subscribe({
        onUnmap: (iova, lengthBytes) => this.#unmap(iova, lengthBytes),
        onMap: (iova) => this.#map([memory.sharedRange(iova)]),
        onChange: () => this.#shareMissing(),
      }),
    ];
    return words.view.own;
  }

  open(thread: number, grant: (bag: ResourceBag) => unknown): void {
    const { threads } = this.#parts.plan;
    const { line, mailbox } = threads[thread - 1]!;
    const caller = this.#parts.calls.caller(line, mailbox);
    const { place } = this.#words!;
    const { sharedMemory, memory } = this.#parts;
    using bag = ResourceBag.of();
    const state = grant(bag);
    // They are the other thread's from here on, whatever becomes of the call.
    const fds = bag.release();
    caller.call(
      {
        ...{ op: "open", grant: state, fds, place },
        sharedMemory,
      } satisfies QueueThreadMessage,
    );
    this.#callers[thread - 1] = caller;
    if (this.#stopped) return;
    const ranges = memory.sharedRanges();
    caller.call({ op: "map", ranges } satisfies QueueThreadMessage);
  }

  call(thread: number, message: unknown): unknown {
    const caller = this.#callers[thread - 1]!;
    if (caller === null || caller.ended) return undefined;
    return caller.call({ op: "call", message } satisfies QueueThreadMessage);
  }

  callAll(message: unknown): unknown[] {
    return this.#tell({ op: "call", message });
  }

  wake(thread: number): void {
    // No nudge: a thread that waits for an answer need not look before it has that.
    signalEventFd(this.#parts.plan.threads[thread - 1]!.mailbox.eventFd);
  }

  close(thread: number): void {
    const caller = this.#callers[thread - 1]!;
    if (caller === null) return;
    if (!caller.ended) {
      const counters = caller.call({ op: "counters" });
      addCounters(this.#counted, counters as Counters);
      caller.call({ op: "close" } satisfies QueueThreadMessage);
    }
    this.#callers[thread - 1] = null;
    caller.close();
  }

  /** Numbers of the IOThreads that have no service. */
  idle(): readonly number[] {
    return this.#parts.plan.threads
      .filter((_, i) => this.#callers[i] === null)
      .map(({ iothread }) => iothread);
  }

  stop(): void {
    this.#stopped = true;
    this.#tell({ op: "unmapAll" });
    this.#mapped.clear();
  }

  start(): void {
    this.#stopped = false;
    this.#shareMissing();
  }

  deliver(): void {
    this.#words?.deliver(this.#listener!);
  }

  forget(): void {
    this.#words?.forget();
  }

  counters(): Readonly<Record<string, number>> {
    const sums = { ...this.#counted };
    for (const counters of this.#tell({ op: "counters" })) {
      addCounters(sums, counters as Counters);
    }
    return sums;
  }

  /** Ends all services and frees what they used. */
  [Symbol.dispose](): void {
    let late = false;
    for (let thread = 1; thread <= this.count; thread++) {
      try {
        this.close(thread);
      } catch {
        // It has not let go of anything: what it may be using, guest memory too, is better lost.
        late = true;
      }
    }
    if (late) return;
    for (const end of this.#endings.splice(0)) end();
    this.#parts.writes.share();
    this.#words?.close();
    this.#words = null;
  }

  /**
   * Tells every thread with a service, though others fail.
   *
   * @returns What each answered that has not ended
   * @throws {Error} What failed first
   */
  #tell(message: QueueThreadMessage): unknown[] {
    const answers: unknown[] = [];
    let failure: unknown;
    for (const caller of this.#callers) {
      if (caller === null || caller.ended) continue;
      try {
        answers.push(caller.call(message));
      } catch (error) {
        if (!caller.ended) failure ??= error;
      }
    }
    if (failure !== undefined) throw failure;
    return answers;
  }

  #unmap(iova: number, lengthBytes: number): void {
    if (!this.#mapped.has(iova)) return;
    // What this throws keeps the range mapped, now and later: a thread may use it.
    this.#tell({ op: "unmap", iova, lengthBytes });
    this.#mapped.delete(iova);
  }

  /** Shows the others what is mapped, or accessible again, and not known to them. */
  #shareMissing(): void {
    const { memory } = this.#parts;
    if (this.#stopped || this.#mapped.size === memory.count) return;
    this.#map(
      memory.sharedRanges().filter(({ iova }) => !this.#mapped.has(iova)),
    );
  }

  #map(ranges: readonly SharedRange[]): void {
    if (this.#stopped || ranges.length === 0) return;
    for (const { iova } of ranges) this.#mapped.add(iova);
    this.#tell({ op: "map", ranges });
  }
}
