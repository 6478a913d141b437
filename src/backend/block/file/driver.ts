/**
 * `file=`: a raw image, or a block device of the host.
 *
 * @module
 */

import {
  counter,
  type CounterTable,
  indicesOf,
} from "../../../core/counters.ts";
import { BACKEND_STATE } from "../../../core/families.ts";
import { BLOCK_COUNTERS, QUEUED } from "../counters.ts";
import {
  type Infer,
  oneOf,
  options,
  refuse,
  size,
  text,
} from "../../../core/options.ts";
import {
  type BlockDriver,
  checkBlocks,
  checkSize,
  COMMON_FIELDS,
  DISCARD,
} from "../driver.ts";

const SERVED = counter("backend_served", "How the storage served requests");

/** Counters of a file. */
export const FILE_COUNTERS = {
  ...BLOCK_COUNTERS,
  servedAtOnce: [SERVED, { path: "at_once" }],
  servedByRing: [SERVED, { path: "ring" }],
  ringSubmissions: null,
  ringEnters: null,
  ringSubmissionsPerEnter: [
    BACKEND_STATE,
    { name: "ring_submissions_per_enter" },
  ],
  /** Requests whose bytes were copied, for want of alignment. */
  bounced: null,
  ...QUEUED,
  /** Writes that took longer at once than they may. */
  stalled: null,
} satisfies CounterTable;

/** Indices of {@linkcode FILE_COUNTERS}. */
export const FileCounter = indicesOf(FILE_COUNTERS);

const OPTIONS = options({
  path: text("file", {
    syntax: "path",
    help: "keep the blocks in a raw image or a block device of the host",
  }),
  createBytes: size("create", {
    help: "make the image, of this size, when there is none",
  }),
  cache: oneOf("cache", ["writeback", "none"], {
    help: "use the host's page cache, or go past it (O_DIRECT)",
    default: "writeback",
  }),
  discard: DISCARD,
  ...COMMON_FIELDS,
}, ({ path, cache, discard, ...values }) => {
  const { createBytes, readonly } = values;
  checkBlocks(values);
  if (createBytes !== null) {
    if (readonly) {
      refuse("create with readonly=on", "a new image could hold nothing");
    }
    checkSize("create", createBytes, values);
  }
  return {
    ...values,
    path: path!,
    direct: cache === "none",
    discard: discard === "unmap",
  };
});

/** A raw image or a block device. */
export type FileBlockOptions = Infer<typeof OPTIONS> & {
  /**
   * For tests: everything through io_uring, or everything at once, blocking. Else from the page cache at once, and what
   * would block through io_uring.
   */
  readonly engine?: "auto" | "ring" | "sync";
  /** Requests in flight, a power of two; 256 unless told. */
  readonly depth?: number;
};

/** Files and block devices. */
export const FILE: BlockDriver<FileBlockOptions> = {
  options: OPTIONS,
  counters: FILE_COUNTERS,
  load: async () => (await import("./file.ts")).openFile,
  identity: ({ path }) => `file:${path}`,
};
