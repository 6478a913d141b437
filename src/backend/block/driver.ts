/**
 * A kind of storage, as each declares itself, and the options that several kinds have.
 *
 * Declarations load nothing that opens descriptors: help needs no permission.
 *
 * @module
 */

import type { CounterTable } from "../../core/counters.ts";
import {
  type Infer,
  integer,
  oneOf,
  onOff,
  type Options,
  refuse,
} from "../../core/options.ts";
import type { Saved } from "../../os/resource_bag.ts";
import { formatSize } from "../../core/size.ts";
import type { BlockBackend, BlockContext } from "./contract.ts";

/**
 * Opens storage.
 *
 * @param saved What a back end with the same options was and had open: used in place of opening it anew
 * @throws {ErrnoError} With what is wrong and the remedy
 */
export type OpenBlock<O> = (
  options: O,
  context: BlockContext,
  saved?: Saved<unknown>,
) => BlockBackend;

/**
 * Begins to open storage, while the loop goes on.
 *
 * @param tell Told in a later turn of the loop
 * @returns Gives up, until it was told
 */
export type BeginOpenBlock<O> = (
  options: O,
  context: BlockContext,
  tell: (outcome: BlockBackend | Error) => void,
) => Disposable;

/** A kind of storage. */
export interface BlockDriver<O extends object> {
  /** Its options. One is called as the kind is, and chooses it. */
  readonly options: Options<O>;
  /** Counters of the kind. */
  readonly counters: CounterTable;
  /** Loads what opens it. */
  readonly load: () => Promise<OpenBlock<O>>;
  /** Loads the same for a loop that serves others, for a kind that may take seconds to open. */
  readonly loadBegin?: () => Promise<BeginOpenBlock<O>>;
  /** The least of `maxTransferBytes` that any has, where that is known before it is open. */
  readonly maxTransferBytes?: number;
  /** Looks at what the options name, and opens nothing. @throws {Error} For what cannot work, with the remedy */
  readonly check?: (options: O) => Promise<void>;
  /** Words that name the storage in every run; null when it does not outlive the process. */
  readonly identity: (options: O) => string | null;
}

/** Options of every kind of storage. */
export const COMMON_FIELDS = {
  readonly: onOff("readonly", { help: "refuse every write", default: "off" }),
  logicalBlockBytes: oneOf("block-size", [512, 4096], {
    help: "the logical block, in bytes",
    default: "512",
  }),
  physicalBlockBytes: oneOf("physical-block-size", [512, 4096], {
    help: "the block that the guest should align to; the host's unless given",
  }),
};

/** Values of {@linkcode COMMON_FIELDS}. */
export type CommonBlockOptions = {
  readonly [K in keyof typeof COMMON_FIELDS]: Infer<typeof COMMON_FIELDS[K]>;
};

/** Options of storage that can give space back. */
export const DISCARD = oneOf("discard", ["unmap", "ignore"], {
  help: "give space back that the guest says it does not need, or keep it",
  default: "unmap",
});

/** Options of storage that others answer for. */
export const TIMEOUT = integer("timeout", {
  syntax: "seconds",
  help: "fail requests that are not answered by then; 0 waits for ever",
  min: 0,
  max: 999_999,
  default: "120",
});

/**
 * Checks the rules between common options.
 *
 * @throws {OptionError}
 */
export function checkBlocks(options: CommonBlockOptions): void {
  const { logicalBlockBytes, physicalBlockBytes } = options;
  if (physicalBlockBytes !== null && physicalBlockBytes < logicalBlockBytes) {
    refuse(
      `physical-block-size=${physicalBlockBytes}`,
      `it is at least the block-size, ${logicalBlockBytes}`,
    );
  }
}

/**
 * Checks that storage has whole blocks.
 *
 * @param key The option that says its size
 * @throws {OptionError}
 */
export function checkSize(
  key: string,
  sizeBytes: number,
  { logicalBlockBytes }: CommonBlockOptions,
): void {
  const right = sizeBytes < logicalBlockBytes
    ? "at least one block"
    : "a multiple of the block";
  if (sizeBytes < logicalBlockBytes || sizeBytes % logicalBlockBytes !== 0) {
    refuse(
      `${key}=${formatSize(sizeBytes)}`,
      `${right} of ${logicalBlockBytes} bytes is wanted`,
    );
  }
}
