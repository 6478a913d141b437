import { assert, assertEquals, assertThrows } from "@std/assert";
import fc from "fast-check";
import { NET_OPTIONS } from "../../../../src/backend/net/options.ts";
import { OptionError, type OptionTexts } from "../../../../src/core/options.ts";

const LOOPBACK = [127, 0, 0, 1];

Deno.test("NET_OPTIONS.parse takes a stream's end, as client or server", () => {
  assertEquals(NET_OPTIONS.parse({ net: "stream", path: "/run/net" }), {
    net: "stream",
    endpoint: { family: "unix", path: "/run/net" },
    server: false,
    reconnectMs: 1000,
  });
  assertEquals(
    NET_OPTIONS.parse({ net: "stream", addr: "127.0.0.1:4", server: "on" }),
    {
      net: "stream",
      endpoint: { family: "inet", address: { host: LOOPBACK, port: 4 } },
      server: true,
      reconnectMs: 1000,
    },
  );
  const given = { net: "stream", path: "x", "reconnect-ms": "0" };
  assertEquals(
    (NET_OPTIONS.parse(given) as { reconnectMs: number }).reconnectMs,
    0,
  );
});

Deno.test("NET_OPTIONS.parse takes both ends of datagrams", () => {
  assertEquals(
    NET_OPTIONS.parse({ net: "dgram", "local-path": "a", "remote-path": "b" }),
    {
      net: "dgram",
      local: { family: "unix", path: "a" },
      remote: { family: "unix", path: "b" },
    },
  );
  assertEquals(
    NET_OPTIONS.parse({
      net: "dgram",
      local: "0.0.0.0:1",
      remote: "127.0.0.1:2",
    }),
    {
      net: "dgram",
      local: { family: "inet", address: { host: [0, 0, 0, 0], port: 1 } },
      remote: { family: "inet", address: { host: LOOPBACK, port: 2 } },
    },
  );
});

Deno.test("NET_OPTIONS.parse gives socket options that can be sent to a Worker", () => {
  for (
    const values of [
      { net: "stream", addr: "[::1]:5" },
      { net: "dgram", local: "127.0.0.1:1", remote: "127.0.0.1:2" },
      { net: "passt", "tcp-ports": ["22", "80:8080"] },
    ]
  ) {
    const options = NET_OPTIONS.parse(values);
    assertEquals(structuredClone(options), options);
  }
});

const REFUSED: readonly [OptionTexts, RegExp][] = [
  [{ net: "stream" }, /^Cannot use net=stream alone: it needs path=PATH/],
  [{ net: "stream", path: "a", addr: "127.0.0.1:1" }, /takes one of them/],
  [{ net: "stream", path: "" }, /1 to 107 bytes/],
  [{ net: "stream", path: "x".repeat(108) }, /1 to 107 bytes/],
  [{ net: "stream", path: "a\0b" }, /1 to 107 bytes/],
  [{ net: "stream", addr: "example.org:1" }, /names are not looked up/],
  [{ net: "stream", addr: "0.0.0.0:1" }, /nothing can be reached there/],
  [{ net: "stream", path: "a", server: "yes" }, /it is on or off/],
  [
    { net: "stream", path: "a", server: "on", "reconnect-ms": "5" },
    /it is the client that connects/,
  ],
  [{ net: "stream", path: "a", "reconnect-ms": "-1" }, /0 to 3600000/],
  [{ net: "stream", path: "a", "reconnect-ms": "" }, /0 to 3600000/],
  [{ net: "stream", path: "a", "reconnect-ms": "3600001" }, /0 to 3600000/],
  [{ net: "dgram", "local-path": "a" }, /it needs remote-path=PATH/],
  [{ net: "dgram", remote: "127.0.0.1:1" }, /it needs local-path=PATH/],
  [
    { net: "dgram", "local-path": "a", remote: "127.0.0.1:1" },
    /local-path goes with remote-path/,
  ],
  [
    { net: "dgram", "local-path": "a", "remote-path": "a" },
    /the card's own socket/,
  ],
  [{ net: "dgram", local: "[::1]:1", remote: "127.0.0.1:1" }, /both IPv4 or/],
  [
    { net: "dgram", local: "127.0.0.1:1", remote: "230.0.0.1:1" },
    /one host's address is wanted/,
  ],
  [{ net: "dgram", path: "a" }, /it needs net=stream/],
  [{ net: "stream", "tcp-ports": "22" }, /it needs net=passt/],
  [{ net: "passt", passt: "" }, /name or path is wanted/],
  [{ net: "passt", "tcp-ports": "" }, /such as tcp-ports=2222:22/],
  [{ net: "passt", "udp-ports": "-x" }, /such as udp-ports=2222:22/],
  [{ net: "passt", "tcp-ports": ["22", "80 81"] }, /ports as passt\(1\)/],
];

Deno.test("NET_OPTIONS.parse says what is wrong with a socket's options", () => {
  for (const [values, message] of REFUSED) {
    const error = assertThrows(() => NET_OPTIONS.parse(values), OptionError);
    assert(message.test(error.message), `${error.message} for ${message}`);
    assert(!error.message.includes("\n"));
  }
});

Deno.test("NET_OPTIONS.parse returns socket options or throws OptionError, whatever it gets", () => {
  const keys = ["path", "addr", "server", "local", "remote", "local-path"];
  const value = fc.oneof(
    fc.string(),
    fc.constantFrom("on", "127.0.0.1:1", "[::1]:2", "/run/x", "5"),
  );
  const net = fc.constantFrom("stream", "dgram", "passt");
  fc.assert(
    fc.property(
      net,
      fc.dictionary(fc.constantFrom(...keys, "reconnect-ms", "passt"), value),
      (net, values) => {
        try {
          NET_OPTIONS.parse({ ...values, net });
        } catch (error) {
          if (!(error instanceof OptionError)) throw error;
        }
      },
    ),
    { numRuns: 2000, verbose: true },
  );
});
