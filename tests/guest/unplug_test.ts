/** Devices that come and go while QEMU runs. */

import { assertEquals } from "@std/assert";
import { startQemu } from "./bare_qemu.ts";
import { guestTest } from "./harness.ts";
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
