/** A controller on RAM disks with a naive driver in front of it. */

import {
  NvmeController,
  type NvmeControllerOptions,
} from "../../../devices/nvme/controller.ts";
import type { BlockInfo } from "../../../src/backend/block/contract.ts";
import { DriverMemory } from "../../../src/testing/driver_memory.ts";
import type { MappableMemory } from "../../../src/memory/array_memory.ts";
import {
  checkReleased,
  memoryUnderTest,
  reachWhenSettling,
} from "../../memory_under_test.ts";
import {
  type FakeContext,
  fakeContext,
} from "../../../src/testing/fake_context.ts";
import { NaiveDriver, type Pair } from "./naive_driver.ts";
import { RamDisk } from "./ram_disk.ts";

export const RAM_IOVA = 0x1_0000_0000;
export const RAM_BYTES = 16 << 20;

export interface RigOptions {
  /** Sizes of the namespaces in bytes, by id; 1 MiB at id 1 by default. */
  readonly disks?: Readonly<Record<number, number>>;
  readonly info?: Partial<BlockInfo>;
  readonly controller?: Partial<NvmeControllerOptions>;
  readonly mode?: "intx" | "msi" | "msix";
  /** Map memory page by page. */
  readonly byPage?: boolean;
  /** Leave the controller disabled. */
  readonly disabled?: boolean;
  /** Let the loop poll from the beginning. */
  readonly polled?: boolean;
}

export class Rig implements Disposable {
  readonly memory: MappableMemory;
  readonly ram: DriverMemory;
  readonly context: FakeContext;
  readonly disks: Record<number, RamDisk> = {};
  readonly device: NvmeController;
  readonly driver: NaiveDriver;

  constructor(options: RigOptions = {}) {
    this.memory = memoryUnderTest();
    const range = { iova: RAM_IOVA, lengthBytes: RAM_BYTES };
    const buffer = options.byPage
      ? this.memory.mapPages(range)
      : this.memory.map(range);
    this.ram = new DriverMemory(buffer, RAM_IOVA);
    this.context = fakeContext({ memory: this.memory });
    reachWhenSettling(this.loop, this.memory);
    this.context.interrupts.mode = options.mode ?? "msix";
    if (options.polled) this.loop.beginPolling();
    const disks = options.disks ?? { 1: 1 << 20 };
    for (const [nsid, size] of Object.entries(disks)) {
      this.disks[Number(nsid)] = new RamDisk(this.memory, size, options.info);
    }
    this.device = new NvmeController(
      this.context,
      {
        identity: {
          serial: "SN1",
          model: "Model",
          firmware: "FW",
          subnqn: "nqn.2014-08.org.nvmexpress:uuid:0",
        },
        queues: 4,
        queueEntries: 1024,
        msix: true,
        mapDoorbells: false,
        ...options.controller,
      },
      Object.entries(this.disks).map(([nsid, backend]) => ({
        nsid: Number(nsid),
        backend,
      })),
    );
    this.driver = new NaiveDriver(this.device, this.ram, this.context.loop);
    if (options.disabled !== true) this.driver.enable();
  }

  get disk(): RamDisk {
    return this.disks[1]!;
  }

  get loop() {
    return this.context.loop;
  }

  get interrupts() {
    return this.context.interrupts;
  }

  /** An enabled controller's first I/O queue. */
  io(size = 16): Pair {
    return this.driver.createPair(1, size);
  }

  /** Lets everything happen that is to happen. */
  settle(): void {
    this.loop.settle();
  }

  [Symbol.dispose](): void {
    this.device.close();
    checkReleased(this.memory);
  }
}

/** Status codes, by their numbers in the standard. */
export const SC = {
  OK: 0,
  OPCODE: 1,
  FIELD: 2,
  CID: 3,
  DATA: 4,
  INTERNAL: 6,
  ABORTED: 7,
  NS: 0xb,
  SEQUENCE: 0xc,
  SGL_SEGMENT: 0xd,
  SGL_COUNT: 0xe,
  SGL_LENGTH: 0xf,
  SGL_TYPE: 0x11,
  PRP_OFFSET: 0x13,
  WRITE_PROTECTED: 0x20,
  LBA: 0x80,
  CAPACITY: 0x81,
  CQ: 0x100,
  QID: 0x101,
  QUEUE_SIZE: 0x102,
  AER_LIMIT: 0x105,
  VECTOR: 0x108,
  LOG_PAGE: 0x109,
  QUEUE_DELETION: 0x10c,
  NOT_SAVEABLE: 0x10d,
  NOT_CHANGEABLE: 0x10e,
  NOT_PER_NS: 0x10f,
  WRITE_FAULT: 0x280,
  READ_ERROR: 0x281,
  COMPARE: 0x285,
} as const;
