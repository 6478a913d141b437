/**
 * `file=`: a raw image, or a block device of the host.
 *
 * @module
 */

import { FILE_COUNTERS } from "./counters.ts";
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

/** How a file is accessed; for tests and measurements. */
export const FileEngine = {
  /** From the page cache at once, what would block through io_uring; blocking where io_uring is refused. */
  AUTO: "auto",
  /** Everything through io_uring. */
  RING: "ring",
  /** Everything at once, blocking. */
  SYNC: "sync",
} as const;

/** A way to access a file. */
export type FileEngine = typeof FileEngine[keyof typeof FileEngine];

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
  /** {@linkcode FileEngine.AUTO} unless told. */
  readonly engine?: FileEngine;
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
