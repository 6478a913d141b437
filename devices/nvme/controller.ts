/**
 * The NVM Express controller as a PCI device (NVM Express 1.4).
 *
 * @module
 */

import type {
  BlockClient,
  BlockRequest,
} from "../../src/backend/block/contract.ts";
import type { BlockOptions } from "../../src/backend/block/options.ts";
import { formatSize } from "../../src/core/size.ts";
import type { BottomHalf, Poller, Timer } from "../../src/loop/event_loop.ts";
import { LookTimer } from "../../src/loop/look_timer.ts";
import type {
  AccessWidth,
  DeviceCommand,
  DeviceContext,
  PciDevice,
  PciSpec,
  ResetReason,
} from "../../src/pci/device.ts";
import { ResourceBag, type Saved } from "../../src/os/resource_bag.ts";
import { field } from "../../src/core/bits.ts";
import { RING_ABSENCE_MS } from "../../src/memory/guest_memory.ts";
import type { Command } from "./command/command.ts";
import { namespaceCommands } from "./commands.ts";
import { NvmeCounter } from "./counters.ts";
import {
  DOORBELL_PAIR_BYTES,
  IN_FLIGHT,
  NVME_CC,
  NVME_MPS_MAX,
  NVME_REG_DBS,
  NVME_SC_MORE,
  NvmeSc,
  NvmeShst,
} from "./defs.ts";
import { headDoorbell } from "./queue/doorbells.ts";
import { NvmeEvent } from "./admin/events.ts";
import { isUnmetQuestion } from "./admin/log_pages.ts";
import {
  Namespace,
  NamespaceSet,
  type NamespaceStorage,
} from "./io/namespace.ts";
import { ControllerParts, type NvmeControllerOptions } from "./parts.ts";
import { DOORBELL_PAGE_BYTES, makeSpec } from "./pci_spec.ts";
import type { CompletionQueue, SubmissionQueue } from "./queue/queue.ts";
import { RegisterEffect } from "./registers.ts";
import { NvmeSpreading } from "./spreading.ts";
import { type NvmeHandOver, type NvmeState, parseNvmeState } from "./state.ts";

export type { NvmeControllerOptions } from "./parts.ts";

/**
 * A controller.
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
 *
 * Where several threads serve its queues ({@linkcode NvmeSpreading}) each has one of these: the one at home is the
 * controller that the driver knows, the others are told what they need to fetch, execute and complete commands.
 */
export class NvmeController implements PciDevice, BlockClient {
  readonly spec: PciSpec;
  readonly commands: Readonly<Record<string, DeviceCommand>>;
  readonly spreading: NvmeSpreading;
  readonly #context: DeviceContext;
  readonly #options: NvmeControllerOptions;
  readonly #parts: ControllerParts;
  readonly #work: BottomHalf;
  readonly #poller: Poller;
  /** Looks at mapped doorbells. */
  readonly #doorbellTimer: LookTimer | null;
  /** Armed while a queue is wanted that is not mapped. */
  readonly #absence: Timer;
  #absent = false;
  readonly #unsubscribe: () => void;
  /** Commands may be fetched and completions posted: CSTS.RDY, and no reset asked for. */
  #running = false;
  #stopped = false;
  /** Whether no command is fetched, though all else goes on. */
  #holding = false;
  #resetAsked = false;
  #warned = false;

  /** @param storage Namespaces, all ids different */
  constructor(
    context: DeviceContext,
    options: NvmeControllerOptions,
    storage: readonly NamespaceStorage[],
  ) {
    const { memory, loop } = context;
    const { serial } = options.identity;
    this.#context = context;
    this.#options = options;
    const namespaces = new NamespaceSet(
      storage.map((each) => new Namespace(each, serial, this)),
    );
    const page = options.mapDoorbells
      ? context.createSharedMemory("nvme-doorbells", DOORBELL_PAGE_BYTES)
      : null;
    this.spec = makeSpec(options, page);
    this.#parts = new ControllerParts(context, options, namespaces, page, {
      onInvalidDoorbell: () => this.#onInvalidDoorbell(),
      onCommandError: (command) => this.#onCommandError(command),
      onInternal: () => this.#onShutdownFlushed(),
      wake: () => this.#work.schedule(),
      onQueueEnded: (qid) => this.spreading.reportEnded(qid),
    });
    this.spreading = this.#makeSpreading();
    this.#work = loop.bottomHalf(() => this.#run());
    this.#doorbellTimer = page === null
      ? null
      : new LookTimer(loop, () => this.#onDoorbellTimer());
    this.#poller = loop.poll(() => this.#poll(), {
      begin: () => {
        this.#doorbellTimer?.beginPolling();
        this.#parts.queues.beginPolling();
      },
      end: () => this.#endPolling(),
    });
    this.#absence = loop.timer(() => this.#onAbsence());
    this.#unsubscribe = memory.subscribe({
      onUnmap: (iova, lengthBytes) => this.#onUnmap(iova, lengthBytes),
      onChange: () => this.#work.schedule(),
    });
    this.commands = namespaceCommands({
      namespaces,
      add: (nsid, block) => this.#addNamespace(nsid, block),
      remove: (ns) => this.#removeNamespace(ns),
    });
    for (const ns of namespaces.all) ns.backend.start(ns);
  }

  /** Commands that were fetched and not completed, for whoever looks at the state. */
  inFlight(): readonly Command[] {
    return this.#parts.engine.inFlight();
  }

  readBar(bar: number, offset: number, width: AccessWidth): number {
    return bar === 0 ? this.#parts.registers.read(offset, width) : 0;
  }

  writeBar(
    bar: number,
    offset: number,
    width: AccessWidth,
    value: number,
  ): void {
    if (bar !== 0) return;
    if (offset >= NVME_REG_DBS) return this.#ring(offset, width, value);
    const before = this.#parts.registers.cc;
    const effect = this.#parts.registers.write(offset, width, value);
    if (effect === RegisterEffect.MASK) {
      const { interruptMask } = this.#parts.registers;
      this.#parts.crew?.setMask(interruptMask);
      if (!this.#stopped) this.#parts.lines.maskChanged(interruptMask);
    } else if (effect === RegisterEffect.CC) {
      this.#onConfiguration(before);
    }
  }

  reset(reason: ResetReason): void {
    if (reason === "client_gone") this.#parts.logs.powerLost();
    this.#resetController();
    this.#parts.registers.reset();
  }

  stop(): void {
    this.#stopped = true;
    this.#doorbellTimer?.stop();
    // No request may be filling guest memory; what is done now is told after start.
    this.#parts.namespaces.drain();
  }

  start(): void {
    if (!this.#stopped && !this.#holding) return;
    this.#stopped = this.#holding = false;
    this.#work.schedule();
    this.#lookIfRunning();
  }

  hold(): number {
    if (!this.#holding) {
      this.#holding = true;
      // What an interrupt was to tell about later is told now.
      this.#parts.lines.hurry();
    }
    return this.#parts.inFlight;
  }

  save(): NvmeState {
    const { inFlight } = this.#parts;
    if (inFlight > 0) {
      throw new Error(
        `Cannot save the NVMe controller: ${inFlight} commands are in flight, hold it until there are none`,
      );
    }
    return {
      ...this.#parts.save(),
      running: this.#running,
      resetAsked: this.#resetAsked,
    };
  }

  load(value: unknown): void {
    const { queues, queueEntries, mapDoorbells } = this.#options;
    const { namespaces } = this.#parts;
    const state = parseNvmeState(value, {
      pairs: queues,
      maxEntries: queueEntries,
      mapDoorbells,
      namespaces: namespaces.all,
    });
    // Not even a completion may reach the driver before start.
    this.#stopped = this.#holding = true;
    this.#parts.load(state);
    this.#running = state.running;
    this.#resetAsked = state.resetAsked;
    this.#parts.lines.hurry();
    for (const [i, { blocks }] of state.namespaces.entries()) {
      const ns = namespaces.all[i]!;
      // The storage has another size than the driver was told.
      if (ns.blocks !== blocks) this.onNamespaceChanged(ns);
    }
  }

  handOver(bag: ResourceBag): NvmeHandOver {
    const { all } = this.#parts.namespaces;
    const fixed = all.find(({ backend }) => backend.handOver === undefined);
    if (fixed !== undefined) {
      throw new Error(
        `Cannot move the NVMe controller: ${fixed.backend.description} stays on its thread`,
      );
    }
    return {
      namespaces: all.map(({ nsid, block, backend }) => {
        const state = backend.save!();
        backend.handOver!(bag.at(`ns${nsid}`));
        return { nsid, block, state };
      }),
    };
  }

  counters(): Readonly<Record<string, number>> {
    const record = this.#parts.counters.toRecord();
    for (const ns of this.#parts.namespaces.all) {
      const its = ns.backend.counters?.() ?? {};
      for (const [name, value] of Object.entries(its)) {
        record[`ns${ns.nsid}.${name}`] = value;
      }
    }
    return record;
  }

  info(): Readonly<Record<string, string>> {
    return { doorbells: this.#doorbellTimer === null ? "message" : "mmap" };
  }

  close(): void {
    this.#running = false;
    this.#unsubscribe();
    this.#poller.close();
    this.#doorbellTimer?.close();
    this.#absence.close();
    this.#parts.lines.close();
    this.#work.cancel();
    for (const ns of this.#parts.namespaces.all) ns.backend.close();
    this.#parts.io.reset();
    this.#parts.engine.reset();
    // Whatever closing reported.
    this.#work.cancel();
  }

  onComplete(request: BlockRequest, result: number): void {
    this.#parts.engine.returned(request, result);
  }

  /** Unused: each namespace hears of its own storage. */
  onResize(): void {}

  /** The storage of a namespace has another size. */
  onNamespaceChanged(ns: Namespace): void {
    const { nsid, sizeBytes } = ns;
    const size = formatSize(sizeBytes);
    this.#tellChanged(nsid, `namespace ${nsid} has ${size} now`, {
      event: "RESIZED",
      nsid,
      sizeBytes,
    });
  }

  /** Tells the log, the programs on the control socket and the driver. */
  #tellChanged(
    nsid: number,
    message: string,
    properties: Record<string, unknown>,
  ): void {
    // Whoever has changed it tells the driver.
    if (this.spreading.isTwin) return;
    this.#context.log.info(message, properties);
    this.#parts.crew?.namespacesChanged();
    this.#parts.logs.addChanged(nsid);
    if (!this.#parts.features.namespaceNotices) return;
    this.#parts.events.raise(NvmeEvent.NAMESPACE_CHANGED);
    this.#work.schedule();
  }

  /** @throws {Error} With the reason; nothing is changed then */
  #addNamespace(nsid: number, block: BlockOptions): Namespace {
    const { crew } = this.#parts;
    const ns = this.#attach(nsid, block);
    try {
      crew?.addNamespace(nsid, block, ns.backend);
    } catch (error) {
      this.#parts.namespaces.remove(ns);
      crew?.namespacesChanged();
      throw error;
    }
    const { sizeBytes } = ns;
    this.#tellChanged(
      nsid,
      `namespace ${nsid} is there, of ${formatSize(sizeBytes)}`,
      {
        event: "NAMESPACE_ADDED",
        nsid,
        sizeBytes,
      },
    );
    return ns;
  }

  /** Opens storage as a namespace, or takes over what another thread shares. */
  #attach(
    nsid: number,
    block: BlockOptions,
    given?: Saved<unknown>,
  ): Namespace {
    const { open } = this.#options;
    if (open === undefined) {
      throw new Error("Cannot add a namespace: this model opens no storage");
    }
    const { namespaces, identify } = this.#parts;
    const { serial } = identify.identity;
    const backend = open(block, given);
    try {
      const ns = new Namespace({ nsid, block, backend }, serial, this);
      backend.start(ns);
      this.#parts.admit(backend);
      namespaces.add(ns);
      return ns;
    } catch (error) {
      backend.close();
      throw error;
    }
  }

  #removeNamespace(ns: Namespace): void {
    const { nsid } = ns;
    this.#parts.namespaces.remove(ns);
    this.#tellChanged(nsid, `namespace ${nsid} is gone`, {
      event: "NAMESPACE_REMOVED",
      nsid,
    });
  }

  #makeSpreading(): NvmeSpreading {
    return new NvmeSpreading({
      parts: this.#parts,
      interrupts: this.#context.interrupts,
      pairs: this.#options.queues,
      isLive: () => this.#running && !this.#stopped,
      setRunning: (on) => {
        this.#running = on;
        if (on) this.#work.schedule();
      },
      reset: () => this.#resetController(),
      fail: (reason) => this.#fail(reason, "use"),
      wake: () => this.#work.schedule(),
      attach: (nsid, block, { state, fds }) => {
        using bag = ResourceBag.of(fds);
        this.#attach(nsid, block, { state, bag });
      },
    });
  }

  /** A doorbell was written by message. */
  #ring(offset: number, width: AccessWidth, value: number): void {
    const index = (offset - NVME_REG_DBS) / 4;
    if (width !== 4 || !this.#running) return;
    this.#parts.counters.add(NvmeCounter.doorbells, 1);
    const qid = Math.floor((offset - NVME_REG_DBS) / DOORBELL_PAIR_BYTES);
    const isHead = index === headDoorbell(qid);
    const sq = isHead ? null : this.#parts.queues.sq(qid);
    const cq = isHead ? this.#parts.queues.cq(qid) : sq?.cq ?? null;
    if (cq === null) {
      this.#parts.logs.addError(NvmeSc.QID_INVALID);
      this.#parts.events.raise(NvmeEvent.INVALID_DOORBELL_REGISTER);
      this.#parts.counters.add(NvmeCounter.invalidDoorbells, 1);
      return this.#work.schedule();
    }
    if (cq.foreign) return this.#ringElsewhere(index, value, sq, cq);
    // A value that was refused before is a mistake again.
    (sq ?? cq).rejected = -1;
    this.#parts.doorbells.write(index, value);
    if (sq === null) {
      this.#parts.queues.updateHead(cq);
      if (this.#parts.lines.usesPin && !this.#stopped) {
        // Down at once: the driver ends its handler behind this write.
        this.#parts.lines.flush(this.#parts.registers.interruptMask);
      }
    } else this.#parts.queues.updateTail(sq);
    this.#work.schedule();
  }

  /** A doorbell of a queue that another thread serves was written by message. */
  #ringElsewhere(
    index: number,
    value: number,
    sq: SubmissionQueue | null,
    cq: CompletionQueue,
  ): void {
    // Whether its queue can be there, beyond that, is for the other thread to say: it tells once of a value that stays.
    if (value >= (sq ?? cq).size) return this.#onInvalidDoorbell();
    this.#parts.doorbells.write(index, value);
    if (sq !== null || !this.#parts.lines.usesPin) {
      return this.#parts.crew!.ring(cq.qid);
    }
    // Down at once: the driver ends its handler behind this write.
    this.#parts.crew!.consume(cq.qid);
    this.spreading.updateLine();
  }

  #onInvalidDoorbell(): void {
    this.#parts.counters.add(NvmeCounter.invalidDoorbells, 1);
    this.#parts.logs.addError(NvmeSc.INVALID_FIELD);
    if (this.spreading.isTwin) return this.spreading.reportInvalidValue();
    this.#parts.events.raise(NvmeEvent.INVALID_DOORBELL_VALUE);
    this.#work.schedule();
  }

  #onConfiguration(before: number): void {
    const registers = this.#parts.registers;
    if ((before & ~registers.cc & 1) !== 0) {
      // From here on nothing of the driver's is touched; the rest takes time.
      this.#running = false;
      this.#resetAsked = true;
      this.#parts.crew?.halt();
    }
    if (registers.shutdownRequested) {
      this.#parts.logs.inUse = false;
      if (registers.shutdownStatus === NvmeShst.NORMAL) {
        registers.shutdownStatus = NvmeShst.OCCUR;
      }
    }
    this.#work.schedule();
  }

  /** Does everything there is to do, or as much as fits one turn of the loop. */
  #run(): void {
    // Home has said that nothing is to be completed any more.
    if (!this.#running && this.spreading.isTwin) return;
    // Registers do what they say in any case: that takes no guest memory.
    this.#configure();
    this.#parts.engine.settleInternal();
    this.#parts.namespaces.commit();
    if (this.#stopped) return;
    if (this.#running) {
      this.#parts.engine.settle();
      if (!this.#holding && this.#parts.engine.fetch()) this.#work.schedule();
    }
    this.#parts.namespaces.commit();
    this.#parts.engine.settle();
    if (!this.#running) return;
    this.#awaitMemory();
    this.#tellEvents();
    this.#parts.lines.flush(this.#parts.registers.interruptMask);
  }

  /** Behind an IOMMU memory is unmapped for each command: only those that use it have to come to an end before. */
  #onUnmap(iova: number, lengthBytes: number): void {
    const { engine, namespaces } = this.#parts;
    if (engine.uses(iova, lengthBytes)) namespaces.drain();
  }

  /** Gives the client time to map a queue again that is wanted. */
  #awaitMemory(): void {
    const { engine, doorbells } = this.#parts;
    const awaits = engine.awaitsMemory || doorbells.missing;
    engine.awaitsMemory = false;
    if (!awaits || this.#absent) return;
    this.#absent = true;
    this.#absence.arm(RING_ABSENCE_MS);
  }

  #onAbsence(): void {
    this.#absent = false;
    if (!this.#running || this.#stopped) return;
    const missing = this.#parts.queues.missing();
    if (missing !== null) this.#fail(missing, "use");
  }

  /** Carries out what CC asks for. */
  #configure(): void {
    const registers = this.#parts.registers;
    if (this.#resetAsked) {
      this.#parts.counters.add(NvmeCounter.controllerResets, 1);
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
    const { cc, aqa, asq, acq, pageShift } = this.#parts.registers;
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
    const wrong = this.#parts.queues.createAdmin(2 ** pageShift, aqa, asq, acq);
    if (wrong !== null) return this.#fail(wrong);
    this.#parts.data.setPageShift(pageShift);
    this.#parts.crew?.enable(pageShift);
    this.#running = true;
    // Enabled with CC.SHN set it is on its way down as before.
    if (!this.#parts.registers.shutdownRequested) this.#parts.logs.inUse = true;
    this.#parts.registers.setReady(true);
    this.#lookIfRunning();
  }

  /** The driver did what the controller cannot go on from; a reset ends it. */
  #fail(reason: string, action = "enable"): void {
    this.#running = false;
    if (this.spreading.isTwin) return this.spreading.reportFailure(reason);
    this.#parts.counters.add(NvmeCounter.fatalErrors, 1);
    this.#parts.crew?.halt();
    this.#parts.queues.reset();
    this.#parts.registers.setFatal();
    const { log } = this.#context;
    const message =
      `the driver cannot ${action} the controller: ${reason}; it must reset it`;
    const properties = { event: "DEVICE_FAILED", reason };
    // A hostile driver can fail and reset for ever; it shall not fill the disk.
    if (this.#warned) log.debug(message, properties);
    else log.warn(message, properties);
    this.#warned = true;
  }

  /** @throws {Error} When another thread may go on touching guest memory; the driver finds CSTS.RDY set as before */
  #resetController(): void {
    this.#running = false;
    this.#resetAsked = false;
    let done = false;
    try {
      // The other threads first: what they reported is then forgotten with the rest.
      this.#parts.crew?.reset();
      done = true;
    } finally {
      this.#resetHere();
      if (!done) {
        this.#parts.registers.setReady(true);
        this.#parts.registers.setFatal();
      }
    }
  }

  #resetHere(): void {
    this.#doorbellTimer?.stop();
    this.#absence.cancel();
    this.#absent = false;
    this.#parts.namespaces.drain();
    this.#parts.io.reset();
    this.#parts.engine.reset();
    this.#parts.queues.reset();
    this.#parts.events.reset();
    this.#parts.logs.reset();
    this.#parts.features.reset();
    this.#parts.lines.reset();
    const shutdown = this.#parts.registers.shutdownRequested;
    this.#parts.registers.resetController();
    // CC.SHN in the same write as CC.EN.
    if (shutdown) this.#parts.registers.shutdownStatus = NvmeShst.OCCUR;
  }

  /** CC.SHN: what was written becomes durable. */
  #shutDown(): void {
    const command = this.#parts.engine.takeInternal();
    // Already at it.
    if (command === null) return;
    this.#parts.crew?.drain();
    const status = this.#parts.io.flushAll(command);
    if (status !== IN_FLIGHT) this.#parts.engine.finish(command, status);
  }

  /** The driver frees its queues, and the buffers of shadow doorbells, as soon as it sees this done. */
  #onShutdownFlushed(): void {
    this.#parts.namespaces.drain();
    this.#parts.engine.settle();
    this.#parts.lines.flush(this.#parts.registers.interruptMask);
    this.#running = false;
    this.#parts.crew?.halt();
    this.#parts.registers.shutdownStatus = NvmeShst.CMPLT;
  }

  #tellEvents(): void {
    if (!this.#parts.events.deliverable) return;
    const admin = this.#parts.queues.cq(0)!;
    while (
      this.#parts.events.deliverable && this.#parts.queues.hasRoom(admin)
    ) {
      const command = this.#parts.events.next();
      command.reserved = true;
      admin.reserved++;
      this.#parts.engine.finish(command, NvmeSc.SUCCESS);
    }
    this.#parts.engine.settle();
  }

  #onCommandError(command: Command): void {
    const { qid } = command.sq!;
    this.#parts.counters.add(NvmeCounter.failedCommands, 1);
    if (qid === 0 && isUnmetQuestion(command.opcode, command.status)) return;
    command.status |= NVME_SC_MORE;
    this.#parts.logs.addCommandError(qid, command);
  }

  /** Looks for commands without being told. */
  #poll(): boolean {
    if (!this.#running || this.#stopped) return false;
    if (this.#holding) {
      // The line goes down with what drivers consume, but nothing new is looked for.
      if (this.#parts.lines.usesPin) {
        this.#parts.lines.flush(this.#parts.registers.interruptMask);
      }
      return false;
    }
    const { shadowed } = this.#parts.doorbells;
    const isMapped = this.#doorbellTimer !== null;
    // Home stores what was written by message before it wakes a twin.
    if (!isMapped && !shadowed && !this.spreading.isTwin) return false;
    if (!this.#parts.queues.hasNews(this.#parts.lines.usesPin)) return false;
    const { pageKicks, polledKicks } = NvmeCounter;
    if (isMapped) this.#parts.counters.add(pageKicks, 1);
    else if (shadowed) this.#parts.counters.add(polledKicks, 1);
    this.#run();
    return true;
  }

  #endPolling(): boolean {
    this.#doorbellTimer?.endPolling();
    // What does not run touches no guest memory: it asks for doorbells when it runs.
    const live = this.#running && !this.#stopped;
    const found = this.#parts.queues.endPolling(live) && !this.#holding;
    if (found) this.#work.schedule();
    return found;
  }

  #lookIfRunning(): void {
    if (this.#running && !this.#stopped) this.#doorbellTimer?.start();
  }

  #onDoorbellTimer(): boolean {
    if (this.#running && !this.#stopped) return this.#poll();
    this.#doorbellTimer?.stop();
    return false;
  }
}
