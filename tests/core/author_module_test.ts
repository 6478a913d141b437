import { assertEquals } from "@std/assert";
import { moduleUrl } from "../../src/core/author_module.ts";

Deno.test("moduleUrl resolves paths and keeps their odd characters", () => {
  assertEquals(moduleUrl("./m.ts", "/work/dir"), "file:///work/dir/m.ts");
  assertEquals(moduleUrl("../m.ts", "/work/dir"), "file:///work/m.ts");
  assertEquals(moduleUrl("/m.ts", "/work/dir"), "file:///m.ts");
  assertEquals(
    moduleUrl("m#1?%20.ts", "/a b"),
    "file:///a%20b/m%231%3F%2520.ts",
  );
  assertEquals(moduleUrl("https://host/m.ts", "/"), "https://host/m.ts");
});
