/**
 * The NVM Express controller as a PCI device (NVM Express 1.4).
 *
 * @module
 */

import { MDTS_MAX, MDTS_MIN, type NvmeOptions } from "./options.ts";
import type { BlockBackend } from "../../src/backend/block/contract.ts";
import {
  blockDriver,
  type BlockOptions,
} from "../../src/backend/block/options.ts";
import { formatSize } from "../../src/core/size.ts";
import { field } from "../../src/core/bits.ts";
import type { BottomHalf } from "../../src/loop/event_loop.ts";
import type { DeviceContext } from "../../src/pci/context.ts";
import type {
  AccessWidth,
  DeviceCommand,
  PciDevice,
  PciSpec,
  ResetReason,
} from "../../src/pci/device.ts";
import type { DeviceState } from "../../src/core/state_form.ts";
import type { ResourceBag } from "../../src/os/resource_bag.ts";
import {
  CONTROL_GROUP,
  type QueueThreads,
} from "../../src/pci/queue_threads.ts";
import { AdminCommands } from "./admin/admin.ts";
import { AsyncEvents, NvmeEvent } from "./admin/events.ts";
import { Features } from "./admin/features.ts";
import { type ControllerIdentity, Identify } from "./admin/identify.ts";
import { LogPages } from "./admin/log_pages.ts";
import type { Command } from "./command/engine.ts";
import { namespaceCommands } from "./commands.ts";
import { NvmeCounter } from "./counters.ts";
import {
  IN_FLIGHT,
  NVME_CC,
  NVME_MPS_MAX,
  NVME_PAGE_SHIFT_MIN,
  NVME_REG_DBS,
  NvmeAdmin,
  NvmeSc,
  NvmeShst,
} from "./defs.ts";
import type { Namespace, NamespaceStorage } from "./io/namespace.ts";
import { DOORBELL_PAGE_BYTES, interruptVectors, makeSpec } from "./pci_spec.ts";
import type {
  NamespaceGrant,
  QueueGrant,
  QueueReport,
} from "./threads/queue_service.ts";
import { groupOf, QueueTable } from "./admin/queue_table.ts";
import { NvmeQueues, type QueueSettings } from "./io/queues.ts";
import { NvmeRegisters } from "./registers.ts";
import { SharedWords } from "./threads/shared_words.ts";
import { NVME_FORM, type NvmeState, parseNvmeState } from "./state.ts";

/** Properties of a controller. */
export interface NvmeControllerOptions extends
  Pick<
    NvmeOptions,
    "queues" | "queueEntries" | "msix" | "mapDoorbells"
  > {
  readonly identity: ControllerIdentity;
  /** Opens storage for namespaces that are added at run time; without it there are none. */
  readonly open?: (block: BlockOptions) => BlockBackend;
  /** Begins to open such that takes long; null for what opens at once. See `beginOpenBlockBackend`. */
  readonly beginOpen?: (
    block: BlockOptions,
    tell: (outcome: BlockBackend | Error) => void,
  ) => Disposable | null;
  /** The most bytes of a command as a power of two of 4 KiB, unless a back end takes less; {@linkcode MDTS_MAX} unless told. */
  readonly mdts?: number;
}

/**
 * A controller: registers, the admin queue and all that its commands are about. I/O queues are served by the
 * {@linkcode NvmeQueues} of this thread, or of others.
 *
 * ```text
 *   disabled --CC.EN--> ready --CC.EN=0, reset--> disabled
 *                         ╰─ fatal error (CSTS.CFS) ──╯
 * ```
 * In each of these it may hold, which fetches no commands, or be stopped, which touches no guest memory.
 *
 * Register writes change registers and schedule the bottom half; all commands are fetched, executed and completed
 * there. A doorbell's value matters, and an eventfd carries none; so doorbells are never offered as ioeventfds. What
 * keeps them out of the message channel is Doorbell Buffer Config: then a doorbell is a store to guest memory and
 * rung only when the controller has nothing to do.
 */
export class NvmeController implements PciDevice {
  readonly spec: PciSpec;
  readonly commands: Readonly<Record<string, DeviceCommand>>;
  readonly #context: DeviceContext;
  readonly #options: NvmeControllerOptions;
  readonly #words: SharedWords;
  readonly #registers: NvmeRegisters;
  readonly #queues: NvmeQueues;
  readonly #table: QueueTable;
  readonly #features: Features;
  readonly #logs: LogPages;
  readonly #events: AsyncEvents = new AsyncEvents();
  readonly #identify: Identify;
  readonly #admin: AdminCommands;
  readonly #maxTransferBytes: number;
  /** Storage of namespaces to come. */
  readonly #openings = new Set<Disposable>();
  readonly #work: BottomHalf;
  /** See {@linkcode QueueSettings.running}. */
  #running = false;
  /** CC.MPS as it was when the controller was enabled. */
  #pageShift = NVME_PAGE_SHIFT_MIN;
  #resetAsked = false;
  /** Mistake of the driver that the controller cannot go on from. */
  #failure: string | null = null;

  /** @param storage Namespaces, all ids different */
  constructor(
    context: DeviceContext,
    options: NvmeControllerOptions,
    storage: readonly NamespaceStorage[],
  ) {
    const { identity, queues: pairs, queueEntries, mapDoorbells } = options;
    const mdts = transferShift(storage, options.mdts ?? MDTS_MAX);
    const vectors = interruptVectors(options);
    const maxTransferBytes = 2 ** (mdts + NVME_PAGE_SHIFT_MIN);
    const page = mapDoorbells
      ? context.createSharedMemory("nvme-doorbells", DOORBELL_PAGE_BYTES)
      : null;
    const words = new SharedWords(pairs + 1, page?.bytes ?? null);
    this.#context = context;
    this.#options = options;
    this.#maxTransferBytes = maxTransferBytes;
    this.spec = makeSpec(options, page);
    this.#words = words;
    this.#registers = new NvmeRegisters(queueEntries);
    this.#work = context.loop.bottomHalf(() => this.#run());
    const queues = this.#queues = new NvmeQueues({
      ...{ context, words, pairs, vectors, maxTransferBytes },
      remote: false,
      wake: () => this.#work.schedule(),
      listener: {
        onInvalidDoorbell: () => this.#raise(NvmeEvent.INVALID_DOORBELL_VALUE),
        onFailure: (reason) => this.#fail(reason, "use"),
        onQueueEnded: (qid) => this.#onQueueEnded(qid),
        onLine: () => this.#updateLine(),
        onNamespaceChanged: (ns) => this.#onNamespaceChanged(ns),
        onInternal: () => this.#onShutdownFlushed(),
        startAdmin: (command, sqe) => this.#startAdmin(command, sqe),
        cancelAdmin: (command) => this.#events.cancel(command),
      },
    });
    const { namespaces } = queues;
    const table = this.#table = new QueueTable(
      queues,
      this.#registers,
      queueEntries,
    );
    const features = this.#features = new Features(
      namespaces,
      () => table.hasIoQueues,
      pairs,
      vectors,
    );
    const logs = this.#logs = new LogPages({
      ...{ queues, features },
      firmware: identity.firmware,
      gather: () => this.#gather(),
    });
    const identify = this.#identify = new Identify(identity, namespaces, mdts);
    this.#admin = new AdminCommands({
      ...{ queues, table, identify, features, logs },
      events: this.#events,
      onFeatures: () => this.#configure(),
    });
    this.commands = namespaceCommands({
      namespaces: queues.namespaces,
      whilePaused: (action) => this.#whilePaused(action),
      add: (nsid, block, tell) => this.#add(nsid, block, tell),
      remove: (ns) => this.#removeNamespace(ns),
    });
    for (const each of storage) queues.addNamespace(each);
    this.#configure();
  }

  /** Commands that this thread has fetched and not completed, for whoever looks at the state. */
  inFlight(): readonly Command[] {
    return this.#queues.engine.inFlight();
  }

  readBar(bar: number, offset: number, width: AccessWidth): number {
    return bar === 0 ? this.#registers.read(offset, width) : 0;
  }

  writeBar(
    bar: number,
    offset: number,
    width: AccessWidth,
    value: number,
  ): void {
    if (bar !== 0) return;
    if (offset >= NVME_REG_DBS) return this.#ring(offset, width, value);
    const registers = this.#registers;
    const { cc, interruptMask } = registers;
    registers.write(offset, width, value);
    if (registers.interruptMask !== interruptMask) {
      this.#configure();
      this.#updateLine();
    } else if (registers.cc !== cc) this.#onConfiguration(cc);
  }

  reset(reason: ResetReason): void {
    if (reason === "client_gone") this.#logs.powerLost();
    this.#resetController();
    this.#registers.reset();
  }

  stop(): void {
    this.#table.stop();
  }

  start(): void {
    if (this.#queues.stopped || this.#queues.holding) this.#table.start();
  }

  hold(): number {
    return this.#table.sum({ op: "hold" }) - this.#events.waiting;
  }

  unfinished(iova?: number, lengthBytes?: number): number {
    return this.#table.sum({ op: "unfinished", iova, lengthBytes });
  }

  endsRequests(
    bar: number,
    offset: number,
    width: AccessWidth,
    value: number,
  ): boolean {
    return bar === 0 && this.#registers.endsRequests(offset, width, value);
  }

  place(threads: QueueThreads | null): void {
    this.#gather();
    this.#table.detach();
    if (threads === null || !this.#isShareable) return;
    this.#table.attach(threads, {
      grant: (bag) => this.#grant(bag),
      onLine: () => this.#updateLine(),
      onReport: () => this.#gather(),
    });
  }

  queueGroups(): readonly number[] {
    return Array.from(
      { length: this.#options.queues + 1 },
      (_, qid) => this.#isShareable ? groupOf(qid) : CONTROL_GROUP,
    );
  }

  save(): DeviceState<NvmeState> {
    const { engine, doorbells, counters, namespaces } = this.#queues;
    const inFlight = engine.busy - this.#events.waiting;
    if (inFlight > 0) {
      throw new Error(
        `Cannot save the NVMe controller: ${inFlight} commands are in flight, hold it until there are none`,
      );
    }
    this.#gather();
    const { serial, subnqn } = this.#identify.identity;
    return NVME_FORM.write({
      ...{ serial, subnqn },
      running: this.#running,
      resetAsked: this.#resetAsked,
      registers: this.#registers.save(),
      queues: this.#table.save(),
      doorbells: doorbells.save(),
      features: this.#features.save(),
      events: this.#events.save(),
      logs: this.#logs.save(),
      counters: counters.toRecord(),
      namespaces: namespaces.all.map((ns) => {
        const { nsid, lbaShift, blocks, block = null } = ns;
        const backend = ns.backend.save?.() ?? null;
        return { nsid, lbaShift, blocks, block, backend };
      }),
    });
  }

  load(value: unknown): void {
    const { queues: pairs, queueEntries, mapDoorbells } = this.#options;
    const { engine, doorbells, counters, set, namespaces } = this.#queues;
    const state = parseNvmeState(NVME_FORM.read(value), {
      ...{ pairs, mapDoorbells },
      vectors: interruptVectors(this.#options),
      maxEntries: queueEntries,
      namespaces: namespaces.all,
    });
    // Not even a completion may reach the driver before start.
    this.stop();
    this.hold();
    this.#identify.rename(state.serial, state.subnqn);
    this.#registers.load(state.registers);
    this.#pageShift = this.#registers.pageShift;
    doorbells.load(state.doorbells);
    this.#table.load(state.queues);
    this.#features.load(state.features);
    this.#logs.load(state.logs);
    counters.restore(state.counters);
    this.#events.load(state.events);
    for (const { cid, nsid } of state.events.held) {
      this.#events.hold(engine.restore(set.sq(0)!, cid, nsid));
    }
    this.#resetAsked = state.resetAsked;
    this.#setRunning(state.running);
    for (const [i, { blocks }] of state.namespaces.entries()) {
      const ns = namespaces.all[i]!;
      // The storage has another size than the driver was told.
      if (ns.blocks !== blocks) this.#onNamespaceChanged(ns);
    }
  }

  handOver(bag: ResourceBag): void {
    const { all } = this.#queues.namespaces;
    const fixed = all.find(({ backend }) => backend.handOver === undefined);
    if (fixed !== undefined) {
      throw new Error(
        `Cannot move the NVMe controller: ${fixed.backend.description} stays on its thread`,
      );
    }
    for (const { nsid, backend } of all) {
      backend.handOver!(bag.at(`ns${nsid}`));
    }
  }

  counters(): Readonly<Record<string, number>> {
    return this.#queues.record();
  }

  info(): Readonly<Record<string, string>> {
    return { doorbells: this.#words.mapped ? "mmap" : "message" };
  }

  close(): void {
    this.#running = false;
    for (const opening of this.#openings) opening[Symbol.dispose]();
    this.#openings.clear();
    this.#table.close();
    this.#queues.close();
    // Whatever closing reported.
    this.#work.cancel();
  }

  get #isShareable(): boolean {
    const { all } = this.#queues.namespaces;
    return all.every(({ backend }) => backend.share !== undefined);
  }

  #grant(bag: ResourceBag): QueueGrant {
    const { queues: pairs, mapDoorbells } = this.#options;
    return {
      ...{ pairs, mapDoorbells },
      vectors: interruptVectors(this.#options),
      maxTransferBytes: this.#maxTransferBytes,
      namespaces: this.#queues.namespaces.all.map((ns) => shareOf(ns, bag)),
      settings: this.#settings(),
    };
  }

  /** Takes over what has happened on other threads. */
  #gather(): void {
    const reports = this.#table.callOthers({ op: "report" });
    for (const report of reports as QueueReport[]) {
      this.#queues.errors.merge(report.errors);
      this.#queues.counters.addAll(report.counts);
      for (const qid of report.ended) this.#onQueueEnded(qid);
      if (report.invalidDoorbell) {
        this.#raise(NvmeEvent.INVALID_DOORBELL_VALUE);
      }
      if (this.#running) this.#failure ??= report.failure;
    }
    this.#work.schedule();
  }

  #settings(): QueueSettings {
    const { doorbells, namespaces } = this.#queues;
    return {
      running: this.#running,
      pageShift: this.#pageShift,
      interruptMask: this.#registers.interruptMask,
      features: this.#features.forQueues(),
      buffers: doorbells.buffers,
      namespaces: namespaces.all.map(({ nsid, blocks }) => ({ nsid, blocks })),
    };
  }

  /** Has every thread know what was decided. */
  #configure(): void {
    this.#table.callAll({ op: "configure", settings: this.#settings() });
  }

  #setRunning(running: boolean): void {
    this.#running = running;
    this.#configure();
  }

  /** The INTA# line follows what any thread wants. */
  #updateLine(): void {
    this.#context.interrupts.setLevel(this.#words.lines > 0);
  }

  #raise(event: NvmeEvent): void {
    this.#events.raise(event);
    this.#work.schedule();
  }

  /** A doorbell was written by message. */
  #ring(offset: number, width: AccessWidth, value: number): void {
    const index = (offset - NVME_REG_DBS) / 4;
    if (width !== 4 || !this.#running) return;
    const { set, counters, doorbells, lines, stopped } = this.#queues;
    const qid = Math.floor(index / 2);
    const isHead = (index & 1) !== 0;
    counters.add(NvmeCounter.doorbells, 1);
    doorbells.refresh();
    if (!set.ring(qid, isHead, value)) {
      return this.#ringElsewhere(index, value, qid, isHead);
    }
    // Down at once: the driver ends its handler behind this write.
    if (isHead && lines.usesPin && !stopped) this.#queues.tell();
    this.#work.schedule();
  }

  /** A doorbell was written by message that is of no queue of this thread. */
  #ringElsewhere(
    index: number,
    value: number,
    qid: number,
    isHead: boolean,
  ): void {
    const { counters, errors, doorbells, lines } = this.#queues;
    const sq = isHead ? undefined : this.#table.sq(qid);
    const queue = isHead ? this.#table.cq(qid) : sq;
    if (queue === undefined) {
      errors.add(NvmeSc.QID_INVALID);
      counters.add(NvmeCounter.invalidDoorbells, 1);
      return this.#raise(NvmeEvent.INVALID_DOORBELL_REGISTER);
    }
    // Whether its queue can be there, beyond that, is for the other thread to say: it tells once of a value that stays.
    if (value >= queue.size) return this.#queues.refuseDoorbell();
    doorbells.write(index, value);
    if (isHead && lines.usesPin) {
      // Down at once: the driver ends its handler behind this write.
      this.#table.call(qid, { op: "look" });
      this.#updateLine();
    } else this.#table.wake(sq?.cqid ?? qid);
  }

  #onConfiguration(before: number): void {
    const registers = this.#registers;
    if ((before & ~registers.cc & 1) !== 0) {
      // From here on nothing of the driver's is touched; the rest takes time.
      this.#resetAsked = true;
      this.#setRunning(false);
    }
    if (registers.shutdownRequested) {
      this.#logs.inUse = false;
      if (registers.shutdownStatus === NvmeShst.NORMAL) {
        registers.shutdownStatus = NvmeShst.OCCUR;
      }
    }
    this.#work.schedule();
  }

  /** Does everything there is to do, or as much as fits one turn of the loop. */
  #run(): void {
    // Registers do what they say in any case: that takes no guest memory.
    this.#control();
    if (this.#failure !== null) this.#fail(this.#failure, "use");
    if (this.#queues.live) this.#tellEvents();
    this.#queues.run();
  }

  /** Carries out what CC asks for. */
  #control(): void {
    const registers = this.#registers;
    if (this.#resetAsked) {
      this.#queues.counters.add(NvmeCounter.controllerResets, 1);
      this.#resetController();
    }
    // One that is ready and does not run has been shut down: it takes a reset to have it run again.
    if (
      registers.enabled && !registers.ready && !this.#running &&
      !registers.fatal
    ) this.#enable();
    if (registers.shutdownStatus === NvmeShst.OCCUR) this.#shutDown();
  }

  #enable(): void {
    const { cc, pageShift } = this.#registers;
    const mps = field(cc, ...NVME_CC.MPS);
    if (mps > NVME_MPS_MAX) {
      return this.#fail(`the memory page size is 4 KiB << ${mps} (CC.MPS)`);
    }
    if (field(cc, ...NVME_CC.CSS) !== 0) {
      return this.#fail("the command set is not the NVM one (CC.CSS)");
    }
    if (field(cc, ...NVME_CC.AMS) !== 0) {
      return this.#fail("the arbitration is not round robin (CC.AMS)");
    }
    this.#pageShift = pageShift;
    const wrong = this.#table.createAdmin();
    if (wrong !== null) return this.#fail(wrong);
    this.#setRunning(true);
    // Enabled with CC.SHN set it is on its way down as before.
    if (!this.#registers.shutdownRequested) this.#logs.inUse = true;
    this.#registers.ready = true;
  }

  /** The driver did what the controller cannot go on from; a reset ends it. */
  #fail(reason: string, action = "enable"): void {
    this.#queues.counters.add(NvmeCounter.fatalErrors, 1);
    try {
      this.#forgetQueues();
    } finally {
      this.#registers.setFatal();
    }
    this.#context.log.warn(
      `the driver cannot ${action} the controller: ${reason}; it must reset it`,
      { event: "DEVICE_FAILED", reason },
    );
  }

  /** @throws {Error} When another thread may go on touching guest memory; the driver finds CSTS.RDY set as before */
  #resetController(): void {
    this.#resetAsked = false;
    let done = false;
    try {
      this.#forgetQueues();
      done = true;
    } finally {
      this.#logs.reset();
      this.#features.reset();
      const registers = this.#registers;
      const shutdown = registers.shutdownRequested;
      registers.resetController();
      // CC.SHN in the same write as CC.EN.
      if (shutdown) registers.shutdownStatus = NvmeShst.OCCUR;
      if (!done) {
        registers.ready = true;
        registers.setFatal();
      }
    }
    this.#configure();
  }

  /** There are no queues any more, and no commands. */
  #forgetQueues(): void {
    this.#running = false;
    try {
      this.#table.reset();
    } finally {
      this.#failure = null;
      this.#events.reset();
      this.#updateLine();
    }
  }

  /** CC.SHN: what was written becomes durable. */
  #shutDown(): void {
    const { engine, io } = this.#queues;
    const command = engine.takeInternal();
    // Already at it.
    if (command === null) return;
    this.#table.callOthers({ op: "drain" });
    const status = io.flushAll(command);
    if (status !== IN_FLIGHT) engine.finish(command, status);
  }

  /** The driver frees its queues, and the buffers of shadow doorbells, as soon as it sees this done. */
  #onShutdownFlushed(): void {
    this.#table.callAll({ op: "drain" });
    this.#setRunning(false);
    this.#registers.shutdownStatus = NvmeShst.CMPLT;
  }

  #startAdmin(command: Command, sqe: Uint32Array): number {
    const status = this.#admin.start(command, sqe);
    if (status === IN_FLIGHT && command.opcode === NvmeAdmin.ASYNC_EVENT) {
      // It may wait for ever, and must not keep room from others meanwhile.
      command.reserved = false;
      command.sq!.cq.reserved--;
      this.#work.schedule();
    }
    return status;
  }

  #onQueueEnded(qid: number): void {
    const deletion = this.#table.ended(qid);
    if (deletion === null) return;
    this.#queues.engine.finish(deletion, NvmeSc.SUCCESS);
    this.#work.schedule();
  }

  #tellEvents(): void {
    const { set, engine } = this.#queues;
    const admin = set.cq(0)!;
    while (this.#events.deliverable && set.hasRoom(admin)) {
      const command = this.#events.next();
      engine.reserve(command);
      engine.finish(command, NvmeSc.SUCCESS);
    }
  }

  /** Tells the log, the programs on the control socket and the driver. */
  #tellChanged(
    nsid: number,
    message: string,
    properties: Record<string, unknown>,
  ): void {
    this.#context.log.info(message, { ...properties, nsid });
    this.#logs.addChanged(nsid);
    if (this.#features.namespaceNotices) {
      this.#raise(NvmeEvent.NAMESPACE_CHANGED);
    }
  }

  /** The storage of a namespace has another size. */
  #onNamespaceChanged({ nsid, sizeBytes }: Namespace): void {
    this.#tellChanged(
      nsid,
      `namespace ${nsid} has ${formatSize(sizeBytes)} now`,
      { event: "RESIZED", sizeBytes },
    );
  }

  /** Does something that no other thread may see the middle of. */
  #whilePaused<T>(action: () => T): T {
    try {
      this.#table.callOthers({ op: "stop" });
      return action();
    } finally {
      try {
        this.#configure();
      } finally {
        if (!this.#queues.stopped) this.#table.callOthers({ op: "start" });
      }
    }
  }

  /** @throws {Error} With the reason; nothing is changed then, and nobody told */
  #add(
    nsid: number,
    block: BlockOptions,
    tell: (outcome: Namespace | Error) => void,
  ): void {
    const { open, beginOpen } = this.#options;
    if (open === undefined) {
      throw new Error("Cannot add a namespace: this model opens no storage");
    }
    this.#checkTransfer(
      `namespace ${nsid}`,
      blockDriver(block).maxTransferBytes ?? Infinity,
    );
    const finish = (backend: BlockBackend) =>
      this.#whilePaused(() => this.#addNamespace(nsid, block, backend));
    const opening = beginOpen?.(block, (outcome) => {
      this.#openings.delete(opening!);
      try {
        tell(outcome instanceof Error ? outcome : finish(outcome));
      } catch (error) {
        tell(error as Error);
      }
    }) ?? null;
    if (opening === null) tell(finish(open(block)));
    else this.#openings.add(opening);
  }

  /** @throws {Error} With the reason; nothing is changed then, and the storage closed */
  #addNamespace(
    nsid: number,
    block: BlockOptions,
    backend: BlockBackend,
  ): Namespace {
    try {
      this.#admit(backend);
    } catch (error) {
      backend.close();
      throw error;
    }
    const ns = this.#queues.addNamespace({ nsid, block, backend });
    try {
      this.#table.addNamespace((bag) => shareOf(ns, bag));
    } catch (error) {
      this.#queues.namespaces.remove(ns);
      throw error;
    }
    const { sizeBytes } = ns;
    this.#tellChanged(
      nsid,
      `namespace ${nsid} is there, of ${formatSize(sizeBytes)}`,
      { event: "NAMESPACE_ADDED", sizeBytes },
    );
    return ns;
  }

  /** @throws {Error} When the driver may ask for more at a time */
  #checkTransfer(what: string, maxBytes: number): void {
    if (maxBytes >= this.#maxTransferBytes) return;
    const shift = Math.floor(Math.log2(maxBytes)) - NVME_PAGE_SHIFT_MIN;
    const remedy = shift < MDTS_MIN
      ? ""
      : `; start the device with mdts=${shift} for that`;
    throw new Error(
      `Cannot add ${what}: its storage takes ${
        formatSize(maxBytes)
      } at a time, and the driver was told ${
        formatSize(this.#maxTransferBytes)
      }${remedy}`,
    );
  }

  /**
   * Makes storage of a namespace that comes late do what the driver was told of all of them.
   *
   * @throws {Error} When it cannot
   */
  #admit(backend: BlockBackend): void {
    const { description, info } = backend;
    this.#checkTransfer(description, info.maxTransferBytes);
    if (this.#table.isShared && backend.share === undefined) {
      throw new Error(
        `Cannot add ${description}: it is served by one IOThread, and this controller by several`,
      );
    }
    // A driver that knows of no cache, or has switched it off, does not flush.
    const { volatileCache } = this.#queues.namespaces;
    const flushes = volatileCache && this.#features.writeCache;
    if (flushes || !info.volatileCache) return;
    if (backend.setWriteCache(false) < 0) {
      throw new Error(
        `Cannot add ${description}: its write cache cannot be switched off, and the driver does not flush`,
      );
    }
  }

  #removeNamespace(ns: Namespace): void {
    const { nsid } = ns;
    this.#queues.namespaces.remove(ns);
    this.#tellChanged(nsid, `namespace ${nsid} is gone`, {
      event: "NAMESPACE_REMOVED",
    });
  }
}

/** Makes what another thread needs of a namespace. */
function shareOf(
  { nsid, block, backend }: Namespace,
  bag: ResourceBag,
): NamespaceGrant {
  return { nsid, block, state: backend.share!(bag.at(`ns${nsid}`)) };
}

/** MDTS: what every back end takes in one request, as a power of two of 4 KiB. */
function transferShift(
  storage: readonly NamespaceStorage[],
  wanted: number,
): number {
  const most = Math.min(
    ...storage.map(({ backend }) => backend.info.maxTransferBytes),
  );
  const taken = Math.floor(Math.log2(most)) - NVME_PAGE_SHIFT_MIN;
  return Math.max(Math.min(taken, wanted), MDTS_MIN);
}
