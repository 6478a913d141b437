import { assertEquals, assertThrows } from "@std/assert";
import { textOf } from "../command_text.ts";
import { STATUS } from "../../../src/testing/virtio_defs.ts";
import { frame, MAC, NF, Rig, VECTOR } from "./harness.ts";

const LINK_UP = 1;
const ANNOUNCE = 2;

function status(rig: Rig): number {
  return rig.driver.readConfig(6, 2);
}

function run(rig: Rig, command: string, ...args: string[]): string {
  return textOf(rig.device.commands![command], ...args);
}

Deno.test("VirtioNet is a network card on the PCI bus", () => {
  using rig = new Rig();
  assertEquals(rig.driver.deviceType, 1);
  assertEquals(rig.pci.readConfig(0x08, 4) >>> 8, 0x020000);
  assertEquals(rig.driver.numQueues, 3);
  assertEquals([0, 1, 2].map((i) => rig.driver.queueMaxSize(i)), [
    256,
    256,
    64,
  ]);
});

Deno.test("VirtioNet shows its configuration", () => {
  using rig = new Rig({ mtu: 9000 });
  assertEquals([...rig.driver.readConfigBytes(0, 6)], [...MAC]);
  assertEquals(status(rig), LINK_UP);
  assertEquals(rig.driver.readConfig(8, 2), 1);
  assertEquals(rig.driver.readConfig(10, 2), 9000);
});

Deno.test("VirtioNet ignores writes to its configuration", () => {
  using rig = new Rig();
  for (let i = 0; i < 12; i++) rig.driver.writeConfig(i, 1, 0xff);
  assertEquals([...rig.driver.readConfigBytes(0, 12)], [
    ...MAC,
    1,
    0,
    1,
    0,
    0xdc,
    5,
  ]);
});

Deno.test("VirtioNet offers what it can do and no offloads", () => {
  using rig = new Rig();
  const offered = [...rig.driver.offeredFeatures()].filter((bit) => bit < 24);
  assertEquals(offered, Object.values(NF).toSorted((a, b) => a - b));
});

Deno.test("VirtioNet refuses features of the control queue without it", () => {
  using rig = new Rig({ bare: true });
  for (
    const bit of [
      NF.CTRL_RX,
      NF.CTRL_VLAN,
      NF.CTRL_RX_EXTRA,
      NF.GUEST_ANNOUNCE,
      NF.CTRL_MAC_ADDR,
    ]
  ) {
    assertThrows(
      () => rig.driver.negotiate([bit]),
      Error,
      "refused the features",
    );
    rig.driver.negotiate([bit, NF.CTRL_VQ]);
  }
});

Deno.test("VirtioNet.setLink tells the driver, once per change", () => {
  using rig = new Rig({ features: [NF.STATUS] });
  assertEquals(rig.backend.starts, 1);
  const generation = rig.driver.configGeneration;
  rig.card.setLink(true);
  assertEquals(rig.interrupts(VECTOR.CONFIG), 0);
  rig.card.setLink(false);
  assertEquals(rig.interrupts(VECTOR.CONFIG), 1);
  assertEquals(status(rig), 0);
  assertEquals(rig.driver.configGeneration === generation, false);
  assertEquals(rig.backend.peer, null);
  rig.card.setLink(true);
  assertEquals(rig.interrupts(VECTOR.CONFIG), 1);
  assertEquals(status(rig), LINK_UP);
  assertEquals(rig.backend.starts, 2);
});

Deno.test("VirtioNet delivers nothing while the link is down, and goes on afterwards", () => {
  using rig = new Rig();
  rig.postRx(2048, 2048);
  const { peer } = rig.backend;
  rig.card.setLink(false);
  rig.backend.incoming.push(frame(60));
  peer!.onReadable();
  assertEquals(rig.received(), []);
  rig.backend.incoming.length = 0;
  rig.card.setLink(true);
  rig.arrive(frame(60, 2));
  assertEquals(rig.received().map((it) => it.frame), [frame(60, 2)]);
});

Deno.test("VirtioNet receives again when the link comes up after it ran out of buffers", () => {
  using rig = new Rig();
  rig.arrive(frame(60));
  assertEquals(rig.backend.receiving, false);
  rig.card.setLink(false);
  rig.postRx(2048);
  rig.card.setLink(true);
  assertEquals(rig.backend.receiving, true);
  rig.arrive(frame(60, 2));
  assertEquals(rig.received().map((it) => it.frame), [frame(60, 2)]);
});

Deno.test("VirtioNet begins with the link down where asked to", () => {
  using rig = new Rig({ linkUp: false });
  assertEquals(status(rig), 0);
  assertEquals(rig.backend.starts, 0);
  rig.card.setLink(true);
  assertEquals(rig.backend.starts, 1);
  rig.bringUp();
  assertEquals(status(rig), LINK_UP);
});

Deno.test("VirtioNet keeps the link as it is through a reset", () => {
  using rig = new Rig();
  rig.card.setLink(false);
  rig.bringUp();
  assertEquals(status(rig), 0);
  assertEquals(rig.backend.peer, null);
});

Deno.test("VirtioNet changes the link without a driver", () => {
  using rig = new Rig({ bare: true });
  rig.card.setLink(false);
  rig.card.setLink(true);
  assertEquals(rig.backend.starts, 0);
  assertEquals(rig.interrupts(VECTOR.CONFIG), 0);
  rig.bringUp();
  assertEquals(status(rig), LINK_UP);
});

Deno.test("VirtioNet has its link follow the back end's, and tells the driver once of each change", () => {
  using rig = new Rig();
  const { backend } = rig;
  backend.linkUp = false;
  backend.peer!.onLinkChange!();
  backend.peer!.onLinkChange!();
  assertEquals(status(rig), 0);
  assertEquals(rig.interrupts(VECTOR.CONFIG), 1);
  // It is still plugged in, and told when somebody comes.
  assertEquals(backend.starts, 1);
  assertEquals(
    run(rig, "link"),
    "link is down: nobody is at the other end of scripted",
  );
  assertThrows(() => run(rig, "announce"), Error, "the link is down");
  backend.linkUp = true;
  backend.peer!.onLinkChange!();
  assertEquals(status(rig), LINK_UP | ANNOUNCE);
  assertEquals(rig.interrupts(VECTOR.CONFIG), 1);
  rig.postRx(2048, 2048);
  rig.arrive(frame(60));
  assertEquals(rig.received().length, 1);
});

Deno.test("VirtioNet that is not plugged in stays so, whoever comes to the other end", () => {
  using rig = new Rig();
  rig.card.setLink(false);
  rig.interrupts(VECTOR.CONFIG);
  rig.backend.linkUp = false;
  rig.card.onLinkChange();
  rig.backend.linkUp = true;
  rig.card.onLinkChange();
  assertEquals(status(rig), 0);
  rig.backend.linkUp = false;
  rig.card.setLink(true);
  assertEquals(status(rig), 0);
  assertEquals(rig.interrupts(VECTOR.CONFIG), 0);
  rig.backend.linkUp = true;
  rig.backend.peer!.onLinkChange!();
  assertEquals(status(rig) & LINK_UP, LINK_UP);
  assertEquals(rig.interrupts(VECTOR.CONFIG), 1);
});

Deno.test("VirtioNet's driver finds the link as it is when it comes", () => {
  using rig = new Rig({ bare: true });
  rig.backend.linkUp = false;
  rig.bringUp();
  assertEquals(status(rig), 0);
  rig.backend.linkUp = true;
  rig.bringUp();
  assertEquals(status(rig), LINK_UP);
});

Deno.test("VirtioNet asks for an announcement when the link comes up", () => {
  using rig = new Rig();
  rig.card.setLink(false);
  rig.card.setLink(true);
  assertEquals(rig.interrupts(VECTOR.CONFIG), 2);
  assertEquals(status(rig), LINK_UP | ANNOUNCE);
  assertEquals(rig.command([3, 0]), 0);
  assertEquals(status(rig), LINK_UP);
});

Deno.test("VirtioNet.announce asks a running driver that can announce", () => {
  using rig = new Rig({ features: [NF.STATUS] });
  assertEquals(rig.card.announce(), false);
  rig.bringUp();
  rig.interrupts(VECTOR.CONFIG);
  assertEquals(rig.card.announce(), true);
  assertEquals(rig.interrupts(VECTOR.CONFIG), 1);
  assertEquals(status(rig), LINK_UP | ANNOUNCE);
  rig.driver.status = 0;
  assertEquals(status(rig), LINK_UP);
  assertEquals(rig.card.announce(), false);
});

Deno.test("VirtioNet has commands for people", () => {
  using rig = new Rig();
  assertEquals(run(rig, "link"), "link is up");
  assertEquals(run(rig, "link", "down"), "link is down");
  assertEquals(rig.card.linkUp, false);
  assertThrows(() => run(rig, "announce"), Error, "the link is down");
  assertEquals(run(rig, "link", "up"), "link is up");
  run(rig, "announce");
  assertEquals(status(rig), LINK_UP | ANNOUNCE);
  assertThrows(() => run(rig, "link", "on"), Error, "it is up or down");
  assertThrows(() => run(rig, "link", "up", "down"), Error, "up or down");
  rig.driver.status = 0;
  assertThrows(() => run(rig, "announce"), Error, "no driver is running");
});

Deno.test("VirtioNet stops the back end when the driver goes away", () => {
  using rig = new Rig();
  const { peer } = rig.backend;
  rig.driver.status = 0;
  assertEquals(rig.backend.peer, null);
  peer!.onReadable();
  peer!.onWritable();
  rig.settle();
  rig.bringUp();
  assertEquals(rig.backend.starts, 2);
});

Deno.test("VirtioNet comes to rest when the driver gives up", () => {
  using rig = new Rig();
  rig.postRx(2048);
  rig.driver.status = rig.driver.status | STATUS.FAILED;
  rig.arrive(frame(60));
  rig.tx.kick();
  rig.settle();
  assertEquals(rig.received(), []);
  assertEquals(rig.backend.receiving, false);
  rig.bringUp();
  rig.postRx(2048);
  rig.arrive(frame(60, 2));
  assertEquals(rig.received().length, 1);
});

Deno.test("VirtioNet forgets filters at a reset", () => {
  using rig = new Rig();
  rig.command([0, 0, 0]);
  rig.command([0, 4, 1]);
  rig.bringUp();
  rig.postRx(2048);
  rig.arrive(frame(60));
  assertEquals(rig.received().length, 1);
});

Deno.test("VirtioNet counts, with its back end", () => {
  using rig = new Rig();
  rig.transmit(frame(60));
  assertEquals(rig.counter("backend.sent"), 1);
  assertEquals(rig.counter("rxPackets"), 0);
  assertEquals(rig.counter("failures"), 0);
});

Deno.test("VirtioNet serves a driver that polls and never notifies", () => {
  using rig = new Rig();
  rig.queueTx(Uint8Array.from([...new Uint8Array(12), ...frame(60)]));
  rig.tx.ring.publish();
  rig.loop.pollOnce();
  rig.settle();
  assertEquals(rig.backend.sent, [frame(60)]);
});
