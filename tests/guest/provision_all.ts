/**
 * Fetches everything that guest tests can need, as a program: for a machine that is to be prepared, and for finding out
 * whether this one can be. Ends with status 1 and the reasons where something cannot be had.
 *
 * @module
 */

import { hostPasst } from "./passt.ts";
import { EXTRA_TOOLS, hostLibslirp, isSkip, provision } from "./provision.ts";

const provided = {
  "virtual machines": await provision({ tools: EXTRA_TOOLS }),
  libslirp: await hostLibslirp(),
  passt: await hostPasst(),
};
let missing = 0;
for (const [what, result] of Object.entries(provided)) {
  console.log(isSkip(result) ? `no ${what}: ${result.skip}` : `${what}: ready`);
  if (isSkip(result)) missing++;
}
Deno.exit(missing > 0 ? 1 : 0);
