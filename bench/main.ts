/**
 * All benches: `deno task bench [SUITE…] [--scale FACTOR] [--json FILE]`, `deno task bench help`.
 *
 * Both sides of a comparison run in one run; on a shared or small machine only the ratios mean anything.
 *
 * @module
 */

import { parseArgs } from "@std/cli/parse-args";
import { benchBlock } from "./block.ts";
import { benchCost } from "./cost.ts";
import { benchDevices } from "./devices.ts";
import { benchGuestDisk } from "./guest_disk.ts";
import { benchGuestNet } from "./guest_net.ts";
import { benchKick } from "./kick.ts";
import { benchMemory } from "./memory.ts";
import { benchNet } from "./net.ts";
import { benchRegion } from "./region.ts";
import { type Figure, table } from "./report.ts";
import type { BenchSettings } from "./settings.ts";
import { benchSoak } from "./soak.ts";
import { benchStartup } from "./startup.ts";
import { benchTap } from "./tap.ts";

/** A suite and what it measures. */
interface Suite {
  readonly run: (settings: BenchSettings) => Promise<Figure[]>;
  readonly help: string;
}

const SUITES: Readonly<Record<string, Suite>> = {
  startup: {
    run: benchStartup,
    help: "time from exec to listening, resident set",
  },
  region: {
    run: benchRegion,
    help: "register accesses over the socket, against a server in C",
  },
  kick: {
    run: benchKick,
    help: "from kick to completion, by each kind of doorbell",
  },
  net: {
    run: benchNet,
    help: "packets per second of virtio-net's queues",
  },
  tap: {
    run: benchTap,
    help: "frames through a TAP, one by one and by io_uring",
  },
  cost: {
    run: benchCost,
    help: "time of the card's own code per packet, without a second thread",
  },
  block: {
    run: benchBlock,
    help: "requests per second of virtio-blk and NVMe",
  },
  memory: {
    run: benchMemory,
    help: "bytes that a million operations leave behind",
  },
  soak: {
    run: benchSoak,
    help: "pauses of the garbage collector in a minute of full load",
  },
  devices: {
    run: benchDevices,
    help: "start, memory and idle CPU of 1, 8 and 64 devices",
  },
  "guest-disk": {
    run: benchGuestDisk,
    help: "fio in a guest, on our disks and on QEMU's own",
  },
  "guest-net": {
    run: benchGuestNet,
    help: "iperf3 and ping in a guest, on our cards and on QEMU's own",
  },
};

const HELP = [
  "deno task bench [SUITE...] [--scale FACTOR] [--json FILE]",
  "",
  ...Object.entries(SUITES).map(([name, suite]) =>
    `  ${name.padEnd(12)}  ${suite.help}`
  ),
  "",
  "Without SUITE all of them run. --scale 0.1 measures a tenth as long: to see that it works.",
];

function fail(message: string): never {
  console.error(message);
  Deno.exit(2);
}

const args = parseArgs(Deno.args, { string: ["json", "scale"] });
const scale = Number(args.scale ?? 1);
if (!(scale > 0)) {
  fail(`Cannot use --scale ${args.scale}: it is a number above 0`);
}
const wanted: string[] = args._.length > 0
  ? args._.map(String)
  : Object.keys(SUITES);
if (wanted.includes("help")) {
  console.log(HELP.join("\n"));
  Deno.exit(0);
}
const unknown = wanted.find((name) => !Object.hasOwn(SUITES, name));
if (unknown !== undefined) {
  fail(
    `Cannot run bench ${unknown}: known are ${Object.keys(SUITES).join(", ")}`,
  );
}
const results: Record<string, Figure[]> = {};
for (const name of wanted) {
  results[name] = await SUITES[name]!.run({ scale });
  console.log(table(name, results[name]));
}
if (args.json !== undefined) {
  Deno.writeTextFileSync(args.json, JSON.stringify(results, null, 2) + "\n");
}
