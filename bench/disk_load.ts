/**
 * A disk kept busy by a driver that polls: slots that are issued again as soon as they are done.
 *
 * @module
 */

import {
  type DiskDriver,
  type DiskDriverOptions,
  type DiskOp,
  NvmeDriver,
  VirtioBlkDriver,
} from "./disk_driver.ts";
import { VirtioDriver } from "../src/testing/mod.ts";
import {
  type GuestRam,
  PciClient,
  type VfioUserClient,
} from "../src/transport/vfio_user/client/mod.ts";
import { percentile } from "./report.ts";

const SAMPLES = 1 << 16;

/** Makes the driver of a controller. */
export type OpenDisk = (
  client: VfioUserClient,
  ram: GuestRam,
  options: DiskDriverOptions,
) => DiskDriver;

/** The controllers, by the name of their model. */
export const CONTROLLERS: Readonly<Record<string, OpenDisk>> = {
  "virtio-blk": (client, ram, options) =>
    new VirtioBlkDriver(
      new VirtioDriver(new PciClient(client), ram.memory),
      options,
    ),
  "nvme": (client, ram, options) =>
    new NvmeDriver(enabled(new PciClient(client)), ram.memory, options),
};

function enabled(pci: PciClient): PciClient {
  pci.setEnabled(true);
  return pci;
}

/** Load on a disk. */
export interface DiskLoad {
  readonly op: DiskOp;
  /** Commands in flight. */
  readonly depth: number;
  readonly transferBytes: number;
  readonly sequential: boolean;
  readonly seconds: number;
}

/** Result of a disk under that load. */
export interface DiskResult {
  readonly perSecond: number;
  /** Number of commands that were done. */
  readonly done: number;
  readonly p99Us: number;
}

/**
 * Keeps `depth` commands in flight for a while, polling. Their places are pseudo-random.
 *
 * @throws {Error} When a command fails
 */
export function runDiskLoad(disk: DiskDriver, load: DiskLoad): DiskResult {
  const sectorsEach = load.transferBytes / 512;
  const places = Math.floor(disk.sectors / sectorsEach);
  const started = new Float64Array(load.depth);
  const samples = new Float64Array(SAMPLES);
  let random = 1;
  let next = 0;
  const issue = (slot: number, now: number) => {
    random = (Math.imul(random, 1664525) + 1013904223) >>> 0;
    const place = load.sequential ? next++ % places : random % places;
    started[slot] = now;
    disk.issue(slot, load.op, place * sectorsEach);
  };
  const start = performance.now();
  const end = start + load.seconds * 1000;
  for (let slot = 0; slot < load.depth; slot++) issue(slot, start);
  disk.flush();
  let done = 0;
  let inFlight = load.depth;
  let now = start;
  while (inFlight > 0) {
    const count = disk.reap();
    now = performance.now();
    for (let i = 0; i < count; i++) {
      const slot = disk.done[i]!;
      if (disk.status[slot] !== 0) {
        throw new Error(`a command failed: status ${disk.status[slot]}`);
      }
      samples[done++ & (SAMPLES - 1)] = (now - started[slot]!) * 1000;
      if (now < end) issue(slot, now);
      else inFlight--;
    }
    if (count > 0) disk.flush();
  }
  const sorted = samples.slice(0, Math.min(done, SAMPLES)).sort();
  return {
    perSecond: done / ((now - start) / 1000),
    done,
    p99Us: percentile(sorted, 0.99),
  };
}
