import { assertEquals } from "@std/assert";
import type { Figure } from "../../bench/report.ts";
import { FULL } from "../../bench/settings.ts";
import { runSuites } from "../../bench/suites.ts";

Deno.test("runSuites reports a suite that fails and runs the others", async () => {
  const figure: Figure = { name: "speed", value: 1, unit: "m/s" };
  const help = "";
  const reported: [string, Figure[]][] = [];
  const said: unknown[] = [];
  const { error } = console;
  console.error = (...words: unknown[]) => said.push(words[0]);
  let failed: string[];
  try {
    failed = await runSuites(
      {
        first: {
          help,
          run: () => Promise.reject(new Error("no end\nand more")),
        },
        second: { help, run: () => Promise.resolve([figure]) },
      },
      FULL,
      (name, figures) => reported.push([name, figures]),
    );
  } finally {
    console.error = error;
  }
  assertEquals(failed, ["first"]);
  assertEquals(said, ["first failed:"]);
  assertEquals(reported, [
    ["first", [{
      name: "first",
      value: NaN,
      unit: "",
      leftOut: "it failed: no end",
    }]],
    ["second", [figure]],
  ]);
});
