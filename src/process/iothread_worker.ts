/**
 * An IOThread: a Worker that runs a blocking event loop and serves devices on it.
 *
 * While the loop runs, the Worker's `onmessage` does not. The main thread posts a message and then signals the
 * loop's wakeFd once; the loop returns with the number of signals, and that many messages are awaited.
 *
 * @module
 */

import { loadModel } from "../../devices/registry.ts";
import { EventLoop } from "../event_loop.ts";
import type { Log } from "../log.ts";
import { DeviceHost } from "./device_host.ts";
import type { Notice, NumberedRequest, Request } from "./messages.ts";

const scope = globalThis as unknown as {
  postMessage(message: Notice): void;
  onmessage: ((event: MessageEvent<NumberedRequest>) => void) | null;
  close(): void;
};

/** Logs travel to the main thread, which alone formats and writes. */
function remoteLog(device: string, debugEnabled: boolean): Log {
  const send =
    (level: "debug" | "info" | "warn" | "error") =>
    (message: string, properties: Record<string, unknown> = {}) =>
      scope.postMessage({ kind: "log", level, device, message, properties });
  return {
    debug: debugEnabled ? send("debug") : () => {},
    info: send("info"),
    warn: send("warn"),
    error: send("error"),
    debugEnabled,
  };
}

const processLog = remoteLog("", false);
const loop = new EventLoop({
  onError: (error) =>
    processLog.error(
      `unexpected failure: ${error instanceof Error ? error.stack : error}`,
    ),
});
const hosts = new Map<string, DeviceHost>();

async function handleRequest(request: Request): Promise<unknown> {
  switch (request.kind) {
    case "configure":
      loop.setPolling(request.pollMaxUs);
      return null;
    case "serve": {
      const { device, debug } = request;
      const model = await loadModel(device.model);
      hosts.set(
        device.id,
        new DeviceHost({
          id: device.id,
          model,
          options: device.options,
          loop,
          log: remoteLog(device.id, debug),
          listener: device.listener,
          poisonUnmapped: Deno.env.get("OUTBOARD_POISON") === "1",
        }),
      );
      return null;
    }
    case "command": {
      const host = hosts.get(request.device);
      if (host === undefined) {
        throw new Error(
          `Cannot find device ${request.device}: known are ${
            [...hosts.keys()].join(", ")
          }`,
        );
      }
      return host.command(request.name, request.args);
    }
    case "describe":
      return [...hosts.values()].map((host) => host.describe());
    case "stop":
      for (const host of hosts.values()) host.close();
      hosts.clear();
      return null;
    default:
      return request satisfies never;
  }
}

const inbox: NumberedRequest[] = [];
let arrived: () => void = () => {};
scope.onmessage = (event) => {
  inbox.push(event.data);
  arrived();
};

async function nextRequest(): Promise<NumberedRequest> {
  while (inbox.length === 0) {
    await new Promise<void>((resolve) => arrived = resolve);
  }
  return inbox.shift()!;
}

async function main(): Promise<void> {
  scope.postMessage({ kind: "ready", wakeFd: loop.wakeFd });
  for (;;) {
    for (let posted = loop.run(); posted > 0; posted--) {
      const { id, request } = await nextRequest();
      try {
        const value = await handleRequest(request);
        if (request.kind === "stop") loop.close();
        scope.postMessage({ kind: "reply", id, value });
      } catch (error) {
        const message = error instanceof Error ? error.message : String(error);
        scope.postMessage({ kind: "failure", id, message });
      }
      if (request.kind === "stop") return scope.close();
    }
  }
}

await main();
