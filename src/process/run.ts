/**
 * A run of Outboard from listening to shutdown: sockets, IOThreads, signals.
 *
 * ```text
 *   main thread (control)              IOThread (a Worker; data)
 *   arguments, sockets, signals  ──▶   event loop: vfio-user servers and their devices
 *   logs, control socket         ◀──   log records, replies
 * ```
 *
 * @module
 */

import type { Log } from "../log.ts";
import { ControlSocket } from "./control.ts";
import { IOThread } from "./iothread.ts";
import { createLog } from "./logging.ts";
import type { DeviceDescription } from "./messages.ts";
import {
  type Endpoint,
  type Listening,
  openEndpoint,
  prepareSocketPath,
} from "./sockets.ts";

/** A device and where it is served. */
export interface RunDevice {
  /** Unique in the process. */
  readonly id: string;
  /** Name in the registry, or path or URL of a model's module. */
  readonly model: string;
  /** What the model's `parse` returned. */
  readonly options: unknown;
  readonly endpoint: Endpoint;
}

/** What to run. */
export interface RunOptions {
  readonly devices: readonly RunDevice[];
  /** Path of the control socket, if one is wanted. */
  readonly control?: string;
}

/** A device that is being served. */
export interface ServedDevice {
  readonly id: string;
  readonly model: string;
  /** Path of its socket; null for an inherited one without a name. */
  readonly path: string | null;
  readonly fd: number;
}

/** How long an IOThread may take to stop before it is ended by force. */
const STOP_TIMEOUT_MS = 5000;

/** A process that serves devices. */
export class Outboard {
  readonly #listening: Listening[] = [];
  readonly #log: Log = createLog();
  readonly #iothread: IOThread;
  readonly #crash = Promise.withResolvers<never>();
  readonly #devices: ServedDevice[] = [];
  #control: ControlSocket | undefined;
  #stopping = false;

  /** Starts the IOThread at once: what the caller does meanwhile costs no start-up time. */
  constructor() {
    // Whoever waits for the end races this; nobody need.
    this.#crash.promise.catch(() => {});
    this.#iothread = new IOThread("iothread0", {
      onLog: ({ level, device, message, properties }) =>
        createLog(device === "" ? undefined : device)[level](
          message,
          properties,
        ),
      onCrash: (message) => {
        if (!this.#stopping) this.#crash.reject(new Error(message));
      },
    });
  }

  /**
   * Opens every endpoint and serves every device.
   *
   * @throws {Error} With the remedy; what was opened stays until {@linkcode Outboard.stop}
   */
  async serve(options: RunOptions): Promise<void> {
    for (const { id, model, options: own, endpoint } of options.devices) {
      const listening = openEndpoint(endpoint);
      this.#listening.push(listening);
      await this.#iothread.request({
        kind: "serve",
        device: { id, model, options: own, listener: listening.fd },
        debug: this.#log.debugEnabled,
      });
      this.#devices.push({
        id,
        model,
        path: listening.path,
        fd: listening.fd,
      });
    }
    if (options.control !== undefined) {
      prepareSocketPath(options.control);
      this.#control = new ControlSocket(options.control, this);
    }
  }

  /** The devices, in the order they were asked for. */
  get devices(): readonly ServedDevice[] {
    return this.#devices;
  }

  /** Rejects when an IOThread dies; never resolves. */
  get failed(): Promise<never> {
    return this.#crash.promise;
  }

  /** All devices with their clients, commands and counters. */
  async describe(): Promise<readonly DeviceDescription[]> {
    return await this.#iothread.request({ kind: "describe" });
  }

  /**
   * Runs a command of a device, such as `link down`.
   *
   * @returns What to tell the person who asked
   * @throws {Error} With a message for that person
   */
  async command(
    device: string,
    name: string,
    args: readonly string[],
  ): Promise<string> {
    return await this.#iothread.request({
      kind: "command",
      device,
      name,
      args,
    });
  }

  /** Stops every device, closes and removes the sockets. */
  async stop(): Promise<void> {
    if (this.#stopping) return;
    this.#stopping = true;
    this.#control?.close();
    let timer: ReturnType<typeof setTimeout> | undefined;
    const timeout = new Promise<void>((resolve) => {
      timer = setTimeout(() => {
        this.#log.warn("the IOThread did not stop in time and is ended");
        resolve();
      }, STOP_TIMEOUT_MS);
    });
    await Promise.race([
      this.#iothread.request({ kind: "stop" }).then(() => {}, () => {}),
      timeout,
    ]);
    clearTimeout(timer);
    this.#iothread.terminate();
    for (const listening of this.#listening.splice(0)) listening.close();
  }
}

/**
 * Waits for SIGINT, SIGTERM or the death of an IOThread, then stops.
 *
 * @param onReady Called when signals are heard: what it says may be answered with one at once
 * @returns The exit status: 0 after a signal
 * @throws {Error} When an IOThread died
 */
export async function runUntilSignal(
  outboard: Outboard,
  onReady: () => void,
): Promise<number> {
  const { promise, resolve } = Promise.withResolvers<void>();
  let signals = 0;
  const onSignal = () => {
    // A second signal means now.
    if (++signals > 1) Deno.exit(130);
    resolve();
  };
  Deno.addSignalListener("SIGINT", onSignal);
  Deno.addSignalListener("SIGTERM", onSignal);
  try {
    onReady();
    await Promise.race([promise, outboard.failed]);
    return 0;
  } finally {
    await outboard.stop();
    Deno.removeSignalListener("SIGINT", onSignal);
    Deno.removeSignalListener("SIGTERM", onSignal);
  }
}
