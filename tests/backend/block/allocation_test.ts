import { assert, assertEquals } from "@std/assert";
import {
  type BlockBackend,
  type BlockClient,
  BlockOp,
  type BlockRequest,
  PENDING,
} from "../../../src/backend/block/contract.ts";
import {
  BLOCK_OPTIONS,
  type BlockOptions,
} from "../../../src/backend/block/options.ts";
import { heapGrowthPerOperation } from "../../resources.ts";
import { Controller, FILE, Folder, Host, MEMORY } from "./rig.ts";

const BATCH = 32;
const SIZE = 1 << 20;
/** Far enough for offsets that are no small integers. */
const BASE = 2 ** 33;

class Counting implements BlockClient {
  completed = 0;
  failed = 0;

  onComplete(_request: BlockRequest, result: number): void {
    this.completed++;
    if (result !== 0) this.failed++;
  }

  onResize(): void {}
}

function submitAll(
  backend: BlockBackend,
  requests: readonly BlockRequest[],
  client: Counting,
): void {
  for (let i = 0; i < requests.length; i++) {
    const result = backend.submit(requests[i]!);
    if (result === PENDING) continue;
    client.completed++;
    if (result !== 0) client.failed++;
  }
  backend.commit();
}

function allocatesNothing(
  name: string,
  make: (folder: Folder) => BlockOptions,
  base = BASE,
  parent: string | undefined = "/dev/shm",
): void {
  Deno.test(`${name} allocates nothing per request`, () => {
    using folder = new Folder(parent);
    using host = new Host();
    using controller = new Controller(host, make(folder));
    const { backend } = controller;
    const client = new Counting();
    backend.start(client);
    // deno-lint-ignore no-explicit-any -- the rig's own bookkeeping is not what is measured
    (controller as any).onComplete = (request: BlockRequest, result: number) =>
      client.onComplete(request, result);
    const requests = Array.from(
      { length: BATCH },
      (_, i) =>
        controller.request({
          op: i % 3 === 0 ? BlockOp.WRITE : BlockOp.READ,
          offset: base + i * 8192,
          at: i % 2 === 0
            ? [[i * 16384, 4096]]
            : [[i * 16384 + 8, 1024], [i * 16384 + 8192, 3072]],
        }),
    );
    const perOperation = heapGrowthPerOperation(100_000, (operations) => {
      client.completed = 0;
      for (let done = 0; done < operations; done += BATCH) {
        submitAll(backend, requests, client);
        while (client.completed < done + BATCH) host.loop.turn(-1);
      }
    });
    assertEquals(client.failed, 0);
    assert(perOperation < 1, `${perOperation} bytes an operation`);
  });
}

allocatesNothing("MemoryBackend", () => ({ ...MEMORY, sizeBytes: SIZE }), 0);
allocatesNothing(
  "AsyncBackend",
  () =>
    BLOCK_OPTIONS.parse({
      backend: new URL("./fixtures/memory_store.ts", import.meta.url).pathname,
    }),
  0,
);
for (const engine of ["auto", "ring", "sync"] as const) {
  allocatesNothing(`FileBackend, engine ${engine},`, (folder) => ({
    ...FILE,
    path: folder.image("disk.img", BASE + SIZE),
    engine,
  }));
}
// Not in memory, where the machine has such a place.
allocatesNothing(
  "FileBackend on a disk",
  (folder) => ({ ...FILE, path: folder.image("disk.img", BASE + SIZE) }),
  BASE,
  Deno.env.get("TMPDIR") ?? "/tmp",
);
allocatesNothing("FileBackend that queues", (folder) => ({
  ...FILE,
  path: folder.image("disk.img", BASE + SIZE),
  engine: "ring",
  depth: 8,
}));
allocatesNothing("FileBackend that bounces", (folder) => ({
  ...FILE,
  path: folder.image("disk.img", BASE + SIZE),
  direct: true,
  engine: "ring",
}));
