/**
 * The options of `--device nvme,…`.
 *
 * @module
 */

import {
  BLOCK_OPTIONS,
  blockDriver,
  type BlockOptions,
} from "../../src/backend/block/options.ts";
import { numbered } from "../../src/core/option_groups.ts";
import {
  type Infer,
  integer,
  oneOf,
  onOff,
  options,
  text,
} from "../../src/core/options.ts";
import { NSID_MAX } from "./io/namespace.ts";

/** Bounds of MDTS, which is a power of two of 4 KiB. */
export const MDTS_MIN = 1;
export const MDTS_MAX = 8;

/** A namespace as asked for. */
export interface NamespaceOptions {
  readonly nsid: number;
  readonly block: BlockOptions;
}

/** A field of Identify Controller. */
function ascii(most: number) {
  return {
    pattern: [
      new RegExp(`^[ -~]{1,${most}}$`),
      `1 to ${most} printable ASCII characters are wanted`,
    ],
  } as const;
}

/** Every option of the model: the controller's own, then those of the storage. */
export const NVME_OPTIONS = options({
  serial: text("serial", {
    help:
      "serial number, up to 20 characters, from which NQN, EUI-64 and NGUID follow",
    otherwise: "from the names of the storage; random for memory",
    ...ascii(20),
  }),
  model: text("model", {
    help: "model number, up to 40 characters",
    default: "Outboard NVMe",
    ...ascii(40),
  }),
  firmware: text("firmware", {
    help: "firmware revision, up to 8 characters",
    default: "1.0",
    ...ascii(8),
  }),
  queues: integer("queues", {
    syntax: "pairs",
    help: "I/O queue pairs; several IOThreads can share them (iothread=0:1)",
    min: 1,
    max: 64,
    default: "64",
  }),
  queueEntries: integer("queue-size", {
    syntax: "entries",
    help: "largest size of an I/O queue",
    min: 2,
    max: 4096,
    default: "1024",
  }),
  mdts: integer("mdts", {
    syntax: "power",
    help:
      "most data of a command, 4K times two to this power, or what the storage takes " +
      "if that is less; a store that is to be added at run time needs 6",
    min: MDTS_MIN,
    max: MDTS_MAX,
    default: String(MDTS_MAX),
  }),
  msix: onOff("msix", {
    help:
      "have MSI-X; without it there are MSI and INTA#, one vector for all queues, " +
      "and QEMU can unplug the device",
    default: "on",
  }),
  doorbells: oneOf("doorbells", ["auto", "message", "mmap"], {
    help:
      "doorbells are messages, or a page that the client maps and we poll " +
      "(SPDK needs mmap; under QEMU it makes every register write wait; auto is message)",
    default: "auto",
  }),
  namespaces: numbered(
    {
      name: "ns",
      syntax: "value",
      help:
        `a storage option of namespace N, 1 to ${NSID_MAX}: file=a.img,ns2.file=b.img; ` +
        "without ns they are of namespace 1",
    },
    NSID_MAX,
    BLOCK_OPTIONS,
  ),
}, ({ doorbells, namespaces, ...values }) => ({
  ...values,
  mapDoorbells: doorbells === "mmap",
  namespaces: namespaces.map(({ number, options }): NamespaceOptions => ({
    nsid: number,
    block: options,
  })),
}));

/** Parsed options of an NVMe controller; plain data. */
export type NvmeOptions = Infer<typeof NVME_OPTIONS>;

/**
 * Name of a controller's storage, so that its own names are the same in every run; null when it does not outlive
 * the process, and its names need not either.
 */
export function storageName(
  namespaces: readonly NamespaceOptions[],
): string | null {
  const names = namespaces.flatMap(({ nsid, block }) => {
    const identity = blockDriver(block).identity(block);
    return identity === null ? [] : [`${nsid}:${identity}`];
  });
  return names.length === 0 ? null : names.join("\n");
}
