/**
 * What a PCI device model offers whose queues are to be served by several threads.
 *
 * @module
 */

import type { PciDevice } from "./device.ts";

/** A write of a register, as {@linkcode PciDevice.writeBar} takes it. */
export type RegisterWrite = PciDevice["writeBar"];

/** A write that every twin must hear of. */
export const FOR_ALL: number = -1;

/** A write that concerns the home thread only. */
export const FOR_HOME: number = -2;

/** What a device tells the thread it lives on, for its twins on the others. */
export interface SpreadingListener {
  /** Something changed that twins cannot know of: {@linkcode Spreading.saveShared} tells it. */
  onSharedState(): void;
  /** The device gave up on its driver: no twin may touch a queue any more. */
  onFailure(reason: string): void;
  /**
   * The device is as it was made, at home and on every other thread: what they failed at, raised or were notified of
   * until now does not count any more.
   */
  onReset(): void;
  /** This twin was notified of a queue that another one serves. */
  onForeignKick(queue: number): void;
  /** A register was written by way of configuration space: to be treated as if a client had written it. */
  readonly onIndirectWrite: RegisterWrite;
  /** {@linkcode Spreading.sharedWords} words, 0 at first, that all twins see; used through Atomics only. */
  readonly words: Int32Array<ArrayBuffer>;
  /**
   * For the twin at home: has the one that serves a queue do something, and waits until it has. It may be called wherever
   * the device is called, a register write included: no twin waits for a client.
   *
   * @param message Plain data, for {@linkcode Spreading.answer}
   * @returns What it answered; null when the twin at home serves the queue
   */
  call(queue: number, message: unknown): unknown;
  /**
   * As {@linkcode SpreadingListener.call}, for every other twin, one after the other, though some fail.
   *
   * @param make Makes the message of each
   * @returns What each answered, but for those whose thread has ended
   * @throws {Error} What failed first: that twin may not have done it, or may not be done with it
   */
  callAll(make: () => unknown): unknown[];
}

/**
 * A device whose queues several threads can serve. Each of the threads has a *twin*: a device made by the same model
 * with the same options. The one on the *home* thread is the device that the client talks to. It answers reads; writes
 * of registers are repeated at every twin, so that all know the queues, and each serves its own. A device whose queues
 * come and go by commands keeps its registers at home and calls its twins instead ({@linkcode SpreadingListener.call}).
 *
 * ```text
 *   client ── messages ──▶ home twin ── register writes, resets, maps ──▶ other twins   (answered before the reply)
 *                            ▲  serves its queues                           serve theirs
 *                            └──────────── failures, interrupts that need a look ───────┘
 * ```
 */
export interface Spreading {
  /** How many queues there are. */
  readonly queueCount: number;
  /** How many 32-bit words the twins share, see {@linkcode SpreadingListener.words}; none without it. */
  readonly sharedWords?: number;
  /**
   * Queues of a group are served by one thread.
   *
   * @returns A number from 0 up, or {@linkcode FOR_HOME} for a queue that the home thread must serve
   */
  groupOf(queue: number): number;
  /**
   * Whom a register write concerns.
   *
   * @returns The queue it notifies, {@linkcode FOR_ALL} or {@linkcode FOR_HOME}
   */
  targetOfWrite(bar: number, offset: number): number;
  /** The queue that a doorbell of `spec.bars` notifies. */
  targetOfDoorbell(bar: number, doorbell: number): number;
  /**
   * This twin serves some queues only. Called once, before anything else happens to the device.
   *
   * @param isMine Of which groups; {@linkcode FOR_HOME} is one at home
   */
  begin(isMine: (group: number) => boolean, listener: SpreadingListener): void;
  /** The driver notified a queue of this twin, or another twin did so by {@linkcode SpreadingListener.onForeignKick}. */
  kick(queue: number): void;
  /** Does what the twin at home has called for. @returns Plain data */
  answer?(message: unknown): unknown;
  /**
   * What a twin that serves some groups needs of what this one has opened: plain data for
   * {@linkcode DeviceModel.create}. It stays this one's, and this one does not serve these groups.
   *
   * @throws {Error} When that cannot be shared, with the reason
   */
  share(groups: readonly number[]): unknown;
  /** State beyond registers that all twins share, as plain data. */
  saveShared(): unknown;
  /** Takes over shared state. */
  loadShared(state: unknown): void;
  /** Another twin gave up on the driver. */
  fail(reason: string): void;
  /** Another twin has used buffers while interrupts are on the INTA# line. */
  raiseLine(): void;
}
