/**
 * The disk's options, its features, and its device configuration structure.
 *
 * @module
 */

import { isPowerOfTwo, setU64 } from "../../src/core/bits.ts";
import type { BlockInfo } from "../../src/backend/block/contract.ts";
import {
  BLOCK_OPTIONS,
  type BlockOptions,
} from "../../src/backend/block/option_table.ts";
import { parseBlockOptions } from "../../src/backend/block/options.ts";
import type { AccessWidth } from "../../src/pci/device.ts";
import { Features } from "../../src/virtio/features.ts";
import {
  isVirtioOption,
  parseVirtioOptions,
  type VirtioOptions,
  virtioOptionTable,
} from "../../src/virtio/options.ts";
import type { OptionSpec } from "../model.ts";
import { type OptionGroup, optionGroup, sortOptions } from "../options.ts";
import {
  VIRTIO_BLK_CONFIG,
  VIRTIO_BLK_F,
  VIRTIO_BLK_ID_BYTES,
  VIRTIO_BLK_SECTOR_SIZE,
} from "./defs.ts";
import { RANGES_MAX } from "./in_flight.ts";
import { RANGE_SECTORS_MAX } from "./request.ts";

const QUEUES_MAX = 16;
const QUEUE_SIZE_MIN = 8;
const QUEUE_SIZE_MAX = 1024;
const QUEUE_SIZE_DEFAULT = 256;
/** What is left of a queue's descriptors when header and status have theirs. */
const OVERHEAD_SEGMENTS = 2;
/** Below a page Linux does not go. */
const SIZE_MAX_MIN = 4096;
/** As much as fits into any count of bytes. */
const SIZE_MAX_MAX = 0x4000_0000;
const U16_MAX = 0xffff;

/** How the disk behaves, whatever holds its blocks; plain data. */
export interface DiskOptions {
  /** Number of queues, 1–16. */
  readonly queues: number;
  /** Largest size of each. */
  readonly queueSize: number;
  /** The most data segments of a request. */
  readonly segMax: number;
  /** What GET_ID tells, up to 20 ASCII characters. */
  readonly serial: string;
  /** Whether completed writes may wait for a flush, until the driver says otherwise. */
  readonly writeCache: boolean;
}

/** What a disk is made with; plain data. */
export interface VirtioBlkOptions extends DiskOptions {
  /** Which kinds of ring are offered. */
  readonly rings: VirtioOptions;
  /** What holds its blocks. */
  readonly block: BlockOptions;
}

/** A slow request would hold back every one that was finished behind it: only when asked for. */
const RING_DEFAULTS = { inOrder: false };

const DISK_OPTIONS: readonly OptionSpec[] = [
  {
    name: "queues",
    syntax: "number",
    help:
      `queues, so that each CPU of the guest has its own; 1 to ${QUEUES_MAX}`,
    default: "1",
  },
  {
    name: "queue-size",
    syntax: "entries",
    help:
      `largest size of a queue, a power of two from ${QUEUE_SIZE_MIN} to ${QUEUE_SIZE_MAX}`,
    default: `${QUEUE_SIZE_DEFAULT}`,
  },
  {
    name: "seg-max",
    syntax: "number",
    help:
      `data segments of a request; up to ${OVERHEAD_SEGMENTS} less than queue-size, which is the default`,
  },
  {
    name: "serial",
    syntax: "text",
    help:
      `what the guest can tell the disk by (/dev/disk/by-id); up to ${VIRTIO_BLK_ID_BYTES} characters`,
  },
  {
    name: "write-cache",
    syntax: "on|off",
    help:
      "whether written data may wait for a flush, until the guest says otherwise",
    default: "on",
  },
];

/** Every option of the model: the disk's own, then those of what holds its blocks. */
export const VIRTIO_BLK_OPTIONS: readonly OptionSpec[] = [
  ...DISK_OPTIONS,
  ...BLOCK_OPTIONS,
  ...virtioOptionTable(RING_DEFAULTS),
];

function parseNumber(
  key: string,
  text: string,
  least: number,
  most: number,
): number {
  const value = Number(text);
  if (!/^\d+$/.test(text) || value < least || value > most) {
    throw new Error(
      `Cannot use ${key}=${text}: a number from ${least} to ${most} is wanted`,
    );
  }
  return value;
}

function parseQueueSize(text: string): number {
  const size = Number(text);
  if (
    !/^\d+$/.test(text) || !isPowerOfTwo(size) || size < QUEUE_SIZE_MIN ||
    size > QUEUE_SIZE_MAX
  ) {
    throw new Error(
      `Cannot use queue-size=${text}: a power of two from ${QUEUE_SIZE_MIN} to ${QUEUE_SIZE_MAX} is wanted`,
    );
  }
  return size;
}

function parseSerial(text: string): string {
  if (text.length > VIRTIO_BLK_ID_BYTES || !/^[\x20-\x7e]*$/.test(text)) {
    throw new Error(
      `Cannot use serial=${
        JSON.stringify(text)
      }: up to ${VIRTIO_BLK_ID_BYTES} printable ASCII characters are allowed`,
    );
  }
  return text;
}

function parseOnOff(key: string, text: string): boolean {
  if (text !== "on" && text !== "off") {
    throw new Error(`Cannot use ${key}=${text}: it is on or off`);
  }
  return text === "on";
}

/**
 * Parses and checks the options of `--device virtio-blk,…`.
 *
 * @throws {Error} With what is wrong and what would be right
 */
export function parseVirtioBlkOptions(
  options: Readonly<Record<string, string | readonly string[]>>,
): VirtioBlkOptions {
  const block = optionGroup(BLOCK_OPTIONS);
  const rings: OptionGroup = { has: isVirtioOption, values: {} };
  const own = sortOptions(options, {
    name: "virtio-blk",
    own: DISK_OPTIONS,
    all: VIRTIO_BLK_OPTIONS,
  }, [block, rings]);
  const queueSize = parseQueueSize(
    own.get("queue-size") ?? `${QUEUE_SIZE_DEFAULT}`,
  );
  const segMax = queueSize - OVERHEAD_SEGMENTS;
  return {
    queues: parseNumber("queues", own.get("queues") ?? "1", 1, QUEUES_MAX),
    queueSize,
    segMax: parseNumber(
      "seg-max",
      own.get("seg-max") ?? `${segMax}`,
      1,
      segMax,
    ),
    serial: parseSerial(own.get("serial") ?? ""),
    writeCache: parseOnOff("write-cache", own.get("write-cache") ?? "on"),
    rings: parseVirtioOptions(rings.values, RING_DEFAULTS),
    block: parseBlockOptions(block.values),
  };
}

/** What a disk on such storage offers. */
export function diskFeatures(info: BlockInfo, queues: number): Features {
  const bits: number[] = [
    VIRTIO_BLK_F.SIZE_MAX,
    VIRTIO_BLK_F.SEG_MAX,
    VIRTIO_BLK_F.BLK_SIZE,
    VIRTIO_BLK_F.TOPOLOGY,
    VIRTIO_BLK_F.FLUSH,
    VIRTIO_BLK_F.CONFIG_WCE,
  ];
  if (queues > 1) bits.push(VIRTIO_BLK_F.MQ);
  if (info.readonly) bits.push(VIRTIO_BLK_F.RO);
  else {
    bits.push(VIRTIO_BLK_F.WRITE_ZEROES);
    if (info.discardGranularityBytes > 0) bits.push(VIRTIO_BLK_F.DISCARD);
  }
  return Features.of(...bits);
}

/**
 * How long a segment may be so that a request of `segMax` of them is one the storage takes: there is no limit on the
 * request as a whole.
 */
function sizeMax(info: BlockInfo, segMax: number): number {
  const share = Math.min(
    Math.floor(info.maxTransferBytes / segMax),
    SIZE_MAX_MAX,
  );
  return Math.max(SIZE_MAX_MIN, share - share % SIZE_MAX_MIN);
}

/** The most segments of a request: as the options say, but a page each must still be a request the storage takes. */
export function effectiveSegMax(info: BlockInfo, segMax: number): number {
  return Math.max(
    1,
    Math.min(segMax, Math.floor(info.maxTransferBytes / SIZE_MAX_MIN)),
  );
}

/** The device configuration structure; see {@linkcode VIRTIO_BLK_CONFIG}. */
export class BlkConfig {
  readonly #bytes = new Uint8Array(VIRTIO_BLK_CONFIG.SIZE);
  readonly #view = new DataView(this.#bytes.buffer);

  /** @param segMax See {@linkcode effectiveSegMax} */
  constructor(info: BlockInfo, queues: number, segMax: number) {
    const view = this.#view;
    const at = VIRTIO_BLK_CONFIG;
    const { logicalBlockBytes, physicalBlockBytes } = info;
    const blocks = (bytes: number) => Math.floor(bytes / logicalBlockBytes);
    view.setUint32(at.SIZE_MAX, sizeMax(info, segMax), true);
    view.setUint32(at.SEG_MAX, segMax, true);
    view.setUint32(at.BLK_SIZE, logicalBlockBytes, true);
    view.setUint8(
      at.PHYSICAL_BLOCK_EXP,
      Math.floor(Math.log2(physicalBlockBytes / logicalBlockBytes)),
    );
    view.setUint16(
      at.MIN_IO_SIZE,
      Math.min(blocks(physicalBlockBytes), U16_MAX),
      true,
    );
    view.setUint32(at.OPT_IO_SIZE, blocks(info.optimalBytes), true);
    view.setUint16(at.NUM_QUEUES, queues, true);
    if (!info.readonly) this.#setRanges(info);
    this.setSize(info.sizeBytes);
  }

  #setRanges(info: BlockInfo): void {
    const view = this.#view;
    const at = VIRTIO_BLK_CONFIG;
    const granularity = info.discardGranularityBytes;
    if (granularity > 0) {
      const unit = Math.max(granularity, info.logicalBlockBytes);
      view.setUint32(at.MAX_DISCARD_SECTORS, RANGE_SECTORS_MAX, true);
      view.setUint32(at.MAX_DISCARD_SEG, RANGES_MAX, true);
      view.setUint32(
        at.DISCARD_SECTOR_ALIGNMENT,
        Math.ceil(unit / VIRTIO_BLK_SECTOR_SIZE),
        true,
      );
      view.setUint8(at.WRITE_ZEROES_MAY_UNMAP, 1);
    }
    view.setUint32(at.MAX_WRITE_ZEROES_SECTORS, RANGE_SECTORS_MAX, true);
    view.setUint32(at.MAX_WRITE_ZEROES_SEG, RANGES_MAX, true);
  }

  /** Changes the capacity; part of a sector at the end is not shown. */
  setSize(sizeBytes: number): void {
    setU64(
      this.#view,
      VIRTIO_BLK_CONFIG.CAPACITY,
      Math.floor(sizeBytes / VIRTIO_BLK_SECTOR_SIZE),
    );
  }

  /** Whether the cache mode is writeback. */
  get writeback(): boolean {
    return this.#bytes[VIRTIO_BLK_CONFIG.WRITEBACK] !== 0;
  }

  set writeback(on: boolean) {
    this.#bytes[VIRTIO_BLK_CONFIG.WRITEBACK] = on ? 1 : 0;
  }

  /** Reads `width` bytes, little-endian; they lie inside. */
  read(offset: number, width: AccessWidth): number {
    let value = 0;
    for (let i = width - 1; i >= 0; i--) {
      value = value * 256 + this.#bytes[offset + i]!;
    }
    return value;
  }
}
