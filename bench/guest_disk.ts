/**
 * The same fio job in one guest, in one boot, on our disks and on QEMU's own, on identical files.
 *
 * @module
 */

import { Guest, vfioUserDevice } from "../tests/guest/guest.ts";
import { isSkip, provision } from "../tests/guest/provision.ts";
import { Serving } from "../tests/guest/serving.ts";
import { type Figure, leftOut, median } from "./report.ts";
import { type BenchSettings, count } from "./settings.ts";

const DISK_BYTES = 64 * 1024 * 1024;
const SECONDS = 3;
const ROUNDS = 3;

/** Ratios that the project wants at each depth. */
const TARGETS: Readonly<Record<number, number>> = { 1: 0.8, 32: 1.0 };

interface Disk {
  readonly name: string;
  readonly device: string;
}

/** Ours first, then QEMU's of the same kind. */
const PAIRS: readonly (readonly [Disk, Disk])[] = [
  [
    { name: "virtio-blk", device: "/dev/vda" },
    { name: "QEMU's virtio-blk", device: "/dev/vdb" },
  ],
  [
    { name: "nvme", device: "/dev/nvme0n1" },
    { name: "QEMU's nvme", device: "/dev/nvme1n1" },
  ],
];

function images(folder: string): string[] {
  return ["a", "b", "c", "d"].map((name) => {
    const path = `${folder}/${name}`;
    Deno.writeFileSync(path, new Uint8Array(DISK_BYTES));
    return path;
  });
}

function qemuDisks(first: string, second: string): string[] {
  return [
    ...["-drive", `file=${first},format=raw,if=none,id=q0,cache=writeback`],
    ...["-device", "virtio-blk-pci,drive=q0,addr=0x10"],
    ...["-drive", `file=${second},format=raw,if=none,id=q1,cache=writeback`],
    ...["-device", "nvme,drive=q1,serial=qemu,addr=0x11"],
  ];
}

async function iops(
  guest: Guest,
  device: string,
  rw: string,
  depth: number,
  forSeconds: number,
): Promise<number> {
  const text = await guest.output(
    `fio --name=b --filename=${device} --direct=1 --ioengine=libaio --rw=${rw} --bs=4k --iodepth=${depth} --size=32M --time_based --runtime=${forSeconds} --minimal`,
  );
  const fields = text.split("\n").find((line) => line.startsWith("3;"))!
    .split(";");
  return Number(fields[rw === "randread" ? 7 : 48]);
}

async function compare(
  guest: Guest,
  settings: BenchSettings,
): Promise<Figure[]> {
  const forSeconds = count(settings, SECONDS);
  const figures: Figure[] = [];
  for (const [ours, theirs] of PAIRS) {
    for (const rw of ["randread", "randwrite"]) {
      for (const depth of [1, 32]) {
        const mine: number[] = [];
        const other: number[] = [];
        // In turns, so that whatever else the machine does falls on both.
        for (let round = 0; round < ROUNDS; round++) {
          mine.push(await iops(guest, ours.device, rw, depth, forSeconds));
          other.push(await iops(guest, theirs.device, rw, depth, forSeconds));
        }
        const value = median(mine);
        const baseline = { name: theirs.name, value: median(other) };
        const wanted = TARGETS[depth]!;
        figures.push({
          name: `${ours.name} in a guest, ${rw} 4 KiB, depth ${depth}`,
          value,
          unit: "IOPS",
          baseline,
          target: {
            text: `≥ ${wanted}×`,
            met: value / baseline.value >= wanted,
          },
        });
      }
    }
  }
  return figures;
}

/** Our virtio-blk and NVMe against QEMU's own under TCG. */
export async function benchGuestDisk(
  settings: BenchSettings,
): Promise<Figure[]> {
  const kit = await provision({ tools: ["fio"] });
  if (isSkip(kit)) return [leftOut("fio in a guest", kit.skip)];
  const folder = Deno.makeTempDirSync({ prefix: "outboard-bench-" });
  try {
    const [a, b, c, d] = images(folder);
    await using serving = await Serving.start({
      devices: [`virtio-blk,file=${a}`, `nvme,file=${b}`],
    });
    await using guest = await Guest.boot({
      kit,
      memoryMiB: 512,
      modules: ["virtio_blk"],
      tools: ["busybox", "dash", "fio"],
      devices: serving.sockets.map((socket, i) =>
        vfioUserDevice(socket, { addr: `${8 + i}.0` })
      ),
      qemuArgs: qemuDisks(c!, d!),
    });
    return await compare(guest, settings);
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
}
