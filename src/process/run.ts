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
import { type Endpoint, type Listening, openEndpoint } from "./sockets.ts";

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
  /** Longest polling before an IOThread sleeps, in microseconds; 0 never polls, Infinity never sleeps. */
  readonly pollMaxUs?: number;
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
    if (options.pollMaxUs !== undefined) {
      const { pollMaxUs } = options;
      await this.#iothread.request({ kind: "configure", pollMaxUs });
    }
    for (const { id, model, options: own, endpoint } of options.devices) {
      // A signal may come before everything is set up.
      if (this.#stopping) return;
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
    if (options.control !== undefined && !this.#stopping) {
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

/** Hears SIGINT and SIGTERM from its making until it is disposed of; a second one ends the process at once. */
export class StopSignal implements Disposable {
  readonly #heard = Promise.withResolvers<void>();
  readonly #onSignal = (): void => {
    if (this.received) Deno.exit(130);
    this.received = true;
    this.#heard.resolve();
  };
  /** Whether one has come. */
  received = false;

  constructor() {
    Deno.addSignalListener("SIGINT", this.#onSignal);
    Deno.addSignalListener("SIGTERM", this.#onSignal);
  }

  /** Resolves when one comes. */
  get heard(): Promise<void> {
    return this.#heard.promise;
  }

  [Symbol.dispose](): void {
    Deno.removeSignalListener("SIGINT", this.#onSignal);
    Deno.removeSignalListener("SIGTERM", this.#onSignal);
  }
}

/**
 * Waits for a signal or the death of an IOThread, then stops.
 *
 * @returns The exit status: 0 after a signal
 * @throws {Error} When an IOThread died
 */
export async function runUntilSignal(
  outboard: Outboard,
  signal: StopSignal,
): Promise<number> {
  try {
    await Promise.race([signal.heard, outboard.failed]);
    return 0;
  } finally {
    await outboard.stop();
  }
}
