import { assert, assertEquals, assertThrows } from "@std/assert";
import { parseCommandLine } from "../../src/cli/arguments.ts";
import { IOTHREAD_OPTION, IOTHREADS_OPTION } from "../../src/cli/iothreads.ts";
import { OptionError } from "../../src/core/options.ts";

const parseIOThreads = (text: string) =>
  IOTHREADS_OPTION.parse({ "--iothreads": text });

Deno.test("IOTHREADS_OPTION takes a number and CPUs", () => {
  const cases: [string, number, number[][] | null][] = [
    ["1", 1, null],
    ["64", 64, null],
    ["2,cpus=0:1", 2, [[0], [1]]],
    ["2,cpus=0-3:4+6", 2, [[0, 1, 2, 3], [4, 6]]],
    ["1,cpus=8+0-2+1", 1, [[0, 1, 2, 8]]],
    ["3,cpus=5", 3, [[5], [5], [5]]],
    ["1,cpus=7-7", 1, [[7]]],
  ];
  for (const [text, count, cpus] of cases) {
    assertEquals(parseIOThreads(text), { count, cpus }, text);
  }
});

Deno.test("IOTHREADS_OPTION says in one line what would be right", () => {
  const cases: [string, string][] = [
    ["", "1 to 64"],
    ["0", "1 to 64"],
    ["65", "1 to 64"],
    ["-1", "1 to 64"],
    ["two", "1 to 64"],
    ["1.5", "1 to 64"],
    ["cpus=0", "1 to 64"],
    ["2,cpus=0:1:2", "3 sets of CPUs for 2 IOThreads"],
    ["1,cpus=0:1", "2 sets of CPUs for 1 IOThread;"],
    ["3,cpus=0:1", "2 sets of CPUs for 3 IOThreads"],
    ["2,cpus=", '"" is no set'],
    ["2,cpus=0:", '"" is no set'],
    ["1,cpus=3-1", '"3-1" is no set'],
    ["1,cpus=a", '"a" is no set'],
    ["1,cpus=0+", '"0+" is no set'],
    ["1,cpus=10000", '"10000" is no set'],
    ["2,cpus=0,1", "Cannot use option 1: --iothreads has cpus"],
    ["2,pin=0", "Cannot use option pin: --iothreads has cpus"],
    ["1,cpus=0,cpus=1", "Cannot use cpus 2 times: give it once"],
  ];
  for (const [text, expected] of cases) {
    const error = assertThrows(() => parseIOThreads(text), Error);
    assert(error.message.includes(expected), `${text}: ${error.message}`);
    assert(!error.message.includes("\n"), error.message);
  }
});

Deno.test("IOTHREAD_OPTION takes one IOThread or several", () => {
  const parse = (iothread: string | string[]) =>
    IOTHREAD_OPTION.parse({ iothread });
  assertEquals(parse("0"), [0]);
  assertEquals(parse("3:1:2"), [3, 1, 2]);
  const cases: [string | string[], string][] = [
    ["", "counted from 0"],
    ["on", "counted from 0"],
    ["-1", "counted from 0"],
    ["0:", "counted from 0"],
    ["0-1", "counted from 0"],
    ["1:1", "once"],
    [["0", "1"], "give it once"],
  ];
  for (const [value, expected] of cases) {
    assertThrows(() => parse(value), OptionError, expected);
  }
});

Deno.test("parseCommandLine has one IOThread unless told", () => {
  const iothreads = (...words: string[]) => {
    const command = parseCommandLine(
      ["--device", "a", "--socket", "/tmp/a", ...words],
    );
    if (command.kind !== "run") throw new Error(command.kind);
    return command.iothreads;
  };
  assertEquals(iothreads(), { count: 1, cpus: null });
  assertEquals(iothreads("--iothreads", "2,cpus=0:1"), {
    count: 2,
    cpus: [[0], [1]],
  });
});
