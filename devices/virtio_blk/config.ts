/**
 * The disk's options, its features, and its device configuration structure.
 *
 * @module
 */

import { setU64 } from "../../src/core/bits.ts";
import type { BlockInfo } from "../../src/backend/block/contract.ts";
import { BLOCK_OPTIONS } from "../../src/backend/block/options.ts";
import {
  type Infer,
  integer,
  onOff,
  options,
  refuse,
  text,
} from "../../src/core/options.ts";
import type { AccessWidth } from "../../src/pci/device.ts";
import { Features } from "../../src/virtio/features.ts";
import { virtioOptions } from "../../src/virtio/options.ts";
import {
  VIRTIO_BLK_CONFIG,
  VIRTIO_BLK_F,
  VIRTIO_BLK_ID_BYTES,
  VIRTIO_BLK_SECTOR_SIZE,
} from "./defs.ts";
import { RANGES_MAX } from "./in_flight.ts";
import { RANGE_SECTORS_MAX } from "./request.ts";

const QUEUE_SIZE_MAX = 1024;
/** Descriptors of a queue that header and status take. */
const OVERHEAD_SEGMENTS = 2;
/** Below a page Linux does not go. */
const SIZE_MAX_MIN = 4096;
/** As much as fits into any count of bytes. */
const SIZE_MAX_MAX = 0x4000_0000;
const U16_MAX = 0xffff;

/** Every option of the model: the disk's own, those of what holds its blocks, and those of its queues. */
export const VIRTIO_BLK_OPTIONS = options({
  queues: integer("queues", {
    help: "queues, so that each CPU of the guest has its own",
    min: 1,
    max: 16,
    default: "1",
  }),
  queueSize: integer("queue-size", {
    syntax: "entries",
    help: "largest size of a queue",
    min: 8,
    max: QUEUE_SIZE_MAX,
    powerOfTwo: true,
    default: "256",
  }),
  segMax: integer("seg-max", {
    help:
      `data segments of a request; up to ${OVERHEAD_SEGMENTS} less than queue-size, which is the default`,
    min: 1,
    max: QUEUE_SIZE_MAX - OVERHEAD_SEGMENTS,
  }),
  serial: text("serial", {
    help:
      `what the guest can tell the disk by (/dev/disk/by-id); up to ${VIRTIO_BLK_ID_BYTES} characters`,
    pattern: [
      new RegExp(`^[ -~]{0,${VIRTIO_BLK_ID_BYTES}}$`),
      `up to ${VIRTIO_BLK_ID_BYTES} printable ASCII characters are allowed`,
    ],
    default: "",
  }),
  writeCache: onOff("write-cache", {
    help:
      "whether written data may wait for a flush, until the guest says otherwise",
    default: "on",
  }),
  block: BLOCK_OPTIONS,
  // A slow request would hold back every one that was finished behind it: only when asked for.
  rings: virtioOptions(false),
}, (values) => {
  const most = values.queueSize - OVERHEAD_SEGMENTS;
  const segMax = values.segMax ?? most;
  if (segMax > most) {
    refuse(`seg-max=${segMax}`, `a number from 1 to ${most} is wanted`);
  }
  return { ...values, segMax };
});

/** Options of a disk; plain data. */
export type VirtioBlkOptions = Infer<typeof VIRTIO_BLK_OPTIONS>;

/** Options of the disk itself, whatever holds its blocks. */
export type DiskOptions = Omit<VirtioBlkOptions, "block" | "rings">;

/** Features that a disk on such storage offers. */
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
 * Length that a segment may have so that a request of `segMax` of them is one the storage takes: there is no limit on the
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

  /** True when the cache mode is writeback. */
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
