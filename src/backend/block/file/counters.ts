/**
 * What a file back end counts.
 *
 * @module
 */

/** Indices of the counters; the first five are those of {@linkcode BlockOp}. */
export const Count = {
  READ: 0,
  WRITE: 1,
  FLUSH: 2,
  DISCARD: 3,
  WRITE_ZEROES: 4,
  READ_BYTES: 5,
  WRITTEN_BYTES: 6,
  AT_ONCE: 7,
  BY_RING: 8,
  SUBMISSIONS: 9,
  ENTERS: 10,
  BOUNCED: 11,
  QUEUED: 12,
  STALLED: 13,
  FAILED: 14,
  SIZE: 15,
} as const;

/** The counters by name, for metrics. */
export function namedCounts(
  counts: Float64Array,
): Readonly<Record<string, number>> {
  const at = (index: number) => counts[index]!;
  return {
    reads: at(Count.READ),
    writes: at(Count.WRITE),
    flushes: at(Count.FLUSH),
    discards: at(Count.DISCARD),
    writeZeroes: at(Count.WRITE_ZEROES),
    readBytes: at(Count.READ_BYTES),
    writtenBytes: at(Count.WRITTEN_BYTES),
    servedAtOnce: at(Count.AT_ONCE),
    servedByRing: at(Count.BY_RING),
    ringSubmissions: at(Count.SUBMISSIONS),
    ringEnters: at(Count.ENTERS),
    ringSubmissionsPerEnter: at(Count.ENTERS) === 0
      ? 0
      : at(Count.SUBMISSIONS) / at(Count.ENTERS),
    bounced: at(Count.BOUNCED),
    queued: at(Count.QUEUED),
    stalled: at(Count.STALLED),
    failed: at(Count.FAILED),
  };
}
