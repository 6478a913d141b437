/**
 * The program that runs libslirp for one card, in a process of its own: a guest whose frames make the library fail, or
 * do as they please, has this process and nothing else.
 *
 * Its one argument is a {@linkcode SlirpTask} as JSON. It has the socket and the page that its parent gave it, says when
 * it is ready, and ends when the socket does.
 *
 * @module
 */

import { ErrnoError } from "../../../core/errno.ts";
import { Fd, setCloseOnExec } from "../../../os/mod.ts";
import { PEER_EXTRA_FD, PEER_SOCKET_FD } from "../peer/process.ts";
import { confine } from "./confinement.ts";
import { SlirpNetwork } from "./network.ts";
import { SlirpPage } from "./page.ts";
import { openLibslirp } from "./symbols.ts";
import { EXIT_NO_LIBRARY, type SlirpTask } from "./task.ts";

function fail(status: number, message: string): never {
  console.error(message);
  Deno.exit(status);
}

function open(task: SlirpTask): SlirpNetwork {
  const library = openLibslirp(task.library ?? undefined);
  if ("reason" in library) fail(EXIT_NO_LIBRARY, library.reason);
  try {
    try {
      confine();
    } catch (error) {
      if (!(error instanceof ErrnoError)) throw error;
      // A kernel without seccomp; the process alone is worth much.
      console.error(`it keeps rights that it does not need: ${error.message}`);
    }
    const network = new SlirpNetwork({
      options: task.options,
      mtu: task.mtu,
      library,
      socket: new Fd(PEER_SOCKET_FD),
      page: new SlirpPage(new Fd(PEER_EXTRA_FD)),
      onGuestError: (message) =>
        console.error(`the guest's traffic is wrong: ${message.trim()}`),
    });
    console.error(`libslirp ${library.version} is ready`);
    return network;
  } catch (error) {
    if (!(error instanceof ErrnoError)) throw error;
    fail(error.errno, error.message);
  }
}

if (import.meta.main) {
  const task = JSON.parse(Deno.args[0]!) as SlirpTask;
  setCloseOnExec(PEER_SOCKET_FD);
  setCloseOnExec(PEER_EXTRA_FD);
  using network = open(task);
  while (!network.ended) network.turn();
}
