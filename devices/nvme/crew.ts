/**
 * The twins of a controller on other threads, as the one at home reaches them.
 *
 * @module
 */

import { ResourceBag } from "../../src/os/resource_bag.ts";
import type { BlockBackend } from "../../src/backend/block/contract.ts";
import type { BlockOptions } from "../../src/backend/block/options.ts";
import type { SpreadingListener } from "../../src/pci/spreading.ts";
import type { FeaturesState } from "./admin/features.ts";
import type { RingSpec } from "./queue/queue.ts";
import type { ForeignQueues } from "./queue/queue_set.ts";
import type { SharedWords } from "./shared_words.ts";
import type { TwinLogs, TwinMessage } from "./twin_message.ts";

/**
 * Keeps the twins as the driver wants them: a completion queue, and every submission queue that completes there, is one
 * thread's, and that knows of it before the command that made it is completed.
 */
export class Crew implements ForeignQueues {
  readonly words: SharedWords;
  readonly #listener: SpreadingListener;
  readonly #isForeign: (cqid: number) => boolean;

  /** @param isForeign Which completion queues are another thread's */
  constructor(
    listener: SpreadingListener,
    words: SharedWords,
    isForeign: (cqid: number) => boolean,
  ) {
    this.#listener = listener;
    this.words = words;
    this.#isForeign = isForeign;
  }

  isForeign(cqid: number): boolean {
    return this.#isForeign(cqid);
  }

  createCq(ring: RingSpec, vector: number, interrupts: boolean): void {
    this.#call(ring.qid, { op: "createCq", ring, vector, interrupts });
  }

  createSq(ring: RingSpec, cqid: number): void {
    this.#call(cqid, { op: "createSq", ring, cqid });
  }

  deleteCq(qid: number): void {
    this.#call(qid, { op: "deleteCq", qid });
  }

  deleteSq(qid: number, cqid: number): boolean {
    return this.#call(cqid, { op: "deleteSq", qid }) === true;
  }

  /** Has the thread of a completion queue look at the doorbells of what it serves. */
  ring(cqid: number): void {
    this.#listener.onForeignKick(cqid);
  }

  /** As {@linkcode Crew.ring}, for a head, and waits: with the pin the line is right afterwards. */
  consume(cqid: number): void {
    this.#call(cqid, { op: "head", cqid });
  }

  /** Ends a command of a queue that completes in `cqid`. @returns Whether it was ended */
  abort(cqid: number, sqid: number, cid: number): boolean {
    return this.#call(cqid, { op: "abort", sqid, cid }) === true;
  }

  /** Commands may be fetched from here on. */
  enable(pageShift: number): void {
    this.#callAll({ op: "enable", pageShift });
  }

  /** Nothing is fetched or completed any more. */
  halt(): void {
    this.#callAll({ op: "halt" });
  }

  /** What was fetched is completed, whatever thread has fetched it. */
  drain(): void {
    this.#callAll({ op: "drain" });
  }

  /** Everything as after a controller reset. */
  reset(): void {
    try {
      this.#callAll({ op: "reset" });
    } finally {
      this.words.forgetQueues();
      this.#listener.onReset();
    }
  }

  /** INTMS has changed. */
  setMask(mask: number): void {
    this.#callAll({ op: "mask", mask });
  }

  /** Features may have changed. */
  setFeatures(state: FeaturesState): void {
    this.#callAll({ op: "features", state });
  }

  /** Doorbell Buffer Config. @returns Whether all twins can reach the buffers */
  setBuffers(shadowIova: number, eventIova: number): boolean {
    return this.#callAll({ op: "buffers", shadowIova, eventIova })
      .every((done) => done === true);
  }

  /** What the twins have for log pages. */
  logs(): TwinLogs[] {
    return this.#callAll({ op: "logs" }) as TwinLogs[];
  }

  /**
   * There is a namespace more: each twin gets a share of its storage.
   *
   * @throws {Error} When one cannot have it; {@linkcode Crew.namespacesChanged} takes it back from the others
   */
  addNamespace(nsid: number, block: BlockOptions, backend: BlockBackend): void {
    if (backend.share === undefined) {
      throw new Error(
        `Cannot add ${backend.description}: it is served by one IOThread, and this controller by several`,
      );
    }
    this.#listener.callAll(() => {
      const bag = ResourceBag.of();
      const state = backend.share!(bag);
      const given = { state, fds: bag.release() };
      return { op: "addNamespace", nsid, block, given };
    });
  }

  /** Which namespaces there are, or their sizes, may have changed. */
  namespacesChanged(): void {
    this.#listener.onSharedState();
  }

  #call(queue: number, message: TwinMessage): unknown {
    return this.#listener.call(queue, message);
  }

  #callAll(message: TwinMessage): unknown[] {
    return this.#listener.callAll(() => message);
  }
}
