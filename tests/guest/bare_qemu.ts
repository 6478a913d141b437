/**
 * A QEMU without a Linux guest: one that realizes its devices and never starts its processor, which is a real client
 * in a quarter of a second, or one whose firmware boots from what it finds.
 *
 * @module
 */

import { within } from "./console.ts";
import type { Kit } from "./provision.ts";
import { tcgArguments } from "./tcg.ts";
import { TextSink } from "./text_sink.ts";

/** A QEMU without a guest. */
export interface BareQemu {
  /** True if it has ended by itself. */
  hasExited(): Promise<boolean>;
  /** Complaints of the program, once it has ended. */
  stderr(): Promise<string>;
  /** Waits until the first serial port has said something that matches, and gives all it said. */
  waitForSerial(pattern: RegExp, timeoutMs: number): Promise<string>;
  /** Ends it with SIGKILL and waits. */
  kill(): Promise<void>;
}

/** Settings of the process. */
export interface BareQemuOptions {
  /** True if its processor runs, and so its firmware. */
  readonly run?: boolean;
  /** More arguments. */
  readonly args?: readonly string[];
}

/** Starts a QEMU with the given `-device` arguments and shared memory. */
export function startQemu(
  kit: Kit,
  devices: readonly string[],
  options: BareQemuOptions = {},
): BareQemu {
  const { qemu } = kit;
  const child = new Deno.Command("setpriv", {
    args: [
      ...["--pdeathsig", "KILL", "--", qemu.command, ...qemu.args],
      ...["-nodefaults", "-no-user-config", "-display", "none"],
      ...["-serial", "stdio", ...(options.run ? [] : ["-S"])],
      ...tcgArguments(),
      ...["-m", "128M", "-machine", "q35,memory-backend=ram"],
      ...["-object", "memory-backend-memfd,id=ram,size=128M,share=on"],
      ...devices.flatMap((device) => ["-device", device]),
      ...(options.args ?? []),
    ],
    env: { ...qemu.env },
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  const stderr = new Response(child.stderr).text();
  let exited = false;
  const status = child.status.then(() => exited = true);
  const serial = new TextSink();
  const drained = serial.drain(child.stdout);
  return {
    hasExited: () => Promise.resolve(exited),
    stderr: () => stderr,
    waitForSerial: async (pattern, timeoutMs) => {
      const found = await within(serial.match(pattern, 0), timeoutMs);
      if (found !== undefined) return serial.text;
      throw new Error(`no ${pattern} on the serial port:\n${serial.text}`);
    },
    kill: async () => {
      if (!exited) child.kill("SIGKILL");
      await status;
      await drained;
      serial.fail(new Error("QEMU has ended"));
      await stderr;
    },
  };
}
