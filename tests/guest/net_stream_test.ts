import { assert, assertEquals } from "@std/assert";
import { Guest, vfioUserDevice } from "./guest.ts";
import { guestTest } from "./harness.ts";
import { assertBound, assertPing } from "./net_checks.ts";
import { Serving } from "./serving.ts";

guestTest(
  "virtio-net on net=stream talks to QEMU's own card",
  async ({ kit, t }) => {
    const folder = await Deno.makeTempDir({ prefix: "outboard-stream-" });
    const path = `${folder}/net.sock`;
    try {
      // QEMU removes its socket when it quits in order, which these guests never do.
      await using serving = await Serving.start({
        devices: [`virtio-net,net=stream,path=${path},reconnect-ms=200`],
      });
      await using ours = await Guest.boot({
        kit,
        devices: [vfioUserDevice(serving.sockets[0]!)],
      });
      await ours.output(
        "ip addr add 198.51.100.1/24 dev eth0 && ip link set eth0 up",
      );
      const carrier = async (up: 0 | 1) => {
        await ours.output(
          `until [ $(cat /sys/class/net/eth0/carrier) = ${up} ]; do :; done`,
        );
      };
      await t.step("has no link before", () => carrier(0));
      await t.step(
        "connects once the other side is there, and pings",
        async () => {
          await assertBound(ours);
          await using theirs = await bootWithStream(kit, path);
          await carrier(1);
          await assertPing(ours, "198.51.100.2", 5);
          await assertPing(theirs, "198.51.100.1", 5);
          // Frames of the full size, and fragments of a packet that is longer.
          await ours.output("ping -c 3 -W 5 -s 1472 198.51.100.2");
          await ours.output("ping -c 3 -W 5 -s 20000 198.51.100.2");
          assertEquals(
            (await serving.counters("virtio-net0"))["backend.connected"],
            1,
          );
        },
      );
      await Deno.remove(path);
      await t.step("has no link when it has gone", () => carrier(0));
      await t.step("connects anew to the next", async () => {
        await using _theirs = await bootWithStream(kit, path);
        await carrier(1);
        await assertPing(ours, "198.51.100.2", 3);
        const counters = await serving.counters("virtio-net0");
        assertEquals(counters["backend.connections"], 2);
        assertEquals(counters["backend.rxBadLengths"], 0);
        assert(counters.rxPackets! > 20, JSON.stringify(counters));
      });
    } finally {
      await Deno.remove(folder, { recursive: true });
    }
  },
);

/** A guest with a card of QEMU's own, which serves the stream. */
async function bootWithStream(
  kit: Parameters<typeof Guest.boot>[0]["kit"],
  path: string,
): Promise<Guest> {
  const netdev = { type: "stream", id: "n", server: true };
  const addr = { type: "unix", path };
  const guest = await Guest.boot({
    kit,
    sharedMemory: false,
    qemuArgs: ["-netdev", JSON.stringify({ ...netdev, addr })],
    devices: ["virtio-net-pci,netdev=n"],
  });
  await guest.output(
    "ip addr add 198.51.100.2/24 dev eth0 && ip link set eth0 up",
  );
  return guest;
}
