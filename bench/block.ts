/**
 * Disks driven by a polling driver in C (disk_client.c) over the real socket and rings, a CPU for each side: 4 KiB random
 * I/O at several depths, and sequential throughput. A file is measured on the page cache, where most reads are served at
 * once, and past it (`cache=none`), where everything goes through io_uring: there the figure is how many requests one
 * io_uring_enter submits.
 *
 * The targets are shares of what the fastest target in C came to under the same kind of client: 1.07 µs a command of
 * NVMe on memory at depth 1, 0.57 µs at depth 32, 0.35 µs a write.
 *
 * @module
 */

import { compileC, LineProgram } from "./c_program.ts";
import { allowedCpus, confine } from "./proc.ts";
import { atLeast, type Figure, leftOut } from "./report.ts";
import { withFolder, withServed } from "./serving.ts";
import { type BenchSettings, count } from "./settings.ts";

const DISK_BYTES = 64 * 1024 * 1024;
/** Written with promises, and served by a Worker of its own. */
const STORE =
  new URL("../tests/backend/block/fixtures/memory_store.ts", import.meta.url)
    .pathname;
const MEASURE_MS = 2000;
const WARM_UP_MS = 1000;

/** The controllers, and the options by which a driver that polls never needs a message. */
const CONTROLLERS: Readonly<Record<string, string>> = {
  "virtio-blk": "",
  nvme: ",doorbells=mmap",
};

/** A disk to measure. */
interface Disk {
  /** Model and storage, for people. */
  readonly name: string;
  /** The model. */
  readonly controller: string;
  /** For `--device`. */
  readonly device: string;
  /** True if a Worker of its own serves it, which has to share a CPU with its IOThread: that must sleep now and then. */
  readonly hasWorker?: boolean;
}

/** Load on a disk. */
interface Load {
  readonly op: "read" | "write";
  /** Commands in flight. */
  readonly depth: number;
  readonly order: "random" | "sequential";
  readonly transferBytes: number;
}

interface Measured {
  readonly perSecond: number;
  readonly p99Us: number;
  readonly counters: ReadonlyMap<string, number>;
}

/** Parts that all measurements share. */
interface Bench {
  /** The compiled driver. */
  readonly driver: string;
  readonly settings: BenchSettings;
}

function measure(
  { driver, settings }: Bench,
  { controller, device, hasWorker = false }: Disk,
  { op, depth, order, transferBytes }: Load,
): Promise<Measured> {
  const [driverCpu, deviceCpu] = allowedCpus();
  const args = hasWorker ? [] : ["--poll", "always"];
  if (deviceCpu !== undefined) args.push("--iothreads", `1,cpus=${deviceCpu}`);
  return withServed(device, async ({ socket, counters, outboard }) => {
    if (hasWorker && deviceCpu !== undefined) {
      await confine(outboard.pid, [deviceCpu]);
    }
    await using client = new LineProgram(driver, [
      ...[socket, controller, `${depth}`, `${transferBytes}`],
    ]);
    if (deviceCpu !== undefined) await confine(client.pid, [driverCpu!]);
    const load = `${op} ${depth} ${order}`;
    await client.ask(`${load} ${WARM_UP_MS}`);
    const ms = count(settings, MEASURE_MS, 100);
    const [perSecond, , p99] = await client.ask(`${load} ${ms}`);
    return {
      perSecond: perSecond!,
      p99Us: p99! / 1000,
      counters: await counters(),
    };
  }, args);
}

/** Commands of NVMe on memory a second, by what they do and how many are in flight. */
const TARGETS: Readonly<Record<string, number>> = {
  "read 1": 0.75 / 1.07e-6,
  "read 32": 0.9 / 0.57e-6,
  "write 32": 0.8 / 0.35e-6,
};

/** The same of either disk on a store. */
const STORE_TARGETS: Readonly<Record<string, number>> = { "read 32": 100_000 };

const OPS = ["read", "write"] as const;

/** 4 KiB at random places. */
async function randomFigures(
  bench: Bench,
  disk: Disk,
  op: Load["op"],
  depth: number,
): Promise<Figure[]> {
  const load = { op, depth, order: "random", transferBytes: 4096 } as const;
  const { perSecond, p99Us, counters } = await measure(bench, disk, load);
  const title = `${disk.name} random ${op} 4 KiB, depth ${depth}`;
  const targets = disk.hasWorker
    ? STORE_TARGETS
    : disk.device.startsWith("nvme,memory")
    ? TARGETS
    : {};
  const target = targets[`${op} ${depth}`];
  return [
    target === undefined
      ? { name: title, value: perSecond, unit: "IOPS" }
      : atLeast(title, perSecond, "IOPS", Math.round(target)),
    { name: `${title}, p99`, value: p99Us, unit: "µs" },
    ...ringFigures(title, counters),
  ];
}

/** Ways of requests to the kernel, where a file holds the blocks and io_uring was used at all. */
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
  bench: Bench,
  disk: Disk,
  op: Load["op"],
): Promise<Figure> {
  const transferBytes = 128 * 1024;
  const load = { op, depth: 32, order: "sequential", transferBytes } as const;
  const { perSecond } = await measure(bench, disk, load);
  return {
    name: `${disk.name} sequential ${op} 128 KiB, depth 32`,
    value: perSecond * transferBytes / 1e6,
    unit: "MB/s",
  };
}

async function diskFigures(bench: Bench, disk: Disk): Promise<Figure[]> {
  const figures: Figure[] = [];
  for (const op of OPS) {
    for (const depth of [1, 32, 128]) {
      figures.push(...await randomFigures(bench, disk, op, depth));
    }
  }
  for (const op of OPS) figures.push(await sequentialFigure(bench, disk, op));
  return figures;
}

async function controllerFigures(
  bench: Bench,
  controller: string,
  cached: string,
  direct: string,
): Promise<Figure[]> {
  const disk = (storage: string, option: string): Disk => ({
    name: `${controller}, ${storage}:`,
    controller,
    device: `${controller},${option}${CONTROLLERS[controller]}`,
  });
  const store = {
    ...disk("store", `backend=${STORE},size=64M`),
    hasWorker: true,
  };
  const past = disk("file past the page cache", `file=${direct},cache=none`);
  return [
    ...await diskFigures(bench, disk("memory", "memory=64M")),
    ...await diskFigures(bench, disk("tmpfs file", `file=${cached}`)),
    ...await randomFigures(bench, store, "read", 1),
    ...await randomFigures(bench, store, "read", 32),
    ...await randomFigures(bench, past, "read", 32),
    ...await randomFigures(bench, past, "read", 128),
  ];
}

/**
 * virtio-blk and NVMe on memory, on a file in memory and on a file past the page cache, both sides polling; and on a store,
 * where the device polls as it does unless told.
 */
export function benchBlock(settings: BenchSettings): Promise<Figure[]> {
  return withFolder(async (folder) => {
    const driver = await compileC("disk_client", folder);
    if (driver === null) return [leftOut("disks", "there is no cc")];
    const bench: Bench = { driver, settings };
    const shm = Deno.makeTempDirSync({ dir: "/dev/shm", prefix: "outboard-" });
    try {
      const [cached, direct] = [shm, folder].map((place) => {
        const image = `${place}/disk`;
        Deno.writeFileSync(image, new Uint8Array(DISK_BYTES));
        return image;
      });
      const figures: Figure[] = [];
      for (const controller of Object.keys(CONTROLLERS)) {
        figures.push(
          ...await controllerFigures(bench, controller, cached!, direct!),
        );
      }
      return figures;
    } finally {
      Deno.removeSync(shm, { recursive: true });
    }
  });
}
