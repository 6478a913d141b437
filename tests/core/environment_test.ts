import { assertEquals } from "@std/assert";
import { environmentVariable } from "../../src/core/environment.ts";

Deno.test("environmentVariable takes an empty variable for one that is not set", () => {
  const name = "OUTBOARD_TEST_VARIABLE";
  try {
    for (const [value, expected] of [["", undefined], ["a", "a"]] as const) {
      Deno.env.set(name, value);
      assertEquals(environmentVariable(name), expected);
    }
  } finally {
    Deno.env.delete(name);
  }
  assertEquals(environmentVariable(name), undefined);
});
