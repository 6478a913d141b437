import { assert, assertEquals, assertMatch } from "@std/assert";
import { Guest, vfioUserDevice } from "./guest.ts";
import { guestTest, guestTests } from "./harness.ts";
import { freeTcpPort } from "../ports.ts";
import { until } from "../until.ts";
import {
  assertBound,
  assertEcho,
  assertPing,
  assertTransfers,
  dhcp,
  DHCP_FILES,
  interruptCount,
  ping,
} from "./net_checks.ts";
import { whileMoving } from "./moving.ts";
import { hostLibslirp } from "./provision.ts";
import { Serving } from "./serving.ts";

const slirpTest = await guestTests({ hosts: [hostLibslirp()] });

slirpTest("virtio-net through libslirp", async ({ kit, t }) => {
  await using serving = await Serving.start({
    devices: ["virtio-net,mac=52:54:00:12:34:56,mtu=1400"],
    user: "libslirp",
    args: ["--iothreads", "2"],
  });
  await using guest = await Guest.boot({
    kit,
    devices: [vfioUserDevice(serving.sockets[0]!)],
    files: DHCP_FILES,
  });

  await t.step("is bound with MSI-X and its own address and MTU", async () => {
    await assertBound(guest);
    assertEquals(
      (await guest.output("cat /sys/class/net/eth0/address")).trim(),
      "52:54:00:12:34:56",
    );
    assertEquals(
      (await guest.output("cat /sys/class/net/eth0/mtu")).trim(),
      "1400",
    );
  });

  await t.step("gets an address by DHCP and reaches the gateway", async () => {
    assertEquals(await dhcp(guest), "10.0.2.15");
    const before = await interruptCount(guest, /virtio\d+-input/);
    // Each after the answer to the one before: answers that come together may share an interrupt.
    await guest.output(
      "for i in $(seq 10); do ping -c 1 -W 30 10.0.2.2 > /dev/null || exit 1; done",
    );
    const after = await interruptCount(guest, /virtio\d+-input/);
    assert(after - before >= 10, `${after - before} interrupts for 10 answers`);
  });

  await t.step("moves 64 MiB each way unchanged", async () => {
    await assertTransfers(guest, "127.0.0.1", "10.0.2.2");
  });

  await t.step("keeps its connections while it changes threads", async () => {
    await whileMoving(
      (line) => serving.control(line),
      ["virtio-net0"],
      () => assertTransfers(guest, "127.0.0.1", "10.0.2.2"),
    );
  });

  await t.step("link goes down and up at run time", async () => {
    const carrier = async () =>
      (await guest.output("cat /sys/class/net/eth0/carrier")).trim();
    assertEquals(await carrier(), "1");
    await serving.control("virtio-net0 link down");
    await guest.output(
      "until [ $(cat /sys/class/net/eth0/carrier) = 0 ]; do :; done",
    );
    assertEquals((await ping(guest, "10.0.2.2", 1, 5)).received, 0);
    await serving.control("virtio-net0 link up");
    await guest.output(
      "until [ $(cat /sys/class/net/eth0/carrier) = 1 ]; do :; done",
    );
    await assertPing(guest, "10.0.2.2", 3);
    const { output } = await guest.run("ethtool eth0");
    assertMatch(output, /Link detected: yes/);
  });

  await t.step("takes filter, VLAN and address changes", async () => {
    // A kernel that boots on a busy machine complains of its clocks.
    const lines = Number(await guest.output("dmesg | wc -l"));
    await guest.output("ip link set eth0 promisc on");
    await guest.output("ip link set eth0 promisc off");
    await guest.output("ip link set eth0 allmulticast on");
    await guest.output("ip link set eth0 allmulticast off");
    await guest.output(
      "ip link add link eth0 name eth0.7 type vlan id 7 && ip link set eth0.7 up && ip link del eth0.7",
    );
    await guest.output("ip link set eth0 address 52:54:00:aa:bb:cc");
    await assertPing(guest, "10.0.2.2", 3);
    const complaints = `dmesg | tail -n +${lines + 1} | grep -i fail || :`;
    assertEquals((await guest.output(complaints)).trim(), "");
  });

  await t.step("survives unbinding and binding the driver", async () => {
    await guest.output(
      "D=$(basename $(readlink -f /sys/class/net/eth0/device)); cd /sys/bus/virtio/drivers/virtio_net; for i in 1 2 3; do echo $D > unbind; echo $D > bind; done",
    );
    assertEquals(await dhcp(guest), "10.0.2.15");
    await assertPing(guest, "10.0.2.2", 3);
  });

  await t.step("survives a reboot of the guest", async () => {
    await guest.reboot();
    assertEquals(await dhcp(guest), "10.0.2.15");
    await assertPing(guest, "10.0.2.2", 3);
  });

  await t.step(
    "has its address and network again when its network dies",
    async () => {
      const before = await serving.counters("virtio-net0");
      Deno.kill(before["backend.pid"]!, "SIGKILL");
      await until(
        "the next process",
        async () =>
          (await serving.counters("virtio-net0"))["backend.starts"]! >
            before["backend.starts"]!,
      );
      assertEquals(await dhcp(guest), "10.0.2.15");
      await assertPing(guest, "10.0.2.2", 3);
      assertMatch(serving.outboard.stderr, /process has ended \(signal 9\)/);
    },
  );

  await t.step("counts, and complains of nothing else", async () => {
    const counters = await serving.counters("virtio-net0");
    assert(counters["rxPackets"]! > 1000, JSON.stringify(counters));
    assert(counters["txPackets"]! > 1000, JSON.stringify(counters));
    assert(counters["rxGsoPackets"]! > 100, JSON.stringify(counters));
    assert(counters["txGsoPackets"]! > 100, JSON.stringify(counters));
    assertEquals(counters["txDroppedBadHeader"], 0);
    const lines = serving.outboard.stderr.split("\n");
    const complaints = lines.filter((line) => /warning|error/.test(line));
    assertEquals(complaints.length, 1, complaints.join("\n"));
  });
});

slirpTest("virtio-net forwards ports of the host", async ({ kit }) => {
  const port = freeTcpPort();
  await using serving = await Serving.start({
    devices: [`virtio-net,hostfwd=tcp:127.0.0.1:${port}-:7`],
    user: "libslirp",
  });
  await using guest = await Guest.boot({
    kit,
    machine: "pc",
    devices: [vfioUserDevice(serving.sockets[0]!)],
    files: DHCP_FILES,
  });
  await dhcp(guest);
  await guest.output(
    "(nc -ll -p 7 -e cat > /dev/null 2>&1 &); until netstat -ltn | grep -q :7; do :; done",
  );
  using conn = await Deno.connect({ hostname: "127.0.0.1", port });
  await assertEcho(conn);
});

guestTest("virtio-net through the embedded gateway", async ({ kit }) => {
  await using serving = await Serving.start({
    devices: ["virtio-net"],
  });
  await using guest = await Guest.boot({
    kit,
    devices: [vfioUserDevice(serving.sockets[0]!)],
    files: DHCP_FILES,
  });
  await assertBound(guest);
  assertEquals(await dhcp(guest), "10.0.2.15");
  await assertPing(guest, "10.0.2.2");
  assertMatch(serving.outboard.stderr, /built-in gateway/);
});

guestTest(
  "virtio-net without shared memory tells how to share it",
  async ({ kit }) => {
    await using serving = await Serving.start({
      devices: ["virtio-net"],
    });
    await using guest = await Guest.boot({
      kit,
      sharedMemory: false,
      devices: [vfioUserDevice(serving.sockets[0]!)],
    });
    await serving.waitForLog(/guest RAM is not shared/);
    assertMatch(serving.outboard.stderr, /share=on/);
    await guest.output("true");
  },
);
