/**
 * The same traffic in one guest, in one boot, on our cards and on QEMU's own, on a TAP each and on user-mode networks.
 *
 * - `OUTBOARD_BENCH_POLL` lists the values of `--poll` to compare on the TAP, each in a process of its own (`50000,off`
 *   unless told; `always` goes alone).
 * - `OUTBOARD_BENCH_ONLY` is a regular expression for the rows to measure, such as `TAP, UDP`.
 * - `OUTBOARD_BENCH_CPUS` is the number of virtual CPUs, 1 unless told: a virtual CPU under TCG keeps a core busy, and
 *   with more of them than cores less one what is measured is how the host's scheduler shares cores between them and
 *   whoever serves the card, which is a process of its own on our side and QEMU's main loop on the other.
 *
 * @module
 */

import { hostLibslirp, isSkip, provision } from "../tests/guest/provision.ts";
import { GUEST_NET_TOOLS } from "./guest_net_cards.ts";
import { type Figure, leftOut } from "./report.ts";
import type { BenchSettings } from "./settings.ts";

/** Our virtio-net against QEMU's own under TCG: throughput, small datagrams and round trips. */
export async function benchGuestNet(
  { scale }: BenchSettings,
): Promise<Figure[]> {
  // The network namespace reaches no mirror: all that is needed is fetched before.
  const kit = await provision({ tools: GUEST_NET_TOOLS });
  const library = await hostLibslirp();
  for (const part of [kit, library]) {
    if (isSkip(part)) {
      return [leftOut("iperf3 and ping in a guest", part.skip)];
    }
  }
  // Interfaces and servers live in a network namespace, which ends with the processes in it.
  const child = new Deno.Command("unshare", {
    args: [
      ...["--net", "--map-root-user", "--kill-child=KILL", "--fork", "--"],
      ...[Deno.execPath(), "run", "-A"],
      ...[import.meta.resolve("./guest_net_inside.ts"), String(scale)],
    ],
    stdin: "null",
    stdout: "piped",
    stderr: "inherit",
  });
  const { success, stdout } = await child.output();
  if (!success) throw new Error("Cannot bench guest networks: see above");
  return JSON.parse(new TextDecoder().decode(stdout));
}
