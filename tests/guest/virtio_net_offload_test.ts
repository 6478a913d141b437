import { assert, assertEquals, assertMatch } from "@std/assert";
import { Guest, vfioUserDevice } from "./guest.ts";
import { guestTests } from "./harness.ts";
import {
  assertPacketsAgree,
  assertTapTransfers,
  devicePackets,
  interruptCount,
  ping,
  TAP_HOST,
} from "./net_checks.ts";
import { hostTap, TapPeer } from "./tap_peer.ts";

const tapTest = await guestTests({ hosts: [hostTap()] });

const GUEST = "192.0.2.2";
const QUEUES = 4;
const FLOWS = 16;
const FLOW_BYTES = 128 * 1024;
const PINGERS = 20;
const PINGS = 10;
const DATAGRAM_FILE_BYTES = 50_000;

/** Offloads that the driver has switched on, as ethtool(8) names them. */
async function offloadsOn(guest: Guest): Promise<Set<string>> {
  const text = await guest.output("ethtool -k eth0");
  return new Set(
    [...text.matchAll(/^\s*([\w-]+): on\b/gm)].map(([, name]) => name!),
  );
}

/** Sends so many flows to the host's echo at once, and wants all their bytes back. */
async function assertFlows(guest: Guest, peer: TapPeer): Promise<void> {
  const { port } = await peer.ask({ ask: "echo" });
  const flow =
    `head -c ${FLOW_BYTES} /dev/zero | nc ${TAP_HOST} ${port} | wc -c`;
  const output = await guest.output(
    `for i in $(seq ${FLOWS}); do (${flow}) & done; wait`,
    { timeoutMs: 120_000 },
  );
  assertEquals(
    output.trim().split(/\s+/),
    new Array(FLOWS).fill(String(FLOW_BYTES)),
  );
}

/** Has many processes ping the host at once; how often the card interrupted, for how many packets, in what time. */
async function interruptsOfPings(
  guest: Guest,
  peer: TapPeer,
): Promise<{ interrupts: number; packets: number; tookMs: number }> {
  const from = performance.now();
  const input = /virtio\d+-input\.0/;
  const before = [
    await interruptCount(guest, input),
    (await peer.counters())["rxPackets"]!,
  ];
  const pings = `ping -c ${PINGS} -i 0.2 -W 30 ${TAP_HOST} > /dev/null`;
  await guest.output(
    `for i in $(seq ${PINGERS}); do ${pings} & done; wait`,
    { timeoutMs: 120_000 },
  );
  const interrupts = await interruptCount(guest, input) - before[0]!;
  const packets = (await peer.counters())["rxPackets"]! - before[1]!;
  assert(packets >= PINGS * PINGERS, `${packets} packets`);
  return { interrupts, packets, tookMs: performance.now() - from };
}

/** Moves a file each way in datagrams of a size, and compares. */
async function assertDatagrams(
  guest: Guest,
  peer: TapPeer,
  blockBytes: number,
): Promise<void> {
  const { port, sha256 } = await peer.ask({
    ask: "tftp",
    lengthBytes: DATAGRAM_FILE_BYTES,
  });
  const tftp = `tftp -b ${blockBytes} -l /tmp/file -r file`;
  await guest.output(
    `${tftp} -g ${TAP_HOST} ${port} && ${tftp} -p ${TAP_HOST} ${port}`,
  );
  const sum = await guest.output("sha256sum < /tmp/file");
  assertEquals(sum.split(" ")[0], sha256);
  assertEquals(await peer.ask({ ask: "put" }), { sha256 });
}

tapTest("virtio-net leaves work to the network", async ({ kit, t }) => {
  // Pairs 0 and 2 are served by one IOThread, the others by another.
  await using peer = await TapPeer.start(
    kit,
    `,queues=${QUEUES},iothread=0:1`,
    ["--iothreads", "2"],
  );
  await using guest = await Guest.boot({
    kit,
    devices: [vfioUserDevice(peer.socket)],
  });
  await guest.output(
    `ip addr add ${GUEST}/24 dev eth0 && ip link set eth0 up`,
  );

  await t.step("offers the offloads of a TAP", async () => {
    const on = await offloadsOn(guest);
    for (
      const name of [
        "rx-checksumming",
        "tx-checksumming",
        "tcp-segmentation-offload",
        "tx-tcp-segmentation",
        "tx-tcp6-segmentation",
        "tx-tcp-ecn-segmentation",
        "rx-gro-hw",
      ]
    ) {
      assert(on.has(name), `${name} is off: ${[...on]}`);
    }
  });

  await t.step("moves 64 MiB each way in large frames", async () => {
    await assertTapTransfers(guest, peer);
    const counters = await peer.counters();
    for (const way of ["rx", "tx"]) {
      // How large they get on average is a matter of timing, and of the bench.
      const large = counters[`${way}GsoPackets`]!;
      assert(large > 100, `${way}: ${large} large frames`);
    }
    assertEquals(counters["txDroppedBadHeader"], 0);
    assertEquals(counters["txDroppedOversized"], 0);
    assertEquals(counters["backend.txDropped"], 0);
  });

  await t.step("moves 64 MiB each way with offloads off", async () => {
    await guest.output(
      "ethtool -K eth0 tso off gso off gro off rx-gro-hw off tx off",
    );
    const on = await offloadsOn(guest);
    assert(!on.has("tcp-segmentation-offload") && !on.has("rx-gro-hw"));
    const before = await peer.counters();
    await assertTapTransfers(guest, peer);
    const after = await peer.counters();
    for (const name of ["rxGsoPackets", "txGsoPackets"]) {
      assertEquals(after[name], before[name], name);
    }
    await guest.output(
      "ethtool -K eth0 tso on gso on gro on rx-gro-hw on tx on",
    );
    assert((await offloadsOn(guest)).has("rx-gro-hw"));
  });

  await t.step("exchanges datagrams with right checksums", async () => {
    // The last size takes several IP fragments each.
    for (const blockBytes of [100, 1468, 6000]) {
      await assertDatagrams(guest, peer, blockBytes);
    }
    const snmp = await guest.output("grep ^Udp: /proc/net/snmp");
    const [names, values] = snmp.trim().split("\n")
      .map((line) => line.split(" "));
    const value = (name: string) => Number(values![names!.indexOf(name)]);
    assertEquals(value("InCsumErrors"), 0);
    assert(value("InDatagrams") > 100, snmp);
  });

  await t.step("spreads flows over several queues", async () => {
    assertMatch(
      await guest.output("ethtool -l eth0"),
      /maximums:[^]*Combined:\s*4\b[^]*settings:[^]*Combined:\s*1\b/,
    );
    const before = await peer.counters();
    for (let pair = 1; pair < QUEUES; pair++) {
      assertEquals(before[`pair${pair}.rxPackets`], 0);
    }
    await guest.output(`ethtool -L eth0 combined ${QUEUES}`);
    await assertFlows(guest, peer);
    const after = await peer.counters();
    for (const way of ["rx", "tx"]) {
      const used = Array.from({ length: QUEUES }, (_, pair) => {
        const name = `pair${pair}.${way}Packets`;
        return after[name]! - before[name]!;
      });
      // Sixteen flows on four queues by hash: that two stay empty is as good as impossible.
      assert(used.filter((n) => n > 5).length >= 3, `${way}: ${used}`);
    }
    await guest.output("ethtool -L eth0 combined 1");
    assertEquals((await ping(guest, TAP_HOST, 3)).received, 3);
  });

  await t.step("uses as many queues as it is told", async () => {
    const before = await devicePackets(peer, QUEUES);
    await guest.output("ethtool -L eth0 combined 2");
    assertMatch(
      await guest.output("ethtool -l eth0"),
      /settings:[^]*Combined:\s*2\b/,
    );
    await assertFlows(guest, peer);
    const after = await devicePackets(peer, QUEUES);
    for (const way of ["rx", "tx"] as const) {
      const used = after[way].map((count, pair) => count - before[way][pair]!);
      assert(used[0]! > 5 && used[1]! > 5, `${way}: ${used}`);
      assertEquals(used.slice(2), [0, 0], way);
    }
    await guest.output("ethtool -L eth0 combined 1");
    // The ends of flows may have come on the others until now.
    const one = await devicePackets(peer, QUEUES);
    assertEquals((await ping(guest, TAP_HOST, 3)).received, 3);
    const still = await devicePackets(peer, QUEUES);
    assertEquals(still.rx.slice(1), one.rx.slice(1));
    assertEquals(still.tx.slice(1), one.tx.slice(1));
  });

  await t.step("counts the packets that the driver counts", async () => {
    await assertPacketsAgree(guest, peer, QUEUES);
    // It lists the queues in use, and of packets only those of XDP.
    await guest.output(`ethtool -L eth0 combined ${QUEUES}`);
    const listed = await guest.output("ethtool -S eth0");
    for (let queue = 0; queue < QUEUES; queue++) {
      // Named tx_queue_0_kicks by kernels before 6.8.
      assertMatch(listed, new RegExp(`\\btx(_queue_)?${queue}_kicks: [1-9]`));
      assertMatch(listed, new RegExp(`\\brx(_queue_)?${queue}_drops: 0\\b`));
    }
    await guest.output("ethtool -L eth0 combined 1");
  });

  await t.step("tells what it is, and the size of its rings", async () => {
    assertMatch(
      await guest.output("ethtool -i eth0"),
      /driver: virtio_net\b[^]*bus-info: 0000:[\da-f]{2}:[\da-f]{2}\.\d/,
    );
    assertMatch(
      await guest.output("ethtool -g eth0"),
      /maximums:\s+RX:\s*256\b[^]*TX:\s*256\b[^]*settings:\s+RX:\s*256\b[^]*TX:\s*256\b/,
    );
  });

  await t.step("delays interrupts as asked", async () => {
    const quick = await ping(guest, TAP_HOST, 10);
    assert(quick.minMs < 50, `${quick.minMs} ms`);
    await guest.output("ethtool -C eth0 rx-usecs 60000 rx-frames 100");
    assertMatch(
      await guest.output("ethtool -c eth0"),
      /rx-usecs:\s*60000\b[^]*rx-frames:\s*100\b/,
    );
    const slow = await ping(guest, TAP_HOST, 10);
    assertEquals(slow.received, 10);
    assert(slow.averageMs > 50, `${slow.averageMs} ms, was ${quick.averageMs}`);
    const { interrupts, packets, tookMs } = await interruptsOfPings(
      guest,
      peer,
    );
    // One when the time is up and one for so many packets; two that began before or end after.
    const most = tookMs / 60 + packets / 100 + 2;
    assert(
      interrupts <= most,
      `${interrupts} interrupts for ${packets} packets in ${tookMs} ms`,
    );
    await guest.output("ethtool -C eth0 rx-usecs 0 rx-frames 0");
    const again = await ping(guest, TAP_HOST, 10);
    assert(again.minMs < 50, `${again.minMs} ms`);
  });

  await t.step("survives unbinding and binding with all that on", async () => {
    await guest.output(
      "D=$(basename $(readlink -f /sys/class/net/eth0/device)); cd /sys/bus/virtio/drivers/virtio_net; echo $D > unbind; echo $D > bind",
    );
    await guest.output(
      `ip addr add ${GUEST}/24 dev eth0 && ip link set eth0 up`,
    );
    assertEquals((await ping(guest, TAP_HOST, 3)).received, 3);
    assertEquals((await peer.counters())["failures"], 0);
  });
});
