/**
 * Asynchronous events (NVM Express 1.4, section 5.2).
 *
 * @module
 */

import type { Command } from "./command.ts";
import {
  IN_FLIGHT,
  NVME_AER_ERROR_INVALID_DB_REG,
  NVME_AER_ERROR_INVALID_DB_VALUE,
  NVME_AER_NOTICE_NS_CHANGED,
  NVME_AER_SMART_TEMPERATURE,
  NvmeAer,
  NvmeLog,
  NvmeSc,
} from "./defs.ts";

/** Async Event Request commands that may be outstanding; AERL is one less. */
export const ASYNC_EVENTS_MAX = 4;

/** An event that can happen. */
interface EventKind {
  readonly type: number;
  readonly info: number;
  /** The log page that tells more; reading it lets events of the type through again. */
  readonly log: number;
}

/** Every event, in the order in which they are told. */
export const NvmeEvent = {
  INVALID_DOORBELL_REGISTER: 0,
  INVALID_DOORBELL_VALUE: 1,
  TEMPERATURE: 2,
  NAMESPACE_CHANGED: 3,
} as const;

/** An event of {@linkcode NvmeEvent}. */
export type NvmeEvent = typeof NvmeEvent[keyof typeof NvmeEvent];

const KINDS: readonly EventKind[] = [
  {
    type: NvmeAer.ERROR,
    info: NVME_AER_ERROR_INVALID_DB_REG,
    log: NvmeLog.ERROR,
  },
  {
    type: NvmeAer.ERROR,
    info: NVME_AER_ERROR_INVALID_DB_VALUE,
    log: NvmeLog.ERROR,
  },
  {
    type: NvmeAer.SMART,
    info: NVME_AER_SMART_TEMPERATURE,
    log: NvmeLog.SMART,
  },
  {
    type: NvmeAer.NOTICE,
    info: NVME_AER_NOTICE_NS_CHANGED,
    log: NvmeLog.CHANGED_NS,
  },
];

/**
 * Events that wait for a command, and commands that wait for an event.
 *
 * ```text
 *   an event:  — --raise--> pending --next--> told (its type is held back) --acknowledge--> —
 * ```
 */
export class AsyncEvents {
  readonly #held: Command[] = [];
  readonly #pending: boolean[] = KINDS.map(() => false);
  /** By type: told, and its log page not read since. */
  readonly #heldBack: boolean[] = [false, false, false];

  /** Whether {@linkcode AsyncEvents.next} has something. */
  get deliverable(): boolean {
    return this.#held.length > 0 && this.#nextKind() >= 0;
  }

  /** An event happened. Until it was told, happening again changes nothing. */
  raise(event: NvmeEvent): void {
    this.#pending[event] = true;
  }

  /**
   * An Async Event Request command.
   *
   * @returns IN_FLIGHT, or a status when there are too many
   */
  hold(command: Command): number {
    if (this.#held.length === ASYNC_EVENTS_MAX) return NvmeSc.ASYNC_LIMIT;
    this.#held.push(command);
    return IN_FLIGHT;
  }

  /** Whether the command waits here for an event. */
  holds(command: Command): boolean {
    return this.#held.includes(command);
  }

  /**
   * Takes a command away.
   *
   * @returns Whether it was here
   */
  cancel(command: Command): boolean {
    const at = this.#held.indexOf(command);
    if (at >= 0) this.#held.splice(at, 1);
    return at >= 0;
  }

  /** The command that tells the next event, with the event as its result; see {@linkcode AsyncEvents.deliverable}. */
  next(): Command {
    const at = this.#nextKind();
    const { type, info, log } = KINDS[at]!;
    this.#pending[at] = false;
    this.#heldBack[type] = true;
    const command = this.#held.shift()!;
    command.dw0 = type | info << 8 | log << 16;
    return command;
  }

  /** A log page was read: events that it tells about are known. */
  acknowledge(log: number): void {
    for (const [at, kind] of KINDS.entries()) {
      if (kind.log !== log) continue;
      this.#heldBack[kind.type] = false;
      // The page held whatever changed since the event was told.
      if (at === NvmeEvent.NAMESPACE_CHANGED) this.#pending[at] = false;
    }
  }

  /** No events and no commands. */
  reset(): void {
    this.#held.length = 0;
    this.#pending.fill(false);
    this.#heldBack.fill(false);
  }

  #nextKind(): number {
    for (let i = 0; i < KINDS.length; i++) {
      if (this.#pending[i]! && !this.#heldBack[KINDS[i]!.type]!) return i;
    }
    return -1;
  }
}
