/**
 * Queues of one device on several threads.
 *
 * The device, its registers and everything that a driver configures live on the *control thread*, once. The queues that
 * other threads serve belong to a {@linkcode QueueService} on each of these *queue threads*, which the device's model makes
 * there and which is told what to do by messages of plain data.
 *
 * ```text
 *   control thread  ── messages, each carried out and answered before the next ──▶  queue thread
 *     the device    ◀── used buffers by eventfd, or as a request to interrupt; reports ──  its queue service
 * ```
 *
 * @module
 */

import type { ResourceBag } from "../os/resource_bag.ts";
import type { DeviceContext } from "./context.ts";
import type { SharedMemory } from "../memory/shared_memory.ts";

/** The thread that a device lives on, as a place of queues. */
export const CONTROL_THREAD: number = 0;

/** The group of queues that only the device itself serves, on the control thread. */
export const CONTROL_GROUP: number = -1;

/** Serves queues of a device on a queue thread. */
export interface QueueService {
  /**
   * Carries out a message of the device.
   *
   * @param message Plain data
   * @returns Plain data
   * @throws {Error} Thrown again at the device
   */
  handle(message: unknown): unknown;
  /** Looks at the shared words: {@linkcode QueueThreads.wake} was called, or maybe not. */
  wake?(): void;
  /** Counters by name, which are added to those of the device. */
  counters?(): Readonly<Record<string, number>>;
  /** Releases everything; nothing is called afterwards. */
  close(): void;
}

/** Everything a {@linkcode QueueService} is handed. Interrupts go out as those of the device do. */
export interface QueueContext extends
  Pick<
    DeviceContext,
    "memory" | "interrupts" | "loop" | "posted" | "log" | "random"
  > {
  /** Words that all threads of the device see, see {@linkcode QueueThreadsListener.words}. */
  readonly words: Int32Array<ArrayBuffer>;
  /** Memory that the device had of {@linkcode DeviceContext.createSharedMemory}, in the order in which it asked for it. */
  readonly sharedMemory: readonly SharedMemory[];
  /** Has the device look at this service, see {@linkcode QueueThreadsListener.onReport}. */
  report(): void;
}

/** A device as its queue threads know it. */
export interface QueueThreadsListener {
  /** Number of MSI-X vectors it has. */
  readonly vectors: number;
  /** Number of 32-bit words the threads share, 0 at first and used through Atomics only. */
  readonly words: number;
  /** Some service has called {@linkcode QueueContext.report}. */
  onReport(): void;
  /** A service has used buffers while interrupts are on the INTA# line. */
  onLine(): void;
}

/** The queue threads of one device. Every call returns when the thread has done it; a thread that has ended does nothing. */
export interface QueueThreads {
  /** Number of threads, which are numbered from 1. */
  readonly count: number;
  /** The thread that serves a group of queues: a number up to `count`, or {@linkcode CONTROL_THREAD}. */
  threadOf(group: number): number;
  /** Makes the device known. @returns Its shared words */
  attach(listener: QueueThreadsListener): Int32Array<ArrayBuffer>;
  /**
   * Has a thread make its service.
   *
   * @param grant Gives what the service is made of, as plain data; descriptors go into a bag
   * @throws {Error} What that or the model there threw
   */
  open(thread: number, grant: (bag: ResourceBag) => unknown): void;
  /**
   * Has the service of a thread carry out a message.
   *
   * @returns What it answered; undefined from a thread without a service
   * @throws {Error} What it threw
   */
  call(thread: number, message: unknown): unknown;
  /**
   * Has every service carry out a message, though others fail.
   *
   * @returns What each answered whose thread has not ended
   * @throws {Error} What one threw first
   */
  callAll(message: unknown): unknown[];
  /** Has the service of a thread look at the shared words soon; allocates nothing and waits for nothing. */
  wake(thread: number): void;
  /** Ends the service of a thread. */
  close(thread: number): void;
  /** Takes guest memory away from all services. */
  stop(): void;
  /** Gives it back. */
  start(): void;
  /** Sends the interrupts that services wanted until now. */
  deliver(): void;
  /** Everything that services wanted until now is void: the device was reset, and each of them. */
  forget(): void;
  /** The sums of what the services have counted, those that have ended included. */
  counters(): Readonly<Record<string, number>>;
}
