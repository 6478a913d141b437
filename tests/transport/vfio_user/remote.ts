/** Starts a {@link ./server_worker.ts} and connects to it. */

import { assertEquals } from "@std/assert";
import { signalEventFd } from "../../../src/os/mod.ts";
import {
  type ClientOptions,
  VfioUserClient,
} from "../../../src/transport/vfio_user/client/mod.ts";
import { openFds, sharedMappings, workersGone } from "../../resources.ts";
import { PATIENCE_MS } from "../../until.ts";
import type { ServerRequest } from "./server_worker.ts";

type Message = { wakeFd?: number; done?: true; error?: string };

function nextMessage(worker: Worker): Promise<Message> {
  return new Promise((resolve, reject) => {
    worker.onmessage = ({ data }) => resolve(data as Message);
    worker.onerror = (event) => {
      event.preventDefault();
      reject(new Error(event.message));
    };
  });
}

/** A client of a server on another thread or in another process, which waits for as long as that may take. */
export function connectClient(
  path: string,
  options: ClientOptions = {},
): VfioUserClient {
  return new VfioUserClient(path, { timeoutMs: PATIENCE_MS, ...options });
}

/** A path for a socket, in a folder of its own that goes with it. */
export async function withSocketPath(
  test: (path: string) => void | Promise<void>,
): Promise<void> {
  const folder = await Deno.makeTempDir({ prefix: "outboard-test-" });
  try {
    await test(`${folder}/dev.sock`);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

/** Runs a test on a client of a real server; neither leaves anything behind. */
export function withServer(
  request: Omit<ServerRequest, "path">,
  test: (client: VfioUserClient) => void,
  options: ClientOptions = {},
): Promise<void> {
  return withSocketPath(async (path) => {
    const worker = new Worker(new URL("server_worker.ts", import.meta.url), {
      type: "module",
    });
    try {
      worker.postMessage({ ...request, path });
      const { wakeFd, error } = await nextMessage(worker);
      if (wakeFd === undefined) throw new Error(error);
      const before = openFds();
      const mappings = sharedMappings();
      const ended = nextMessage(worker);
      try {
        // The first connection makes what stays; the second shows that the rest goes.
        for (let round = 0; round < 2; round++) {
          using client = connectClient(path, options);
          client.negotiate();
          test(client);
        }
      } finally {
        signalEventFd(wakeFd);
      }
      assertEquals(await ended, { done: true });
      assertEquals(sharedMappings() <= mappings, true, "mappings are left");
      // The server's own are closed as well by now.
      assertEquals(openFds() < before, true, "descriptors are left");
    } finally {
      worker.terminate();
      await workersGone();
    }
  });
}
