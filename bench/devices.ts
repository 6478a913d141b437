/**
 * Cost of devices by their number: time from exec until the last listens, resident memory, and the CPU time of
 * devices that are in use and quiet: every one has a client, guest memory mapped, a driver that said DRIVER_OK, and
 * interrupts. Network cards on `net=user` and disks in memory take turns.
 *
 * @module
 */

import { VirtioBlkDriver } from "./disk_driver.ts";
import { NetDriver, VirtioDriver } from "../src/testing/mod.ts";
import {
  type OutboardProcess,
  startOutboard,
} from "../src/testing/outboard_process.ts";
import {
  GuestRam,
  PciClient,
  VfioUserClient,
} from "../src/transport/vfio_user/client/mod.ts";
import {
  residentMiB,
  type ThreadTime,
  threadTimes,
  threadTimesSince,
} from "./proc.ts";
import type { Figure } from "./report.ts";
import { withFolder } from "./serving.ts";
import { type BenchSettings, seconds } from "./settings.ts";

const COUNTS = [1, 8, 64];
const RAM_BYTES = 4 * 1024 * 1024;
const QUIET_SECONDS = 10;
const SETTLE_SECONDS = 1;
const LIMIT_PERCENT = 1;
const POLLING = [["off", "--poll off"], ["50000", "--poll 50000"]] as const;

/** `--device` of the i-th device: the disks are small, since nothing is written to them. */
function device(i: number): string {
  return i % 2 === 0
    ? `virtio-net,id=net${i}`
    : `virtio-blk,id=disk${i},memory=1M`;
}

/** A client with a driver that waits for an interrupt; what it owns goes to `stack`. */
function connect(i: number, socket: string, stack: DisposableStack): void {
  const client = stack.use(new VfioUserClient(socket));
  client.negotiate();
  const ram = stack.use(new GuestRam(RAM_BYTES));
  ram.share(client);
  const pci = stack.use(new PciClient(client));
  const virtio = new VirtioDriver(pci, ram.memory, {
    vectors: pci.msixVectors(),
  });
  if (i % 2 === 0) {
    const net = new NetDriver(virtio, {
      queueSize: 64,
      vectors: { rx: 0, tx: 1, ctrl: 2 },
    });
    net.rx.ring.enableInterrupts();
  } else {
    new VirtioBlkDriver(virtio, { slots: 1, transferBytes: 4096 });
  }
}

function sleep(forSeconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, forSeconds * 1000));
}

/** CPU time of the process's threads while nothing happens. */
async function quietTimes(
  outboard: OutboardProcess,
  forSeconds: number,
): Promise<ThreadTime[]> {
  await sleep(SETTLE_SECONDS);
  const before = threadTimes(outboard.pid);
  await sleep(forSeconds);
  return threadTimesSince(before, threadTimes(outboard.pid));
}

function idleFigures(
  name: string,
  devices: number,
  times: readonly ThreadTime[],
  forSeconds: number,
): Figure[] {
  const cpuMs = times.reduce((sum, thread) => sum + thread.cpuMs, 0);
  const percent = cpuMs / (forSeconds * 10);
  const busiest = times[0]!;
  const figure = { name: `${name}: CPU`, value: percent, unit: "% of a core" };
  const target = {
    text: `< ${LIMIT_PERCENT} %`,
    met: percent < LIMIT_PERCENT,
  };
  return [
    devices === COUNTS.at(-1) ? { ...figure, target } : figure,
    {
      name: `${name}: busiest thread (${busiest.name})`,
      value: busiest.cpuMs / (forSeconds * 10),
      unit: "% of a core",
    },
    {
      name: `${name}: wake-ups`,
      value: times.reduce((sum, thread) => sum + thread.runs, 0) / forSeconds,
      unit: "a second",
    },
  ];
}

function measure(
  devices: number,
  [poll, pollName]: typeof POLLING[number],
  settings: BenchSettings,
): Promise<Figure[]> {
  return withFolder(async (folder) => {
    const sockets = Array.from(
      { length: devices },
      (_, i) => `${folder}/${i}.sock`,
    );
    const args = sockets.flatMap((socket, i) => [
      "--device",
      device(i),
      "--socket",
      socket,
    ]);
    const start = performance.now();
    await using outboard = await startOutboard([...args, "--poll", poll]);
    const startMs = performance.now() - start;
    const listeningMiB = residentMiB(outboard.pid);
    using clients = new DisposableStack();
    sockets.forEach((socket, i) => connect(i, socket, clients));
    const forSeconds = seconds(settings, QUIET_SECONDS);
    const times = await quietTimes(outboard, forSeconds);
    const name = `${devices} ${devices === 1 ? "device" : "devices"}`;
    const idle = idleFigures(
      `${name}, quiet, ${pollName}`,
      devices,
      times,
      forSeconds,
    );
    // The rest does not depend on how it polls.
    if (poll !== "off") return idle;
    return [
      { name: `${name}: exec to listening`, value: startMs, unit: "ms" },
      {
        name: `${name}: resident, listening`,
        value: listeningMiB,
        unit: "MiB",
      },
      {
        name: `${name}: resident, in use`,
        value: residentMiB(outboard.pid),
        unit: "MiB",
      },
      ...idle,
    ];
  });
}

/** Measures 1, 8 and 64 devices in one process. */
export async function benchDevices(
  settings: BenchSettings,
): Promise<Figure[]> {
  const figures: Figure[] = [];
  for (const devices of COUNTS) {
    for (const polling of POLLING) {
      figures.push(...await measure(devices, polling, settings));
    }
  }
  return figures;
}
