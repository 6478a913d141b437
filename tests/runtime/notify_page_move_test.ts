import { assert, assertEquals } from "@std/assert";
import { virtioNetModel } from "../../devices/virtio_net/mod.ts";
import { Outboard } from "../../src/runtime/run.ts";
import { type DriverQueue, F, VirtioDriver } from "../../src/testing/mod.ts";
import {
  GuestRam,
  PciClient,
} from "../../src/transport/vfio_user/client/mod.ts";
import { workersGone } from "../resources.ts";
import { PATIENCE_MS } from "../until.ts";
import { connectClient } from "../transport/vfio_user/remote.ts";

const TX = 1;
const FRAME_BYTES = 72;

function offerFrame(driver: VirtioDriver, queue: DriverQueue): void {
  const iova = driver.memory.alloc(FRAME_BYTES, 8);
  assert(queue.ring.begin(1));
  queue.ring.readable(iova, FRAME_BYTES);
  queue.ring.end();
  queue.ring.publish();
}

Deno.test("a mapped notify page works on while its device moves between IOThreads", async () => {
  const folder = await Deno.makeTempDir({ prefix: "outboard-test-" });
  const outboard = new Outboard({ iothreads: 2 });
  try {
    const path = `${folder}/lan`;
    await outboard.serve({
      devices: [{
        id: "lan",
        model: "virtio-net",
        options: virtioNetModel.options!.parse({
          net: "none",
          doorbells: "mmap",
        }),
        endpoint: { kind: "path", path },
        iothreads: [0],
      }],
    });
    using client = connectClient(path);
    client.negotiate();
    using ram = new GuestRam(4 << 20);
    ram.share(client);
    using pci = new PciClient(client, { bells: "mmap" });
    const driver = new VirtioDriver(pci, ram.memory);
    driver.negotiate([F.RING_EVENT_IDX]);
    const queue = driver.setupQueue(TX, { size: 16 });
    driver.driverOk();
    for (let round = 0; round < 4; round++) {
      // Noted on one thread, and perhaps found on the other.
      offerFrame(driver, queue);
      queue.kick();
      await outboard.move("lan", (round + 1) % 2);
      assert(queue.waitUsed(PATIENCE_MS));
      assert(queue.ring.take());
      for (let i = 0; i < 20; i++) {
        offerFrame(driver, queue);
        queue.kick();
        assert(queue.waitUsed(PATIENCE_MS));
        assert(queue.ring.take());
      }
    }
    const { families } = await outboard.metrics();
    const valueOf = (name: string, labels: Record<string, string>) =>
      families.find((it) => it.name === name)!.samples.find((it) =>
        Object.entries(labels).every(([key, value]) => it.labels[key] === value)
      )!.value;
    const packets = { device: "lan", direction: "transmit" };
    assertEquals(valueOf("outboard_device_packets", packets), 4 * 21);
    const byPage = { device: "lan", path: "page" };
    assert(valueOf("outboard_device_kicks", byPage) > 0);
  } finally {
    await outboard.stop();
    await workersGone();
    await Deno.remove(folder, { recursive: true });
  }
});
