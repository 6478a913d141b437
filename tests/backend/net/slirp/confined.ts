/**
 * A program for confinement_test.ts: gives up what libslirp's process does, and prints as JSON what it can still do.
 *
 * @module
 */

import { ErrnoError } from "../../../../src/core/errno.ts";
import { lastErrno, libc } from "../../../../src/os/symbols.ts";
import { openFd, spawnProcess } from "../../../../src/os/mod.ts";
import { confine } from "../../../../src/backend/net/slirp/confinement.ts";

const O_WRONLY = 1;
const O_CREAT = 0o100;
const AF_UNIX = 1;
const AF_INET = 2;
const AF_NETLINK = 16;
const SOCK_DGRAM = 2;

const [folder, victim] = Deno.args;
confine();

/** The name of the error, if there is one. */
function tried(attempt: () => void): string {
  try {
    attempt();
    return "done";
  } catch (error) {
    if (!(error instanceof ErrnoError)) throw error;
    return error.code;
  }
}

function call(result: number): void {
  if (result < 0) throw new ErrnoError(lastErrno(), "It fails");
}

const socket = (domain: number) => () =>
  call(libc.socket(domain, SOCK_DGRAM, 0));

console.log(JSON.stringify({
  read: tried(() => openFd("/proc/self/status", 0).close()),
  write: tried(() => openFd(`${folder}/old`, O_WRONLY)),
  create: tried(() => openFd(`${folder}/new`, O_WRONLY | O_CREAT)),
  unlink: tried(() =>
    call(libc.unlink(new TextEncoder().encode(`${folder}/old\0`)))
  ),
  memory: tried(() => openFd(`/proc/${victim}/mem`, O_WRONLY)),
  inet: tried(socket(AF_INET)),
  unix: tried(socket(AF_UNIX)),
  netlink: tried(socket(AF_NETLINK)),
  kill: tried(() => call(libc.kill(Number(victim), 0))),
  program: tried(() =>
    spawnProcess({ program: "/bin/true", args: ["true"], env: {}, fds: [] })
      .close()
  ),
}));
