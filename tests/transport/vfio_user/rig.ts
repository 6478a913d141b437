/** A server with a device that has one of everything, on a loop that the test turns. */

import { EventLoop } from "../../../src/loop/event_loop.ts";
import type { Log } from "../../../src/core/log.ts";
import { type Fd, listenUnix } from "../../../src/os/mod.ts";
import { DmaMemory } from "../../../src/memory/dma_memory.ts";
import { MemfdMemory } from "../../../src/memory/shared_memory.ts";
import type {
  AccessWidth,
  PciDevice,
  PciSpec,
  ResetReason,
} from "../../../src/pci/device.ts";
import { PciFunction } from "../../../src/pci/function.ts";
import { PciInterrupts } from "../../../src/pci/interrupts.ts";
import {
  VfioUserServer,
  type VfioUserServerOptions,
} from "../../../src/transport/vfio_user/mod.ts";
import { allowMastering } from "../../pci/sample.ts";
import { RawClient, versionMessage } from "./raw_client.ts";

/** BAR 0: plain registers. BAR 1: I/O. BAR 2: 64-bit, two mappable areas. BAR 4: MSI-X. */
export class EverythingDevice implements PciDevice {
  readonly spec: PciSpec;
  readonly areas: readonly MemfdMemory[];
  readonly registers = new Uint8Array(0x1000);
  readonly writes: string[] = [];
  readonly resets: ResetReason[] = [];
  readonly rings: string[] = [];
  /** Thrown by the next register access. */
  failure: Error | null = null;

  constructor() {
    this.areas = [
      new MemfdMemory("test-area-1", 0x1000),
      new MemfdMemory("test-area-3", 0x2000),
    ];
    this.spec = {
      vendorId: 0x1af4,
      deviceId: 0x10f0,
      revision: 1,
      classCode: 0xff0000,
      subsystemVendorId: 0x1af4,
      subsystemId: 1,
      intx: true,
      bars: [
        {
          index: 0,
          sizeBytes: 0x1000,
          kind: "memory32",
          doorbells: [
            { offset: 0x10, sizeBytes: 4 },
            { offset: 0x20, sizeBytes: 2, datamatch: 7 },
          ],
        },
        {
          index: 1,
          sizeBytes: 0x100,
          kind: "io",
          doorbells: [{ offset: 4, sizeBytes: 0 }],
        },
        {
          index: 2,
          sizeBytes: 0x8000,
          kind: "memory64",
          mmap: [
            { offset: 0x1000, memory: this.areas[0]! },
            { offset: 0x4000, memory: this.areas[1]! },
          ],
        },
        { index: 4, sizeBytes: 0x1000, kind: "memory32" },
      ],
      capabilities: [
        { kind: "msi", vectors: 4 },
        {
          kind: "msix",
          vectors: 8,
          tableBar: 4,
          tableOffset: 0,
          pbaBar: 4,
          pbaOffset: 0x800,
        },
      ],
    };
  }

  readBar(bar: number, offset: number, width: AccessWidth): number {
    if (this.failure !== null) throw this.failure;
    if (bar !== 0) return 0;
    let value = 0;
    for (let i = width - 1; i >= 0; i--) {
      value = value * 256 + this.registers[offset + i]!;
    }
    return value;
  }

  writeBar(
    bar: number,
    offset: number,
    width: AccessWidth,
    value: number,
  ): void {
    if (this.failure !== null) throw this.failure;
    if (this.writes.length < 100) {
      this.writes.push(`${bar}:${offset}:${width}:${value}`);
    }
    if (bar !== 0) return;
    for (let i = 0; i < width; i++) {
      this.registers[offset + i] = value >>> (8 * i);
    }
  }

  ringDoorbell(bar: number, doorbell: number): void {
    this.rings.push(`${bar}:${doorbell}`);
  }

  reset(reason: ResetReason): void {
    this.resets.push(reason);
    this.registers.fill(0);
  }

  close(): void {
    for (const area of this.areas) area.close();
  }
}

/** A loop on which no time passes, so that turns have as much in them on a slow machine as on a fast one. */
export class TimelessLoop extends EventLoop {
  override now(): number {
    return 0;
  }
}

export class Rig {
  readonly loop: EventLoop;
  readonly device = new EverythingDevice();
  readonly interrupts = new PciInterrupts();
  readonly memory = new DmaMemory({ poison: false });
  readonly logged: string[] = [];
  readonly clients: string[] = [];
  readonly path: string;
  readonly server: VfioUserServer;
  readonly pci: PciFunction;
  unshared = 0;
  readonly #directory = Deno.makeTempDirSync({ prefix: "outboard-test-" });
  readonly #listener: Fd;

  constructor(
    options: Partial<VfioUserServerOptions> = {},
    loop: EventLoop = new TimelessLoop(),
  ) {
    this.loop = loop;
    this.path = `${this.#directory}/s`;
    this.#listener = listenUnix(this.path);
    const log = this.log();
    this.pci = new PciFunction(
      this.device,
      this.memory,
      this.interrupts,
      log,
    );
    this.server = new VfioUserServer({
      loop: this.loop,
      log,
      listener: this.#listener.number,
      pci: this.pci,
      interrupts: this.interrupts,
      memory: this.memory,
      onUnsharedMemory: () => this.unshared++,
      onClient: (pid, event) =>
        this.clients.push(`${event} ${pid === Deno.pid ? "self" : pid}`),
      ...options,
    });
    this.server.start();
  }

  log(): Log {
    const at = (level: string) => (text: string) => {
      this.logged.push(`${level}: ${text}`);
    };
    return {
      debug: at("debug"),
      info: at("info"),
      warn: at("warn"),
      error: at("error"),
      debugEnabled: false,
    };
  }

  /** Turns the loop until nothing is to be done. */
  settle(): void {
    for (let i = 0; i < 100 && this.loop.turn(0); i++);
  }

  /** A client that has connected and agreed on a version, and lets the device access memory. */
  client(json?: string | null): RawClient {
    const client = RawClient.connect(this.path);
    const reply = client.request(this.loop, versionMessage(json));
    if (reply.errno !== 0) throw new Error(`VERSION failed: ${reply.errno}`);
    allowMastering(this.pci);
    return client;
  }

  close(): void {
    this.server.close();
    this.device.close();
    this.memory.close();
    this.#listener.close();
    this.loop.close();
    Deno.removeSync(this.#directory, { recursive: true });
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/** Open descriptors of this process. */
export function openFds(): number {
  return Array.from(Deno.readDirSync("/proc/self/fd")).length;
}

/** Mappings of memfds in this process. */
export function memfdMappings(): number {
  return Deno.readTextFileSync("/proc/self/maps").split("\n")
    .filter((line) => line.includes("memfd:")).length;
}
