import { assertEquals, assertMatch, assertThrows } from "@std/assert";
import {
  formatMac,
  NetConfig,
  randomMac,
  VIRTIO_NET_OPTIONS,
} from "../../../devices/virtio_net/config.ts";
import { fakeContext } from "../../../src/testing/fake_context.ts";

const DEFAULT_RINGS = {
  packed: false,
  inOrder: false,
  eventIdx: true,
  indirect: true,
  notificationData: false,
  iommuPlatform: true,
  msix: true,
  doorbells: "auto" as const,
};

Deno.test("VIRTIO_NET_OPTIONS.parse has sensible defaults", () => {
  const options = VIRTIO_NET_OPTIONS.parse({ net: "none" });
  assertEquals(options, {
    mac: null,
    mtu: 1500,
    linkUp: true,
    queueSize: 256,
    txDelayUsec: 100,
    rxReliefUsec: 5000,
    queuePairs: 1,
    offloads: true,
    rings: DEFAULT_RINGS,
    net: { net: "none" },
  });
});

Deno.test("VIRTIO_NET_OPTIONS.parse takes every option of the card", () => {
  const options = VIRTIO_NET_OPTIONS.parse({
    mac: "52:54:00:AB-cd:ef",
    mtu: "9000",
    link: "down",
    "queue-size": "1024",
    "tx-delay": "0",
    "rx-relief": "200",
    queues: "8",
    offloads: "off",
    packed: "on",
    net: "none",
  });
  assertEquals(options, {
    mac: [0x52, 0x54, 0, 0xab, 0xcd, 0xef],
    mtu: 9000,
    linkUp: false,
    queueSize: 1024,
    txDelayUsec: 0,
    rxReliefUsec: 200,
    queuePairs: 8,
    offloads: false,
    rings: { ...DEFAULT_RINGS, packed: true },
    net: { net: "none" },
  });
  assertEquals(structuredClone(options), options);
});

Deno.test("VIRTIO_NET_OPTIONS.parse hands network options on", () => {
  const { net } = VIRTIO_NET_OPTIONS.parse({
    net: "user",
    hostfwd: ["tcp::2222-:22", "udp::5353-:53"],
  });
  assertEquals(net.net === "user" && net.hostForwards.length, 2);
  assertThrows(
    () => VIRTIO_NET_OPTIONS.parse({ net: "bridge" }),
    Error,
    "it is user, tap",
  );
});

for (
  const [options, message] of [
    [{ "tx-delay": "10001" }, "0 to 10000 microseconds"],
    [{ "tx-delay": "-1" }, "0 to 10000 microseconds"],
    [{ "rx-relief": "100001" }, "0 to 100000 microseconds"],
    [{ "rx-relief": "1.5" }, "0 to 100000 microseconds"],
    [{ mac: "52:54:00:12:34" }, "six bytes are wanted"],
    [{ mac: "52:54:00:12:34:5g" }, "six bytes are wanted"],
    [{ mac: "53:54:00:12:34:56" }, "multicast"],
    [{ mac: "00:00:00:00:00:00" }, "the zero address"],
    [{ mtu: "67" }, "68 to 65521"],
    [{ mtu: "65522" }, "68 to 65521"],
    [{ mtu: "1e3" }, "68 to 65521"],
    [{ mtu: "" }, "68 to 65521"],
    [{ link: "on" }, "up or down"],
    [{ "queue-size": "100" }, "a power of two"],
    [{ "queue-size": "4" }, "from 8 to 32768"],
    [{ "queue-size": "65536" }, "from 8 to 32768"],
    [{ "queue-size": "-8" }, "a power of two"],
    [{ mtu: ["1500", "9000"] }, "give it once"],
    [{ queues: "0" }, "1 to 8 pairs"],
    [{ queues: "9" }, "1 to 8 pairs"],
    [{ queues: "2.5" }, "1 to 8 pairs"],
    [{ queues: "" }, "1 to 8 pairs"],
    [{ offloads: "yes" }, "it is on or off"],
    [
      { speed: "10" },
      "virtio-net has mac, mtu, link, tx-delay, rx-relief, queue-size, queues, offloads, net",
    ],
  ] as const
) {
  Deno.test(`VIRTIO_NET_OPTIONS.parse refuses ${JSON.stringify(options)}`, () => {
    assertThrows(
      () => VIRTIO_NET_OPTIONS.parse({ ...options, net: "none" }, "virtio-net"),
      Error,
      message,
    );
  });
}

Deno.test("VIRTIO_NET_OPTIONS.parse refuses several queues where the network has one", () => {
  assertThrows(
    () => VIRTIO_NET_OPTIONS.parse({ queues: "2" }),
    Error,
    "Cannot use queues=2 with net=user: it has one queue, several need net=tap",
  );
  assertEquals(VIRTIO_NET_OPTIONS.parse({ queues: "1" }).queuePairs, 1);
  assertEquals(
    VIRTIO_NET_OPTIONS.parse({ queues: "2", net: "tap" }).queuePairs,
    2,
  );
});

Deno.test("VIRTIO_NET_OPTIONS lists what is parsed, once each", () => {
  const names = VIRTIO_NET_OPTIONS.rows.map(({ name }) => name);
  assertEquals(new Set(names).size, names.length);
  for (
    const name of [
      "mac",
      "mtu",
      "link",
      "queue-size",
      "queues",
      "offloads",
      "net",
      "hostfwd",
    ]
  ) {
    assertEquals(names.includes(name), true, name);
  }
});

Deno.test("randomMac is locally administered and follows the context", () => {
  const a = formatMac(randomMac(fakeContext({ seed: 1 }).random));
  const b = formatMac(randomMac(fakeContext({ seed: 2 }).random));
  assertMatch(a, /^52:54:00(:[0-9a-f]{2}){3}$/);
  assertEquals(a === b, false);
  assertEquals(a, formatMac(randomMac(fakeContext({ seed: 1 }).random)));
});

Deno.test("NetConfig lays out struct virtio_net_config", () => {
  const config = new NetConfig(Uint8Array.of(2, 1, 2, 3, 4, 0xff), 9000);
  config.status = 3;
  const bytes = Array.from({ length: 12 }, (_, i) => config.read(i, 1));
  assertEquals(bytes, [2, 1, 2, 3, 4, 0xff, 3, 0, 1, 0, 0x28, 0x23]);
  assertEquals(config.read(10, 2), 9000);
  assertEquals(config.read(8, 4), 0x2328_0001);
  assertEquals(config.read(4, 4), 0x0003_ff04);
  config.setMac(Uint8Array.of(2, 0, 0, 0, 0, 0xfe));
  assertEquals(config.read(2, 4), 0xfe00_0000);
  assertEquals(config.status, 3);
});

Deno.test("NetConfig tells how many queue pairs there are", () => {
  assertEquals(new NetConfig(new Uint8Array(6), 1500, 8).read(8, 2), 8);
});
