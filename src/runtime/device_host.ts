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
import { decodePlainData, encodePlainData } from "../core/plain_data.ts";
import type { StateReader } from "../core/state_reader.ts";
import { type DeviceState, StateForm } from "../core/state_form.ts";
import {
  DmaMemory,
  type DmaRange,
  type MemoryState,
  parseMemoryState,
} from "../memory/dma_memory.ts";
import { MemfdMemory } from "../memory/shared_memory.ts";
import { ResourceBag, type Saved } from "../os/mod.ts";
import type { CommandAnswer } from "../pci/device.ts";
import {
  DEFAULT_TRANSPORT,
  HELLO_TIMEOUT_MS,
  type Transport,
} from "../transport/mod.ts";
import type { DeviceDescription } from "./iothread/messages.ts";
import type { DeviceMetrics } from "./metrics/metrics.ts";
import {
  addCounters,
  DeviceThreads,
  type QueuePlan,
} from "./device_threads.ts";
import type { ThreadCalls } from "./iothread/thread_calls.ts";

/** Memory that a model asked for. */
interface MemoryLabel {
  readonly name: string;
  readonly lengthBytes: number;
}

/** Body of the state of a hosted device. */
interface HostState {
  /** Name of its model. */
  readonly model: string;
  /** Guest memory, whose files are `memory` of the bag. */
  readonly memory: MemoryState;
  /**
   * Memory that the model had of {@linkcode DeviceContext.createSharedMemory}, in that order. Number n is `shared.n` of the bag,
   * unless it lies in the file of a BAR.
   */
  readonly shared: readonly MemoryLabel[];
  /** The device, and the client with everything it brought. */
  readonly transport: DeviceState;
  /** Counts of queue services that have ended. */
  readonly counted: Readonly<Record<string, number>>;
}

const FORM = new StateForm<HostState>("device", "the device");

function parseCounted(reader: StateReader): Record<string, number> {
  return Object.fromEntries(
    Object.keys(reader.fields).map((name) => [name, reader.number(name)]),
  );
}

/** @throws {Error} When the bytes are something else */
function parseHostState(bytes: Uint8Array, model: string): HostState {
  const reader = FORM.read(decodePlainData(bytes));
  const saved = reader.text("model");
  if (saved !== model) {
    throw reader.refused(`its state is of a ${saved}, and this is a ${model}`);
  }
  return {
    model,
    memory: parseMemoryState(reader.part("memory")),
    shared: reader.parts("shared", (memory) => ({
      name: memory.text("name"),
      lengthBytes: memory.integer("lengthBytes", Number.MAX_SAFE_INTEGER),
    })),
    transport: reader.value("transport") as DeviceState,
    counted: parseCounted(reader.part("counted")),
  };
}

/** Device to host. */
export interface DeviceHostOptions {
  /** Unique in the process. */
  readonly id: string;
  readonly model: DeviceModel<unknown>;
  /** Result of the model's `parse`. */
  readonly options: unknown;
  readonly loop: EventLoop;
  readonly log: Log;
  /** A listening socket; stays the caller's. */
  readonly listener: number;
  /** Time a client may take until a version is agreed, in milliseconds. */
  readonly helloTimeoutMs?: number;
  /** Leave inaccessible pages where guest memory was, so that a stale use faults: for tests. */
  readonly poisonUnmapped?: boolean;
  /** Have every page of guest memory there when it is mapped. */
  readonly prealloc?: boolean;
  /**
   * Result of {@linkcode DeviceHost.handOver}, on another thread or in another process: goes on from there. The bag stays
   * the caller's, and when this fails all is there for another attempt.
   */
  readonly saved?: Saved<Uint8Array>;
  /** Other threads that serve some of its queues; not together with `saved`. */
  readonly threads?: {
    readonly plan: QueuePlan;
    readonly calls: ThreadCalls;
  };
}

/** Text on a driver that uses memory it takes for ordinary memory, which the client did not share. */
function unreachableText({ iova, lengthBytes }: DmaRange): string {
  return `the driver uses guest memory that is not shared with this process: ${
    formatSize(lengthBytes)
  } at ${
    hex(iova)
  }; if it is a DIMM, give its memory-backend-memfd or -file share=on (what fails next is not the driver's doing)`;
}

function answerOf(text: string): CommandAnswer {
  const lines = text.split("\n").filter((line) => line !== "").join("\n");
  return { text: lines, data: { text: lines } };
}

interface NamedMemory {
  readonly name: string;
  readonly memory: MemfdMemory;
}

/**
 * A device, its memory and interrupts, and the server that offers it.
 *
 * ```text
 *   made --listen--> serving ⇄ held --handOver--> closed here; another, made with what it gave, is serving elsewhere
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
  /** Listeners that are told what becomes of the start. */
  readonly #starting: ((started: boolean) => void)[] = [];
  #threads: DeviceThreads | null = null;
  /** Counts of queue services that have ended. */
  readonly #counted: Record<string, number>;
  #clientPid: number | null = null;
  #closed = false;

  /** @throws {Error} When the model or a back end cannot be set up; nothing is left behind, and nothing saved is lost */
  constructor(options: DeviceHostOptions) {
    const { id, model, loop, log, saved } = options;
    this.id = id;
    this.#model = model.name;
    this.#log = log;
    const state = saved && parseHostState(saved.state, model.name);
    this.#memory = new DmaMemory({
      poison: options.poisonUnmapped ?? false,
      prealloc: options.prealloc ?? false,
      ...(state && {
        saved: { state: state.memory, bag: saved!.bag.at("memory") },
      }),
    });
    this.#memory.onUnreachable = (range) => log.warn(unreachableText(range));
    this.#counted = { ...state?.counted };
    try {
      this.#transport = DEFAULT_TRANSPORT.open({
        ...{ loop, log, memory: this.#memory, model: model.name },
        listener: options.listener,
        helloTimeoutMs: options.helloTimeoutMs ?? HELLO_TIMEOUT_MS,
        onClient: (pid, reason) => this.#onClient(log, pid, reason),
        onMemory: () => {
          if (state !== undefined) this.#loadShared(state, saved!.bag);
        },
        ...(state && { saved: { state: state.transport, bag: saved!.bag } }),
      });
    } catch (error) {
      this.#memory.close();
      throw error;
    }
    try {
      const context = this.#contextFor(loop);
      const { savedDevice } = this.#transport;
      const device = model.create(context, options.options, savedDevice);
      this.#transport.attach(device, context);
      if (options.threads !== undefined) this.#place(options.threads);
      if (state === undefined) return;
      this.#transport.start();
      this.#clientPid = this.#transport.clientPid;
    } catch (error) {
      this.#abandon(state !== undefined);
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
  #loadShared({ shared }: HostState, bag: ResourceBag): void {
    const describe = (memory: readonly MemoryLabel[]) =>
      memory.map((it) => `${it.name} of ${it.lengthBytes} bytes`).join(", ") ||
      "none";
    const made = describe(this.#memoryLabels());
    const given = describe(shared);
    if (made !== given) {
      throw new Error(
        `Cannot go on with ${this.id}: it has shared memory ${made}, and had ${given}`,
      );
    }
    this.#shared.forEach(({ memory }, i) => memory.load(bag, `shared.${i}`));
  }

  #memoryLabels(): readonly MemoryLabel[] {
    return this.#shared.map(({ name, memory }) => (
      { name, lengthBytes: memory.bytes.length }
    ));
  }

  /** Closes what a failed constructor has made, but nothing that a predecessor had. */
  #abandon(hadPredecessor: boolean): void {
    try {
      using bag = ResourceBag.of();
      if (hadPredecessor) this.#transport.handOver(bag);
      else this.#transport.close();
    } catch (error) {
      this.#log.error("cannot close the device that failed", { error });
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
   * Gives the device away, to another thread or another process, between two turns of the loop. This host is then closed,
   * and nobody outside notices.
   *
   * @returns For {@linkcode DeviceHostOptions.saved}; the state in the form of {@linkcode encodePlainData}. With the end
   * of the bag the client sees its connection end, unless a host goes on with it
   * @throws {Error} When something is in flight still, or the model cannot be moved; the device is then held as before
   */
  handOver(): Saved<Uint8Array<ArrayBuffer>> {
    const inFlight = this.hold();
    if (inFlight > 0) {
      throw new Error(
        `Cannot move ${this.id}: requests in flight: ${inFlight}`,
      );
    }
    const bag = ResourceBag.of();
    try {
      this.#shared.forEach(({ memory }, i) => memory.save(bag, `shared.${i}`));
      const state = encodePlainData(FORM.write({
        model: this.#model,
        memory: this.#memory.save(bag.at("memory")),
        shared: this.#memoryLabels(),
        transport: this.#transport.save(bag),
        counted: this.#counted,
      }));
      this.#transport.handOver(bag);
      this.#closed = true;
      this.#release();
      return { state, bag };
    } catch (error) {
      bag[Symbol.dispose]();
      throw error;
    }
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
   * @param tell Told of the answer, at once or in a later turn of the loop; of none when the device is closed before
   * @throws {Error} With a message for the person who asked
   */
  command(
    name: string,
    args: readonly string[],
    tell: (outcome: CommandAnswer | Error) => void,
  ): void {
    const commands = this.#transport.device.commands ?? {};
    if (!Object.hasOwn(commands, name)) {
      const known = Object.keys(commands).join(", ") || "none";
      throw new Error(
        `Cannot run "${name}" on ${this.id}: its commands are ${known}`,
      );
    }
    const answer = commands[name]!.run(args);
    const tellAnswer = (outcome: string | CommandAnswer | Error) =>
      tell(typeof outcome === "string" ? answerOf(outcome) : outcome);
    if (typeof answer === "function") answer(tellAnswer);
    else tellAnswer(answer);
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

  /** Counts of the device and its server. */
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
