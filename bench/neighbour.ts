/**
 * Register reads of one device while the client of another one, on the same IOThread, does its worst.
 *
 * The reader, that client and the IOThread are three threads: with fewer cores the worst read has waits for a core in it,
 * and so has the one beside nobody, which is the first row.
 *
 * @module
 */

import { VfioUserClient } from "../src/transport/vfio_user/client/mod.ts";
import { hostLibslirp, isSkip } from "../tests/guest/provision.ts";
import {
  type Load,
  type LoadDevice,
  LOADS,
  MANY_FLOWS,
  ONE_FLOW,
} from "./neighbour_loads.ts";
import type { LoadNotice, LoadOrder } from "./neighbour_worker.ts";
import {
  atMost,
  type Figure,
  leftOut,
  percentile,
  ratioAtMost,
} from "./report.ts";
import { withFolder, withServed } from "./serving.ts";
import { type BenchSettings, seconds } from "./settings.ts";

const SECONDS = 10;
const WARM_UP_READS = 2000;
const WORST_MS = 20;
/** Ratio of the times of reads beside many flows and beside as many datagrams of one. */
const FLOWS_RATIO = 1.5;
const TIMEOUT_MS = 60_000;
const COMMON_BAR = 4;
const WIDE = new URL("wide_device.ts", import.meta.url).pathname;

const DEVICES: Readonly<Record<LoadDevice, string>> = {
  card: "virtio-net,id=card,net=none,iothread=0",
  disk: "virtio-blk,id=disk,memory=16M,queues=2,iothread=0:1",
  wide: `${WIDE},id=wide,iothread=0`,
  user: "virtio-net,id=user,net=user,iothread=0",
};

/** Reads for so long. @returns How long each took, in milliseconds, sorted */
function readFor(client: VfioUserClient, lengthMs: number): Float64Array {
  const samples: number[] = [];
  const end = performance.now() + lengthMs;
  for (let before = performance.now(); before < end;) {
    client.readRegion32(COMMON_BAR, 0);
    const now = performance.now();
    samples.push(now - before);
    before = now;
  }
  return Float64Array.from(samples).sort();
}

function figuresOf(beside: string, samples: Float64Array): Figure[] {
  const name = `REGION_READ beside ${beside}`;
  const us = percentile(samples, 0.99) * 1000;
  return [
    { name: `${name}, p99`, value: us, unit: "µs" },
    atMost(`${name}, worst`, samples.at(-1)!, "ms", WORST_MS),
  ];
}

/** Waits for what the client says next. */
async function nextNotice(worker: Worker): Promise<LoadNotice> {
  const { promise, resolve, reject } = Promise.withResolvers<LoadNotice>();
  worker.onmessage = ({ data }: MessageEvent<LoadNotice>) => resolve(data);
  worker.onerror = (event) => reject(new Error(event.message));
  const notice = await promise;
  if (notice.kind === "failed") throw new Error(notice.message);
  return notice;
}

async function measure(
  client: VfioUserClient,
  load: Load,
  socket: string,
  lengthMs: number,
): Promise<{ samples: Float64Array; figures: Figure[] }> {
  const url = new URL("neighbour_worker.ts", import.meta.url).href;
  const worker = new Worker(url, { type: "module" });
  try {
    const stop = new Int32Array(new SharedArrayBuffer(4));
    const index = LOADS.indexOf(load);
    worker.postMessage({ index, socket, stop } satisfies LoadOrder);
    await nextNotice(worker);
    const samples = readFor(client, lengthMs);
    Atomics.store(stop, 0, 1);
    const done = await nextNotice(worker);
    const rounds = done.kind === "done" ? done.rounds : 0;
    const figures = [
      ...figuresOf(load.name, samples),
      { name: `rounds of ${load.name}`, value: rounds, unit: "" },
    ];
    return { samples, figures };
  } finally {
    worker.terminate();
  }
}

function flowFigures(medians: ReadonlyMap<Load, number>): Figure[] {
  const [one, many] = [medians.get(ONE_FLOW), medians.get(MANY_FLOWS)];
  if (one === undefined || many === undefined) return [];
  const name = `REGION_READ beside ${MANY_FLOWS.name}, p50`;
  const baseline = { name: "one flow", value: one };
  return [
    ratioAtMost({ name, value: many, unit: "µs" }, baseline, FLOWS_RATIO),
  ];
}

/** The worst read of a device beside each kind of load. */
export function benchNeighbour(settings: BenchSettings): Promise<Figure[]> {
  const lengthMs = seconds(settings, SECONDS) * 1000;
  return withFolder(async (folder) => {
    const library = await hostLibslirp();
    const path = (name: string) => `${folder}/${name}.sock`;
    const others = Object.entries(DEVICES).flatMap(([name, device]) => [
      "--device",
      device,
      "--socket",
      path(name),
    ]);
    return await withServed(
      "virtio-net,id=neighbour,net=none,iothread=0",
      async ({ socket }) => {
        using client = new VfioUserClient(socket, { timeoutMs: TIMEOUT_MS });
        client.negotiate();
        for (let i = 0; i < WARM_UP_READS; i++) {
          client.readRegion32(COMMON_BAR, 0);
        }
        const figures = figuresOf("nobody", readFor(client, lengthMs));
        const medians = new Map<Load, number>();
        for (const load of LOADS) {
          if (load.device === "user" && isSkip(library)) {
            figures.push(leftOut(load.name, library.skip));
            continue;
          }
          const measured = await measure(
            client,
            load,
            path(load.device),
            lengthMs,
          );
          figures.push(...measured.figures);
          medians.set(load, percentile(measured.samples, 0.5) * 1000);
        }
        return [...figures, ...flowFigures(medians)];
      },
      [...others, "--iothreads", "2"],
      isSkip(library) || library.libraryDir === undefined
        ? {}
        : { libraryPath: library.libraryDir },
    );
  });
}
