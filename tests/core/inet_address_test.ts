import { assertEquals } from "@std/assert";
import fc from "fast-check";
import {
  formatInetAddress,
  isAnyAddress,
  isGroupAddress,
  parseInetAddress,
} from "../../src/core/inet_address.ts";

const ONE = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

Deno.test("parseInetAddress takes numeric addresses of both families, and localhost", () => {
  assertEquals(parseInetAddress("192.0.2.7:4444"), {
    host: [192, 0, 2, 7],
    port: 4444,
  });
  assertEquals(parseInetAddress("localhost:1"), {
    host: [127, 0, 0, 1],
    port: 1,
  });
  assertEquals(parseInetAddress("[::1]:65535"), { host: ONE, port: 65535 });
  assertEquals(parseInetAddress("[2001:DB8::7]:9")!.host, [
    ...[0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7],
  ]);
  assertEquals(parseInetAddress("[::ffff:192.0.2.7]:9")!.host.slice(10), [
    ...[0xff, 0xff, 192, 0, 2, 7],
  ]);
  assertEquals(parseInetAddress("[::]:9")!.host, new Array(16).fill(0));
});

Deno.test("parseInetAddress refuses everything else", () => {
  for (
    const text of [
      "",
      ":80",
      "80",
      "192.0.2.7",
      "192.0.2.7:",
      "192.0.2.7:0",
      "192.0.2.7:65536",
      "192.0.2.7:+80",
      "192.0.2:80",
      "192.0.2.256:80",
      "192.0.02.7:80",
      "0x7f.0.0.1:80",
      "::1:80",
      "[::1:80",
      "[::1]80",
      "[1::2::3]:80",
      "[12345::]:80",
      "[192.0.2.7]:80",
      "[::1%lo]:80",
      "example.org:80",
      "[::1]]:80",
    ]
  ) assertEquals(parseInetAddress(text), null, text);
});

Deno.test("formatInetAddress and parseInetAddress are each other's inverse", () => {
  const host = fc.oneof(
    fc.array(fc.nat(255), { minLength: 4, maxLength: 4 }),
    fc.array(fc.constantFrom(0, 0, 0, 1, 0xab, 255), {
      minLength: 16,
      maxLength: 16,
    }),
  );
  const port = fc.integer({ min: 1, max: 65535 });
  const property = fc.property(host, port, (host, port) => {
    const text = formatInetAddress({ host, port });
    assertEquals(parseInetAddress(text), { host, port }, text);
  });
  fc.assert(property, { numRuns: 1000, verbose: true });
});

Deno.test("isAnyAddress and isGroupAddress tell what is no single host", () => {
  const of = (text: string) => parseInetAddress(text)!;
  assertEquals(isAnyAddress(of("0.0.0.0:1")), true);
  assertEquals(isAnyAddress(of("[::]:1")), true);
  assertEquals(isAnyAddress(of("[::1]:1")), false);
  assertEquals(isGroupAddress(of("224.0.0.1:1")), true);
  assertEquals(isGroupAddress(of("239.255.255.255:1")), true);
  assertEquals(isGroupAddress(of("255.255.255.255:1")), true);
  assertEquals(isGroupAddress(of("[ff02::1]:1")), true);
  assertEquals(isGroupAddress(of("240.0.0.1:1")), false);
  assertEquals(isGroupAddress(of("[::1]:1")), false);
});
