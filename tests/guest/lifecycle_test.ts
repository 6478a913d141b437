import { assert, assertEquals } from "@std/assert";
import { startQemu } from "./bare_qemu.ts";
import { Guest, vfioUserDevice } from "./guest.ts";
import { guestTests } from "./harness.ts";
import { assertPing, dhcp, DHCP_FILES, ping } from "./net_checks.ts";
import { hostLibslirp } from "./provision.ts";
import { Serving } from "./serving.ts";

const slirpTest = await guestTests({ hosts: [hostLibslirp()] });
import { until } from "../until.ts";

slirpTest("a killed QEMU makes room for the next", async ({ kit, t }) => {
  await using serving = await Serving.start({
    devices: ["virtio-net"],
    user: "libslirp",
  });
  const devices = [vfioUserDevice(serving.sockets[0]!)];

  await t.step("QEMU is killed in use and another takes over", async () => {
    {
      await using first = await Guest.boot({ kit, devices, files: DHCP_FILES });
      await dhcp(first);
      // In the middle of traffic.
      await first.output("ping -A 10.0.2.2 > /dev/null 2>&1 &");
      await first.kill("SIGKILL");
    }
    await using second = await Guest.boot({ kit, devices, files: DHCP_FILES });
    assertEquals(await dhcp(second), "10.0.2.15");
    await assertPing(second, "10.0.2.2", 3);
    const from = serving.outboard.stderr.length;
    await second.kill("SIGKILL");
    await serving.waitForLog(/client gone/, from);
  });

  await t.step("20 rounds leave nothing behind", async () => {
    const connectAndKill = async () => {
      const from = serving.outboard.stderr.length;
      const qemu = startQemu(kit, devices);
      try {
        await serving.waitForLog(/client connected/, from);
        // Mapped its memory: then there is something to leave behind.
        await until("its memory is mapped", async () => {
          if (await qemu.hasExited()) throw new Error(await qemu.stderr());
          return (await serving.resources()).mappings !== idle.mappings;
        });
      } finally {
        await qemu.kill();
      }
      await serving.waitForLog(/client gone/, from);
    };
    const idle = await serving.resources();
    await connectAndKill();
    const before = await serving.resources();
    for (let round = 0; round < 20; round++) await connectAndKill();
    assertEquals(await serving.resources(), before);
    assertEquals(before, idle);
  });
});

slirpTest(
  "two devices in one process do not disturb each other",
  async ({ kit }) => {
    await using serving = await Serving.start({
      devices: ["virtio-net", "virtio-net,id=second"],
      user: "libslirp",
    });
    const boot = (i: number) =>
      Guest.boot({
        kit,
        devices: [vfioUserDevice(serving.sockets[i]!)],
        files: DHCP_FILES,
      });
    await using first = await boot(0);
    await using second = await boot(1);
    await dhcp(first);
    await dhcp(second);
    // The second is stopped in the middle of traffic in both directions, its queues full of work.
    await second.output("ping -A 10.0.2.2 > /dev/null 2>&1 &");
    const together = await ping(first, "10.0.2.2", 20);
    second.signal("SIGSTOP");
    const alone = await ping(first, "10.0.2.2", 20);
    second.signal("SIGCONT");
    assertEquals(together.received, 20);
    assertEquals(alone.received, 20);
    // Had the loop waited for the stopped VM, no ping would have been quick.
    assert(
      alone.minMs < 1000,
      `ping took ${alone.minMs} ms and more beside a stopped VM, ${together.minMs} ms beside a running one`,
    );
    await second.output("kill $(pidof ping)");
    await assertPing(second, "10.0.2.2", 3);
  },
);
