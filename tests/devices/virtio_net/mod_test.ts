import { ResourceBag } from "../../../src/os/mod.ts";
import { createPciDevice } from "../pci_device.ts";
import { assert, assertEquals, assertMatch, assertThrows } from "@std/assert";
import { textOf } from "../command_text.ts";
import { virtioNetModel } from "../../../devices/virtio_net/mod.ts";
import type { PciDevice } from "../../../src/pci/device.ts";
import { fakeContext } from "../../../src/testing/fake_context.ts";

Deno.test("virtioNetModel.create makes a card with an address that it tells", () => {
  const context = fakeContext({ seed: 7 });
  const options = virtioNetModel.options!.parse({ net: "none" });
  const device = createPciDevice(
    virtioNetModel,
    context,
    structuredClone(options),
  );
  try {
    assertEquals(device.spec.deviceId, 0x1041);
    assertEquals(device.spec.classCode, 0x020000);
    const [message] = context.log.at("info");
    const [, told] = /network card ([0-9a-f:]{17}),.* none$/.exec(message!)!;
    assertMatch(told!, /^52:54:00:/);
    const read = Array.from(
      { length: 6 },
      (_, i) => device.readBar(4, 0x2000 + i, 1).toString(16).padStart(2, "0"),
    );
    assertEquals(read.join(":"), told);
  } finally {
    device.close();
  }
});

Deno.test("virtioNetModel.create honours its options", () => {
  const device = createPciDevice(
    virtioNetModel,
    fakeContext(),
    virtioNetModel.options!.parse({
      net: "none",
      mac: "02:00:00:00:00:01",
      mtu: "9000",
      link: "down",
      "queue-size": "512",
    }),
  );
  try {
    assertEquals(device.readBar(4, 0x2000, 4), 2);
    assertEquals(device.readBar(4, 0x2004, 4), 0x0100);
    assertEquals(device.readBar(4, 0x200a, 2), 9000);
    assertEquals(device.readBar(4, 0x18, 2), 512);
    assertEquals(textOf(device.commands!.link), "link is down");
  } finally {
    device.close();
  }
});

Deno.test("virtioNetModel.create leaves nothing behind when the device cannot be made", () => {
  const context = fakeContext();
  const options = virtioNetModel.options!.parse({ net: "none" });
  // More queue entries than an array may have: the transport refuses.
  assertThrows(() =>
    createPciDevice(virtioNetModel, context, { ...options, queueSize: -1 })
  );
  assertEquals(context.loop.pollerCount, 0);
  assert(!context.loop.hasScheduled);
});

Deno.test("virtioNetModel.create goes on with what a card handed over", () => {
  const from = fakeContext({ seed: 7 });
  const options = virtioNetModel.options!.parse({ net: "none", link: "up" });
  const first = createPciDevice(virtioNetModel, from, options);
  first.commands!.link!.run(["down"]);
  first.writeBar(4, 0x3000, 2, 0);
  assertEquals(first.hold!(), 0);
  const state = structuredClone(first.save!());
  using bag = ResourceBag.of();
  first.handOver!(bag);
  const counters = first.counters!();
  first.close();
  assertEquals(counters.kicks, 1);
  const to = fakeContext({ seed: 8 });
  const second = createPciDevice(
    virtioNetModel,
    ...[to, options, { state, bag }] as const,
  );
  try {
    second.load!(state);
    second.start!();
    // A random address stays what it is.
    assertEquals(mac(second), mac(first));
    assertEquals(textOf(second.commands!.link), "link is down");
    assertEquals(second.counters!(), counters);
    assertEquals(to.log.at("info"), []);
  } finally {
    second.close();
  }
});

Deno.test("VirtioNet keeps its address in its state", () => {
  const options = virtioNetModel.options!.parse({ net: "none" });
  const first = createPciDevice(
    virtioNetModel,
    fakeContext({ seed: 7 }),
    options,
  );
  const second = createPciDevice(
    virtioNetModel,
    fakeContext({ seed: 8 }),
    options,
  );
  assert(mac(first).join() !== mac(second).join());
  first.hold!();
  second.load!(first.save!());
  second.start!();
  assertEquals(mac(second), mac(first));
  // device_status
  second.writeBar(4, 0x14, 1, 1);
  second.reset("device_reset");
  assertEquals(mac(second), mac(first));
  first.close();
  second.close();
});

Deno.test("virtioNetModel.create refuses what no card handed over", () => {
  const options = virtioNetModel.options!.parse({ net: "none" });
  using bag = ResourceBag.of();
  const kind = "virtio-net";
  const poor = { permanentMac: "52:54:00:00:00:00" };
  for (const body of [null, {}, poor]) {
    const given = { state: { kind, version: 1, body }, bag };
    assertThrows(
      () => createPciDevice(virtioNetModel, fakeContext(), options, given),
      Error,
      "Cannot load the network card",
    );
  }
});

function mac(device: PciDevice): number[] {
  return Array.from({ length: 6 }, (_, i) => device.readBar(4, 0x2000 + i, 1));
}
