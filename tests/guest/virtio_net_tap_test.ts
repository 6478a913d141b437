import { assertEquals } from "@std/assert";
import { Guest, vfioUserDevice } from "./guest.ts";
import { guestTests } from "./harness.ts";
import { whileMoving } from "./moving.ts";
import { assertBound, assertPing, assertTapTransfers } from "./net_checks.ts";
import { hostTap, TapPeer } from "./tap_peer.ts";

const tapTest = await guestTests({ hosts: [hostTap()] });

tapTest("virtio-net through a TAP", async ({ kit, t }) => {
  await using peer = await TapPeer.start(
    kit,
    ",offloads=off",
    ["--iothreads", "2"],
  );
  await using guest = await Guest.boot({
    kit,
    devices: [vfioUserDevice(peer.socket)],
  });
  await t.step("is bound and reaches the host", async () => {
    await assertBound(guest);
    await guest.output(
      "ip addr add 192.0.2.2/24 dev eth0 && ip link set eth0 up",
    );
    await assertPing(guest, "192.0.2.1");
  });
  await t.step(
    "moves 64 MiB each way unchanged while it changes threads",
    async () => {
      await whileMoving(
        (line) => peer.control(line),
        ["virtio-net0"],
        async () => void await assertTapTransfers(guest, peer),
      );
      const counters = await peer.counters();
      assertEquals([counters["rxGsoPackets"], counters["txGsoPackets"]], [
        0,
        0,
      ]);
    },
  );
  await t.step("link state and filters reach the driver", async () => {
    await guest.output("ip link set eth0 address 02:00:00:00:00:07");
    await assertPing(guest, "192.0.2.1", 3);
  });
});
