import { assertEquals, assertMatch, assertThrows } from "@std/assert";
import { parseBenchArguments } from "../../bench/arguments.ts";

const KNOWN = ["startup", "region"];
const main = `${import.meta.dirname}/../../bench/main.ts`;

Deno.test("parseBenchArguments reads suites and options in any order", () => {
  const usual = { help: false, suites: KNOWN, scale: 1, json: null };
  assertEquals(parseBenchArguments([], KNOWN), usual);
  assertEquals(
    parseBenchArguments(["region", "--scale", "0.1", "--json=a"], KNOWN),
    { help: false, suites: ["region"], scale: 0.1, json: "a" },
  );
  for (const help of ["help", "--help", "-h"]) {
    assertEquals(parseBenchArguments([help], KNOWN).help, true, help);
  }
});

Deno.test("parseBenchArguments says what is wrong and what would be right", () => {
  const cases: [string[], RegExp][] = [
    [["nope"], /known are startup, region/],
    [["--scael", "0.1"], /--scael: the options are --scale/],
    [["-x"], /-x: the options are/],
    [["--scale", "0"], /number above 0/],
    [["--scale", "0.1x"], /number above 0/],
    [["--scale"], /number above 0/],
    [["startup", "--json"], /name the file/],
  ];
  for (const [args, message] of cases) {
    const { message: said } = assertThrows(
      () => parseBenchArguments(args, KNOWN),
      Error,
    );
    assertMatch(said, message);
  }
});

Deno.test("the benches refuse a file they cannot write before they measure", async () => {
  const folder = Deno.makeTempDirSync();
  try {
    const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
      args: [
        "run",
        "-A",
        "--quiet",
        main,
        "soak",
        "--json",
        `${folder}/no/figures`,
      ],
      env: { NO_COLOR: "1" },
    }).output();
    const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
    assertEquals([code, text(stdout)], [2, ""]);
    assertMatch(text(stderr), /^Cannot write \S+figures: .*No such file.*\n$/);
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
});
