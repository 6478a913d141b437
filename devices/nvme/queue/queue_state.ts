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

/** A completion queue. */
export interface CompletionQueueState {
  readonly qid: number;
  /** Entries. */
  readonly size: number;
  readonly iova: number;
  readonly vector: number;
  /** Whether completions interrupt. */
  readonly interrupts: boolean;
  readonly head: number;
  readonly tail: number;
  /** Of the next entry: 0 or 1. */
  readonly phase: number;
  /** Entries that no interrupt has told about, and whether one of them is of a command that failed. */
  readonly untold: number;
  readonly urgent: boolean;
  /** The doorbell value that was refused last. */
  readonly rejected: number | null;
  readonly doorbell: DoorbellState;
}

/** A submission queue. */
export interface SubmissionQueueState {
  readonly qid: number;
  /** Entries. */
  readonly size: number;
  readonly iova: number;
  /** Its completion queue. */
  readonly cqid: number;
  readonly head: number;
  readonly tail: number;
  /** The doorbell value that was refused last. */
  readonly rejected: number | null;
  readonly doorbell: DoorbellState;
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
  const completion = reader.list("completion").map((each) =>
    parseCompletionQueue(each, limits)
  );
  const submission = reader.list("submission").map((each) =>
    parseSubmissionQueue(each, limits)
  );
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

function parseCompletionQueue(
  value: unknown,
  limits: QueueLimits,
): CompletionQueueState {
  const reader = new StateReader(value, "a completion queue");
  const qid = reader.integer("qid", limits.pairs);
  const size = parseSize(reader, qid, limits);
  return {
    qid,
    size,
    iova: reader.integer("iova", Number.MAX_SAFE_INTEGER),
    vector: reader.integer("vector", limits.pairs),
    interrupts: reader.flag("interrupts"),
    head: reader.integer("head", size - 1),
    tail: reader.integer("tail", size - 1),
    phase: reader.integer("phase", 1),
    untold: reader.integer("untold", U32_MAX),
    urgent: reader.flag("urgent"),
    rejected: parseRejected(reader),
    doorbell: parseDoorbellState(reader.value("doorbell")),
  };
}

function parseSubmissionQueue(
  value: unknown,
  limits: QueueLimits,
): SubmissionQueueState {
  const reader = new StateReader(value, "a submission queue");
  const qid = reader.integer("qid", limits.pairs);
  const size = parseSize(reader, qid, limits);
  return {
    qid,
    size,
    iova: reader.integer("iova", Number.MAX_SAFE_INTEGER),
    cqid: reader.integer("cqid", limits.pairs),
    head: reader.integer("head", size - 1),
    tail: reader.integer("tail", size - 1),
    rejected: parseRejected(reader),
    doorbell: parseDoorbellState(reader.value("doorbell")),
  };
}

function parseSize(
  reader: StateReader,
  qid: number,
  { maxEntries }: QueueLimits,
): number {
  const most = qid === 0 ? ADMIN_ENTRIES_MAX : maxEntries;
  const size = reader.integer("size", most);
  if (size < 2) throw reader.refused("it has less than two entries");
  return size;
}

function parseRejected(reader: StateReader): number | null {
  return reader.value("rejected") === null
    ? null
    : reader.integer("rejected", U32_MAX);
}
