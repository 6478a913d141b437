/**
 * Growth by operations: of the heap of the IOThread and of the resident set of the process in a
 * million register accesses, packets and requests.
 *
 * "allocated" is the growth of the heap before garbage is collected, "held" the growth after, "resident" the growth of
 * the process. Growth is taken between two looks after a warm-up, since compiling code takes memory too; a look itself
 * allocates some kilobytes, which the number of operations makes small.
 *
 * The server runs with so large a new space that V8 collects nothing between two looks: what it collects by itself is
 * not in the growth, and with a new space as V8 makes one a hundred bytes an operation may come to less than one.
 *
 * @module
 */

import { DiskOp } from "./disk_driver.ts";
import { VirtioDriver } from "../src/testing/mod.ts";
import {
  type GuestRam,
  PciClient,
} from "../src/transport/vfio_user/client/mod.ts";
import { CONTROLLERS, runDiskLoad } from "./disk_load.ts";
import { benchMapping } from "./mapping.ts";
import { NetLoad } from "./net_load.ts";
import type { Figure } from "./report.ts";
import { type Served, withDevice, withRam } from "./serving.ts";
import { type BenchSettings, count } from "./settings.ts";

const BAR4 = 4;
const RAM_BYTES = 16 * 1024 * 1024;
const OPERATIONS = 1_000_000;
const WARM_UP = 300_000;
const LIMIT_BYTES = 1;
/** Holds 256 bytes of each operation. */
const NEW_SPACE_MIB = 256;
const WINDOW = 32;

/** For `--device`, with the device's heap among its counters. */
function watched(device: string): string {
  return `${import.meta.dirname}/watched.ts,of=${device}`;
}

/** Does at least so many operations; returns how many. */
type Work = (operations: number) => number;

/** Something to do a million times. */
export interface Subject {
  readonly name: string;
  /** For `--device`; its counters tell of its heap, as those of watched.ts do. */
  readonly device: string;
  /** Sets the device up. */
  readonly prepare: (served: Served, ram: GuestRam) => {
    readonly work: Work;
    readonly close: () => void;
  };
}

/** Register accesses. */
export function registers(
  served: Served,
  posted: boolean,
): ReturnType<Subject["prepare"]> {
  const { client } = served;
  const work = (operations: number) => {
    for (let i = 0; i < operations; i++) {
      if (posted) client.writeRegion32(BAR4, 0, 0, true);
      else client.queueRead32(BAR4, 0);
      if (i % WINDOW === 0) client.settle(WINDOW);
    }
    client.settle();
    client.readRegion32(BAR4, 0);
    return operations;
  };
  return { work, close: () => {} };
}

function packets(served: Served, ram: GuestRam, transmitBytes: number) {
  const virtio = new VirtioDriver(new PciClient(served.client), ram.memory);
  const load = new NetLoad(virtio, {
    pairs: 1,
    packed: false,
    transmitBytes,
    receive: transmitBytes === 0,
  });
  const work = (operations: number) => {
    let done = 0;
    while (done < operations) done += load.step();
    return done;
  };
  return { work, close: () => virtio.reset() };
}

function requests(served: Served, ram: GuestRam, controller: string) {
  const load = { depth: WINDOW, transferBytes: 4096, sequential: false };
  const disk = CONTROLLERS[controller]!(served.client, ram, {
    slots: load.depth,
    transferBytes: load.transferBytes,
  });
  const work = (operations: number) => {
    let done = 0;
    while (done < operations) {
      done += runDiskLoad(disk, { ...load, op: DiskOp.READ, seconds: 0.2 })
        .done;
    }
    return done;
  };
  return { work, close: () => disk.close() };
}

const SUBJECTS: readonly Subject[] = [
  {
    name: "REGION_READ",
    device: watched("virtio-net,net=none"),
    prepare: (served) => registers(served, false),
  },
  {
    name: "REGION_WRITE, posted",
    device: watched("virtio-net,net=none"),
    prepare: (served) => registers(served, true),
  },
  {
    name: "virtio-net packet sent",
    device: watched("source-net,frame=0"),
    prepare: (served, ram) => packets(served, ram, 64),
  },
  {
    name: "virtio-net packet received",
    device: watched("source-net,frame=64"),
    prepare: (served, ram) => packets(served, ram, 0),
  },
  {
    name: "virtio-blk read",
    device: watched("virtio-blk,memory=16M"),
    prepare: (served, ram) => requests(served, ram, "virtio-blk"),
  },
  {
    name: "nvme read",
    device: watched("nvme,memory=16M"),
    prepare: (served, ram) => requests(served, ram, "nvme"),
  },
];

/** Growth in a million operations, by what grew. */
const ROWS = [
  ["allocated", "heapBeforeGc", "heapUsed"],
  ["held", "heapUsed", "heapUsed"],
  ["resident", "rss", "rss"],
] as const;

/** Measures the growth by a subject, a figure for each of {@linkcode ROWS}. */
export function measureGrowth(
  subject: Subject,
  settings: BenchSettings,
): Promise<Figure[]> {
  return withDevice(
    subject.device,
    (served) =>
      withRam(served.client, RAM_BYTES, async (ram) => {
        const { work, close } = subject.prepare(served, ram);
        try {
          work(count(settings, WARM_UP));
          await served.counters();
          work(count(settings, WARM_UP));
          const before = await served.counters();
          const done = work(count(settings, OPERATIONS));
          const after = await served.counters();
          return ROWS.map(([what, last, first]) => {
            const value = (after.get(last)! - before.get(first)!) / done;
            const met = value < LIMIT_BYTES;
            return {
              name: `${subject.name}: ${what}`,
              value,
              unit: "bytes/operation",
              target: { text: `< ${LIMIT_BYTES} byte`, met },
            };
          });
        } finally {
          close();
        }
      }),
    ["--poll", "always"],
    {
      v8Flags: [
        "--expose-gc",
        `--min-semi-space-size=${NEW_SPACE_MIB}`,
        `--max-semi-space-size=${NEW_SPACE_MIB}`,
      ],
    },
  );
}

/** Heap and resident memory per operation, and of a guest that maps memory for each. */
export async function benchMemory(
  settings: BenchSettings,
): Promise<Figure[]> {
  const figures: Figure[] = [];
  for (const subject of SUBJECTS) {
    figures.push(...await measureGrowth(subject, settings));
  }
  figures.push(...await benchMapping(settings));
  return figures;
}
