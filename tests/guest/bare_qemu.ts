/**
 * A QEMU that realizes its devices and never starts its processor: a real client in a quarter of a second.
 *
 * @module
 */

import type { Kit } from "./provision.ts";

/** A QEMU without a guest. */
export interface BareQemu {
  /** Whether it has ended by itself. */
  hasExited(): Promise<boolean>;
  /** What it complained of; once it has ended. */
  stderr(): Promise<string>;
  /** Ends it with SIGKILL and waits. */
  kill(): Promise<void>;
}

/** Starts a QEMU with the given `-device` arguments and shared memory. */
export function startQemu(kit: Kit, devices: readonly string[]): BareQemu {
  const { qemu } = kit;
  const child = new Deno.Command("setpriv", {
    args: [
      ...["--pdeathsig", "KILL", "--", qemu.command, ...qemu.args],
      ...["-nodefaults", "-no-user-config", "-display", "none", "-S"],
      ...["-accel", "tcg", "-m", "128M", "-machine", "q35,memory-backend=ram"],
      ...["-object", "memory-backend-memfd,id=ram,size=128M,share=on"],
      ...devices.flatMap((device) => ["-device", device]),
    ],
    env: { ...qemu.env },
    stdin: "null",
    stdout: "null",
    stderr: "piped",
  }).spawn();
  const stderr = new Response(child.stderr).text();
  let exited = false;
  const status = child.status.then(() => exited = true);
  return {
    hasExited: () => Promise.resolve(exited),
    stderr: () => stderr,
    kill: async () => {
      if (!exited) child.kill("SIGKILL");
      await status;
      await stderr;
    },
  };
}
