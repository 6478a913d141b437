/**
 * Brings one device and everything it needs together on an event loop.
 *
 * @module
 */

import type { DeviceModel } from "../../devices/model.ts";
import type { EventLoop } from "../event_loop.ts";
import type { Log } from "../log.ts";
import { DmaMemory } from "../memory/dma_memory.ts";
import { MemfdMemory } from "../memory/shared_memory.ts";
import {
  type DeviceContext,
  type PciDevice,
  PciFunction,
  PciInterrupts,
} from "../pci/mod.ts";
import { VfioUserServer } from "../vfio_user/mod.ts";
import type { DeviceDescription } from "./messages.ts";

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
  /** Leave inaccessible pages where guest memory was, so that a stale use faults: for tests. */
  readonly poisonUnmapped?: boolean;
}

const UNSHARED_ADVICE =
  "guest RAM is not shared with this process, so the device cannot reach it: start QEMU with " +
  "-object memory-backend-memfd,id=mem,size=SIZE,share=on -machine memory-backend=mem " +
  "(SIZE as in -m; or memory-backend-file with share=on)";

/**
 * How many mappings one client may have: the kernel gives a process so many (vm.max_map_count), and one client must
 * not take them all.
 */
function dmaMapsMax(): number {
  const all = Number(Deno.readTextFileSync("/proc/sys/vm/max_map_count"));
  return Math.min(65_535, all >> 2);
}

/** A device, its memory and interrupts, and the server that offers it. */
export class DeviceHost implements Disposable {
  readonly id: string;
  readonly #model: string;
  readonly #device: PciDevice;
  readonly #server: VfioUserServer;
  readonly #memory: DmaMemory;
  readonly #shared: MemfdMemory[] = [];
  #clientPid: number | null = null;

  /** @throws {Error} When the model or a back end cannot be set up; nothing is left behind */
  constructor(options: DeviceHostOptions) {
    const { id, model, loop, log } = options;
    this.id = id;
    this.#model = model.name;
    this.#memory = new DmaMemory({ poison: options.poisonUnmapped ?? false });
    const interrupts = new PciInterrupts();
    const context: DeviceContext = {
      memory: this.#memory,
      interrupts,
      loop,
      log,
      random: (lengthBytes) =>
        crypto.getRandomValues(new Uint8Array(lengthBytes)),
      createSharedMemory: (name, lengthBytes) => {
        const memory = new MemfdMemory(name, lengthBytes);
        this.#shared.push(memory);
        return memory;
      },
    };
    let device: PciDevice | undefined;
    try {
      device = model.create(context, options.options);
      this.#device = device;
      this.#server = new VfioUserServer({
        loop,
        log,
        listener: options.listener,
        pci: new PciFunction(device, interrupts, log),
        interrupts,
        memory: this.#memory,
        limits: { maxDmaMaps: dmaMapsMax() },
        onUnsharedMemory: () => log.warn(UNSHARED_ADVICE),
        onClient: (pid, event) => this.#onClient(log, pid, event),
      });
      this.#server.start();
    } catch (error) {
      device?.close();
      this.#release();
      throw error;
    }
  }

  #onClient(log: Log, pid: number, event: "connected" | "gone"): void {
    this.#clientPid = event === "connected" ? pid : null;
    log.info(
      event === "connected"
        ? `client connected (pid ${pid})`
        : `client gone (pid ${pid}), waiting for the next`,
      { pid },
    );
  }

  /**
   * Runs one of the device's commands.
   *
   * @throws {Error} With a message for the person who asked
   */
  command(name: string, args: readonly string[]): string {
    const commands = this.#device.commands ?? {};
    if (!Object.hasOwn(commands, name)) {
      const known = Object.keys(commands).join(", ") || "none";
      throw new Error(
        `Cannot run "${name}" on ${this.id}: its commands are ${known}`,
      );
    }
    return commands[name]!.run(args);
  }

  /** The device as seen from outside. */
  describe(): DeviceDescription {
    const commands: Record<string, string> = {};
    for (const [name, command] of Object.entries(this.#device.commands ?? {})) {
      commands[name] = command.help;
    }
    return {
      id: this.id,
      model: this.#model,
      clientPid: this.#clientPid,
      commands,
      counters: {
        ...this.#server.counters(),
        ...this.#device.counters?.(),
      },
    };
  }

  /** Drops the client, closes the device and frees everything. */
  close(): void {
    this.#server.close();
    this.#device.close();
    this.#release();
  }

  #release(): void {
    for (const memory of this.#shared.splice(0)) memory.close();
    this.#memory.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}
