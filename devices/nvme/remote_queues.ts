/**
 * The queues of a controller that other threads serve, as the control thread sees them.
 *
 * @module
 */

import { ResourceBag } from "../../src/os/resource_bag.ts";
import type { QueueThreads } from "../../src/pci/queue_threads.ts";
import type { QueueSetState } from "./queue/queue_state.ts";
import type {
  NamespaceGrant,
  QueueGrant,
  QueueMessage,
  QueueReport,
} from "./queue_service.ts";
import { sharedWordCount, type SharedWords } from "./shared_words.ts";

/** What {@linkcode RemoteQueues} need of their controller. */
export interface RemoteQueuesParts {
  readonly threads: QueueThreads;
  readonly words: SharedWords;
  /** I/O queue pairs. */
  readonly pairs: number;
  /** MSI-X vectors. */
  readonly vectors: number;
  /** What the service of a thread is made of: each has one of its own. @throws {Error} When that cannot be had */
  readonly grant: (bag: ResourceBag) => QueueGrant;
  /** A thread wants the INTA# line up, or does not any more. */
  readonly onLine: () => void;
  /** A thread has something to report. */
  readonly onReport: () => void;
}

/** The group of a completion queue: each is one of its own, with the submission queues that complete there. */
export function groupOf(cqid: number): number {
  // The admin queue is the control thread's: CONTROL_GROUP.
  return cqid - 1;
}

/**
 * The queue threads of a controller. Whatever a command or a register changes has reached every thread before it is
 * answered. Doorbells are the exception: they are words that all threads see, and a thread that sleeps is woken up.
 */
export class RemoteQueues implements Disposable {
  readonly #parts: RemoteQueuesParts;
  /** Those that serve queues. */
  readonly #threads: readonly number[];

  /** @throws {Error} When a thread cannot make its service */
  constructor(parts: RemoteQueuesParts) {
    this.#parts = parts;
    const { threads, words, pairs, vectors, onReport, onLine } = parts;
    const count = sharedWordCount(pairs + 1);
    words.moveTo(
      threads.attach({ vectors, words: count, onReport, onLine }),
    );
    const all = Array.from({ length: pairs }, (_, i) => this.threadOf(i + 1));
    this.#threads = [...new Set(all)].filter((thread) => thread > 0);
    try {
      for (const thread of this.#threads) threads.open(thread, parts.grant);
    } catch (error) {
      this[Symbol.dispose]();
      throw error;
    }
  }

  /** The thread that serves a completion queue, and those that complete there. */
  threadOf(cqid: number): number {
    return this.#parts.threads.threadOf(groupOf(cqid));
  }

  /** Has the thread of a completion queue do something. @returns Its answer */
  call(cqid: number, message: QueueMessage): unknown {
    return this.#parts.threads.call(this.threadOf(cqid), message);
  }

  /**
   * Has every thread do something, though others fail.
   *
   * @returns The answers
   * @throws {Error} What failed first
   */
  callAll(message: QueueMessage): unknown[] {
    return this.#parts.threads.callAll(message);
  }

  /** Has the thread of a completion queue look at its doorbells. */
  wake(cqid: number): void {
    this.#parts.threads.wake(this.threadOf(cqid));
  }

  /** Leaves queues to the thread of their completion queue. */
  add(cqid: number, queues: QueueSetState): void {
    this.call(cqid, { op: "add", queues });
  }

  /** Where all queues are, while nothing is in flight. */
  positions(): QueueSetState {
    const all = this.callAll({ op: "positions" }) as QueueSetState[];
    return {
      completion: all.flatMap(({ completion }) => completion),
      submission: all.flatMap(({ submission }) => submission),
    };
  }

  /** What has happened on the threads. */
  reports(): QueueReport[] {
    return this.callAll({ op: "report" }) as QueueReport[];
  }

  /** Everything as after a controller reset. @throws {Error} When a thread may go on touching guest memory */
  reset(): void {
    try {
      this.callAll({ op: "reset" });
    } finally {
      this.#parts.threads.forget();
    }
  }

  /** Leaves guest memory alone. */
  stop(): void {
    this.callAll({ op: "stop" });
    this.#parts.threads.stop();
  }

  /** Goes on after {@linkcode RemoteQueues.stop}, and after hold. */
  start(): void {
    this.#parts.threads.start();
    this.callAll({ op: "start" });
  }

  /** Takes nothing new. @returns How many commands are in flight */
  hold(): number {
    return this.#sum({ op: "hold" });
  }

  /** See {@linkcode NvmeQueues.unfinished}. */
  unfinished(iova?: number, lengthBytes?: number): number {
    return this.#sum({ op: "unfinished", iova, lengthBytes });
  }

  #sum(message: QueueMessage): number {
    return (this.callAll(message) as number[])
      .reduce((sum, count) => sum + count, 0);
  }

  /** There is a namespace more. @param share Gives what a thread needs of it @throws {Error} When one cannot have it */
  addNamespace(share: (bag: ResourceBag) => NamespaceGrant): void {
    for (const thread of this.#threads) {
      using bag = ResourceBag.of();
      const namespace = share(bag);
      const message: QueueMessage = {
        ...{ op: "addNamespace", namespace },
        fds: bag.release(),
      };
      this.#parts.threads.call(thread, message);
    }
  }

  /** Ends the services. */
  [Symbol.dispose](): void {
    const { threads, words } = this.#parts;
    for (const thread of this.#threads) threads.close(thread);
    words.moveTo();
  }
}
