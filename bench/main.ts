/**
 * All benches: `deno task bench [SUITE…] [--scale FACTOR] [--json FILE]`, `deno task bench help`.
 *
 * Both sides of a comparison run in one run; on a shared or small machine only the ratios mean anything.
 *
 * @module
 */

import { type BenchArguments, parseBenchArguments } from "./arguments.ts";
import { benchBlock } from "./block.ts";
import { benchCost } from "./cost.ts";
import { benchDevices } from "./devices.ts";
import { benchGuestDisk } from "./guest_disk.ts";
import { benchGuestNet } from "./guest_net.ts";
import { benchKick } from "./kick.ts";
import { benchMemory } from "./memory.ts";
import { benchNeighbour } from "./neighbour.ts";
import { benchNet } from "./net.ts";
import { benchRegion } from "./region.ts";
import { type Figure, table } from "./report.ts";
import { benchSoak } from "./soak.ts";
import { benchStartup } from "./startup.ts";
import { runSuites, type Suite } from "./suites.ts";
import { benchTap } from "./tap.ts";

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
  neighbour: {
    run: benchNeighbour,
    help: "the worst read of a device while another client does its worst",
  },
  soak: {
    run: benchSoak,
    help:
      "pauses of the collector in a minute of full load, memory in ten of resets and maps",
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

function parse(): BenchArguments {
  try {
    return parseBenchArguments(Deno.args, Object.keys(SUITES));
  } catch (error) {
    fail((error as Error).message);
  }
}

/** Writes figures, or says why that is impossible. */
function save(path: string, results: Readonly<Record<string, Figure[]>>): void {
  try {
    Deno.writeTextFileSync(path, JSON.stringify(results, null, 2) + "\n");
  } catch (error) {
    fail(`Cannot write ${path}: ${(error as Error).message}`);
  }
}

const { help, suites, scale, json } = parse();
if (help) {
  console.log(HELP.join("\n"));
  Deno.exit(0);
}
const results: Record<string, Figure[]> = {};
// Before the first suite: figures of half an hour must not be lost for a folder that is not there.
if (json !== null) save(json, results);
const chosen = Object.fromEntries(suites.map((name) => [name, SUITES[name]!]));
const failed = await runSuites(chosen, { scale }, (name, figures) => {
  results[name] = figures;
  console.log(table(name, figures));
  if (json !== null) save(json, results);
});
if (failed.length > 0) {
  console.error(`These failed, see above: ${failed.join(", ")}`);
  Deno.exit(1);
}
