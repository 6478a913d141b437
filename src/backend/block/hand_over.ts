/**
 * What back ends give to their successors on other threads of this process.
 *
 * @module
 */

import type { BlockInfo } from "./contract.ts";
import type { NbdWriteState } from "./nbd/commands.ts";
import type { NbdLinkState } from "./nbd/link.ts";
import { BlockKind } from "./option_table.ts";

/** Of a file: its descriptor, with the lock that belongs to this opening of it. */
export interface FileHandOver {
  readonly kind: typeof BlockKind.FILE;
  readonly fd: number;
  /** As the controller knows it. */
  readonly info: BlockInfo;
  /** Whether every write is to be durable when it is completed. */
  readonly durable: boolean;
  /** Whether the lock stays with the giver, who goes on beside the receiver. */
  readonly shared?: boolean;
  /** By the indices of the file's counters. */
  readonly counters: readonly number[];
}

/** Of memory: its memfd, and where that is mapped. */
export interface MemoryHandOver {
  readonly kind: typeof BlockKind.MEMORY;
  readonly fd: number;
  /** As long as `info.sizeBytes`. */
  readonly hva: number;
  /** As the controller knows it. */
  readonly info: BlockInfo;
  /** By the indices of the memory's counters. */
  readonly counters: readonly number[];
}

/** Of a network block device: the connection, if there is one. */
export interface NbdHandOver extends NbdLinkState, NbdWriteState {
  readonly kind: typeof BlockKind.NBD;
  /** By NbdCounter. */
  readonly counters: readonly number[];
}

/** What {@linkcode BlockBackend.handOver} of any kind gives; plain data, good in this process only. */
export type BlockHandOver = FileHandOver | MemoryHandOver | NbdHandOver;

/**
 * What a predecessor of this kind gave, or null when there is none.
 *
 * @param inherited From {@linkcode BlockBackend.handOver}; undefined without a predecessor
 * @throws {Error} When it is from something else
 */
export function inheritedFrom<Kind extends BlockKind>(
  kind: Kind,
  inherited: unknown,
): Extract<BlockHandOver, { kind: Kind }> | null {
  if (inherited === undefined) return null;
  const given = inherited as Partial<BlockHandOver> | null;
  const isDescriptor = Number.isInteger(given?.fd) && given!.fd! >= 0;
  const fits = given?.kind === kind && Array.isArray(given.counters) &&
    typeof given.info?.sizeBytes === "number" &&
    (isDescriptor || (kind === BlockKind.NBD && given.fd === null));
  if (!fits) {
    throw new Error(
      `Cannot take storage over: it is no ${kind} that another thread gave`,
    );
  }
  return given as Extract<BlockHandOver, { kind: Kind }>;
}
