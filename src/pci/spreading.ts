/**
 * What a PCI device model offers whose queues are to be served by several threads.
 *
 * @module
 */

import type { PciDevice } from "./device.ts";

/** A write of a register, as {@linkcode PciDevice.writeBar} takes it. */
export type RegisterWrite = PciDevice["writeBar"];

/** A write that every twin must hear of. */
export const FOR_ALL = -1;

/** A write that concerns the home thread only. */
export const FOR_HOME = -2;

/** What a device tells the thread it lives on, for its twins on the others. */
export interface SpreadingListener {
  /** Something changed that twins cannot know of: {@linkcode Spreading.saveShared} tells it. */
  onSharedState(): void;
  /** The device gave up on its driver: no twin may touch a queue any more. */
  onFailure(reason: string): void;
  /** This twin was notified of a queue that another one serves. */
  onForeignKick(queue: number): void;
  /** A register was written by way of configuration space: to be treated as if a client had written it. */
  readonly onIndirectWrite: RegisterWrite;
}

/**
 * A device whose queues several threads can serve. Each of the threads has a *twin*: a device made by the same model
 * with the same options. The one on the *home* thread is the device that the client talks to. It answers reads; writes
 * of registers are repeated at every twin, so that all know the queues, and each serves its own.
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
   * @param isMine Of which groups
   */
  begin(isMine: (group: number) => boolean, listener: SpreadingListener): void;
  /** The driver notified a queue of this twin. */
  kick(queue: number): void;
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
