/**
 * Queues of a controller that one thread serves: commands from their submission queues through storage to their completion
 * queues.
 *
 * @module
 */

import type { Poller, Timer } from "../../../src/loop/event_loop.ts";
import { LookTimer } from "../../../src/loop/look_timer.ts";
import { RING_ABSENCE_MS } from "../../../src/memory/guest_memory.ts";
import type { DeviceContext } from "../../../src/pci/context.ts";
import type { QueueFeatures } from "../admin/features.ts";
import type { Command } from "../command/engine.ts";
import { DataPointer } from "../command/data_pointer.ts";
import { Engine } from "../command/engine.ts";
import { Counters, countersOf } from "../../../src/core/counters.ts";
import { NVME_COUNTERS, NvmeCounter } from "../counters.ts";
import { NVME_SC_MORE, NvmeSc } from "../defs.ts";
import { ErrorLog, isUnmetQuestion } from "./error_log.ts";
import { IoCommands } from "./io.ts";
import { Namespace, NamespaceSet, type NamespaceStorage } from "./namespace.ts";
import { type DoorbellBuffers, Doorbells } from "../queue/doorbells.ts";
import { InterruptLines } from "../queue/interrupt_lines.ts";
import type { QueueSetState } from "../queue/queue.ts";
import { QueueSet } from "../queue/queue_set.ts";
import type { SharedWords } from "../threads/shared_words.ts";

/** Decisions of the control thread about all queues. Plain data. */
export interface QueueSettings {
  /** True while commands may be fetched and completions posted: CSTS.RDY, and no reset asked for. */
  readonly running: boolean;
  /** The memory page size, as a power of two. */
  readonly pageShift: number;
  /** INTMS. */
  readonly interruptMask: number;
  readonly features: QueueFeatures;
  /** Those of Doorbell Buffer Config; null without. */
  readonly buffers: DoorbellBuffers | null;
  /** Numbers and sizes of all namespaces. */
  readonly namespaces: readonly {
    readonly nsid: number;
    readonly blocks: number;
  }[];
}

/** Orders of the control thread to the queues of a thread. Plain data. */
export type QueueMessage =
  | { readonly op: "configure"; readonly settings: QueueSettings }
  /** Everything as after a controller reset, but the settings. */
  | { readonly op: "reset" }
  /** Completes what is with the storage. */
  | { readonly op: "drain" }
  /** Stops touching guest memory. */
  | { readonly op: "stop" }
  /** Goes on after stop and hold. */
  | { readonly op: "start" }
  /** Fetches nothing, though all else goes on. Answered with the number of commands that were fetched and are not completed. */
  | { readonly op: "hold" }
  /** Answered with the number of unfinished requests, see {@linkcode PciDevice.unfinished}. */
  | {
    readonly op: "unfinished";
    readonly iova: number | undefined;
    readonly lengthBytes: number | undefined;
  }
  | { readonly op: "add"; readonly queues: QueueSetState }
  | { readonly op: "endCq"; readonly qid: number }
  /** Answered with true when it is gone; if not, {@linkcode QueuesListener.onQueueEnded} tells when it is. */
  | { readonly op: "endSq"; readonly qid: number }
  /** Ends a command that waits. Answered with true when there was one. */
  | { readonly op: "abort"; readonly sqid: number; readonly cid: number }
  /** A completion queue's head has moved: whether the INTA# line stays up is to be known at once. */
  | { readonly op: "look" }
  /** Doorbell Buffer Config. Answered with true when the buffers are mapped. */
  | { readonly op: "buffers"; readonly buffers: DoorbellBuffers }
  /** Answered with a {@linkcode QueueSetState} of all queues. */
  | { readonly op: "positions" };

/** Listener of {@linkcode NvmeQueues}. */
export interface QueuesListener {
  /** A doorbell was written with a value that cannot be. */
  onInvalidDoorbell(): void;
  /** The driver did what the controller cannot go on from. */
  onFailure(reason: string): void;
  /** A submission queue is gone that had commands in flight when it was ended. */
  onQueueEnded(qid: number): void;
  /** This thread wants the INTA# line up, or not any more. */
  onLine(): void;
  /** A namespace has another size. */
  onNamespaceChanged?(ns: Namespace): void;
  /** The flush that {@linkcode IoCommands.flushAll} began on the controller's own account has ended. */
  onInternal?(): void;
  /** Executes an admin command. @returns A status, or IN_FLIGHT */
  startAdmin?(command: Command, sqe: Uint32Array): number;
  /** Takes an admin command away that waits. @returns True when it waited */
  cancelAdmin?(command: Command): boolean;
}

/** Parts of {@linkcode NvmeQueues}. */
export interface NvmeQueuesParts {
  readonly context: Pick<
    DeviceContext,
    "memory" | "interrupts" | "loop" | "posted"
  >;
  readonly words: SharedWords;
  /** I/O queue pairs that the controller has. */
  readonly pairs: number;
  /** Interrupt vectors that the controller has. */
  readonly vectors: number;
  readonly maxTransferBytes: number;
  /** True when another thread writes the doorbell registers. */
  readonly remote: boolean;
  /** Schedules {@linkcode NvmeQueues.run}. */
  readonly wake: () => void;
  readonly listener: QueuesListener;
}

/** The most segments of a command: the pages of the longest one, with some to spare for SGLs of small pieces. */
const SEGMENTS = 512;

/**
 * The queues of one thread, and what serves them.
 *
 * ```text
 *   idle ⇄ running (settings), in each of which they may be held (nothing is fetched) or stopped (no guest memory is touched)
 *     ↺ reset
 * ```
 * The thread's namespaces are here too, each with an opening of its own of the storage. All commands are fetched, executed
 * and completed in {@linkcode NvmeQueues.run}, in a bottom half or when polling finds something.
 */
export class NvmeQueues {
  readonly set: QueueSet;
  readonly doorbells: Doorbells;
  readonly namespaces: NamespaceSet = new NamespaceSet();
  readonly data: DataPointer;
  readonly engine: Engine;
  readonly io: IoCommands;
  readonly lines: InterruptLines;
  readonly counters: Counters<typeof NVME_COUNTERS> = new Counters(
    NVME_COUNTERS,
  );
  readonly errors: ErrorLog;
  readonly parts: NvmeQueuesParts;
  readonly #poller: Poller;
  /** Looks at mapped doorbells. */
  readonly #doorbellTimer: LookTimer | null;
  /** Armed while a queue is wanted that is not mapped. */
  readonly #absence: Timer;
  #absent = false;
  readonly #unsubscribe: () => void;
  #running = false;
  #stopped = false;
  #holding = false;
  #interruptMask = 0;

  constructor(parts: NvmeQueuesParts) {
    const { context, words, listener, wake } = parts;
    const { memory, loop } = context;
    const { counters, namespaces } = this;
    this.parts = parts;
    this.errors = new ErrorLog(words);
    this.data = new DataPointer(memory);
    this.doorbells = new Doorbells(memory, words);
    this.set = new QueueSet({
      memory,
      doorbells: this.doorbells,
      pairs: parts.pairs,
      posted: context.posted,
      maskable: () => context.interrupts.mode !== "msix",
      wake,
      onInvalidValue: () => this.refuseDoorbell(),
      onEnded: (qid) => listener.onQueueEnded(qid),
    });
    this.io = new IoCommands({
      memory,
      namespaces,
      data: this.data,
      counters,
      maxTransferBytes: parts.maxTransferBytes,
      segments: SEGMENTS,
      finish: (command, status) => this.engine.finish(command, status),
    });
    this.engine = new Engine({
      memory,
      queues: this.set,
      counters,
      segments: SEGMENTS,
      start: (command, sqe) =>
        command.sq!.qid === 0
          ? listener.startAdmin!(command, sqe)
          : this.io.start(command, sqe),
      resume: (command, result) => this.io.resume(command, result),
      onError: (command) => this.#onCommandError(command),
      onInternal: () => listener.onInternal?.(),
      wake,
    });
    this.lines = new InterruptLines({
      interrupts: context.interrupts,
      loop,
      words,
      queues: this.set,
      counters,
      vectors: parts.vectors,
      wake,
      onLine: () => listener.onLine(),
    });
    this.#doorbellTimer = words.mapped
      ? new LookTimer(loop, () => this.#onDoorbellTimer())
      : null;
    this.#poller = loop.poll(() => this.#poll(), {
      begin: () => {
        this.#doorbellTimer?.beginPolling();
        this.set.beginPolling();
      },
      end: () => this.#endPolling(),
    });
    this.#absence = loop.timer(() => this.#onAbsence());
    this.#unsubscribe = memory.subscribe({
      onUnmap: (iova, lengthBytes) => this.#onUnmap(iova, lengthBytes),
      onChange: wake,
      onReach: () => {
        const { engine, doorbells } = this;
        if (engine.awaitsReach || doorbells.awaitsReach) wake();
      },
    });
  }

  get stopped(): boolean {
    return this.#stopped;
  }

  get holding(): boolean {
    return this.#holding;
  }

  /** True while guest memory may be touched. */
  get live(): boolean {
    return this.#running && !this.#stopped;
  }

  /** Carries out an order of the control thread. @returns The answer */
  handle(message: QueueMessage): unknown {
    const { set } = this;
    switch (message.op) {
      case "configure":
        return this.#configure(message.settings);
      case "reset":
        return this.#reset();
      case "drain":
        this.namespaces.drain();
        this.engine.settle();
        return this.tell();
      case "stop":
        return this.#stop();
      case "start":
        return this.#start();
      case "hold":
        return this.#hold();
      case "unfinished": {
        const { iova, lengthBytes } = message;
        const isAll = iova === undefined ||
          this.engine.uses(iova, lengthBytes!);
        return isAll ? this.namespaces.unfinished : 0;
      }
      case "add":
        return set.add(message.queues);
      case "endCq":
        return set.endCq(message.qid);
      case "endSq":
        return set.endSq(message.qid);
      case "abort":
        return this.#abort(message.sqid, message.cid);
      case "look":
        this.look();
        return this.live ? this.tell() : undefined;
      case "buffers":
        return set.configureDoorbells(message.buffers);
      case "positions":
        return set.save();
      default:
        return message satisfies never;
    }
  }

  /** Takes storage in as a namespace, under a number that is free; the namespace closes it. */
  addNamespace(storage: NamespaceStorage): Namespace {
    const ns = new Namespace(storage);
    ns.backend.start({
      onComplete: (request, result) => this.engine.returned(request, result),
      onResize: () => {
        ns.blocks = ns.storedBlocks;
        this.parts.listener.onNamespaceChanged?.(ns);
      },
    });
    this.namespaces.add(ns);
    return ns;
  }

  /** Does everything there is to do, or as much as fits one turn of the loop. */
  run(): void {
    const { engine, namespaces } = this;
    engine.settleInternal();
    namespaces.commit();
    if (!this.live) return;
    engine.settle();
    if (!this.#holding && engine.fetch()) this.parts.wake();
    namespaces.commit();
    engine.settle();
    if (!this.#running) return;
    this.#awaitMemory();
    this.tell();
  }

  /** Raises interrupts for what was completed. */
  tell(): void {
    this.lines.flush(this.#interruptMask);
  }

  /** Looks at doorbells that were rung while nobody looked, or that another thread was told of. */
  look(): void {
    if (!this.live) return;
    this.set.update();
    this.parts.wake();
  }

  /** A doorbell was written with a value that cannot be. */
  refuseDoorbell(): void {
    this.counters.add(NvmeCounter.invalidDoorbells, 1);
    this.errors.add(NvmeSc.INVALID_FIELD);
    this.parts.listener.onInvalidDoorbell();
  }

  close(): void {
    this.#running = false;
    this.#unsubscribe();
    this.#poller.close();
    this.#doorbellTimer?.close();
    this.#absence.close();
    this.lines.close();
    for (const { backend } of this.namespaces.all) backend.close();
    this.io.reset();
    this.engine.reset();
  }

  /** Counters by name, storage included. */
  record(): Record<string, number> {
    return Object.assign(
      this.counters.toRecord(),
      ...this.namespaces.all.map(({ nsid, backend }) =>
        countersOf(`ns${nsid}`, backend.counters?.())
      ),
    );
  }

  #configure(settings: QueueSettings): void {
    const { running, pageShift, features, namespaces, interruptMask } =
      settings;
    this.#running = running;
    this.data.setPageShift(pageShift);
    this.doorbells.use(settings.buffers);
    this.engine.burst = features.burst;
    this.lines.features = features;
    this.namespaces.setWriteCache(features.writeCache);
    for (const ns of this.namespaces.all) {
      const its = namespaces.find(({ nsid }) => nsid === ns.nsid);
      if (its === undefined) this.namespaces.remove(ns);
      else if (its.blocks !== ns.blocks) ns.backend.rescan?.();
    }
    const masks = interruptMask !== this.#interruptMask;
    this.#interruptMask = interruptMask;
    if (!this.live) return;
    if (masks) this.lines.maskChanged(interruptMask);
    this.#doorbellTimer?.start();
    this.parts.wake();
  }

  #abort(sqid: number, cid: number): boolean {
    const command = this.engine.find(sqid, cid);
    if (command === null) return false;
    // A command that waits for an event has no room of its own for its completion.
    const { cq } = command.sq!;
    if (!command.reserved && !this.set.hasRoom(cq)) return false;
    const { listener, wake } = this.parts;
    if (!listener.cancelAdmin?.(command) && !this.io.cancel(command)) {
      return false;
    }
    this.engine.reserve(command);
    this.engine.finish(command, NvmeSc.ABORT_REQ);
    wake();
    return true;
  }

  #stop(): void {
    this.#stopped = true;
    this.#doorbellTimer?.stop();
    // No request may be filling guest memory; what is done now is told after start.
    this.namespaces.drain();
  }

  #start(): void {
    this.#stopped = this.#holding = false;
    this.look();
    this.parts.wake();
    if (this.#running) this.#doorbellTimer?.start();
  }

  #hold(): number {
    if (!this.#holding) {
      this.#holding = true;
      // What an interrupt was to tell about later is told now.
      this.lines.hurry();
    }
    return this.engine.busy;
  }

  #reset(): void {
    this.#running = false;
    this.#doorbellTimer?.stop();
    this.#absence.cancel();
    this.#absent = false;
    this.namespaces.drain();
    this.io.reset();
    this.engine.reset();
    this.set.reset();
    this.lines.reset();
  }

  #onCommandError(command: Command): void {
    const { qid } = command.sq!;
    this.counters.add(NvmeCounter.failedCommands, 1);
    if (qid === 0 && isUnmetQuestion(command.opcode, command.status)) return;
    command.status |= NVME_SC_MORE;
    this.errors.addCommand(qid, command);
  }

  /** Behind an IOMMU memory is unmapped for each command: only those that use it have to come to an end before. */
  #onUnmap(iova: number, lengthBytes: number): void {
    if (this.engine.uses(iova, lengthBytes)) this.namespaces.drain();
  }

  /** Gives the client time to map a queue again that is wanted. */
  #awaitMemory(): void {
    const awaits = this.engine.awaitsMemory || this.doorbells.missing;
    this.engine.awaitsMemory = false;
    if (!awaits || this.#absent) return;
    this.#absent = true;
    this.#absence.arm(RING_ABSENCE_MS);
  }

  #onAbsence(): void {
    this.#absent = false;
    if (!this.live) return;
    const missing = this.set.missing();
    if (missing === null) return;
    this.#running = false;
    this.parts.listener.onFailure(missing);
  }

  /** Looks for commands without being told. */
  #poll(): boolean {
    if (!this.live) return false;
    const { usesPin } = this.lines;
    if (this.#holding) {
      // The line goes down with what drivers consume, but nothing new is looked for.
      if (usesPin) this.tell();
      return false;
    }
    const { shadowed } = this.doorbells;
    const isMapped = this.#doorbellTimer !== null;
    if (!isMapped && !shadowed && !this.parts.remote) return false;
    if (!this.set.hasNews(usesPin)) return false;
    const { pageKicks, polledKicks } = NvmeCounter;
    if (isMapped) this.counters.add(pageKicks, 1);
    else if (shadowed) this.counters.add(polledKicks, 1);
    this.run();
    return true;
  }

  #endPolling(): boolean {
    this.#doorbellTimer?.endPolling();
    // What does not run touches no guest memory: it asks for doorbells when it runs.
    const found = this.set.endPolling(this.live) && !this.#holding;
    if (found) this.parts.wake();
    return found;
  }

  #onDoorbellTimer(): boolean {
    if (this.live) return this.#poll();
    this.#doorbellTimer?.stop();
    return false;
  }
}
