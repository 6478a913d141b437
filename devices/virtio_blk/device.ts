/**
 * The virtio block device (virtio 1.3, section 5.2): what a driver configures, and a person at run time.
 *
 * @module
 */

import type { BlockBackend } from "../../src/backend/block/contract.ts";
import { resizeStorage } from "../../src/backend/block/resize.ts";
import { formatSize } from "../../src/core/size.ts";
import type { DeviceState } from "../../src/core/state_form.ts";
import type { ResourceBag } from "../../src/os/resource_bag.ts";
import type { DeviceContext } from "../../src/pci/context.ts";
import type { AccessWidth, DeviceCommand } from "../../src/pci/device.ts";
import { CONTROL_GROUP } from "../../src/pci/queue_threads.ts";
import type {
  QueueSharing,
  VirtioDevice,
  VirtioTransport,
} from "../../src/virtio/device.ts";
import type { Features } from "../../src/virtio/features.ts";
import type { VirtioOptions } from "../../src/virtio/options.ts";
import type { Virtqueue } from "../../src/virtio/queue/queue.ts";
import {
  BlkConfig,
  diskFeatures,
  type DiskOptions,
  effectiveSegMax,
} from "./config.ts";
import {
  PCI_CLASS_STORAGE_SCSI,
  VIRTIO_BLK_CONFIG,
  VIRTIO_BLK_F,
  VIRTIO_ID_BLOCK,
} from "./defs.ts";
import { BlkQueues, type BlkSettings } from "./queues.ts";
import {
  parseVirtioBlkState,
  VIRTIO_BLK_FORM,
  type VirtioBlkState,
} from "./state.ts";

/** Parts of a {@linkcode VirtioBlk}. */
export interface VirtioBlkParts {
  /** As handed to the model. */
  readonly context: DeviceContext;
  readonly transport: VirtioTransport;
  /** Storage of its blocks; the disk starts and closes it. */
  readonly backend: BlockBackend;
  /** Options of the disk itself. */
  readonly options: DiskOptions & { readonly rings?: VirtioOptions };
}

/** A disk: its configuration, around the {@linkcode BlkQueues} of its own thread. */
export class VirtioBlk implements VirtioDevice {
  readonly deviceId: number = VIRTIO_ID_BLOCK;
  readonly pciClassCode: number = PCI_CLASS_STORAGE_SCSI;
  readonly features: Features;
  readonly queueSizes: readonly number[];
  readonly configLengthBytes: number = VIRTIO_BLK_CONFIG.SIZE;
  readonly commands: Readonly<Record<string, DeviceCommand>>;
  readonly sharing: QueueSharing;
  readonly offer: Partial<VirtioOptions>;
  readonly #context: DeviceContext;
  readonly #transport: VirtioTransport;
  readonly #backend: BlockBackend;
  readonly #options: DiskOptions;
  readonly #config: BlkConfig;
  readonly #queues: BlkQueues;
  /** The size that a person has heard of last, from this disk or where it came from. */
  #toldBytes: number;

  constructor(parts: VirtioBlkParts) {
    const { context, transport, backend, options } = parts;
    const { info } = backend;
    const { queues, queueSize } = options;
    this.#context = context;
    this.#transport = transport;
    this.#backend = backend;
    this.#options = options;
    this.offer = options.rings ?? {};
    this.features = diskFeatures(info, queues);
    this.queueSizes = new Array<number>(queues).fill(queueSize);
    const segMax = effectiveSegMax(info, options.segMax);
    this.#config = new BlkConfig(info, queues, segMax);
    this.#toldBytes = info.sizeBytes;
    this.commands = { resize: resizeCommand(backend) };
    this.sharing = {
      // A connection has one thread, and with it every queue.
      groupOf: (queue) => backend.share === undefined ? CONTROL_GROUP : queue,
      grant: (_groups, bag) => backend.share!(bag),
      settings: () => this.#settings(),
    };
    this.#queues = new BlkQueues({
      ...{ context, transport, backend, options },
      onResize: () => this.#onResize(),
    });
    this.#setWriteCache(options.writeCache);
  }

  /** Number of requests that were taken from the queues of this thread and not answered. */
  get inFlight(): number {
    return this.#queues.inFlight;
  }

  dependsOnRegisters(): boolean {
    return this.#queues.dependsOnRegisters();
  }

  acceptsFeatures(features: Features): boolean {
    // The driver may read the mode as soon as FEATURES_OK is set (5.2.5).
    this.#setWriteCache(this.#initialWriteCache(features));
    return true;
  }

  readConfig(offset: number, width: AccessWidth): number {
    return this.#config.read(offset, width);
  }

  writeConfig(offset: number, width: AccessWidth, value: number): void {
    // The only field that a driver may write (5.2.4).
    if (offset !== VIRTIO_BLK_CONFIG.WRITEBACK || width !== 1) return;
    this.#setWriteCache(value !== 0);
    this.#transport.settingsChanged?.();
  }

  start(features: Features, queues: readonly Virtqueue[]): void {
    this.#queues.start(features, queues);
    if (!features.has(VIRTIO_BLK_F.CONFIG_WCE)) {
      this.#setWriteCache(this.#initialWriteCache(features));
    }
  }

  notify(queue: Virtqueue): void {
    this.#queues.notify(queue);
  }

  pause(): void {
    this.#queues.pause();
  }

  resume(): void {
    this.#queues.resume();
  }

  hold(): number {
    return this.#queues.hold();
  }

  unfinished(iova?: number, lengthBytes?: number): number {
    return this.#queues.unfinished(iova, lengthBytes);
  }

  save(): DeviceState<VirtioBlkState> {
    return VIRTIO_BLK_FORM.write({
      ...this.#settings(),
      counters: this.#queues.tally.toRecord(),
      backend: this.#backend.save?.() ?? null,
    });
  }

  load(value: unknown): void {
    const state = parseVirtioBlkState(value);
    this.#queues.tally.restore(state.counters);
    this.#setWriteCache(state.writeback);
    // The driver knows another size than the storage has by now.
    const { sizeBytes } = this.#backend.info;
    this.#toldBytes = state.sizeBytes;
    if (state.sizeBytes === sizeBytes) return;
    if (!this.#backend.rescan?.()) this.#transport.configChanged();
  }

  handOver(bag: ResourceBag): void {
    const backend = this.#backend;
    if (backend.handOver === undefined) {
      throw new Error(
        `Cannot move the disk: ${backend.description} stays on its thread`,
      );
    }
    backend.handOver(bag.at("backend"));
  }

  resetQueue(queue: Virtqueue): void {
    this.#queues.resetQueue(queue);
  }

  reset(): void {
    this.#queues.reset();
    this.#setWriteCache(this.#options.writeCache);
  }

  counters(): Readonly<Record<string, number>> {
    return this.#queues.counters();
  }

  close(): void {
    this.#queues.close();
  }

  #onResize(): void {
    const { sizeBytes } = this.#backend.info;
    this.#config.setSize(sizeBytes);
    if (sizeBytes !== this.#toldBytes) {
      this.#context.log.info(`the disk has ${formatSize(sizeBytes)} now`, {
        event: "RESIZED",
        sizeBytes,
      });
    }
    this.#toldBytes = sizeBytes;
    this.#transport.settingsChanged?.();
    this.#transport.configChanged();
  }

  #settings(): BlkSettings {
    const { writeback } = this.#config;
    return { writeback, sizeBytes: this.#backend.info.sizeBytes };
  }

  #initialWriteCache(features: Features): boolean {
    // A driver that cannot flush gets a writethrough cache (5.2.5.2, 5.2.6.2).
    return this.#options.writeCache && features.has(VIRTIO_BLK_F.FLUSH);
  }

  #setWriteCache(on: boolean): void {
    this.#config.writeback = on;
    this.#queues.configure(this.#settings());
  }
}

/** The `resize` command: changes the size of a disk's storage, or tells it. */
function resizeCommand(backend: BlockBackend): DeviceCommand {
  return {
    help:
      "resize SIZE [--shrink]: change the disk's size; without a word, tell",
    run(args) {
      if (args.length > 0) resizeStorage(backend, args);
      const { sizeBytes } = backend.info;
      return {
        text: `the disk has ${formatSize(sizeBytes)}`,
        data: { sizeBytes },
      };
    },
  };
}
