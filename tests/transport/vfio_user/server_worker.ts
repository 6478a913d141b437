/** A real server on a real loop in a Worker: the client that a test drives blocks its own thread. */

import { SocketWrites } from "../../../src/pci/socket_writes.ts";
import { createPciDevice } from "../../devices/pci_device.ts";
import { loadModel } from "../../../devices/registry.ts";
import { EventLoop } from "../../../src/loop/event_loop.ts";
import { listenUnix } from "../../../src/os/mod.ts";
import { silentLog } from "../../../src/core/log.ts";
import { DmaMemory } from "../../../src/memory/dma_memory.ts";
import { MemfdMemory } from "../../../src/memory/shared_memory.ts";
import {
  type DeviceContext,
  type PciDevice,
  PciFunction,
  PciInterrupts,
} from "../../../src/pci/mod.ts";
import { VfioUserServer } from "../../../src/transport/vfio_user/mod.ts";
import { LessonDevice } from "./lesson_device.ts";

/** Server that a test asks for. */
export interface ServerRequest {
  /** Path to listen on. */
  readonly path: string;
  /** A built-in model; the lesson device without one. */
  readonly model?: string;
  /** Options of the model. */
  readonly options?: Record<string, string>;
}

const scope = globalThis as unknown as {
  onmessage: ((event: MessageEvent<ServerRequest>) => void) | null;
  postMessage(message: unknown): void;
  close(): void;
};

async function create(
  request: ServerRequest,
  context: DeviceContext,
): Promise<PciDevice> {
  if (request.model === undefined) return new LessonDevice(context);
  const model = await loadModel(request.model);
  return createPciDevice(
    model,
    context,
    model.options?.parse(request.options ?? {}),
  );
}

async function serve(request: ServerRequest): Promise<void> {
  using loop = new EventLoop();
  using listener = listenUnix(request.path);
  using memory = new DmaMemory({ poison: true });
  using stack = new DisposableStack();
  const interrupts = new PciInterrupts();
  const writes = new SocketWrites();
  const context: DeviceContext = {
    memory,
    posted: writes,
    interrupts,
    loop,
    log: silentLog,
    random: (lengthBytes) =>
      crypto.getRandomValues(new Uint8Array(lengthBytes)),
    onStart: (tell) => tell(true),
    createSharedMemory: (name, lengthBytes) =>
      stack.use(new MemfdMemory(name, lengthBytes)),
  };
  const device = await create(request, context);
  stack.defer(() => device.close());
  using server = new VfioUserServer({
    loop,
    log: silentLog,
    listener: listener.number,
    pci: new PciFunction(device, memory, interrupts, silentLog),
    interrupts,
    memory,
    writes,
  });
  server.start();
  scope.postMessage({ wakeFd: loop.wakeFd });
  loop.run();
}

scope.onmessage = async ({ data }) => {
  try {
    await serve(data);
    scope.postMessage({ done: true });
  } catch (error) {
    scope.postMessage({ error: String((error as Error).stack ?? error) });
  }
  scope.close();
};
