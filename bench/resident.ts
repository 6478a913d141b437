/**
 * The resident set of the server over ten minutes in which nothing lasts: drivers reset the device and start it anew,
 * memory is mapped and unmapped, and a device on one thread moves to another and back.
 *
 * @module
 */

import { DiskOp } from "./disk_driver.ts";
import {
  GuestRam,
  type VfioUserClient,
} from "../src/transport/vfio_user/client/mod.ts";
import { CONTROLLERS, type OpenDisk, runDiskLoad } from "./disk_load.ts";
import { residentMiB } from "./proc.ts";
import { atMost, type Figure } from "./report.ts";
import { withDevice } from "./serving.ts";
import { type BenchSettings, seconds } from "./settings.ts";

const SECONDS = 600;
/** Code is compiled and heaps find their size: what is resident then is what it is compared with. */
const WARM_UP_SHARE = 0.2;
const LIMIT_PERCENT = 10;
const RAM_BYTES = 4 * 1024 * 1024;
const EXTRA_BYTES = 64 * 1024;
const EXTRA_IOVA = 0x8_0000_0000;
const STARTS = 8;
const MAPS = 32;
const REQUEST = {
  op: DiskOp.READ,
  depth: 4,
  transferBytes: 4096,
  sequential: false,
  seconds: 0.001,
};

/** A driver comes, reads, and goes, in memory that was not mapped before and is not afterwards. */
function useOnce(client: VfioUserClient, open: OpenDisk): void {
  using ram = new GuestRam(RAM_BYTES);
  ram.share(client);
  const { depth, transferBytes } = REQUEST;
  const disk = open(client, ram, { slots: depth, transferBytes });
  runDiskLoad(disk, REQUEST);
  using extra = new GuestRam(EXTRA_BYTES, EXTRA_IOVA);
  for (let i = 0; i < MAPS; i++) {
    extra.share(client);
    extra.unshare(client);
  }
  disk.close();
  ram.unshare(client);
}

function measure(
  controller: string,
  threads: "one thread" | "two threads",
  settings: BenchSettings,
): Promise<Figure[]> {
  const total = seconds(settings, SECONDS);
  // Where two threads serve its queues, it stays.
  const moves = threads === "one thread";
  const place = moves ? "0" : "0:1";
  const device = `${controller},id=disk,memory=16M,queues=4,iothread=${place}`;
  return withDevice(device, async ({ client, outboard, control }) => {
    const open = CONTROLLERS[controller]!;
    const start = performance.now();
    let warm = 0;
    let most = 0;
    let cycles = 0;
    for (let elapsed = 0; elapsed < total; cycles++) {
      for (let i = 0; i < STARTS; i++) useOnce(client, open);
      if (moves) await control(`move disk ${(cycles + 1) % 2}`);
      elapsed = (performance.now() - start) / 1000;
      const resident = residentMiB(outboard.pid);
      if (elapsed < total * WARM_UP_SHARE) warm = resident;
      else most = Math.max(most, resident);
    }
    const name = `${controller} on ${threads}, ${total} s`;
    const did = `${cycles * STARTS} starts, ${cycles * STARTS * MAPS} maps${
      moves ? `, ${cycles} moves` : ""
    }`;
    return [
      { name: `${name}: resident after ${did}`, value: most, unit: "MiB" },
      atMost(
        `${name}: growth after the first ${WARM_UP_SHARE * 100} %`,
        (most / warm - 1) * 100,
        "%",
        LIMIT_PERCENT,
      ),
    ];
  }, ["--iothreads", "2"]);
}

/** Growth of the server while drivers, memory and threads change. */
export async function benchResident(
  settings: BenchSettings,
): Promise<Figure[]> {
  const figures: Figure[] = [];
  for (const controller of Object.keys(CONTROLLERS)) {
    for (const threads of ["one thread", "two threads"] as const) {
      figures.push(...await measure(controller, threads, settings));
    }
  }
  return figures;
}
