/**
 * The options of `--device nvme,…`.
 *
 * @module
 */

import {
  BLOCK_OPTIONS,
  BlockKind,
  type BlockOptions,
} from "../../src/backend/block/option_table.ts";
import {
  type BlockOptionValues,
  parseBlockOptions,
} from "../../src/backend/block/options.ts";
import type { OptionSpec } from "../model.ts";
import { unknownOption } from "../options.ts";
import { NSID_MAX } from "./io/namespace.ts";

/** The most I/O queue pairs. */
export const QUEUES_MAX = 64;
/** The most entries of an I/O queue. */
export const QUEUE_ENTRIES_MAX = 4096;
const QUEUE_ENTRIES_MIN = 2;
const QUEUE_ENTRIES_DEFAULT = 1024;
const MODEL_DEFAULT = "Outboard NVMe";
const FIRMWARE_DEFAULT = "1.0";

/** How doorbells reach the controller. */
const DOORBELLS = ["auto", "message", "mmap"] as const;

/** A namespace as asked for. */
export interface NamespaceOptions {
  readonly nsid: number;
  readonly block: BlockOptions;
}

/** Parsed options of an NVMe controller; plain data. */
export interface NvmeOptions {
  /** Serial number; null to derive one. */
  readonly serial: string | null;
  /** Model number. */
  readonly model: string;
  /** Firmware revision. */
  readonly firmware: string;
  /** I/O queue pairs. */
  readonly queues: number;
  /** The largest size of an I/O queue. */
  readonly queueEntries: number;
  /** Whether there is MSI-X. */
  readonly msix: boolean;
  /** Whether clients may map the doorbells, which are then polled. */
  readonly mapDoorbells: boolean;
  /** In order of their ids. */
  readonly namespaces: readonly NamespaceOptions[];
}

/** Options that are about the controller and not about storage. */
const CONTROLLER_OPTIONS: readonly OptionSpec[] = [
  {
    name: "serial",
    syntax: "text",
    help:
      "serial number, up to 20 characters, from which NQN, EUI-64 and NGUID follow",
    default: "from the names of the storage; random for memory",
  },
  {
    name: "model",
    syntax: "text",
    help: "model number, up to 40 characters",
    default: MODEL_DEFAULT,
  },
  {
    name: "firmware",
    syntax: "text",
    help: "firmware revision, up to 8 characters",
    default: FIRMWARE_DEFAULT,
  },
  {
    name: "queues",
    syntax: "count",
    help:
      `I/O queue pairs, 1 to ${QUEUES_MAX}; several IOThreads can share them (iothread=0:1)`,
    default: `${QUEUES_MAX}`,
  },
  {
    name: "queue-size",
    syntax: "entries",
    help:
      `largest size of an I/O queue, ${QUEUE_ENTRIES_MIN} to ${QUEUE_ENTRIES_MAX}`,
    default: `${QUEUE_ENTRIES_DEFAULT}`,
  },
  {
    name: "msix",
    syntax: "on|off",
    help:
      "have MSI-X; without it there are MSI and INTA#, one vector for all queues, " +
      "and QEMU can unplug the device",
    default: "on",
  },
  {
    name: "doorbells",
    syntax: DOORBELLS.join("|"),
    help:
      "doorbells are messages, or a page that the client maps and we poll " +
      "(SPDK needs mmap; under QEMU it makes every register write wait; mmap has one IOThread)",
    default: "auto, which is message",
  },
];

/** What stands before the key of a storage option of one of several namespaces. */
const NAMESPACE_KEY = /^ns(\d+)\.(.+)$/;

const NAMESPACE_OPTION: OptionSpec = {
  name: "nsN.OPTION",
  syntax: "value",
  help:
    `a storage option of namespace N, 1 to ${NSID_MAX}: file=a.img,ns2.file=b.img; ` +
    "without ns they are of namespace 1",
};

/** Every option of the model: the controller's own, then those of the storage. */
export const NVME_OPTIONS: readonly OptionSpec[] = [
  ...CONTROLLER_OPTIONS,
  ...BLOCK_OPTIONS.map(({ name, syntax, help, ...rest }): OptionSpec =>
    rest.default === undefined
      ? { name, syntax, help }
      : { name, syntax, help, default: rest.default }
  ),
  NAMESPACE_OPTION,
];

function parseText(key: string, text: string, most: number): string {
  if (!/^[\x20-\x7e]+$/.test(text) || text.length > most) {
    throw new Error(
      `Cannot use ${key}=${text}: 1 to ${most} printable ASCII characters are wanted`,
    );
  }
  return text;
}

function parseCount(
  key: string,
  text: string,
  least: number,
  most: number,
): number {
  const count = Number(text);
  if (!/^\d+$/.test(text) || count < least || count > most) {
    throw new Error(
      `Cannot use ${key}=${text}: ${least} to ${most} is wanted`,
    );
  }
  return count;
}

function parseSwitch(key: string, text: string): boolean {
  if (text !== "on" && text !== "off") {
    throw new Error(`Cannot use ${key}=${text}: it is on or off`);
  }
  return text === "on";
}

function parseDoorbells(text: string): boolean {
  const mode = DOORBELLS.find((each) => each === text);
  if (mode === undefined) {
    throw new Error(
      `Cannot use doorbells=${text}: it is ${DOORBELLS.join(", ")}`,
    );
  }
  return mode === "mmap";
}

/** Options of the controller, and of storage by namespace. */
interface SortedOptions {
  readonly own: ReadonlyMap<string, string>;
  readonly storage: ReadonlyMap<
    number,
    Record<string, string | readonly string[]>
  >;
}

function sortOptions(options: BlockOptionValues): SortedOptions {
  const own = new Map<string, string>();
  const storage = new Map<
    number,
    Record<string, string | readonly string[]>
  >();
  const put = (
    nsid: number,
    key: string,
    value: string | readonly string[],
  ) => {
    const others = storage.get(nsid) ?? {};
    if (Object.hasOwn(others, key)) {
      throw new Error(
        `Cannot use ${key} beside ns${nsid}.${key}: both are of namespace ${nsid}, give one`,
      );
    }
    storage.set(nsid, { ...others, [key]: value });
  };
  for (const [key, value] of Object.entries(options)) {
    const match = NAMESPACE_KEY.exec(key);
    if (match !== null) {
      put(parseCount("ns", match[1]!, 1, NSID_MAX), match[2]!, value);
    } else if (BLOCK_OPTIONS.some(({ name }) => name === key)) {
      put(1, key, value);
    } else if (!CONTROLLER_OPTIONS.some(({ name }) => name === key)) {
      throw unknownOption(key, { name: "nvme", all: NVME_OPTIONS });
    } else if (typeof value !== "string") {
      throw new Error(`Cannot use ${key} ${value.length} times: give it once`);
    } else own.set(key, value);
  }
  // Without a word about it, one namespace of whatever storage is usual.
  if (storage.size === 0) storage.set(1, {});
  return { own, storage };
}

/**
 * Parses and checks the options of `--device nvme,…`.
 *
 * @throws {Error} With what is wrong and what would be right
 */
export function parseNvmeOptions(options: BlockOptionValues): NvmeOptions {
  const { own, storage } = sortOptions(options);
  const serial = own.get("serial");
  const namespaces = [...storage].sort(([a], [b]) => a - b)
    .map(([nsid, values]) => ({ nsid, block: parseBlockOptions(values) }));
  return {
    serial: serial === undefined ? null : parseText("serial", serial, 20),
    model: parseText("model", own.get("model") ?? MODEL_DEFAULT, 40),
    firmware: parseText("firmware", own.get("firmware") ?? FIRMWARE_DEFAULT, 8),
    queues: parseCount(
      "queues",
      own.get("queues") ?? `${QUEUES_MAX}`,
      1,
      QUEUES_MAX,
    ),
    queueEntries: parseCount(
      "queue-size",
      own.get("queue-size") ?? `${QUEUE_ENTRIES_DEFAULT}`,
      QUEUE_ENTRIES_MIN,
      QUEUE_ENTRIES_MAX,
    ),
    msix: parseSwitch("msix", own.get("msix") ?? "on"),
    mapDoorbells: parseDoorbells(own.get("doorbells") ?? "auto"),
    namespaces,
  };
}

/**
 * What a controller's storage is known by, so that its names are the same in every run; null when it does not outlive
 * the process, and its names need not either.
 */
export function storageName(
  namespaces: readonly NamespaceOptions[],
): string | null {
  const names: string[] = [];
  for (const { nsid, block } of namespaces) {
    switch (block.kind) {
      case BlockKind.FILE:
        names.push(`${nsid}:file:${block.path}`);
        break;
      case BlockKind.NBD:
        names.push(`${nsid}:nbd:${block.uri}`);
        break;
      case BlockKind.MEMORY:
        break;
      default:
        block satisfies never;
    }
  }
  return names.length === 0 ? null : names.join("\n");
}
