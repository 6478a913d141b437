import { assert, assertEquals, assertThrows } from "@std/assert";
import { startOutboard } from "../../src/testing/mod.ts";
import { VfioUserClient } from "../../src/transport/vfio_user/client/mod.ts";
import { controlLine } from "../guest/control_line.ts";
import { FAULTS } from "./fixtures/faulty_model.ts";

const FILE = new URL("./fixtures/faulty_model.ts", import.meta.url).pathname;
const source = Deno.readTextFileSync(FILE).split("\n");

/** Offset of a piece of text in the fixture. */
function at(text: string): string {
  const line = source.findIndex((candidate) => candidate.includes(text));
  assert(line >= 0, text);
  return `model faulty, ${FILE}:${line + 1}:`;
}

/** Words in one line on a fault: its beginning, and what the person needs. */
const EXPECTED: Readonly<Record<string, readonly [string, string]>> = {
  setTimeout: [at("=> setTimeout("), "use context.loop.timer"],
  setInterval: [at("=> setInterval("), "use context.loop.timer"],
  queueMicrotask: [at("=> queueMicrotask("), "schedule() of what it returns"],
  fetch: [at("=> fetch("), "use a Worker of your own"],
  close: [at("=> close("), "Cannot use close: "],
  "Deno.exit": [at("=> Deno.exit("), "Cannot use Deno.exit: "],
  "process.exit": [at("=> process.exit("), "Cannot use process.exit: "],
  readBar: [
    `model faulty, ${FILE}: readBar must return an integer, and gave undefined for BAR 0`,
    `offset 0x${(FAULTS.indexOf("readBar") * 4).toString(16)}`,
  ],
  string: [
    `model faulty, ${FILE}: it throws "just a string"`,
    "which is not an Error",
  ],
  throws: [at('new Error("no such register")'), "no such register"],
  timer: [at('new Error("not on a timer")'), "not on a timer"],
  promise: [at("async function neverGoesOn"), "Cannot wait for a promise"],
  null: [`model faulty, ${FILE}: it throws null`, "which is not an Error"],
};

/** More in one log of the same second may be left out of it. */
const FAULTS_AT_ONCE = 5;

async function checkFaults(first: number): Promise<void> {
  const folder = Deno.makeTempDirSync();
  try {
    const socket = `${folder}/s`;
    await using outboard = await startOutboard([
      "--device",
      FILE,
      "--socket",
      socket,
    ]);
    const names = FAULTS.slice(first, first + FAULTS_AT_ONCE);
    for (const [i, name] of names.entries()) {
      {
        using client = new VfioUserClient(socket);
        client.negotiate();
        const read = () => client.readRegion32(0, (first + i) * 4);
        if (name === "timer" || name === "promise") assertEquals(read(), 0);
        else assertThrows(read);
      }
      const [place, advice] = EXPECTED[name]!;
      const isTold = (line: string) =>
        line.includes(place) && line.includes(advice);
      await outboard.waitFor(
        `tell of ${name}`,
        () => outboard.stderr.split("\n").slice(0, -1).some(isTold),
      );
    }
    // No stack of ours beside it.
    assert(!outboard.stderr.includes("internal error"), outboard.stderr);
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
}

Deno.test("a fault of a model at run time is one line with its name, file and line, and what to use", async () => {
  assertEquals(Object.keys(EXPECTED), FAULTS);
  for (let first = 0; first < FAULTS.length; first += FAULTS_AT_ONCE) {
    await checkFaults(first);
  }
});

Deno.test("a model that hopes for its runtime is told so in one line for each cause, and ends nothing", async () => {
  const file = new URL("./fixtures/hasty_model.ts", import.meta.url).pathname;
  const lines = Deno.readTextFileSync(file).split("\n");
  const line = (text: string) =>
    `${file}:${lines.findIndex((line) => line.includes(text)) + 1}:`;
  const folder = Deno.makeTempDirSync();
  try {
    const [socket, control] = [`${folder}/s`, `${folder}/c`];
    await using outboard = await startOutboard([
      ...["--device", file, "--socket", socket, "--control", control],
    ]);
    {
      using client = new VfioUserClient(socket);
      client.negotiate();
      assertEquals(client.readRegion32(0, 0), 0);
      assertThrows(() => client.readRegion32(0, 4));
    }
    {
      using client = new VfioUserClient(socket);
      client.negotiate();
      assertThrows(() => client.readRegion32(0, 8));
    }
    // The runtime has its turn, and finds what was rejected.
    await controlLine(control, "counters");
    await controlLine(control, "counters");
    const fault = `hasty0: error: REGION_READ failed in model hasty, ${file}`;
    const integer = "readBar must return an integer, and gave";
    const expected = [
      `error: ${
        line("setInterval(")
      }1: Cannot rely on setInterval at the top level`,
      `error: model hasty, ${line("async function manySteps")}`,
      `${fault}: ${integer} NaN for BAR 0, offset 0x4`,
      `${fault}: ${integer} 0.5 for BAR 0, offset 0x8`,
      `error: a promise was rejected in model hasty, ${
        line('new Error("told at last")')
      }9: told at last`,
    ];
    await outboard.waitFor(
      "tell of all",
      () => outboard.stderr.includes(expected.at(-1)!),
    );
    const told = outboard.stderr.trimEnd().split("\n")
      .filter((line) => line.includes("error"));
    assertEquals(told.length, expected.length, outboard.stderr);
    for (const [i, beginning] of expected.entries()) {
      assert(told[i]!.startsWith(beginning), told[i]);
    }
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
});

Deno.test("a timer of a model's file that throws on an IOThread is one line, and ends nothing", async () => {
  const file = new URL("./fixtures/early_model.ts", import.meta.url).pathname;
  const folder = Deno.makeTempDirSync();
  try {
    const [socket, control] = [`${folder}/s`, `${folder}/c`];
    const outboard = await startOutboard([
      ...["--device", file, "--socket", socket, "--control", control],
    ]);
    // Each gives the runtime a turn.
    await controlLine(control, "list");
    await controlLine(control, "list");
    // The last turn is at the end.
    await outboard.stop();
    const [first, second, ...rest] = outboard.stderr.trimEnd().split("\n");
    assert(first!.includes("Cannot rely on setTimeout at the top"), first);
    assert(second!.endsWith(`${file}:7:11: not in a thread`), second);
    assertEquals(rest, []);
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
});

Deno.test("a model that fails as it is closed is one line with its file and line", async () => {
  const folder = Deno.makeTempDirSync();
  try {
    const socket = `${folder}/s`;
    const outboard = await startOutboard([
      ...["--device", `${FILE},at=closing`, "--socket", socket],
    ]);
    outboard.signal("SIGTERM");
    assertEquals(await outboard.exitCode(), 1);
    const place = at('new Error("cannot let go")');
    assert(
      outboard.stderr.startsWith(
        `faulty0: error: cannot close the device: ${place}`,
      ),
      outboard.stderr,
    );
    assert(outboard.stderr.endsWith(": cannot let go\n"), outboard.stderr);
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
});

for (
  const [where, expected] of [
    ["create", `${at('new Error("not on a timer")')}`],
    [
      "string",
      `model faulty, ${FILE}: it throws "just a string", which is not an Error`,
    ],
    [
      "async",
      `model faulty, ${FILE}: the device's \`counters\` must not be async`,
    ],
    [
      "reset",
      `model faulty, ${FILE}: the device has no \`reset\`, which must be a function`,
    ],
    [
      "close",
      `model faulty, ${FILE}: the device has no \`close\`, which must be a function`,
    ],
    ["parse", "must become plain data, which travels to another thread"],
  ] as const
) {
  Deno.test(`a model that is wrong at ${where} is one line, and nothing is served`, async () => {
    const folder = Deno.makeTempDirSync();
    try {
      const { code, stderr } = await new Deno.Command(Deno.execPath(), {
        args: [
          "run",
          "-A",
          new URL("../../mod.ts", import.meta.url).pathname,
          "--device",
          `${FILE},at=${where}`,
          "--socket",
          `${folder}/s`,
        ],
        env: { NO_COLOR: "1" },
      }).output();
      const lines = new TextDecoder().decode(stderr).trimEnd().split("\n");
      assertEquals(lines.length, 1, lines.join("\n"));
      assert(lines[0]!.includes(expected), lines[0]);
      assert(code !== 0);
      assertEquals([...Deno.readDirSync(folder)], []);
    } finally {
      Deno.removeSync(folder, { recursive: true });
    }
  });
}
