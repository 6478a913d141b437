/**
 * The storage options of a device as data: the table of keys, and the checked options.
 *
 * @module
 */

/** The kinds of storage. */
export const BlockKind = {
  /** A raw image file, or a block device of the host. */
  FILE: "file",
  /** Memory that is gone with the process. */
  MEMORY: "memory",
  /** A network block device. */
  NBD: "nbd",
} as const;

/** A kind of storage; also the key of its option. */
export type BlockKind = typeof BlockKind[keyof typeof BlockKind];

/** One row of the option table, for help and for parsing. */
export interface BlockOption {
  /** The key on the command line. */
  readonly name: string;
  /** Which kinds of storage it belongs to; any when absent. */
  readonly kinds?: readonly BlockKind[];
  /** What its value looks like. */
  readonly syntax: string;
  /** One line for people. */
  readonly help: string;
  /** The value when it is not given; none when absent. */
  readonly default?: string;
}

/** The storage options in the order help prints them. */
export const BLOCK_OPTIONS: readonly BlockOption[] = [
  {
    name: "file",
    syntax: "path",
    help: "keep the blocks in a raw image or a block device of the host",
  },
  {
    name: "memory",
    syntax: "size",
    help:
      "keep the blocks in memory, when neither file nor nbd is given; on huge " +
      "pages where /sys/kernel/mm/transparent_hugepage/shmem_enabled says advise",
    default: "64M",
  },
  {
    name: "nbd",
    syntax: "uri",
    help: "keep the blocks on a network block device server",
  },
  {
    name: "timeout",
    kinds: [BlockKind.NBD],
    syntax: "seconds",
    help:
      "fail requests that the server has not answered by then; 0 waits for ever",
    default: "120",
  },
  {
    name: "readonly",
    syntax: "on|off",
    help: "refuse every write",
    default: "off",
  },
  {
    name: "create",
    kinds: [BlockKind.FILE],
    syntax: "size",
    help: "make the image, of this size, when there is none",
  },
  {
    name: "cache",
    kinds: [BlockKind.FILE],
    syntax: "writeback|none",
    help: "use the host's page cache, or go past it (O_DIRECT)",
    default: "writeback",
  },
  {
    name: "discard",
    kinds: [BlockKind.FILE, BlockKind.MEMORY],
    syntax: "unmap|ignore",
    help: "give space back that the guest says it does not need, or keep it",
    default: "unmap",
  },
  {
    name: "block-size",
    syntax: "512|4096",
    help: "the logical block, in bytes",
    default: "512",
  },
  {
    name: "physical-block-size",
    syntax: "512|4096",
    help: "the block that the guest should align to; the host's unless given",
  },
];

/** What every kind of storage has. */
export interface CommonBlockOptions {
  /** Whether writes are refused. */
  readonly readonly: boolean;
  /** The logical block in bytes. */
  readonly logicalBlockBytes: 512 | 4096;
  /** The physical block in bytes; null for what the storage says. */
  readonly physicalBlockBytes: 512 | 4096 | null;
}

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

/** A raw image or a block device. */
export interface FileBlockOptions extends CommonBlockOptions {
  readonly kind: typeof BlockKind.FILE;
  /** Where it is. */
  readonly path: string;
  /** The size of a new image in bytes, when there is none; null makes none. */
  readonly createBytes: number | null;
  /** Whether the host's page cache is avoided. */
  readonly direct: boolean;
  /** Whether discarded space is given back. */
  readonly discard: boolean;
  /** How it is accessed; {@linkcode FileEngine.AUTO} unless told. */
  readonly engine?: FileEngine;
  /** Requests in flight, a power of two; 256 unless told. */
  readonly depth?: number;
}

/** Memory. */
export interface MemoryBlockOptions extends CommonBlockOptions {
  readonly kind: typeof BlockKind.MEMORY;
  /** How much, in bytes. */
  readonly sizeBytes: number;
  /** Whether discarded space is given back. */
  readonly discard: boolean;
}

/** A network block device. */
export interface NbdBlockOptions extends CommonBlockOptions {
  readonly kind: typeof BlockKind.NBD;
  /** Where it is, as the NBD URI specification has it. */
  readonly uri: string;
  /** How long a request may wait for the server in milliseconds; 0 for ever. */
  readonly timeoutMs: number;
}

/** What holds a controller's blocks; plain data that can be sent to a Worker. */
export type BlockOptions =
  | FileBlockOptions
  | MemoryBlockOptions
  | NbdBlockOptions;
