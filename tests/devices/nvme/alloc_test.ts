import { assert, assertEquals } from "@std/assert";
import type {
  BlockBackend,
  BlockClient,
  BlockInfo,
  BlockRequest,
} from "../../../src/backend/block/contract.ts";
import { PENDING } from "../../../src/backend/block/contract.ts";
import { NvmeController } from "../../../devices/nvme/controller.ts";
import {
  NvmeQueueService,
  type QueueGrant,
} from "../../../devices/nvme/threads/queue_service.ts";
import { ArrayMemory } from "../../../src/memory/array_memory.ts";
import type { BottomHalf, Loop } from "../../../src/loop/event_loop.ts";
import { ResourceBag } from "../../../src/os/resource_bag.ts";
import type {
  QueueContext,
  QueueThreads,
} from "../../../src/pci/queue_threads.ts";
import { DriverMemory } from "../../../src/testing/driver_memory.ts";
import { fakeContext } from "../../../src/testing/fake_context.ts";
import type { ManualLoop } from "../../../src/testing/manual_loop.ts";
import { heapGrowthPerOperation } from "../../resources.ts";
import { NaiveDriver } from "./naive_driver.ts";

const SIZE = 64;
const BATCH = 32;
const OPERATIONS = 128_000;

/** A disk that does nothing, at once or when it is told, and allocates nothing. */
class IdleDisk implements BlockBackend {
  readonly description = "idle";
  readonly info: BlockInfo = {
    sizeBytes: 2 ** 41,
    logicalBlockBytes: 512,
    physicalBlockBytes: 512,
    optimalBytes: 0,
    readonly: false,
    volatileCache: true,
    discardGranularityBytes: 512,
    maxTransferBytes: 1 << 20,
  };
  later = false;
  bytes = 0;
  #client: BlockClient | null = null;
  readonly #held: (BlockRequest | null)[] = new Array(SIZE).fill(null);
  #count = 0;

  start(client: BlockClient): void {
    this.#client = client;
  }
  submit(request: BlockRequest): number {
    this.bytes += request.buffers.lengthBytes;
    if (!this.later) return 0;
    this.#held[this.#count++] = request;
    return PENDING;
  }
  commit(): void {}
  finish(): void {
    while (this.#count > 0) {
      this.#client!.onComplete(this.#held[--this.#count]!, 0);
    }
  }
  drain(): void {
    this.finish();
  }
  setWriteCache(): number {
    return 0;
  }
  share(): null {
    return null;
  }
  close(): void {}
}

/** A loop whose bottom halves allocate nothing, as the real one's. */
function quietLoop(base: ManualLoop) {
  const halves: { callback: () => void; scheduled: boolean }[] = [];
  const loop: Loop = {
    now: () => base.now(),
    watch: (fd, events, handler) => base.watch(fd, events, handler),
    eventFd: (owned) => base.eventFd(owned),
    watchEventFd: (fd, handler) => base.watchEventFd(fd, handler),
    timer: (callback) => base.timer(callback),
    poll: (handler) => base.poll(handler),
    beforeClose: (begin) => base.beforeClose(begin),
    bottomHalf(callback): BottomHalf {
      const half = { callback, scheduled: false };
      halves.push(half);
      return {
        schedule: () => {
          half.scheduled = true;
        },
        cancel: () => {
          half.scheduled = false;
        },
      };
    },
  };
  const turn = () => {
    let ran = false;
    for (let i = 0; i < halves.length; i++) {
      const half = halves[i]!;
      if (!half.scheduled) continue;
      half.scheduled = false;
      ran = true;
      half.callback();
    }
    return ran;
  };
  const settle = () => {
    while (turn());
  };
  return { loop, settle };
}

interface Case {
  readonly name: string;
  readonly bytes: number;
  readonly write?: boolean;
  readonly later?: boolean;
  readonly shadow?: boolean;
  readonly sgl?: boolean;
  /** Completions to aggregate, 0's based. */
  readonly coalesced?: number;
  /** True if another thread serves the queue. */
  readonly elsewhere?: boolean;
}

const CASES: readonly Case[] = [
  { name: "one page, done at once", bytes: 4096 },
  { name: "128 KiB by a PRP list, done later", bytes: 131072, later: true },
  {
    name: "two pages written, shadow doorbells",
    bytes: 8192,
    write: true,
    shadow: true,
  },
  {
    name: "one page by SGL, done later, shadow doorbells",
    bytes: 4096,
    sgl: true,
    later: true,
    shadow: true,
  },
  { name: "one page, interrupts coalesced", bytes: 4096, coalesced: 5 },
  { name: "one page, on another thread", bytes: 4096, elsewhere: true },
  {
    name: "one page, on another thread, shadow doorbells",
    bytes: 4096,
    shadow: true,
    elsewhere: true,
  },
];

/** Another thread, which serves all I/O queues on the disk that it is given. */
function queueThread(
  context: Omit<QueueContext, "words" | "sharedMemory" | "report">,
  disk: IdleDisk,
): QueueThreads {
  let words = new Int32Array();
  let service: NvmeQueueService | null = null;
  const bag = ResourceBag.of();
  return {
    count: 1,
    threadOf: (group) => group < 0 ? 0 : 1,
    attach: (listener) => words = new Int32Array(listener.words),
    open: (_thread, grant) => {
      const more = { words, sharedMemory: [], report: () => {} };
      service = new NvmeQueueService(
        { ...context, ...more },
        { state: grant(bag) as QueueGrant, bag },
        () => disk,
      );
    },
    call: (_thread, message) => service!.handle(message),
    callAll: (message) => [service!.handle(message)],
    wake: () => service!.wake(),
    close: () => service!.close(),
    stop: () => {},
    start: () => {},
    deliver: () => {},
    forget: () => {},
    counters: () => ({}),
  };
}

for (
  const { name, bytes, write, later, shadow, sgl, coalesced, elsewhere }
    of CASES
) {
  Deno.test(`NvmeController allocates nothing per I/O: ${name}`, () => {
    const memory = new ArrayMemory([]);
    const iova = 0x1_0000_0000;
    const ram = new DriverMemory(
      memory.map({ iova, lengthBytes: 8 << 20 }),
      iova,
    );
    const context = fakeContext({ memory });
    const { loop, settle } = quietLoop(context.loop);
    const disk = new IdleDisk();
    let interrupts = 0;
    const quiet = {
      ...context,
      loop,
      interrupts: {
        mode: "msix" as const,
        raise: () => {
          interrupts++;
        },
        setLevel: () => {},
      },
    };
    const device = new NvmeController(
      quiet,
      {
        identity: { serial: "S", model: "M", firmware: "F", subnqn: "nqn.x" },
        queues: 2,
        queueEntries: SIZE,
        msix: true,
        mapDoorbells: false,
      },
      [{ nsid: 1, backend: elsewhere ? new IdleDisk() : disk }],
    );
    if (elsewhere) device.place(queueThread(quiet, disk));
    const driver = new NaiveDriver(
      device,
      ram,
      { settle } as unknown as ManualLoop,
    );
    driver.enable();
    const pair = driver.createPair(1, SIZE);
    if (shadow === true) driver.configureShadow();
    if (coalesced !== undefined) driver.setFeature(8, coalesced | 255 << 8);
    disk.later = later ?? false;

    // From here on only what allocates nothing: entries are made once and rung by number.
    const buffer = driver.page(33);
    const sgl1 = new Uint8Array(16);
    new DataView(sgl1.buffer).setBigUint64(0, BigInt(buffer), true);
    new DataView(sgl1.buffer).setUint32(8, bytes, true);
    for (let i = 0; i < SIZE; i++) {
      driver.put(pair, {
        opcode: write === true ? 1 : 2,
        cid: i,
        nsid: 1,
        cdw10: 0xabcd_ef01,
        cdw12: bytes / 512 - 1,
        ...(sgl === true
          ? { flags: 0x40, sgl1 }
          : driver.prps(buffer, 0, bytes)),
      });
    }
    const words = new Uint32Array(ram.bytes.buffer);
    const cqAt = ram.offset(pair.cq) / 4;
    const shadowAt = shadow === true ? ram.offset(driver.shadow!) / 4 : -1;
    const eventAt = ram.offset(driver.eventIdx) / 4;
    let tail = 0;
    let head = 0;
    let phase = 1;
    let failed = 0;
    const ring = (index: number, value: number) => {
      if (shadowAt >= 0) {
        const old = words[shadowAt + index]!;
        words[shadowAt + index] = value;
        const event = words[eventAt + index]!;
        if (
          ((value - event - 1) & 0xffff) >= ((value - old) & 0xffff)
        ) return;
      }
      device.writeBar(0, 0x1000 + index * 4, 4, value);
    };
    let done = 0;
    const run = (operations: number) => {
      for (let count = 0; count < operations; count += BATCH) {
        tail = (tail + BATCH) % SIZE;
        ring(2, tail);
        settle();
        disk.finish();
        settle();
        for (;;) {
          const last = words[cqAt + head * 4 + 3]!;
          if ((last >>> 16 & 1) !== phase) break;
          if (last >>> 17 !== 0) failed++;
          done++;
          if (++head === SIZE) {
            head = 0;
            phase ^= 1;
          }
        }
        ring(3, head);
        settle();
      }
    };
    const growth = heapGrowthPerOperation(OPERATIONS, run);
    assert(growth < 1, `${growth} bytes per command`);
    assertEquals(failed, 0);
    assertEquals(done % OPERATIONS, 0);
    assert(done >= 2 * OPERATIONS);
    assertEquals(disk.bytes, done * bytes);
    assert(interrupts > 0);
    device.close();
  });
}
