/**
 * Disks driven from another process over the real socket and rings: 4 KiB random I/O at several depths, and
 * sequential throughput.
 *
 * @module
 */

import {
  type DiskDriver,
  type DiskDriverOptions,
  DiskOp,
  NvmeDriver,
  VirtioBlkDriver,
} from "../src/testing/disk_driver.ts";
import { VirtioDriver } from "../src/testing/mod.ts";
import {
  GuestRam,
  PciClient,
  type VfioUserClient,
} from "../src/vfio_user/client/mod.ts";
import { atLeast, type Figure, percentile } from "./report.ts";
import { withDevice } from "./serving.ts";

const RAM_BYTES = 64 * 1024 * 1024;
const DISK_BYTES = 64 * 1024 * 1024;
const SECONDS = 2;
const SAMPLES = 1 << 16;

type Open = (
  client: VfioUserClient,
  ram: GuestRam,
  options: DiskDriverOptions,
) => DiskDriver;

const CONTROLLERS: Readonly<Record<string, Open>> = {
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

interface Load {
  readonly op: DiskOp;
  readonly depth: number;
  readonly transferBytes: number;
  readonly sequential: boolean;
}

interface Result {
  readonly perSecond: number;
  readonly p99Us: number;
}

/** Keeps `depth` commands in flight for a while, polling. */
function runLoad(disk: DiskDriver, load: Load): Result {
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
  const end = start + SECONDS * 1000;
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
    p99Us: percentile(sorted, 0.99),
  };
}

function measure(
  device: string,
  open: Open,
  load: Load,
): Promise<Result> {
  return withDevice(device, ({ client }) => {
    using ram = new GuestRam(RAM_BYTES);
    ram.share(client);
    const disk = open(client, ram, {
      slots: load.depth,
      transferBytes: load.transferBytes,
    });
    try {
      return runLoad(disk, load);
    } finally {
      disk.close();
      ram.unshare(client);
    }
  }, ["--poll", "always"]);
}

const TARGET = new Map([["32", 600_000], ["1", 150_000]]);

async function randomFigures(
  name: string,
  controller: string,
  device: string,
): Promise<Figure[]> {
  const figures: Figure[] = [];
  const open = CONTROLLERS[controller]!;
  for (
    const [label, op] of [["read", DiskOp.READ], [
      "write",
      DiskOp.WRITE,
    ]] as const
  ) {
    for (const depth of [1, 32, 128]) {
      const result = await measure(device, open, {
        op,
        depth,
        transferBytes: 4096,
        sequential: false,
      });
      const title = `${name} random ${label} 4 KiB, depth ${depth}`;
      const target = name.includes("memory") && label === "read"
        ? TARGET.get(`${depth}`)
        : undefined;
      figures.push(
        target === undefined
          ? { name: title, value: result.perSecond, unit: "IOPS" }
          : atLeast(title, result.perSecond, "IOPS", target),
        { name: `${title}, p99`, value: result.p99Us, unit: "µs" },
      );
    }
  }
  for (
    const [label, op] of [["read", DiskOp.READ], [
      "write",
      DiskOp.WRITE,
    ]] as const
  ) {
    const transferBytes = 128 * 1024;
    const result = await measure(device, open, {
      op,
      depth: 32,
      transferBytes,
      sequential: true,
    });
    figures.push({
      name: `${name} sequential ${label} 128 KiB, depth 32`,
      value: result.perSecond * transferBytes / 1e6,
      unit: "MB/s",
    });
  }
  return figures;
}

/** virtio-blk and NVMe on memory and on a file in memory, both sides polling. */
export async function benchBlock(): Promise<Figure[]> {
  const folder = Deno.makeTempDirSync({ dir: "/dev/shm", prefix: "outboard-" });
  try {
    const image = `${folder}/disk`;
    Deno.writeFileSync(image, new Uint8Array(DISK_BYTES));
    const figures: Figure[] = [];
    for (const controller of Object.keys(CONTROLLERS)) {
      figures.push(
        ...await randomFigures(
          `${controller}, memory:`,
          controller,
          `${controller},memory=64M`,
        ),
        ...await randomFigures(
          `${controller}, tmpfs file:`,
          controller,
          `${controller},file=${image}`,
        ),
      );
    }
    return figures;
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
}
