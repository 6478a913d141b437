import { assert, assertEquals } from "@std/assert";
import { VirtioBlk } from "../../../devices/virtio_blk/device.ts";
import {
  type BlockBackend,
  type BlockClient,
  type BlockInfo,
  type BlockRequest,
  PENDING,
} from "../../../src/backend/block/contract.ts";
import { ArrayMemory } from "../../../src/memory/array_memory.ts";
import { WriteOrder } from "../../../src/pci/posted_writes.ts";
import { DriverMemory } from "../../../src/testing/driver_memory.ts";
import { fakeContext } from "../../../src/testing/fake_context.ts";
import { Vring } from "../../../src/testing/vring.ts";
import { Features } from "../../../src/virtio/features.ts";
import { createQueue } from "../../../src/virtio/queue/mod.ts";
import { heapGrowthPerOperation } from "../../resources.ts";
import { header, T } from "./harness.ts";

const SIZE = 256;
const BATCH = 64;
const DATA_BYTES = 4096;

/** Storage that does nothing, at once or later. */
class NullBackend implements BlockBackend {
  readonly description = "null";
  readonly info: BlockInfo = {
    sizeBytes: 2 ** 45,
    logicalBlockBytes: 512,
    physicalBlockBytes: 512,
    optimalBytes: 0,
    readonly: false,
    volatileCache: true,
    discardGranularityBytes: 512,
    maxTransferBytes: 1 << 30,
  };
  readonly #waiting: BlockRequest[] = new Array(SIZE);
  readonly #later: boolean;
  #count = 0;
  #client: BlockClient | null = null;

  constructor(later: boolean) {
    this.#later = later;
  }

  start(client: BlockClient): void {
    this.#client = client;
  }

  submit(request: BlockRequest): number {
    if (!this.#later) return 0;
    this.#waiting[this.#count++] = request;
    return PENDING;
  }

  finish(): void {
    for (let i = 0; i < this.#count; i++) {
      this.#client!.onComplete(this.#waiting[i]!, 0);
    }
    this.#count = 0;
  }

  commit(): void {}
  drain(): void {}
  setWriteCache(): number {
    return 0;
  }
  close(): void {}
}

for (const later of [false, true]) {
  for (const type of [T.IN, T.OUT, T.FLUSH]) {
    Deno.test(`VirtioBlk allocates nothing per request (type ${type}, ${later ? "later" : "at once"})`, () => {
      const memory = new ArrayMemory([]);
      const iova = 0x1_0000_0000;
      const buffer = memory.map({ iova, lengthBytes: 4 << 20 });
      const ram = new DriverMemory(buffer, iova);
      const context = fakeContext({ memory });
      const backend = new NullBackend(later);
      let publish = () => {};
      const disk = new VirtioBlk({
        // A ManualLoop allocates; the real one does not.
        context: {
          ...context,
          loop: Object.assign(Object.create(context.loop), {
            bottomHalf: (callback: () => void) => {
              publish = callback;
              return { schedule() {}, cancel() {} };
            },
          }),
        },
        transport: {
          interrupt: () => {},
          configChanged: () => {},
          fail: (reason) => {
            throw new Error(reason);
          },
        },
        backend,
        options: {
          queues: 1,
          queueSize: SIZE,
          segMax: 128,
          serial: "",
          writeCache: true,
        },
      });
      const ring = new Vring(ram, { size: SIZE, eventIdx: true });
      const queue = createQueue(memory, 0, SIZE);
      const { descIova, availIova, usedIova } = ring;
      // CONFIG_WCE: before writes it asks for register writes.
      const features = Features.of(9, 11, 29, 32);
      queue.keepOrder(new WriteOrder(context.posted, () => {}), false);
      const result = queue.enable(features, {
        size: SIZE,
        descIova,
        availIova,
        usedIova,
      });
      assertEquals(result, 0);
      disk.start(features, [queue]);
      const head = ram.alloc(16);
      // A sector number above 2^32.
      ram.write(head, header(type, 2 ** 33));
      const data = ram.alloc(DATA_BYTES);
      const status = ram.alloc(1);
      let taken = 0;
      const perRequest = heapGrowthPerOperation(128_000, (operations) => {
        for (let done = 0; done < operations; done += BATCH) {
          for (let i = 0; i < BATCH; i++) {
            ring.begin(type === T.FLUSH ? 2 : 3);
            ring.readable(head, 16);
            if (type === T.IN) ring.writable(data, DATA_BYTES);
            if (type === T.OUT) ring.readable(data, DATA_BYTES);
            ring.writable(status, 1);
            ring.end();
          }
          ring.publish();
          disk.notify(queue);
          if (later) {
            backend.finish();
            publish();
          }
          while (ring.take()) taken++;
        }
      });
      const { reads, writes, flushes, errors } = disk.counters();
      assertEquals(reads! + writes! + flushes!, taken);
      assertEquals(errors, 0);
      assert(perRequest < 1, `${perRequest} bytes per request`);
    });
  }
}
