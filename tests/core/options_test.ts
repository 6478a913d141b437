import { assertEquals, assertThrows } from "@std/assert";
import { numbered, oneOfKinds } from "../../src/core/option_groups.ts";
import {
  flag,
  type Infer,
  integer,
  list,
  oneOf,
  onOff,
  option,
  OptionError,
  type Options,
  options,
  type OptionTexts,
  parseOptionParts,
  refuse,
  size,
  splitAtCommas,
  text,
} from "../../src/core/options.ts";
import { UnknownNameError } from "../../src/core/unknown_name.ts";

const DISK = options({
  bytes: size("size", { help: "how much", default: "64M" }),
  name: text("name", { help: "what it is called", maxBytes: 4 }),
  cached: onOff("cache", { help: "keep it", default: "off" }),
});

const ALL = options({
  queues: integer("queues", {
    syntax: "pairs",
    help: "how many",
    min: 1,
    max: 8,
    powerOfTwo: true,
    default: "2",
  }),
  link: oneOf("link", ["up", "down"], { help: "at first", otherwise: "up" }),
  tags: list(option("tag", { help: "marks" }, (text) => text.length)),
  verbose: flag("verbose", { help: "tell more" }),
  disk: DISK,
});

Deno.test("options gives defaults, null without one, and what groups give", () => {
  const values: Infer<typeof ALL> = ALL.parse({});
  assertEquals(values, {
    queues: 2,
    link: null,
    tags: [],
    verbose: false,
    disk: { bytes: 64 << 20, name: null, cached: false },
  });
  const given = {
    queues: "8",
    link: "down",
    tag: ["a", "bcd"],
    verbose: "on",
    name: "four",
    cache: "on",
  };
  assertEquals(ALL.parse(given), {
    queues: 8,
    link: "down",
    tags: [1, 3],
    verbose: true,
    disk: { bytes: 64 << 20, name: "four", cached: true },
  });
});

Deno.test("Options.rows are what help says, in the order of the declaration", () => {
  assertEquals(ALL.rows.slice(0, 5), [
    {
      name: "queues",
      syntax: "pairs",
      help: "how many",
      allowed: "a power of two from 1 to 8",
      default: "2",
    },
    { name: "link", syntax: "up|down", help: "at first", default: "up" },
    { name: "tag", syntax: "text", help: "marks", repeatable: true },
    { name: "verbose", syntax: "", help: "tell more" },
    { name: "size", syntax: "size", help: "how much", default: "64M" },
  ]);
});

Deno.test("Options.parse says in one line what is wrong and what would be right", () => {
  const cases: [OptionTexts, string][] = [
    [{ queues: "3" }, "queues=3: a power of two from 1 to 8 is wanted"],
    [{ queues: "" }, 'queues="": a power of two'],
    [{ queues: ["1", "2"] }, "queues 2 times: give it once"],
    [{ link: "left" }, "link=left: it is up or down"],
    [{ size: "much" }, "size=much: a size below 8P is wanted"],
    [{ name: "fives" }, "name=fives: 1 to 4 bytes without control"],
    [{ name: "a\nb" }, 'name="a\\nb": 1 to 4 bytes'],
    [{ cache: "yes" }, "cache=yes: it is on or off"],
  ];
  for (const [texts, message] of cases) {
    assertThrows(() => ALL.parse(texts), OptionError, `Cannot use ${message}`);
  }
  const error = assertThrows(
    () => ALL.parse({ quues: "1" }, "a card"),
    UnknownNameError,
    "Cannot use option quues: a card has queues, link, tag, verbose, size",
  );
  assertEquals(error.known, ALL.rows.map(({ name }) => name));
});

Deno.test("options refuses what is declared twice, and a default that is none", () => {
  assertThrows(
    () => options({ a: DISK, b: text("name", { help: "another" }) }),
    Error,
    "Cannot declare option name twice",
  );
  assertThrows(
    () => integer("port", { help: "it", min: 1, max: 9, default: "10" }),
    OptionError,
    "Cannot use port=10: a number from 1 to 9 is wanted",
  );
});

Deno.test("options lets a rule check the values, and give others", () => {
  const rule = options({
    a: integer("a", { help: "one", min: 0, max: 9, default: "1" }),
    b: integer("b", { help: "not less", min: 0, max: 9 }),
  }, ({ a, b }) => {
    if (b !== null && b < a) refuse(`b=${b}`, `it is at least ${a}`);
    return { a, b: b ?? a };
  });
  assertEquals(rule.parse({ a: "4" }), { a: 4, b: 4 });
  assertThrows(
    () => rule.parse({ b: "0" }),
    OptionError,
    "Cannot use b=0: it is at least 1",
  );
});

const WHERE = oneOfKinds(
  "kind",
  {
    disk: { options: DISK },
    net: {
      options: options({
        name: text("name", { help: "of the interface" }),
        port: integer("port", { help: "where", min: 1, max: 9 }),
      }),
    },
  },
  oneOf("kind", ["disk", "net"], { help: "which", default: "disk" }),
  (kind) => `kind=${kind}`,
  "a place",
);

Deno.test("oneOfKinds takes the options of the kind that is chosen, and no others", () => {
  assertEquals(WHERE.rows.map(({ name }) => name), [
    "kind",
    "size",
    "name",
    "cache",
    "port",
  ]);
  const place = WHERE.parse({ kind: "net", port: "3" });
  assertEquals(place, { kind: "net", name: null, port: 3 });
  assertEquals(place.kind === "net" && place.port, 3);
  assertEquals(WHERE.parse({}).kind, "disk");
  assertThrows(
    () => WHERE.parse({ port: "3" }),
    OptionError,
    "Cannot use port with kind=disk: it needs kind=net",
  );
  assertThrows(
    () => WHERE.parse({ prot: "3" }),
    UnknownNameError,
    "Cannot use option prot: a place has kind, size",
  );
});

Deno.test("numbered tells several things apart, the first with or without its number", () => {
  const row = { name: "ns", syntax: "value", help: "of one of several" };
  const disks = numbered(row, 4, DISK);
  const sizes = (texts: OptionTexts) =>
    disks.parse(texts).map(({ number, options }) => [number, options.bytes]);
  assertEquals(disks.rows.at(-1)!.name, "nsN.OPTION");
  assertEquals(sizes({}), [[1, 64 << 20]]);
  assertEquals(sizes({ "ns3.size": "1M", "ns1.size": "2M" }), [
    [1, 2 << 20],
    [3, 1 << 20],
  ]);
  assertEquals(sizes({ size: "1M", "ns1.name": "a" }), [[1, 1 << 20]]);
  assertEquals([disks.has("ns2.any"), disks.has("ns.size")], [true, false]);
  for (
    const [texts, message] of [
      [{ "ns5.size": "1" }, "Cannot use ns5.size: ns is numbered from 1 to 4"],
      [{ "ns0.size": "1" }, "numbered from 1 to 4"],
      [{ size: "1", "ns1.size": "1" }, "beside ns1.size: both are of ns1"],
      [{ "ns2.sise": "1" }, "Cannot use option sise: this has size, name"],
    ] as const
  ) {
    assertThrows(() => disks.parse(texts), Error, message);
  }
});

Deno.test("options that take the rest are given what nobody has, where they are chosen", () => {
  const rest: Options<OptionTexts> = {
    rows: [],
    has: () => false,
    takesRest: (texts) => texts.program !== undefined,
    parse: (texts) => texts,
  };
  const kinds = {
    disk: { options: DISK },
    program: {
      options: options({
        program: text("program", { help: "which" }),
        own: rest,
      }),
    },
  };
  const choose = {
    ...oneOf("program", ["disk", "program"], { help: "", default: "disk" }),
    parse: (texts: OptionTexts) => texts.program ? "program" : "disk",
  } as const;
  const place = oneOfKinds("kind", kinds, choose, (kind) => kind, "a place");
  const row = { name: "ns", syntax: "value", help: "of one of several" };
  const all = options({
    queues: integer("queues", { help: "", min: 1, max: 8, default: "1" }),
    places: numbered(row, 4, place),
  });
  // Those of other kinds too.
  const texts = { queues: "2", program: "p", url: "u", cache: ["a", "b"] };
  assertEquals(all.parse({ ...texts, "ns2.size": "1M" }), {
    queues: 2,
    places: [
      {
        number: 1,
        options: {
          kind: "program",
          program: "p",
          own: { url: "u", cache: ["a", "b"] },
        },
      },
      {
        number: 2,
        options: { kind: "disk", bytes: 1 << 20, name: null, cached: false },
      },
    ],
  });
  assertThrows(() => all.parse({ url: "u" }), UnknownNameError, "option url");
  assertThrows(
    () => all.parse({ ...texts, "ns2.url": "u" }),
    UnknownNameError,
    "option url",
  );
});

Deno.test("parseOptionParts and splitAtCommas take what a command line has apart", () => {
  assertEquals(splitAtCommas("a=1,,2,b"), ["a=1,2", "b"]);
  const texts = parseOptionParts(["a=1", "b", "a=2=3", "__proto__=x"]);
  assertEquals(Object.entries(texts), [
    ["a", ["1", "2=3"]],
    ["b", "on"],
    ["__proto__", "x"],
  ]);
  assertThrows(() => DISK.parse(texts), UnknownNameError);
});
