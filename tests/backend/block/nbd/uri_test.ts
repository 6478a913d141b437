import { assertEquals, assertThrows } from "@std/assert";
import { BLOCK_OPTIONS } from "../../../../src/backend/block/options.ts";
import { parseNbdUri } from "../../../../src/backend/block/nbd/uri.ts";

const tcp = (host: string, port: number, exportName: string) => ({
  path: null,
  host,
  port,
  exportName,
});
const unix = (path: string, exportName: string) => ({
  path,
  host: "",
  port: 0,
  exportName,
});

for (
  const [uri, location] of [
    ["nbd://example.com:10810/disk", tcp("example.com", 10810, "disk")],
    ["nbd://example.com/disk", tcp("example.com", 10809, "disk")],
    ["nbd://example.com/", tcp("example.com", 10809, "")],
    ["nbd://example.com", tcp("example.com", 10809, "")],
    ["nbd://example.com//disk", tcp("example.com", 10809, "/disk")],
    [
      "nbd://example.com/hello%20world",
      tcp("example.com", 10809, "hello world"),
    ],
    ["NBD://[::1]:7/x", tcp("::1", 7, "x")],
    ["tcp://127.0.0.1:1/x", tcp("127.0.0.1", 1, "x")],
    ["nbd+unix:///disk?socket=nbd.sock", unix("nbd.sock", "disk")],
    ["nbd+unix:///?socket=/run/a%20b", unix("/run/a b", "")],
    ["nbd+unix://?socket=/run/nbd", unix("/run/nbd", "")],
    ["nbd+unix:///d?x=1&socket=/run/nbd&y=2", unix("/run/nbd", "d")],
    ["unix:/run/nbd.sock", unix("/run/nbd.sock", "")],
    ["unix:/run/nbd.sock?disk", unix("/run/nbd.sock", "disk")],
    ["unix:nbd.sock?a?b", unix("nbd.sock", "a?b")],
  ] as const
) {
  Deno.test(`parseNbdUri takes ${uri}`, () => {
    assertEquals(parseNbdUri(uri), location);
  });
}

for (
  const [uri, message] of [
    ["", "is wanted"],
    ["/run/nbd.sock", "is wanted"],
    ["http://example.com", "is wanted"],
    ["nbd:example.com", "is wanted"],
    ["nbd://", "is wanted"],
    ["nbd://host:0", "a port is from 1 to 65535"],
    ["nbd://host:65536", "a port is from 1 to 65535"],
    ["nbd://host:x", "is wanted"],
    ["nbd://user@host", "is wanted"],
    ["nbd://host/%zz", "followed by no two digits"],
    ["nbd://host/a%00b", "NUL"],
    [`nbd://host/${"x".repeat(4097)}`, "longer than 4096"],
    ["nbds://host", "TLS is not spoken"],
    ["nbds+unix:///?socket=x", "TLS is not spoken"],
    ["nbd+unix:///disk", "the socket is missing"],
    ["unix:", "the path of the socket is missing"],
    [`unix:/${"x".repeat(107)}`, "107 bytes"],
  ] as const
) {
  Deno.test(`parseNbdUri refuses ${uri.slice(0, 40)}`, () => {
    assertThrows(() => parseNbdUri(uri), Error, message);
  });
}

Deno.test("BLOCK_OPTIONS.parse checks the options of an NBD client", () => {
  assertEquals(BLOCK_OPTIONS.parse({ nbd: "unix:/run/nbd" }), {
    kind: "nbd",
    uri: "unix:/run/nbd",
    timeoutMs: 120_000,
    readonly: false,
    logicalBlockBytes: 512,
    physicalBlockBytes: null,
  });
  const nbd = "nbd://host";
  const options = BLOCK_OPTIONS.parse({ nbd, timeout: "0" });
  assertEquals(options.kind === "nbd" && options.timeoutMs, 0);
  for (const timeout of ["x", "-1", "1.5", "", "9999999"]) {
    assertThrows(
      () => BLOCK_OPTIONS.parse({ nbd, timeout }),
      Error,
      "0 to 999999 seconds are wanted",
    );
  }
  assertThrows(() => BLOCK_OPTIONS.parse({ nbd: "x" }), Error, "nbd=x");
  assertThrows(
    () => BLOCK_OPTIONS.parse({ memory: "1M", timeout: "1" }),
    Error,
    "it needs nbd",
  );
});
