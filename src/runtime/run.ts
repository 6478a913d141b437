/**
 * A run of Outboard from listening to shutdown: sockets, IOThreads, signals.
 *
 * ```text
 *   main thread (control)              IOThreads (Workers; data)
 *   arguments, sockets, signals  ──▶   an event loop each: vfio-user servers and their devices
 *   logs, control socket         ◀──   log records, replies
 * ```
 *
 * @module
 */

import { threadCpus } from "../os/mod.ts";
import { HELLO_TIMEOUT_MS } from "../transport/contract.ts";
import type { Log } from "../core/log.ts";
import type { CommandAnswer } from "../pci/device.ts";
import { ModelError } from "../core/model_fault.ts";
import { UnknownNameError } from "../core/unknown_name.ts";
import { ControlSocket, type IOThreadDescription } from "./control/control.ts";
import { IOThread, settles } from "./iothread/iothread.ts";
import { createLog } from "./logging/logging.ts";
import {
  type DeviceDescription,
  type DeviceSpec,
  type LogNotice,
  type PlacedDescription,
  POLL_MAX_US_DEFAULT,
  type ReplyOf,
} from "./iothread/messages.ts";
import type { MetricsSnapshot } from "./metrics/metrics.ts";
import type { MetricsEndpoint } from "./metrics/endpoint.ts";
import type { MetricsServer } from "./metrics/server.ts";
import {
  DeviceLostError,
  holdDevice,
  type Move,
  transferDevice,
} from "./move.ts";
import {
  checkIOThread,
  checkIOThreads,
  describeCrowding,
  isSamePlace,
  otherThreads,
  type Place,
  placeDevices,
  placeWithQueue,
  threadsOf,
} from "./iothread/placement.ts";
import type { QueuePlan } from "./device_threads.ts";
import {
  type CallLine,
  createCallLine,
  hangUp,
  type Mailbox,
} from "./iothread/thread_calls.ts";
import type { SocketPath } from "../os/socket/socket_file.ts";
import { type Endpoint, type Listening, openEndpoint } from "./sockets.ts";

/** A device and where it is served. */
export interface RunDevice {
  /** Unique in the process. */
  readonly id: string;
  /** Name in the registry, or path or URL of a model's module. */
  readonly model: string;
  /** Result of the model's `parse`. */
  readonly options: unknown;
  /** The socket it listens on. */
  readonly endpoint: Endpoint;
  /** Numbers of the IOThreads it is to use, the one it lives on first; absent or empty for any. */
  readonly iothreads?: readonly number[];
}

/** The threads of a process. */
export interface ThreadOptions {
  /** Number of IOThreads that serve devices, 1–64; 1 unless told. */
  readonly iothreads?: number;
  /** The CPUs that each of them may run on, one set for each; all that the process may use unless told. */
  readonly cpus?: readonly (readonly number[])[];
}

/** Devices to run, and how. */
export interface RunOptions {
  /** The devices; each has a socket of its own. */
  readonly devices: readonly RunDevice[];
  /** Longest polling before an IOThread sleeps, in microseconds; 0 never polls, Infinity never sleeps; 50 unless told. */
  readonly pollMaxUs?: number;
  /** Time a client may take until a version is agreed, in milliseconds; 5000 unless told. */
  readonly helloTimeoutMs?: number;
  /** True if guest memory is reserved when it is mapped, so that it cannot run out in use; not unless told. */
  readonly prealloc?: boolean;
  /** Path of the control socket; none without it. */
  readonly control?: SocketPath;
  /** Endpoint of metrics; none without it. */
  readonly metrics?: MetricsEndpoint;
}

/** A device that is being served. */
export interface ServedDevice {
  /** Its id, unique in the process. */
  readonly id: string;
  /** Its model, as it was asked for. */
  readonly model: string;
  /** Path of its socket; null for an inherited one without a name. */
  readonly path: string | null;
  /** Descriptor of its listening socket. */
  readonly fd: number;
  /** Number of the IOThread it lives on. */
  readonly iothread: number;
}

/** A device, its socket and its place. */
interface Placed {
  spec: DeviceSpec;
  readonly listening: Listening;
  /** Ends when everything asked of the device so far is done: moves and commands take their turns. */
  turn: Promise<void>;
}

/** A line between two IOThreads. */
interface Line {
  readonly line: CallLine;
  /** Number of the thread that answers. */
  readonly iothread: number;
  /** The thread that calls. */
  readonly control: Mailbox;
}

/** Time an IOThread may take for each step of its stop before it is ended by force. */
const STOP_TIMEOUT_MS = 5000;

/** A process that serves devices. */
export class Outboard {
  readonly #listening: Listening[] = [];
  readonly #log: Log = createLog();
  readonly #iothreads: readonly IOThread[];
  readonly #cpus: ThreadOptions["cpus"];
  readonly #crash = Promise.withResolvers<never>();
  readonly #devices = new Map<string, Placed>();
  readonly #lines: Line[] = [];
  /** Devices between two threads. */
  readonly #transfers = new Set<Promise<void>>();
  #control: ControlSocket | undefined;
  #metrics: MetricsServer | undefined;
  #stopping = false;
  #stopFailed = false;

  /**
   * Starts the IOThreads at once: what the caller does meanwhile costs no start-up time.
   *
   * @throws {Error} When so many threads or such CPUs cannot be had
   */
  constructor(options: ThreadOptions = {}) {
    const { iothreads: count = 1, cpus } = options;
    checkIOThreads(count, cpus ?? null, cpus === undefined ? [] : threadCpus());
    this.#cpus = cpus;
    const crowding = cpus === undefined ? null : describeCrowding(cpus);
    if (crowding !== null) this.#log.warn(crowding);
    // Whoever waits for the end races this; nobody need.
    this.#crash.promise.catch(() => {});
    this.#iothreads = Array.from({ length: count }, (_, i) => this.#start(i));
  }

  #start(index: number): IOThread {
    return new IOThread(index, {
      onLog: (record) => this.#onLog(record),
      onCrash: (message) => this.#onCrash(index, message),
      onSilence: (silent) => this.#onSilence(index, silent),
    });
  }

  /** Logs a message, and tells programs too what has a name as an event. */
  #onLog({ level, device, message, properties }: LogNotice): void {
    if (this.#stopping && level === "error") this.#stopFailed = true;
    createLog(device === "" ? undefined : device)[level](message, properties);
    const { event, ...data } = properties;
    if (typeof event !== "string") return;
    this.#control?.tell({ event, data: { device, ...data } });
  }

  #onCrash(index: number, message: string): void {
    // Whoever waits for an answer of it would wait in vain, and could not be stopped.
    for (const { line, iothread, control } of this.#lines) {
      if (iothread === index) hangUp(line, control);
    }
    if (this.#stopping) return;
    const lost = this.#devicesOn(index).join(", ");
    const what = lost === "" ? "" : `, and with it ${lost}`;
    this.#crash.reject(
      new Error(`Cannot go on: IOThread ${index} died${what}: ${message}`),
    );
  }

  #onSilence(index: number, silent: boolean): void {
    if (!silent) return this.#log.info(`IOThread ${index} answers again`);
    const devices = this.#devicesOn(index).join(", ") || "none";
    this.#log.warn(
      `IOThread ${index} does not answer, something keeps it from all else; devices on it: ${devices}`,
      { iothread: index },
    );
  }

  #devicesOn(index: number): string[] {
    return [...this.#devices.values()]
      .filter(({ spec }) => threadsOf(spec).includes(index))
      .map((device) => device.spec.id);
  }

  /**
   * Opens every endpoint and serves every device.
   *
   * @throws {Error} With the remedy; what was opened stays until {@linkcode Outboard.stop}
   */
  async serve(options: RunOptions): Promise<void> {
    const { devices } = options;
    const places = placeDevices(devices, this.#iothreads.length);
    // A port in use is to be known before devices have begun to work.
    if (options.metrics !== undefined) {
      await this.#serveMetrics(options.metrics);
    }
    // A signal may come before everything is set up.
    if (this.#stopping) return;
    const opened = devices.map((device, i) => this.#open(device, places[i]!));
    await this.#serveAll(opened, {
      pollMaxUs: options.pollMaxUs ?? POLL_MAX_US_DEFAULT,
      helloTimeoutMs: options.helloTimeoutMs ?? HELLO_TIMEOUT_MS,
      prealloc: options.prealloc ?? false,
    });
    if (this.#stopping) return;
    // Nobody connects to a device that will not be: everything else is there when the first socket appears.
    if (options.control !== undefined) {
      this.#control = new ControlSocket(options.control, this);
    }
    for (const { listening } of opened) listening.listen();
    for (const device of opened) this.#devices.set(device.spec.id, device);
    await Promise.all(
      opened.map((device) =>
        this.#iothreads[device.spec.iothread]!
          .request({ kind: "listen", device: device.spec.id })
      ),
    );
  }

  #open(device: RunDevice, place: Place): Placed {
    const { id, model, options } = device;
    const listening = openEndpoint(device.endpoint);
    this.#listening.push(listening);
    return {
      spec: { id, model, options, listener: listening.fd, ...place },
      listening,
      turn: Promise.resolve(),
    };
  }

  /** The threads set up their devices at the same time, each one after the other. */
  async #serveAll(
    devices: readonly Placed[],
    settings: {
      readonly pollMaxUs: number;
      readonly helloTimeoutMs: number;
      readonly prealloc: boolean;
    },
  ): Promise<void> {
    const debug = this.#log.debugEnabled;
    const outcomes = await Promise.allSettled(
      this.#iothreads.map(async (thread, i) => {
        const cpus = this.#cpus?.[i] ?? null;
        await thread.request({ kind: "configure", ...settings, cpus });
        for (const device of devices) {
          if (device.spec.iothread !== thread.index) continue;
          if (this.#stopping) return;
          await this.#serve(thread, device.spec, debug);
        }
      }),
    );
    const failed = outcomes.find((outcome) => outcome.status === "rejected");
    if (failed !== undefined) throw failed.reason;
  }

  /** With a device that is to use several threads, the others get ready before it is made. */
  async #serve(
    thread: IOThread,
    device: DeviceSpec,
    debug: boolean,
  ): Promise<void> {
    const threads = await this.#joinAll(device, debug);
    try {
      await thread.request({
        kind: "serve",
        device,
        debug,
        ...(threads === undefined ? {} : { threads }),
      });
    } catch (error) {
      await this.#leaveAll(device);
      if (!(error instanceof ModelError)) throw error;
      // The same file may be behind several.
      throw new ModelError(`${device.id}: ${error.message}`, { cause: error });
    }
  }

  /** Has the other threads of a device wait for what it tells them. @returns None when there are no others */
  async #joinAll(
    device: DeviceSpec,
    debug: boolean,
  ): Promise<QueuePlan | undefined> {
    const others = otherThreads(device);
    if (others.length === 0) return undefined;
    const control = await this.#iothreads[device.iothread]!.mailbox();
    const threads = await Promise.all(others.map(async (iothread) => {
      const other = this.#iothreads[iothread]!;
      const line = createCallLine();
      this.#lines.push({ line, iothread, control });
      await other.request({ kind: "join", device, debug, line, control });
      return { iothread, mailbox: await other.mailbox(), line };
    }));
    const turns = device.queues.map((iothread) => others.indexOf(iothread) + 1);
    return { turns, threads };
  }

  /** The other threads of a device need not wait any more. */
  async #leaveAll(device: DeviceSpec): Promise<void> {
    await Promise.all(
      otherThreads(device).map((iothread) =>
        this.#iothreads[iothread]!
          .request({ kind: "leave", device: device.id }).catch(() => {})
      ),
    );
  }

  /** The devices, in the order they were asked for. */
  get devices(): readonly ServedDevice[] {
    return [...this.#devices.values()].map((device) => ({
      id: device.spec.id,
      model: device.spec.model,
      path: device.listening.path,
      fd: device.listening.fd,
      iothread: device.spec.iothread,
    }));
  }

  /** Rejects when an IOThread dies; never resolves. */
  get failed(): Promise<never> {
    return this.#crash.promise;
  }

  /**
   * All devices with their clients, commands and counters, in the order they were asked for. What an IOThread that does
   * not answer within 2 s would tell is missing.
   */
  async describe(): Promise<readonly PlacedDescription[]> {
    const found = new Map<string, DeviceDescription>();
    for (const devices of await this.#askAll("describe")) {
      for (const device of devices ?? []) found.set(device.id, device);
    }
    return [...this.#devices.values()].flatMap((placed) => {
      const { id, model } = placed.spec;
      const iothreads = threadsOf(placed.spec);
      const device = found.get(id);
      if (device !== undefined) return [{ ...device, iothreads }];
      if (!this.#iothreads[placed.spec.iothread]!.silent) return [];
      return [{
        ...{ id, model, clientPid: null, commands: {} },
        ...{ connection: {}, counters: {}, iothreads, silent: true as const },
      }];
    });
  }

  /** The answers of all IOThreads; null where there is none in time. */
  async #askAll<K extends "describe" | "metrics">(
    kind: K,
  ): Promise<(ReplyOf[K] | null)[]> {
    // Threads answer in the order they are asked, so a device that is on its way is the only one they could miss.
    while (this.#transfers.size > 0) {
      if (!await settles(Promise.allSettled(this.#transfers))) break;
    }
    return await Promise.all(
      this.#iothreads.map((thread) => thread.ask(kind)),
    );
  }

  /** The IOThreads: where they run, and what on them. */
  async describeIOThreads(): Promise<readonly IOThreadDescription[]> {
    return await Promise.all(this.#iothreads.map(async (thread) => {
      const threadId = await thread.threadId();
      return {
        iothread: thread.index,
        threadId,
        cpus: threadCpus(threadId),
        devices: this.#devicesOn(thread.index),
      };
    }));
  }

  /**
   * Runs a command of a device, such as `link down`.
   *
   * @returns What to tell whoever asked
   * @throws {Error} With a message for people
   */
  command(
    device: string,
    name: string,
    args: readonly string[],
  ): Promise<CommandAnswer> {
    return this.#inTurn(
      device,
      (placed) =>
        this.#iothreads[placed.spec.iothread]!.request({
          kind: "command",
          device,
          name,
          args,
        }),
    );
  }

  /**
   * Moves a device, or some of its queues, to another IOThread. Its client and its driver go on, and notice at most that
   * requests take longer for some milliseconds.
   *
   * @param reference A device's id, or `ID.QUEUE`: a queue moves with those that stay with it
   * @param iothread Number of the IOThread
   * @returns What to tell the person who asked
   * @throws {Error} With a message for that person: when there is no such device, queue or thread, when the device's model
   * cannot be moved, when its requests do not finish within 5 s, or when the other thread cannot take it; it then goes
   * on where it was, or with all its queues on the thread it lives on
   */
  move(reference: string, iothread: number): Promise<string> {
    const { device, queue } = this.#deviceAndQueue(reference);
    return this.#inTurn(device, async (placed) => {
      const { length } = this.#iothreads;
      const what = queue === undefined ? device : `queue ${queue} of ${device}`;
      checkIOThread(`move ${what} to IOThread ${iothread}`, iothread, length);
      const wanted = queue === undefined
        ? { iothread, queues: [iothread] }
        : placeWithQueue(
          ...[device, placed.spec] as const,
          await this.#iothreads[placed.spec.iothread]!
            .request({ kind: "queueGroups", device }),
          queue,
          iothread,
        );
      if (isSamePlace(placed.spec, wanted)) {
        return `${what} is on IOThread ${iothread} already`;
      }
      const startMs = performance.now();
      await this.#move(placed, wanted);
      const tookMs = Number((performance.now() - startMs).toFixed(1));
      const text = `${what} moved to IOThread ${iothread} in ${tookMs} ms`;
      this.#onLog({
        level: "info",
        device: "",
        message: text,
        properties: {
          ...{ event: "MOVED", device, iothread, tookMs },
          ...(queue === undefined ? {} : { queue }),
        },
      });
      return text;
    });
  }

  /** An id may end like the number of a queue. */
  #deviceAndQueue(reference: string): { device: string; queue?: number } {
    const parts = /^(.+)\.(\d+)$/.exec(reference);
    if (parts === null || this.#devices.has(reference)) {
      return { device: reference };
    }
    return { device: parts[1]!, queue: Number(parts[2]) };
  }

  async #move(placed: Placed, wanted: Place): Promise<void> {
    const { id, iothread } = placed.spec;
    const from = this.#iothreads[iothread]!;
    const to = this.#iothreads[wanted.iothread]!;
    const debug = this.#log.debugEnabled;
    const move: Move = { device: placed.spec, debug, from, to };
    await holdDevice(move, () => this.#stopping);
    if (from !== to) {
      const transfer = this.#gather(placed).then(() =>
        transferDevice({ ...move, device: placed.spec })
      );
      return await this.#transfer(placed, wanted, transfer);
    }
    try {
      await this.#gather(placed);
      const device = { ...placed.spec, ...wanted };
      const threads = await this.#joinAll(device, debug);
      if (threads === undefined) return;
      try {
        await from.request({ kind: "place", device: id, threads });
        placed.spec = device;
      } catch (error) {
        await this.#leaveAll(device);
        throw error;
      }
    } finally {
      await from.request({ kind: "release", device: id });
    }
  }

  async #transfer(
    placed: Placed,
    wanted: Place,
    transfer: Promise<void>,
  ): Promise<void> {
    this.#transfers.add(transfer);
    try {
      await transfer;
      placed.spec = { ...placed.spec, ...wanted };
    } catch (error) {
      if (error instanceof DeviceLostError) this.#lose(placed, error);
      throw error;
    } finally {
      this.#transfers.delete(transfer);
    }
  }

  /** Brings all queues of a device that holds to the thread it lives on. */
  async #gather(placed: Placed): Promise<void> {
    const { spec } = placed;
    if (otherThreads(spec).length === 0) return;
    const { id, iothread } = spec;
    await this.#iothreads[iothread]!.request({ kind: "place", device: id });
    await this.#leaveAll(spec);
    placed.spec = { ...spec, queues: [iothread] };
  }

  /** Nobody serves the device any more, so that nobody shall connect to it. */
  #lose(device: Placed, error: DeviceLostError): void {
    this.#onLog({
      level: "error",
      device: "",
      message: error.message,
      properties: { event: "DEVICE_LOST", device: device.spec.id },
    });
    this.#devices.delete(device.spec.id);
    device.listening.close();
  }

  /** Waits until it is the device's turn, then acts on it. */
  #inTurn<T>(id: string, act: (device: Placed) => Promise<T>): Promise<T> {
    const device = this.#devices.get(id);
    if (device === undefined) return Promise.reject(this.#unknown(id));
    const result = device.turn.then(() => {
      if (this.#stopping) {
        throw new Error(`Cannot use ${id}: everything is being stopped`);
      }
      if (!this.#devices.has(id)) throw this.#unknown(id);
      return act(device);
    });
    device.turn = result.then(() => {}, () => {});
    return result;
  }

  #unknown(id: string): Error {
    const known = [...this.#devices.keys()];
    return new UnknownNameError(
      `Cannot find device ${id}: known are ${known.join(", ")}`,
      id,
      known,
    );
  }

  /**
   * Metrics of the process, its IOThreads and its devices. Costs each IOThread one turn of its loop; of one that
   * does not answer within 2 s there is nothing but that.
   */
  async metrics(): Promise<MetricsSnapshot> {
    const { takeSnapshot } = await import("./metrics/metrics.ts");
    return takeSnapshot(await this.#askAll("metrics"));
  }

  async #serveMetrics(endpoint: MetricsEndpoint): Promise<void> {
    // Most runs do without.
    const { MetricsServer } = await import("./metrics/server.ts");
    if (this.#stopping) return;
    this.#metrics = new MetricsServer(endpoint, this);
    const { where } = this.#metrics;
    this.#log.info(`metrics on ${where}`, { metrics: where });
  }

  /**
   * Stops every device, closes and removes the sockets.
   *
   * @returns Whether all came to their end by themselves, as far as is known, and nothing told of an error meanwhile
   */
  async stop(): Promise<boolean> {
    if (this.#stopping) return !this.#stopFailed;
    this.#stopping = true;
    this.#control?.close();
    this.#metrics?.close();
    // A device that is between two threads could be stopped by neither.
    await settles(Promise.allSettled(this.#transfers), STOP_TIMEOUT_MS);
    await this.#endAll("close");
    await this.#endAll("stop");
    for (const thread of this.#iothreads) thread.terminate();
    this.#lines.length = 0;
    for (const thread of this.#iothreads) thread.closeMailbox();
    this.removeSockets();
    return !this.#stopFailed;
  }

  /** Has all threads do so, side by side; one that does not in time is ended, and refuses what comes next at once. */
  async #endAll(kind: "close" | "stop"): Promise<void> {
    await Promise.all(this.#iothreads.map(async (thread) => {
      if (await settles(thread.request({ kind }), STOP_TIMEOUT_MS)) return;
      this.#stopFailed = true;
      this.#log.error(
        `IOThread ${thread.index} did not stop in time and is ended: what its devices have not written may be lost`,
      );
      thread.terminate();
    }));
  }

  /** Closes and removes the devices' sockets at once; the last thing of a stop, or all of one that is forced. */
  removeSockets(): void {
    for (const listening of this.#listening.splice(0)) listening.close();
  }
}
