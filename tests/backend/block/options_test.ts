import { assert, assertEquals, assertThrows } from "@std/assert";
import fc from "fast-check";
import { BLOCK_OPTIONS } from "../../../src/backend/block/options.ts";
import { UnknownNameError } from "../../../src/core/unknown_name.ts";
import { OptionError, type OptionTexts } from "../../../src/core/options.ts";
import { formatSize, parseSize } from "../../../src/core/size.ts";

const COMMON = {
  readonly: false,
  logicalBlockBytes: 512,
  physicalBlockBytes: null,
} as const;

Deno.test("BLOCK_OPTIONS.parse gives memory of 64 MiB by default", () => {
  assertEquals(BLOCK_OPTIONS.parse({}), {
    kind: "memory",
    ...COMMON,
    discard: true,
    sizeBytes: 64 << 20,
  });
  assertEquals(BLOCK_OPTIONS.parse({ memory: "1G", readonly: "on" }), {
    kind: "memory",
    ...COMMON,
    readonly: true,
    discard: true,
    sizeBytes: 1 << 30,
  });
});

Deno.test("BLOCK_OPTIONS.parse takes all that a file has", () => {
  assertEquals(BLOCK_OPTIONS.parse({ file: "disk.img" }), {
    kind: "file",
    ...COMMON,
    discard: true,
    path: "disk.img",
    createBytes: null,
    direct: false,
  });
  const all = {
    file: ["/dev/sdb"],
    create: "10G",
    cache: "none",
    discard: "ignore",
    "block-size": "4096",
    "physical-block-size": "4096",
  };
  assertEquals(BLOCK_OPTIONS.parse(all), {
    kind: "file",
    readonly: false,
    logicalBlockBytes: 4096,
    physicalBlockBytes: 4096,
    discard: false,
    path: "/dev/sdb",
    createBytes: 10 * 2 ** 30,
    direct: true,
  });
});

Deno.test("BLOCK_OPTIONS.parse takes an NBD server", () => {
  const options = BLOCK_OPTIONS.parse({ nbd: "nbd://localhost/disk" });
  assertEquals(options.kind, "nbd");
  assertEquals(options.readonly, false);
});

Deno.test("BLOCK_OPTIONS.parse says what is wrong and what would be right", () => {
  const cases: [OptionTexts, RegExp][] = [
    [{ disk: "x" }, /Cannot use option disk: storage has file, memory, nbd/],
    [{ file: ["a", "b"] }, /file 2 times: give it once/],
    [{ file: "a", memory: "1M" }, /file and memory: storage is one of/],
    [{ file: "" }, /file=""/],
    [{ file: "a\0b" }, /control characters/],
    [{ file: "x".repeat(4096) }, /1 to 4095 bytes/],
    [{ cache: "none" }, /cache with memory: it needs file/],
    [{ nbd: "u", discard: "unmap" }, /discard with nbd/],
    [{ file: "a", cache: "unsafe" }, /it is writeback or none/],
    [{ readonly: "yes" }, /readonly=yes: it is on or off/],
    [{ discard: "on" }, /unmap or ignore/],
    [{ "block-size": "1024" }, /block-size=1024: it is 512 or 4096/],
    [
      { "block-size": "4096", "physical-block-size": "512" },
      /at least the block-size, 4096/,
    ],
    [{ memory: "0" }, /at least one block of 512/],
    [{ memory: "1000" }, /a multiple of the block/],
    [
      { memory: "much" },
      /a size below 8P is wanted, in bytes or like 64M or 10G/,
    ],
    [{ memory: "-1" }, /a size below 8P is/],
    [{ memory: "9000000P" }, /a size below 8P is/],
    [{ file: "a", create: "5X" }, /create=5X/],
    [
      { file: "a", create: "1G", readonly: "on" },
      /create with readonly=on/,
    ],
  ];
  for (const [values, says] of cases) {
    const error = assertThrows(() => BLOCK_OPTIONS.parse(values), Error);
    assert(isRefusal(error), error.name);
    assert(says.test(error.message), error.message);
  }
});

function isRefusal(error: unknown): boolean {
  return error instanceof UnknownNameError ||
    error instanceof OptionError;
}

Deno.test("BLOCK_OPTIONS.parse throws nothing but refusals, and gives plain data", () => {
  const names = BLOCK_OPTIONS.rows.map(({ name }) => name);
  const value = fc.oneof(
    fc.string(),
    fc.constantFrom("on", "off", "512", "4096", "1M", "none", "unmap"),
  );
  fc.assert(
    fc.property(
      fc.dictionary(fc.constantFrom(...names, "other"), value),
      (values) => {
        try {
          const options = BLOCK_OPTIONS.parse(values);
          assertEquals(structuredClone(options), options);
        } catch (error) {
          assert(isRefusal(error), String(error));
        }
      },
    ),
    { numRuns: 500 },
  );
});

Deno.test("parseSize takes powers of 1024", () => {
  assertEquals([parseSize("7P"), parseSize("8P")], [7 * 2 ** 50, null]);
  assertEquals(parseSize("512"), 512);
  assertEquals(parseSize("64M"), 64 << 20);
  assertEquals(parseSize("10g"), 10 * 2 ** 30);
  assertEquals(parseSize("4KiB"), 4096);
  assertEquals(parseSize("1T"), 2 ** 40);
  for (const bad of ["", "M", "1.5G", " 1", "1 M", "1E", "0x10", "1MM"]) {
    assertEquals(parseSize(bad), null, bad);
  }
});

Deno.test("formatSize is what parseSize takes", () => {
  assertEquals(formatSize(64 << 20), "64M");
  assertEquals(formatSize(1536), "1536");
  fc.assert(
    fc.property(fc.maxSafeNat(), (bytes) => {
      assertEquals(parseSize(formatSize(bytes)), bytes);
    }),
  );
});
