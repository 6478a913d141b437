/**
 * A program for passt_test.ts, to be run with few descriptors: starts a program with ever fewer of them left, and prints for
 * each attempt how many there were before it and after it.
 *
 * @module
 */

import { Errno, ErrnoError } from "../../../../src/core/errno.ts";
import { type Fd, openFd } from "../../../../src/os/mod.ts";
import { startPeer } from "../../../../src/backend/net/peer/process.ts";

/** Takes all descriptors that are left. */
function takeAll(): Fd[] {
  const taken: Fd[] = [];
  for (;;) {
    try {
      taken.push(openFd("/dev/null", 0));
    } catch (error) {
      if ((error as ErrnoError).errno !== Errno.EMFILE) throw error;
      return taken;
    }
  }
}

// The runtime may want a descriptor to print with.
const lines: string[] = [];
const held = takeAll();
for (let free = 0; free < 5; free++) {
  for (const fd of held.splice(0, free)) fd.close();
  try {
    startPeer({ program: "/bin/true", args: ["true"], variables: [] });
    lines.push("it was started");
  } catch (error) {
    if (!(error instanceof ErrnoError)) throw error;
    const left = takeAll();
    lines.push(`${free} ${left.length} ${error.code}`);
    held.push(...left);
  }
}
for (const fd of held) fd.close();
console.log(lines.join("\n"));
