/** A card whose notify structure the client maps, driven over a real socket. */

import { assert, assertEquals } from "@std/assert";
import {
  type BellKind,
  GuestRam,
  PciClient,
  type VfioUserClient,
} from "../../../src/transport/vfio_user/client/mod.ts";
import {
  type DriverQueue,
  type DriverRing,
  F,
  VirtioDriver,
} from "../../../src/testing/mod.ts";
import { PATIENCE_MS } from "../../until.ts";
import { withServer } from "./remote.ts";

const TX = 1;
const FRAME_BYTES = 72;

interface Card {
  client: VfioUserClient;
  pci: PciClient;
  driver: VirtioDriver;
}

/** A card with several queues on nothing, twice: a second client finds it as the first did. */
function withCard(
  bells: BellKind,
  options: Record<string, string>,
  test: (card: Card) => void,
): Promise<void> {
  return withServer({
    model: "virtio-net",
    options: { net: "none", queues: "8", doorbells: "mmap", ...options },
  }, (client) => {
    using ram = new GuestRam(8 << 20);
    ram.share(client);
    using pci = new PciClient(client, { bells });
    test({ client, pci, driver: new VirtioDriver(pci, ram.memory) });
  });
}

/** Has the card send a frame, with or without a notification. */
function offerFrame(driver: VirtioDriver, queue: DriverQueue<DriverRing>) {
  const iova = driver.memory.alloc(FRAME_BYTES, 8);
  assert(queue.ring.begin(1));
  queue.ring.readable(iova, FRAME_BYTES);
  queue.ring.end();
  queue.ring.publish();
}

function send(driver: VirtioDriver, queue: DriverQueue<DriverRing>): void {
  offerFrame(driver, queue);
  queue.kick();
  assert(queue.waitUsed(PATIENCE_MS), "the frame was not sent");
  assert(queue.ring.take());
}

for (
  const [what, bells, wanted, options] of [
    ["16-bit stores", "mmap", [F.RING_EVENT_IDX], {}],
    ["16-bit stores and packed rings", "mmap", [F.RING_PACKED], {
      packed: "on",
    }],
    ["messages", "message", [F.RING_EVENT_IDX], {}],
    ["posted messages", "posted", [], {}],
    ["messages with NOTIFICATION_DATA", "message", [F.NOTIFICATION_DATA], {
      "notification-data": "on",
    }],
  ] as [string, BellKind, number[], Record<string, string>][]
) {
  Deno.test(`a card with a mapped notify page is notified by ${what}`, () =>
    withCard(bells, options, ({ driver }) => {
      const agreed = driver.negotiate(wanted);
      for (const feature of wanted) assert(agreed.has(feature));
      const queue = driver.setupAnyQueue(TX, { size: 16 });
      driver.driverOk();
      // More often than there are entries in the ring.
      for (let i = 0; i < 40; i++) send(driver, queue);
    }));
}

Deno.test("a card with a mapped notify page reads NOTIFICATION_DATA from it", () =>
  withCard("mmap", { "notification-data": "on" }, ({ client, driver }) => {
    const agreed = driver.negotiate([F.NOTIFICATION_DATA]);
    assert(agreed.has(F.NOTIFICATION_DATA));
    const queue = driver.setupQueue(TX, { size: 16 });
    driver.driverOk();
    using info = client.regionInfo(4);
    using mapping = info.map(0);
    const slots = new Uint32Array(mapping.buffer);
    for (let i = 0; i < 40; i++) {
      offerFrame(driver, queue);
      Atomics.store(slots, TX, ((queue.ring.notifyData << 16) | TX) >>> 0);
      assert(queue.waitUsed(PATIENCE_MS));
      assert(queue.ring.take());
    }
  }));

Deno.test("a mapped notify page is one area, with no eventfds beside it, and takes scribbling", () =>
  withCard("mmap", {}, ({ client, driver }) => {
    {
      using io = client.regionIoFds(4);
      assertEquals(io.subRegions.length, 0);
    }
    using info = client.regionInfo(4);
    assertEquals(
      info.mmapAreas.map(({ offset, lengthBytes }) => [offset, lengthBytes]),
      [[0x3000, 0x1000]],
    );
    using mapping = info.map(0);
    const bytes = new Uint8Array(mapping.buffer);
    driver.negotiate([]);
    const queue = driver.setupQueue(TX, { size: 16 });
    driver.driverOk();
    for (let round = 0; round < 20; round++) {
      for (let at = 0; at < bytes.length; at++) bytes[at] = at * round;
      send(driver, queue);
    }
    // The next driver, and the next client, find it clean.
    bytes.fill(0xa5);
  }));
