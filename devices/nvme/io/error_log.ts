/**
 * The error log (NVM Express 1.4, section 5.14.1.1): the last errors of one thread.
 *
 * @module
 */

import type { StateReader } from "../../../src/core/state_reader.ts";
import type { Command } from "../command/engine.ts";
import { NvmeAdmin, NvmeCmd, NvmeSc, SQE } from "../defs.ts";
import type { SharedWords } from "../threads/shared_words.ts";

/** Entries of the error log; ELPE is one less. */
export const ERROR_LOG_ENTRIES = 16;

const U32_MAX = 0xffff_ffff;
/** SCT and SC of a status. */
const STATUS_CODE = 0x7ff;

/** The largest value of each field of an entry. */
const FIELD_MAX = {
  /** Counts all errors of the controller, from 1. */
  number: U32_MAX,
  /** Its submission queue; {@linkcode NO_COMMAND} for an error of no command. */
  sqid: 0xffff,
  /** The command; {@linkcode NO_COMMAND} for an error of none. */
  cid: 0xffff,
  /** 15 bits. */
  status: 0x7fff,
  /** Place of the error in the command: byte in 7:0, bit in 10:8; {@linkcode NO_LOCATION} for no single place. */
  location: 0xffff,
  /** The first block that it is about: low and high word. */
  lbaLow: U32_MAX,
  lbaHigh: U32_MAX,
  nsid: U32_MAX,
} as const;

/** An entry of the error log (figure 193). */
export type ErrorEntry = Record<keyof typeof FIELD_MAX, number>;

/** Stands for the queue and the command of an error that no command made (figure 193). */
const NO_COMMAND = 0xffff;
/** An error that is not about one place in a command. */
const NO_LOCATION = 0xffff;

/** Places in a command that statuses are about, in bytes from its start. */
const LOCATIONS: ReadonlyMap<number, number> = new Map([
  [NvmeSc.INVALID_OPCODE, 0],
  [NvmeSc.CMDID_CONFLICT, 2],
  [NvmeSc.INVALID_NS, SQE.NSID * 4],
  [NvmeSc.LBA_RANGE, SQE.CDW10 * 4],
  [NvmeSc.QID_INVALID, SQE.CDW10 * 4],
  [NvmeSc.INVALID_LOG_PAGE, SQE.CDW10 * 4],
  [NvmeSc.QUEUE_SIZE, SQE.CDW10 * 4 + 2],
  [NvmeSc.CQ_INVALID, SQE.CDW11 * 4 + 2],
  [NvmeSc.INVALID_VECTOR, SQE.CDW11 * 4 + 2],
]);

/** The place in a command of the error that a status tells, as {@linkcode ErrorEntry.location} has it. */
function errorLocation({ opcode, status }: Command): number {
  const code = status & STATUS_CODE;
  // Its ranges are in memory, and not in the command.
  if (opcode === NvmeCmd.DSM && code === NvmeSc.LBA_RANGE) return NO_LOCATION;
  return LOCATIONS.get(code) ?? NO_LOCATION;
}

/** Commands by which drivers ask what there is. */
const QUESTIONS: readonly number[] = [
  NvmeAdmin.IDENTIFY,
  NvmeAdmin.GET_FEATURES,
  NvmeAdmin.GET_LOG_PAGE,
];
/** Statuses by which they are told that it is not there. */
const REFUSALS: readonly number[] = [
  NvmeSc.INVALID_OPCODE,
  NvmeSc.INVALID_FIELD,
  NvmeSc.INVALID_NS,
  NvmeSc.INVALID_LOG_PAGE,
];

/**
 * Tells whether an admin command merely found that something optional is not there. That is no error to be looked into: drivers
 * ask at every start, and a log that fills with their questions alarms people (smartd mails each new entry).
 */
export function isUnmetQuestion(opcode: number, status: number): boolean {
  return QUESTIONS.includes(opcode) && REFUSALS.includes(status & STATUS_CODE);
}

/**
 * Checks an entry.
 *
 * @throws {import("../../../src/core/errno.ts").ErrnoError} EINVAL when it cannot be
 */
export function parseErrorEntry(reader: StateReader): ErrorEntry {
  return Object.fromEntries(
    Object.entries(FIELD_MAX).map((
      [name, max],
    ) => [name, reader.integer(name, max)]),
  ) as ErrorEntry;
}

/** The errors that one thread has found. */
export class ErrorLog {
  readonly #words: SharedWords;
  /** Made once: number 0 is none. */
  readonly #entries: readonly ErrorEntry[] = Array.from(
    { length: ERROR_LOG_ENTRIES },
    () => ({
      ...{ number: 0, sqid: 0, cid: 0, status: 0, location: 0 },
      ...{ lbaLow: 0, lbaHigh: 0, nsid: 0 },
    }),
  );
  /** Index of the entry that the next error takes. */
  #next = 0;

  /** @param words Numbers the errors of all threads */
  constructor(words: SharedWords) {
    this.#words = words;
  }

  /** Adds the error of a command; allocates nothing. */
  addCommand(sqid: number, command: Command): void {
    const entry = this.add(command.status);
    entry.sqid = sqid;
    entry.cid = command.cid;
    entry.location = errorLocation(command);
    entry.lbaLow = command.lbaLow;
    entry.lbaHigh = command.lbaHigh;
    entry.nsid = command.nsid;
  }

  /** Adds an error that no command made. @returns Its entry */
  add(status: number): ErrorEntry {
    const entry = this.#entries[this.#next]!;
    this.#next = (this.#next + 1) % ERROR_LOG_ENTRIES;
    entry.number = this.#words.nextError();
    entry.status = status;
    entry.sqid = entry.cid = NO_COMMAND;
    entry.location = NO_LOCATION;
    entry.lbaLow = entry.lbaHigh = entry.nsid = 0;
    return entry;
  }

  /** The last errors, the newest first. */
  newest(): ErrorEntry[] {
    return this.#entries.filter(({ number }) => number > 0)
      .map((entry) => ({ ...entry }))
      .sort((a, b) => b.number - a.number);
  }

  /** As {@linkcode ErrorLog.newest}, which are forgotten here. */
  take(): ErrorEntry[] {
    const newest = this.newest();
    for (const entry of this.#entries) entry.number = 0;
    return newest;
  }

  /** Adds errors that were found elsewhere. */
  merge(entries: readonly ErrorEntry[]): void {
    const all = [...this.take(), ...entries]
      .sort((a, b) => b.number - a.number).slice(0, ERROR_LOG_ENTRIES);
    all.reverse().forEach((entry, i) =>
      Object.assign(this.#entries[i]!, entry)
    );
    this.#next = all.length % ERROR_LOG_ENTRIES;
  }
}
