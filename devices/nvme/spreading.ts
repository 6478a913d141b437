/**
 * A controller whose I/O queues are served by several threads.
 *
 * @module
 */

import type { BlockOptions } from "../../src/backend/block/options.ts";
import type { Interrupts } from "../../src/pci/device.ts";
import {
  FOR_HOME,
  type Spreading,
  type SpreadingListener,
} from "../../src/pci/spreading.ts";
import { Crew } from "./crew.ts";
import { NvmeSc } from "./defs.ts";
import { NvmeEvent } from "./admin/events.ts";
import type { ControllerParts } from "./parts.ts";
import { HomeLine, TwinLine } from "./shared_line.ts";
import { sharedWordCount, SharedWords } from "./shared_words.ts";
import { ResourceBag } from "../../src/os/resource_bag.ts";
import type { NvmeHandOver, SharedStorage } from "./state.ts";
import type { TwinMessage } from "./twin_message.ts";

/** The "queue" by which twins have home look at what they have reported: the admin queue, which is home's. */
const ADMIN = 0;

/** What a {@linkcode NvmeSpreading} needs of its controller. */
export interface SpreadHost {
  readonly parts: ControllerParts;
  readonly interrupts: Interrupts;
  /** I/O queue pairs. */
  readonly pairs: number;
  /** Whether queues may be touched now. */
  readonly isLive: () => boolean;
  /** Commands may be fetched, or not any more. */
  readonly setRunning: (on: boolean) => void;
  /** Everything as after a controller reset. */
  readonly reset: () => void;
  /** The controller gives up on its driver. */
  readonly fail: (reason: string) => void;
  /** Something is to be done in a bottom half. */
  readonly wake: () => void;
  /** Home has a namespace more, whose storage it shares. */
  readonly attach: (
    nsid: number,
    block: BlockOptions,
    given: SharedStorage,
  ) => void;
}

/** Namespaces as the threads tell each other. */
interface SharedState {
  readonly namespaces: readonly {
    readonly nsid: number;
    readonly blocks: number;
  }[];
}

/**
 * {@linkcode Spreading} of a controller. Registers, the admin queue and all that goes with it (features, logs, events)
 * are home's. A "queue" of the contract is a completion queue by its id; the submission queues that complete there go
 * with it, so that one thread fetches, executes and completes.
 *
 * Doorbells that drivers write by message come to home, which stores them where all threads see them
 * ({@linkcode SharedWords}) and wakes the thread concerned; shadow doorbells are in guest memory, and each thread sees
 * to those of its queues. Whatever a command or a register changes has reached every thread before it is answered.
 */
export class NvmeSpreading implements Spreading {
  readonly queueCount: number;
  readonly sharedWords: number;
  readonly #host: SpreadHost;
  #listener: SpreadingListener | null = null;
  #words: SharedWords | null = null;
  #line: HomeLine | null = null;

  constructor(host: SpreadHost) {
    this.#host = host;
    this.queueCount = host.pairs + 1;
    this.sharedWords = sharedWordCount(host.pairs + 1);
  }

  /** Whether this is a twin on another thread than home. */
  get isTwin(): boolean {
    return this.#words !== null && this.#line === null;
  }

  groupOf(queue: number): number {
    return queue === ADMIN ? FOR_HOME : queue - 1;
  }

  targetOfWrite(): number {
    // The controller at home looks at doorbells first: which queues there are is what it knows.
    return FOR_HOME;
  }

  targetOfDoorbell(): number {
    return FOR_HOME;
  }

  begin(isMine: (group: number) => boolean, listener: SpreadingListener): void {
    const { parts, interrupts, pairs } = this.#host;
    const words = new SharedWords(listener.words, pairs + 1);
    const isHome = isMine(FOR_HOME);
    this.#listener = listener;
    this.#words = words;
    parts.doorbells.share(words.doorbells, isHome);
    if (isHome) {
      const isForeign = (cqid: number) => !isMine(this.groupOf(cqid));
      const crew = new Crew(listener, words, isForeign);
      parts.crew = crew;
      parts.queues.spread(crew);
      parts.logs.spread(words, () => crew.logs());
      this.#line = new HomeLine(interrupts, words);
      parts.lines.redirect(this.#line);
    } else {
      parts.queues.becomeTwin();
      parts.logs.spread(words, () => []);
      parts.lines.redirect(
        new TwinLine(interrupts, words, () => this.#tellHome()),
      );
    }
  }

  kick(queue: number): void {
    if (!this.isTwin) return this.#lookAtReports();
    // What was rung meanwhile is found when the controller starts or is enabled.
    if (!this.#host.isLive()) return;
    const { queues } = this.#host.parts;
    const cq = queues.cq(queue);
    if (cq !== null) queues.updateHead(cq);
    const { submission } = queues;
    for (let i = 0; i < submission.length; i++) {
      const sq = submission[i]!;
      if (sq.cq === cq) queues.updateTail(sq);
    }
    this.#host.wake();
  }

  /** A twin has found a doorbell value that cannot be: home tells the driver. */
  reportInvalidValue(): void {
    this.#words!.reportInvalidValue();
    this.#tellHome();
  }

  /** The driver broke a rule on this thread: home fails the controller. */
  reportFailure(reason: string): void {
    this.#listener!.onFailure(reason);
  }

  /** A submission queue whose deletion waits has come to its end: home completes the command. */
  reportEnded(qid: number): void {
    this.#words!.reportEnded(qid);
    this.#tellHome();
  }

  /** The line may have to follow what another thread did. */
  updateLine(): void {
    this.#line?.update();
  }

  answer(message: unknown): unknown {
    return this.#answer(message as TwinMessage);
  }

  share(): NvmeHandOver & Pick<SharedStorage, "fds"> {
    const { all } = this.#host.parts.namespaces;
    const single = all.find(({ backend }) => backend.share === undefined);
    if (single !== undefined) {
      throw new Error(
        `Cannot use several IOThreads: ${single.backend.description} is served by one`,
      );
    }
    const bag = ResourceBag.of();
    const namespaces = all.map(({ nsid, block, backend }) => (
      { nsid, block, state: backend.share!(bag.at(`ns${nsid}`)) }
    ));
    return { namespaces, fds: bag.release() };
  }

  saveShared(): SharedState {
    const { all } = this.#host.parts.namespaces;
    return { namespaces: all.map(({ nsid, blocks }) => ({ nsid, blocks })) };
  }

  loadShared(state: unknown): void {
    const { namespaces } = this.#host.parts;
    const theirs = (state as SharedState).namespaces;
    for (const ns of namespaces.all) {
      const its = theirs.find(({ nsid }) => nsid === ns.nsid);
      if (its === undefined) namespaces.remove(ns);
      else if (ns.blocks !== its.blocks) ns.backend.rescan?.();
    }
  }

  fail(reason: string): void {
    this.#host.fail(reason);
  }

  raiseLine(): void {
    this.updateLine();
  }

  #tellHome(): void {
    this.#listener!.onForeignKick(ADMIN);
  }

  #lookAtReports(): void {
    const { parts, pairs, isLive, wake } = this.#host;
    const words = this.#words!;
    if (words.takeInvalidValue()) {
      parts.events.raise(NvmeEvent.INVALID_DOORBELL_VALUE);
    }
    for (let qid = 1; qid <= pairs; qid++) {
      if (!words.takeEnded(qid)) continue;
      const deletion = parts.queues.ended(qid);
      if (deletion !== null) parts.engine.finish(deletion, NvmeSc.SUCCESS);
    }
    if (isLive()) this.updateLine();
    wake();
  }

  #answer(message: TwinMessage): unknown {
    const { parts, setRunning, reset, wake, attach } = this.#host;
    switch (message.op) {
      case "enable":
        parts.data.setPageShift(message.pageShift);
        return setRunning(true);
      case "halt":
        return setRunning(false);
      case "reset":
        return reset();
      case "drain":
        parts.namespaces.drain();
        return parts.engine.settle();
      case "createCq":
        parts.queues.serveCq(message.ring, message.vector, message.interrupts);
        return;
      case "createSq":
        return parts.queues.serveSq(message.ring, message.cqid);
      case "deleteCq":
        return parts.queues.leaveCq(message.qid);
      case "deleteSq":
        return parts.queues.leaveSq(message.qid);
      case "abort": {
        const ended = parts.abort(message.sqid, message.cid);
        wake();
        return ended;
      }
      case "head":
        return this.#consume(message.cqid);
      case "mask":
        return this.#setMask(message.mask);
      case "features":
        parts.features.load(message.state);
        // What an interrupt was to tell about later may be told now.
        return wake();
      case "buffers":
        return parts.doorbells.configure(
          message.shadowIova,
          message.eventIova,
          parts.queues.doorbellValues(),
        );
      case "logs":
        return parts.logs.share();
      case "addNamespace":
        return attach(message.nsid, message.block, message.given);
      default:
        return message satisfies never;
    }
  }

  #consume(cqid: number): void {
    const { parts, isLive } = this.#host;
    this.kick(cqid);
    if (isLive()) parts.lines.flush(parts.registers.interruptMask);
  }

  #setMask(mask: number): void {
    const { parts, isLive } = this.#host;
    parts.registers.interruptMask = mask;
    if (isLive()) parts.lines.maskChanged(mask);
  }
}
