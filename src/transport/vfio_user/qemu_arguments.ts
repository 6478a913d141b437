/**
 * QEMU's arguments for devices that are served over vfio-user.
 *
 * @module
 */

import type { TransportDescription } from "../contract.ts";

/** A word that a POSIX shell takes as one, whatever is in it. */
function shellQuote(word: string): string {
  return /^[\w@%+=:,./-]+$/.test(word)
    ? word
    : `'${word.replaceAll("'", `'\\''`)}'`;
}

/** The arguments of one device for QEMU's command line, ready for a shell. */
function qemuDeviceArguments(path: string): string {
  const device = {
    driver: "vfio-user-pci",
    socket: { type: "unix", path },
  };
  return `-device ${shellQuote(JSON.stringify(device))}`;
}

/** QEMU's arguments that share guest memory with us, for a guest of 1 GiB. */
const QEMU_MEMORY_ARGUMENTS =
  "-m 1G -object memory-backend-memfd,id=mem,size=1G,share=on -machine q35,memory-backend=mem";

/** Lines for people: the arguments of devices on these sockets, ready for a shell. */
function describeForQemu(paths: readonly string[]): readonly string[] {
  const lines = paths.map(qemuDeviceArguments);
  return [
    `Arguments for QEMU 10.1 or newer${
      lines.length > 1 ? " (a -device each, in one VM or several)" : ""
    }:`,
    `  ${[QEMU_MEMORY_ARGUMENTS, ...lines].join(" \\\n  ")}`,
  ];
}

/** vfio-user (QEMU's docs/interop/vfio-user), for people. */
export const vfioUserDescription: TransportDescription = {
  qemuArgument: qemuDeviceArguments,
  describe: describeForQemu,
};
