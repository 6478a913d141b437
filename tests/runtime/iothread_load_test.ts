import { assert, assertEquals } from "@std/assert";
import {
  type OutboardProcess,
  startOutboard,
  VirtioDriver,
} from "../../src/testing/mod.ts";
import {
  GuestRam,
  PciClient,
  type VfioUserClient,
} from "../../src/transport/vfio_user/client/mod.ts";
import { controlLine, countersOf } from "../guest/control_line.ts";
import { PATIENCE_MS } from "../until.ts";
import { connectClient } from "../transport/vfio_user/remote.ts";
import { VerifiedDisk } from "./verified_disk.ts";

const RAM_BYTES = 16 * 1024 * 1024;
const OTHER_BYTES = 4 * 1024 * 1024;
const OTHER_IOVA = 0x10_0000;
const DEVICE_NEEDS_RESET = 64;

interface Rig {
  readonly outboard: OutboardProcess;
  readonly client: VfioUserClient;
  readonly ram: GuestRam;
  readonly virtio: VirtioDriver;
  ask(line: string): Promise<string[]>;
}

async function withDisk(
  args: readonly string[],
  run: (rig: Rig) => Promise<void>,
): Promise<void> {
  const folder = Deno.makeTempDirSync();
  try {
    const control = `${folder}/control`;
    await using outboard = await startOutboard(
      [...args, "--socket", `${folder}/dev`, "--control", control],
      // A page that was unmapped and is touched all the same ends the process.
      { env: { OUTBOARD_POISON: "1" } },
    );
    using client = connectClient(`${folder}/dev`);
    client.negotiate();
    using ram = new GuestRam(RAM_BYTES);
    ram.share(client);
    const virtio = new VirtioDriver(new PciClient(client), ram.memory);
    const ask = (line: string) => controlLine(control, line);
    await run({ outboard, client, ram, virtio, ask });
    assertEquals(outboard.status, null);
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
}

const STORE =
  new URL("../backend/block/fixtures/memory_store.ts", import.meta.url)
    .pathname;
/** Storage by when its requests are done: when submitted, or later by a Worker; and how often memory is unmapped under it. */
const STORAGE = [
  ["memory", "memory=4M", 10_000],
  ["a store", `backend=${STORE},size=4M`, 1000],
] as const;
const spread = (storage: string) => [
  "--iothreads",
  "3",
  "--device",
  `virtio-blk,${storage},queues=4,iothread=0:1:2`,
];
const SPREAD_DISK = {
  queues: 4,
  slotsPerQueue: 8,
  blocks: 1024,
  seed: 20261121,
};

for (const [name, storage, unmaps] of STORAGE) {
  Deno.test(`a disk on three IOThreads serves every queue on its own thread, on ${name}`, () =>
    withDisk(spread(storage), async ({ virtio, ask }) => {
      const disk = new VerifiedDisk(virtio, SPREAD_DISK);
      await disk.run(5000);
      await disk.verifyAll();
      const counters = countersOf(await ask("counters virtio-blk0"));
      const requests = counters.reads! + counters.writes!;
      assertEquals(requests, disk.completed);
    }));

  Deno.test(`memory is unmapped ${unmaps} times under the load of three IOThreads, on ${name}`, () =>
    withDisk(spread(storage), async ({ client, virtio }) => {
      using other = new GuestRam(OTHER_BYTES, OTHER_IOVA);
      other.share(client);
      const disk = new VerifiedDisk(virtio, {
        ...SPREAD_DISK,
        otherMemory: other.memory,
      });
      for (let round = 0; round < unmaps; round++) {
        disk.step();
        // A driver waits for what it lent before it takes it back; the rest goes on.
        const deadline = performance.now() + PATIENCE_MS;
        while (disk.inFlight(true) > 0) {
          disk.step(false);
          assert(performance.now() < deadline, "requests do not come back");
        }
        other.unshare(client);
        disk.step(false);
        other.share(client);
        if (round % 256 === 0) await new Promise((go) => setTimeout(go, 0));
      }
      await disk.verifyAll();
    }));

  Deno.test(`memory that is unmapped under requests in flight fails the device, and nothing else, on ${name}`, () =>
    withDisk(spread(storage), async ({ client, virtio }) => {
      using other = new GuestRam(OTHER_BYTES, OTHER_IOVA);
      other.share(client);
      const disk = new VerifiedDisk(virtio, {
        ...SPREAD_DISK,
        otherMemory: other.memory,
      });
      for (let round = 0; round < 100; round++) {
        // Some may be in flight when the memory goes away, and some are issued when it has gone.
        for (let i = 0; i <= round % 7; i++) disk.step();
        other.unshare(client);
        disk.step();
        const deadline = performance.now() + PATIENCE_MS;
        while ((virtio.status & DEVICE_NEEDS_RESET) === 0) {
          assert(performance.now() < deadline, "the device does not fail");
        }
        other.share(client);
        await disk.settleAfterFailure();
      }
      await disk.verifyAll();
    }));

  Deno.test(`a disk moves between IOThreads under load and loses no request, on ${name}`, () =>
    withDisk(
      [
        "--iothreads",
        "2",
        "--device",
        `virtio-blk,${storage},queues=2,iothread=0`,
      ],
      async ({ virtio, ask }) => {
        const disk = new VerifiedDisk(virtio, {
          queues: 2,
          slotsPerQueue: 16,
          blocks: 1024,
          seed: 7,
        });
        let moves = 0;
        let over = false;
        const moving = (async () => {
          while (!over) {
            const to = (moves + 1) % 2;
            await ask(`move virtio-blk0 ${to}`);
            moves++;
          }
        })();
        // Told at the end, and not as a rejection that nobody handles.
        moving.catch(() => over = true);
        try {
          while (moves < 60 && !over) await disk.run(500);
        } finally {
          over = true;
          await moving;
        }
        await disk.verifyAll();
      },
    ));
}
