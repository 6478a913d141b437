/** Devices that come and go while QEMU runs. */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { startQemu } from "./bare_qemu.ts";
import { Guest, vfioUserDevice } from "./guest.ts";
import { guestTest } from "./harness.ts";
import { DEFAULT_MODULES } from "./initramfs.ts";
import { Qmp } from "./qmp.ts";
import { Serving } from "./serving.ts";

guestTest(
  "QEMU unplugs devices without MSI-X, and plugs them in again",
  async ({ kit }) => {
    await using serving = await Serving.start({
      devices: ["virtio-blk", "nvme", "virtio-net"].map((device) =>
        `${device},msix=off`
      ),
      user: "gateway",
    });
    const folder = await Deno.makeTempDir();
    const path = `${folder}/qmp`;
    const listener = Deno.listen({ transport: "unix", path });
    // A slot that was empty at power-on is off: with PCI Express' own hotplug no guest is asked before one is unplugged.
    const ports = serving.sockets.map((_, i) =>
      `pcie-root-port,id=port${i},chassis=${i},slot=${i}`
    );
    const qemu = startQemu(kit, ports, {
      args: [
        ...["-qmp", `unix:${path.replaceAll(",", ",,")}`],
        ...["-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off"],
      ],
    });
    const qmp = new Qmp(await listener.accept());
    listener.close();
    try {
      await qmp.negotiate();
      for (let round = 0; round < 2; round++) {
        for (const [i, socket] of serving.sockets.entries()) {
          const id = `device${i}`;
          await qmp.execute("device_add", {
            ...{ driver: "vfio-user-pci", id, bus: `port${i}` },
            socket: { type: "unix", path: socket },
          });
          const deleted = qmp.nextEvent(
            "DEVICE_DELETED",
            ({ data }) => data?.["device"] === id,
          );
          const from = serving.outboard.stderr.length;
          await qmp.execute("device_del", { id });
          await deleted;
          await serving.waitForLog(/client gone/, from);
        }
      }
      // It takes its side down after the event.
      await qmp.execute("query-status");
      assertEquals(await qemu.hasExited(), false);
    } finally {
      await qemu.kill();
      await qmp.close();
      await Deno.remove(folder, { recursive: true });
    }
  },
);

guestTest(
  "Linux gives a disk and a card without MSI-X back, and takes them again",
  async ({ kit }) => {
    await using serving = await Serving.start({
      devices: ["virtio-blk", "virtio-net"].map((device) =>
        `${device},msix=off`
      ),
      user: "gateway",
    });
    const [disk, card] = serving.sockets.map((path, i) => ({
      path,
      id: `device${i}`,
      properties: { id: `device${i}`, bus: `port${i}` },
    }));
    await using guest = await Guest.boot({
      kit,
      modules: [...DEFAULT_MODULES, "virtio_blk"],
      devices: [disk!, card!].flatMap(({ path, properties }, i) => [
        `pcie-root-port,id=port${i},chassis=${i},slot=${i}`,
        vfioUserDevice(path, properties),
      ]),
    });
    const use = async () => {
      await guest.output(
        "until [ -b /dev/vda ] && [ -e /sys/class/net/eth0 ]; do :; done",
      );
      assertMatch(await guest.output("lspci -vv -d 1af4:"), /INTx/);
      await guest.output(
        "echo written > /tmp/page && dd if=/tmp/page of=/dev/vda conv=fsync",
      );
      assertMatch(await guest.output("head -n 1 /dev/vda"), /written/);
      await guest.output(
        "ip link set eth0 up && ip addr replace 10.0.2.15/24 dev eth0 && ping -c 1 10.0.2.2",
      );
    };
    for (let round = 0; round < 2; round++) {
      await use();
      for (const { id } of [disk!, card!]) {
        const deleted = guest.nextQmpEvent(
          "DEVICE_DELETED",
          ({ data }) => data?.["device"] === id,
        );
        const from = serving.outboard.stderr.length;
        await guest.qmp("device_del", { id });
        await deleted;
        await serving.waitForLog(/client gone/, from);
      }
      await guest.output(
        "while [ -e /sys/block/vda ] || [ -e /sys/class/net/eth0 ]; do :; done",
      );
      for (const { path, properties } of [disk!, card!]) {
        await guest.qmp("device_add", {
          ...{ driver: "vfio-user-pci", ...properties },
          socket: { type: "unix", path },
        });
      }
    }
    await use();
    const log = serving.outboard.stderr;
    assert(!/warning|error/.test(log), log);
  },
);
