/**
 * All benches: `deno task bench [SUITE…] [--json FILE]`.
 *
 * Both sides of a comparison run in one run; on a shared or small machine only the ratios mean anything.
 *
 * @module
 */

import { parseArgs } from "@std/cli/parse-args";
import { benchBlock } from "./block.ts";
import { benchGuestDisk } from "./guest_disk.ts";
import { benchNet } from "./net.ts";
import { benchRegion } from "./region.ts";
import { type Figure, table } from "./report.ts";
import { benchStartup } from "./startup.ts";

const SUITES: Readonly<Record<string, () => Promise<Figure[]>>> = {
  startup: benchStartup,
  region: benchRegion,
  net: benchNet,
  block: benchBlock,
  "guest-disk": benchGuestDisk,
};

const args = parseArgs(Deno.args, { string: ["json"] });
const wanted = args._.length > 0 ? args._.map(String) : Object.keys(SUITES);
const results: Record<string, Figure[]> = {};
for (const name of wanted) {
  const suite = SUITES[name];
  if (suite === undefined) {
    console.error(
      `Cannot run bench ${name}: known are ${Object.keys(SUITES).join(", ")}`,
    );
    Deno.exit(2);
  }
  results[name] = await suite();
  console.log(table(name, results[name]));
}
if (args.json !== undefined) {
  Deno.writeTextFileSync(args.json, JSON.stringify(results, null, 2) + "\n");
}
