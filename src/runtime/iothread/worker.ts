/**
 * An IOThread: a Worker that runs a blocking event loop and serves devices on it.
 *
 * While the loop runs, the Worker's `onmessage` does not. The main thread posts a message and then signals the
 * loop's wakeFd once; the loop returns with the number of signals, and that many messages are awaited. While a
 * message is handled the loop does not run, so that is to be short.
 *
 * @module
 */

import { environmentVariable } from "../../core/environment.ts";
import type { DeviceModel } from "../../../devices/model.ts";
import { loadModel } from "../../../devices/registry.ts";
import { EventLoop } from "../../loop/event_loop.ts";
import {
  createEventFd,
  ResourceBag,
  setThreadCpus,
  setThreadName,
  threadId,
} from "../../os/mod.ts";
import type { Log } from "../../core/log.ts";
import {
  describeModel,
  ModelError,
  modelFault,
} from "../../core/model_fault.ts";
import { HELLO_TIMEOUT_MS } from "../../transport/mod.ts";
import { QueueSite } from "../queue_site.ts";
import { DeviceHost } from "../device_host.ts";
import { LogLimit } from "../logging/log_limit.ts";
import type { ThreadMetrics } from "../metrics/metrics.ts";
import type {
  Notice,
  NumberedRequest,
  Request,
  SavedHost,
} from "./messages.ts";
import { guardRuntime, withoutRuntime } from "./runtime_guard.ts";
import { createMailbox, ThreadCalls } from "./thread_calls.ts";

const scope = globalThis as unknown as {
  readonly name: string;
  postMessage(message: Notice): void;
  onmessage: ((event: MessageEvent<NumberedRequest>) => void) | null;
  close(): void;
};

/** Logs travel to the main thread, which alone formats and writes. What waits for it there does not grow with a flood. */
function remoteLog(device: string, debugEnabled: boolean): Log {
  const send =
    (level: "debug" | "info" | "warn" | "error") =>
    (message: string, properties: Record<string, unknown> = {}) =>
      logLimit.add({ level, device, message, properties });
  return {
    debug: debugEnabled
      ? send("debug")
      // Events are told whatever is logged.
      : (message, properties) => {
        if (properties?.event !== undefined) send("debug")(message, properties);
      },
    info: send("info"),
    warn: send("warn"),
    error: send("error"),
    debugEnabled,
  };
}

const processLog = remoteLog("", false);
const loop = new EventLoop({
  onError: (error) => {
    const fault = modelFault(error);
    if (fault !== null) return processLog.error(fault);
    const { stack } = error as Error;
    processLog.error("unexpected failure", { error, stack });
  },
});
const logLimit = new LogLimit(
  loop,
  (line) => scope.postMessage({ kind: "log", ...line }),
);
guardRuntime((message) => processLog.error(message));

const devices = new Map<string, DeviceHost>();
/** Shares in devices that live on other threads. */
const sites = new Map<string, Disposable>();
const mailboxFd = createEventFd();
const calls = new ThreadCalls(loop, createMailbox(mailboxFd.number));
let helloTimeoutMs = HELLO_TIMEOUT_MS;
/** Number of messages that were announced and not yet taken. */
let announced = 0;
/** See {@linkcode DeviceHostOptions.prealloc}. */
let prealloc = false;

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

function hostOf(id: string): DeviceHost {
  const host = devices.get(id);
  if (host === undefined) {
    throw new Error(`Cannot find device ${id}: it is not on ${scope.name}`);
  }
  return host;
}

/** Has a model make a device; what it throws says which model it was, and where, if that is an author's. */
function callModel<T>({ name }: DeviceModel, make: () => T): T {
  try {
    return withoutRuntime(make);
  } catch (error) {
    if (error instanceof ModelError) throw error;
    const fault = modelFault(error, describeModel(name));
    throw fault === null ? error : new Error(fault, { cause: error });
  }
}

async function serve(
  { device, debug, saved, threads }: Extract<Request, { kind: "serve" }>,
): Promise<null> {
  const model = await loadWhileServing(device.model);
  const bag = ResourceBag.of(saved?.fds);
  let host: DeviceHost;
  try {
    host = callModel(model, () =>
      new DeviceHost({
        id: device.id,
        model,
        options: device.options,
        loop,
        log: remoteLog(device.id, debug),
        listener: device.listener,
        helloTimeoutMs,
        prealloc,
        poisonUnmapped: environmentVariable("OUTBOARD_POISON") === "1",
        ...(saved && { saved: { state: saved.state, bag } }),
        ...(threads && { threads: { plan: threads, calls } }),
      }));
  } catch (error) {
    // For another attempt.
    bag.release();
    throw error;
  }
  bag[Symbol.dispose]();
  devices.set(device.id, host);
  return null;
}

function handOver(id: string): SavedHost {
  const { state, bag } = hostOf(id).handOver();
  devices.delete(id);
  return { state, fds: bag.release() };
}

async function join(
  { device, debug, line, control }: Extract<Request, { kind: "join" }>,
): Promise<null> {
  const model = await loadWhileServing(device.model);
  const log = remoteLog(device.id, debug);
  const { options } = device;
  sites.set(
    device.id,
    new QueueSite({ model, options, loop, log, calls, line, control }),
  );
  return null;
}

function leave(id: string): null {
  sites.get(id)?.[Symbol.dispose]();
  sites.delete(id);
  return null;
}

function closeDevices(): void {
  loop.beginClose();
  for (const [id, host] of devices) {
    try {
      host.close();
    } catch (error) {
      // The others are to be closed all the same.
      remoteLog(id, false).error("cannot close the device", { error });
    }
  }
  devices.clear();
}

function stop(): void {
  closeDevices();
  for (const id of [...sites.keys()]) leave(id);
  calls.close();
  logLimit.flush();
}

async function handleRequest(
  request: Exclude<Request, { kind: "command" }>,
): Promise<unknown> {
  switch (request.kind) {
    case "serve":
      return await serve(request);
    case "join":
      return await join(request);
    case "prepare":
      await loadWhileServing(request.model);
      return null;
    default:
      return withoutRuntime(() => handleAtOnce(request));
  }
}

function handleAtOnce(
  request: Exclude<
    Request,
    { kind: "serve" | "join" | "prepare" | "command" }
  >,
): unknown {
  switch (request.kind) {
    case "configure":
      if (request.cpus !== null) setThreadCpus(request.cpus);
      loop.setPolling(request.pollMaxUs);
      helloTimeoutMs = request.helloTimeoutMs;
      prealloc = request.prealloc;
      return null;
    case "listen":
      hostOf(request.device).listen();
      return null;
    case "leave":
      return leave(request.device);
    case "hold":
      return hostOf(request.device).hold();
    case "place":
      hostOf(request.device).place(
        request.threads && { plan: request.threads, calls },
      );
      return null;
    case "queueGroups":
      return hostOf(request.device).queueGroups();
    case "release":
      hostOf(request.device).release();
      return null;
    case "handOver":
      return handOver(request.device);
    case "discard":
      ResourceBag.of(request.saved.fds)[Symbol.dispose]();
      return null;
    case "metrics":
      return {
        loop: loop.counters(),
        devices: [...devices.values()].map((host) => host.metrics()),
      } satisfies ThreadMetrics;
    case "describe":
      return [...devices.values()].map((host) => host.describe());
    case "close":
      closeDevices();
      return null;
    case "stop":
      stop();
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

/** Time the loop runs at a time while a model is loaded. */
const SLICE_MS = 1;

/** Loads a model; where devices are served already, they go on meanwhile. */
async function loadWhileServing(reference: string): Promise<DeviceModel> {
  const loading = loadModel(reference);
  if (devices.size === 0 && sites.size === 0) return await loading;
  let settled = false;
  const settle = () => {
    settled = true;
  };
  loading.then(settle, settle);
  using slice = loop.timer(() => loop.stop());
  // The runtime reads and compiles modules in turns of its own: each slice of the loop is followed by one of those.
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, 0));
    if (settled) return await loading;
    slice.arm(SLICE_MS);
    announced += withoutRuntime(() => loop.run());
  }
}

async function answer({ id, request }: NumberedRequest): Promise<void> {
  try {
    if (request.kind === "command") {
      const { device, name, args } = request;
      return withoutRuntime(() =>
        hostOf(device).command(
          ...[name, args] as const,
          (outcome) =>
            outcome instanceof Error ? fail(id, outcome) : reply(id, outcome),
        )
      );
    }
    const value = await handleRequest(request);
    if (request.kind === "stop") loop.close();
    reply(id, value);
  } catch (error) {
    fail(id, error);
  }
}

function reply(id: number, value: unknown): void {
  scope.postMessage({ kind: "reply", id, value });
}

function fail(id: number, error: unknown): void {
  const message = messageOf(error);
  const isModelError = error instanceof ModelError;
  scope.postMessage({ kind: "failure", id, message, isModelError });
}

async function main(): Promise<void> {
  setThreadName(scope.name);
  scope.postMessage({
    kind: "ready",
    wakeFd: loop.wakeFd,
    threadId: threadId(),
    mailbox: calls.mailbox,
  });
  for (;;) {
    announced += withoutRuntime(() => loop.run());
    while (announced > 0) {
      announced--;
      const numbered = await nextRequest();
      await answer(numbered);
      if (numbered.request.kind === "stop") return scope.close();
    }
  }
}

await main();
