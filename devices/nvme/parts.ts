/**
 * The parts of a controller, made and put together.
 *
 * @module
 */

import type { Saved } from "../../src/os/resource_bag.ts";
import type { BlockBackend } from "../../src/backend/block/contract.ts";
import type { BlockOptions } from "../../src/backend/block/options.ts";
import { formatSize } from "../../src/core/size.ts";
import type { DeviceContext, SharedMemory } from "../../src/pci/device.ts";
import { AdminCommands } from "./admin/admin.ts";
import type { Command } from "./command/command.ts";
import type { Crew } from "./crew.ts";
import { NvmeCounters } from "./counters.ts";
import { DataPointer } from "./command/data_pointer.ts";
import { IN_FLIGHT, NVME_PAGE_SHIFT_MIN, NvmeSc } from "./defs.ts";
import { Doorbells } from "./queue/doorbells.ts";
import { Engine } from "./command/engine.ts";
import { AsyncEvents } from "./admin/events.ts";
import { Features } from "./admin/features.ts";
import { type ControllerIdentity, Identify } from "./admin/identify.ts";
import { InterruptLines } from "./queue/interrupt_lines.ts";
import { IoCommands } from "./io/io.ts";
import { LogPages } from "./admin/log_pages.ts";
import type { NamespaceSet } from "./io/namespace.ts";
import { interruptVectors } from "./pci_spec.ts";
import { QueueSet } from "./queue/queue_set.ts";
import { NvmeRegisters } from "./registers.ts";
import { NVME_STATE_VERSION, type NvmeState } from "./state.ts";

/** What a controller is like. */
export interface NvmeControllerOptions {
  readonly identity: ControllerIdentity;
  /** I/O queue pairs, 1–64. */
  readonly queues: number;
  /** The largest size of an I/O queue, 2–4096. */
  readonly queueEntries: number;
  /** Whether there is MSI-X; else all queues share the one vector of MSI and the pin. */
  readonly msix: boolean;
  /** Whether clients may map the doorbells, which are then polled. */
  readonly mapDoorbells: boolean;
  /** Opens storage for namespaces that are added at run time; without it there are none. */
  readonly open?: (block: BlockOptions, given?: Saved<unknown>) => BlockBackend;
}

/** What the parts ask of their controller. */
export interface ControllerHooks {
  /** A doorbell was written with a value that cannot be. */
  readonly onInvalidDoorbell: () => void;
  /** A command ended with an error. */
  readonly onCommandError: (command: Command) => void;
  /** What the controller began on its own account has ended. */
  readonly onInternal: () => void;
  /** Something is to be done in a bottom half. */
  readonly wake: () => void;
  /** A submission queue is gone whose deletion another thread has asked for. */
  readonly onQueueEnded: (qid: number) => void;
}

/** The most bytes of a command, unless a back end takes less. */
const TRANSFER_MAX_BYTES = 1 << 20;
/** The most segments of a command: the pages of the longest one, with some to spare for SGLs of small pieces. */
const SEGMENTS = 512;

/** Everything of a controller that is not its registers' meaning. */
export class ControllerParts {
  readonly registers: NvmeRegisters;
  readonly counters: NvmeCounters = new NvmeCounters();
  readonly namespaces: NamespaceSet;
  readonly data: DataPointer;
  readonly doorbells: Doorbells;
  readonly queues: QueueSet;
  readonly features: Features;
  readonly logs: LogPages;
  readonly events: AsyncEvents = new AsyncEvents();
  readonly identify: Identify;
  readonly io: IoCommands;
  readonly admin: AdminCommands;
  readonly engine: Engine;
  readonly lines: InterruptLines;
  readonly #maxTransferBytes: number;
  /** The twins on other threads; null without any, and in a twin. */
  crew: Crew | null = null;

  /** @param page The doorbells when clients may map them */
  constructor(
    context: DeviceContext,
    options: NvmeControllerOptions,
    namespaces: NamespaceSet,
    page: SharedMemory | null,
    hooks: ControllerHooks,
  ) {
    const { memory, loop, interrupts } = context;
    const { identity, queues, queueEntries } = options;
    const mdts = transferShift(namespaces);
    const maxTransferBytes = 2 ** (mdts + NVME_PAGE_SHIFT_MIN);
    const { counters } = this;
    this.#maxTransferBytes = maxTransferBytes;
    this.namespaces = namespaces;
    this.registers = new NvmeRegisters(queueEntries);
    this.data = new DataPointer(memory);
    this.doorbells = new Doorbells(memory, queues + 1, page?.bytes ?? null);
    this.queues = this.#makeQueues(context, options, hooks);
    this.features = this.#makeFeatures(options);
    this.logs = new LogPages({
      loop,
      counters,
      features: this.features,
      firmware: identity.firmware,
    });
    this.io = new IoCommands({
      memory,
      namespaces,
      data: this.data,
      counters,
      maxTransferBytes,
      segments: SEGMENTS,
      finish: (command, status) => this.engine.finish(command, status),
    });
    this.identify = new Identify(identity, namespaces, mdts);
    this.admin = this.#makeAdmin(context, maxTransferBytes);
    this.engine = this.#makeEngine(context, hooks);
    this.lines = new InterruptLines({
      interrupts,
      loop,
      queues: this.queues,
      features: this.features,
      counters,
      vectors: interruptVectors(options),
      wake: hooks.wake,
    });
  }

  /** How many commands were fetched and are to come to an end; those that wait for an event may wait for ever. */
  get inFlight(): number {
    return this.engine.busy - this.events.waiting;
  }

  /**
   * Makes storage of a namespace that comes late do what the driver was told of all of them.
   *
   * @throws {Error} When it cannot
   */
  admit(backend: BlockBackend): void {
    const { description, info } = backend;
    if (info.maxTransferBytes < this.#maxTransferBytes) {
      throw new Error(
        `Cannot add ${description}: it takes ${
          formatSize(info.maxTransferBytes)
        } at a time, and the driver was told ${
          formatSize(this.#maxTransferBytes)
        }`,
      );
    }
    // A driver that knows of no cache, or has switched it off, does not flush.
    const flushes = this.namespaces.volatileCache && this.features.writeCache;
    if (flushes || !info.volatileCache) return;
    if (backend.setWriteCache(false) < 0) {
      throw new Error(
        `Cannot add ${description}: its write cache cannot be switched off, and the driver does not flush`,
      );
    }
  }

  /** Everything but whether the controller is running, while nothing is in flight. */
  save(): Omit<NvmeState, "running" | "resetAsked"> {
    const { serial, subnqn } = this.identify.identity;
    return {
      version: NVME_STATE_VERSION,
      serial,
      subnqn,
      registers: this.registers.save(),
      queues: this.queues.save(),
      doorbells: this.doorbells.save(),
      features: this.features.save(),
      events: this.events.save(),
      logs: this.logs.save(),
      counters: this.counters.toRecord(),
      namespaces: this.namespaces.all.map(({ nsid, lbaShift, blocks }) => (
        { nsid, lbaShift, blocks }
      )),
    };
  }

  /** Takes over a state that was checked, on parts just made. */
  load(state: NvmeState): void {
    this.identify.rename(state.serial, state.subnqn);
    this.namespaces.rename(state.serial);
    this.registers.load(state.registers);
    const { pageShift } = this.registers;
    this.data.setPageShift(pageShift);
    this.queues.load(state.queues, 2 ** pageShift);
    this.doorbells.load(state.doorbells);
    this.features.load(state.features);
    this.logs.load(state.logs);
    this.counters.load(state.counters);
    this.events.load(state.events);
    for (const { cid, nsid } of state.events.held) {
      this.events.hold(
        this.engine.restore(this.queues.sq(0)!, cid, nsid),
      );
    }
  }

  /** Ends a command that waits for an event or another command. @returns Whether there was one */
  abort(sqid: number, cid: number): boolean {
    const itsCq = this.queues.sq(sqid)?.cq;
    if (itsCq?.foreign) return this.crew!.abort(itsCq.qid, sqid, cid);
    const command = this.engine.find(sqid, cid);
    if (command === null) return false;
    // A command that waits for an event has no room of its own for its completion.
    const { cq } = command.sq!;
    if (!command.reserved && !this.queues.hasRoom(cq)) return false;
    if (!this.events.cancel(command) && !this.io.cancel(command)) return false;
    if (!command.reserved) {
      command.reserved = true;
      cq.reserved++;
    }
    this.engine.finish(command, NvmeSc.ABORT_REQ);
    return true;
  }

  #makeQueues(
    context: DeviceContext,
    options: NvmeControllerOptions,
    hooks: ControllerHooks,
  ): QueueSet {
    return new QueueSet({
      memory: context.memory,
      doorbells: this.doorbells,
      pairs: options.queues,
      maxEntries: options.queueEntries,
      vectors: interruptVectors(options),
      cc: () => this.registers.cc,
      posted: context.posted,
      maskable: () => context.interrupts.mode !== "msix",
      wake: hooks.wake,
      onInvalidValue: hooks.onInvalidDoorbell,
      onEnded: hooks.onQueueEnded,
    });
  }

  #makeFeatures(options: NvmeControllerOptions): Features {
    return new Features(
      {
        volatileCache: () => this.namespaces.volatileCache,
        setWriteCache: (on) => this.namespaces.setWriteCache(on),
        hasIoQueues: () => this.queues.hasIoQueues,
        namespaces: this.namespaces,
      },
      options.queues,
      interruptVectors(options),
    );
  }

  #makeAdmin(
    context: DeviceContext,
    maxTransferBytes: number,
  ): AdminCommands {
    return new AdminCommands({
      memory: context.memory,
      data: this.data,
      queues: this.queues,
      doorbells: this.doorbells,
      identify: this.identify,
      features: this.features,
      logs: this.logs,
      events: this.events,
      maxTransferBytes,
      pageBytes: () => 2 ** this.registers.pageShift,
      abort: (sqid, cid) => this.abort(sqid, cid),
      shareFeatures: () => this.crew?.setFeatures(this.features.save()),
      shareBuffers: (shadowIova, eventIova) =>
        this.crew?.setBuffers(shadowIova, eventIova) ?? true,
    });
  }

  #makeEngine(context: DeviceContext, hooks: ControllerHooks): Engine {
    return new Engine({
      memory: context.memory,
      queues: this.queues,
      counters: this.counters,
      segments: SEGMENTS,
      burst: () => this.features.arbitrationBurst,
      startAdmin: (command, sqe) => this.#startAdmin(command, sqe),
      startIo: (command, sqe) => this.io.start(command, sqe),
      resumeIo: (command, result) => this.io.resume(command, result),
      onError: hooks.onCommandError,
      onInternal: hooks.onInternal,
      wake: hooks.wake,
    });
  }

  #startAdmin(command: Command, sqe: Uint32Array): number {
    const status = this.admin.start(command, sqe);
    if (status === IN_FLIGHT && this.events.holds(command)) {
      // It may wait for ever, and must not keep room from others meanwhile.
      command.reserved = false;
      command.sq!.cq.reserved--;
    }
    return status;
  }
}

/** MDTS: what every back end takes in one request, as a power of two of 4 KiB. */
function transferShift(namespaces: NamespaceSet): number {
  const most = Math.min(
    TRANSFER_MAX_BYTES,
    ...namespaces.all.map((ns) => ns.backend.info.maxTransferBytes),
  );
  return Math.max(Math.floor(Math.log2(most)) - NVME_PAGE_SHIFT_MIN, 1);
}
