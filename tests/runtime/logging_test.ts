import { assert, assertEquals, assertMatch } from "@std/assert";
import {
  configureLogging,
  createLog,
  type LogFormat,
} from "../../src/runtime/logging/logging.ts";

function logged(format: LogFormat, run: () => void): string[] {
  const lines: string[] = [];
  configureLogging("info", format, (line) => lines.push(line));
  run();
  return lines;
}

Deno.test("createLog says in text what has failed, with the stack where there is one", () => {
  const error = new Error("no {coffee}");
  const lines = logged("text", () => {
    createLog("cup").error("cannot brew", { error });
    createLog("cup").error("REGION_READ failed", { error, stack: error.stack });
    createLog().warn("the pot is empty", { litres: 0 });
  });
  assertMatch(
    lines[0]!,
    /^cup: error: cannot brew: \S+logging_test\.ts:\d+:\d+: no \{coffee\}\n$/,
  );
  assert(lines[1]!.startsWith("cup: error: REGION_READ failed\n  Error: no"));
  assert(lines[1]!.includes("logging_test.ts"));
  assertEquals(lines[2], "warning: the pot is empty\n");
});

Deno.test("createLog puts the message of an error into JSON", () => {
  const error = new Error("no coffee");
  const [line] = logged("json", () => {
    createLog("cup").error("cannot brew", { error, litres: 2 });
  });
  const { time, error: told, ...rest } = JSON.parse(line!);
  assert(!Number.isNaN(Date.parse(time)));
  assertEquals(rest, {
    level: "error",
    device: "cup",
    message: "cannot brew",
    litres: 2,
  });
  assertMatch(told, /logging_test\.ts:\d+:\d+: no coffee$/);
});

Deno.test("createLog lets no text make lines of its own, nor speak to a terminal", () => {
  const error = new Error("a\nb");
  const lines = logged("text", () => {
    createLog("cup").info("a\nerror: b\x1b[31m\r\x9b");
    createLog().error("it fails", { error, stack: error.stack });
  });
  assertEquals(lines[0], "cup: a\\nerror: b\\x1b[31m\\x0d\\x9b\n");
  assert(lines[1]!.startsWith("error: it fails\n  Error: a\n  b\n  "));
});
