/**
 * Queues of a controller that a queue thread serves.
 *
 * @module
 */

import type { BlockBackend } from "../../src/backend/block/contract.ts";
import type { BlockOptions } from "../../src/backend/block/options.ts";
import type { BottomHalf } from "../../src/loop/event_loop.ts";
import { ResourceBag, type Saved } from "../../src/os/resource_bag.ts";
import type {
  QueueContext,
  QueueService,
} from "../../src/pci/queue_threads.ts";
import type { ErrorEntry } from "./error_log.ts";
import type { DoorbellBuffers } from "./queue/doorbells.ts";
import type { QueueSetState } from "./queue/queue_state.ts";
import { NvmeQueues, type QueueSettings } from "./queues.ts";
import { SharedWords } from "./shared_words.ts";

/** A namespace that goes on elsewhere, or there too. Plain data; its descriptors are `nsN` of a bag. */
export interface NamespaceGrant {
  readonly nsid: number;
  /** What its storage was opened with. */
  readonly block: BlockOptions | undefined;
  /** What {@linkcode BlockBackend.share} of it, or save, gave. */
  readonly state: unknown;
}

/** What a {@linkcode NvmeQueueService} is made of. Plain data. */
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

/** What the control thread tells a queue thread. Plain data. */
export type QueueMessage =
  | { readonly op: "configure"; readonly settings: QueueSettings }
  /** Everything as after a controller reset. */
  | { readonly op: "reset" }
  /** What was fetched is completed. */
  | { readonly op: "drain" }
  /** Guest memory must be left alone. */
  | { readonly op: "stop" }
  /** After stop and hold. */
  | { readonly op: "start" }
  /** Answered with how many commands are in flight. */
  | { readonly op: "hold" }
  /** Answered with how many requests are unfinished, see {@linkcode NvmeQueues.unfinished}. */
  | {
    readonly op: "unfinished";
    readonly iova: number | undefined;
    readonly lengthBytes: number | undefined;
  }
  | { readonly op: "add"; readonly queues: QueueSetState }
  | { readonly op: "endCq"; readonly qid: number }
  /** Answered with whether it is gone; if not, that is reported when it is. */
  | { readonly op: "endSq"; readonly qid: number }
  /** Answered with whether the command was ended. */
  | { readonly op: "abort"; readonly sqid: number; readonly cid: number }
  /** A completion queue's head has moved: whether the INTA# line stays up is to be known at once. */
  | { readonly op: "look" }
  /** Doorbell Buffer Config. Answered with whether the buffers can be reached. */
  | { readonly op: "buffers"; readonly buffers: DoorbellBuffers }
  | {
    readonly op: "addNamespace";
    readonly namespace: NamespaceGrant;
    /** Descriptors, which are the thread's. */
    readonly fds: Readonly<Record<string, number>>;
  }
  /** Answered with a {@linkcode QueueSetState} of all queues. */
  | { readonly op: "positions" }
  /** Answered with a {@linkcode QueueReport}, which is then the control thread's. */
  | { readonly op: "report" };

/** Opens storage as it was, or is shared. */
export type OpenStorage = (
  block: BlockOptions,
  saved: Saved<unknown>,
) => BlockBackend;

/** What has happened on a queue thread since it was asked last. Plain data. */
export interface QueueReport {
  readonly errors: readonly ErrorEntry[];
  /** By NvmeCounter. */
  readonly counts: readonly number[];
  /** Submission queues that were ended and have come to their end. */
  readonly ended: readonly number[];
  /** Whether a doorbell had a value that cannot be. */
  readonly invalidDoorbell: boolean;
  /** What the driver did that the controller cannot go on from; null for nothing. */
  readonly failure: string | null;
}

/** Serves the queues that its control thread adds here. */
export class NvmeQueueService implements QueueService {
  readonly #open: OpenStorage;
  readonly #queues: NvmeQueues;
  readonly #work: BottomHalf;
  #settings: QueueSettings;
  #ended: number[] = [];
  #invalidDoorbell = false;
  #failure: string | null = null;

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
    this.#settings = settings;
    const page = grant.mapDoorbells ? context.sharedMemory[0]!.bytes : null;
    this.#work = context.loop.bottomHalf(() => this.#queues.run());
    this.#queues = new NvmeQueues({
      ...{ context, pairs, vectors, maxTransferBytes },
      words: new SharedWords(pairs + 1, page, context.words),
      remote: true,
      wake: () => this.#work.schedule(),
      listener: {
        onInvalidDoorbell: () => {
          this.#invalidDoorbell = true;
          context.report();
        },
        onFailure: (reason) => {
          this.#failure = reason;
          this.#configure({ ...this.#settings, running: false });
          context.report();
        },
        onQueueEnded: (qid) => {
          this.#ended.push(qid);
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
    this.#queues.stop();
    this.#queues.configure(settings);
  }

  handle(value: unknown): unknown {
    const message = value as QueueMessage;
    const queues = this.#queues;
    switch (message.op) {
      case "configure":
        return this.#configure(message.settings);
      case "reset":
        return this.#reset();
      case "drain":
        return queues.drain();
      case "stop":
        return queues.stop();
      case "start":
        return queues.start();
      case "hold":
        return queues.hold();
      case "unfinished":
        return queues.unfinished(message.iova, message.lengthBytes);
      case "add":
        return queues.set.add(message.queues);
      case "endCq":
        return queues.set.endCq(message.qid);
      case "endSq":
        return queues.set.endSq(message.qid);
      case "abort":
        return queues.abort(message.sqid, message.cid);
      case "look":
        queues.look();
        return queues.live ? queues.tell() : undefined;
      case "buffers":
        return queues.set.configureDoorbells(message.buffers);
      case "addNamespace": {
        using bag = ResourceBag.of(message.fds);
        return this.#addNamespace(message.namespace, bag);
      }
      case "positions":
        return this.#positions();
      case "report":
        return this.#report();
      default:
        return message satisfies never;
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

  #configure(settings: QueueSettings): void {
    this.#settings = settings;
    this.#queues.configure(settings);
  }

  #reset(): void {
    this.#queues.reset();
    this.#ended = [];
    this.#invalidDoorbell = false;
    this.#failure = null;
  }

  #addNamespace(
    { nsid, block, state }: NamespaceGrant,
    bag: ResourceBag,
  ): void {
    const backend = this.#open(block!, { state, bag: bag.at(`ns${nsid}`) });
    this.#queues.addNamespace({ nsid, backend });
  }

  #positions(): QueueSetState {
    const { engine: { busy }, set } = this.#queues;
    if (busy === 0) return set.save();
    throw new Error(`Cannot tell where queues are: ${busy} commands in flight`);
  }

  #report(): QueueReport {
    const { errors, counters } = this.#queues;
    const report = {
      errors: errors.take(),
      counts: counters.take(),
      ended: this.#ended,
      invalidDoorbell: this.#invalidDoorbell,
      failure: this.#failure,
    };
    this.#ended = [];
    this.#invalidDoorbell = false;
    this.#failure = null;
    return report;
  }
}
