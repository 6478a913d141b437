/**
 * Asynchronous events (NVM Express 1.4, section 5.2).
 *
 * @module
 */

import type { StateReader } from "../../../src/core/state_reader.ts";
import type { Command } from "../command/engine.ts";
import {
  IN_FLIGHT,
  NVME_AER_ERROR_INVALID_DB_REG,
  NVME_AER_ERROR_INVALID_DB_VALUE,
  NVME_AER_NOTICE_NS_CHANGED,
  NVME_AER_SMART_TEMPERATURE,
  NvmeAer,
  NvmeLog,
  NvmeSc,
} from "../defs.ts";

/** Async Event Request commands that may be outstanding; AERL is one less. */
export const ASYNC_EVENTS_MAX = 4;

/** Every event, in the order in which they are told. */
export const NvmeEvent = {
  INVALID_DOORBELL_REGISTER: 0,
  INVALID_DOORBELL_VALUE: 1,
  TEMPERATURE: 2,
  NAMESPACE_CHANGED: 3,
} as const;

/** An event of {@linkcode NvmeEvent}. */
export type NvmeEvent = typeof NvmeEvent[keyof typeof NvmeEvent];

/** Of each event its type, information, and the log page that tells more: reading that lets the type through again. */
const KINDS = [
  [NvmeAer.ERROR, NVME_AER_ERROR_INVALID_DB_REG, NvmeLog.ERROR],
  [NvmeAer.ERROR, NVME_AER_ERROR_INVALID_DB_VALUE, NvmeLog.ERROR],
  [NvmeAer.SMART, NVME_AER_SMART_TEMPERATURE, NvmeLog.SMART],
  [NvmeAer.NOTICE, NVME_AER_NOTICE_NS_CHANGED, NvmeLog.CHANGED_NS],
] as const;

/**
 * Checks the state of events.
 *
 * @throws {import("../../../src/core/errno.ts").ErrnoError} EINVAL when it cannot be
 */
export function parseEventsState(reader: StateReader) {
  const held = reader.parts("held", (command) => ({
    cid: command.integer("cid", 0xffff),
    nsid: command.integer("nsid", 0xffff_ffff),
  }));
  if (held.length > ASYNC_EVENTS_MAX) {
    throw reader.refused(`its state has ${held.length} commands that wait`);
  }
  if (new Set(held.map(({ cid }) => cid)).size < held.length) {
    throw reader.refused("its state has a command twice");
  }
  return {
    /** Commands that wait for an event, the oldest first. */
    held,
    /** Events that wait for a command, of {@linkcode NvmeEvent}. */
    pending: reader.integers("pending", KINDS.length - 1),
    /** Types that were told and whose log page was not read since, of {@linkcode NvmeAer}. */
    heldBack: reader.integers("heldBack", NvmeAer.NOTICE),
  };
}

/** Events as they are saved. */
export type EventsState = ReturnType<typeof parseEventsState>;

/**
 * Events that wait for a command, and commands that wait for an event.
 *
 * ```text
 *   an event:  — --raise--> pending --next--> told (its type is held back) --acknowledge--> —
 * ```
 */
export class AsyncEvents {
  readonly #held: Command[] = [];
  readonly #pending = new Set<number>();
  /** Types that were told, and whose log page was not read since. */
  readonly #heldBack = new Set<number>();

  /** True while {@linkcode AsyncEvents.next} has something. */
  get deliverable(): boolean {
    return this.#held.length > 0 && this.#nextKind() >= 0;
  }

  /** Number of commands that wait for an event. */
  get waiting(): number {
    return this.#held.length;
  }

  /** Events and the commands that wait for them. */
  save(): EventsState {
    return {
      held: this.#held.map(({ cid, nsid }) => ({ cid, nsid })),
      pending: [...this.#pending],
      heldBack: [...this.#heldBack],
    };
  }

  /** Takes over events; the commands come by {@linkcode AsyncEvents.hold}. */
  load({ pending, heldBack }: EventsState): void {
    for (const event of pending) this.#pending.add(event);
    for (const type of heldBack) this.#heldBack.add(type);
  }

  /** An event happened. Until it was told, happening again changes nothing. */
  raise(event: NvmeEvent): void {
    this.#pending.add(event);
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

  /**
   * Takes a command away.
   *
   * @returns True when it was here
   */
  cancel(command: Command): boolean {
    const at = this.#held.indexOf(command);
    if (at >= 0) this.#held.splice(at, 1);
    return at >= 0;
  }

  /** The command that tells the next event, with the event as its result; see {@linkcode AsyncEvents.deliverable}. */
  next(): Command {
    const at = this.#nextKind();
    const [type, info, log] = KINDS[at]!;
    this.#pending.delete(at);
    this.#heldBack.add(type);
    const command = this.#held.shift()!;
    command.dw0 = type | info << 8 | log << 16;
    return command;
  }

  /** A log page was read: events that it tells about are known. */
  acknowledge(log: number): void {
    for (const [at, [type, , its]] of KINDS.entries()) {
      if (its !== log) continue;
      this.#heldBack.delete(type);
      // The page held whatever changed since the event was told.
      if (at === NvmeEvent.NAMESPACE_CHANGED) this.#pending.delete(at);
    }
  }

  /** No events and no commands. */
  reset(): void {
    this.#held.length = 0;
    this.#pending.clear();
    this.#heldBack.clear();
  }

  #nextKind(): number {
    return KINDS.findIndex(([type], event) =>
      this.#pending.has(event) && !this.#heldBack.has(type)
    );
  }
}
