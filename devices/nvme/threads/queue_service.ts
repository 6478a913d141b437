/**
 * Queues of a controller that a queue thread serves.
 *
 * @module
 */

import type { BlockBackend } from "../../../src/backend/block/contract.ts";
import type { BlockOptions } from "../../../src/backend/block/options.ts";
import type { BottomHalf } from "../../../src/loop/event_loop.ts";
import { ResourceBag, type Saved } from "../../../src/os/resource_bag.ts";
import type {
  QueueContext,
  QueueService,
} from "../../../src/pci/queue_threads.ts";
import type { ErrorEntry } from "../io/error_log.ts";
import {
  NvmeQueues,
  type QueueMessage,
  type QueueSettings,
} from "../io/queues.ts";
import { SharedWords } from "./shared_words.ts";

/** A namespace that goes on elsewhere, or there too. Plain data; its descriptors are `nsN` of a bag. */
export interface NamespaceGrant {
  readonly nsid: number;
  /** Options that its storage was opened with. */
  readonly block: BlockOptions | undefined;
  /** State from {@linkcode BlockBackend.share} or save. */
  readonly state: unknown;
}

/** Parts of a {@linkcode NvmeQueueService}. Plain data. */
export interface QueueGrant {
  /** I/O queue pairs that the controller has. */
  readonly pairs: number;
  /** Interrupt vectors that it has. */
  readonly vectors: number;
  readonly mapDoorbells: boolean;
  readonly maxTransferBytes: number;
  readonly namespaces: readonly NamespaceGrant[];
  readonly settings: QueueSettings;
}

/** Orders of the control thread to a queue thread. Plain data. */
export type ServiceMessage =
  | QueueMessage
  | {
    readonly op: "addNamespace";
    readonly namespace: NamespaceGrant;
    /** Descriptors, which are the thread's. */
    readonly fds: Readonly<Record<string, number>>;
  }
  /** Answered with a {@linkcode QueueReport}, which is then the control thread's. */
  | { readonly op: "report" };

/** Opens storage as it was, or is shared. */
export type OpenStorage = (
  block: BlockOptions,
  saved: Saved<unknown>,
) => BlockBackend;

/** Events on a queue thread. Plain data. */
class QueueNews {
  /** Submission queues that were ended and have come to their end. */
  readonly ended: number[] = [];
  /** A doorbell had a value that cannot be. */
  invalidDoorbell = false;
  /** Mistake of the driver that the controller cannot go on from; null for none. */
  failure: string | null = null;
}

/** Report of a queue thread since it was asked last. Plain data. */
export interface QueueReport extends QueueNews {
  readonly errors: readonly ErrorEntry[];
  /** By NvmeCounter. */
  readonly counts: readonly number[];
}

/** Serves the queues that its control thread adds here. */
export class NvmeQueueService implements QueueService {
  readonly #open: OpenStorage;
  readonly #queues: NvmeQueues;
  readonly #work: BottomHalf;
  #news = new QueueNews();

  /**
   * Makes one that serves no queue yet, and is stopped.
   *
   * @throws {Error} When the storage of a namespace cannot be opened
   */
  constructor(
    context: QueueContext,
    { state: grant, bag }: Saved<QueueGrant>,
    open: OpenStorage,
  ) {
    const { pairs, vectors, maxTransferBytes, settings } = grant;
    this.#open = open;
    const page = grant.mapDoorbells ? context.sharedMemory[0]!.bytes : null;
    this.#work = context.loop.bottomHalf(() => this.#queues.run());
    this.#queues = new NvmeQueues({
      ...{ context, pairs, vectors, maxTransferBytes },
      words: new SharedWords(pairs + 1, page, context.words),
      remote: true,
      wake: () => this.#work.schedule(),
      listener: {
        onInvalidDoorbell: () => {
          this.#news.invalidDoorbell = true;
          context.report();
        },
        onFailure: (reason) => {
          this.#news.failure = reason;
          context.report();
        },
        onQueueEnded: (qid) => {
          this.#news.ended.push(qid);
          context.report();
        },
        // Up or down: the control thread is to look.
        onLine: () => context.interrupts.setLevel(true),
      },
    });
    try {
      for (const each of grant.namespaces) this.#addNamespace(each, bag);
    } catch (error) {
      this.close();
      throw error;
    }
    this.#queues.handle({ op: "stop" });
    this.#queues.handle({ op: "configure", settings });
  }

  handle(value: unknown): unknown {
    const message = value as ServiceMessage;
    switch (message.op) {
      case "addNamespace": {
        using bag = ResourceBag.of(message.fds);
        return this.#addNamespace(message.namespace, bag);
      }
      case "report":
        return this.#report();
      case "reset":
        this.#news = new QueueNews();
        return this.#queues.handle(message);
      default:
        return this.#queues.handle(message);
    }
  }

  wake(): void {
    this.#queues.look();
  }

  counters(): Readonly<Record<string, number>> {
    return this.#queues.record();
  }

  close(): void {
    this.#queues.close();
    // Whatever closing reported.
    this.#work.cancel();
  }

  #addNamespace(
    { nsid, block, state }: NamespaceGrant,
    bag: ResourceBag,
  ): void {
    const backend = this.#open(block!, { state, bag: bag.at(`ns${nsid}`) });
    this.#queues.addNamespace({ nsid, backend });
  }

  #report(): QueueReport {
    const { errors, counters } = this.#queues;
    const news = this.#news;
    this.#news = new QueueNews();
    return { ...news, errors: errors.take(), counts: counters.take() };
  }
}
