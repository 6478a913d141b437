/** The built-in network card, driven by the client and driver of this package over a real server. */

import { assert, assertEquals, assertThrows } from "@std/assert";
import {
  type BellKind,
  GuestRam,
  PciClient,
  type VfioUserClient,
} from "../../../src/transport/vfio_user/client/mod.ts";
import {
  F,
  NET_CTRL,
  NET_DEFAULT_FEATURES,
  NET_OK,
  NetDriver,
  type NetDriverOptions,
  STATUS,
  VirtioDriver,
} from "../../../src/testing/mod.ts";
import { PATIENCE_MS } from "../../until.ts";
import { withServer } from "./remote.ts";

const VECTORS = { rx: 1, tx: 2, ctrl: 3 };

interface Card {
  client: VfioUserClient;
  pci: PciClient;
  ram: GuestRam;
  driver: VirtioDriver;
}

/** A card on the built-in gateway, twice: for a second client finds it as the first did. */
async function withCard(
  bells: BellKind,
  vectors: number,
  test: (card: Card) => void,
): Promise<void> {
  const before = Deno.env.get("OUTBOARD_LIBSLIRP");
  Deno.env.set("OUTBOARD_LIBSLIRP", "none");
  try {
    await withServer(
      { model: "virtio-net", options: { mac: "52:54:00:12:34:56" } },
      (client) => {
        using ram = new GuestRam(4 << 20);
        ram.share(client);
        using pci = new PciClient(client, { bells });
        const driver = new VirtioDriver(pci, ram.memory, { vectors });
        test({ client, pci, ram, driver });
      },
    );
  } finally {
    if (before === undefined) Deno.env.delete("OUTBOARD_LIBSLIRP");
    else Deno.env.set("OUTBOARD_LIBSLIRP", before);
  }
}

/** ARP request: who has 10.0.2.2? (RFC 826) */
function arpRequest(mac: Uint8Array): Uint8Array<ArrayBuffer> {
  const frame = new Uint8Array(60);
  frame.fill(0xff, 0, 6);
  frame.set(mac, 6);
  frame.set([0x08, 0x06, 0, 1, 0x08, 0x00, 6, 4, 0, 1], 12);
  frame.set(mac, 22);
  frame.set([10, 0, 2, 15], 28);
  frame.set([10, 0, 2, 2], 38);
  return frame;
}

function expectArpReply(net: NetDriver): void {
  assert(net.transmit(arpRequest(net.mac)));
  const reply = net.receive(PATIENCE_MS);
  if (reply === null) throw new Error("no reply");
  assertEquals(reply.subarray(0, 6), net.mac);
  assertEquals([...reply.subarray(12, 22)], [
    ...[0x08, 0x06, 0, 1, 0x08, 0x00, 6, 4, 0, 2],
  ]);
  assertEquals([...reply.subarray(28, 32)], [10, 0, 2, 2]);
}

for (
  const [what, bells, vectors, options] of [
    ["messages and polling", "message", 0, {}],
    ["posted messages and MSI-X", "posted", 4, { vectors: VECTORS }],
    ["eventfds and MSI-X", "ioeventfd", 4, { vectors: VECTORS }],
    [
      "no EVENT_IDX and MSI-X",
      "ioeventfd",
      4,
      {
        vectors: VECTORS,
        features: NET_DEFAULT_FEATURES.filter((it) => it !== F.RING_EVENT_IDX),
      },
    ],
    [
      "indirect tables and split headers",
      "message",
      4,
      { vectors: VECTORS, indirect: 2, splitHeader: true },
    ],
    ["small receive buffers", "message", 0, { rxBufferBytes: 24 }],
  ] as [string, BellKind, number, NetDriverOptions][]
) {
  Deno.test(`a card answers ARP, with ${what}`, () =>
    withCard(bells, vectors, ({ driver }) => {
      const net = new NetDriver(driver, { queueSize: 64, ...options });
      assertEquals(driver.deviceType, 1);
      assertEquals([...net.mac], [0x52, 0x54, 0x00, 0x12, 0x34, 0x56]);
      assertEquals(net.linkUp, true);
      // More often than there are entries in the rings.
      for (let i = 0; i < 100; i++) expectArpReply(net);
      assert(net.waitTransmitted(PATIENCE_MS));
      assertEquals([net.txFrames, net.rxFrames], [100, 100]);
    }));
}

Deno.test("a burst is transmitted whole, with fewer kicks than frames", () =>
  withCard("message", 0, ({ driver }) => {
    const net = new NetDriver(driver, { queueSize: 256 });
    // To nobody: no answer comes.
    const frame = arpRequest(net.mac);
    frame.set([10, 0, 9, 9], 38);
    net.fillFrames(frame);
    let sent = 0;
    while (sent < 1000) {
      sent += net.transmitBurst(Math.min(100, 1000 - sent), frame.length);
      assert(net.waitTransmitted(PATIENCE_MS));
    }
    assertEquals(net.txFrames, 1000);
    assert(net.tx.kicks <= 20, `${net.tx.kicks} kicks`);
    expectArpReply(net);
  }));

Deno.test("the control queue acknowledges what it knows and refuses the rest", () =>
  withCard("message", 4, ({ driver }) => {
    const net = new NetDriver(driver, { vectors: VECTORS });
    assertEquals(net.command(NET_CTRL.RX, 0, Uint8Array.of(1)), NET_OK);
    assert(net.command(0x7f, 0) !== NET_OK);
  }));

Deno.test("a driver that breaks a rule gets NEEDS_RESET, and a card again after a reset", () =>
  withCard("message", 4, ({ driver }) => {
    const broken = new NetDriver(driver, { vectors: VECTORS });
    broken.tx.ring.writeRaw(0, 0xffff_ffff_ffff_f000n, 64, 0, 0);
    broken.tx.ring.makeAvailable(0);
    broken.tx.flush();
    const deadline = performance.now() + PATIENCE_MS;
    while ((driver.status & STATUS.NEEDS_RESET) === 0) {
      assert(performance.now() < deadline, "the card did not notice");
    }
    assertEquals(broken.tx.waitUsed(0), false);
    expectArpReply(new NetDriver(driver, { vectors: VECTORS }));
  }));

Deno.test("a queue larger than the card's, or a vector it has not, is refused", () =>
  withCard("message", 4, ({ driver }) => {
    driver.negotiate(NET_DEFAULT_FEATURES);
    assertEquals(driver.queueMaxSize(99), 0);
    assertThrows(() => driver.setupQueue(99), Error, "has none");
    assertThrows(() => driver.setupQueue(0, { vector: 999 }), Error, "vector");
    assertEquals(driver.setConfigVector(999), 0xffff);
    assertEquals(driver.setConfigVector(0), 0);
  }));
