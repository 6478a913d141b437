import { assert, assertEquals, assertThrows } from "@std/assert";
import fc from "fast-check";
import { UnknownNameError } from "../../../src/core/unknown_name.ts";
import {
  formatIpv4,
  netmask,
  parseIpv4,
} from "../../../src/backend/net/frame/ipv4.ts";
import { NET_DRIVERS, NET_OPTIONS } from "../../../src/backend/net/options.ts";
import { OptionError, type OptionTexts } from "../../../src/core/options.ts";
import type { UserNetOptions } from "../../../src/backend/net/user/driver.ts";

function user(values: OptionTexts): UserNetOptions {
  const options = NET_OPTIONS.parse(values);
  if (options.net !== "user") throw new Error("not user-mode");
  return options;
}

Deno.test("NET_OPTIONS.parse without options gives QEMU's user network", () => {
  const options = user({});
  assertEquals(formatIpv4(options.network), "10.0.2.0");
  assertEquals(options.prefixLength, 24);
  assertEquals(formatIpv4(options.host), "10.0.2.2");
  assertEquals(formatIpv4(options.dns), "10.0.2.3");
  assertEquals(formatIpv4(options.dhcpStart), "10.0.2.15");
  assertEquals(options.restrict, false);
  assertEquals(options.ipv6, true);
  assertEquals(options.hostForwards, []);
});

Deno.test("NET_OPTIONS.parse gives what can be sent to a Worker", () => {
  for (
    const values of [
      { net: "none" },
      { net: "tap", ifname: "tap7", engine: "sync" },
      { hostfwd: ["tcp::2222-:22", "udp:127.0.0.1:53-10.0.2.16:53"] },
    ]
  ) {
    const options = NET_OPTIONS.parse(values);
    assertEquals(structuredClone(options), options);
  }
});

Deno.test("NET_OPTIONS.parse takes forwards with and without addresses", () => {
  const { hostForwards } = user({
    hostfwd: [
      "tcp::2222-:22",
      "udp:127.0.0.1:5353-10.0.2.16:53",
      ":127.0.0.1:80-:8080",
    ],
  });
  assertEquals(hostForwards, [
    {
      protocol: "tcp",
      hostAddress: 0,
      hostPort: 2222,
      guestAddress: parseIpv4("10.0.2.15")!,
      guestPort: 22,
    },
    {
      protocol: "udp",
      hostAddress: parseIpv4("127.0.0.1")!,
      hostPort: 5353,
      guestAddress: parseIpv4("10.0.2.16")!,
      guestPort: 53,
    },
    {
      protocol: "tcp",
      hostAddress: parseIpv4("127.0.0.1")!,
      hostPort: 80,
      guestAddress: parseIpv4("10.0.2.15")!,
      guestPort: 8080,
    },
  ]);
});

Deno.test("NET_OPTIONS.parse moves the default addresses with the subnet", () => {
  const options = user({ subnet: "192.168.76.9/24" });
  assertEquals(formatIpv4(options.network), "192.168.76.0");
  assertEquals(formatIpv4(options.host), "192.168.76.2");
  assertEquals(formatIpv4(options.dns), "192.168.76.3");
  assertEquals(formatIpv4(options.dhcpStart), "192.168.76.15");
});

function isRefusal(error: unknown): boolean {
  return error instanceof UnknownNameError ||
    error instanceof OptionError;
}

const REFUSED: readonly [OptionTexts, RegExp][] = [
  [
    { net: "bridge" },
    /^Cannot use net=bridge: it is user, tap, stream, dgram, passt or none/,
  ],
  [{ speed: "1" }, /^Cannot use option speed: a network has net,/],
  [{ net: ["user", "tap"] }, /^Cannot use net 2 times: give it once/],
  [{ ifname: "tap0" }, /^Cannot use ifname with net=user: it needs net=tap/],
  [{ net: "tap", dns: "1.2.3.4" }, /^Cannot use dns with net=tap: it needs/],
  [{ net: "none", hostfwd: "tcp::1-:1" }, /it needs net=user/],
  [{ restrict: "yes" }, /^Cannot use restrict=yes: it is on or off/],
  [{ dns: "10.0.2" }, /an address like 10\.0\.2\.2 is wanted/],
  [{ dns: "10.0.02.3" }, /an address like/],
  [{ dns: "10.0.2.2" }, /they must be three addresses/],
  [{ host: "10.0.3.2" }, /it is no host of the network 10\.0\.2\.0\/24/],
  [{ host: "10.0.2.0" }, /it is no host of the network/],
  [{ dhcpstart: "10.0.2.255" }, /it is no host of the network/],
  [{ restrict: "on", dns: "8.8.8.8" }, /it is no host of the network/],
  [{ subnet: "10.0.2.0" }, /prefix of 4 to 27/],
  [{ subnet: "10.0.2.0/28" }, /prefix of 4 to 27/],
  [{ hostname: "" }, /1 to 32 bytes/],
  [{ hostname: "a\0b" }, /without control characters/],
  [{ hostname: "x".repeat(33) }, /1 to 32 bytes/],
  [{ bootfile: "x".repeat(128) }, /1 to 127 bytes/],
  [{ hostfwd: "2222:22" }, /tcp\|udp:\[hostaddr\]:hostport-/],
  [{ hostfwd: "sctp::1-:1" }, /such as tcp:127\.0\.0\.1:2222-:22/],
  [{ hostfwd: "tcp:localhost:1-:1" }, /addresses are to be like 127\.0\.0\.1/],
  [{ hostfwd: "tcp::0-:1" }, /ports are to be from 1 to 65535/],
  [{ hostfwd: "tcp::65536-:1" }, /ports are to be from 1 to 65535/],
  [{ hostfwd: "tcp::1-:" }, /ports are to be from 1 to 65535/],
  [{ hostfwd: ["tcp::1-:1", "tcp::1-:2"] }, /is forwarded already/],
  [{ net: "tap", ifname: "" }, /1 to 15 bytes/],
  [{ net: "tap", ifname: "a/b" }, /1 to 15 bytes/],
  [{ net: "tap", ifname: "sixteen-letters!" }, /1 to 15 bytes/],
  [{ net: "tap", ifname: "t%d%d" }, /one %d for a number/],
  [{ net: "tap", ifname: "t%s" }, /one %d for a number/],
  [{ net: "tap", engine: "ring" }, /it is auto, io_uring or sync/],
];

Deno.test("NET_OPTIONS.parse says what is wrong and what would be right", () => {
  for (const [values, message] of REFUSED) {
    const error = assertThrows(() => NET_OPTIONS.parse(values), Error);
    assert(isRefusal(error), error.name);
    assert(message.test(error.message), `${error.message} for ${message}`);
    assert(!error.message.includes("\n"));
  }
});

Deno.test("NET_OPTIONS.parse returns options or throws OptionError, whatever it gets", () => {
  const keys = [
    ...NET_OPTIONS.rows.map(({ name }) => name),
    "other",
    "__proto__",
  ];
  const value = fc.oneof(
    fc.string(),
    fc.constantFrom("tap", "user", "on", "10.0.2.9", "tcp::1-:1", "1.2.3.4/9"),
    fc.array(fc.string(), { maxLength: 3 }),
  );
  fc.assert(
    fc.property(fc.dictionary(fc.constantFrom(...keys), value), (values) => {
      try {
        NET_OPTIONS.parse(values);
      } catch (error) {
        if (!isRefusal(error)) throw error;
      }
    }),
    { numRuns: 2000, verbose: true },
  );
});

Deno.test("NET_OPTIONS defaults are what NET_OPTIONS.parse assumes", () => {
  const required: Record<string, Record<string, string>> = {
    stream: { path: "x" },
    dgram: { "local-path": "x", "remote-path": "y" },
  };
  for (const [net, { options }] of Object.entries(NET_DRIVERS)) {
    const given = { net, ...required[net] };
    const defaults = Object.fromEntries(
      options.rows.flatMap(({ name, default: text }) =>
        text === undefined ? [] : [[name, text]]
      ),
    );
    // Where nothing is given, passt is looked for in more places.
    if (net === "passt") delete defaults.passt;
    assertEquals(
      NET_OPTIONS.parse({ ...given, ...defaults }),
      NET_OPTIONS.parse(given),
      net,
    );
  }
  assertEquals(NET_OPTIONS.parse({ net: "user" }), NET_OPTIONS.parse({}));
});

Deno.test("parseIpv4 and formatIpv4 are each other's inverse", () => {
  fc.assert(
    fc.property(fc.integer({ min: 0, max: 0xffff_ffff }), (address) => {
      assertEquals(parseIpv4(formatIpv4(address)), address);
    }),
    { verbose: true },
  );
});

Deno.test("netmask is unsigned for every prefix length", () => {
  assertEquals(formatIpv4(netmask(0)), "0.0.0.0");
  assertEquals(formatIpv4(netmask(9)), "255.128.0.0");
  assertEquals(formatIpv4(netmask(32)), "255.255.255.255");
});
