import { assert, assertEquals } from "@std/assert";
import {
  configureLogging,
  createLog,
  type LogFormat,
} from "../../src/process/logging.ts";

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
  assertEquals(lines[0], "cup: error: cannot brew: no {coffee}\n");
  assert(lines[1]!.startsWith("cup: error: REGION_READ failed\nError: no"));
  assert(lines[1]!.includes("logging_test.ts"));
  assertEquals(lines[2], "warning: the pot is empty\n");
});

Deno.test("createLog puts the message of an error into JSON", () => {
  const error = new Error("no coffee");
  const [line] = logged("json", () => {
    createLog("cup").error("cannot brew", { error, litres: 2 });
  });
  const { time, ...rest } = JSON.parse(line!);
  assert(!Number.isNaN(Date.parse(time)));
  assertEquals(rest, {
    level: "error",
    device: "cup",
    message: "cannot brew",
    error: "no coffee",
    litres: 2,
  });
});
