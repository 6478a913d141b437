/**
 * Disks driven from another process over the real socket and rings: 4 KiB random I/O at several depths, and
 * sequential throughput. A file is measured on the page cache, where most reads are served at once, and past it
 * (`cache=none`), where everything goes through io_uring: there the figure is how many requests one io_uring_enter
 * submits.
 *
 * @module
 */

import { DiskOp } from "../src/testing/disk_driver.ts";
import {
  CONTROLLERS,
  type DiskLoad,
  type DiskResult,
  runDiskLoad,
} from "./disk_load.ts";
import { atLeast, type Figure } from "./report.ts";
import { withDevice, withRam } from "./serving.ts";
import { type BenchSettings, seconds } from "./settings.ts";

const RAM_BYTES = 64 * 1024 * 1024;
const DISK_BYTES = 64 * 1024 * 1024;
const SECONDS = 2;
const WARM_UP_SECONDS = 1;

/** A disk to measure. */
interface Disk {
  /** Model and storage, for people. */
  readonly name: string;
  /** The model. */
  readonly controller: string;
  /** For `--device`. */
  readonly device: string;
}

interface Measured extends DiskResult {
  readonly counters: ReadonlyMap<string, number>;
}

function measure(disk: Disk, load: DiskLoad): Promise<Measured> {
  return withDevice(
    disk.device,
    ({ client, counters }) =>
      withRam(client, RAM_BYTES, async (ram) => {
        const driver = CONTROLLERS[disk.controller]!(client, ram, {
          slots: load.depth,
          transferBytes: load.transferBytes,
        });
        try {
          // Runs are a quarter slower until both sides are compiled.
          runDiskLoad(driver, { ...load, seconds: WARM_UP_SECONDS });
          const result = runDiskLoad(driver, load);
          return { ...result, counters: await counters() };
        } finally {
          driver.close();
        }
      }),
    ["--poll", "always"],
  );
}

const TARGET = new Map([["32", 600_000], ["1", 150_000]]);
const OPS = [["read", DiskOp.READ], ["write", DiskOp.WRITE]] as const;

/** 4 KiB at random places. */
async function randomFigures(
  disk: Disk,
  [label, op]: typeof OPS[number],
  depth: number,
  settings: BenchSettings,
): Promise<Figure[]> {
  const result = await measure(disk, {
    op,
    depth,
    transferBytes: 4096,
    sequential: false,
    seconds: seconds(settings, SECONDS),
  });
  const title = `${disk.name} random ${label} 4 KiB, depth ${depth}`;
  const target = disk.name.includes("memory") && label === "read"
    ? TARGET.get(`${depth}`)
    : undefined;
  const figures = [
    target === undefined
      ? { name: title, value: result.perSecond, unit: "IOPS" }
      : atLeast(title, result.perSecond, "IOPS", target),
    { name: `${title}, p99`, value: result.p99Us, unit: "µs" },
  ];
  return [...figures, ...ringFigures(title, result.counters)];
}

/** How requests reached the kernel, where a file holds the blocks and io_uring was used at all. */
function ringFigures(
  title: string,
  counters: ReadonlyMap<string, number>,
): Figure[] {
  const named = (name: string) =>
    [...counters].find(([key]) => key.endsWith(name))?.[1] ?? 0;
  if (named("ringEnters") === 0) return [];
  const byRing = named("servedByRing");
  return [
    {
      name: `${title}, by io_uring`,
      value: 100 * byRing / (byRing + named("servedAtOnce")),
      unit: "% of requests",
    },
    {
      name: `${title}, each io_uring_enter`,
      value: named("ringSubmissionsPerEnter"),
      unit: "requests",
    },
  ];
}

async function sequentialFigure(
  disk: Disk,
  [label, op]: typeof OPS[number],
  settings: BenchSettings,
): Promise<Figure> {
  const transferBytes = 128 * 1024;
  const result = await measure(disk, {
    op,
    depth: 32,
    transferBytes,
    sequential: true,
    seconds: seconds(settings, SECONDS),
  });
  return {
    name: `${disk.name} sequential ${label} 128 KiB, depth 32`,
    value: result.perSecond * transferBytes / 1e6,
    unit: "MB/s",
  };
}

async function diskFigures(
  disk: Disk,
  settings: BenchSettings,
): Promise<Figure[]> {
  const figures: Figure[] = [];
  for (const op of OPS) {
    for (const depth of [1, 32, 128]) {
      figures.push(...await randomFigures(disk, op, depth, settings));
    }
  }
  for (const op of OPS) {
    figures.push(await sequentialFigure(disk, op, settings));
  }
  return figures;
}

async function controllerFigures(
  controller: string,
  cached: string,
  direct: string,
  settings: BenchSettings,
): Promise<Figure[]> {
  const disk = (storage: string, option: string): Disk => ({
    name: `${controller}, ${storage}:`,
    controller,
    device: `${controller},${option}`,
  });
  const past = disk("file past the page cache", `file=${direct},cache=none`);
  return [
    ...await diskFigures(disk("memory", "memory=64M"), settings),
    ...await diskFigures(disk("tmpfs file", `file=${cached}`), settings),
    ...await randomFigures(past, OPS[0], 32, settings),
    ...await randomFigures(past, OPS[0], 128, settings),
  ];
}

/** virtio-blk and NVMe on memory, on a file in memory and on a file past the page cache, both sides polling. */
export async function benchBlock(settings: BenchSettings): Promise<Figure[]> {
  const folders = [
    Deno.makeTempDirSync({ dir: "/dev/shm", prefix: "outboard-" }),
    Deno.makeTempDirSync({ prefix: "outboard-bench-" }),
  ];
  try {
    const [cached, direct] = folders.map((folder) => {
      const image = `${folder}/disk`;
      Deno.writeFileSync(image, new Uint8Array(DISK_BYTES));
      return image;
    });
    const figures: Figure[] = [];
    for (const controller of Object.keys(CONTROLLERS)) {
      figures.push(
        ...await controllerFigures(controller, cached!, direct!, settings),
      );
    }
    return figures;
  } finally {
    for (const folder of folders) Deno.removeSync(folder, { recursive: true });
  }
}
