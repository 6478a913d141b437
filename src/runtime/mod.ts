/**
 * A process that serves devices, for programs that embed Outboard instead of starting it.
 *
 * This needs the permissions of the command: `--allow-ffi`, `--allow-read`, `--allow-write`, `--allow-env` and what the
 * back ends use.
 *
 * @example Serve a network card on the second of two IOThreads, and move it to the first
 * ```ts ignore
 * import { loadModel, Outboard } from "@outboard/outboard/process";
 *
 * const model = await loadModel("virtio-net");
 * const outboard = new Outboard({ iothreads: 2 });
 * await outboard.serve({
 *   devices: [{
 *     id: "lan",
 *     model: "virtio-net",
 *     options: model.parse({ net: "none" }),
 *     endpoint: { kind: "path", path: "/tmp/dev.sock" },
 *     iothreads: [1],
 *   }],
 * });
 * await outboard.move("lan", 0);
 * await outboard.stop();
 * ```
 *
 * @module
 */

export type { MetricShape } from "../core/counters.ts";
export { loadModel } from "../../devices/registry.ts";
export type { IOThreadDescription } from "./control/control.ts";
export {
  configureLogging,
  type LineSink,
  LOG_FORMATS,
  LOG_LEVELS,
  type LogFormat,
  type LogLevel,
} from "./logging/logging.ts";
export type {
  DeviceDescription,
  PlacedDescription,
} from "./iothread/messages.ts";
export type {
  MetricFamily,
  MetricSample,
  MetricsSnapshot,
} from "./metrics/metrics.ts";
export type { MetricsEndpoint } from "./metrics/endpoint.ts";
export { IOTHREADS_MAX } from "./iothread/bounds.ts";
export * from "./run.ts";
export type { Endpoint } from "./sockets.ts";
export type { SocketPath } from "../os/socket/socket_file.ts";
export * from "./until_signal.ts";
