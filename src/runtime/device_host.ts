/**
 * Brings one device and everything it needs together on an event loop.
 *
 * @module
 */

import type { DeviceModel, ModelContext } from "../../devices/model.ts";
import { hex } from "../core/bits.ts";
import { formatSize } from "../core/size.ts";
import type { EventLoop } from "../loop/event_loop.ts";
import type { Log } from "../core/log.ts";
import {
  DmaMemory,
  type DmaRange,
  type MemoryState,
} from "../memory/dma_memory.ts";
import { MemfdMemory } from "../memory/shared_memory.ts";
import { ResourceBag } from "../os/mod.ts";
import type { CommandAnswer } from "../pci/device.ts";
import {
  DEFAULT_TRANSPORT,
  HELLO_TIMEOUT_MS,
  type Transport,
  type TransportState,
} from "../transport/mod.ts";
import type { DeviceDescription } from "./iothread/messages.ts";
import type { DeviceMetrics } from "./metrics/metrics.ts";
import {
  addCounters,
  DeviceThreads,
  type QueuePlan,
} from "./device_threads.ts";
import type { ThreadCalls } from "./iothread/thread_calls.ts";

/** Memory that a model asked for, on its way to another thread. */
export interface SharedMemoryBaggage {
  readonly name: string;
  readonly lengthBytes: number;
}

/**
 * A device on its way from one thread of this process to another: plain data that survives a structured clone, and owns
 * the descriptors and mappings it names until a {@linkcode DeviceHost} was made of it.
 */
export interface HostBaggage {
  /** Guest memory. */
  readonly memory: MemoryState;
  /** In the order in which the model asked for it. */
  readonly shared: readonly SharedMemoryBaggage[];
  /** The device, and the client with everything it brought. */
  readonly served: TransportState;
  /** Descriptors that go with it, by name. */
  readonly fds: Readonly<Record<string, number>>;
  /** What queue services have counted that have ended. */
  readonly counted: Readonly<Record<string, number>>;
}

/** Closes what nobody will take over any more: the client sees its connection end. */
export function discardBaggage({ fds }: HostBaggage): void {
  ResourceBag.of(fds)[Symbol.dispose]();
}

/** What to host. */
export interface DeviceHostOptions {
  /** Unique in the process. */
  readonly id: string;
  readonly model: DeviceModel<unknown>;
  /** What the model's `parse` returned. */
  readonly options: unknown;
  readonly loop: EventLoop;
  readonly log: Log;
  /** A listening socket; stays the caller's. */
  readonly listener: number;
  /** How long a client may take until a version is agreed, in milliseconds. */
  readonly helloTimeoutMs?: number;
  /** Leave inaccessible pages where guest memory was, so that a stale use faults: for tests. */
  readonly poisonUnmapped?: boolean;
  /** Have every page of guest memory there when it is mapped. */
  readonly prealloc?: boolean;
  /**
   * The same device as another thread of this process gave it away: goes on from there. When that fails the baggage still
   * owns everything and may be tried again, here or on another thread.
   */
  readonly inherited?: HostBaggage;
  /** Other threads that serve some of its queues; not together with `inherited`. */
  readonly threads?: {
    readonly plan: QueuePlan;
    readonly calls: ThreadCalls;
  };
}

/** What to tell of a driver that uses memory it takes for ordinary memory, which the client did not share. */
function unreachableText({ iova, lengthBytes }: DmaRange): string {
  return `the driver uses guest memory that is not shared with this process: ${
    formatSize(lengthBytes)
  } at ${
    hex(iova)
  }; if it is a DIMM, give its memory-backend-memfd or -file share=on (what fails next is not the driver's doing)`;
}

interface NamedMemory {
  readonly name: string;
  readonly memory: MemfdMemory;
}

/**
 * A device, its memory and interrupts, and the server that offers it.
 *
 * ```text
 *   made --listen--> serving ⇄ held --handOver--> closed here; a new one, made with the baggage, is serving elsewhere
 *     └────────────────┴───────┴──close──▶ closed
 * ```
 */
export class DeviceHost implements Disposable {
  readonly id: string;
  readonly #model: string;
  readonly #log: Log;
  readonly #transport: Transport;
  readonly #memory: DmaMemory;
  readonly #shared: NamedMemory[] = [];
  /** Who is to be told what becomes of the start. */
  readonly #starting: ((started: boolean) => void)[] = [];
  #threads: DeviceThreads | null = null;
  /** What queue services have counted that have ended. */
  readonly #counted: Record<string, number>;
  #clientPid: number | null = null;
  #closed = false;

  /** @throws {Error} When the model or a back end cannot be set up; nothing is left behind, and nothing inherited lost */
  constructor(options: DeviceHostOptions) {
    const { id, model, loop, log, inherited } = options;
    this.id = id;
    this.#model = model.name;
    this.#log = log;
    const bag = ResourceBag.of(inherited?.fds);
    try {
      this.#memory = new DmaMemory({
        poison: options.poisonUnmapped ?? false,
        prealloc: options.prealloc ?? false,
        ...(inherited === undefined
          ? {}
          : { saved: { state: inherited.memory, bag: bag.at("memory") } }),
      });
    } catch (error) {
      bag.release();
      throw error;
    }
    this.#memory.onUnreachable = (range) => log.warn(unreachableText(range));
    this.#counted = { ...inherited?.counted };
    this.#transport = DEFAULT_TRANSPORT.open({
      ...{ loop, log, memory: this.#memory, model: model.name },
      listener: options.listener,
      helloTimeoutMs: options.helloTimeoutMs ?? HELLO_TIMEOUT_MS,
      onClient: (pid, reason) => this.#onClient(log, pid, reason),
      onMemory: () => {
        if (inherited !== undefined) this.#loadShared(inherited, bag);
      },
      ...(inherited === undefined
        ? {}
        : { saved: { state: inherited.served, bag } }),
    });
    try {
      const context = this.#contextFor(loop);
      const device = model.create(
        context,
        options.options,
        inherited && {
          state: inherited.served.model,
          bag: bag.at("device"),
          resources: inherited.served.resources,
        },
      );
      this.#transport.attach(device, context);
      if (options.threads !== undefined) this.#place(options.threads);
      if (inherited === undefined) return;
      this.#transport.start();
      this.#clientPid = this.#transport.clientPid;
      bag[Symbol.dispose]();
    } catch (error) {
      // What was inherited is as it was.
      bag.release();
      this.#abandon(inherited !== undefined);
      throw error;
    }
  }

  /** Begins to take clients; one that was made with what another had does so by itself. */
  listen(): void {
    this.#transport.start();
    this.#tellStart(true);
  }

  #tellStart(started: boolean): void {
    for (const tell of this.#starting.splice(0)) tell(started);
  }

  #contextFor(loop: EventLoop): ModelContext {
    return {
      ...this.#transport.context,
      memory: this.#memory,
      loop,
      log: this.#log,
      random: (lengthBytes) =>
        crypto.getRandomValues(new Uint8Array(lengthBytes)),
      onStart: (tell) => this.#starting.push(tell),
      createSharedMemory: (name, lengthBytes) => {
        const memory = new MemfdMemory(name, lengthBytes);
        this.#shared.push({ name, memory });
        return memory;
      },
    };
  }

  /** @throws {Error} When the model made other memory than before */
  #loadShared({ shared }: HostBaggage, bag: ResourceBag): void {
    const describe = (memory: { name: string; lengthBytes: number }[]) =>
      memory.map((it) => `${it.name} of ${it.lengthBytes} bytes`).join(", ") ||
      "none";
    const made = describe(this.#shared.map(({ name, memory }) => ({
      name,
      lengthBytes: memory.bytes.length,
    })));
    const given = describe([...shared]);
    if (made !== given) {
      throw new Error(
        `Cannot go on with ${this.id}: it has shared memory ${made}, and had ${given}`,
      );
    }
    this.#shared.forEach(({ memory }, i) => memory.load(bag, `shared.${i}`));
  }

  /** Closes what a failed constructor has made, but nothing that was inherited. */
  #abandon(isInherited: boolean): void {
    if (isInherited) {
      this.#transport.giveBack();
    } else {
      try {
        this.#transport.close();
      } catch (error) {
        this.#log.error("cannot close the device that failed", { error });
      }
    }
    this.#release();
  }

  #place(parts: NonNullable<DeviceHostOptions["threads"]>): void {
    const { device, interrupts, writes } = this.#transport;
    if (device.place === undefined) {
      return this.#log.info(
        "all its queues stay on its own IOThread: its model serves them by one",
      );
    }
    const threads = new DeviceThreads({
      ...{ memory: this.#memory, interrupts, writes, ...parts },
      sharedMemory: this.#shared.map(({ memory }) => (
        { hva: memory.hva, lengthBytes: memory.bytes.length }
      )),
    });
    this.#threads = threads;
    try {
      device.place(threads);
    } catch (error) {
      this.#unplace();
      throw error;
    }
    const idle = threads.idle();
    if (idle.length === 0) return;
    this.#log.info(
      `IOThread ${
        idle.join(", ")
      } serves none of its queues: there are as many groups of them as other threads`,
    );
  }

  #unplace(): void {
    const threads = this.#threads;
    if (threads === null) return;
    this.#threads = null;
    addCounters(this.#counted, threads.counters());
    threads[Symbol.dispose]();
  }

  /**
   * Has other threads serve queues, and this one the rest. The device must hold with nothing in flight, and goes on with
   * {@linkcode DeviceHost.release}.
   *
   * @param threads Absent for none
   * @throws {Error} When that cannot be; this thread then serves every queue
   */
  place(threads?: DeviceHostOptions["threads"]): void {
    this.#transport.device.place?.(null);
    this.#unplace();
    if (threads !== undefined) this.#place(threads);
  }

  /** See {@linkcode PciDevice.queueGroups}; none for a device whose queues stay together. */
  queueGroups(): readonly number[] {
    return this.#transport.device.queueGroups?.() ?? [];
  }

  /**
   * Makes the device take no new requests; to be called again, turns of the loop later, until nothing is in flight.
   * Registers go on being served. Undone by {@linkcode DeviceHost.release}.
   *
   * @returns How many requests are in flight
   * @throws {Error} When the model cannot be moved
   */
  hold(): number {
    const { device } = this.#transport;
    const missing = (["hold", "save", "load"] as const)
      .filter((name) => device[name] === undefined);
    if (missing.length > 0) {
      throw new Error(
        `Cannot move ${this.id}: its model ${this.#model} has no ${
          missing.join(", no ")
        }`,
      );
    }
    return this.#transport.hold();
  }

  /** The device goes on after {@linkcode DeviceHost.hold}. */
  release(): void {
    this.#transport.release();
  }

  /**
   * Gives the device to another thread of this process, between two turns of the loop. This host is then closed, and has
   * closed nothing that it gave.
   *
   * @returns For {@linkcode DeviceHostOptions.inherited}, or {@linkcode discardBaggage}
   * @throws {Error} When something is in flight still, or the model cannot be moved; the device is then held as before
   */
  handOver(): HostBaggage {
    const inFlight = this.hold();
    if (inFlight > 0) {
      throw new Error(
        `Cannot move ${this.id}: requests in flight: ${inFlight}`,
      );
    }
    using bag = ResourceBag.of();
    this.#shared.forEach(({ memory }, i) => memory.save(bag, `shared.${i}`));
    const memory = this.#memory.save(bag.at("memory"));
    const served = this.#transport.handOver(bag);
    this.#closed = true;
    const shared = this.#shared.splice(0).map(({ name, memory }) => {
      const lengthBytes = memory.bytes.length;
      memory.close();
      return { name, lengthBytes };
    });
    this.#memory.close();
    const fds = bag.release();
    return { memory, shared, served, fds, counted: this.#counted };
  }

  /** @param reason Why it has gone; none when it has come */
  #onClient(log: Log, pid: number, reason?: string): void {
    if (reason === undefined) {
      this.#clientPid = pid;
      const event = "CLIENT_CONNECTED";
      return log.info(`client connected (pid ${pid})`, { pid, event });
    }
    this.#clientPid = null;
    log.info(`client gone (pid ${pid}): ${reason}; waiting for the next`, {
      pid,
      reason,
      event: "CLIENT_GONE",
    });
  }

  /**
   * Runs one of the device's commands.
   *
   * @throws {Error} With a message for the person who asked
   */
  command(name: string, args: readonly string[]): CommandAnswer {
    const commands = this.#transport.device.commands ?? {};
    if (!Object.hasOwn(commands, name)) {
      const known = Object.keys(commands).join(", ") || "none";
      throw new Error(
        `Cannot run "${name}" on ${this.id}: its commands are ${known}`,
      );
    }
    const answer = commands[name]!.run(args);
    if (typeof answer !== "string") return answer;
    const text = answer.split("\n").filter((line) => line !== "").join("\n");
    return { text, data: { text } };
  }

  /** The device as seen from outside. */
  describe(): DeviceDescription {
    const commands: Record<string, string> = {};
    for (
      const [name, command] of Object.entries(
        this.#transport.device.commands ?? {},
      )
    ) {
      commands[name] = command.help;
    }
    return {
      id: this.id,
      model: this.#model,
      clientPid: this.#clientPid,
      commands,
      connection: this.#transport.counters(),
      counters: this.#counters(),
    };
  }

  /** What the device and its server have counted. */
  metrics(): DeviceMetrics {
    return {
      id: this.id,
      model: this.#model,
      connected: this.#clientPid !== null,
      info: this.#transport.device.info?.() ?? {},
      connection: this.#transport.counters(),
      device: this.#counters(),
      memory: this.#memory.statistics(),
    };
  }

  #counters(): Record<string, number> {
    const counters = { ...this.#transport.device.counters?.() };
    addCounters(counters, this.#counted);
    addCounters(counters, this.#threads?.counters() ?? {});
    return counters;
  }

  /** Drops the client, closes the device and frees everything; further calls do nothing. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#transport.close();
    this.#release();
  }

  #release(): void {
    this.#unplace();
    for (const { memory } of this.#shared.splice(0)) memory.close();
    this.#memory.close();
    this.#tellStart(false);
  }

  [Symbol.dispose](): void {
    this.close();
  }
}
