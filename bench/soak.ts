/**
 * Full load for a minute each on a network card (both ways at once) and on a disk, with V8 tracing its collections:
 * how often and for how long a thread of the server stood still. Lines of pauses above a millisecond are printed.
 *
 * What is collected before the load has run for a while is V8's own start, compiling included, and counted apart.
 *
 * @module
 */

import { DiskOp } from "./disk_driver.ts";
import { VirtioDriver } from "../src/testing/mod.ts";
import type { OutboardProcess } from "../src/testing/outboard_process.ts";
import {
  type GuestRam,
  PciClient,
} from "../src/transport/vfio_user/client/mod.ts";
import { CONTROLLERS, runDiskLoad } from "./disk_load.ts";
import { type Collection, parseGcTrace } from "./gc_trace.ts";
import { NetLoad } from "./net_load.ts";
import { atMost, type Figure, rate } from "./report.ts";
import { benchResident } from "./resident.ts";
import { type Served, withDevice, withRam } from "./serving.ts";
import { type BenchSettings, seconds } from "./settings.ts";

const RAM_BYTES = 16 * 1024 * 1024;
const SECONDS = 60;
const WARM_UP_SECONDS = 3;
/** Between slices this process reads what the server prints: a full pipe would hold the server up. */
const SLICE_SECONDS = 0.5;
const LIMIT_MS = 5;
const PRINT_ABOVE_MS = 1;
const DEPTH = 32;
const TRANSFER_BYTES = 4096;

/** Loads a device for some seconds; returns how much it did. */
type Slice = (seconds: number) => number;

interface Subject {
  readonly name: string;
  readonly unit: string;
  readonly device: string;
  readonly prepare: (served: Served, ram: GuestRam) => {
    readonly slice: Slice;
    readonly close: () => void;
  };
}

const SUBJECTS: readonly Subject[] = [
  {
    name: "virtio-net",
    unit: "packets",
    device: `${import.meta.dirname}/source_net.ts,frame=64`,
    prepare: ({ client }, ram) => {
      const virtio = new VirtioDriver(new PciClient(client), ram.memory);
      const load = new NetLoad(virtio, {
        pairs: 1,
        packed: false,
        transmitBytes: 64,
        receive: true,
      });
      return {
        slice: (seconds) => seconds * rate(seconds, () => load.step()),
        close: () => virtio.reset(),
      };
    },
  },
  {
    name: "virtio-blk",
    unit: "requests",
    device: "virtio-blk,memory=64M",
    prepare: ({ client }, ram) => {
      const disk = CONTROLLERS["virtio-blk"]!(client, ram, {
        slots: DEPTH,
        transferBytes: TRANSFER_BYTES,
      });
      const load = {
        depth: DEPTH,
        transferBytes: TRANSFER_BYTES,
        sequential: false,
      };
      let writes = false;
      return {
        slice: (seconds) => {
          writes = !writes;
          const op = writes ? DiskOp.WRITE : DiskOp.READ;
          return runDiskLoad(disk, { ...load, op, seconds }).done;
        },
        close: () => disk.close(),
      };
    },
  },
];

/** Runs slices for a while, with a turn of this process's own loop after each. */
async function loadFor(total: number, slice: Slice): Promise<number> {
  let done = 0;
  for (let left = total; left > 0; left -= SLICE_SECONDS) {
    done += slice(Math.min(left, SLICE_SECONDS));
    await new Promise((resolve) => setTimeout(resolve, 0));
  }
  return done;
}

function longest(collections: readonly Collection[]): number {
  return collections.reduce((most, { pauseMs }) => Math.max(most, pauseMs), 0);
}

/** A stretch of load, in milliseconds since the server was started, and what was done in it. */
interface Stretch {
  readonly fromMs: number;
  readonly toMs: number;
  readonly done: number;
  readonly outboard: OutboardProcess;
}

function runLoad(subject: Subject, total: number): Promise<Stretch> {
  const start = performance.now();
  return withDevice(
    subject.device,
    (served) =>
      withRam(served.client, RAM_BYTES, async (ram) => {
        const { slice, close } = subject.prepare(served, ram);
        try {
          await loadFor(WARM_UP_SECONDS, slice);
          const fromMs = performance.now() - start;
          const done = await loadFor(total, slice);
          const toMs = performance.now() - start;
          return { fromMs, toMs, done, outboard: served.outboard };
        } finally {
          close();
        }
      }),
    ["--poll", "always"],
    { v8Flags: ["--trace-gc"] },
  );
}

async function measure(
  subject: Subject,
  settings: BenchSettings,
): Promise<Figure[]> {
  const total = seconds(settings, SECONDS);
  const { fromMs, toMs, done, outboard } = await runLoad(subject, total);
  // V8 keeps its lines in a buffer, so they are all there only now that the process has ended. They count from when
  // their isolate began, a fraction of a second after the process.
  const collections = parseGcTrace(outboard.stdout);
  if (collections.length === 0) {
    throw new Error("Cannot tell pauses: V8 has traced nothing");
  }
  const early = collections.filter(({ atMs }) => atMs < fromMs);
  const loaded = collections.filter(({ atMs }) =>
    atMs >= fromMs && atMs < toMs
  );
  for (const { pauseMs, line } of loaded) {
    if (pauseMs > PRINT_ABOVE_MS) console.log(`${subject.name}: ${line}`);
  }
  const name = `${subject.name}, ${total} s of load`;
  return [
    {
      name: `${name}: ${subject.unit}`,
      value: done / total,
      unit: "a second",
    },
    {
      name: `${name}: collections`,
      value: loaded.length,
      unit: "collections",
    },
    atMost(
      `${name}: longest pause of an IOThread`,
      longest(loaded.filter(({ byTask }) => !byTask)),
      "ms",
      LIMIT_MS,
    ),
    {
      name: `${name}: longest pause of the main thread, which touches no data`,
      value: longest(loaded.filter(({ byTask }) => byTask)),
      unit: "ms",
    },
    {
      name: `${subject.name}, start and warm-up: longest pause`,
      value: longest(early),
      unit: "ms",
    },
  ];
}

/** Pauses of the server's threads under full load, and what becomes of its memory in the long run. */
export async function benchSoak(settings: BenchSettings): Promise<Figure[]> {
  const figures: Figure[] = [];
  for (const subject of SUBJECTS) {
    figures.push(...await measure(subject, settings));
  }
  figures.push(...await benchResident(settings));
  return figures;
}
