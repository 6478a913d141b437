/**
 * The saved state of queues.
 *
 * @module
 */

import { StateReader } from "../../../src/core/state_reader.ts";
import { type DoorbellState, parseDoorbellState } from "./doorbells.ts";

const U32_MAX = 0xffff_ffff;
/** The most entries of an admin queue (AQA). */
const ADMIN_ENTRIES_MAX = 4096;

/** A queue. */
interface QueueState {
  readonly qid: number;
  /** Entries. */
  readonly size: number;
  readonly iova: number;
  readonly head: number;
  readonly tail: number;
  /** The doorbell value that was refused last. */
  readonly rejected: number | null;
  readonly doorbell: DoorbellState;
}

/** A completion queue. */
export interface CompletionQueueState extends QueueState {
  readonly vector: number;
  /** Whether completions interrupt. */
  readonly interrupts: boolean;
  /** Of the next entry: 0 or 1. */
  readonly phase: number;
  /** Entries that no interrupt has told about, and whether one of them is of a command that failed. */
  readonly untold: number;
  readonly urgent: boolean;
}

/** A submission queue. */
export interface SubmissionQueueState extends QueueState {
  /** Its completion queue. */
  readonly cqid: number;
}

/** All queues of a controller. */
export interface QueueSetState {
  readonly completion: readonly CompletionQueueState[];
  readonly submission: readonly SubmissionQueueState[];
}

/** What there can be. */
export interface QueueLimits {
  /** I/O queue pairs. */
  readonly pairs: number;
  /** The largest size of an I/O queue. */
  readonly maxEntries: number;
}

/**
 * Checks the state of queues.
 *
 * @throws {import("../../../src/core/errno.ts").ErrnoError} EINVAL when it cannot be
 */
export function parseQueueSetState(
  value: unknown,
  limits: QueueLimits,
): QueueSetState {
  const reader = new StateReader(value, "the queues");
  const completion = reader.list("completion").map((value) => {
    const each = new StateReader(value, "a completion queue");
    return {
      ...parseQueue(each, limits),
      vector: each.integer("vector", limits.pairs),
      interrupts: each.flag("interrupts"),
      phase: each.integer("phase", 1),
      untold: each.integer("untold", U32_MAX),
      urgent: each.flag("urgent"),
    };
  });
  const submission = reader.list("submission").map((value) => {
    const each = new StateReader(value, "a submission queue");
    return {
      ...parseQueue(each, limits),
      cqid: each.integer("cqid", limits.pairs),
    };
  });
  const cqids = new Set(completion.map(({ qid }) => qid));
  const sqids = new Set(submission.map(({ qid }) => qid));
  if (cqids.size < completion.length || sqids.size < submission.length) {
    throw reader.refused("its state has a queue twice");
  }
  if (submission.some(({ cqid }) => !cqids.has(cqid))) {
    throw reader.refused("its state has a queue that completes nowhere");
  }
  return { completion, submission };
}

function parseQueue(
  reader: StateReader,
  { pairs, maxEntries }: QueueLimits,
): QueueState {
  const qid = reader.integer("qid", pairs);
  const size = reader.integer(
    "size",
    qid === 0 ? ADMIN_ENTRIES_MAX : maxEntries,
  );
  if (size < 2) throw reader.refused("it has less than two entries");
  return {
    ...{ qid, size },
    iova: reader.integer("iova", Number.MAX_SAFE_INTEGER),
    head: reader.integer("head", size - 1),
    tail: reader.integer("tail", size - 1),
    rejected: reader.value("rejected") === null
      ? null
      : reader.integer("rejected", U32_MAX),
    doorbell: parseDoorbellState(reader.value("doorbell")),
  };
}
