/**
 * What back ends give to their successors on other threads of this process.
 *
 * @module
 */

import type { BlockInfo } from "./contract.ts";

/** What {@linkcode BlockBackend.handOver} of any kind gives at least; plain data, good in this process only. */
export interface BlockHandOver {
  /** Of the storage. */
  readonly kind: string;
  /** Its descriptor; null while there is none. */
  readonly fd: number | null;
  /** As the controller knows it. */
  readonly info: BlockInfo;
  /** By the indices of its counters. */
  readonly counters: readonly number[];
}

/**
 * What a predecessor of this kind gave, or null when there is none.
 *
 * @param inherited From {@linkcode BlockBackend.handOver}; undefined without a predecessor
 * @param mayLackFd Whether there may be no descriptor
 * @throws {Error} When it is from something else
 */
export function inheritedFrom<H extends BlockHandOver>(
  kind: H["kind"],
  inherited: unknown,
  mayLackFd = false,
): H | null {
  if (inherited === undefined) return null;
  const given = inherited as Partial<H> | null;
  const fd = given?.fd;
  const fits = given?.kind === kind && Array.isArray(given.counters) &&
    typeof given.info?.sizeBytes === "number" &&
    (typeof fd === "number" ? fd >= 0 : fd === null && mayLackFd);
  if (!fits) {
    throw new Error(
      `Cannot take storage over: it is no ${kind} that another thread gave`,
    );
  }
  return given as H;
}
