import { assert, assertEquals, assertMatch, assertThrows } from "@std/assert";
import {
  DEVICE_OPTION,
  parseCommandLine,
  UsageError,
} from "../../src/cli/arguments.ts";

const parseDeviceArgument = (text: string) =>
  DEVICE_OPTION.parse({ "--device": text })[0]!;

Deno.test("DEVICE_OPTION takes model and options apart", () => {
  const parsed = parseDeviceArgument(
    "virtio-net,mac=52:54:00:00:00:01,hostfwd=tcp::1-:1,hostfwd=tcp::2-:2,restrict,ifname=a,,b",
  );
  assertEquals(parsed.model, "virtio-net");
  assertEquals({ ...parsed.options }, {
    mac: "52:54:00:00:00:01",
    hostfwd: ["tcp::1-:1", "tcp::2-:2"],
    restrict: "on",
    ifname: "a,b",
  });
  assert(!parsed.help);
  assert(parseDeviceArgument("virtio-net,help").help);
  assert(!parseDeviceArgument("virtio-net,help=me").help);
});

Deno.test("DEVICE_OPTION keeps keys of Object.prototype apart", () => {
  const { options } = parseDeviceArgument("m,__proto__=1,constructor=2");
  assertEquals(Object.entries(options), [["__proto__", "1"], [
    "constructor",
    "2",
  ]]);
});

Deno.test("parseCommandLine pairs devices and endpoints in order", () => {
  const command = parseCommandLine([
    "--device=a",
    "--fd",
    "3",
    "--device",
    "b,x=1",
    "--socket-path=/tmp/b",
    "--device",
    "c",
    "--socket",
    "/tmp/c",
    "--log-level",
    "warn",
  ]);
  if (command.kind !== "run") throw new Error(command.kind);
  assertEquals(command.devices.map((d) => [d.device.model, d.endpoint]), [
    ["a", { kind: "fd", fd: 3 }],
    ["b", { kind: "path", path: "/tmp/b" }],
    ["c", { kind: "path", path: "/tmp/c" }],
  ]);
  assertEquals(command.logLevel, "warn");
  assertEquals(command.logFormat, "text");
});

Deno.test("parseCommandLine takes polling in nanoseconds, or in words", () => {
  const pollMaxUs = (...words: string[]) => {
    const command = parseCommandLine(
      ["--device", "a", "--socket", "/tmp/a", ...words],
    );
    if (command.kind !== "run") throw new Error(command.kind);
    return command.pollMaxUs;
  };
  assertEquals(pollMaxUs(), 50);
  assertEquals(pollMaxUs("--poll", "off"), 0);
  assertEquals(pollMaxUs("--poll", "always"), Infinity);
  assertEquals(pollMaxUs("--poll", "50000"), 50);
});

Deno.test("parseCommandLine knows the questions", () => {
  assertEquals(parseCommandLine(["--help"]).kind, "help");
  assertEquals(parseCommandLine(["-h"]).kind, "help");
  assertEquals(parseCommandLine(["--version"]).kind, "version");
  assertEquals(parseCommandLine(["--device", "help"]), {
    kind: "device-help",
    device: null,
  });
  assertEquals(parseCommandLine(["--device", "virtio-net,help"]), {
    kind: "device-help",
    device: { model: "virtio-net", options: {}, help: true },
  });
});

Deno.test("parseCommandLine says in one line what would be right", () => {
  const cases: [string[], string][] = [
    [[], "--device virtio-net --socket"],
    [["--device", "a"], "one for each"],
    [["--socket", "/tmp/a"], "--device"],
    [["--bogus"], "--bogus"],
    [["--poll", "-1"], "'--poll' argument is ambiguous; give its value"],
    [["stray"], "stray"],
    [["--device"], "--device"],
    [["--device", "a", "--fd", "2"], "3 or more"],
    [["--device", "a", "--fd", "x"], "3 or more"],
    [["--device", "a", "--socket", ""], "give a path"],
    [["--device", "", "--socket", "/a"], "a model comes first"],
    [["--device", "x=1", "--socket", "/a"], "a model comes first"],
    [["--device", "a,=1", "--socket", "/a"], "has no key"],
    [["--device", "a", "--socket", "/a", "--log-level", "loud"], "debug, info"],
    [["--device", "a", "--socket", "/a", "--poll", "often"], "off, always"],
    [["--device", "a", "--socket", "/a,b"], "write a comma in a path twice"],
    [["--device", "a", "--socket", "/a,mode=0880"], "three octal digits"],
    [
      ["--device", "a", "--socket", "/a,mode=0600,mode=0660"],
      "Cannot use mode 2 times: give it once",
    ],
    [["--device", "a", "--socket", "/a,group="], 'Cannot use group="": 1 to'],
    [
      ["--device", "a", "--socket", "/a", "--metrics", "9100,mode=0600"],
      "a port",
    ],
    [["--control", "a", "--control", "b"], "Cannot use --control 2 times"],
    [["--metrics", "1", "--metrics", "2"], "Cannot use --metrics 2 times"],
    [["--poll", "off", "--poll", "off"], "Cannot use --poll 2 times"],
    [["--prealloc", "--prealloc"], "Cannot use --prealloc 2 times"],
    [["--iothreads", "1", "--iothreads", "1"], "--iothreads 2 times"],
    [["--log-level", "warn", "--log-level", "info"], "--log-level 2 times"],
    [["--log-format", "text", "--log-format=json"], "--log-format 2 times"],
    [
      ["--device", "a", "--socket", "/a", "--log-format", "xml"],
      "it is text or json",
    ],
    [
      ["--device", "a", "--socket", "/a", "--device", "b", "--socket", "/a"],
      "a socket of its own",
    ],
  ];
  for (const [args, expected] of cases) {
    const error = assertThrows(() => parseCommandLine(args), UsageError);
    assert(error.message.includes(expected), `${args}: ${error.message}`);
    assert(!error.message.includes("\n"), error.message);
  }
});

Deno.test("parseCommandLine refuses one socket under two names, and a control socket without any", () => {
  assertThrows(
    () =>
      parseCommandLine([
        ...["--device", "a", "--socket", "s"],
        ...["--device", "b", "--socket", "./x/../s"],
      ]),
    UsageError,
    "two devices",
  );
  assertThrows(
    () => parseCommandLine(["--device", "a", "--socket", "s", "--control", ""]),
    UsageError,
    'Cannot use --control="": give a path',
  );
});

Deno.test("parseCommandLine takes who may connect to a socket", () => {
  const command = parseCommandLine([
    ...["--device", "a", "--socket", "/a,,b,mode=660,group=kvm"],
    ...["--control", "/c,group=107", "--metrics", "/m,mode=0666"],
  ]);
  if (command.kind !== "run") throw new Error(command.kind);
  assertEquals(command.devices[0]!.endpoint, {
    kind: "path",
    path: "/a,b",
    mode: 0o660,
    group: "kvm",
  });
  assertEquals(command.control, { path: "/c", group: "107" });
  assertEquals(command.metrics, { kind: "path", path: "/m", mode: 0o666 });
});

Deno.test("parseCommandLine takes a place for metrics, and says what would be one", () => {
  const parse = (...words: string[]) => {
    const command = parseCommandLine(
      ["--device", "a", "--socket", "s", ...words],
    );
    if (command.kind !== "run") throw new Error(command.kind);
    return command.metrics;
  };
  assertEquals(parse(), null);
  assertEquals(parse("--metrics", "9100"), {
    kind: "tcp",
    hostname: "127.0.0.1",
    port: 9100,
  });
  assertEquals(parse("--metrics", "/m"), { kind: "path", path: "/m" });
  assertThrows(
    () => parse("--metrics", "nobody:80"),
    UsageError,
    "Cannot use --metrics=nobody:80: give a port, such as 9100",
  );
  for (const address of ["0.0.0.0", "localhost", "m.sock"]) {
    assertThrows(
      () => parse("--metrics", address),
      UsageError,
      "a path with a slash",
    );
  }
});

Deno.test("parseCommandLine refuses one path for two purposes", () => {
  const run = (...words: string[]) =>
    parseCommandLine(["--device", "a", "--socket", "s", ...words]);
  const cases: [string[], RegExp][] = [
    [["--control", "./s"], /^Cannot use \/.*\/s for --socket and --control: /],
    [
      ["--metrics", "x/../s"],
      /^Cannot use \/.*\/s for --socket and --metrics: /,
    ],
    [
      ["--metrics", "./m", "--control", "m,mode=0660"],
      /^Cannot use \/.*\/m for --control and --metrics: /,
    ],
  ];
  for (const [words, expected] of cases) {
    const error = assertThrows(() => run(...words), UsageError);
    assertMatch(error.message, expected);
  }
  assertEquals(run("--metrics", "./m", "--control", "c").kind, "run");
});

Deno.test("parseCommandLine: --hello-timeout is in seconds", () => {
  const parse = (...words: string[]) => {
    const command = parseCommandLine([
      "--device",
      "virtio-net",
      "--socket",
      "/s",
      ...words,
    ]);
    return command.kind === "run" ? command.helloTimeoutMs : 0;
  };
  assertEquals(parse(), 5000);
  assertEquals(parse("--hello-timeout", "0.5"), 500);
  for (const text of ["0", "soon", "1e9", ""]) {
    assertThrows(() => parse(`--hello-timeout=${text}`), UsageError, "seconds");
  }
});
